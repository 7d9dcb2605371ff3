"""How much memory a description may take: as much as the parameters beside it."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from pyro_vae.compiling.private import DispatchMode

TIMES, MORE = 8, 1 << 28  # constructors make more tensors than they keep, and Vamp's runs the guide
LEAST = 1 << 14  # bytes that an operation counts, as it also makes objects of Python and takes time


class LimitedMemory(DispatchMode):
    """Context manager in which new tensors may take eight times a number of bytes and 256 MiB, all of them together.

    The size of each is known before it is made: each operation is tried on torch's meta device first. Raises ValueError
    where it is too large.

    >>> with LimitedMemory(1000):
    ...     layer = torch.nn.Linear(10**6, 10**6)
    Traceback (most recent call last):
        ...
    ValueError: the description asks for more memory than the parameters that it describes
    """

    def __init__(self, size: int):
        super().__init__()
        self.left = TIMES * size + MORE

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation of torch if its result is small enough."""
        self.left -= max(LEAST, _new_bytes(func, args, kwargs or {}))
        if self.left < 0:
            raise ValueError("the description asks for more memory than the parameters that it describes")
        return func(*args, **(kwargs or {}))


def _new_bytes(func: Any, args: Any, kwargs: dict[str, Any]) -> int:
    """Return the bytes of the tensors that an operation makes, and does not only change or look at."""
    if any(argument.alias_info for argument in func._schema.arguments):
        return 0
    on_meta = {**kwargs, "device": "meta"} if any(a.name == "device" for a in func._schema.arguments) else kwargs
    try:
        args, on_meta = tree_map_only(Tensor, lambda value: torch.empty_like(value, device="meta"), (args, on_meta))
        made = func(*args, **on_meta)
    except (NotImplementedError, RuntimeError):  # of a single value, or as many as there are
        return 0
    outputs = made if isinstance(made, list | tuple) else [made]
    return sum(value.numel() * value.element_size() for value in outputs if isinstance(value, Tensor))
