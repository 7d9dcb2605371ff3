"""Trial runs that leave a program unchanged, and the modules and tensors that it refers to."""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import pyro
import torch
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor, nn

from pyro_vae.random import mode

DEPTH = 6  # the most steps from a program to the modules that it refers to
LONGEST = 1000  # items of a collection that is looked through
PLAIN = (type(None), bool, int, float, complex, str, bytes, range, torch.dtype, torch.device)
INTERNAL = vars(nn.Module()).keys()


@contextmanager
def left_as_it_was(*functions: Callable, keep_new: bool = False) -> Iterator[None]:
    """Context manager in which a program can run and leave no trace.

    It restores the random number generators (torch, NumPy, Python), the entries of Pyro's store, and the buffers, modes
    and attributes of every module that the functions refer to. With ``keep_new`` entries of the store and attributes
    that were made or changed inside are kept, such as the parameters that an automatic guide makes in its first run.

    >>> with left_as_it_was(lambda: None, lambda: None):
    ...     p = pyro.param("trial", torch.zeros(2))
    >>> "trial" in pyro.get_param_store()
    False
    """
    stored = set(pyro.get_param_store().keys())
    submodules = {sub for module in modules(*functions).values() for sub in module.modules()}
    modes = {sub: sub.training for sub in submodules}
    attributes = [] if keep_new else [(sub, type(sub), _attributes(sub)) for sub in submodules]
    buffers = [
        (sub, name, buffer, buffer.clone()) for sub in submodules for name, buffer in sub.named_buffers(recurse=False)
    ]
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    state = get_rng_state()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        set_rng_state(state)
        if not keep_new:
            _keep(stored)
        for sub, kind, before in attributes:
            if type(sub) is kind:  # a lazy module that knows its shapes has another type for good
                _set_attributes(sub, before)
        for sub, training in modes.items():
            sub.training = training
        for sub, name, buffer, value in buffers:
            setattr(sub, name, buffer)
            if not torch.equal(buffer, value):
                with torch.no_grad():
                    buffer.copy_(value)


def modules(*functions: Any) -> dict[str, nn.Module]:
    """Return the modules that functions are, are methods of, or refer to by a variable, by the variable's name.

    The first module that a function is, or is a method of, has the name "". Each module occurs once.

    >>> layer = nn.Linear(2, 1)
    >>> list(modules(layer.forward)), list(modules(lambda x: layer(x)))
    ([''], ['layer'])
    """
    names: dict[str, nn.Module] = {}
    for name, value in reached(*functions):
        if isinstance(value, nn.Module):
            names[unused(name if name or "" not in names else type(value).__name__, names)] = value
    return names


@contextmanager
def evaluating(*functions: Any) -> Iterator[None]:
    """Context manager in which all modules that the functions refer to are in evaluation mode.

    >>> layers = [nn.Dropout()]
    >>> with evaluating(lambda x: layers[0](x)):
    ...     layers[0].training
    False
    """
    with ExitStack() as stack:
        for module in modules(*functions).values():
            stack.enter_context(mode(module, training=False))
        yield


