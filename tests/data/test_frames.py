"""Data frames become numeric tables, or an error whose cure works."""

import sys

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_vae
from pyro_vae.data import Data, DataWarning
from pyro_vae.data.frames import encoded
from pyro_vae.data.raw import DataError

COLUMNS = {
    "numbers": (pd.Series([1, 2, 3]), [1, 2, 3], None),
    "unsigned": (pd.Series([1, 2, 3], dtype="uint8"), [1, 2, 3], None),
    "missing numbers": (pd.Series([1.5, None, 3]), [1.5, np.nan, 3], None),
    "nullable": (pd.Series([1, None, 3], dtype="Int64"), [1, np.nan, 3], None),
    "booleans": (pd.Series([True, False, True]), [1, 0, 1], None),
    "missing booleans": (pd.Series([True, None, False]), [1, np.nan, 0], None),
    "nullable booleans": (pd.Series([True, None, False], dtype="boolean"), [1, np.nan, 0], None),
    "objects": (pd.Series([1, None, 2.5], dtype=object), [1, np.nan, 2.5], None),
    "nothing": (pd.Series([None, None, None], dtype=object), [np.nan] * 3, None),
    "strings": (pd.Series(["b", None, "a"]), [1, np.nan, 0], ("a", "b")),
    "string objects": (pd.Series(["b", None, "a"], dtype=object), [1, np.nan, 0], ("a", "b")),
    "categories": (pd.Series(pd.Categorical(["b", None, "a"], ["z", "b", "a"])), [1, np.nan, 0], ("a", "b", "z")),
    "ordered": (
        pd.Series(pd.Categorical(["low", "high", None], ["low", "mid", "high"], ordered=True)),
        [0, 2, np.nan],
        ("low", "mid", "high"),
    ),
    "categories of numbers": (pd.Series(pd.Categorical([10, 2, 10])), [1, 0, 1], (2, 10)),
    "categories of two types": (pd.Series(pd.Categorical(["a", 2, "a"])), [1, 0, 1], (2, "a")),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_columns_of_any_kind(kind):
    column, wanted, values = COLUMNS[kind]
    table, names, categories = encoded(pd.DataFrame({"first": [7.0, 8, 9], "column": column}))
    assert table.dtype == np.float64 and names == ("first", "column")
    assert np.array_equal(table, np.stack([[7, 8, 9], wanted], 1), equal_nan=True)
    assert categories == ({} if values is None else {"column": values})


def test_a_frame_with_an_index_and_names_of_its_own():
    frame = pd.DataFrame([[1, 2], [3, 4]], index=["x", "x"], columns=[5, ("a", "b")])
    table, names, _ = encoded(frame)
    assert names == (5, ("a", "b")) and np.array_equal(table, [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("frame", "message", "cure"),
    [
        (np.zeros((2, 2)), "wanted a pandas DataFrame, got ndarray; write", "pandas.DataFrame(frame)"),
        (pd.DataFrame({"a": []}), "got 0 × 1", None),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "the columns 'a' are in it twice", None),
        (
            pd.DataFrame({"a": [1.0, np.inf]}),
            "'a' is infinite in 1 rows, 1; ",
            "frame.replace([np.inf, -np.inf], np.nan)",
        ),
        (pd.DataFrame({"a": [2**53 + 1, 0]}), "whole numbers from 2⁵³", "frame.assign(a=frame['a'].astype(str))"),
        (
            pd.DataFrame({"a": pd.to_datetime(["2020-01-01", "2020-01-03"])}),
            "in the column 'a', got datetime64",
            "frame.assign(a=(frame['a'] - frame['a'].min()).dt.days)",
        ),
        (pd.DataFrame({"a": [[1], [2]]}), "got list", "frame.assign(a=frame['a'].astype(str))"),
        (pd.DataFrame({"a": ["x", 1]}), "got int, str", "frame.assign(a=frame['a'].astype(str))"),
        (pd.DataFrame({"a": [1j, 1]}), "got complex128", "frame.assign(b=1).drop(columns=['a'])"),
    ],
)
def test_what_is_no_table_has_a_cure(frame, message, cure):
    with pytest.raises(DataError, match=message):
        encoded(frame)
    if cure:
        table, _, _ = encoded(eval(cure, {"frame": frame, "pandas": pd, "np": np}))
        assert len(table) == 2


def test_without_pandas_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'pyro_vae\[data\]'"):
        encoded(None)


def test_a_frame_becomes_a_data_set():
    frame = pd.DataFrame(
        {"x": np.arange(40.0), "kind": [["cat", "dog", None][n % 3] for n in range(40)], "size": ["s", "l"] * 20}
    )
    data = Data.from_frame(frame, labels="kind", valid=5, seed=2)
    assert [len(split) for split in (data.train, data.valid, data.test)] == [31, 5, 4] and data.classes == (
        "cat",
        "dog",
    )
    for split in (data.train, data.valid, data.test):
        rows = split.table[:, 0].long()
        assert split.labels.tolist() == [[0, 1, -1][n % 3] for n in rows.tolist()]
        assert split.table[:, 1].tolist() == (1 - rows % 2).tolist() and split.table.dtype == torch.float64
    assert Data.from_frame(frame).shape == (3,)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_frames_in_place_of_shares_are_refused_with_a_cure(split):
    """The cure has the codes of one schema in all splits."""
    frame = pd.DataFrame({"x": np.arange(6.0), "kind": list("abcabc")})
    valid = test = frame[1:3]
    with pytest.raises(ValueError, match=f"^{split}: wanted a share of the rows of frame, .* DataFrame") as caught:
        Data.from_frame(frame, **{split: frame[:2]})
    first, second = str(caught.value).partition("write ")[2].split(", then ")
    schema = eval(first.removeprefix("schema = "), {"pyro_vae": pyro_vae, "frame": frame})
    data = eval(second, {"Data": Data, "schema": schema, "frame": frame, "valid": valid, "test": test})
    assert data.test.table.tolist() == [[1.0, 1.0], [2.0, 2.0]] and len(data.train) == 6


def test_columns_that_say_nothing_are_named():
    frame = pd.DataFrame({"x": np.arange(40.0), "gone": np.nan, "kind": 7})
    with pytest.raises(ValueError, match="got none in gone; drop it"):
        Data.from_frame(frame)
    with pytest.warns(DataWarning, match=r"one value in kind \(7\)"):
        Data.from_frame(frame.drop(columns="gone"))
    with pytest.raises(DataError, match="labels: wanted one of the columns x, gone, kind, got 'class'"):
        Data.from_frame(frame, labels="class")
