"""Frames become numbers and frames again, with the same names, types and categories."""

from dataclasses import FrozenInstanceError

import numpy as np
import pandas as pd
import pytest
import torch
from mixed_tables import mixed_frame
from pandas.testing import assert_frame_equal

from pyro_vae import DataError, DataWarning
from pyro_vae.data.frames import encoded
from pyro_vae.tables import Schema


def with_nan(frame):
    """The frame with NaN where a column of objects has None: pandas 2 keeps either, and warns if they are compared."""
    return frame.apply(lambda column: column.where(column.notna(), np.nan) if column.dtype == object else column)


def test_a_frame_comes_back_as_it_was():
    frame = with_nan(mixed_frame())
    schema = Schema.from_frame(frame)
    assert [column.kind for column in schema.columns] == [
        "real",
        "positive",
        "count",
        "binary",
        "binary",
        "category",
        "ordinal",
    ]
    table = schema.encode(frame)
    assert table.dtype == torch.float64
    assert_frame_equal(schema.frame(table), frame)
    shuffled = frame.sample(frac=1, random_state=0)
    assert_frame_equal(schema.frame(schema.encode(shuffled), shuffled.index), shuffled)
    assert_frame_equal(schema.frame(table.float()).drop(columns="height"), frame.drop(columns="height"))


def test_numbers_are_those_of_encoded_for_the_same_rows():
    frame = mixed_frame()
    np.testing.assert_array_equal(Schema.from_frame(frame).encode(frame).numpy(), encoded(frame)[0])


@pytest.mark.parametrize(
    "values",
    [
        pd.array([1, None, 3], "Int64"),
        pd.array([True, None, False], "boolean"),
        pd.array(["a", None, "b"], "string"),
        pd.Categorical(["z", "a", None], ["z", "a"]),
        np.array([1, 2, 3], np.int8),
        np.array([0.5, 2.0, 3.0], np.float32),
        ["b", None, "a"],
    ],
    ids=lambda values: str(getattr(values, "dtype", "words")),
)
def test_types_come_back(values):
    frame = pd.DataFrame({"a": values})
    schema = Schema.from_frame(frame)
    assert_frame_equal(schema.frame(schema.encode(frame)), with_nan(frame))


def test_codes_are_those_of_the_schema_in_any_rows():
    frame = mixed_frame()
    schema = Schema.from_frame(frame)
    few = frame[frame.eyes == "green"][::-1]
    assert set(schema.encode(few)[:, 5].tolist()) == {2.0}
    assert_frame_equal(schema.frame(schema.encode(few)), few.reset_index(drop=True))
    turned = schema.encode(few[few.columns[::-1]])
    torch.testing.assert_close(turned, schema.encode(few), equal_nan=True)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        (
            "visits",
            lambda visits: visits.astype(str),
            r"wanted count numbers, .* got '\d+'; write pandas.to_numeric\(fr",
        ),
        (
            "income",
            lambda income: income.astype(str).replace("nan", "?"),
            "wanted positive numbers, as in the schema, got",
        ),
        ("visits", pd.Categorical, "'visits': wanted count numbers, as in the schema, got"),
        (
            "member",
            lambda member: ["yes"] * len(member),
            r"wanted binary numbers, .* 'yes'; write frame\['member'\]\.astype\(object\)\.map\(\{'yes': True\}\), in",
        ),
    ],
)
def test_words_in_a_column_of_numbers_are_refused_and_get_no_codes(column, values, message):
    frame = mixed_frame()
    schema = Schema.from_frame(frame)
    with pytest.raises(DataError, match=message):
        schema.encode(frame.assign(**{column: values(frame[column])}))


def test_two_columns_of_one_name_are_refused_where_the_schema_knows_it():
    frame = mixed_frame()
    schema = Schema.from_frame(frame)
    with pytest.raises(DataError, match="the columns 'eyes' are in it twice; rename one of each"):
        schema.encode(pd.concat([frame, frame[["eyes"]]], axis=1))
    others = pd.concat([frame, pd.DataFrame(0, frame.index, ["other", "other"])], axis=1)
    with pytest.warns(DataWarning, match="no columns 'other'"):
        np.testing.assert_array_equal(schema.encode(others), schema.encode(frame))