def reached(*functions: Any) -> Iterator[tuple[str, Any]]:
    """Yield the functions and all that they refer to, by name, each object once; the parts of a module are left out.

    What is followed: variables of functions, arguments of partials, items of collections, attributes of objects and of
    modules, up to ``DEPTH`` steps away. Objects of torch and Pyro are not, nor collections of more than ``LONGEST``.

    >>> rate, layers = 0.1, [nn.Identity()]
    >>> [name for name, _ in reached(lambda x: layers[0](rate * x))]
    ['', 'rate', 'layers', 'layers']
    """
    seen: dict[int, Any] = {}  # by address, which another object may have once one is gone
    todo = [("", function, DEPTH) for function in reversed(functions)]
    while todo:
        name, value, depth = todo.pop()
        if id(value) in seen or not depth:
            continue
        yield name, value
        if not isinstance(value, PLAIN):
            seen[id(value)] = value
            parts = list(value.modules()) if isinstance(value, nn.Module) else []
            seen |= {id(part): part for part in parts}
            held = [item for part in parts for item in _own(part)] if parts else _referred(value)
            todo += [(other or name, item, depth - 1) for other, item in held]


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and mappings.

    >>> len(list(tensors(({"x": torch.zeros(2)}, [torch.ones(1), 3]))))
    2
    """
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return nested tuples, lists and mappings with a function applied to each tensor.

    >>> map_tensors(torch.neg, ({"x": torch.ones(1)}, [3, None]))
    ({'x': tensor([-1.])}, [3, None])
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(function, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [map_tensors(function, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _attributes(module: nn.Module) -> tuple[dict[str, Any], dict[str, dict]]:
    """Return the attributes of a module, and the contents of those that are dictionaries, such as its parameters."""
    return dict(vars(module)), {key: dict(value) for key, value in vars(module).items() if isinstance(value, dict)}


def _set_attributes(module: nn.Module, before: tuple[dict[str, Any], dict[str, dict]]) -> None:
    attributes, contents = before
    vars(module).clear()
    vars(module).update(attributes)
    for key, content in contents.items():
        attributes[key].clear()
        attributes[key].update(content)


def _keep(names: set[str]) -> None:
    """Remove all other entries from Pyro's store; ``del`` fails there if one tensor has two names."""
    store = pyro.get_param_store()
    if names == set(store.keys()):
        return
    state: Any = store.get_state()
    store.clear()
    kept: Any = {part: {name: old[name] for name in old if name in names} for part, old in state.items()}
    store.set_state(kept)
    for _ in store.items():  # restores each entry's link to its unconstrained tensor, which get_state removed
        pass


def _referred(value: Any) -> list[tuple[str, Any]]:
    """Return what an object holds, by name: a partial's arguments, a function's variables, items, attributes."""
    if isinstance(value, MethodType):
        return [("", value.__func__), ("", value.__self__)]
    if isinstance(value, partial):
        return [("", item) for item in (*value.args, *value.keywords.values(), value.func)]
    if isinstance(value, FunctionType):
        try:
            variables = inspect.getclosurevars(value)
        except ValueError:  # a variable without a value yet
            return []
        known = {**({} if _is_closed(value) or _is_ours(value) else variables.globals), **variables.nonlocals}
        wrapped = {"": vars(value)["__wrapped__"]} if "__wrapped__" in vars(value) else {}
        return list((known | wrapped).items())
    if isinstance(value, list | tuple | set | frozenset | Mapping):
        items = value.values() if isinstance(value, Mapping) else value
        return [("", item) for item in items] if len(value) <= LONGEST else []
    if isinstance(value, type | ModuleType | Tensor | np.ndarray) or _is_closed(type(value)):
        return []
    return list(getattr(value, "__dict__", {}).items())


def _own(module: nn.Module) -> list[tuple[str, Any]]:
    """Return the attributes that a user's module has beside its parameters, buffers and submodules."""
    if _is_closed(type(module)):
        return []
    return [(name, value) for name, value in vars(module).items() if name not in INTERNAL]


def _is_closed(thing: Any) -> bool:
    return library_of(thing) in ("torch", "pyro")


def _is_ours(function: FunctionType) -> bool:
    """Return whether a function is defined in this package, whose globals hold nothing of a user."""
    module = sys.modules.get(function.__module__)
    return library_of(function) == "pyro_vae" and module is not None and function.__globals__ is vars(module)


def library_of(thing: Any) -> str:
    """Return the name of the package that defines a class or function, or the class of an object."""
    return str(getattr(thing, "__module__", "")).partition(".")[0]


def unused(name: str, names: Mapping) -> str:
    """Return the name, with a number appended if it is taken."""
    number = 1
    while name in names:
        number += 1
        name = f"{name.split(' #')[0]} #{number}"
    return name
