"""Losses that are not finite: the error, and the search for the site where they came from."""

import warnings
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.errors import NonFiniteLoss as NonFiniteLoss
from pyro_vae.observation import Arguments
from pyro_vae.program import Program


def culprit(program: Program, estimator: ELBO, *args: Tensor) -> str:
    """Describe where a loss at these arguments of model and guide, x first, becomes non-finite.

    It is x, the first site whose log-probability is not finite, or the parameters whose gradient is not. To find what a
    training step met, restore the random numbers that it started from.

    >>> from pyro.infer import Trace_ELBO
    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program = LinearGaussian(torch.ones(3, 1))
    >>> culprit(program, Trace_ELBO(), torch.tensor([[1.0, 2.0, torch.inf]]))
    'x itself holds 1 values that are not finite'
    """
    spoilt = [name for name, parameter in program.named_parameters() if not parameter.isfinite().all()]
    after = f"; {', '.join(spoilt[:3])} ({len(spoilt)} parameters in all) are not finite either" if spoilt else ""
    return _culprit(program, estimator, args) + after


def _culprit(program: Program, estimator: ELBO, args: Arguments) -> str:
    for parameter in program.parameters():
        parameter.grad = None
    for number, argument in enumerate(args):
        bad = int((~argument.isfinite()).sum())
        if bad:
            return f"{f'argument {number}' if number else 'x itself'} holds {bad} values that are not finite"
    model, guide = _First("model"), _First("guide")
    with pyro.validation_enabled(False), torch.enable_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Encountered NaN")  # this search looks for it
        loss = _loss(estimator, model(program.model), guide(program.guide), args)
        if guide.site or model.site:
            return f"the log-probability that went first is that of {guide.site or model.site}"
        if not loss.isfinite():
            return "the log-probability of every site is finite, the loss is not"
        if loss.requires_grad:
            loss.backward()
    names = [name for name, p in program.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    if names:
        return f"every log-probability is finite, the gradient of {', '.join(names[:3])} is not ({len(names)} in all)"
    return "the same batch with the parameters as they are now gives finite numbers"


def _loss(estimator: Any, model: Callable, guide: Callable, args: Arguments) -> Tensor:
    """Return the loss; an estimator without ``differentiable_loss`` adds its gradient to that of the parameters."""
    if hasattr(estimator, "differentiable_loss"):
        return estimator.differentiable_loss(model, guide, *args)
    return torch.as_tensor(estimator.loss_and_grads(model, guide, *args)).sum()


class _First(Messenger):
    """Notes the first sample site of a program whose log-probability is not finite."""

    def __init__(self, program: str):
        super().__init__()
        self.program, self.site = program, ""

    def _pyro_post_sample(self, msg: Any) -> None:
        if not self.site and not _finite(msg):
            self.site = f"site {msg['name']!r} of the {self.program}"


def _finite(msg: Any) -> bool:
    return not hasattr(msg["fn"], "log_prob") or bool(msg["fn"].log_prob(msg["value"]).isfinite().all())
