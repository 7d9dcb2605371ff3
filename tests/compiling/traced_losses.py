"""Traced losses of programs of the digits."""

import torch
from programs import DIGITS
from pyro.infer import Trace_ELBO, trace_elbo, trace_mean_field_elbo
from torch.func import functional_call, grad_and_value

from pyro_vae.compiling import ProgramLoss, traced

PIXELS = DIGITS.train.images[:6]


def loss_of(program, elbo=None):
    return ProgramLoss(elbo or Trace_ELBO(), program.model, program.guide, getattr(program, "observe", None))


def assert_same(loss, args=(PIXELS,), rtol=1e-5, leaves=()):
    """The traced loss and its gradient, taken by torch.func, are those of the eager loss under the same seed."""
    graph = traced(loss, args)
    names, values = zip(*graph.named_parameters())
    torch.manual_seed(1)
    eager = loss(*args)
    elsewhere = {leaf.data_ptr(): leaf for leaf in leaves}
    trained = [elsewhere.get(value.data_ptr(), value) for value in values]
    gradients = torch.autograd.grad(eager, trained, allow_unused=True)
    torch.manual_seed(1)
    function = grad_and_value(lambda values: functional_call(graph, dict(zip(names, values)), args))
    other, value = function([value.detach() for value in values])
    # a loss may be small as a difference of large terms, of a nat or so a pixel
    torch.testing.assert_close(value, eager.detach(), rtol=rtol, atol=rtol * args[0].numel())
    for name, a, b in zip(names, other, gradients):
        b = torch.zeros_like(a) if b is None else b
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * b.abs().max().item(), msg=name)


def originals():
    return [getattr(m, name) for m in (trace_elbo, trace_mean_field_elbo) for name in ("torch_item", "warn_if_nan")]
