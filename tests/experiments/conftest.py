"""What all tests of experiments share."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def quick_pictures(unrendered):
    """Draw the pictures of an experiment, and not those of the runs that it consists of."""
