"""Arrays in memory become a data set: any usual kind, given apart or as shares, or an error whose cure works."""

import logging

import numpy as np
import pytest
import torch

from pyro_vae.data import Data, DataWarning
from pyro_vae.data.arrays import check_columns, checked_splits, fields_of_splits

GREY = np.random.RandomState(0).randint(0, 256, (30, 8, 8)).astype(np.uint8)
GREY[:, 0, :2] = 0, 255
LABELS = np.arange(30) % 3


def all_rows(data, field="images"):
    return torch.cat([split.fields[field] for split in (data.train, data.valid, data.test)])


def test_shares_are_taken_by_the_documented_permutation():
    data = Data.from_arrays(GREY, valid=4, test=0.2, labels=LABELS, weight=np.arange(30.0), seed=5)
    order = np.random.RandomState(5).permutation(30)
    for split, rows in ((data.test, order[:6]), (data.valid, order[-4:]), (data.train, order[6:-4])):
        assert np.array_equal(split.images[:, 0], GREY[rows])
        assert split.labels.tolist() == LABELS[rows].tolist() and split.weight.tolist() == rows.tolist()


def test_splits_that_are_given_apart():
    labels = {"train": LABELS[:20], "valid": LABELS[20:25], "test": LABELS[25:]}
    data = Data.from_arrays(GREY[:20], GREY[20:25], GREY[25:], labels, classes=("a", "b", "c"))
    assert np.array_equal(all_rows(data)[:, 0], GREY) and all_rows(data, "labels").tolist() == LABELS.tolist()
    assert data.classes == ("a", "b", "c") and data.name == "arrays"
    half = Data.from_arrays(GREY[:25], test=GREY[25:], labels={"train": LABELS[:25], "test": LABELS[25:]})
    assert [len(split) for split in (half.train, half.valid, half.test)] == [23, 2, 5]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, torch.float32, torch.bfloat16, ">f4"])
def test_floats_become_the_nearest_level_and_it_is_said_once(dtype, caplog):
    levels = torch.from_numpy(GREY) / 255
    images = levels.to(dtype) if isinstance(dtype, torch.dtype) else levels.numpy().astype(dtype)
    data = Data.from_arrays(images, valid=0.2, layout=None)
    wanted = np.rint(np.asarray(images.float() if isinstance(dtype, torch.dtype) else images, np.float64) * 255)
    assert sorted(all_rows(data).flatten(1).tolist()) == sorted(wanted.reshape(30, 64).astype(int).tolist())
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "nearest of 256 grey levels, in train" in caplog.text


def test_large_arrays_are_converted_in_pieces(monkeypatch):
    monkeypatch.setattr("pyro_vae.data.levels.AT_ONCE", 200)
    data = Data.from_arrays(GREY / 255)
    assert sorted(all_rows(data).flatten(1).tolist()) == sorted(GREY.reshape(30, 64).tolist())


@pytest.mark.parametrize("as_tensor", [True, False])
@pytest.mark.parametrize("layout", [None, "NHWC"])
@pytest.mark.parametrize("channels", [1, 3])
def test_channels_in_the_last_axis_are_recognised(as_tensor, layout, channels, caplog):
    colours = np.stack([GREY, GREY[::-1], 255 - GREY][:channels], -1)
    data = Data.from_arrays(torch.from_numpy(colours) if as_tensor else colours, layout=layout)
    assert data.shape == (channels, 8, 8)
    wanted = np.moveaxis(colours, -1, 1).reshape(30, -1).tolist()
    assert sorted(all_rows(data).flatten(1).tolist()) == sorted(wanted)
    assert ("read as 8 × 8 pixels" in caplog.text) == (layout is None)


def test_channels_that_come_first_are_not_spoken_of(caplog):
    colours = np.stack([GREY] * 3, 1)
    assert Data.from_arrays(colours).shape == (3, 8, 8) and not caplog.records
    assert Data.from_arrays(np.stack([GREY] * 8, 1)[:, :, :, :4], layout="NCHW").shape == (8, 8, 4)