@pytest.mark.parametrize("dtype", [object, "string", "category"])
@pytest.mark.parametrize(("true", "false"), [("True", "False"), ("yes", "no"), (" T", "f"), ("1", "0"), ("b", "a")])
def test_the_cure_of_words_in_a_column_of_booleans_is_right_also_of_missing_cells(true, false, dtype):
    booleans = pd.DataFrame({"b": [True, False, None] * 3, "n": np.arange(9.0)})
    schema = Schema.from_frame(booleans)
    frame = booleans.assign(b=pd.Series([true, false, None] * 3, dtype=dtype))
    with pytest.raises(DataError, match="wanted binary numbers") as caught:
        schema.encode(frame)
    cure = str(caught.value).partition("write ")[2].partition(", in which")[0]
    cured = frame.assign(b=eval(cure, {"frame": frame}))
    np.testing.assert_array_equal(schema.encode(cured), schema.encode(booleans))


def test_missing_cells_of_whole_numbers_and_booleans():
    schema = Schema.from_frame(mixed_frame())
    found = schema.frame(torch.full((2, len(schema)), torch.nan))
    assert found.isna().all(axis=None)
    assert str(found.visits.dtype) == "Int64"
    assert str(found.member.dtype) == "boolean"


def test_numbers_that_are_not_whole_stay_floats():
    frame = pd.DataFrame({"a": [-1, 0, 5]})
    assert Schema.from_frame(frame).frame(np.array([[0.25]])).a.tolist() == [0.25]


def test_an_empty_table_has_the_types():
    frame = mixed_frame()
    schema = Schema.from_frame(frame)
    assert schema.frame(torch.zeros(0, len(schema))).dtypes.equals(frame.dtypes)


def change(column, row, value):
    frame = mixed_frame().astype({"visits": float}) if column == "visits" else mixed_frame()
    if column == "grade":
        frame["grade"] = frame["grade"].astype(object)
    frame.loc[row, column] = value
    return frame


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("eyes", "red", "'eyes': wanted the categories 'blue', 'brown', 'green', got 'red'"),
        ("grade", "best", "'grade': wanted the categories 'low', 'middle', 'high', got 'best'"),
        ("visits", -1, "'visits': a count column wants whole numbers from 0, got -1"),
        ("visits", 0.5, "'visits': a count column wants whole numbers"),
        ("income", 0.0, "'income': a positive column wants numbers above 0, got 0"),
        ("height", np.inf, "'height' is infinite"),
    ],
)
def test_values_that_the_schema_does_not_allow(column, value, message):
    schema = Schema.from_frame(mixed_frame())
    with pytest.raises(DataError, match=message):
        schema.encode(change(column, 7, value))


def test_numbers_that_are_no_level():
    schema = Schema.from_frame(pd.DataFrame({"a": [0.0, 3.3, 4.6]}), {"a": "ordinal"})
    with pytest.raises(DataError, match=r"'a': wanted one of the levels 0, 3\.3, 4\.6, got 1"):
        schema.encode(pd.DataFrame({"a": [1.0, 3.3]}))
    with pytest.raises(ValueError, match=r"wanted levels of the column 'a', 0 to 4\.6, got 1"):
        schema.frame(torch.ones(2, 1))


def test_columns_that_are_not_there_or_not_known():
    frame = mixed_frame()
    schema = Schema.from_frame(frame)
    lacking = frame.drop(columns=["eyes", "visits"])
    with pytest.raises(DataError, match="got none named 'visits', 'eyes'"):
        schema.encode(lacking)
    lacking["visits"], lacking["eyes"] = np.nan, np.nan
    assert schema.encode(lacking)[:, [2, 5]].isnan().all()
    with pytest.warns(DataWarning, match="no columns 'more'"):
        assert schema.encode(frame.assign(more=1)).shape == (60, 7)
    with pytest.raises(ValueError, match=r"wanted rows \(N, 7\), a number for each column, got \(3, 60, 7\)"):
        schema.frame(torch.zeros(3, 60, 7))


def test_a_schema_does_not_change():
    schema = Schema.from_frame(mixed_frame())
    with pytest.raises(FrozenInstanceError):
        schema.columns = ()


def test_what_is_said():
    said = str(Schema.from_frame(mixed_frame())).splitlines()
    assert said[0] == "7 columns, from 60 rows"
    assert said[5].split() == ["smokes", "binary", "'no',", "'yes'"]
    assert said[6].startswith("  eyes    category  3 levels: 'blue', 'brown', 'green'; 3.3% missing")
