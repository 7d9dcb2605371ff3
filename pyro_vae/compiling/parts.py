"""What an object refers to: attributes, items, variables of functions, globals, each a place of a value."""

import argparse
import configparser
import gc
import os
import random
import sys
import threading
from array import array
from collections import ChainMap, UserDict, UserList, deque
from collections.abc import Iterator, Set
from contextlib import suppress
from contextvars import ContextVar
from datetime import date, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from functools import cache, cached_property, partial
from pathlib import PurePath
from types import BuiltinMethodType, CodeType, FunctionType, MappingProxyType, MethodType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple
from weakref import ReferenceType

import numpy as np
import torch
from pyro.infer import SVI
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pyro_vae.compiling.outside import ContextValue, EnvironmentVariable, Outside
from pyro_vae.compiling.private import hooks, registries
from pyro_vae.compiling.read_names import Names, imported_modules, names_in, names_of
from pyro_vae.tracing.probing import library_of

LONGEST = 1000  # items up to which a list or dictionary is watched item by item
WIDEST = 10 * LONGEST  # items up to which a longer one is watched as a whole if they are plain; beyond, its length
LARGEST_ARRAY = 1 << 16  # bytes up to which an array is watched
PLAIN = (type(None), bool, int, float, complex, str, bytes, Enum, PurePath, np.generic, torch.dtype, torch.device)
PLAIN += (Fraction, Decimal, date, timedelta, range)
CLOSED = {"torch", "numpy", *sys.stdlib_module_names}  # the attributes of most of their objects are not watched
LIBRARIES = CLOSED | {"pyro", "pyro_vae", "pandas"}  # their code reads no global of a user
OF_A_USER = (
    SimpleNamespace,
    argparse.Namespace,
    UserDict,
    UserList,
    ChainMap,
    threading.local,
    configparser.RawConfigParser,
    configparser.SectionProxy,
    torch.optim.lr_scheduler.LRScheduler,
    nn.Module,
    torch.distributions.Distribution,
    torch.distributions.Transform,
)  # objects of libraries that hold what a user gave them
ONLY = {SVI: ("model", "guide", "loss", "optim"), torch.optim.Optimizer: ("param_groups",)}  # of their attributes
CACHED = type(cache(len))  # functions with functools.cache or lru_cache
GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)
INTERNAL = set(vars(nn.Module())) - {"training"} | {"_arguments"}
SETTING_UP = {"__init__", "__setstate__", "__repr__", "extra_repr", "reset_parameters"}  # methods that do not compute


class Place(NamedTuple):
    """A value with its name, and where it lies: in ``holder`` under ``key``, if it can be set there.

    ``key`` is an index, the name of an attribute, or a function that reads the whole holder, such as ``len``.
    """

    name: str
    value: Any
    holder: Any = None
    key: Any = None


def items_of(holder: dict | list | deque) -> tuple:
    """Return all items of a list, or values of a dictionary."""
    return tuple(holder.values() if isinstance(holder, dict) else holder)


def is_plain(value: Any) -> bool:
    """Return whether a value is a number, a flag, a string or the like, or a tuple of such: one that never changes.

    >>> is_plain((1, "a", None)), is_plain([1])
    (True, False)
    """
    return isinstance(value, PLAIN) or (isinstance(value, tuple | frozenset) and all(map(is_plain, value)))


def is_watched_inside(value: Any) -> bool:
    """Return whether all contents of an object are watched themselves.

    >>> is_watched_inside([1, 2]), is_watched_inside([0] * (LONGEST + 1)), is_watched_inside(nn.Identity())
    (True, False, False)
    """
    if isinstance(value, nn.Module | Tensor | FunctionType | type):
        return False
    if isinstance(value, dict | list | deque):
        return len(value) <= LONGEST
    return isinstance(value, tuple | set) or is_open(value)


def has_memory(value: Any) -> bool:
    """Return whether a value is a tensor with an address in memory."""
    return isinstance(value, Tensor) and value.layout is torch.strided and not is_lazy(value)


