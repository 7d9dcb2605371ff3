"""Checks of numbers that users pass."""

import math

import numpy as np
import pytest
import torch

from pyro_vae.checks import is_whole, positive_number, whole_number


@pytest.mark.parametrize("value", [0, -3, True, 2.0, 2.5, math.nan, "3", None, [3], torch.tensor(3)])
def test_what_is_no_whole_number_of_at_least_one(value):
    with pytest.raises(ValueError, match=r"^epochs: wanted a whole number of at least 1, got "):
        whole_number("epochs", value)


def test_whole_numbers_become_ints():
    numbers = [whole_number("n", value, least) for value, least in ((3, 1), (np.int64(3), 1), (0, 0), (-7, None))]
    assert numbers == [3, 3, 0, -7] and all(type(number) is int for number in numbers)
    assert is_whole(np.uint8(3)) and not is_whole(np.float64(3)) and not is_whole(np.True_)
    with pytest.raises(ValueError, match=r"^seed: wanted a whole number, got 1\.5$"):
        whole_number("seed", 1.5, least=None)


@pytest.mark.parametrize("value", [0, -1e-3, math.nan, math.inf, True, "1e-3", None, 1j])
def test_what_is_no_positive_number(value):
    with pytest.raises(ValueError, match=r"^lr: wanted a positive number, got "):
        positive_number("lr", value)


def test_positive_numbers_become_floats():
    numbers = [positive_number("lr", value) for value in (2, 0.5, np.float32(0.25))]
    assert numbers == [2.0, 0.5, 0.25] and all(type(number) is float for number in numbers)


def test_whole_numbers_up_to_a_greatest_one():
    assert [whole_number("bins", value, 2, 256) for value in (2, 256)] == [2, 256]
    for least, allowed in ((2, "from 2 to 256"), (None, "of at most 256")):
        with pytest.raises(ValueError, match=f"^bins: wanted a whole number {allowed}, got 257$"):
            whole_number("bins", 257, least, most=256)
