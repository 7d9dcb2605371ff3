"""The record of one column: its kind, its levels or categories, and the statistics that standardise it."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyro_vae.data import DataWarning
from pyro_vae.errors import warn
from pyro_vae.tables.kinds import MOST_LEVELS, check_kind, check_seen, recognised

OFTEN = 0.1  # share of the rows with one value, and their number, from which a density is said to have no limit there
OFTEN_ROWS = 10
PRECISE = 1e-5  # float32 has seven digits: of a spread below this share of the values two would be left


@dataclass(frozen=True)
class Column:
    """A column of a table: what it holds, in the numbers of the table, and how often.

    Args:
        name: of the column.
        kind: one of ``KINDS``.
        dtype: that of pandas.
        categories: the words that the codes 0, 1, … stand for; empty for a column of numbers.
        levels: the numbers that stand in the table, for binary, category and ordinal columns.
        shares: the share of each level in the rows, (count + ½) / (rows + K / 2), K levels.
        loc, scale: mean and standard deviation of x (real), of ln x (positive); of counts the log of the mean and the
            standard deviation of ln(1 + x). For levels 0 and 1.
        missing: the share of the cells that are missing.
        note: what to look at, in words.
    """

    name: Hashable
    kind: str
    dtype: Any
    categories: tuple = ()
    levels: tuple[float, ...] = ()
    shares: tuple[float, ...] = ()
    loc: float = 0.0
    scale: float = 1.0
    missing: float = 0.0
    note: str = ""

    @property
    def typical(self) -> float:
        """A number of the table inside the support."""
        if self.levels:
            return self.levels[0]
        if self.kind == "positive":
            return float(np.exp(self.loc))
        return self.loc if self.kind == "real" else 0.0

    def __str__(self) -> str:
        """Return the column as a line of the printed schema, without its name."""
        said = [self._values()]
        if self.missing:
            said.append(f"{self.missing:.1%} missing")
        return "; ".join([*said, *filter(None, [self.note])])

    def _values(self) -> str:
        if self.levels:
            named = [repr(value) for value in self.categories] or [f"{level:g}" for level in self.levels]
            shown = ", ".join(named[:4]) + (", …" if len(named) > 4 else "")
            return shown if self.kind == "binary" else f"{len(named)} levels: {shown}"
        if self.kind == "real":
            return f"mean {self.loc:.4g}, standard deviation {self.scale:.4g}"
        if self.kind == "positive":
            return f"geometric mean {np.exp(self.loc):.4g}, standard deviation of ln x {self.scale:.3g}"
        return f"mean {np.exp(self.loc):.4g}"


def column_of(
    name: Hashable, values: np.ndarray, series: Any, categories: tuple, kind: str | None, rows: Any = slice(None)
) -> Column:
    """Return the record of a column; its kind is recognised if it is None.

    ``values``: its numbers in the table, (N,), NaN where it is missing. ``series``: the pandas column. ``rows``: those
    of which the statistics are taken. Raises DataError for a column that is all missing or has one value in these, or
    that cannot be of the kind.
    """
    seen, counted = (part[~np.isnan(part)] for part in (values, values[rows]))
    check_seen(name, counted)
    ordered = bool(getattr(series.dtype, "ordered", False))
    whole = _is_whole(series, seen)
    given = kind is not None
    kind = kind or recognised(seen, len(categories), ordered, whole)
    check_kind(name, kind, seen, len(categories), ordered)
    record = Column(
        name,
        kind,
        _dtype(series, categories),
        categories,
        missing=float(np.isnan(values[rows]).mean()),
        note=_note(kind, counted, given),
        **_statistics(kind, seen, counted, len(categories)),
    )
    _check_precision(record, seen)
    return record


def _statistics(kind: str, seen: np.ndarray, counted: np.ndarray, words: int) -> dict[str, Any]:
    if kind in ("binary", "category", "ordinal"):
        levels = np.arange(float(words)) if words else np.unique(seen)
        counts = np.bincount(nearest(levels, counted), minlength=len(levels))
        shares = (counts + 0.5) / (len(counted) + 0.5 * len(levels))
        return {"levels": tuple(levels.tolist()), "shares": tuple(shares.tolist())}
    if kind == "count":
        return {"loc": float(np.log(counted.mean())), "scale": float(np.log1p(counted).std())}
    u = np.log(counted) if kind == "positive" else counted
    return {"loc": float(u.mean()), "scale": float(u.std())}


def nearest(levels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the number of the level nearest to each value, of levels in ascending order.

    >>> nearest(np.array([0.0, 3.3, 4.6]), np.array([4.6, 0.1, 3.3]))
    array([2, 0, 1])
    """
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, values)


def _is_whole(series: Any, seen: np.ndarray) -> bool:
    """Return whether a column holds whole numbers: by its type, or because missing cells made floats of them."""
    kind = series.dtype.kind
    by_type = kind in "iub" or (kind == "O" and not any(isinstance(value, float) for value in series.dropna()))
    return by_type or (len(seen) < len(series) and bool((seen == np.round(seen)).all()))


def _dtype(series: Any, categories: tuple) -> Any:
    """Return the type to give back; of numbers among Python objects, the type that pandas finds for them."""
    return series.convert_dtypes().dtype if series.dtype == object and not categories else series.dtype


def _note(kind: str, seen: np.ndarray, given: bool) -> str:
    if kind not in ("real", "positive"):
        return ""
    values, counts = np.unique(seen, return_counts=True)
    share, value = counts.max() / len(seen), values[counts.argmax()]
    if share < OFTEN or counts.max() < OFTEN_ROWS:
        return ""
    others = "" if given or len(values) > MOST_LEVELS else "; the kind 'ordinal' would score masses"
    return f"{share:.0%} of its rows hold {value:g}, where a density has no limit but that of the family{others}"


def _check_precision(column: Column, seen: np.ndarray) -> None:
    spread = np.diff(column.levels).min() if column.levels else column.scale
    size = np.abs(seen).max() if column.kind != "positive" else abs(column.loc)
    if column.kind != "count" and spread < PRECISE * size:
        warn(
            f"column {column.name!r}: its values differ by {spread:.3g} and are as large as {size:.3g}, more digits "
            f"than float32 has; subtract a constant, frame[{column.name!r}] -= frame[{column.name!r}].min(), or train "
            "in float64",
            DataWarning,
        )
