"""Items of torch's data sets become rows of one shape."""

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_vae.data.items import ItemReader
from pyro_vae.data.raw import DataError

GREY = np.random.RandomState(0).randint(0, 256, (6, 8)).astype(np.uint8)
COLOURS = np.stack([GREY, GREY[::-1], 255 - GREY], -1)


@pytest.mark.parametrize(
    ("image", "wanted"),
    [
        (GREY, GREY[None]),
        (torch.from_numpy(GREY)[None] / 255, GREY[None]),
        ((torch.from_numpy(GREY // 255)[None]).bfloat16(), GREY[None] // 255 * 255),
        (Image.fromarray(COLOURS), np.moveaxis(COLOURS, -1, 0)),
        (COLOURS, np.moveaxis(COLOURS, -1, 0)),
        (np.moveaxis(COLOURS, -1, 0), np.moveaxis(COLOURS, -1, 0)),
    ],
)
def test_images_become_grey_levels_with_the_channels_first(image, wanted):
    row = ItemReader(("images", "labels")).row((image, 3), 0)
    assert np.array_equal(row["images"], wanted) and row["images"].dtype == np.uint8
    assert row["labels"] == 3 and row["labels"].dtype == np.int64


def test_a_layout_that_is_asked_for():
    image = np.zeros((6, 5, 2), np.uint8)
    assert ItemReader(("images",), "NHWC").row(image, 0)["images"].shape == (2, 6, 5)
    assert ItemReader(("images",), "NCHW").row(image, 0)["images"].shape == (6, 5, 2)


def test_the_byte_order_is_that_of_the_machine():
    row = ItemReader(("table",)).row(np.arange(3, dtype=">f4"), 0)["table"]
    assert row.dtype == np.float32 and row.tolist() == [0, 1, 2]


def test_the_first_row_is_the_measure():
    reader = ItemReader(("images", "labels"))
    reader.row((GREY, 1), 0)
    with pytest.raises(DataError, match=r"row 4: wanted images: uint8 of shape \(1, 6, 8\), labels: int64"):
        reader.row(GREY, 4)


def test_other_images_and_other_labels_have_other_cures():
    reader = ItemReader(("images", "labels"))
    reader.row((GREY, 1), 0)
    with pytest.raises(DataError, match=r"row 1: .*; a transform to one size"):
        reader.row((GREY[1:], 1), 1)
    with pytest.raises(
        DataError, match=r"row 1: .*labels: float64.*; give all rows the same fields, each of one dtype"
    ):
        reader.row((GREY, 1.5), 1)
    for item in (GREY, None), {"image": GREY, "target": None}:
        with pytest.raises(DataError, match="row 1: wanted a label, got None; give −1 where the class is unknown"):
            reader.row(item, 1)


def test_rounding_is_said_once(caplog):
    reader = ItemReader(("images",))
    for number in range(3):
        reader.row(GREY / 255, number)
    assert [record.getMessage() for record in caplog.records] == [
        "images: floating-point numbers in [0, 1] are stored as the nearest of 256 grey levels, in all rows"
    ]
