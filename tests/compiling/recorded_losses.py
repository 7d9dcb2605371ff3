"""Losses of programs of the digits with their gradients, recorded and run."""

import torch
from programs import DIGITS
from pyro.infer import Trace_ELBO, trace_elbo, trace_mean_field_elbo

from pyro_vae.compiling import ProgramLoss
from pyro_vae.compiling.constants import WatchedConstants
from pyro_vae.compiling.joint import record

PIXELS = DIGITS.train.images[:6]


def loss_of(program, elbo=None):
    return ProgramLoss(elbo or Trace_ELBO(), program.model, program.guide, getattr(program, "observe", None))


def with_gradients(loss, parameters):
    """The function from the arguments of a loss to its value and its gradient by some parameters."""

    def function(*args):
        value = loss(*args)
        gradients = torch.autograd.grad(value, parameters, allow_unused=True) if parameters else ()
        return value.detach(), *(torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients))

    return function


def recorded_loss(loss, args=(PIXELS,), parameters=()):
    """The graph of a loss and its gradient, which is run as it is."""
    return record(with_gradients(loss, parameters), args, WatchedConstants(loss.roots), compiler=None)


def assert_same(loss, args=(PIXELS,), rtol=1e-5, leaves=()):
    """The recorded loss and its gradient are those of the eager loss under the same seed."""
    parameters = [*loss.parameters(), *leaves]
    graph = recorded_loss(loss, args, parameters)
    torch.manual_seed(1)
    value, *gradients = with_gradients(loss, parameters)(*args)
    torch.manual_seed(1)
    other, *others = graph(args)
    # a loss may be small as a difference of large terms, of a nat or so a pixel
    torch.testing.assert_close(other, value, rtol=rtol, atol=rtol * args[0].numel())
    for a, b in zip(others, gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * b.abs().max().item())


def originals():
    return [getattr(m, name) for m in (trace_elbo, trace_mean_field_elbo) for name in ("torch_item", "warn_if_nan")]
