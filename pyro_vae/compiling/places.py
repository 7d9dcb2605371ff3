"""Places of Python values that a program reads: attributes, items, variables of functions, globals.

``survey`` finds them, ``readers`` read many of them at once, and ``put_back`` restores them.
"""

import random
import sys
from array import array
from collections import deque
from collections.abc import Callable, Mapping, Sequence, Set
from functools import cache, partial
from operator import attrgetter, itemgetter
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import torch

from pyro_vae.compiling.parts import INTERNAL, LIBRARIES, LONGEST, Place, items_of, parts_of
from pyro_vae.tracing.probing import library_of

MOST = 10_000  # places that are watched, the nearest first
OF_PACKAGES = 1000  # those among them that the code of installed packages refers to
INSTALLED = {"site-packages", "dist-packages"}
ABSENT = "absent"
WHOLE = (items_of, frozenset, bytes, np.ndarray.tobytes, array.tobytes)  # keys that read a whole holder, beside len


def survey(roots: Mapping[str, Any]) -> list[Place]:
    """Return every place that can be reached from the roots, the nearest first; no two have one name.

    What the classes and functions of installed packages refer to, other than those of the roots, comes last: such a
    package may hold tens of thousands of objects, and seldom one of a user.

    >>> from types import SimpleNamespace
    >>> [place.name for place in survey({"layer": SimpleNamespace(rate=0.1)})]
    ['layer', 'layer.rate', 'len(vars(layer))', 'SimpleNamespace']
    """
    places, names, seen, known = [], {}, {}, set()
    todo, later = deque(Place(name, value) for name, value in roots.items()), deque[Place]()
    own = LIBRARIES | {library_of(root) for root in roots.values()}
    for most, followed in (MOST, partial(_is_own, own)), (OF_PACKAGES, lambda value: True):
        most = min(MOST, len(places) + most)
        while todo and len(places) < most:
            place = todo.popleft()
            if place.holder is not None and (id(place.holder), place.key) in known:
                continue
            known.add((id(place.holder), place.key))
            names[place.name] = number = names.get(place.name, 0) + 1
            places.append(place if number == 1 else place._replace(name=f"{place.name} #{number}"))
            if id(place.value) not in seen:
                seen[id(place.value)] = place.value
                (todo if followed(place.value) else later).extend(parts_of(places[-1].name, place.value))
        todo = later
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


def _is_own(packages: Set[str], value: Any) -> bool:
    """Return whether a value is no class and no function, or is of these packages, or of one that is not installed."""
    package = library_of(value) if isinstance(value, type | FunctionType) else ""
    return package in packages or not _is_installed(package)


@cache
def _is_installed(package: str) -> bool:
    """Return whether a package lies where pip puts packages; one that is installed in place (-e) does not."""
    spec = getattr(sys.modules.get(package), "__spec__", None)
    return spec is not None and not INSTALLED.isdisjoint(Path(spec.origin or "").parts)


def _by_holder(places: Sequence[Place]) -> list[list[Place]]:
    groups: dict[int, list[Place]] = {}
    for place in places:
        if place.holder is not None:
            groups.setdefault(id(place.holder), []).append(place)
    return list(groups.values())


def _reader(holder: Any, keys: list[Any]) -> Callable[[Any], Any]:
    whole = (items_of,) if isinstance(holder, dict) else WHOLE  # a dictionary may have functions as its keys
    if any(keys[0] is read for read in whole):
        return keys[0]
    if isinstance(holder, list | deque):
        return tuple
    get = itemgetter if isinstance(holder, dict) else attrgetter
    return get(*keys, keys[0])  # one key alone would give no tuple


def _put_back(holder: Any, places: Sequence[Place]) -> None:
    kept: dict[Any, Any] = {place.key: place.value for place in places}
    size = kept.pop(len, None)
    all_known = size is not None and size <= LONGEST  # else only some items of the holder are among the places
    if items_of in kept:
        whole = kept.pop(items_of)
        kept = dict(zip(holder, whole)) if isinstance(holder, dict) else dict(enumerate(whole))
    if isinstance(holder, list | deque):
        if (all_known or len(kept) > LONGEST) and [*map(id, holder)] != [*map(id, kept.values())]:
            holder.clear()
            holder.extend(kept.values())
    elif isinstance(holder, set):
        holder.clear()
        holder.update(kept[frozenset])
    elif isinstance(holder, array | bytearray):
        holder[:] = array(holder.typecode, places[0].value) if isinstance(holder, array) else places[0].value
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
