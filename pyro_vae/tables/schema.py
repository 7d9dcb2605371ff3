"""The columns of a table, from a pandas frame; frames become numbers by it, and numbers frames."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data import DataError, DataWarning
from pyro_vae.data.frames import check_once, encoded, imported
from pyro_vae.distributions.rows import NEAR
from pyro_vae.errors import warn
from pyro_vae.tables.columns import Column, column_of, nearest
from pyro_vae.tables.kinds import check_support, checked_kinds

TRUE, FALSE = ("true", "t", "yes", "y", "on", "1", "1.0"), ("false", "f", "no", "n", "off", "0", "0.0")


@dataclass(frozen=True)
class Schema:
    """The columns of a table: their kinds, levels and statistics. ``str(schema)`` says them, a line a column.

    >>> import pandas as pd
    >>> frame = pd.DataFrame({"age": [31.5, 47.0, None], "visits": [0, 2, 1], "eyes": ["green", "blue", "brown"]})
    >>> schema = Schema.from_frame(frame)
    >>> print(schema)
    3 columns, from 3 rows
      age     positive  geometric mean 38.48, standard deviation of ln x 0.2; 33.3% missing
      visits  count     mean 1
      eyes    category  3 levels: 'blue', 'brown', 'green'
    >>> schema.encode(frame)
    tensor([[31.5000,  0.0000,  2.0000],
            [47.0000,  2.0000,  0.0000],
            [    nan,  1.0000,  1.0000]], dtype=torch.float64)
    >>> schema.frame(schema.encode(frame)).equals(frame)
    True
    """

    columns: tuple[Column, ...]
    rows: int

    @classmethod
    def from_frame(cls, frame: Any, kinds: Mapping[Any, str] | None = None, rows: Any = None) -> "Schema":
        """Return the schema of a frame. Kinds, categories and levels are those of all rows.

        Statistics are taken of ``rows``, those of the training: a slice, row numbers or a mask; by default all.

        The kinds are recognised: booleans, and columns of two values, are binary. Words and categoricals are
        categories, or ordinal if the categorical is ordered. Whole numbers from 0 are counts. Floats of few values,
        each in many rows, are ordinal; floats above 0 are positive; all other numbers are real. ``kinds`` gives the
        kind of a column by its name where this is not what it is: {"grade": "ordinal"}.

        Raises DataError for a column that is all missing, has one value or cannot be of its kind, and for what
        ``data.frames.encoded`` refuses; ValueError for an unknown name or kind.
        """
        table, names, categories = encoded(frame)
        kinds, rows = checked_kinds(kinds, names), slice(None) if rows is None else rows
        columns = (
            column_of(name, table[:, i], frame.iloc[:, i], categories.get(name, ()), kinds.get(name), rows)
            for i, name in enumerate(names)
        )
        return cls(tuple(columns), len(table[rows]))

    def __len__(self) -> int:
        """Return D, the number of columns."""
        return len(self.columns)

    def __str__(self) -> str:
        """Return a line for each column: name, kind, values."""
        names = [str(column.name) for column in self.columns]
        width, kinds = max(map(len, names)), max(len(column.kind) for column in self.columns)
        lines = [f"  {name:{width}}  {column.kind:{kinds}}  {column}" for name, column in zip(names, self.columns)]
        return "\n".join([f"{len(self)} columns, from {self.rows:,} rows", *lines])

    @property
    def names(self) -> tuple[Hashable, ...]:
        """The names of the columns, in their order."""
        return tuple(column.name for column in self.columns)

    def encode(self, frame: Any) -> Tensor:
        """Return any frame with these columns as a table, float64 (N, D): the field ``table`` of a split.

        Words are the codes of this schema, in whichever rows they occur. Columns may come in another order, and those
        that the schema does not know are left out with a warning. Raises DataError for a column that is not there, a
        category that the schema does not know, words in a column of numbers, numbers outside the support of their
        column, and two columns of one name.
        """
        pandas = imported()
        lacking = [name for name in self.names if name not in frame.columns]
        if lacking:
            raise DataError(
                f"frame: wanted the columns {', '.join(map(repr, self.names))}, got none named "
                f"{', '.join(map(repr, lacking))}; where a column was not measured write frame[{lacking[0]!r}] = nan"
            )
        check_once([name for name in frame.columns if name in self.names])
        unknown = [name for name in frame.columns if name not in self.names]
        if unknown:
            warn(f"frame: the schema has no columns {', '.join(map(repr, unknown))}; they are left out", DataWarning)
        known = frame[list(self.names)].copy()
        for column in self.columns:
            known[column.name] = _as_coded(column, known[column.name], pandas)
        table, _, coded = encoded(known)
        for column, values in zip(self.columns, table.T):
            if column.name in coded and not column.categories:
                raise _words_for_numbers(column, coded[column.name])
            _check_values(column, values)
        return torch.from_numpy(table)

    def frame(self, x: Tensor | np.ndarray, index: Any = None) -> Any:
        """Return rows x (N, D), such as samples, as a pandas frame with the names, types and categories of the columns.

        ``index``: the labels of the rows, by default 0 to N − 1. Where the rows are those of another frame, give
        ``other.index``, by which pandas then joins the two: ``other.fillna(schema.frame(found.x, other.index))``.
        A NaN is a missing cell. Whole numbers and booleans with missing cells get the types Int64 and boolean. Numbers
        that are not whole, in a column whose type is, stay floats. Raises ValueError for another shape, and for a
        number that is no level of its column.
        """
        pandas = imported()
        rows = x.detach().double().cpu().numpy() if torch.is_tensor(x) else np.asarray(x, np.float64)
        if rows.ndim != 2 or rows.shape[1] != len(self):
            raise ValueError(
                f"x: wanted rows (N, {len(self)}), a number for each column, got {rows.shape}; of K draws a row, write "
                "x.flatten(0, -2)"
            )
        series = [_decoded(column, values, pandas) for column, values in zip(self.columns, rows.T)]
        frame = pandas.concat(series, axis=1)
        frame.columns = pandas.Index(list(self.names))
        return frame if index is None else frame.set_axis(index, axis=0)


def _as_coded(column: Column, series: Any, pandas: Any) -> Any:
    """Return a column of words as a categorical in the order of the schema's codes; other columns as they are."""
    if not column.categories:
        if series.isna().all():
            return series.astype("float64")
        return series
    strange = [value for value in series.dropna().unique().tolist() if value not in column.categories]
    if strange:
        raise DataError(
            f"column {column.name!r}: wanted the categories {', '.join(map(repr, column.categories[:10]))}"
            f"{', …' if len(column.categories) > 10 else ''}, got {strange[0]!r}; write NaN in these rows, or make the "
            f"schema from rows that hold it, or declare it there: pandas.Categorical(frame[{column.name!r}], "
            f"categories=[…, {strange[0]!r}])"
        )
    return pandas.Series(
        pandas.Categorical(series, categories=list(column.categories), ordered=True), index=series.index
    )