def test_a_shape_that_may_be_two_layouts_is_asked_about():
    images = np.stack([GREY] * 2, -1)
    with pytest.raises(ValueError, match='Write layout="NCHW" for the first, layout="NHWC" for the second'):
        Data.from_arrays(images)
    assert Data.from_arrays(images, layout="NHWC").shape == (2, 8, 8)


def test_a_mask_follows_the_layout_of_its_images():
    colours = np.stack([GREY] * 3, -1)
    data = Data.from_arrays(colours, mask=colours > 100)
    assert torch.equal(data.train.mask, data.train.images > 100)
    grey = Data.from_arrays(GREY, mask=torch.from_numpy(GREY > 100))
    assert torch.equal(grey.test.mask, grey.test.images > 100)


def test_counts_and_tables_without_images():
    counts, table = np.arange(60).reshape(30, 2), np.where(np.arange(60) % 7, np.arange(60.0), np.nan).reshape(30, 2)
    data = Data.from_arrays(counts=counts, table=table, batch=torch.arange(30), labels=LABELS.tolist())
    assert set(data.train.fields) == {"counts", "table", "batch", "labels"} and data.train.images is None
    for split in (data.train, data.valid, data.test):
        assert np.array_equal(split.counts, counts[split.batch])
        assert np.array_equal(split.table, table[split.batch], equal_nan=True)
    apart = Data.from_arrays(counts={"train": counts, "test": counts[:4]})
    assert np.array_equal(apart.test.counts, counts[:4]) and len(apart.train) == 27


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint16, ">i4", np.float32, torch.int32, torch.uint8])
def test_labels_of_any_whole_dtype(dtype):
    labels = LABELS % 2
    given = torch.from_numpy(labels).to(dtype) if isinstance(dtype, torch.dtype) else labels.astype(dtype)
    data = Data.from_arrays(GREY, labels=given)
    assert data.train.labels.dtype == torch.int64
    assert np.bincount(all_rows(data, "labels")).tolist() == [20, 10]


