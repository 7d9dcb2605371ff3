"""A program run as a trial: a block that leaves it as it was, and the modules and tensors that it refers to."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import pyro
import torch
from torch import Tensor, nn

DEPTH = 6  # steps from a program to the modules that it refers to


@contextmanager
def left_as_it_was(*functions: Callable, keep_new: bool = False) -> Iterator[None]:
    """A block after which nothing tells that the program ran.

    Restored are the random number generators (torch, numpy, Python), the entries of Pyro's store, and, of every module
    that the functions refer to, buffers, modes and attributes. ``keep_new`` keeps entries of the store and attributes
    that were made or changed in the block, such as the parameters that an automatic guide makes when it first runs.

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
    state = pyro.util.get_rng_state()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        pyro.util.set_rng_state(state)
        if not keep_new:
            _keep(stored)
        for sub, kind, before in attributes:
            if type(sub) is kind:  # a lazy module that has found its shapes is another kind for good
                _set_attributes(sub, before)
        for sub, training in modes.items():
            sub.training = training
        for sub, name, buffer, value in buffers:
            setattr(sub, name, buffer)
            if not torch.equal(buffer, value):
                with torch.no_grad():
                    buffer.copy_(value)


def modules(*functions: Callable) -> dict[str, nn.Module]:
    """The modules that functions are, are methods of, or refer to by a variable, each once; its name is the variable's.

    The first module that a function is or is a method of has the name "".

    >>> layer = nn.Linear(2, 1)
    >>> list(modules(layer.forward)), list(modules(lambda x: layer(x)))
    ([''], ['layer'])
    """
    names: dict[str, nn.Module] = {}
    seen: set[int] = set()
    todo = [("", function, DEPTH) for function in reversed(functions)]
    while todo:
        name, value, depth = todo.pop()
        if id(value) in seen or not depth:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            names[unused(name if name or "" not in names else type(value).__name__, names)] = value
        else:
            todo += [(name, item, depth - 1) for name, item in _referred(value)]
    return names


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and mappings.

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
    """Nested tuples, lists and mappings with a function of each tensor in its place.

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
    """The attributes of a module, and what is in those that are dictionaries, as its parameters are."""
    return dict(vars(module)), {key: dict(value) for key, value in vars(module).items() if isinstance(value, dict)}


def _set_attributes(module: nn.Module, before: tuple[dict[str, Any], dict[str, dict]]) -> None:
    attributes, contents = before
    vars(module).clear()
    vars(module).update(attributes)
    for key, content in contents.items():
        attributes[key].clear()
        attributes[key].update(content)


def _keep(names: set[str]) -> None:
    """Takes all other entries out of Pyro's store; ``del`` fails there where one tensor has two names."""
    store = pyro.get_param_store()
    if names == set(store.keys()):
        return
    state = store.get_state()
    store.clear()
    store.set_state({part: {name: kept[name] for name in kept if name in names} for part, kept in state.items()})
    for _ in store.items():  # hands each entry its way back to the unconstrained tensor, which get_state took
        pass


def _referred(value: Any) -> list[tuple[str, Any]]:
    """What a callable holds, by name: a partial's arguments, a function's variables, an object's attributes."""
    if isinstance(value, MethodType):
        return [("", value.__func__), ("", value.__self__)]
    if isinstance(value, partial):
        return [("", item) for item in (*value.args, *value.keywords.values(), value.func)]
    if isinstance(value, FunctionType):
        try:
            variables = inspect.getclosurevars(value)
        except ValueError:  # a variable that is not bound yet
            return []
        library = str(value.__module__).split(".")[0] in ("torch", "pyro")
        known = dict(variables.nonlocals) if library else {**variables.globals, **variables.nonlocals}
        wrapped = {"": value.__wrapped__} if hasattr(value, "__wrapped__") else {}
        return list((known | wrapped).items())
    if isinstance(value, type | ModuleType):
        return []
    return list(getattr(value, "__dict__", {}).items())


def unused(name: str, names: Mapping) -> str:
    """The name, with a number behind it where it is taken already."""
    number = 1
    while name in names:
        number += 1
        name = f"{name.split(' #')[0]} #{number}"
    return name
