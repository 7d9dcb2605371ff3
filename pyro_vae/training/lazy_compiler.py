"""torch's optimisers without the import of torch's compiler, which takes them seconds and of which they use nothing.

torch keeps its compiler away from their methods, by wrappers that import it at their first call.
"""

import inspect
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.optim import Optimizer

from pyro_vae.compiling.private import COMPILER, DISABLED, LEFT_ALONE, STEPPED, has_step_hooks

METHODS = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")


@cache
def spare_compiler() -> None:
    """Have the methods of torch's optimisers not import torch's compiler, until something else has imported it."""
    for name in METHODS:
        wrapper = getattr(Optimizer, name)
        method = getattr(wrapper, "__wrapped__", None)
        if method is not None and not hasattr(method, DISABLED):
            setattr(method, DISABLED, _spared(method, wrapper))


def take_step(optimizer: Optimizer) -> None:
    """Call ``optimizer.step()``, without an import of torch's compiler where it is one of torch's optimisers.

    >>> weight = torch.ones(2, requires_grad=True)
    >>> weight.grad = torch.ones(2)
    >>> take_step(torch.optim.SGD([weight], lr=0.5))
    >>> weight
    tensor([0.5000, 0.5000], requires_grad=True)
    """
    if COMPILER in sys.modules or not _is_plain(optimizer):
        optimizer.step()
        return
    if "step" in vars(optimizer):
        setattr(optimizer, STEPPED, True)  # the schedule asks for it
    step: Any = inspect.unwrap(type(optimizer).step)
    with torch.no_grad():
        step(optimizer)


def _is_plain(optimizer: Optimizer) -> bool:
    """Return whether nothing but torch's own step, and maybe a schedule's note of it, belongs to a step."""
    return (
        type(optimizer).__module__.startswith("torch.optim.")
        and not optimizer.defaults.get("differentiable")
        and not has_step_hooks(optimizer)
    )


def _spared(method: Callable[..., Any], wrapper: Callable[..., Any]) -> Callable[..., Any]:
    """Return the method; once torch's compiler is there, it is the wrapper that torch made again."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if COMPILER not in sys.modules:
            return method(*args, **kwargs)
        vars(method).pop(DISABLED, None)
        return wrapper(*args, **kwargs)

    setattr(call, LEFT_ALONE, True)
    return call
