"""Raw images and labels in memory: those of another kind are refused or pointed out, and the cure works."""

import warnings

import grey
import numpy as np
import pytest
import torch
from cures import code_in, cured
from grey import GREY, TENSOR, cured_by, in_memory, read_only

from pyro_vae.data import DataWarning
from pyro_vae.data import sets as D


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (GREY, GREY),
        (np.asfortranarray(GREY), GREY),
        (GREY[::-1], GREY[::-1]),
        (read_only(GREY), GREY),
        (TENSOR[::2], GREY[::2]),
        (TENSOR[:1].expand(5, 3, 8, 8), np.tile(GREY[:1], (5, 3, 1, 1))),
        (torch.from_numpy(np.moveaxis(GREY, 1, -1).copy()).permute(0, 3, 1, 2), GREY),
    ],
)
def test_images_of_any_layout_in_memory_are_contiguous_tensors(given, wanted):
    images = D.Split(given).images
    assert images.is_contiguous() and images.dtype == torch.uint8 and np.array_equal(images, wanted)


@pytest.mark.parametrize(
    "given",
    [
        GREY[:, 0],
        GREY.reshape(30, 64),
        GREY.tolist(),
        list(GREY),
        GREY / 255,
        (GREY / 255).astype(np.float32),
        GREY / 127.5 - 1,
        GREY.astype(np.float64),
        GREY.astype(np.int64),
        GREY.astype(np.uint16) * 257,
        (GREY / 255)[:, 0],
        TENSOR[:, 0],
        TENSOR.reshape(30, 64),
        TENSOR / 255,
        TENSOR / 127.5 - 1,
        TENSOR.long(),
        TENSOR.double()[:, 0],
        TENSOR / 255 * 1.0000001,
    ],
)
def test_images_of_another_kind_are_refused_and_the_cure_works(given):
    with pytest.raises(ValueError, match=r"images: wanted a uint8 tensor \(N, C, H, W\), got .*write "):
        D.Split(given)
    assert np.array_equal(cured(D.Split, given, "images").images, GREY)


def test_masks_and_pixels_that_are_no_numbers():
    mask = GREY > 127
    for given in (mask, torch.from_numpy(mask), mask.astype(np.float32), torch.from_numpy(mask).double()):
        assert np.array_equal(cured(D.Split, given, "images").images, 255 * mask)
    for module in (torch.from_numpy, np.asarray):
        split = cured(D.Split, module(np.where(GREY > 250, np.nan, GREY / 255)), "images")
        assert np.array_equal(split.images, np.where(GREY > 250, 0, GREY))
    for given in (GREY[0, 0, 0], GREY[None], np.zeros((0, 8, 8)), GREY.astype(complex), GREY.astype(str)):
        with pytest.raises(ValueError, match=r"images: wanted a uint8 .* make it again, as numbers of this shape"):
            D.Split(given)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32, ">i4", np.uint64, np.float16, np.float64, np.longdouble])
def test_labels_that_are_whole_numbers_are_taken(dtype):
    labels = np.array([1, 0, 1], dtype)
    assert D.Split(GREY[:3], labels).labels.dtype == torch.int64
    for given in (labels, labels[::-1], list(labels), torch.tensor(labels.astype(float)), read_only(labels)):
        assert D.Split(GREY[:3], given).labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("labels", "got"),
    [
        ([0.0, 0.9, 1.0], r"0\.9"),
        ([0.0, np.nan, 1.0], "nan"),
        ([0.0, np.inf, 1.0], "inf"),
        ([3, -2, 4], "-2"),
        ([0.0, 1e30, 2.0], r"1e\+30"),
        (["a", "c", "b"], "'a'"),
        (np.array(["a", "c", "b"], object), "'a'"),
        (np.array([0, 2**63 + 5, 1], np.uint64), "9223372036854775813"),
        (torch.tensor([0.0, 0.9, 1.0]).bfloat16(), r"0\.8984375"),
    ],
)
def test_labels_that_are_no_classes_are_refused_and_the_cure_works(labels, got):
    with pytest.raises(ValueError, match=f"labels: wanted whole numbers from 0, .*, got {got}") as refused:
        D.Split(GREY[:3], labels)
    labels = labels.float() if isinstance(labels, torch.Tensor) else labels
    code, classes = code_in(refused.value).split(", classes being ")
    assert classes == "np.unique of the labels of all splits"
    numbers = eval(code, {"np": np, "labels": labels, "classes": np.unique(labels)})
    unknown = np.asarray([label != label for label in np.asarray(labels).tolist()])  # NaN
    wanted = np.where(unknown, -1, np.argsort(np.argsort(np.asarray(labels)))).tolist()
    assert D.Split(GREY[:3], numbers).labels.tolist() == wanted


