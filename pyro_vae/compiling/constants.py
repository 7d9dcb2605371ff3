"""Python values of a program that tracing turns into constants, watched for changes.

These are numbers, flags and strings, and which tensors, modules and functions the program uses.
"""

import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter, is_
from typing import Any

import numpy as np
from torch import Tensor

from pyro_vae.compiling import private
from pyro_vae.compiling.parts import (
    GENERATORS,
    Place,
    has_memory,
    is_opaque,
    is_plain,
    is_watched_inside,
    items_of,
)
from pyro_vae.compiling.places import ABSENT, generator_access, put_back, readers, survey

ANEW = 3  # traces after the first that are always made
WORTH_USES = 2000  # uses of a trace that make up for the seconds of another one

Changes = dict[str, tuple[Any, Any]]  # the old value and the new one, by name


class MemoryAddress(int):
    """The address of a tensor's memory."""


class WatchedConstants:
    """Everything that objects and callables refer to: attributes, items, variables of functions, and globals they read.

    Numbers, strings and flags count by value. Tensors, modules and functions count by identity, since the content of a
    tensor may change; of each tensor ``requires_grad`` and the address of its memory count, too.

    Attributes:
        places: where the values lie.
        values: the values at the last look, by name.
        passing: names of values that every run replaces and no run reads; their changes are ignored.

    >>> from torch import nn
    >>> layer = nn.Dropout(0.1)
    >>> watched = WatchedConstants({"layer": layer})
    >>> layer.p = 0.2
    >>> watched.changes(), watched.changes()
    ({'layer.p': (0.1, 0.2)}, {})
    """

    def __init__(self, roots: Mapping[str, Any]):
        self.roots = roots
        self.passing: set[str] = set()
        self.look()

    def look(self) -> None:
        """Take the present values as the known ones."""
        self.places = survey(self.roots)
        self.values = {name: value for place in self.places for name, value in _described(place)}
        lasting = [place for place in self.places if place.name not in self.passing]
        held = [place for place in lasting if place.holder is not None]
        items = [place for place in held if place.key is not len]
        self._sized = [place.holder for place in held if place.key is len]
        self._by_value = readers([place for place in items if _counts_by_value(place)])
        self._by_identity = readers([place for place in items if not _counts_by_value(place)])
        self._tensors = [place.value for place in lasting if has_memory(place.value)]
        self._leaves = [tensor for tensor in self._tensors if tensor.requires_grad]
        self._sized += [hooks for leaf in self._leaves for hooks in private.gradient_hooks(leaf) if hooks is not None]
        self._known_values, self._known_objects = self._present_values(), [*self._present_objects()]

    def changes(self) -> Changes:
        """Return what changed since the last look, and look again.

        It takes some microseconds if nothing changed, and some milliseconds otherwise.
        """
        try:
            same_values = self._present_values() == self._known_values
            if same_values and all(map(is_, self._present_objects(), self._known_objects)):
                return {}
        except (KeyError, AttributeError, ValueError, RuntimeError):  # something is gone
            pass
        before = self.values
        self.look()
        return self.since(before)

    def since(self, values: Mapping[str, Any]) -> Changes:
        """Return what differs now from the ``values`` of another time."""
        return {name: pair for name, pair in _differences(values, self.values).items() if name not in self.passing}

    def put_back(self) -> None:
        """Restore the values of the last look, and remove items that are new."""
        put_back(self.places)

    def tensors(self, largest: int) -> list[Tensor]:
        """Return the tensors of at most ``largest`` elements."""
        return [place.value for place in self.places if has_memory(place.value) and place.value.numel() <= largest]

    def unwatched(self) -> list[str]:
        """Return the names of values that may change inside without a word, the nearest first."""
        return [place.name for place in self.places if is_opaque(place.value)]

    def generators(self) -> dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]]:
        """Return how to read and to set each random number generator other than torch's own, by name."""
        found: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
            "Python's module random": (random.getstate, random.setstate),
            "NumPy's numpy.random": (np.random.get_state, np.random.set_state),
        }
        own = [place for place in self.places if isinstance(place.value, GENERATORS)]
        return found | {place.name: generator_access(place.value) for place in own}

    def _present_values(self) -> tuple[list, ...]:
        """Return what counts by value; every training step calls it, so it has few loops in Python."""
        return (
            [read(holder) for read, holder in self._by_value],
            [*map(len, self._sized)],
            [tensor.requires_grad for tensor in self._tensors],
            [*map(Tensor.data_ptr, self._tensors)],
            [*map(attrgetter(*private.GRADIENT_HOOKS), self._leaves)],
        )

    def _present_objects(self) -> Iterator[Any]:
        """Return what counts by identity; the mark at its end shows a change of the length."""
        return chain(chain.from_iterable([read(holder) for read, holder in self._by_identity]), (ABSENT,))


