"""Folders of arrays are loaded as they were meant, or raise an error whose cure leads there when followed literally."""

import math
import pickle
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from cures import cured_files, follow

from pyro_vae import load
from pyro_vae.data.mapped import is_mapped, parts, take
from pyro_vae.data.raw import DataWarning, check_levels
from pyro_vae.data.sets import DataError

SPLITS = ("train", "valid", "test")
GREY = np.random.RandomState(0).randint(0, 256, (30, 8, 8)).astype(np.uint8)
GREY[0, 0, :2] = 0, 255


def write(folder, array, *splits):
    for split in splits or SPLITS:
        np.save(folder / f"{split}.npy", array)


def loaded(folder):
    """Return the training images after the cures; those of the other splits are the same."""
    data = cured_files(lambda: load(folder))
    assert torch.equal(data.valid.images, data.train.images) and torch.equal(data.test.images, data.train.images)
    return data.train.images


KINDS = {
    "float in [0, 1]": GREY / 255,
    "float in [0, 1 + rounding]": (GREY / 255 * 1.0000001),
    "float in [−1, 1]": GREY / 127.5 - 1,
    "float32 to 255": GREY.astype(np.float32),
    "float16": GREY.astype(np.float16),
    "big-endian": (GREY / 255).astype(">f4"),
    "int64": GREY.astype(np.int64),
    "16 bit": GREY.astype(np.uint16) * 257,
    "12 bit": np.round(GREY * (4095 / 255)).astype(np.uint16),
    "signed bytes": (GREY.astype(int) - 128).astype(np.int8),
    "flat": GREY.reshape(30, 64),
    "flat floats": GREY.reshape(30, 64) / 255,
    "Fortran order": np.asfortranarray(GREY),
    "Fortran order of floats": np.asfortranarray(GREY / 255),
    "transposed": GREY.T.copy().T,
    "objects": np.array(list(GREY), dtype=object),
    "objects of floats": np.array([list(row / 255) for row in GREY], dtype=object),
}


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_any_kind_are_loaded_or_the_cure_works(tmp_path, kind):
    folder = tmp_path / "with a space's name"
    folder.mkdir()
    write(folder, KINDS[kind])
    assert np.array_equal(loaded(folder)[:, 0], GREY)


def test_images_in_memory_order_of_fortran_are_read_others_mapped(tmp_path):
    write(tmp_path, np.asfortranarray(np.stack([GREY] * 3, 1)), "train", "valid")
    write(tmp_path, np.stack([GREY] * 3, 1), "test")
    data = load(tmp_path)
    assert [is_mapped(split.images) for split in (data.train, data.valid, data.test)] == [False, False, True]
    assert data.train.images.is_contiguous() and torch.equal(data.train.images, data.test.images)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32, np.float32])
def test_masks(tmp_path, dtype):
    write(tmp_path, (GREY > 127).astype(dtype))
    assert np.array_equal(loaded(tmp_path)[:, 0], 255 * (GREY > 127))


def test_pixels_that_are_not_finite(tmp_path):
    write(tmp_path, np.where(GREY > 250, np.nan, GREY / 255), "train")
    write(tmp_path, np.where(GREY > 250, -np.inf, GREY / 255), "valid", "test")
    with pytest.raises(DataError, match="some pixels are not finite; if they should be 0, write"):
        load(tmp_path)
    assert np.array_equal(loaded(tmp_path)[:, 0], np.where(GREY > 250, 0, GREY))


def test_all_files_get_one_scale(tmp_path):
    """Standardised images: the least value of all files is black, the greatest white."""
    pixels = (GREY - 100.0) / 50
    for split, rows in (("train", slice(0, 20)), ("valid", slice(20, 25)), ("test", slice(25, 30))):
        np.save(tmp_path / f"{split}.npy", pixels[rows])
    data = cured_files(lambda: load(tmp_path))
    assert np.array_equal(torch.cat([data.train.images, data.valid.images, data.test.images])[:, 0], GREY)