BAD = {
    "nothing": ({}, "train: wanted images or another field, got none"),
    "float above 1": (
        {"train": GREY.astype(np.float32)},
        "with numbers from 0 to 255; if 0 is black and 255 white, write",
    ),
    "sixteen levels": ({"train": GREY / GREY.max() * 16}, "from 0 to 16; if 0 is black and 16 white, write .* 16"),
    "float below 0": ({"train": GREY / 127.5 - 1}, "with numbers from -1 to 1; if -1 is black and 1 white, write"),
    "NaN": ({"train": np.where(GREY > 250, np.nan, GREY / 255)}, "some pixels are not finite; .* write"),
    "whole numbers": ({"train": GREY.astype(int)}, "got int64 of shape .* in train; if .* write"),
    "flat": ({"train": GREY.reshape(30, 64)}, r"got uint8 of shape \(30, 64\)"),
    "0 and 1": ({"train": (GREY > 99).astype(np.uint8)}, r"got only 0 and 1 in train; write 255 \* images"),
    "a list": ({"train": GREY.tolist()}, r"got a list; write np.array\(images\)"),
    "other lengths": ({"train": GREY, "counts": np.ones((29, 2), int)}, "counts: wanted 30 rows, as many as images"),
    "other labels": ({"train": GREY, "labels": LABELS[1:]}, "labels: wanted 30, one a row, got"),
    "a label without class": ({"train": GREY, "labels": LABELS, "classes": ("a", "b")}, "0 to 1, .* got 2 in"),
    "a label below −1": ({"train": GREY, "labels": LABELS - 2}, "wanted whole numbers from 0, or −1 where unknown"),
    "negative counts": ({"counts": LABELS - 1}, "counts: wanted whole numbers from 0, got -1"),
    "fractions": ({"counts": LABELS / 2}, "counts: wanted whole numbers from 0, got 0.5"),
    "fewer splits": ({"train": GREY, "test": GREY, "labels": LABELS}, "labels: .* labels={'train': ..., 'test': ...}"),
    "test alone": ({"test": GREY}, "train: wanted training images"),
    "another split": (
        {"counts": {"train": LABELS, "val": LABELS}},
        r"counts: wanted rows for train, .* \['train', 'val'\]",
    ),
    "another layout": ({"train": GREY, "layout": "HWC"}, "layout: wanted"),
    "no share": ({"train": GREY, "valid": 1.5}, "valid: wanted rows, a fraction"),
    "other shapes": ({"train": GREY, "test": GREY[:, :4]}, "test: wanted at least one image, of shape"),
    "mask": ({"train": GREY, "mask": GREY[:, :4] > 0}, "mask: wanted the shape"),
    "nothing seen": ({"table": np.full((30, 2), np.nan)}, "got none in column 0, column 1; drop them"),
    "infinite": ({"table": np.where(GREY[:, 0] > 200, np.inf, 1.0 + GREY[:, 0])}, "got infinite ones in column"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_meant_is_refused(case):
    arguments, message = BAD[case]
    with pytest.raises(ValueError, match=message) as refused:
        Data.from_arrays(**arguments)
    if case in ("float above 1", "float below 0", "whole numbers", "0 and 1"):
        cure = str(refused.value).rsplit("write ", 1)[1]
        images = eval(cure, {"images": arguments["train"], "np": np})
        wanted = 255 * (GREY > 99) if case == "0 and 1" else GREY
        assert sorted(all_rows(Data.from_arrays(images)).flatten(1).tolist()) == sorted(wanted.reshape(30, 64).tolist())


def test_a_column_of_one_value_and_a_class_that_was_never_trained_are_said():
    table = np.stack([np.arange(30.0), np.where(np.arange(30) % 2, 5.0, np.nan)], 1)
    with pytest.warns(DataWarning, match=r"table: all training rows have one value in column 1 \(5\)") as said:
        Data.from_arrays(table=table)
    assert said[0].filename == __file__
    with pytest.warns(DataWarning, match="labels: no training row is of the classes 2, which test has"):
        Data.from_arrays(GREY, test=GREY[:3], labels={"train": LABELS % 2, "test": LABELS[:3]})


def test_names_of_columns_stand_in_messages():
    with pytest.warns(DataWarning, match=r"one value in b \(1\)"):
        check_columns(torch.tensor([[1.0, 1.0], [2.0, 1.0]]), ["a", "b"])


PARTS = {"train": slice(0, 20), "valid": slice(20, 25), "test": slice(25, 30)}


@pytest.mark.parametrize("name", ["images", "counts", "table"])
def test_complete_splits_are_checked_as_arrays_are(name):
    rows = {"images": GREY[:, None], "counts": LABELS[:, None], "table": np.random.RandomState(1).randn(30, 2)}[name]
    splits = checked_splits({split: {name: rows[part], "labels": LABELS[part]} for split, part in PARTS.items()})
    for split, part in PARTS.items():
        assert np.array_equal(splits[split][name].squeeze(), rows[part].squeeze())
        assert splits[split]["labels"].tolist() == LABELS[part].tolist()


def test_complete_splits_of_binary_pictures_or_of_a_column_of_one_value_are_said():
    binary = (GREY[:, None] > 99).astype(np.uint8)
    with pytest.raises(ValueError, match=r"got only 0 and 1 in train, valid, test; write 255 \* images"):
        checked_splits({split: {"images": binary[part]} for split, part in PARTS.items()})
    alike = np.ones((30, 1))
    with pytest.warns(DataWarning, match=r"one value in column 0 \(1\)"):
        checked_splits({split: {"table": alike[part]} for split, part in PARTS.items()})


def test_a_tenth_of_the_rows_is_held_out_twice_unless_shares_are_given():
    of_30 = fields_of_splits({"counts": LABELS})
    assert {split: len(fields["counts"]) for split, fields in of_30.items()} == {"train": 24, "valid": 3, "test": 3}
    assert sorted(np.concatenate([fields["counts"] for fields in of_30.values()])) == sorted(LABELS)