def _words_for_numbers(column: Column, words: Sequence[Any]) -> DataError:
    """Return the error for words or categories in a column of numbers, which would get codes of their own."""
    here, got = f"frame[{column.name!r}]", words[0]
    cure = f"write pandas.to_numeric({here}, errors='coerce'), NaN where a word is no number"
    if column.dtype.kind == "b":
        cure = f"write {here}.astype(object).map({_truths(words)}), in which a word that is left out becomes NaN"
    return DataError(f"column {column.name!r}: wanted {column.kind} numbers, as in the schema, got {got!r}; {cure}")


def _truths(words: Sequence[Any]) -> dict[Any, bool]:
    """Return what is true of these words; of words that do not tell, sorted, the last one is, as 1 is of 0 and 1.

    >>> _truths(["False", "True"]), _truths(["no", "unknown", "yes"]), _truths(["left", "right"])
    ({'False': False, 'True': True}, {'no': False, 'yes': True}, {'left': False, 'right': True})
    """
    truths = {word: str(word).strip().lower() for word in words}
    known = {word: truth in TRUE for word, truth in truths.items() if truth in TRUE + FALSE}
    return known or {words[0]: False, words[-1]: True}


def _check_values(column: Column, values: np.ndarray) -> None:
    seen = values[~np.isnan(values)]
    if not column.levels:
        check_support(column.name, column.kind, seen)
        return
    strange = seen[_codes(column, seen) < 0]
    if len(strange):
        levels = ", ".join(f"{level:g}" for level in column.levels[:10]) + (", …" if len(column.levels) > 10 else "")
        raise DataError(
            f"column {column.name!r}: wanted one of the levels {levels}, got {strange[0]:g} (in {len(strange)} rows); "
            "write NaN in these rows, make the schema from rows that hold it, or give the column the kind 'real'"
        )


def _codes(column: Column, values: np.ndarray) -> np.ndarray:
    """Return the numbers of the levels, −1 where a value is none of them."""
    levels = np.array(column.levels)
    codes = nearest(levels, values)
    near = np.abs(values - levels[codes]) <= NEAR * np.diff(levels).min()
    return np.where(near, codes, -1)


def _decoded(column: Column, values: np.ndarray, pandas: Any) -> Any:
    missing = np.isnan(values)
    if column.levels:
        codes = np.where(missing, -1, _codes(column, np.where(missing, column.levels[0], values)))
        strange = values[(codes < 0) & ~missing]
        if len(strange):
            raise ValueError(
                f"x: wanted levels of the column {column.name!r}, {column.levels[0]:g} to {column.levels[-1]:g}, got "
                f"{strange[0]:g}; give samples, or most probable values, not means over particles"
            )
        if column.categories:
            words = pandas.Categorical.from_codes(codes, categories=list(column.categories))
            return pandas.Series(words.astype(object)).astype(column.dtype)
        values = np.where(missing, np.nan, np.array(column.levels)[codes])
    series, dtype = pandas.Series(values), column.dtype
    whole = dtype.kind in "iub"
    if whole and not (values[~missing] == np.round(values[~missing])).all():
        return series
    if whole and missing.any():
        return series.astype("boolean" if dtype.kind == "b" else "Int64")
    return series.astype(dtype)
