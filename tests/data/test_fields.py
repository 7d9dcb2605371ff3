"""Named fields of a split: what their names promise is checked, and rows keep together."""

import re

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_vae.data import Data, Split
from pyro_vae.data.fields import check_unmasked, checked_fields

COUNTS = np.array([[3, 0], [1, 7], [0, 2], [5, 5]])
TABLE = np.array([[0.5, np.nan], [1.0, 2.0], [-3.0, 0.0], [0.0, 1.0]])


def test_rows_of_all_fields_keep_together():
    split = Split(counts=COUNTS, labels=[0, 1, -1, 1], size=np.arange(4.0))
    for index in ([2, 0], np.array([False, True, True, False]), slice(None, None, -1), torch.tensor([3])):
        rows = np.arange(4)[index.numpy() if torch.is_tensor(index) else index]
        batch = split[index]
        assert batch.counts.tolist() == COUNTS[rows].tolist()
        assert batch.size.tolist() == rows.tolist()
        assert batch.labels.tolist() == np.array([0, 1, -1, 1])[rows].tolist()
    assert len(split) == 4
    assert split.images is None
    assert repr(split) == "Split(counts: 4 × 2, size: 4, labels: 4)"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "split: wanted at least one field, got none"),
        ({"counts": COUNTS, "size": np.ones(3)}, "size: wanted 4 rows, as many as counts has, got 3"),
        ({"counts": COUNTS - 1}, "counts: wanted whole numbers from 0, got -1"),
        ({"counts": COUNTS / 2}, r"counts: wanted whole numbers from 0, got 1\.5"),
        ({"counts": COUNTS * np.nan}, "counts: wanted whole numbers from 0, got nan"),
        ({"counts": COUNTS > 1}, "counts: wanted whole numbers from 0, got torch.bool"),
        (
            {"counts": np.ma.array(COUNTS, mask=COUNTS > 5)},
            r"masked array without 1 of them; .*write counts.filled\(0\)",
        ),
        ({"table": np.ma.array(TABLE, mask=TABLE > 1)}, r"if these are missing, write table.filled\(np.nan\)"),
        (
            {"size": np.ones(())},
            r"size: wanted one entry for each row, got torch.float64 of shape \(\); write size.reshape\(1\)",
        ),
        ({"labels": np.array(3)}, "labels: wanted 0, one a row, got int64 of shape"),
        ({"table": COUNTS}, "table: wanted floating-point numbers .*write table.double"),
        ({"table": TABLE[0]}, "table: wanted floating-point numbers"),
        ({"table": TABLE, "mask": np.ones((4, 1), bool)}, r"mask: wanted the shape \(4, 2\) of table, got \(4, 1\)"),
        ({"table": TABLE, "mask": np.ones((4, 2))}, "mask: wanted bool, .*write mask > 0"),
        ({"table": TABLE, "labels": [0, 1]}, "labels: wanted 4, one a row"),
        ({"table": TABLE, "labels": [0, 1, 2, -2]}, "labels: wanted whole numbers from 0, or −1 where unknown, got -2"),
        ({"table": TABLE, "labels": [-1, 1, 1, -1]}, r"got −1 and 1 alone; .*write \(labels \+ 1\) // 2"),
        ({"table": TABLE, "names": list("abcd")}, "names: wanted numbers, one entry for each row"),
        (
            {"table": torch.eye(4).to_sparse()},
            "table: wanted a dense tensor, got torch.sparse_coo; write table.to_dense",
        ),
        (
            {"size": torch.tensor(1.0)},
            "size: wanted one entry for each row, got .*; write size.reshape",
        ),
        ({"table": TABLE, "fields": np.ones(4)}, "fields: a split has an attribute of this name"),
    ],
)
def test_what_a_name_does_not_allow_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Split(**fields)


def test_a_mask_of_the_shape_of_a_field_is_kept():
    seen = ~np.isnan(TABLE)
    assert Split(table=TABLE, mask=seen).mask.tolist() == seen.tolist()


