"""Folders of pictures: splits and classes by folders, and what cannot be read is counted and named."""

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_vae.data import Data, DataError, DataWarning

GREY = np.random.RandomState(0).randint(0, 256, (30, 8, 8)).astype(np.uint8)
GREY[:, 0, :2] = 0, 255
COLOURS = np.stack([GREY, GREY[::-1], 255 - GREY], -1)


def save(folder, images, suffix="png"):
    folder.mkdir(parents=True, exist_ok=True)
    for n, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{n:03}.{suffix}")


def rows(*splits):
    return torch.cat([split.images for split in splits])


def in_order(images):
    return sorted(np.asarray(images).reshape(len(images), -1).tolist())


def test_classes_and_shares(tmp_path):
    for name, part in (("cat", GREY[:18]), ("dog", GREY[18:])):
        save(tmp_path / "pets" / name, part)
    (tmp_path / "pets/.DS_Store").write_text("")
    (tmp_path / "pets/cat/notes.txt").write_text("")
    data = Data.from_folder(tmp_path / "pets", valid=5, seed=3)
    order = np.random.RandomState(3).permutation(30)
    assert data.classes == ("cat", "dog") and data.name == "pets" and data.shape == (1, 8, 8)
    for split, index in ((data.test, order[:3]), (data.valid, order[-5:]), (data.train, order[3:-5])):
        assert np.array_equal(split.images[:, 0], GREY[index]) and split.labels.tolist() == (index >= 18).tolist()


@pytest.mark.parametrize("valid", ["valid", "VAL", None])
def test_a_folder_for_each_split(tmp_path, valid):
    save(tmp_path / "train/a", COLOURS[:10])
    save(tmp_path / "train/b/deeper", COLOURS[10:20])
    save(tmp_path / "test/b", COLOURS[20:])
    if valid:
        save(tmp_path / valid / "a", COLOURS[:4])
    data = Data.from_folder(tmp_path)
    assert np.array_equal(
        data.test.images, np.moveaxis(COLOURS[20:], -1, 1)
    ) and data.test.labels.unique().tolist() == [1]
    assert len(data.valid) == (4 if valid else 2) and len(data.train) == (20 if valid else 18)
    seen = rows(data.train) if valid else rows(data.train, data.valid)
    assert in_order(seen) == in_order(np.moveaxis(COLOURS[:20], -1, 1))


def test_a_class_of_trains_is_no_split(tmp_path):
    save(tmp_path / "bus", GREY[:10])
    save(tmp_path / "train", GREY[10:])
    assert Data.from_folder(tmp_path).classes == ("bus", "train")
    save(tmp_path / "alone/train/a", GREY[:10])
    save(tmp_path / "alone/train/b", GREY[10:])
    assert Data.from_folder(tmp_path / "alone").classes == ("a", "b")


def test_without_classes(tmp_path):
    save(tmp_path, GREY)
    data = Data.from_folder(str(tmp_path))
    assert data.classes == () and data.train.labels is None
    assert in_order(rows(data.train, data.valid, data.test)) == in_order(GREY)


def test_pictures_of_no_class_are_unknown(tmp_path, caplog):
    save(tmp_path / "a", GREY[:10])
    save(tmp_path / "b", GREY[10:20])
    save(tmp_path, GREY[20:])
    data = Data.from_folder(tmp_path)
    labels = torch.cat([data.train.labels, data.valid.labels, data.test.labels])
    assert sorted(labels.tolist()) == [-1] * 10 + [0] * 10 + [1] * 10
    assert "10 pictures are in the folder of no class" in caplog.text


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_grey_and_colours(tmp_path, channels):
    save(tmp_path, np.stack([GREY[:20]] * 3, -1))  # grey, saved as colours
    assert Data.from_folder(tmp_path, channels=channels).shape == (channels or 1, 8, 8)
    save(tmp_path / "more", COLOURS[20:])
    data = Data.from_folder(tmp_path, channels=channels)
    images = np.concatenate([np.stack([GREY[:20]] * 3, -1), COLOURS[20:]])
    wanted = np.moveaxis(images, -1, 1)
    if channels == 1:
        wanted = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])[:, None]
        found = np.array(in_order(rows(data.train, data.valid, data.test)))
        assert np.abs(found - in_order(wanted)).max() <= 1
    else:
        assert in_order(rows(data.train, data.valid, data.test)) == in_order(wanted)


@pytest.mark.slow
def test_a_thousand_pictures_of_which_three_are_broken(tmp_path):
    images = np.random.RandomState(1).randint(0, 256, (1000, 4, 4)).astype(np.uint8)
    save(tmp_path, images)
    (tmp_path / "007.png").write_bytes(b"")
    (tmp_path / "450.png").write_bytes((tmp_path / "450.png").read_bytes()[:50])
    (tmp_path / "999.png").write_text("<html>404</html>")
    with pytest.warns(
        DataWarning, match=r"3 of 1,000 pictures .* left out: 007.png \(.*450.png \(.*999.png \("
    ) as said:
        data = Data.from_folder(tmp_path)
    assert len(said) == 1 and said[0].filename == __file__
    wanted = np.delete(images, (7, 450, 999), 0)
    assert in_order(rows(data.train, data.valid, data.test)) == in_order(wanted)


