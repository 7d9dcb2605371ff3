"""Engines take the gradient steps of a training: eager ones, compiled ones, or those of ``pyro.infer.SVI``.

All train by the same numbers: the same seed gives the same curve, up to rounding. The state of the optimiser is always
that of one torch optimiser and its ``state_dict()``, so that one engine can go on where another one stopped.

If the loss or its gradient is not finite, the eager and the compiled engine leave the step out, except for the
schedule, and return a loss that is not finite.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_vae.compiling.compiler import missing_compiler
from pyro_vae.errors import warn
from pyro_vae.hardware import fast_matmul, keep_freed_memory, warn_if_emulated
from pyro_vae.program import Program
from pyro_vae.training.compiled import CompiledEngine, EngineWarning
from pyro_vae.training.eager import EagerEngine
from pyro_vae.training.svi import SVIEngine

__all__ = [
    "ENGINES",
    "SVI",
    "WORTH_COMPILING",
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

ENGINES = ("auto", "eager", "compiled", "svi")
WORTH_COMPILING = 2000  # steps that make compiling pay off; it takes 10 to 20 seconds for small networks on two cores
Eager, Compiled, SVI = EagerEngine, CompiledEngine, SVIEngine  # their names in version 0.1


class Engine(Protocol):
    """Something that takes the gradient steps of a training.

    An engine steps the optimiser and the schedule, leaves frozen parameters (``requires_grad`` is False) as they are,
    and takes the program as it is at each step, such as its KL weight.

    Attributes:
        name: the way in which it takes steps now, recorded in the history of a run.
    """

    name: str

    def __call__(self, *raw: Tensor) -> Tensor:
        """Take a step on a batch, a tensor for each field; return its loss in nats, detached, a tensor of shape ()."""
        ...

    def end_epoch(self) -> None:
        """Check, at the end of an epoch, that its steps were right; parameters and random numbers stay."""
        ...


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
    """Return the engine of that name; "auto" compiles ``WORTH_COMPILING`` steps or more on a CPU with a compiler.

    Its ``name`` says which engine it is. ``rows`` is that of ``CompiledEngine``, the other arguments are those of
    ``EagerEngine``. If nothing can be compiled on this machine, the engine is "eager": an ``EngineWarning`` says so.

    Raises ValueError for a name not among ``ENGINES``, and for what "svi" cannot do.

    >>> engine("fast", None, None, None)
    Traceback (most recent call last):
        ...
    ValueError: engine: wanted one of auto, eager, compiled, svi, got 'fast'
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
    on_cpu = next(program.parameters()).device.type == "cpu"
    missing = missing_compiler()
    wanted = name == "compiled" or (name == "auto" and steps >= WORTH_COMPILING and on_cpu)
    if wanted and missing:
        warn(f"training eagerly: {missing}", EngineWarning)
    if missing or not wanted:
        return EagerEngine(*arguments, accumulate, fields)
    return CompiledEngine(*arguments, strict=name == "compiled", rows=rows, accumulate=accumulate, fields=fields)
