"""What a program holds in Python, which tracing turns into constants: numbers, flags, and which tensors and modules."""

import argparse
import dis
import random
import sys
from collections import UserDict, UserList, deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import cache, cached_property, partial
from itertools import chain
from operator import attrgetter, is_, itemgetter
from pathlib import PurePath
from types import CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import UninitializedTensorMixin

MOST = 10_000  # places that are watched, the nearest first
LONGEST = 1000  # items of a list or dictionary that are watched one by one; of a longer one its length is
PLAIN = (type(None), bool, int, float, complex, str, bytes, Enum, PurePath, np.generic, torch.dtype, torch.device)
LIBRARIES = {"torch", "pyro", "numpy", "pyro_vae", *sys.stdlib_module_names}  # whose code reads no global of a user
OF_A_USER = (
    SimpleNamespace,
    argparse.Namespace,
    UserDict,
    UserList,
    nn.Module,
    torch.distributions.Distribution,
    torch.distributions.Transform,
)  # objects of libraries that hold what a user gave them
CLOSED = LIBRARIES - {"pyro", "pyro_vae"}  # whose other objects are not looked into
GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)
INTERNAL = set(vars(nn.Module())) - {"training"}
SETTING_UP = {"__init__", "__setstate__", "__repr__", "extra_repr", "reset_parameters"}  # methods that do not compute
ABSENT = "absent"
ANEW = 3  # traces after the first that are always made
WORTH_USES = 2000  # of a trace, that earn back the seconds of another one

Changes = dict[str, tuple[Any, Any]]


class Memory(int):
    """Where a tensor lies."""


class Slot(NamedTuple):
    """A value, what it is called, and where it lies: in ``holder`` by ``key``, if it can be set there."""

    name: str
    value: Any
    holder: Any = None
    key: Any = None


