"""Eager steps: gradients of parts, and steps that are left out."""

import copy
import types

import pytest
import torch
from engine_trainings import BATCHES, Training
from programs import small_vae
from pyro.infer import Trace_ELBO

from pyro_vae.training.engines import EagerEngine

pytestmark = pytest.mark.usefixtures("no_validation")


def test_eager_leaves_out_a_step_whose_gradient_alone_is_not_finite():
    training = Training(EagerEngine, batches=BATCHES[:2], schedule=None)
    before = copy.deepcopy(training.program.state_dict())
    training.program.likelihood.network.layers[0].weight.register_hook(lambda gradient: gradient * torch.inf)
    assert not training.step(BATCHES[0]).isfinite()
    for name, value in training.program.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_gradients_of_the_parts_of_a_batch_are_summed():
    def descent(parameters):
        return torch.optim.SGD(parameters, lr=1e-4)

    program, reference = small_vae(), small_vae()
    step = EagerEngine(program, Trace_ELBO(), descent(program.parameters()), accumulate=3)
    torch.manual_seed(1)
    loss = step(BATCHES[0])
    torch.manual_seed(1)
    losses = [
        Trace_ELBO().differentiable_loss(reference.model, reference.guide, reference.observe(part))
        for part in BATCHES[0].tensor_split([17, 34])
    ]
    gradients = torch.autograd.grad(sum(losses), list(reference.parameters()))
    torch.testing.assert_close(loss, sum(losses).detach())
    for one, other, gradient in zip(program.parameters(), reference.parameters(), gradients):
        torch.testing.assert_close(one, other - 1e-4 * gradient)


def test_a_program_that_is_no_module_is_an_error():
    program = types.SimpleNamespace(model=abs, guide=abs, observe=abs)
    with pytest.raises(ValueError, match=r"program: wanted an nn.Module with model, guide and observe, got SimpleName"):
        EagerEngine(program, Trace_ELBO(), None)
