"""Programs whose operations depend on the values of tensors, found while they run."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from pyro import infer
from torch import Tensor
from torch.nn.functional import one_hot
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from pyro_vae.compiling.private import DispatchMode, depends_on_values, unrecorded
from pyro_vae.labels import one_hot as labels_one_hot

NUMBERS = {Tensor.item, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.tolist}
MEMORY = {Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.data_ptr, Tensor.untyped_storage, Tensor.storage}
DATA = Tensor.data.__get__  # pyright: ignore[reportAttributeAccessIssue]
ELBOS = str(Path(str(infer.__file__)).parent), str(Path(__file__).parents[1] / "estimation")
FOREIGN = (str(Path(torch.__file__).parent), __file__)


class DataDependent(RuntimeError):
    """Raised where a program reads the values of a tensor."""


class ValuesUnread(DispatchMode):
    """Context manager in which no operation may depend on the values of tensors that change from call to call.

    Those are the arguments, tensors that require a gradient, random draws, and what is computed from them. Numbers from
    other tensors, such as a permutation in a buffer, may be read; ``read`` lists the tensors that they come from.
    Pyro's ELBOs may turn their loss into a number: it stays a tensor.

    Args:
        args: the arguments.

    >>> with ValuesUnread([]):
    ...     torch.rand(3)[torch.rand(3) > 0.5]
    Traceback (most recent call last):
        ...
    pyro_vae.compiling.values.DataDependent: the size of a tensor depends on values of another one
    """

    def __init__(self, args: Sequence[Tensor]) -> None:
        super().__init__()
        self.args = {id(arg) for arg in args}
        self.moving: WeakValueDictionary[int, Tensor] = WeakValueDictionary()
        self.fixed: WeakValueDictionary[int, Tensor] = WeakValueDictionary()
        self.sources: dict[int, list[Tensor]] = {}  # of fixed tensors: those that they come from
        self.read: list[Tensor] = []
        self.functions = _Functions(self)

    def __enter__(self) -> Any:
        self.functions.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.functions.__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        reads, sizes = depends_on_values(function, args)
        fixed = self.are_fixed(given)
        if sizes and not fixed:
            raise DataDependent("the size of a tensor depends on values of another one")
        if reads and not fixed:
            raise DataDependent("a number is read from a tensor")
        if reads or sizes:
            self.note(given)
        sources = self._sources(given) if fixed else []
        out = function(*args, **(kwargs or {}))
        fixed = fixed and torch.Tag.nondeterministic_seeded not in function.tags
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                (self.fixed if fixed else self.moving)[id(leaf)] = leaf
                (self.moving if fixed else self.fixed).pop(id(leaf), None)
                self.sources[id(leaf)] = sources
        return out

    def are_fixed(self, given: Sequence[Tensor]) -> bool:
        """Return whether the values of all these tensors are the same in each call, unless the program changes them."""
        return all(self._is_fixed(tensor) for tensor in given)

    def note(self, given: Sequence[Tensor]) -> None:
        """Note that values of these tensors were read."""
        known = {id(tensor) for tensor in self.read}
        self.read += [tensor for tensor in self._sources(given) if id(tensor) not in known]

    def _is_fixed(self, tensor: Tensor) -> bool:
        if self.fixed.get(id(tensor)) is tensor:
            return True
        moves = id(tensor) in self.args or tensor.requires_grad or self.moving.get(id(tensor)) is tensor
        return not moves

    def _sources(self, given: Sequence[Tensor]) -> list[Tensor]:
        found = [self.sources[id(t)] if self.fixed.get(id(t)) is t else [t] for t in given]
        return list({id(tensor): tensor for group in found for tensor in group}.values())


class _Functions(TorchFunctionMode):
    """Lets numbers be read from fixed tensors, and refuses methods that read memory without an operator."""

    def __init__(self, values: ValuesUnread):
        super().__init__()
        self.values = values

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in NUMBERS | MEMORY:
            if self.values.are_fixed(args[:1]):
                self.values.note(args[:1])
                return unrecorded(function, *args, **(kwargs or {}))
            if function is Tensor.item and _caller().startswith(ELBOS):
                return args[0].detach()
            if function in MEMORY:
                raise DataDependent("a number is read from a tensor")
        if function is DATA:
            return args[0].detach()
        if function is Tensor.__getitem__:
            return self._item(function, *args)
        if function is one_hot and not self.values.are_fixed(args[:1]):
            return _one_hot(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))

    def _item(self, function: Callable[..., Tensor], tensor: Tensor, index: Any) -> Tensor:
        """Return ``tensor[i]`` or ``tensor[..., i]``; for a moving i without reading its value."""
        i: Any = index[1] if isinstance(index, tuple) and len(index) == 2 and index[0] is Ellipsis else index
        whole = isinstance(i, Tensor) and i.dim() == 0 and not i.dtype.is_floating_point and i.dtype != torch.bool
        if not whole:
            return function(tensor, index)
        if self.values.are_fixed([i]):
            self.values.note([i])
            number = unrecorded(int, i)
            return function(tensor, number if i is index else (Ellipsis, number))
        if i is index:
            return function(tensor, i.view(1)).squeeze(0)
        return function(tensor, (Ellipsis, i.view(1))).squeeze(-1)


def _one_hot(labels: Tensor, num_classes: int = -1) -> Tensor:
    """Return labels one-hot, as floats: torch reads them to check them, and a graph gives NaN for a wrong one."""
    return one_hot(labels) if num_classes < 1 else labels_one_hot(labels, num_classes)


def _caller() -> str:
    """Return the file of the function that called torch."""
    frame: Any = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(FOREIGN):
        frame = frame.f_back
    return frame.f_code.co_filename
