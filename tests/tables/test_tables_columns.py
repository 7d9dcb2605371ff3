"""The statistics of columns are those of NumPy; what needs a look is said."""

import numpy as np
import pandas as pd
import pytest
from mixed_tables import mixed_frame

from pyro_vae import DataError, DataWarning
from pyro_vae.tables import Column, Schema


def column(values, **kinds):
    return Schema.from_frame(pd.DataFrame({"a": values}), kinds).columns[0]


def test_statistics_of_each_kind():
    frame = mixed_frame()
    found = {column.name: column for column in Schema.from_frame(frame).columns}
    assert found["height"].loc == pytest.approx(frame.height.mean())
    assert found["height"].scale == pytest.approx(frame.height.std(ddof=0))
    assert found["income"].loc == pytest.approx(np.log(frame.income.astype(float)).mean())
    assert found["visits"].loc == pytest.approx(np.log(frame.visits.mean()))
    assert found["eyes"].categories == ("blue", "brown", "green")
    assert found["eyes"].levels == (0.0, 1.0, 2.0)
    assert found["eyes"].missing == pytest.approx(2 / 60)
    blue = (frame.eyes == "blue").sum()
    assert found["eyes"].shares[0] == pytest.approx((blue + 0.5) / (58 + 1.5))
    assert found["grade"].categories == ("low", "middle", "high")


@pytest.mark.parametrize("kind", ["real", "positive", "count", "ordinal"])
def test_the_typical_value_lies_in_the_support(kind):
    values = {"real": [-1.0, 2.0, 4.0], "positive": [0.5, 1.0, 7.0]}.get(kind, [0, 1, 5])
    typical = column(values, a=kind).typical
    assert typical > 0 if kind == "positive" else typical in (0.0, pytest.approx(5 / 3))


def test_a_category_that_no_row_has_keeps_a_share():
    found = column(pd.Categorical(["a", "b", "a"], ["a", "b", "c"]))
    assert found.shares == pytest.approx((2.5 / 4.5, 1.5 / 4.5, 0.5 / 4.5))


@pytest.mark.parametrize(
    ("values", "kind", "said"),
    [
        ([0.0, 2.0, 4.0], "real", "mean 2, standard deviation 1.633"),
        ([1.0, np.e**2], "positive", "geometric mean 2.718, standard deviation of ln x 1"),
        ([0, 1, 5], "count", "mean 2"),
        ([1, 2, 2], "binary", "1, 2"),
        (["yes", "no", None], "binary", "'no', 'yes'; 33.3% missing"),
        ([0.0, 3.3, 4.6], "ordinal", "3 levels: 0, 3.3, 4.6"),
        (list("edcba"), "category", "5 levels: 'a', 'b', 'c', 'd', …"),
        (list("dcba"), "category", "4 levels: 'a', 'b', 'c', 'd'"),
    ],
)
def test_a_column_is_printed_by_its_kind(values, kind, said):
    assert str(column(values, a=kind)) == said


def test_a_column_of_a_user_is_standard_and_complete():
    assert str(Column("a", "real", np.dtype(float))) == "mean 0, standard deviation 1"


def test_a_spike_is_said():
    values = np.r_[np.zeros(50), np.random.default_rng(0).normal(size=50)]
    said = "50% of its rows hold 0, where a density has no limit but that of the family"
    assert f"{said}; the kind 'ordinal' would score masses" in str(column(values))
    assert str(column(values, a="real")).endswith(said)  # it was chosen
    assert "no limit" not in str(column(values[50:]))


def test_more_digits_than_float32_has_warn():
    seconds = 1.7e9 + np.arange(50) + 0.5
    with pytest.warns(DataWarning, match="'a': its values differ by .* subtract a constant"):
        column(seconds)
    frame = pd.DataFrame({"a": seconds})
    frame["a"] -= frame["a"].min()
    Schema.from_frame(frame)
    with pytest.warns(DataWarning, match="float32"):
        column([1e6, 1e6 + 1, 1e6 + 2] * 25, a="ordinal")


def test_statistics_of_the_training_rows_and_levels_of_all():
    frame = pd.DataFrame({"a": [1.0, 2.0, 4.0, 90.0], "b": ["x", "y", "x", "z"]})
    a, b = Schema.from_frame(frame, {"a": "real"}, rows=slice(3)).columns
    assert a.loc == pytest.approx(7 / 3)
    assert b.categories == ("x", "y", "z")
    assert b.shares == pytest.approx((2.5 / 4.5, 1.5 / 4.5, 0.5 / 4.5))
    mask = np.array([True, True, True, False])
    assert Schema.from_frame(frame, {"a": "real"}, rows=mask) == Schema.from_frame(frame, {"a": "real"}, rows=[0, 1, 2])
    with pytest.raises(DataError, match="'b': wanted two values at least, got 0 in each of the 2 rows"):
        Schema.from_frame(frame, {"a": "real"}, rows=[0, 2])