def test_many_broken_pictures_are_counted(tmp_path):
    save(tmp_path, GREY)
    for n in range(12):
        (tmp_path / f"broken{n:02}.png").write_bytes(b"")
    with pytest.warns(DataWarning, match="12 of 42 pictures .* and 2 more$"):
        assert len(Data.from_folder(tmp_path, valid=0.1).train) == 24


def test_all_pictures_are_broken(tmp_path):
    for n in range(3):
        (tmp_path / f"{n}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 3 pictures for train can be read; 0.png \("):
        Data.from_folder(tmp_path)


def test_pictures_of_several_sizes_need_one(tmp_path):
    save(tmp_path, GREY[:20])
    save(tmp_path / "more", GREY[20:, :6])
    with pytest.raises(DataError, match=r"got 8 × 8 in 000\.png and 6 × 8 in more/000\.png; set one: .* --size 64"):
        Data.from_folder(tmp_path)
    assert Data.from_folder(tmp_path, size=5).shape == (1, 5, 5)
    assert Data.from_folder(tmp_path, size=(4, 6)).shape == (1, 4, 6)


def test_transparency_and_dark_pictures_of_16_bits_are_said(tmp_path, caplog):
    for n, image in enumerate(GREY):
        Image.fromarray(np.dstack([image, image])).save(tmp_path / f"{n}.png")
    Data.from_folder(tmp_path)
    assert "30 pictures are transparent; grey level 255 of 255 shows through" in caplog.text
    save(tmp_path / "deep", GREY.astype(np.uint16))
    with pytest.warns(DataWarning, match="no level of the pictures with 16 bits is above 255 of 65,535"):
        Data.from_folder(tmp_path, channels=1)


def test_pictures_of_another_scale_than_others_are_said(tmp_path):
    """Twenty have 65,535 as their white, ten 255, all of 32 bits."""
    for n, image in enumerate(GREY.astype(np.int32)):
        Image.fromarray(image * (257 if n < 20 else 1)).save(tmp_path / f"{n}.tif")
    with pytest.warns(DataWarning, match="10 pictures of 16 or more bits have no level above 255 of 65,535"):
        Data.from_folder(tmp_path)


def test_a_file_of_several_pictures_is_left_out(tmp_path):
    """The first one would stand for all."""
    save(tmp_path, GREY)
    first, *others = map(Image.fromarray, GREY)
    first.save(tmp_path / "stack.tif", save_all=True, append_images=others)
    with pytest.warns(DataWarning, match=r"1 of 31 pictures .* stack.tif \(wanted one picture, got 30; save each"):
        Data.from_folder(tmp_path)


def test_what_is_left_out_beside_the_splits_is_counted(tmp_path):
    save(tmp_path / "train", GREY[:20])
    save(tmp_path / "test", GREY[20:])
    save(tmp_path / "extra", GREY[:2])
    with pytest.warns(DataWarning, match="2 pictures are in none of the folders train, test, and are left out"):
        assert len(Data.from_folder(tmp_path).train) == 18


def test_folders_that_cannot_be_meant(tmp_path):
    with pytest.raises(DataError, match="wanted a folder of pictures, got nothing there"):
        Data.from_folder(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="wanted a folder of pictures, got a file"):
        Data.from_folder(tmp_path / "file")
    with pytest.raises(DataError, match=r"holds no picture; wanted files that end in .*\.png"):
        Data.from_folder(tmp_path)
    save(tmp_path / "train/a", GREY)
    save(tmp_path / "train/b", GREY)
    save(tmp_path / "test/c", GREY)
    with pytest.raises(DataError, match="wanted the classes of train, a, b, got also c; add"):
        Data.from_folder(tmp_path)
    (tmp_path / "testing").mkdir()
    with pytest.raises(DataError, match="wanted one folder for test, got test and testing; join them"):
        Data.from_folder(tmp_path)
    (tmp_path / "testing").rmdir()
    (tmp_path / "val").mkdir()
    with pytest.raises(DataError, match="val: there is no picture; put some there, or remove the folder"):
        Data.from_folder(tmp_path)
    save(tmp_path / "held", GREY)  # pictures in no folder, beside some for validation
    save(tmp_path / "held/valid", GREY)
    with pytest.raises(DataError, match="wanted a folder train beside valid, got none; move the pictures for training"):
        Data.from_folder(tmp_path / "held")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size: wanted a whole number"),
        ({"size": (4, 4, 4)}, "size: wanted a number of pixels, or"),
        ({"channels": 4}, "channels: wanted 1 for grey"),
        ({"background": 256}, "background: wanted a whole number from 0 to 255"),
        ({"valid": 0}, "valid: wanted rows, a fraction"),
    ],
)
def test_bad_arguments_of_a_folder(tmp_path, arguments, message):
    save(tmp_path, GREY)
    with pytest.raises(ValueError, match=message):
        Data.from_folder(tmp_path, **arguments)
