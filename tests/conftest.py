"""Each test begins with an empty Pyro store."""

import pyro
import pytest


@pytest.fixture(autouse=True)
def empty_store():
    pyro.clear_param_store()
