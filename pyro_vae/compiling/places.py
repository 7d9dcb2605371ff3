"""Places of Python values that a program reads: attributes, items, variables of functions, globals.

``survey`` finds them, ``readers`` read many of them at once, and ``put_back`` restores them.
"""

import argparse
import dis
import random
import sys
from collections import UserDict, UserList, deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from enum import Enum
from functools import cache, cached_property, partial
from operator import attrgetter, itemgetter
from pathlib import PurePath
from types import CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pyro_vae.compiling.private import is_fake, registries

MOST = 10_000  # places that are watched, the nearest first
LONGEST = 1000  # items up to which a list or dictionary is watched item by item; of a longer one, its length
PLAIN = (type(None), bool, int, float, complex, str, bytes, Enum, PurePath, np.generic, torch.dtype, torch.device)
LIBRARIES = {"torch", "pyro", "numpy", "pyro_vae", *sys.stdlib_module_names}  # their code reads no global of a user
OF_A_USER = (
    SimpleNamespace,
    argparse.Namespace,
    UserDict,
    UserList,
    nn.Module,
    torch.distributions.Distribution,
    torch.distributions.Transform,
)  # objects of libraries that hold what a user gave them
CLOSED = LIBRARIES - {"pyro", "pyro_vae"}  # the attributes of their other objects are not watched
GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)
INTERNAL = set(vars(nn.Module())) - {"training"} | {"_arguments"}
SETTING_UP = {"__init__", "__setstate__", "__repr__", "extra_repr", "reset_parameters"}  # methods that do not compute
ABSENT = "absent"
WHOLE = (len, frozenset, np.ndarray.tobytes)  # keys that read a whole holder


class Place(NamedTuple):
    """A value with its name, and where it lies: in ``holder`` under ``key``, if it can be set there.

    ``key`` is an index, the name of an attribute, or a function that reads the whole holder, such as ``len``.
    """

    name: str
    value: Any
    holder: Any = None
    key: Any = None


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
    return isinstance(value, tuple | set) or _is_open(value)


def has_memory(value: Any) -> bool:
    """Return whether a value is a tensor with an address in memory."""
    return isinstance(value, Tensor) and value.layout is torch.strided and not is_fake(value) and not is_lazy(value)


def survey(roots: Mapping[str, Any]) -> list[Place]:
    """Return every place that can be reached from the roots, the nearest first; no two have one name.

    >>> [place.name for place in survey({"layer": SimpleNamespace(rate=0.1)})]
    ['layer', 'layer.rate', 'len(vars(layer))', 'SimpleNamespace']
    """
    places, names, seen, known = [], {}, {}, set()
    todo = deque(Place(name, value) for name, value in roots.items())
    while todo and len(places) < MOST:
        place = todo.popleft()
        if place.holder is not None and (id(place.holder), place.key) in known:
            continue
        known.add((id(place.holder), place.key))
        names[place.name] = number = names.get(place.name, 0) + 1
        places.append(place if number == 1 else place._replace(name=f"{place.name} #{number}"))
        if id(place.value) not in seen:
            seen[id(place.value)] = place.value
            todo += _parts(places[-1].name, place.value)
    return places


def readers(places: Sequence[Place]) -> list[tuple[Callable[[Any], Any], Any]]:
    """Return pairs of a function and a holder, which together give the values of these places without a Python loop."""
    return [(_reader(group[0].holder, [place.key for place in group]), group[0].holder) for group in _by_holder(places)]


def put_back(places: Sequence[Place]) -> None:
    """Restore the value that every place had when it was found, and remove items that are new in its holder."""
    for group in _by_holder(places):
        _put_back(group[0].holder, group)


def generator_access(generator: Any) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    """Return how to read and how to set the state of a random number generator.

    >>> get, put = generator_access(random.Random(0))
    >>> put(get())
    """
    if isinstance(generator, random.Random):
        return generator.getstate, generator.setstate
    if isinstance(generator, np.random.Generator):
        bits = generator.bit_generator
        return partial(getattr, bits, "state"), partial(setattr, bits, "state")
    if isinstance(generator, torch.Generator):
        return (
            lambda: bytearray(generator.get_state().numpy()),
            lambda state: generator.set_state(torch.frombuffer(state, dtype=torch.uint8)),
        )
    return generator.get_state, generator.set_state


def _parts(name: str, value: Any) -> Iterator[Place]:
    """Yield the places of what an object refers to."""
    if is_plain(value) or isinstance(value, Tensor):
        return
    if isinstance(value, MethodType):
        yield Place("self", value.__self__)
        yield Place(name, value.__func__)
    elif isinstance(value, FunctionType):
        yield from _of_function(value)
    elif isinstance(value, partial):
        for item in (value.func, *value.args):
            yield Place(name, item)
        yield from _items(name, value.keywords)
    elif isinstance(value, type):
        yield from _of_class(value)
    elif isinstance(value, dict):
        yield from _items(name, value)
    elif isinstance(value, tuple):
        yield from (Place(f"{name}[{i}]", item) for i, item in enumerate(value))
    elif isinstance(value, list | deque):
        yield from _elements(name, value)
    elif isinstance(value, set):
        yield Place(f"{name}.copy()", frozenset(value), value, frozenset)
    elif isinstance(value, np.ndarray):
        if value.nbytes <= 8 * LONGEST and value.dtype != object:
            yield Place(f"{name}[...]", value.tobytes(), value, np.ndarray.tobytes)
    elif _is_open(value):
        yield from _attributes(name, value)


