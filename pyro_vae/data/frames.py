"""Data frames of pandas as numeric tables: numbers as they are, categories as codes, NaN where a value is missing."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pyro_vae.data.raw import DataError
from pyro_vae.optional import optional
from pyro_vae.printing import listed

WHOLE = 2**53  # below it float64 holds every whole number


def encoded(frame: Any) -> tuple[np.ndarray, tuple[Hashable, ...], dict[Hashable, tuple]]:
    """Return a frame as a float64 table (N, D), the names of its columns, and the categories of those that are coded.

    Numbers stay as they are; booleans are 0 and 1. A column of categories or strings holds the codes 0, 1, … of its
    values in sorted order, or in their own order if it is an ordered categorical; ``categories`` maps the column's name
    to these values. Categories that no row has keep their codes. A missing value is NaN.

    Raises DataError for a frame without rows or columns, for two columns of one name, for columns of anything else
    (dates, lists, complex numbers), for infinite numbers, and for whole numbers that float64 cannot tell apart.

    >>> import pandas as pd
    >>> encoded(pd.DataFrame({"age": [31, None], "smokes": [True, False], "eyes": ["green", "blue"]}))
    (array([[31.,  1.,  1.],
           [nan,  0.,  0.]]), ('age', 'smokes', 'eyes'), {'eyes': ('blue', 'green')})
    """
    pandas = imported()
    if not isinstance(frame, pandas.DataFrame):
        raise DataError(f"frame: wanted a pandas DataFrame, got {type(frame).__name__}; write pandas.DataFrame(frame)")
    names = tuple(frame.columns)
    if not len(frame) or not names:
        raise DataError(
            f"frame: wanted at least one row and one column, got {len(frame)} × {len(names)}; give one that has some"
        )
    check_once(names)
    table, categories = np.empty((len(frame), len(names))), {}
    for place, name in enumerate(names):
        table[:, place], values = _column(frame.iloc[:, place], name, pandas)
        if values is not None:
            categories[name] = values
    return table, names, categories


def check_once(names: Sequence[Hashable]) -> None:
    """Raise DataError for two columns of one name.

    >>> check_once(["age", "eyes", "age"])
    Traceback (most recent call last):
        ...
    pyro_vae.errors.DataError: frame: the columns 'age' are in it twice; rename one of each: frame.columns = …
    """
    twice = sorted({repr(name) for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"frame: the columns {', '.join(twice)} are in it twice; rename one of each: frame.columns = …")


class Table(NamedTuple):
    """A frame as a field ``table``, its labels, the names of the classes and those of the table's columns."""

    table: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...]
    columns: tuple[Hashable, ...]


def labelled(frame: Any, labels: Hashable | None = None) -> Table:
    """Return the numbers of a frame, with one of its columns, if named, as labels; −1 where a label is missing.

    Raises DataError for what ``encoded`` refuses, and for a name that is no column.
    """
    table, names, categories = encoded(frame)
    if labels is None:
        return Table(table, None, (), names)
    if labels not in names:
        raise DataError(f"labels: wanted one of the columns {', '.join(map(str, names))}, got {labels!r}")
    place = names.index(labels)
    numbers, rest = table[:, place], names[:place] + names[place + 1 :]
    classes = tuple(map(str, categories.get(labels, ())))
    return Table(np.delete(table, place, 1), np.where(np.isnan(numbers), -1, numbers), classes, rest)


def imported() -> Any:
    """Return pandas; raise ImportError that says how to install it."""
    return optional("pandas", "data frames")


def framed(columns: Mapping[str, Any], index: str) -> Any:
    """Return the pandas frame of columns by their names, one of which becomes its index.

    >>> framed({"epoch": [1, 2], "bound": [-9.0, -8.0]}, index="epoch").bound.to_dict()
    {1: -9.0, 2: -8.0}
    """
    return imported().DataFrame(dict(columns)).set_index(index)


def _column(column: Any, name: Hashable, pandas: Any) -> tuple[np.ndarray, tuple | None]:
    """Return the numbers of a column, float64 (N,), and the values that its codes stand for, if it is coded."""
    seen = column[column.notna()]
    if isinstance(column.dtype, pandas.CategoricalDtype):
        values = tuple(column.cat.categories.tolist())
        return _codes(column, values if column.cat.ordered else _in_order(values), pandas)
    kinds = {type(value) for value in seen} if column.dtype == object else set()
    if isinstance(column.dtype, pandas.StringDtype) or (kinds and all(issubclass(kind, str) for kind in kinds)):
        return _codes(column, _in_order(set(seen)), pandas)
    real = all(issubclass(kind, bool | int | float | np.number | np.bool_) for kind in kinds)
    if column.dtype != object:
        types = pandas.api.types
        real = types.is_numeric_dtype(column.dtype) and not types.is_complex_dtype(column.dtype)
    if not real:
        got = ", ".join(sorted(kind.__name__ for kind in kinds)) or column.dtype
        raise DataError(
            f"frame: wanted numbers, booleans, strings or categories in the column {name!r}, got {got}; of a date "
            f"write the days, (frame[{name!r}] - frame[{name!r}].min()).dt.days, of anything else that names a class "
            f"frame[{name!r}].astype(str), or drop the column: frame.drop(columns=[{name!r}])"
        )
    return _numbers(column, seen, name), None


def _numbers(column: Any, seen: Any, name: Hashable) -> np.ndarray:
    numbers = np.full(len(column), np.nan)
    numbers[column.notna().to_numpy()] = seen.to_numpy(np.float64)
    infinite = np.isinf(numbers).nonzero()[0]
    if len(infinite):
        raise DataError(
            f"frame: the column {name!r} is infinite in {len(infinite)} rows, {listed(infinite.tolist())}; if these "
            "values are missing, write frame.replace([np.inf, -np.inf], np.nan)"
        )
    if (np.abs(numbers) >= WHOLE).any() and column.dtype.kind in "iuO":
        raise DataError(
            f"frame: the column {name!r} holds whole numbers from 2⁵³, which float64 cannot tell apart; if they name "
            f"things, write frame[{name!r}].astype(str), or drop the column: frame.drop(columns=[{name!r}])"
        )
    return numbers


def _codes(column: Any, values: tuple, pandas: Any) -> tuple[np.ndarray, tuple]:
    """Return the codes of the values, NaN where one is missing, and the values in the order of their codes."""
    codes = pandas.Categorical(column, categories=list(values)).codes.astype(np.float64)
    codes[codes < 0] = np.nan
    return codes, values


def _in_order(values: Any) -> tuple:
    """Return the values sorted; those of several types, which cannot be compared, by type and words."""
    try:
        return tuple(sorted(values))
    except TypeError:
        return tuple(sorted(values, key=lambda value: (type(value).__name__, str(value))))
