"""The engine that takes eager steps: the gradient by autograd, then a step of the torch optimiser."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_vae.compiling.loss import ProgramLoss
from pyro_vae.observation import from_fields
from pyro_vae.program import Program
from pyro_vae.training import ranks
from pyro_vae.training.lazy_compiler import take_step


class EagerEngine:
    """Takes the gradient of ``estimator(model, guide)`` by autograd, then a step of the torch optimiser.

    Args:
        program: the program that is trained.
        estimator: a ``pyro.infer.ELBO`` with a ``differentiable_loss``.
        optimizer: the optimiser of its parameters.
        scheduler: a schedule that is stepped after each step.
        clip: the largest norm of all gradients together; longer ones are cut to it.
        accumulate: the number of parts of a batch whose gradients are computed one after the other, and summed.
        fields: the names of the raw tensors of a batch.

    >>> from pyro.infer import Trace_ELBO
    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program = LinearGaussian(torch.ones(3, 1))
    >>> program.observe = lambda pixels: pixels
    >>> step = EagerEngine(program, Trace_ELBO(), torch.optim.Adam(program.parameters()))
    >>> step(program.simulate(5)).shape
    torch.Size([])
    """

    name = "eager"

    def __init__(
        self,
        program: Program,
        estimator: Any,
        optimizer: Optimizer,
        scheduler: LRScheduler | None = None,
        clip: float | None = None,
        accumulate: int = 1,
        fields: Sequence[str] = ("images",),
    ):
        self.module = as_module(program)
        self.loss = ProgramLoss(estimator, program.model, program.guide, partial(from_fields, program, tuple(fields)))
        self.optimizer, self.scheduler = optimizer, scheduler
        self.clip, self.accumulate = clip, accumulate

    def __call__(self, *raw: Tensor) -> Tensor:
        """Take a step on a batch, a tensor for each field; return its loss, in nats."""
        self.optimizer.zero_grad()
        return self.update(total([self.add_gradient(*part) for part in chunks(raw, self.accumulate)]))

    def end_epoch(self) -> None:
        """Do nothing: nothing is compiled that could be compared."""

    def add_gradient(self, *raw: Tensor) -> Tensor:
        """Add the gradient of these rows to those of the parameters; return their loss, detached."""
        loss = self.loss(*raw)
        loss.backward()
        return loss.detach()

    def update(self, loss: Tensor) -> Tensor:
        """Step optimiser and schedule; return the loss, which is NaN if a gradient is not finite."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        loss = loss.clone()
        ranks.all_reduce([loss, *(parameter.grad for parameter in parameters)])
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        loss = loss + 0 * norm
        if self.clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.clip, norm)
        if loss.is_cuda and self.optimizer.defaults.get("fused"):
            # As GradScaler does: the host then does not wait for the loss.
            self.optimizer.found_inf = (~loss.isfinite()).float()  # pyright: ignore[reportAttributeAccessIssue]
        elif not loss.isfinite():
            self.optimizer.zero_grad()  # without gradients nothing moves, and schedules and hooks still see a step
        take_step(self.optimizer)
        if self.scheduler is not None:
            self.scheduler.step()
        return loss


def chunks(raw: Sequence[Tensor], parts: int) -> list[tuple[Tensor, ...]]:
    """Return the parts of a batch, each with a tensor for each field."""
    return list(zip(*(tensor.chunk(parts) for tensor in raw)))


def total(losses: Sequence[Tensor]) -> Tensor:
    """Return the sum of the losses of the parts of a batch; the loss of a single part is returned as it is."""
    return losses[0] if len(losses) == 1 else torch.stack([*losses]).sum()


def as_module(program: Program) -> nn.Module:
    """Return the program as an ``nn.Module``. Raises ValueError if it is not one."""
    if not isinstance(program, nn.Module):
        got = type(program).__name__
        raise ValueError(
            f"program: wanted an nn.Module with model, guide and observe, got {got}; derive it from nn.Module"
        )
    return program
