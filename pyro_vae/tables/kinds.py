"""Which kind a column of a table is: recognised from its values, or given by the user and checked."""

from collections.abc import Hashable
from typing import Any

import numpy as np

from pyro_vae.data import DataError

KINDS = {
    "real": "any number; a density",
    "positive": "numbers above 0; a density",
    "count": "whole numbers from 0; a mass",
    "binary": "one of two values; a mass",
    "category": "one of several values without an order; a mass",
    "ordinal": "one of several values in an order; a mass",
}
MOST_LEVELS = 256
FEW = 32  # at most this many values, each in ROWS_EACH rows or more, are taken for levels and not for measurements
ROWS_EACH = 20


def recognised(seen: np.ndarray, words: int, ordered: bool, whole: bool) -> str:
    """Return the kind of a column from its numbers that are seen.

    Args:
        seen: the numbers (n,); codes, if the column holds words or categories.
        words: how many categories it has, 0 for a column of numbers.
        ordered: whether these categories have an order.
        whole: whether the column's type says that its numbers are whole.

    >>> recognised(np.array([0.5, 1.5, 2.7]), words=0, ordered=False, whole=False)
    'positive'
    >>> recognised(np.array([0.0, 3.0, 1.0]), words=0, ordered=False, whole=True)
    'count'
    """
    distinct = len(np.unique(seen))
    if words:
        return "binary" if words == 2 else "ordinal" if ordered else "category"
    if distinct == 2 and (whole or len(seen) >= ROWS_EACH):
        return "binary"
    if whole:
        return "count" if seen.min() >= 0 else "real"
    if distinct <= FEW and len(seen) >= ROWS_EACH * distinct:
        return "ordinal"
    return "positive" if seen.min() > 0 else "real"


def check_seen(name: Hashable, seen: np.ndarray) -> None:
    """Raise DataError unless the column has two values at least in the rows where it is seen."""
    if not len(seen):
        raise DataError(
            f"column {name!r}: wanted values, got none: all of its cells are missing; {_dropped(name)}, or give more "
            "rows"
        )
    if (seen == seen[0]).all():
        raise DataError(
            f"column {name!r}: wanted two values at least, got {seen[0]:g} in each of the {len(seen)} rows where it is "
            f"seen; it says nothing about the other columns: {_dropped(name)}"
        )


def check_kind(name: Hashable, kind: str, seen: np.ndarray, words: int, ordered: bool) -> None:
    """Raise DataError unless a column can be of the kind: its numbers lie in the support, its levels are few."""
    cell = f"frame[{name!r}]"
    levels = words or len(np.unique(seen))
    if kind in ("real", "positive", "count") and words:
        raise DataError(
            f"column {name!r}: a {kind} column wants numbers, got {words} categories; give it the kind 'category', or "
            f"make numbers of it: {cell} = pandas.to_numeric({cell})"
        )
    check_support(name, kind, seen)
    if kind == "ordinal" and words and not ordered:
        raise DataError(
            f"column {name!r}: an ordinal column wants an order of its {words} categories, got words without one; "
            f"write {cell} = pandas.Categorical({cell}, categories=[…, in their order], ordered=True)"
        )
    if kind == "binary" and levels != 2:
        raise DataError(
            f"column {name!r}: a binary column wants two values, got {levels}; give it the kind 'category' or 'ordinal'"
        )
    if kind in ("category", "ordinal") and levels > MOST_LEVELS:
        numbers = f"; give it the kind 'real': kinds={{{name!r}: 'real'}}" if not words else ""
        raise DataError(
            f"column {name!r}: a column of levels wants at most {MOST_LEVELS} of them, got {levels}{numbers}; if it "
            f"names the rows, {_dropped(name)}"
        )


def check_support(name: Hashable, kind: str, seen: np.ndarray) -> None:
    """Raise DataError where numbers of a positive column are not above 0, or counts are negative or not whole.

    >>> check_support("visits", "count", np.array([1.0, -2.0]))
    Traceback (most recent call last):
        ...
    pyro_vae.errors.DataError: column 'visits': a count column wants whole numbers from 0, got -2 ...
    """
    allowed = {"positive": seen > 0, "count": (seen >= 0) & (seen == np.round(seen))}.get(
        kind, np.ones_like(seen, bool)
    )
    wanted = {"positive": "numbers above 0", "count": "whole numbers from 0"}.get(kind)
    bad = seen[~allowed]
    if len(bad):
        raise DataError(
            f"column {name!r}: a {kind} column wants {wanted}, got {bad[0]:g} (such numbers in {len(bad)} of the "
            f"{len(seen)} rows where it is seen); correct these cells, or write NaN where they are missing, or give it "
            f"another kind when the schema is made: kinds={{{name!r}: 'real'}}"
        )


def checked_kinds(kinds: Any, names: tuple[Hashable, ...]) -> dict[Hashable, str]:
    """Return the kinds that a user gave by name; raise ValueError for an unknown column or kind.

    >>> checked_kinds({"age": "number"}, ("age",))
    Traceback (most recent call last):
        ...
    ValueError: kinds: wanted real, positive, count, binary, category or ordinal for 'age', got 'number'
    """
    kinds = dict(kinds or {})
    for name, kind in kinds.items():
        if name not in names:
            raise ValueError(f"kinds: wanted names of columns, {', '.join(map(repr, names))}, got {name!r}")
        if kind not in KINDS:
            *first, last = KINDS
            raise ValueError(f"kinds: wanted {', '.join(first)} or {last} for {name!r}, got {kind!r}")
    return kinds


def _dropped(name: Hashable) -> str:
    return f"drop it: frame = frame.drop(columns=[{name!r}])"