def test_labels_in_another_shape_are_refused_and_the_cure_works():
    for labels in (np.arange(30)[:, None], np.eye(30), torch.eye(30), torch.arange(30)[:, None], torch.eye(30).bool()):
        with pytest.raises(ValueError, match=r"labels: wanted 30, one a row, got \[30, "):
            D.Split(GREY, labels)
        split = cured(lambda given: D.Split(GREY, given), labels, "labels")
        assert split.labels.tolist() == list(range(30))
    for labels in (np.arange(29), np.zeros((30, 2)), np.int64(3), []):
        with pytest.raises(ValueError, match=r"labels: wanted 30, one a row.*; give as many labels as rows"):
            D.Split(GREY, labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[1], [2, 3], *range(28)], "got a list of rows of different lengths; give one number for each row"),
        ((n for n in range(30)), "got a generator; give as many labels as rows, in a list, an array or a tensor"),
        (set(range(30)), "got a set; give"),
        ([None] * 30, "wanted whole numbers from 0, or −1 where unknown, got None"),
    ],
)
def test_labels_that_are_no_numbers_are_named(labels, message):
    with pytest.raises(ValueError, match=f"labels: .*{message}"):
        D.Split(GREY, labels)


def test_values_that_are_not_there_are_not_made_up():
    """A masked array holds values behind its mask; a sparse tensor stands for zeros that it does not hold."""
    masked, few = np.ma.masked_array(GREY, GREY > 100), np.where(GREY > 100, 0, GREY)
    for given, words in ((masked, "a masked array without"), (torch.from_numpy(few).to_sparse(), "torch.sparse_coo")):
        with pytest.raises(ValueError, match=f"images: wanted .* got {words}"):
            D.Split(given)
        assert np.array_equal(cured(D.Split, given, "images").images, few)
    with pytest.raises(ValueError, match="labels: wanted all values, got a masked array without 1 of them"):
        D.Split(GREY, np.ma.masked_array(np.arange(30), np.arange(30) == 4))
    assert np.array_equal(D.Split(np.ma.masked_array(GREY)).images, GREY)  # of which nothing is masked


def test_parameters_are_images_too():
    given = torch.nn.Parameter(TENSOR / 255)
    assert np.array_equal(cured(D.Split, given, "images").images, GREY)


@pytest.mark.parametrize("splits", [(1, 1, 1), (255, 255, 1), (255, 1, 255), (1, 255, 255)])
def test_images_of_zero_and_one_are_refused(splits):
    ones = (GREY > 178).astype(np.uint8)
    named = ", ".join(name for name, white in zip(("train", "valid", "test"), splits) if white == 1)
    with pytest.raises(ValueError, match=f"got only 0 and 1 in {named}; write ") as refused:
        in_memory(*(white * ones for white in splits))
    for images in (ones, torch.from_numpy(ones)):
        cure = eval(code_in(refused.value), {"images": images})
        assert np.array_equal(in_memory(cure).train.images, 255 * ones)


@pytest.mark.parametrize("white", [2, 15, 16, 40, 100, 127])
def test_dark_images_are_pointed_out_once_and_the_cure_works(white):
    dark = torch.from_numpy(np.round(GREY / 255 * white).astype(np.uint8))
    with pytest.warns(DataWarning, match=f"no grey level above {white} of 255 was found in train, valid, test") as said:
        data = in_memory(dark)
    assert len(said) == 1 and said[0].filename == grey.__file__
    assert torch.equal(data.to("cpu").train[::2].images, dark[::2]) and len(data.valid[3:]) == 27  # without a word
    bright = in_memory(cured_by(said[0].message, dark)).train.images
    assert bright.max() == 255 and (bright / 255 - dark / white).abs().max() <= 0.5 / 255 + 1e-6
    with pytest.warns(DataWarning, match="was found in test; ignore this"):
        in_memory(GREY, GREY, dark)


def test_bright_images_and_images_of_one_grey_level_are_taken_without_a_word():
    for images in (GREY, GREY // 2 + 1, np.zeros_like(GREY), np.full_like(GREY, 7), np.ones_like(GREY)):
        assert np.array_equal(in_memory(images).train.images, images)
    assert in_memory(GREY, np.zeros_like(GREY)).valid.images.sum() == 0


@pytest.mark.parametrize(
    ("shape", "asked"),
    [(shape, True) for shape in ((8, 8, 1), (8, 8, 3), (32, 32, 4), (9, 8, 2), (16, 16, 20), (4, 4, 3))]
    + [(shape, False) for shape in ((1, 8, 3), (3, 8, 2), (8, 2, 2), (2, 8, 8), (4, 8, 9), (12, 8, 9))],
)
def test_channels_that_may_come_last_are_asked_about(shape, asked):
    images = np.random.RandomState(0).randint(0, 256, (6, *shape)).astype(np.uint8)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        in_memory(images)
    assert len(said) == asked
    if asked:
        last, (a, b, c) = cured_by(said[0].message, torch.from_numpy(images)), shape
        assert f"are they {a} channels of {b} × {c} pixels, or {c} of {a} × {b}" in str(said[0].message)
        assert np.array_equal(in_memory(last).train.images, np.moveaxis(images, -1, 1))