def _is_open(value: Any) -> bool:
    """Return whether the attributes of an object are watched; most objects of torch and of Python itself are not."""
    return isinstance(value, OF_A_USER) or (_library(type(value)) not in CLOSED and not isinstance(value, ModuleType))


def _attributes(name: str, value: Any) -> Iterator[Place]:
    held, known = getattr(value, "__dict__", {}), isinstance(value, nn.Module) and _library(type(value)) in LIBRARIES
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
                used |= _names(method.__code__)[1]
    return used - INTERNAL


def _items(name: str, value: dict) -> Iterator[Place]:
    if len(value) <= LONGEST:
        yield from (
            Place(f"{name}[{key!r}]" if is_plain(key) else f"{name}[...]", item, value, key)
            for key, item in value.items()
        )
    yield Place(f"len({name})", len(value), value, len)


def _elements(name: str, value: list | deque) -> Iterator[Place]:
    if len(value) <= LONGEST:
        yield from (Place(f"{name}[{i}]", item, value, i) for i, item in enumerate(value))
    yield Place(f"len({name})", len(value), value, len)


def _of_function(function: FunctionType) -> Iterator[Place]:
    """Yield the variables of enclosing functions, the defaults and, of a user's function, the globals that it reads."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
        with suppress(ValueError):  # not bound yet
            yield Place(name, cell.cell_contents, cell, "cell_contents")
    if _library(function) not in LIBRARIES:
        yield from _items(function.__name__, vars(function))
        for key in ("__defaults__", "__kwdefaults__"):
            yield Place(f"{function.__name__}.{key}", getattr(function, key), function, key)
        yield from _globals(function.__module__, function.__globals__, *_names(function.__code__))


def _globals(name: str, known: dict[str, Any], read: Set[str], occurring: Set[str]) -> Iterator[Place]:
    """Yield the variables of a module that are read; of modules among them, those whose names occur."""
    for key in read & known.keys():
        value = known[key]
        if not isinstance(value, ModuleType):
            yield Place(f"{name}.{key}", value, known, key)
        elif value.__name__.partition(".")[0] not in LIBRARIES:
            yield from _globals(value.__name__, vars(value), occurring - {key}, occurring - {key})


@cache
def _names(code: CodeType) -> tuple[Set[str], Set[str]]:
    """Return the globals that a function reads, and all names in it, attributes too; inner functions included."""
    read = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return read.union(*(one for one, _ in inner)), set(code.co_names).union(*(names for _, names in inner))


def _of_class(kind: type) -> Iterator[Place]:
    """Yield the attributes of a user's class and of its bases, and their methods."""
    for base in kind.__mro__:
        if _library(base) not in LIBRARIES:
            for key, value in vars(base).items():
                value = getattr(value, "__func__", value)  # of a static method or a class method
                if isinstance(value, FunctionType):
                    yield Place(f"{base.__name__}.{key}", value)
                elif isinstance(value, property | cached_property):
                    yield Place(f"{base.__name__}.{key}", getattr(value, "fget", None) or getattr(value, "func", None))
                elif not key.startswith("__") and not hasattr(value, "__get__"):
                    yield Place(f"{base.__name__}.{key}", value, base, key)


def _library(thing: Any) -> str:
    return str(thing.__module__).partition(".")[0]


def _by_holder(places: Sequence[Place]) -> list[list[Place]]:
    groups: dict[int, list[Place]] = {}
    for place in places:
        if place.holder is not None:
            groups.setdefault(id(place.holder), []).append(place)
    return list(groups.values())


def _reader(holder: Any, keys: list[Any]) -> Callable[[Any], Any]:
    if any(keys[0] is read for read in WHOLE):  # a dictionary may have functions as its keys
        return keys[0]
    if isinstance(holder, list | deque):
        return tuple
    get = itemgetter if isinstance(holder, dict) else attrgetter
    return get(*keys, keys[0])  # one key alone would give no tuple


def _put_back(holder: Any, places: Sequence[Place]) -> None:
    kept = {place.key: place.value for place in places}
    size = kept.pop(len, None)
    all_known = size is not None and size <= LONGEST  # else only some items of the holder are among the places
    if isinstance(holder, list | deque):
        if all_known and [*map(id, holder)] != [*map(id, kept.values())]:
            holder.clear()
            holder.extend(kept.values())
    elif isinstance(holder, set):
        holder.clear()
        holder.update(kept[frozenset])
    elif isinstance(holder, np.ndarray):
        if holder.tobytes() != places[0].value:
            holder[...] = np.frombuffer(places[0].value, holder.dtype).reshape(holder.shape)
    elif isinstance(holder, dict):
        for key in set(holder) - set(kept) - INTERNAL if all_known else ():
            del holder[key]
        holder.update({key: value for key, value in kept.items() if holder.get(key, ABSENT) is not value})
    else:
        for key, value in kept.items():
            if getattr(holder, key, ABSENT) is not value:
                setattr(holder, key, value)
