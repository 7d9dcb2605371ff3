"""The arguments of a program, of which some hold an entry for each row of the data, and so come in batches."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten


class Arguments(NamedTuple):
    """Positional and keyword arguments of model and guide: tensors, and anything else.

    ``rows``: of the data; None where that is not known.

    >>> given = Arguments((torch.arange(6), None), {"labels": torch.ones(6, 2), "sizes": (8, 8)}, rows=6)
    >>> [(batch.rows, len(batch.args[0])) for batch in given.batches(4)]
    [(4, 4), (2, 2)]
    """

    args: tuple
    kwargs: Mapping[str, Any]
    rows: int | None

    @classmethod
    def of(cls, args: tuple, kwargs: Mapping[str, Any] | None = None, rows: int | None = None) -> "Arguments":
        """With as many rows as all tensors have, if they have as many, where ``rows`` are not given."""
        found = cls(args, dict(kwargs or {}), rows)
        lengths = {len(tensor) for tensor in found.tensors if tensor.dim()}
        return found._replace(rows=lengths.pop()) if rows is None and len(lengths) == 1 else found

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors, those in lists, tuples and dictionaries too."""
        return tuple(leaf for leaf in tree_leaves(self) if isinstance(leaf, Tensor))

    def with_tensors(self, tensors: tuple[Tensor, ...]) -> "Arguments":
        """The same arguments with others in the place of their ``tensors``."""
        leaves, tree = tree_flatten(self)
        others = iter(tensors)
        return tree_unflatten([next(others) if isinstance(leaf, Tensor) else leaf for leaf in leaves], tree)

    @property
    def device(self) -> torch.device:
        """Of the first tensor; the CPU where there is none."""
        return next((tensor.device for tensor in self.tensors), torch.device("cpu"))

    def batches(self, size: int) -> Iterator["Arguments"]:
        """Batches of at most ``size`` rows.

        Tensors, arrays, lists and tuples with as many entries as there are rows are cut, wherever among the arguments
        they are; all else is the same for every batch.
        """
        if self.rows is None or size >= self.rows:
            yield self
            return
        for start in range(0, self.rows, size):
            cut = partial(self._cut, part=slice(start, start + size))
            rows = min(size, self.rows - start)
            yield Arguments(tuple(map(cut, self.args)), {name: cut(value) for name, value in self.kwargs.items()}, rows)

    @property
    def only_tensors(self) -> bool:
        """Whether all that is cut into batches is tensors."""
        return all(
            isinstance(leaf, Tensor) or not self._of_rows(leaf)
            for argument in (*self.args, *self.kwargs.values())
            for leaf in tree_leaves(argument, is_leaf=self._of_rows)
        )

    def _of_rows(self, value: Any) -> bool:
        return self.rows is not None and _length(value) == self.rows

    def _cut(self, argument: Any, part: slice) -> Any:
        return tree_map(lambda value: value[part] if self._of_rows(value) else value, argument, is_leaf=self._of_rows)


def arguments(x: Any, kwargs: Mapping[str, Any] | None = None) -> Arguments:
    """From x, or a tuple of it and further arguments, and keywords.

    A tensor made in ``torch.inference_mode`` is copied, so that derivatives can be taken. Raises ValueError for an x
    that is no tensor.

    >>> arguments((torch.zeros(3, 2), "any", torch.zeros(3))).rows
    3
    """
    args = x if isinstance(x, tuple) else (x,)
    if args and isinstance(args[0], np.ndarray):
        cast = ".float()" if args[0].dtype == np.float64 else ""
        raise ValueError(f"x: wanted a torch tensor (rows, ...), got a NumPy array; write torch.from_numpy(x){cast}")
    if not isinstance(x, tuple) and not (isinstance(x, Tensor) and x.dim()):
        got = f"a tensor of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x: wanted a tensor (rows, ...), or a tuple of the program's arguments, got {got}")
    found = Arguments.of(args, kwargs)
    if found.rows == 0:
        raise ValueError("x: wanted at least one row, got none")
    copies = (tensor.clone() if tensor.is_inference() else tensor for tensor in found.tensors)
    return found.with_tensors(tuple(copies))


def _length(value: Any) -> int | None:
    if isinstance(value, Tensor | np.ndarray):
        return len(value) if value.ndim else None
    return len(value) if isinstance(value, list | tuple) else None
