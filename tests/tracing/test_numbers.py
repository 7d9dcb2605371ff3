"""Numbers and tensors compared, and put into words."""

import pytest
import torch

from pyro_vae.tracing.numbers import number, same_numbers


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (0.5, 0.5 + 1e-12, True),
        (0.5, 0.6, False),
        (2.0, torch.full((3,), 2.0), True),
        (torch.ones(3), torch.ones(4), False),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0], dtype=torch.float64), True),
        (torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0]), False),
    ],
)
def test_scales_are_one_up_to_rounding(one, other, same):
    assert same_numbers(one, other) == same_numbers(other, one) == same


def test_scales_in_words():
    assert number(2.0) == number(torch.tensor(2.0)) == number(torch.tensor([2.0])) == "2"
    assert number(torch.ones(2)) == "a tensor of shape (2,)" and number(torch.ones(3, 1)) == "a tensor of shape (3, 1)"