@pytest.mark.parametrize("scales", [(1, 255, 255), (255, 255, 1), (1, 65535, 1)])
def test_files_of_another_scale_lose_no_grey_levels(tmp_path, scales):
    """Floats up to 1 in one file and up to 255 in another: one scale for both would leave only black and white."""
    for split, white in zip(SPLITS, scales):
        np.save(tmp_path / f"{split}.npy", GREY * (white / 255))
    data = cured_files(lambda: load(tmp_path))
    for split in (data.train, data.valid, data.test):
        assert np.array_equal(split.images[:, 0], GREY)


def test_one_file_of_another_kind(tmp_path):
    write(tmp_path, GREY)
    np.save(tmp_path / "test.npy", GREY / 255)
    with pytest.raises(DataError, match=r"test.npy cannot be read \(wanted an array .* got float64") as refused:
        load(tmp_path)
    assert "train.npy" not in str(refused.value)
    assert np.array_equal(loaded(tmp_path)[:, 0], GREY)


def test_rows_that_are_no_squares_need_their_sizes(tmp_path):
    write(tmp_path, GREY.reshape(30, 64)[:, :60])
    with pytest.raises(DataError, match=r"; if C × H × W = 60, write .*reshape") as refused:
        load(tmp_path)
    follow(refused.value, C=1, H=6, W=10)
    assert np.array_equal(load(tmp_path).train.images.flatten(1), GREY.reshape(30, 64)[:, :60])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 0, 8), np.uint8), "one image at least"),
        (np.zeros((0, 8, 8)), "one image at least"),
        (GREY[None, None], "as numbers of this shape"),
        (GREY.astype(complex), "got complex128 .*as numbers of this shape"),
        (GREY.astype(str), "as numbers of this shape"),
        (np.zeros((5, 8, 8), [("r", "u1"), ("g", "u1")]), "as numbers of this shape"),
        (np.uint8(3), r"got uint8 of shape \(\)"),
    ],
)
def test_what_no_code_can_mend(tmp_path, array, message):
    write(tmp_path, array)
    with pytest.raises(
        DataError,
        match=f"train.npy cannot be read .*wanted .*write it again with numpy.save, .*{message}"
        if "got" not in message
        else message,
    ):
        load(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"GIF89a", pickle.dumps([1, 2]), b"PK\x03\x04 a zip archive", b"\x93NUMPY\x01\x00\x76\x00{'descr'"]
)
def test_files_that_are_no_arrays(tmp_path, content):
    write(tmp_path, GREY)
    for name in ("valid.npy", "valid_labels.npy"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name} cannot be read \(.*\); write it again with numpy.save"):
            load(tmp_path)
        write(tmp_path, GREY)


