"""The arguments of a program, split into tensors, which a graph takes, and all else, which is part of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from pyro_vae.compiling.places import is_plain
from pyro_vae.compiling.untraceable import Untraceable


@dataclass(frozen=True)
class Signature:
    """What a graph depends on: shapes and dtypes of the tensors, and the values of all other arguments.

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
    key = tree, tuple(_kind(leaf) for leaf in found)

    def rebuild(values: Any) -> tuple[tuple, dict[str, Any]]:
        rest = iter(values)
        return tree_unflatten([next(rest) if isinstance(leaf, Tensor) else leaf for leaf in kinds], tree)

    kinds = [torch.empty(0) if isinstance(leaf, Tensor) else leaf for leaf in found]  # keeps no data alive
    return Signature(key, others, rebuild), tensors


def _kind(leaf: Any) -> tuple:
    if isinstance(leaf, Tensor):
        return (Tensor, leaf.shape, leaf.stride(), leaf.dtype, leaf.device, leaf.requires_grad)
    return (type(leaf), leaf if is_plain(leaf) else id(leaf))


def _shown(part: tuple) -> str:
    kind, value, *_ = part
    return f"a tensor {tuple(value)}" if kind is Tensor else repr(value) if is_plain(value) else kind.__name__
