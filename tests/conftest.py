"""Lets the tests import the experiments as their scripts import each other, and begin with an empty Pyro store."""

import sys
from pathlib import Path

import pyro
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))


@pytest.fixture(autouse=True)
def empty_store():
    pyro.clear_param_store()