def is_opaque(value: Any) -> bool:
    """Return whether a value of an object may change without a word: nothing within it is watched.

    >>> is_opaque([0] * (WIDEST + 1)), is_opaque([1]), is_opaque(iter([1]))
    (True, False, True)
    """
    if isinstance(value, dict | list | deque):
        return not any(place.key is not len for place in parts_of("", value)) and len(value) > 0
    if is_plain(value) or isinstance(value, (Tensor, type, CodeType, *GENERATORS)) or callable(value):
        return False
    return library_of(type(value)) not in ("torch", "pyro") and next(parts_of("", value), None) is None


def parts_of(name: str, value: Any) -> Iterator[Place]:
    """Yield the places of what an object refers to."""
    if is_plain(value) or isinstance(value, Tensor):
        return
    if isinstance(value, MethodType):
        yield Place("self", value.__self__)
        yield Place(name, value.__func__)
    elif isinstance(value, BuiltinMethodType):
        if not isinstance(value.__self__, ModuleType | None):  # as config.get
            yield Place(f"{name}.__self__", value.__self__)
    elif isinstance(value, FunctionType):
        yield from _of_function(value)
    elif isinstance(value, partial):
        yield from (Place(name, item) for item in (value.func, *value.args))
        yield from _items(name, value.keywords)
    elif isinstance(value, type):
        yield from _of_class(value)
    elif isinstance(value, Outside | ContextVar):
        outside = ContextValue(value) if isinstance(value, ContextVar) else value
        yield Place(f"{name}.value", outside.value, outside, "value")
    elif isinstance(value, ReferenceType):
        yield Place(name, value())
    elif isinstance(value, MappingProxyType):
        yield from parts_of(name, gc.get_referents(value)[0])
    elif isinstance(value, dict):
        yield from _items(name, value)
    elif isinstance(value, tuple):
        yield from (Place(f"{name}[{i}]", item) for i, item in enumerate(value))
    elif isinstance(value, list | deque):
        yield from _elements(name, value)
    elif isinstance(value, set):
        yield Place(f"{name}.copy()", frozenset(value), value, frozenset)
    elif isinstance(value, np.ndarray | array | bytearray):
        yield from _bytes(name, value)
    elif isinstance(value, tuple(ONLY)):
        names = next(names for kind, names in ONLY.items() if isinstance(value, kind))
        yield from (Place(f"{name}.{key}", getattr(value, key), value, key) for key in names)
    elif isinstance(value, CACHED):
        yield Place(name, value.__wrapped__)
    elif is_open(value):
        yield from _attributes(name, value)


def is_open(value: Any) -> bool:
    """Return whether the attributes of an object are watched; most objects of torch and of Python itself are not."""
    return isinstance(value, OF_A_USER) or (library_of(type(value)) not in CLOSED and not isinstance(value, ModuleType))


def _attributes(name: str, value: Any) -> Iterator[Place]:
    held, known = getattr(value, "__dict__", {}), isinstance(value, nn.Module) and library_of(type(value)) in LIBRARIES
    used = _used(type(value)) if known else held.keys() - INTERNAL
    yield from (Place(f"{name}.{key}", item, held, key) for key, item in held.items() if key in used)
    if not known:  # a new attribute may hide one of the class
        yield Place(f"len(vars({name}))", len(held), held, len)
    if isinstance(value, nn.Module):
        parts = registries(value)
        for part in parts:
            yield from (Place(f"{name}.{key}", item, part, key) for key, item in part.items())
        if parts[-1]:
            yield Place(f"len({name})", len(parts[-1]), parts[-1], len)
        for key, calls in hooks(value).items():
            yield from _items(f"{name}.{key}", calls)
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for key in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, key) and key not in ("__dict__", "__weakref__"):
                yield Place(f"{name}.{key}", getattr(value, key), value, key)
    yield Place(type(value).__name__, type(value))


@cache
def _used(kind: type[nn.Module]) -> set[str]:
    """Return the names of attributes that the methods of a module use, except those that build or print it."""
    used: set[str] = set()
    for base in kind.__mro__:
        for name, method in vars(base).items() if base not in nn.Module.__mro__ else ():
            if isinstance(method, FunctionType) and name not in SETTING_UP:
                used |= names_of(method.__code__).occurring
    return used - INTERNAL