class Held:
    """What objects and callables refer to: attributes, items, variables of functions, and globals that they read.

    Numbers, strings and flags count by value; tensors, modules and functions by identity, since what is in a tensor may
    change; and of each tensor ``requires_grad`` and the place of its memory.

    >>> layer = nn.Dropout(0.1)
    >>> held = Held({"layer": layer})
    >>> layer.p = 0.2
    >>> held.changes(), held.changes()
    ({'layer.p': (0.1, 0.2)}, {})
    """

    def __init__(self, roots: Mapping[str, Any]):
        self.roots = roots
        self.passing: set[str] = set()  # names of what every run of the program replaces, and none reads
        self.look()

    def look(self) -> None:
        """Takes what is there now for what there was."""
        self.slots = _survey(self.roots)
        self.values = {name: value for slot in self.slots for name, value in _described(slot)}
        lasting = [slot for slot in self.slots if slot.name not in self.passing]
        watched = [slot for slot in lasting if slot.holder is not None]
        self._sized = [slot.holder for slot in watched if slot.key is len]
        self._by_value = _readers([slot for slot in watched if slot.key is not len and _by_value(slot)])
        self._by_identity = _readers([slot for slot in watched if slot.key is not len and not _by_value(slot)])
        self._tensors = [slot.value for slot in lasting if _has_memory(slot.value)]
        self._seen, self._objects = self._flags(), [*self._stream()]

    def changes(self) -> Changes:
        """The old value and the new one, by name, of what changed since this was last asked, or since ``look``.

        It takes some microseconds where nothing changed, some milliseconds where something did.
        """
        try:
            if self._flags() == self._seen and all(map(is_, self._stream(), self._objects)):
                return {}
        except (KeyError, AttributeError, ValueError, RuntimeError):  # something is gone
            pass
        before = self.values
        self.look()
        return self.since(before)

    def since(self, values: Mapping[str, Any]) -> Changes:
        """What differs now from ``values`` of another time."""
        return {name: pair for name, pair in _differences(values, self.values).items() if name not in self.passing}

    def put_back(self) -> None:
        """Gives every place the value of the last look, and takes away what is new in a place."""
        for slots in _by_holder(self.slots):
            _put_back(slots[0].holder, slots)

    def tensors(self, largest: int) -> list[Tensor]:
        """Those of at most so many elements."""
        return [slot.value for slot in self.slots if _has_memory(slot.value) and slot.value.numel() <= largest]

    def generators(self) -> dict[str, tuple[Callable, Callable]]:
        """How to read and to set the state of each random number generator other than torch's own, by name."""
        found = {
            "Python's module random": (random.getstate, random.setstate),
            "NumPy's numpy.random": (np.random.get_state, np.random.set_state),
        }
        return found | {slot.name: _access(slot.value) for slot in self.slots if isinstance(slot.value, GENERATORS)}

    def _flags(self) -> tuple[list, ...]:
        """What is compared by value, without a loop in Python where one can be avoided: it is read at every step."""
        return (
            [read(holder) for read, holder in self._by_value],
            [*map(len, self._sized)],
            [tensor.requires_grad for tensor in self._tensors],
            [*map(Tensor.data_ptr, self._tensors)],
        )

    def _stream(self) -> Iterator[Any]:
        """What is compared by identity, and a mark at its end."""
        return chain(chain.from_iterable([read(holder) for read, holder in self._by_identity]), (ABSENT,))


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a flag, a string or the like, or a tuple of such: what never changes itself.

    >>> is_plain((1, "a", None)), is_plain([1])
    (True, False)
    """
    return isinstance(value, PLAIN) or (isinstance(value, tuple | frozenset) and all(map(is_plain, value)))


def words(changes: Changes) -> str:
    """Changes as they stand in a message.

    >>> words({"self.beta": (0.5, 1.0), "self.decoder": (nn.Linear(1, 1), nn.Linear(1, 1))})
    'self.beta (0.5 -> 1.0), self.decoder (another Linear)'
    """
    said = [f"{name} ({_how(*pair)})" for name, pair in changes.items()]
    return ", ".join(said[:3]) + (f" and {len(said) - 3} more" if len(said) > 3 else "")


def _how(old: Any, new: Any) -> str:
    if isinstance(new, Memory | bytes):
        return "other memory" if isinstance(new, Memory) else "another content"
    return f"{_short(old)} -> {_short(new)}" if is_plain(old) and is_plain(new) else f"another {type(new).__name__}"


def _short(value: Any) -> str:
    text = value if value is ABSENT else repr(value)
    return text if len(text) < 50 else f"{text[:47]}..."


def _survey(roots: Mapping[str, Any]) -> list[Slot]:
    """Every place that can be reached, the nearest first; no two have one name."""
    slots, names, seen, places = [], {}, {}, set()
    todo = deque(Slot(name, value) for name, value in roots.items())
    while todo and len(slots) < MOST:
        slot = todo.popleft()
        if slot.holder is not None and (id(slot.holder), slot.key) in places:
            continue
        places.add((id(slot.holder), slot.key))
        names[slot.name] = number = names.get(slot.name, 0) + 1
        slots.append(slot if number == 1 else slot._replace(name=f"{slot.name} #{number}"))
        if id(slot.value) not in seen:
            seen[id(slot.value)] = slot.value
            todo += _parts(*slots[-1][:2])
    return slots


def _parts(name: str, value: Any) -> Iterator[Slot]:
    """What an object refers to."""
    if is_plain(value) or isinstance(value, Tensor):
        return
    if isinstance(value, MethodType):
        yield Slot("self", value.__self__)
        yield Slot(name, value.__func__)
    elif isinstance(value, FunctionType):
        yield from _of_function(value)
    elif isinstance(value, partial):
        for item in (value.func, *value.args):
            yield Slot(name, item)
        yield from _items(name, value.keywords)
    elif isinstance(value, type):
        yield from _of_class(value)
    elif isinstance(value, dict):
        yield from _items(name, value)
    elif isinstance(value, tuple):
        yield from (Slot(f"{name}[{i}]", item) for i, item in enumerate(value))
    elif isinstance(value, list | deque):
        yield from _elements(name, value)
    elif isinstance(value, set):
        yield Slot(f"{name}.copy()", frozenset(value), value, frozenset)
    elif isinstance(value, np.ndarray):
        if value.nbytes <= 8 * LONGEST and value.dtype != object:
            yield Slot(f"{name}[...]", value.tobytes(), value, np.ndarray.tobytes)
    elif _is_open(value):
        yield from _attributes(name, value)


def _is_open(value: Any) -> bool:
    """Whether the attributes of an object are looked at: not those of most objects of torch or the standard library."""
    return isinstance(value, OF_A_USER) or (_library(type(value)) not in CLOSED and not isinstance(value, ModuleType))


def _attributes(name: str, value: Any) -> Iterator[Slot]:
    held, known = getattr(value, "__dict__", {}), isinstance(value, nn.Module) and _library(type(value)) in LIBRARIES
    used = _used(type(value)) if known else held.keys() - INTERNAL
    yield from (Slot(f"{name}.{key}", item, held, key) for key, item in held.items() if key in used)
    if not known:  # a new attribute may hide one of the class
        yield Slot(f"len(vars({name}))", len(held), held, len)
    if isinstance(value, nn.Module):
        for part in (value._parameters, value._buffers, value._modules):
            yield from (Slot(f"{name}.{key}", item, part, key) for key, item in part.items())
        if value._modules:
            yield Slot(f"len({name})", len(value._modules), value._modules, len)
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for key in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, key) and key not in ("__dict__", "__weakref__"):
                yield Slot(f"{name}.{key}", getattr(value, key), value, key)
    yield Slot(type(value).__name__, type(value))


@cache
def _used(kind: type) -> set[str]:
    """The names of attributes that the methods of a module use, those aside that build it or print it."""
    methods = [method for base in kind.__mro__ if base not in nn.Module.__mro__ for method in vars(base).items()]
    return (
        set().union(
            *(
                _names(method.__code__)[1]
                for name, method in methods
                if isinstance(method, FunctionType) and name not in SETTING_UP
            )
        )
        - INTERNAL
    )


def _items(name: str, value: dict) -> Iterator[Slot]:
    if len(value) <= LONGEST:
        yield from (
            Slot(f"{name}[{key!r}]" if is_plain(key) else f"{name}[...]", item, value, key)
            for key, item in value.items()
        )
    yield Slot(f"len({name})", len(value), value, len)


def _elements(name: str, value: list | deque) -> Iterator[Slot]:
    if len(value) <= LONGEST:
        yield from (Slot(f"{name}[{i}]", item, value, i) for i, item in enumerate(value))
    yield Slot(f"len({name})", len(value), value, len)


def _of_function(function: FunctionType) -> Iterator[Slot]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
        with suppress(ValueError):  # not bound yet
            yield Slot(name, cell.cell_contents, cell, "cell_contents")
    if _library(function) not in LIBRARIES:
        yield from _items(function.__name__, vars(function))
        for key in ("__defaults__", "__kwdefaults__"):
            yield Slot(f"{function.__name__}.{key}", getattr(function, key), function, key)
        yield from _globals(function.__module__, function.__globals__, *_names(function.__code__))


def _globals(name: str, known: dict, read: Set[str], words: Set[str]) -> Iterator[Slot]:
    """Variables of a module that are read, and of the modules among them those whose names occur."""
    for key in read & known.keys():
        value = known[key]
        if not isinstance(value, ModuleType):
            yield Slot(f"{name}.{key}", value, known, key)
        elif value.__name__.partition(".")[0] not in LIBRARIES:
            yield from _globals(value.__name__, vars(value), words - {key}, words - {key})


@cache
def _names(code: CodeType) -> tuple[Set[str], Set[str]]:
    """The globals that a function reads, and all names in it, attributes too; inner functions included."""
    read = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return read.union(*(one for one, _ in inner)), set(code.co_names).union(*(words for _, words in inner))


def _of_class(kind: type) -> Iterator[Slot]:
    """Attributes of a class of a user, and of its bases, and what their methods refer to."""
    for base in kind.__mro__:
        if _library(base) not in LIBRARIES:
            for key, value in vars(base).items():
                value = getattr(value, "__func__", value)  # of a static method or a class method
                if isinstance(value, FunctionType):
                    yield Slot(f"{base.__name__}.{key}", value)
                elif isinstance(value, property | cached_property):
                    yield Slot(f"{base.__name__}.{key}", getattr(value, "fget", None) or getattr(value, "func", None))
                elif not key.startswith("__") and not hasattr(value, "__get__"):
                    yield Slot(f"{base.__name__}.{key}", value, base, key)


def _library(thing: Any) -> str:
    return str(thing.__module__).partition(".")[0]


def _has_memory(value: Any) -> bool:
    without = isinstance(value, FakeTensor | UninitializedTensorMixin)
    return isinstance(value, Tensor) and value.layout is torch.strided and not without


def _described(slot: Slot) -> Iterator[tuple[str, Any]]:
    yield slot.name, slot.value
    if _has_memory(slot.value):
        yield f"{slot.name}.requires_grad", slot.value.requires_grad
        yield f"{slot.name}.data", Memory(slot.value.data_ptr())


def _by_value(slot: Slot) -> bool:
    return is_plain(slot.value) and not isinstance(slot.holder, list | deque)


def _by_holder(slots: Sequence[Slot]) -> list[list[Slot]]:
    groups: dict[int, list[Slot]] = {}
    for slot in slots:
        if slot.holder is not None:
            groups.setdefault(id(slot.holder), []).append(slot)
    return list(groups.values())


def _readers(slots: Sequence[Slot]) -> list[tuple[Callable, Any]]:
    """Functions from holders to the values of these slots, without a loop in Python."""
    return [(_reader(group[0].holder, [slot.key for slot in group]), group[0].holder) for group in _by_holder(slots)]


def _reader(holder: Any, keys: list) -> Callable[[Any], Any]:
    if callable(keys[0]):
        return keys[0]
    if isinstance(holder, list | deque):
        return tuple
    get = itemgetter if isinstance(holder, dict) else attrgetter
    return get(*keys, keys[0])  # of one key alone it would give no tuple


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Changes:
    """Values that differ, by name, without what lies within another one that does."""
    changes: Changes = {}
    for name in {**before, **after}:
        old, new = before.get(name, ABSENT), after.get(name, ABSENT)
        within = tuple(f"{outer}{mark}" for outer in changes for mark in ".[")
        if not _same(old, new) and not name.startswith(within):
            changes[name] = old, new
    named = {name: pair for name, pair in changes.items() if not name.startswith("len(")}
    return named or changes


def _same(old: Any, new: Any) -> bool:
    """Whether one value stands for the other: objects that are looked into do if they are of one type."""
    if old is new:
        return True
    if is_plain(old) or is_plain(new):
        return type(old) is type(new) and (old == new or bool(old != old and new != new))
    looked_into = not isinstance(new, nn.Module | Tensor | FunctionType | type) and (
        isinstance(new, dict | list | deque | tuple | set) or _is_open(new)
    )
    return type(old) is type(new) and looked_into


def _put_back(holder: Any, slots: Sequence[Slot]) -> None:
    kept = {slot.key: slot.value for slot in slots}
    size = kept.pop(len, None)
    if isinstance(holder, list | deque):
        if size <= LONGEST and [*map(id, holder)] != [*map(id, kept.values())]:
            holder.clear()
            holder.extend(kept.values())
    elif isinstance(holder, set):
        holder.clear()
        holder.update(kept[frozenset])
    elif isinstance(holder, np.ndarray):
        if holder.tobytes() != slots[0].value:
            holder[...] = np.frombuffer(slots[0].value, holder.dtype).reshape(holder.shape)
    elif isinstance(holder, dict):
        for key in set(holder) - set(kept) - INTERNAL if size is not None and size <= LONGEST else ():
            del holder[key]
        holder.update({key: value for key, value in kept.items() if holder.get(key, ABSENT) is not value})
    else:
        for key, value in kept.items():
            if getattr(holder, key, ABSENT) is not value:
                setattr(holder, key, value)


def _access(generator: Any) -> tuple[Callable, Callable]:
    """How to read and to set the state of a generator."""
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


@dataclass
class Patience:
    """When it is no longer worth while to trace a program anew, since what it holds changes too often.

    A trace takes as long as some ``WORTH_USES`` eager steps. It ends at the second change in a row, without a use
    between them, or when there were more than ``ANEW`` changes and one more for each ``WORTH_USES`` uses.

    >>> patience = Patience()
    >>> patience.used()
    >>> patience.ends(), patience.ends()
    (False, True)
    """

    uses: int = 0
    changes: int = 0
    in_a_row: int = 0

    def used(self) -> None:
        """Counts a use of what was traced, without a change before it."""
        self.uses += 1
        self.in_a_row = 0

    def ends(self) -> bool:
        """Counts a change; whether it was one too many."""
        self.changes += 1
        self.in_a_row += 1
        return self.in_a_row > 1 or self.changes > ANEW + self.uses // WORTH_USES
