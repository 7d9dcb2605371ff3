"""The arguments of a program: how they are made from a batch of a data set, and cut into batches of rows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten


class ProgramArguments(NamedTuple):
    """Positional and keyword arguments of model and guide: tensors, and anything else.

    ``rows`` is the number of rows of the data; None if it is not known.

    >>> given = ProgramArguments((torch.arange(6), None), {"labels": torch.ones(6, 2), "sizes": (8, 8)}, rows=6)
    >>> [(batch.rows, len(batch.args[0])) for batch in given.batches(4)]
    [(4, 4), (2, 2)]
    """

    args: tuple
    kwargs: Mapping[str, Any]
    rows: int | None

    @classmethod
    def of(cls, args: tuple, kwargs: Mapping[str, Any] | None = None, rows: int | None = None) -> "ProgramArguments":
        """Return the arguments; unless ``rows`` is given, it is the length of the tensors, if all have the same."""
        found = cls(args, dict(kwargs or {}), rows)
        lengths = {len(tensor) for tensor in found.tensors if tensor.dim()}
        return found._replace(rows=lengths.pop()) if rows is None and len(lengths) == 1 else found

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors, including those in lists, tuples and dictionaries."""
        return tuple(leaf for leaf in tree_leaves(self) if isinstance(leaf, Tensor))

    def with_tensors(self, tensors: tuple[Tensor, ...]) -> "ProgramArguments":
        """Return the same arguments with other tensors in place of ``self.tensors``."""
        leaves, tree = tree_flatten(self)
        others = iter(tensors)
        return tree_unflatten([next(others) if isinstance(leaf, Tensor) else leaf for leaf in leaves], tree)

    @property
    def device(self) -> torch.device:
        """The device of the first tensor; the CPU if there is none."""
        return next((tensor.device for tensor in self.tensors), torch.device("cpu"))

    def batches(self, size: int) -> Iterator["ProgramArguments"]:
        """Yield batches of at most ``size`` rows.

        Tensors, arrays, lists and tuples with one entry for each row are cut, also inside other arguments; everything
        else is the same for every batch.
        """
        if self.rows is None or size >= self.rows:
            yield self
            return
        for start in range(0, self.rows, size):
            yield self.part(start, min(start + size, self.rows))

    def part(self, start: int, stop: int) -> "ProgramArguments":
        """Return the arguments of the rows from ``start`` to ``stop``."""
        return self._cut_all(partial(_sliced, part=slice(start, stop)), stop - start)

    def at(self, index: Sequence[int]) -> "ProgramArguments":
        """Return the arguments of the rows with these numbers, in this order; a row may be there several times.

        >>> ProgramArguments.of((torch.arange(4),)).at([3, 0, 0]).args
        (tensor([3, 0, 0]),)
        """
        return self._cut_all(partial(_chosen, index=list(index)), len(index))

    @property
    def only_tensors(self) -> bool:
        """Whether everything that is cut into batches is a tensor."""
        return all(
            isinstance(leaf, Tensor) or not self._of_rows(leaf)
            for argument in (*self.args, *self.kwargs.values())
            for leaf in tree_leaves(argument, is_leaf=self._of_rows)
        )

    def _of_rows(self, value: Any) -> bool:
        return self.rows is not None and _length(value) == self.rows

    def _cut_all(self, cut: Callable[[Any], Any], rows: int) -> "ProgramArguments":
        """Return the arguments with everything cut that has one entry for each row."""

        def of(argument: Any) -> Any:
            return tree_map(
                lambda value: cut(value) if self._of_rows(value) else value, argument, is_leaf=self._of_rows
            )

        return ProgramArguments(tuple(map(of, self.args)), {name: of(x) for name, x in self.kwargs.items()}, rows)


def as_arguments(x: Any) -> tuple[Any, ...]:
    """Return x alone, or a tuple of all arguments of a program, as a tuple.

    >>> as_arguments(3), as_arguments((3, 4))
    ((3,), (3, 4))
    """
    return x if isinstance(x, tuple) else (x,)


def checked_arguments(x: Any, kwargs: Mapping[str, Any] | None = None) -> ProgramArguments:
    """Return the arguments of a program from x, or from a tuple of all positional arguments, and keywords.

    A tensor made in ``torch.inference_mode`` is copied, so that gradients can be taken. Raises ValueError unless x is a
    tensor with at least one row, or a tuple.

    >>> checked_arguments((torch.zeros(3, 2), "any", torch.zeros(3))).rows
    3
    """
    args = as_arguments(x)
    if args and isinstance(args[0], np.ndarray):
        cast = ".float()" if args[0].dtype == np.float64 else ""
        grey = "pyro_vae.Split(x) for the grey levels of a program, or " if args[0].dtype == np.uint8 else ""
        cure = f"{grey}torch.from_numpy(x){cast}"
        raise ValueError(f"x: wanted a torch tensor (rows, ...), got a NumPy array; write {cure}")
    if not isinstance(x, tuple) and not (isinstance(x, Tensor) and x.dim()):
        got = f"a tensor of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            f"x: wanted a tensor (rows, ...), or a tuple of the program's arguments, got {got}; of a split, write "
            "fixed_x(program, split), or give program and split"
        )
    found = ProgramArguments.of(args, kwargs)
    if found.rows == 0:
        raise ValueError("x: wanted at least one row, got none")
    copies = (tensor.clone() if tensor.is_inference() else tensor for tensor in found.tensors)
    return found.with_tensors(tuple(copies))


def _sliced(value: Any, part: slice) -> Any:
    return value[part]


def _chosen(value: Any, index: list[int]) -> Any:
    return value[index] if isinstance(value, Tensor | np.ndarray) else type(value)(value[i] for i in index)


def _length(value: Any) -> int | None:
    if isinstance(value, Tensor | np.ndarray):
        return len(value) if value.ndim else None
    return len(value) if isinstance(value, list | tuple) else None
