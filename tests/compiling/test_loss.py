"""The loss of a program as a module: its parameters, wherever they lie."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import needs_compiler
from pyro.infer import Trace_ELBO
from recorded_losses import assert_same
from torch import nn

from pyro_vae.compiling import ProgramLoss, compiled
from pyro_vae.compiling.loss import owners


@pytest.mark.slow
@needs_compiler
@pytest.mark.usefixtures("quick_compiler")
def test_functions_whose_parameters_lie_in_pyros_store():
    pyro.clear_param_store()
    layer = nn.Linear(3, 2)

    def guide(x):
        pyro.module("layer", layer)
        scale = pyro.param("scale", torch.ones(2), constraint=dist.constraints.positive)
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(layer(x), scale).to_event(1))

    def model(x):
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True).expand(-1, 3), 1.0).to_event(1), obs=x)

    loss, x = ProgramLoss(Trace_ELBO(), model, guide), torch.rand(5, 3)
    loss(x)
    scale = pyro.get_param_store().get_param("scale").unconstrained()
    assert_same(loss, (x,), leaves=[scale, *layer.parameters()])
    trained = compiled(Trace_ELBO(), model, guide, x).parameters()
    assert {p.data_ptr() for p in trained} == {p.data_ptr() for p in (scale, *layer.parameters())}
    pyro.clear_param_store()


class Halves(nn.Module):
    """x ~ N(loc, 1) with an empty guide, and ``observe`` that halves the pixels."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.5))

    def observe(self, pixels):
        return pixels / 2

    def model(self, x):
        with pyro.plate("images", len(x)):
            pyro.sample("x", dist.Normal(self.loc, 1.0), obs=x)

    def guide(self, x):
        pass


def test_the_loss_is_that_of_what_observe_makes():
    program, pixels = Halves(), torch.tensor([1.0, 4.0])
    loss = ProgramLoss(Trace_ELBO(), program.model, program.guide, program.observe)
    expected = -torch.distributions.Normal(0.5, 1.0).log_prob(pixels / 2).sum()
    torch.testing.assert_close(loss(pixels), expected)
    torch.testing.assert_close(ProgramLoss(Trace_ELBO(), program.model, program.guide)(pixels / 2), expected)
    assert list(loss.owners) == [program] and list(loss.parameters()) == [program.loc]


def test_a_leaf_elsewhere_becomes_one_parameter_on_its_memory():
    loss, leaf = ProgramLoss(Trace_ELBO(), lambda: None, lambda: None), torch.ones(2, requires_grad=True)
    parameter = loss.other(leaf)
    assert loss.other(leaf) is parameter and len(loss.others) == 1
    with torch.no_grad():
        leaf.fill_(3.0)
    assert parameter.tolist() == [3.0, 3.0]


def test_owners_are_modules_each_once():
    program, layer = Halves(), nn.Linear(1, 1)
    assert owners(program.model, program.guide, layer, None, print) == [program, layer]