def in_words(changes: Changes) -> str:
    """Return changes as they appear in a message.

    >>> from torch import nn
    >>> in_words({"self.beta": (0.5, 1.0), "self.decoder": (nn.Linear(1, 1), nn.Linear(1, 1))})
    'self.beta (0.5 -> 1.0), self.decoder (another Linear)'
    """
    found = [f"{name} ({_how(*pair)})" for name, pair in changes.items()]
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


@dataclass
class Patience:
    """Decides when a program changes too often for another trace to be worth its time.

    A trace takes as long as some ``WORTH_USES`` eager steps. Patience ends at the second change in a row without a use
    between them, or after more than ``ANEW`` changes and one more for each ``WORTH_USES`` uses.

    >>> patience = Patience()
    >>> patience.used()
    >>> patience.ends(), patience.ends()
    (False, True)
    """

    uses: int = 0
    changes: int = 0
    in_a_row: int = 0

    def used(self) -> None:
        """Count a use of the trace without a change before it."""
        self.uses += 1
        self.in_a_row = 0

    def ends(self) -> bool:
        """Count a change; return whether it was one too many."""
        self.changes += 1
        self.in_a_row += 1
        return self.in_a_row > 1 or self.changes > ANEW + self.uses // WORTH_USES


def _how(old: Any, new: Any) -> str:
    if isinstance(new, MemoryAddress | bytes):
        return "other memory" if isinstance(new, MemoryAddress) else "another content"
    return f"{_short(old)} -> {_short(new)}" if is_plain(old) and is_plain(new) else f"another {type(new).__name__}"


def _short(value: Any) -> str:
    text = value if value is ABSENT else repr(value)
    return text if len(text) < 50 else f"{text[:47]}..."


def _described(place: Place) -> Iterator[tuple[str, Any]]:
    yield place.name, place.value
    if has_memory(place.value):
        yield f"{place.name}.requires_grad", place.value.requires_grad
        yield f"{place.name}.hooks", _hooks(place.value)
        yield f"{place.name}.data", MemoryAddress(place.value.data_ptr())


def _hooks(tensor: Tensor) -> tuple[int | None, ...]:
    """Return how many hooks of each kind a gradient has."""
    return tuple(hooks and len(hooks) for hooks in private.gradient_hooks(tensor))


def _counts_by_value(place: Place) -> bool:
    return is_plain(place.value) and (place.key is items_of or not isinstance(place.holder, list | deque))


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Changes:
    """Return the values that differ, by name; parts of an object that differs are left out."""
    changes: Changes = {}
    for name in {**before, **after}:
        old, new = before.get(name, ABSENT), after.get(name, ABSENT)
        within = tuple(f"{outer}{mark}" for outer in changes for mark in ".[")
        if not _same(old, new) and not name.startswith(within):
            changes[name] = old, new
    named = {name: pair for name, pair in changes.items() if not name.startswith("len(")}
    return named or changes


def _same(old: Any, new: Any) -> bool:
    """Return whether two values count as equal; objects of one type do if their contents are watched themselves."""
    if old is new:
        return True
    if is_plain(old) or is_plain(new):
        return type(old) is type(new) and (old == new or bool(old != old and new != new))
    return type(old) is type(new) and is_watched_inside(new)