def _bytes(name: str, value: np.ndarray | array | bytearray) -> Iterator[Place]:
    """Yield the content of an array as one place, unless it is large or holds objects."""
    if isinstance(value, np.ndarray) and value.dtype == object:
        return
    read: Any = bytes if isinstance(value, bytearray) else type(value).tobytes
    size = value.nbytes if isinstance(value, np.ndarray) else memoryview(value).nbytes
    if size <= LARGEST_ARRAY:
        yield Place(f"{name}[...]", read(value), value, read)


def _items(name: str, value: dict) -> Iterator[Place]:
    if len(value) <= LONGEST:
        yield from (
            Place(f"{name}[{key!r}]" if is_plain(key) else f"{name}[...]", item, value, key)
            for key, item in value.items()
        )
    yield from _of_many(name, value)


def _elements(name: str, value: list | deque) -> Iterator[Place]:
    if len(value) <= LONGEST:
        yield from (Place(f"{name}[{i}]", item, value, i) for i, item in enumerate(value))
    yield from _of_many(name, value)


def _of_many(name: str, value: dict | list | deque) -> Iterator[Place]:
    """Yield the length of a collection, and all its items as one place if they are many, and plain."""
    if LONGEST < len(value) <= WIDEST and is_plain(items_of(value)):
        yield Place(f"{name}[...]", items_of(value), value, items_of)
    yield Place(f"len({name})", len(value), value, len)


def _of_function(function: FunctionType) -> Iterator[Place]:
    """Yield the variables of enclosing functions, the defaults and, of a user's function, the globals that it reads."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
        with suppress(ValueError):  # not bound yet
            yield Place(name, cell.cell_contents, cell, "cell_contents")
    if library_of(function) not in LIBRARIES:
        yield from _items(function.__name__, vars(function))
        for key in ("__defaults__", "__kwdefaults__", "__code__"):
            yield Place(f"{function.__name__}.{key}", getattr(function, key), function, key)
        names = names_in(function)
        yield from _globals(function.__module__, function.__globals__, names.read, names.occurring)
        for module in imported_modules(function):
            if module.__name__.partition(".")[0] not in LIBRARIES:
                yield from _globals(module.__name__, vars(module), names.occurring, names.occurring)
        yield from _environment(names)


def _environment(names: Names) -> Iterator[Place]:
    """Yield the environment variables that a function names beside ``os.environ``."""
    found = filter(str.isidentifier, names.strings) if names.occurring & {"environ", "getenv"} else ()
    for name in sorted(found):
        variable = EnvironmentVariable(name)
        yield Place(f"os.environ[{name!r}]", variable.value, variable, "value")


def _globals(name: str, known: dict[str, Any], read: Set[str], occurring: Set[str]) -> Iterator[Place]:
    """Yield the variables of a module that are read; of modules among them, those whose names occur."""
    for key in read & known.keys():
        value = known[key]
        if not isinstance(value, ModuleType) and value is not os.environ:
            yield Place(f"{name}.{key}", value, known, key)
        elif isinstance(value, ModuleType) and value.__name__.partition(".")[0] not in LIBRARIES:
            yield from _globals(value.__name__, vars(value), occurring - {key}, occurring - {key})


def _of_class(kind: type) -> Iterator[Place]:
    """Yield the attributes of a user's class and of its bases, and their methods."""
    for base in kind.__mro__:
        if library_of(base) not in LIBRARIES:
            for key, value in vars(base).items():
                if isinstance(value, FunctionType):
                    yield Place(f"{base.__name__}.{key}", value, base, key)
                elif isinstance(value, staticmethod | classmethod):
                    yield Place(f"{base.__name__}.{key}", value.__func__)
                elif isinstance(value, property | cached_property):
                    yield Place(f"{base.__name__}.{key}", getattr(value, "fget", None) or getattr(value, "func", None))
                elif not key.startswith("__") and not hasattr(value, "__get__"):
                    yield Place(f"{base.__name__}.{key}", value, base, key)
                elif library_of(type(value)) not in LIBRARIES:  # a descriptor of a user
                    yield Place(f"{base.__name__}.{key}", value)
