"""Schemas of tables as JSON."""

import json

import numpy as np
import pandas as pd
import pytest
from many_programs import FRAME

from pyro_vae.saved.schemas import described_schema, schema_of
from pyro_vae.tables import Schema

ALL = FRAME.assign(
    when=pd.Series(range(6), dtype="Int64"),
    often=pd.Series([True, False, None] * 2, dtype="boolean"),
    word=pd.Series(["a", "b", "c"] * 2, dtype="string"),
    level=pd.Categorical([1, 2, 3] * 2),
    short=np.arange(6, dtype=np.float32) ** 2,
)


def again(schema):
    return schema_of(json.loads(json.dumps(described_schema(schema))))


def test_a_schema_of_all_kinds_and_types_comes_back():
    schema = Schema.from_frame(ALL)
    assert again(schema) == schema
    assert {column.kind for column in schema.columns} == {"positive", "real", "count", "category", "ordinal", "binary"}
    rows = schema.encode(ALL)
    pd.testing.assert_frame_equal(again(schema).frame(rows), schema.frame(rows))


@pytest.mark.parametrize("name", [3, ("a", 1), True])
def test_names_that_are_no_words_come_back(name):
    schema = Schema.from_frame(FRAME[["height"]].set_axis(pd.Index([name], tupleize_cols=False), axis=1))
    assert again(schema).names == (name,)


def test_a_category_that_cannot_be_written_down_is_refused():
    frame = pd.DataFrame({"day": pd.Categorical(pd.to_datetime(["2020-01-01", "2020-01-02", "2020-01-03"]))})
    with pytest.raises(ValueError, match="column 'day': its name, its type category or a category of it cannot be"):
        described_schema(Schema.from_frame(frame))
