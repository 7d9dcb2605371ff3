"""The arguments of a program, split into tensors, which a graph takes, and all else, which is part of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from pyro_vae.compiling.parts import is_plain
from pyro_vae.compiling.private import within_handlers
from pyro_vae.compiling.untraceable import Untraceable


@dataclass(frozen=True)
class Signature:
    """What a graph depends on: shapes and dtypes of tensors, values of all other arguments, and torch's defaults.

    Attributes:
        key: tells two signatures apart.
        others: arguments that are no numbers, flags or strings, such as modules and functions.
        rebuild: makes positional and keyword arguments from tensors.

    >>> signature, tensors = signature_of((torch.ones(2), None), {"flag": True})
    >>> signature.rebuild([torch.zeros(3)])
    ((tensor([0., 0., 0.]), None), {'flag': True})
    """

    key: tuple
    others: tuple[Any, ...]
    rebuild: Callable[[Any], tuple[tuple, dict[str, Any]]]

    def __str__(self) -> str:
        return ", ".join(part if isinstance(part, str) else _shown(part) for part in self.key[1])


def signature_of(args: tuple, kwargs: Mapping[str, Any]) -> tuple[Signature, list[Tensor]]:
    """Return the signature of these arguments, and the tensors among them.

    Raises ``Untraceable`` for an array of NumPy: its content would become part of a graph.
    """
    found, tree = tree_flatten((args, dict(kwargs)))
    tensors = [leaf for leaf in found if isinstance(leaf, Tensor)]
    others = tuple(leaf for leaf in found if not isinstance(leaf, Tensor) and not is_plain(leaf))
    if any(isinstance(leaf, np.ndarray) for leaf in others):
        raise Untraceable(
            "an argument is a NumPy array, whose content a graph would keep; give torch.from_numpy(array), and use a "
            "tensor in the model and in the guide"
        )
    key = tree, tuple(_kind(leaf) for leaf in found), torch.get_default_dtype(), torch.get_default_device()

    def rebuild(values: Any) -> tuple[tuple, dict[str, Any]]:
        rest = iter(values)
        return tree_unflatten([next(rest) if isinstance(leaf, Tensor) else leaf for leaf in kinds], tree)

    kinds = [torch.empty(0) if isinstance(leaf, Tensor) else leaf for leaf in found]  # keeps no data alive
    return Signature(key, others, rebuild), tensors


def interference() -> str | None:
    """Return what surrounds a call and changes what it computes; None if there is nothing.

    >>> with torch.autocast("cpu"):
    ...     interference()
    'torch.autocast'
    """
    if any(map(torch.is_autocast_enabled, ("cpu", "cuda"))):
        return "torch.autocast"
    return "a handler of Pyro" if within_handlers() else None


def apart(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return other objects with the same memory: one may be given twice, or be a tensor that the program refers to.

    >>> x = torch.ones(2)
    >>> one, other = apart([x, x])
    >>> one is x, one is other
    (False, False)
    """
    return [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in tensors]


def _kind(leaf: Any) -> tuple:
    if isinstance(leaf, Tensor):
        return (Tensor, leaf.shape, leaf.stride(), leaf.dtype, leaf.device, leaf.requires_grad)
    return (type(leaf), leaf if is_plain(leaf) else id(leaf))


def _shown(part: tuple) -> str:
    kind, value, *_ = part
    return f"a tensor {tuple(value)}" if kind is Tensor else repr(value) if isinstance(value, kind) else kind.__name__
