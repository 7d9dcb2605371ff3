"""What a part was made of: the arguments of its constructor, from which ``save_vae`` describes it."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn


class Placeholder(NamedTuple):
    """A tensor among the arguments: its shape and dtype; the values are in the parameters and buffers of the part."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    parameter: bool


class Partial(NamedTuple):
    """An argument that is a ``functools.partial``."""

    function: Any
    args: tuple
    keywords: dict[str, Any]


class Unknown(NamedTuple):
    """An argument that cannot be described, in words."""

    what: str


class Constructed(nn.Module):
    """A module that remembers the arguments of its constructor: the base class of the parts of a program.

    >>> class Scaling(Constructed):
    ...     def __init__(self, by: float, offset: Tensor | None = None):
    ...         super().__init__()
    >>> arguments_of(Scaling(2.0, offset=torch.zeros(3)))
    {'by': 2.0, 'offset': Placeholder(shape=(3,), dtype=torch.float32, parameter=False)}
    """

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = _remembered(cls.__init__)


def check_parts(**parts: Any) -> None:
    """Raise ValueError unless each part of a program, given by its name, is a module.

    >>> check_parts(prior=nn.Identity)
    Traceback (most recent call last):
        ...
    ValueError: prior: wanted an nn.Module, got the class Identity; write Identity(...), with its arguments
    """
    for name, part in parts.items():
        if not isinstance(part, nn.Module):
            got, cure = f"a {type(part).__name__}", "write a class of nn.Module whose forward returns the distribution"
            if isinstance(part, type):
                got, cure = f"the class {part.__name__}", f"write {part.__name__}(...), with its arguments"
            raise ValueError(f"{name}: wanted an nn.Module, got {got}; {cure}")


def arguments_of(module: Constructed) -> dict[str, Any]:
    """Return the arguments of the constructor by name, defaults included; ``*args`` are a tuple.

    A module is the one that the attribute of that name is now. A tensor is a ``Placeholder``.
    """
    args, kwargs = vars(module).get("_arguments", ((), {}))
    bound = signature_of(type(module)).bind(*args, **kwargs)
    bound.apply_defaults()
    return {name: _present(module, name, value) for name, value in bound.arguments.items()}


def signature_of(cls: type) -> inspect.Signature:
    """Return the signature of a class's constructor, of no arguments where it has none of its own.

    >>> signature_of(nn.Flatten)
    <Signature (start_dim: int = 1, end_dim: int = -1) -> None>
    """
    if cls.__init__ in (nn.Module.__init__, object.__init__):
        return inspect.Signature()
    found = inspect.signature(cls.__init__)
    return found.replace(parameters=list(found.parameters.values())[1:])


def _remembered(init: Callable[..., None]) -> Callable[..., None]:
    """Return a constructor that notes its arguments, unless that of a subclass has done so."""

    @functools.wraps(init)
    def __init__(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        if "_arguments" not in vars(self):
            object.__setattr__(self, "_arguments", (_kept(args), _kept(kwargs)))
        init(self, *args, **kwargs)

    return __init__


def _kept(value: Any) -> Any:
    """Return an argument as it is remembered: no tensor is kept alive, and nothing that could not be copied."""
    if value is None or isinstance(value, bool | int | float | str | nn.Module):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Tensor):
        return Placeholder(tuple(value.shape), value.dtype, isinstance(value, nn.Parameter))
    if isinstance(value, Mapping):
        return {key: _kept(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_kept(entry) for entry in value)
    if isinstance(value, functools.partial):
        return Partial(_kept(value.func), _kept(value.args), _kept(value.keywords))
    if is_dataclass(value) or isinstance(value, type) or (inspect.isfunction(value) and "<" not in value.__qualname__):
        return value
    name = getattr(value, "__qualname__", type(value).__name__)
    return Unknown(f"the function {name}" if callable(value) else f"a {name}")


def _present(module: nn.Module, name: str, value: Any) -> Any:
    now = getattr(module, name, None)
    return now if isinstance(value, nn.Module) and isinstance(now, nn.Module) else value
