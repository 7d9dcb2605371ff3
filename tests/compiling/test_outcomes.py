"""Outcomes of a loss: values by hand, and what counts as more than rounding."""

import itertools
import re

import pytest
import torch
from torch import nn

from pyro_vae.compiling.outcomes import contents_kept, difference, outcome

X = torch.tensor([1.0, -2.0, 3.0])


class Noisy(nn.Module):
    """Σ (w x + ε)², ε ~ N(0, 0.01²), an unused parameter, a buffer that counts calls, and one that is rewritten."""

    def __init__(self):
        super().__init__()
        self.weight, self.unused = nn.Parameter(torch.tensor([0.5, 1.0, -1.0])), nn.Parameter(torch.ones(1))
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("fixed", torch.ones(()))
        self.register_buffer("rewritten", torch.ones(()))

    def forward(self, x):
        self.calls.add_(1)
        self.rewritten.fill_(1)
        return (self.weight * x + 0.01 * torch.randn(3)).pow(2).sum()


def run(module, change=lambda name, value: value):
    """A run of a loss whose outcome is changed."""

    def of():
        found = outcome(module, (X,), dict(module.named_parameters()), dict(module.named_buffers()))
        for values in (found.gradients, found.buffers):
            values.update({name: change(name, value) for name, value in values.items()})
        return type(found)(change("loss", found.loss), found.gradients, found.buffers)

    return of


def test_an_outcome_by_hand():
    module = Noisy()
    torch.manual_seed(0)
    noise = 0.01 * torch.randn(3)
    torch.manual_seed(0)
    found = run(module)()
    by_hand = 2 * (module.weight * X + noise) * X
    torch.testing.assert_close(found.gradients, {"weight": by_hand.detach()})
    torch.testing.assert_close(found.loss, (module.weight * X + noise).pow(2).sum().detach())
    assert found.buffers == {"calls": torch.ones(()), "rewritten": torch.ones(())} and module.calls == 1
    torch.testing.assert_close(found.norm(), by_hand.norm().detach())
    names = ["the loss", "the gradient of weight", "the buffer calls", "the buffer rewritten"]
    assert list(found.values()) == names and found.is_finite()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda name, value: value, None),
        (lambda name, value: value * (1 + 1e-7), None),
        (lambda name, value: value * 1.001 if name == "loss" else value, "its loss is .*, that of the program"),
        (lambda name, value: value * 1.1 if name == "weight" else value, "the gradient of weight differs by"),
        (lambda name, value: value + 1 if name == "calls" else value, "the buffer calls differs by 1, where it is 1"),
        (lambda name, value: value * torch.nan, "its loss is nan"),
    ],
)
def test_what_is_more_than_rounding_is_named(change, words):
    module = Noisy()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    found = difference(module, torch.float32, 3, run(module), run(module, change))
    assert found is None if words is None else re.match(words, found)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_in_lower_precision_more_is_rounding():
    module = Noisy()
    other = run(module, lambda name, value: value * 1.005 if name == "loss" else value)
    assert difference(module, torch.bfloat16, 3, run(module), other) is None
    assert "its loss is" in difference(module, torch.float32, 3, run(module), other)


def test_a_program_that_changes_from_run_to_run_and_one_that_is_nowhere_finite():
    module, count = Noisy(), itertools.count(1)
    drifting = run(module, lambda name, value: value + next(count) if name == "loss" else value)
    assert "its loss is" in difference(module, torch.float32, 3, drifting, drifting)
    never = run(module, lambda name, value: value * torch.nan)
    assert difference(module, torch.float32, 3, never, never) is None


def test_contents_are_restored_in_place_and_after_an_error():
    tensors = [torch.ones(2), torch.zeros(1)]
    with pytest.raises(KeyError), contents_kept(tensors):
        tensors[0].add_(1)
        raise KeyError
    assert torch.equal(tensors[0], torch.ones(2)) and torch.equal(tensors[1], torch.zeros(1))
