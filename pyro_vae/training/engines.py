"""Engines take the gradient steps of a training: eager ones, compiled ones, or those of ``pyro.infer.SVI``.

All train by the same numbers: the same seed gives the same curve, up to rounding. The state of the optimiser is always
that of one torch optimiser and its ``state_dict()``, so that one engine can go on where another one stopped.

If the loss or its gradient is not finite, the eager and the compiled engine leave the step out, except for the
schedule, and return a loss that is not finite.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_vae.compiling.compiler import missing_compiler
from pyro_vae.errors import warn
from pyro_vae.hardware import fast_matmul, keep_freed_memory, warn_if_emulated
from pyro_vae.program import Program
from pyro_vae.training import ranks
from pyro_vae.training.compiled import CapturedEngine, CompiledEngine, EngineWarning
from pyro_vae.training.eager import EagerEngine, chunks
from pyro_vae.training.graphed import SEVERAL
from pyro_vae.training.svi import SVIEngine
from pyro_vae.training.worth import FEWEST, work_of
from pyro_vae.words import ENGINES

__all__ = [
    "ENGINES",
    "SEVERAL",
    "SVI",
    "AutoEngine",
    "CapturedEngine",
    "Compiled",
    "CompiledEngine",
    "Eager",
    "EagerEngine",
    "Engine",
    "EngineWarning",
    "SVIEngine",
    "engine",
    "fast_matmul",
    "keep_freed_memory",
    "warn_if_emulated",
]

Eager, Compiled, SVI = EagerEngine, CompiledEngine, SVIEngine  # their names in version 0.1


class Engine(Protocol):
    """Something that takes the gradient steps of a training.

    An engine steps the optimiser and the schedule, leaves frozen parameters (``requires_grad`` is False) as they are,
    and takes the program as it is at each step, such as its KL weight.

    Attributes:
        name: the way in which it takes steps now, recorded in the history of a run.
    """

    @property
    def name(self) -> str:
        """The way in which it takes steps now."""
        ...

    def __call__(self, *raw: Tensor) -> Tensor:
        """Take a step on a batch, a tensor for each field; return its loss in nats, detached, a tensor of shape ()."""
        ...

    def end_epoch(self) -> None:
        """Check, at the end of an epoch, that its steps were right; parameters and random numbers stay."""
        ...


class AutoEngine:
    """Takes compiled steps where all steps of the training earn back the seconds of compiling, and else eager ones.

    It decides at the first batch, by what one step computes (``worth.Work``) and the number of all steps, and so alike
    for each run of a training. The log, at level INFO, says what they came to. Later batches may compute less, as parts
    are frozen: a resumed run is given the decision of its first steps.

    Args:
        eager: the engine of eager steps.
        compiled: makes the engine of compiled steps.
        steps: the number of all steps of the training.
        rows: the number of rows of a resumed run's batches, or of their parts; its first batch may have fewer.

    Attributes:
        compiles: the decision; None before the first batch. It may be set before it.
    """

    def __init__(self, eager: EagerEngine, compiled: Callable[[], CompiledEngine], steps: int, rows: int | None = None):
        self.taken: EagerEngine | CompiledEngine = eager
        self.eager, self.compiled, self.steps, self.rows = eager, compiled, steps, rows
        self.compiles = None if steps >= FEWEST else False

    @property
    def name(self) -> str:
        """The name of the engine that takes the steps."""
        return self.taken.name

    def __call__(self, *raw: Tensor) -> Tensor:
        """Take a step on a batch, a tensor for each field; return its loss, in nats."""
        if self.compiles is None:
            self.compiles = self._is_worth_compiling(raw)
        if self.compiles and self.taken is self.eager:
            self._compile()
        return self.taken(*raw)

    def end_epoch(self) -> None:
        """Check, at the end of an epoch, that its steps were right."""
        self.taken.end_epoch()

    def _is_worth_compiling(self, raw: Sequence[Tensor]) -> bool:
        """Return whether compiling is earned back."""
        calls, part = self.steps * self.eager.accumulate, chunks(raw, self.eager.accumulate)[0]
        index = torch.arange(self.rows or len(part[0])) % len(part[0])
        work = ranks.broadcast(work_of(self.eager.loss, [tensor[index] for tensor in part]))
        worth = work.earns_back(calls)
        logging.getLogger(__name__).info("%s: %s", "compiled" if worth else "eager", work.account(calls))
        return worth

    def _compile(self) -> None:
        """Take compiled steps from now on; where this machine has no compiler, warn and stay with eager ones."""
        missing = missing_compiler()
        if missing:
            warn(f"training eagerly: {missing}", EngineWarning)
            self.compiles = False
        else:
            self.taken = self.compiled()


def engine(
    name: str,
    program: Program,
    estimator: Any,
    optimizer: Optimizer,
    scheduler: LRScheduler | None = None,
    clip: float | None = None,
    steps: int = 0,
    rows: int | None = None,
    accumulate: int = 1,
    fields: Sequence[str] = ("images",),
) -> Engine:
    """Return the engine of that name.

    "auto" takes compiled steps on a CPU where ``steps``, the number of all steps, earn the compiler's time back, and
    captured ones on a GPU from ``worth.FEWEST`` steps on. The engine's ``name`` says which it is. ``rows`` is that of
    ``CompiledEngine``, the other arguments are those of ``EagerEngine``. If nothing can be compiled on this machine,
    "compiled" is "eager": an ``EngineWarning`` says so.

    Raises ValueError for a name not among ``ENGINES``, and for what "svi" cannot do.

    >>> engine("fast", None, None, None)
    Traceback (most recent call last):
        ...
    ValueError: engine: wanted one of auto, eager, compiled, captured, svi, got 'fast'
    """
    if name not in ENGINES:
        raise ValueError(f"engine: wanted one of {', '.join(ENGINES)}, got {name!r}")
    arguments = (program, estimator, optimizer, scheduler, clip)
    if name == "svi" and accumulate > 1:
        raise ValueError(
            f'accumulate: engine="svi" takes a step from one gradient, got {accumulate}; leave it out, or train by '
            'engine="eager" or "compiled" and an estimator that has a differentiable_loss'
        )
    if name == "svi":
        return SVIEngine(*arguments, fields=fields)
    eager = EagerEngine(*arguments, accumulate, fields)
    traced: dict[str, Any] = {"strict": name != "auto", "rows": rows, "accumulate": accumulate, "fields": fields}

    def compiled() -> CompiledEngine:
        return CompiledEngine(*arguments, **traced)

    automatic = next(program.parameters()).device.type if name == "auto" else ""
    if name == "captured" or (automatic == "cuda" and torch.cuda.is_available() and steps >= FEWEST):
        return CapturedEngine(*arguments, **traced)
    if automatic == "cpu":
        return AutoEngine(eager, compiled, steps, rows)
    missing = missing_compiler()
    if name == "compiled" and missing:
        warn(f"training eagerly: {missing}", EngineWarning)
    return compiled() if name == "compiled" and not missing else eager
