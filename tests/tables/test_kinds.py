"""Kinds are recognised from values; a kind that a column cannot be is refused with a cure that works."""

import numpy as np
import pandas as pd
import pytest

from pyro_vae import DataError
from pyro_vae.tables import KINDS, Schema
from pyro_vae.tables.kinds import check_support, checked_kinds, recognised

WORDS = ["low", "high", "middle"] * 10


def kind_of(values, **kinds):
    return Schema.from_frame(pd.DataFrame({"a": values}), kinds).columns[0].kind


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0.5, -1.5, 2.7], "real"),
        ([0.5, 1.5, 2.7], "positive"),
        ([0, 3, 1], "count"),
        ([0.0, 3.0, 1.0, np.nan], "count"),  # missing cells made floats of whole numbers
        ([0.0, 3.0, 1.0], "real"),
        ([-1, 3, 1], "real"),
        ([True, False, True], "binary"),
        ([1, 2, 2], "binary"),
        ([0.5, 1.5] * 20, "binary"),
        (["yes", "no", None], "binary"),
        (WORDS, "category"),
        (pd.Categorical(WORDS), "category"),
        (pd.Categorical(WORDS, ["low", "middle", "high"], ordered=True), "ordinal"),
        ([0.0, 3.3, 4.6] * 20, "ordinal"),
        (pd.array([1, None, 3, 0], "Int64"), "count"),
        (pd.array([True, None, False], "boolean"), "binary"),
        (pd.array(["a", None, "b"], "string"), "binary"),
    ],
)
def test_recognised(values, kind):
    assert kind_of(values) == kind


@pytest.mark.parametrize(("levels", "rows", "kind"), [(32, 20, "ordinal"), (33, 20, "real"), (32, 19, "real")])
def test_many_rows_on_few_values_are_levels(levels, rows, kind):
    assert kind_of(np.repeat(np.arange(levels) / 3 - 1, rows)) == kind


def test_a_kind_given_by_name_counts():
    assert kind_of([0.5, 1.5, 2.7], a="real") == "real"
    assert kind_of([1, 2, 3], a="ordinal") == "ordinal"
    assert kind_of([1, 2, 3], a="positive") == "positive"
    assert recognised(np.array([1.0, 2.0, 3.0]), words=0, ordered=False, whole=True) == "count"


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ([-1, 2, 3], "count", "'a': a count column wants whole numbers from 0, got -1 .* in 1 of the 3 rows"),
        ([0.5, 2, 3], "count", "got 0.5"),
        ([0, 2, 3], "positive", "'a': a positive column wants numbers above 0, got 0"),
        (WORDS, "real", "wants numbers, got 3 categories; give it the kind 'category'"),
        (WORDS, "ordinal", "wants an order of its 3 categories"),
        ([1, 2, 3], "binary", "wants two values, got 3"),
        ([*range(300)], "category", "at most 256 of them, got 300"),
        ([2.5, 2.5, None], None, "wanted two values at least, got 2.5 in each of the 2 rows"),
        (["a", "a", None], None, "wanted two values at least"),
        ([None, None], None, "all of its cells are missing"),
        (pd.Categorical([None, None], ["x", "y"]), None, "all of its cells are missing"),
    ],
)
def test_impossible_columns_are_refused(values, kind, message):
    with pytest.raises(DataError, match=message):
        kind_of(values, **({"a": kind} if kind else {}))


def test_the_cures_work():
    frame = pd.DataFrame({"a": WORDS, "b": [1.0, -2.0, 3.0] * 10, "c": 1.0})
    frame = frame.drop(columns=["c"])
    frame["a"] = pd.Categorical(frame["a"], categories=["low", "middle", "high"], ordered=True)
    assert Schema.from_frame(frame, kinds={"b": "real"}).columns[0].kind == "ordinal"


def test_unknown_names_and_kinds_are_refused():
    with pytest.raises(ValueError, match="wanted names of columns, 'a', got 'b'"):
        kind_of([1, 2, 3], b="real")
    with pytest.raises(ValueError, match="wanted real, positive, count, binary, category or ordinal for 'a'"):
        kind_of([1, 2, 3], a="number")
    assert checked_kinds(None, ("a",)) == {}


def test_support_of_kinds_without_a_bound():
    for kind in set(KINDS) - {"positive", "count"}:
        check_support("a", kind, np.array([-1.5, 2.0]))
