"""The program of these tests, and images that it draws."""

import pytest
from programs import linear_gaussian


@pytest.fixture
def program():
    return linear_gaussian()


@pytest.fixture
def x(program):
    return program.simulate(3)
