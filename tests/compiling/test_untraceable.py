"""Programs that cannot be traced are told which line is in the way."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from recorded_losses import loss_of, originals, recorded_loss
from torch import nn

from pyro_vae.compiling import Untraceable
from pyro_vae.compiling.untraceable import explanation, first_line


class Branching(nn.Module):
    """A program that looks at its data."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(2))

    def model(self, x):
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            if x.sum() > 3:
                z = 2 * z
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(self.loc, 1.0).expand([len(x), 2]).to_event(1))


def test_data_dependent_control_flow_is_named_and_pyro_is_left_as_it_was():
    before, program = originals(), Branching()
    with pytest.raises(Untraceable, match=r"test_untraceable.py, line \d+: `if x.sum\(\) > 3:`.*engine=.eager"):
        recorded_loss(loss_of(program), (torch.ones(4, 2),))
    assert originals() == before and pyro.infer.util.is_validation_enabled()


def test_the_first_line_of_an_error():
    assert first_line(ValueError("\n one\ntwo")) == "one" and first_line(KeyError()) == "KeyError"


def test_the_last_line_outside_of_the_libraries_is_named():
    def program():
        torch.ones(2).view(3)  # the line in the way

    with pytest.raises(RuntimeError) as caught:
        program()
    words = explanation(caught.value)
    assert "`torch.ones(2).view(3)  # the line in the way` (RuntimeError: shape '[3]' is invalid" in words
    assert f"at {__file__}, line {program.__code__.co_firstlineno + 1}: " in words and 'engine="eager"' in words
    assert explanation(ValueError("no frame")).startswith("the program cannot be traced (ValueError: no frame)")