def test_objects_are_not_read_unasked(tmp_path):
    class Payload:
        def __reduce__(self):
            return Path.touch, (tmp_path / "run",)

    write(tmp_path, GREY)
    np.save(tmp_path / "train_labels.npy", np.array([Payload()] * 30, dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="if you trust the file, as reading objects may run code, write"):
        load(tmp_path)
    assert not (tmp_path / "run").exists()


def test_links_and_read_only_files(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    np.save(tmp_path / "images.npy", GREY)
    (tmp_path / "images.npy").chmod(0o400)
    for split in SPLITS:
        (tmp_path / f"link/{split}.npy").symlink_to(tmp_path / "images.npy")
    assert np.array_equal(load(tmp_path / "link").train.images[:, 0], GREY)


# Grey levels


@pytest.mark.parametrize("binary", [SPLITS, ("test",), ("train", "valid")])
def test_images_of_zero_and_one(tmp_path, binary):
    ones = GREY > 178
    write(tmp_path, ones * np.uint8(255))
    write(tmp_path, ones.astype(np.uint8), *binary)
    with pytest.raises(DataError, match=f"got only 0 and 1 in {', '.join(binary)}; write for path in"):
        load(tmp_path)
    assert loaded(tmp_path).double().mean().item() / 255 == pytest.approx(ones.mean())


def test_a_split_of_one_level_has_the_white_of_the_others(tmp_path):
    write(tmp_path, (GREY > 178).astype(np.uint8))
    write(tmp_path, np.ones((2, 8, 8), np.uint8), "test")
    with pytest.raises(DataError, match="got only 0 and 1 in train, valid, test; write"):
        load(tmp_path)
    assert cured_files(lambda: load(tmp_path)).test.images.unique().tolist() == [255]


def test_dark_splits_have_one_white(tmp_path):
    """Of images of 0 to 16 some splits may hold only the levels 0 and 1: these are nearly black, and stay so."""
    write(tmp_path, np.uint8(16) * (GREY > 127))
    write(tmp_path, (GREY > 127).astype(np.uint8), "test")
    with pytest.warns(DataWarning, match="no grey level above 16 of 255 was found in train, valid, test;") as said:
        load(tmp_path)
    follow(said[0].message)
    with pytest.warns(DataWarning, match="no grey level above 16 of 255 was found in test; ignore this if"):
        data = load(tmp_path)
    assert data.train.images.unique().tolist() == [0, 255] and data.test.images.unique().tolist() == [0, 16]


@pytest.mark.parametrize("white", [2, 15, 16, 100, 127])
def test_dark_images_are_loaded_with_a_word_whose_cure_works(tmp_path, white):
    dark = np.round(GREY * (white / 255)).astype(np.uint8)
    write(tmp_path, dark)
    with pytest.warns(
        DataWarning, match=f"no grey level above {white} of 255 .* train, valid, test; ignore this if"
    ) as said:
        data = load(tmp_path)
    assert len(said) == 1 and said[0].filename == __file__ and np.array_equal(data.train.images[:, 0], dark)
    follow(said[0].message)
    assert np.abs(load(tmp_path).train.images[:, 0].numpy() / 255 - dark / white).max() <= 0.5 / 255 + 1e-9


def test_one_bright_image_is_enough_wherever_it_lies(tmp_path):
    for at in (0, 1, 700, 1999):
        images = np.random.RandomState(0).randint(0, 2, (2000, 3, 3)).astype(np.uint8)
        images[at] = 200
        write(tmp_path, images)
        assert len(load(tmp_path).train) == 2000


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux can the file be a sparse one")
def test_many_images_are_looked_at_here_and_there(tmp_path):
    shape = (1_000_000_000, 1, 4, 4)
    with (tmp_path / "train.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        start = file.tell()
        file.truncate(start + math.prod(shape))
        file.seek(start)
        file.write(bytes([0, 1]) * 8)
    write(tmp_path, GREY[:, :4, :4], "valid", "test")
    with pytest.raises(
        DataError, match=r"only 0 and 1 in train \(2,048 of 1,000,000,000 images were looked at\); write"
    ):
        load(tmp_path)


def test_images_of_one_grey_level_tell_nothing():
    for level in (0, 1, 7, 255):
        check_levels({"train": torch.full((5, 1, 8, 8), level, dtype=torch.uint8)})


# Layout


@pytest.mark.parametrize("shape", [(32, 32, 4), (8, 8, 3), (28, 28, 1), (9, 8, 2), (16, 16, 20)])
def test_channels_that_may_come_last_are_asked_about(tmp_path, shape):
    images = np.random.RandomState(0).randint(0, 256, (6, *shape)).astype(np.uint8)
    first = np.moveaxis(images, -1, 1)
    write(tmp_path, images)
    a, b, c = shape
    with pytest.raises(DataError, match=f"are they {a} channels of {b} × {c} pixels, or {c} of {a} × {b}, as"):
        load(tmp_path)
    assert np.array_equal(load(tmp_path, layout="NCHW").train.images, images)
    data = load(tmp_path, layout="NHWC")
    assert data.shape == (c, a, b) and np.array_equal(data.train.images, first) and is_mapped(data.train.images)
    for batch in (take(data.train.images, torch.tensor([3, 1])), data.train[[3, 1]].images, *parts(data.train.images)):
        assert batch.is_contiguous()
    assert take(data.train.images, torch.tensor([3])).numpy().tobytes() == first[3].tobytes()
    assert np.array_equal(loaded(tmp_path), first)


@pytest.mark.parametrize("shape", [(1, 8, 3), (3, 9, 4), (8, 2, 2), (2, 8, 8), (12, 8, 9), (5, 64, 32)])
def test_channels_that_come_first_are_not_asked_about(tmp_path, shape):
    images = np.random.RandomState(0).randint(0, 256, (6, *shape)).astype(np.uint8)
    write(tmp_path, images)
    assert np.array_equal(load(tmp_path).train.images, images)


def test_images_along_the_last_axis(tmp_path):
    """MATLAB stores images as (H, W, N)."""
    for split, count in (("train", 20), ("valid", 7), ("test", 3)):
        np.save(tmp_path / f"{split}.npy", np.moveaxis(GREY[:count], 0, -1))
    with pytest.raises(DataError, match="if all images lie along the last axis, write"):
        load(tmp_path)
    data = cured_files(lambda: load(tmp_path))
    for split, count in ((data.train, 20), (data.valid, 7), (data.test, 3)):
        assert np.array_equal(split.images[:, 0], GREY[:count])


def test_one_file_with_the_channels_last(tmp_path):
    write(tmp_path, np.stack([GREY] * 3, 1))
    write(tmp_path, np.stack([GREY] * 3, -1), "test")
    with pytest.raises(DataError, match=r"test.npy: wanted images of \(3, 8, 8\), .* if its channels are last, write"):
        load(tmp_path)
    assert np.array_equal(loaded(tmp_path), np.stack([GREY] * 3, 1))


def test_an_axis_of_one_channel_in_some_files(tmp_path):
    write(tmp_path, GREY, "train", "test")
    write(tmp_path, GREY[:, None], "valid")
    assert load(tmp_path).shape == (1, 8, 8)


# Labels


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32, ">i8", np.uint64, np.float32])
def test_labels_that_are_whole_numbers(tmp_path, dtype):
    write(tmp_path, GREY)
    labels = np.arange(30) % 2
    np.save(tmp_path / "test_labels.npy", labels.astype(dtype))
    data = load(tmp_path)
    assert data.test.labels.dtype == torch.int64 and data.test.labels.tolist() == labels.tolist()
    assert data.train.labels is None


@pytest.mark.parametrize(
    ("classes", "got"),
    [([0.1, 0.9, 2.0], r"0\.1"), ([-2, 0, 7], "-2"), (["cat", "dog", "eel"], "'cat'"), ([0.0, 1.0, np.inf], "inf")],
)
def test_classes_that_are_no_numbers_from_zero_are_numbered_alike_in_all_files(tmp_path, classes, got):
    write(tmp_path, GREY)
    classes, numbers = np.array(classes), {"train": np.arange(30) % 3, "test": np.arange(30) % 2 + 1}
    for split, index in numbers.items():
        np.save(tmp_path / f"{split}_labels.npy", classes[index])
    with pytest.raises(
        DataError,
        match=f"train_labels.npy cannot be read .*wanted whole numbers from 0, .*, got {got}",
    ):
        load(tmp_path)
    data = cured_files(lambda: load(tmp_path))
    assert data.train.labels.tolist() == numbers["train"].tolist()
    assert data.test.labels.tolist() == numbers["test"].tolist() and data.valid.labels is None


def test_a_label_that_is_missing(tmp_path):
    write(tmp_path, GREY)
    np.save(tmp_path / "valid_labels.npy", np.where(np.arange(30) == 4, np.nan, 1.0))
    with pytest.raises(DataError, match=r"valid_labels.npy cannot be read .*got nan"):
        load(tmp_path)


@pytest.mark.parametrize(
    "labels", [np.arange(30)[:, None], np.eye(30, dtype=np.uint8), np.eye(30) > 0, np.arange(30).astype(object)]
)
def test_labels_in_another_form(tmp_path, labels):
    write(tmp_path, GREY)
    np.save(tmp_path / "train_labels.npy", labels, allow_pickle=True)
    with pytest.raises(DataError, match=r"train_labels.npy cannot be read"):
        load(tmp_path)
    assert cured_files(lambda: load(tmp_path)).train.labels.tolist() == list(range(30))


@pytest.mark.parametrize("labels", [np.array(["cat", "dog", "eel"] * 10, object), np.arange(30).astype(object) % 3])
def test_objects_in_several_files_of_labels(tmp_path, labels):
    write(tmp_path, GREY)
    for split in ("train", "test"):
        np.save(tmp_path / f"{split}_labels.npy", labels, allow_pickle=True)
    with pytest.raises(DataError, match=r"train_labels.npy cannot be read .*Python objects.* in .*test_labels"):
        load(tmp_path)
    data = cured_files(lambda: load(tmp_path), steps=2)
    assert data.train.labels.tolist() == data.test.labels.tolist() == [0, 1, 2] * 10


def test_objects_of_several_kinds_are_not_numbered(tmp_path):
    write(tmp_path, GREY)
    np.save(tmp_path / "train_labels.npy", np.array([None, 1] * 15, object), allow_pickle=True)
    with pytest.raises(DataError, match="if all rows are numbers, or all are texts, and if you trust") as refused:
        load(tmp_path)
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        follow(refused.value)


# Other files


def test_validation_images_are_taken_from_the_training_images(tmp_path):
    write(tmp_path, GREY, "train")
    np.save(tmp_path / "train_labels.npy", np.arange(30))
    with pytest.raises(DataError, match=r"valid.npy is missing; .* holds train.npy, train_labels.npy; to take a tenth"):
        load(tmp_path)
    data = cured_files(lambda: load(tmp_path))
    splits = (data.train, data.valid, data.test)
    assert [len(split) for split in splits] == [25, 3, 2]
    assert sorted(torch.cat([split.labels for split in splits]).tolist()) == list(range(30))
    for split in splits:
        assert np.array_equal(split.images[:, 0], GREY[split.labels])


def test_the_only_training_image_stays_one(tmp_path):
    write(tmp_path, GREY[:1], "train")
    with pytest.raises(DataError, match=r"valid.npy is missing; .* holds train.npy; write it by numpy.save"):
        load(tmp_path)


def test_what_a_folder_without_images_holds(tmp_path):
    with pytest.raises(DataError, match=r"train.npy is missing; .* holds nothing; write it by numpy.save"):
        load(tmp_path)
    for name in ("Faces.NPY", "a.txt", "b", "c", "d", "e", "f"):
        (tmp_path / name).write_text("")
    (tmp_path / "train.npy").mkdir()
    with pytest.raises(DataError, match=r"holds Faces.NPY, a.txt, b, c, d and 3 more; write load\('.*a.txt'\)"):
        load(tmp_path)


FILES = {
    "freyfaces.pkl": lambda path: path.write_bytes(pickle.dumps({"x_train": GREY / 255})),
    "images.pt": lambda path: torch.save({"x_train": torch.from_numpy(GREY)}, path),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_may_run_code_is_read_by_the_user(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    FILES[name](path)
    with pytest.raises(ValueError, match=f"wanted one of mnist, .* got '{path}'; .*read it with ") as refused:
        load(path)
    reader, cure = str(refused.value).rsplit("read it with ", 1)[1].split(" and write its images into a folder, ")
    with pytest.raises(DataError, match=f"train.npy is missing; .* holds {name}; .*read it with"):
        load(tmp_path)
    found = eval(reader, {"np": np, "Path": Path, "pickle": pickle, "torch": torch})
    exec(cure.split(", and valid")[0], {"np": np, "images": found["x_train"]})
    data = cured_files(lambda: load("."), steps=6)
    rows = torch.cat([data.train.images, data.valid.images, data.test.images]).flatten(1).tolist()
    assert sorted(rows) == sorted(GREY.reshape(30, 64).tolist())


def test_a_file_of_the_folder_is_not_the_folder(tmp_path):
    write(tmp_path, GREY)
    with pytest.raises(ValueError, match="give the folder that it is in, ") as refused:
        load(tmp_path / "train.npy")
    assert len(load(eval(str(refused.value).rsplit("is in, ", 1)[1])).train) == 30
    with pytest.raises(
        ValueError, match=r"got '.*other.h5'; read it with a library for such files and write its images"
    ):
        (tmp_path / "other.h5").write_bytes(b"\x89HDF")
        load(tmp_path / "other.h5")


def test_nothing_is_said_of_a_folder_as_it_should_be(tmp_path):
    write(tmp_path, np.stack([GREY] * 3, 1))
    np.save(tmp_path / "test_labels.npy", np.arange(30))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        load(tmp_path).to("cpu").train[::3]
    assert not said