def test_a_split_cannot_be_changed_and_names_its_fields():
    split = Split(table=TABLE)
    with pytest.raises(AttributeError, match=r"make another one, Split\(..., table=...\)"):
        split.table = TABLE
    with pytest.raises(AttributeError, match="wanted one of its fields table, got counts"):
        _ = split.counts


def test_a_data_set_without_images_has_the_shape_of_its_rows():
    split = Split(counts=COUNTS, size=np.ones(4))
    data = Data("counts", split, split[:2], split[2:])
    assert data.shape == (2,)
    assert data.to("cpu").valid.counts.tolist() == COUNTS[:2].tolist()
    with pytest.raises(ValueError, match="valid: wanted the fields and row shapes of train"):
        Data("counts", split, Split(counts=COUNTS), split)
    with pytest.raises(ValueError, match=r"test: wanted at least one row of counts, .* got a split without counts"):
        Data("counts", split, split, Split(table=TABLE))


def test_a_label_without_a_name_is_refused():
    split = Split(table=TABLE, labels=[0, 1, -1, 2])
    assert Data("named", split, split, split, classes=("a", "b", "c")).classes == ("a", "b", "c")
    with pytest.raises(ValueError, match=r"0 to 1, a number for each of the 2 classes, got 2 in train"):
        Data("named", split, split, split, classes=("a", "b"))


def test_missing_labels_are_unknown_and_not_of_class_0():
    masked, gaps = np.ma.array([0, 1, 2], mask=[0, 1, 0]), pd.array([0, None, 2], dtype="Int64")
    to_numpy = "to_numpy(int, na_value=-1)"
    for labels, cure, filled in (
        (masked, "filled(-1)", masked.filled(-1)),
        (gaps, to_numpy, gaps.to_numpy(int, na_value=-1)),
    ):
        with pytest.raises(ValueError, match=re.escape(f"if these are unknown, write labels.{cure}")):
            checked_fields({"labels": labels})
        assert checked_fields({"labels": filled})["labels"].tolist() == [0, -1, 2]


@pytest.mark.parametrize("name", ["table", "counts", "size"])
def test_numbers_that_torch_does_not_have_are_refused_in_words(name):
    rows = np.eye(3, dtype=np.longdouble)
    with pytest.raises(ValueError, match=rf"{name}: wanted .*; write np\.asarray\({name}, np\.float64\)"):
        checked_fields({name: rows})
    assert checked_fields({name: np.asarray(rows, np.float64)})[name].dtype == torch.float64


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64])
def test_unsigned_numbers_are_compared_and_indexed_as_others(dtype):
    counts, size = COUNTS.astype(dtype), np.arange(4).astype(dtype)
    for split in (Split(counts=counts, size=size), Split(counts=torch.from_numpy(counts), size=torch.from_numpy(size))):
        batch = split[[3, 1]]
        assert batch.counts.tolist() == COUNTS[[3, 1]].tolist() and batch.size.tolist() == [3, 1]
        assert batch.counts.dtype == torch.int64


def test_labels_may_come_first():
    fields = checked_fields({"labels": [0, 1, -1, 1], "counts": COUNTS, "size": np.ones(4)})
    assert list(fields) == ["labels", "counts", "size"] and fields["counts"].tolist() == COUNTS.tolist()
    with pytest.raises(ValueError, match="counts: wanted 3 rows, as many as labels has, got 4"):
        checked_fields({"labels": [0, 1, 1], "counts": COUNTS})


def test_a_mask_of_the_field_that_is_scored_is_refused_and_no_other():
    fields = checked_fields({"counts": COUNTS, "table": TABLE[:, :1], "mask": np.ones((4, 1), bool)})
    check_unmasked(fields, "counts")
    check_unmasked({"counts": fields["counts"]}, "counts")
    with pytest.raises(ValueError, match=r"its mask says which table were seen, .* or Split\(table=...\) without"):
        check_unmasked(fields, "table")


def test_numbers_of_the_other_byte_order_keep_their_values():
    split = Split(table=TABLE.astype(">f8"), counts=COUNTS.astype(">i4"))
    np.testing.assert_array_equal(split.table.numpy(), TABLE)
    assert split.table.dtype == torch.float64 and split.counts.tolist() == COUNTS.tolist()
