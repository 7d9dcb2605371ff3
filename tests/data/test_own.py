"""A user's own files are loaded by one call: pictures, arrays in many formats, or an error that says what to do."""

import gzip

import numpy as np
import pytest
import scipy.io
import torch
from data_files import idx_bytes
from PIL import Image

from pyro_vae import load
from pyro_vae.data import Data, DataError, read_array, read_arrays
from pyro_vae.data.mapped import is_mapped

GREY = np.random.RandomState(0).randint(0, 256, (30, 8, 8)).astype(np.uint8)
GREY[:, 0, :2] = 0, 255
LABELS = np.arange(30) % 3


def check(data, labels=True):
    """The first 20 images are for training, the next 5 for validation, the others for test."""
    for split, rows in ((data.train, slice(0, 20)), (data.valid, slice(20, 25)), (data.test, slice(25, 30))):
        assert np.array_equal(split.images[:, 0], GREY[rows])
        assert not labels or split.labels.tolist() == LABELS[rows].tolist()


def parts():
    rows = {"train": slice(0, 20), "valid": slice(20, 25), "test": slice(25, 30)}
    return {split: (GREY[index], LABELS[index]) for split, index in rows.items()}


@pytest.mark.parametrize(
    "names", [("x_{}", "y_{}"), ("{}_images", "{}_labels"), ("{}.img", "{}.target"), ("{}", "labels {}")]
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_one_npz_file(tmp_path, names, save):
    images, labels = names
    arrays = {images.format(split): image for split, (image, _) in parts().items()}
    save(tmp_path / "set.npz", **arrays, **{labels.format(s): label[:, None] for s, (_, label) in parts().items()})
    data = load(tmp_path / "set.npz")
    check(data)
    assert data.name == "set"
    assert load(str(tmp_path / "set.npz")).train.labels.tolist() == data.train.labels.tolist()


def test_training_rows_alone_are_divided(tmp_path):
    np.savez(tmp_path / "faces.npz", images=GREY / 255, labels=LABELS)
    data, wanted = load(tmp_path / "faces.npz", valid_size=7, seed=3), Data.from_arrays(GREY, 7, labels=LABELS, seed=3)
    for split in ("train", "valid", "test"):
        assert torch.equal(getattr(data, split).images, getattr(wanted, split).images)
        assert torch.equal(getattr(data, split).labels, getattr(wanted, split).labels)
    np.save(tmp_path / "images.npy", GREY)
    assert len(load(tmp_path).train) == 24  # the only file that says what it holds


def test_matlab(tmp_path):
    arrays = {f"x_{split}": image for split, (image, _) in parts().items()}
    scipy.io.savemat(tmp_path / "set.mat", {**arrays, **{f"y_{split}": label for split, (_, label) in parts().items()}})
    data = load(tmp_path / "set.mat")
    for split, (images, labels) in parts().items():
        found = getattr(data, split)
        assert np.array_equal(found.images[:, 0], images) and found.labels.tolist() == labels.tolist()


FOLDERS = {
    "npz for each split": lambda f, s, x, y: np.savez(f / f"{s}.npz", x=x, y=y),
    "npy": lambda f, s, x, y: (np.save(f / f"x_{s}.npy", x), np.save(f / f"y_{s}.npy", y)),
    "mat": lambda f, s, x, y: scipy.io.savemat(f / f"{s}.mat", {"x": x, "y": y[:, None]}),
    "idx": lambda f, s, x, y: (
        (f / f"{s}-images-idx3-ubyte").write_bytes(idx_bytes(x)),
        (f / f"{s}-labels-idx1-ubyte").write_bytes(idx_bytes(y.astype(np.uint8))),
    ),
    "packed idx": lambda f, s, x, y: (
        (f / f"{s}-images.idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(x))),
        (f / f"{s}-labels.idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(y.astype(np.uint8)))),
    ),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_folders_of_arrays(tmp_path, kind):
    for split, (images, labels) in parts().items():
        FOLDERS[kind](tmp_path, split, images, labels)
    (tmp_path / "README.md").write_text("notes")
    check(load(tmp_path))


def test_text_is_read_and_its_shape_asked_for(tmp_path):
    np.savetxt(tmp_path / "train.amat", GREY.reshape(30, 64) / 255)
    with pytest.raises(
        DataError, match=r"from_arrays\(images\), of images such as read_arrays\('.*'\)\[name\] \(.* 8 × 8"
    ) as said:
        load(tmp_path / "train.amat")
    cure = str(said.value).rsplit("write ", 1)[1].removesuffix(")")
    images = eval(cure, {"images": read_array(tmp_path / "train.amat"), "np": np})
    data = Data.from_arrays(images)
    rows = torch.cat([data.train.images, data.valid.images, data.test.images]).flatten(1).tolist()
    assert sorted(rows) == sorted(GREY.reshape(30, 64).tolist())
    with pytest.raises(DataError, match="the arrays make no data set"):
        load(tmp_path)


def test_counts_and_tables_in_files(tmp_path):
    np.savez(tmp_path / "genes.npz", counts=np.arange(60).reshape(30, 2), table=np.random.rand(30, 2), labels=LABELS)
    assert set(load(tmp_path / "genes.npz").train.fields) == {"counts", "table", "labels"}


def test_pictures(tmp_path):
    for n, image in enumerate(GREY):
        (tmp_path / f"pngs/{n % 3}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / f"pngs/{n % 3}/{n:02}.png")
    data = load(f"{tmp_path}/pngs/", valid_size=5, seed=2)
    wanted = Data.from_folder(tmp_path / "pngs", valid=5, seed=2)
    assert torch.equal(data.train.images, wanted.train.images) and data.classes == ("0", "1", "2")
    assert len(data.valid) == 5 and data.name == "pngs"
    assert load(tmp_path / "pngs", size=4).shape == (1, 4, 4)


def test_npy_files_of_the_usual_names_stay_on_disk(tmp_path):
    for split, (images, labels) in parts().items():
        np.save(tmp_path / f"{split}.npy", images)
        np.save(tmp_path / f"{split}_labels.npy", labels)
    data = load(tmp_path)
    check(data)
    assert is_mapped(data.train.images)


BAD = {
    "another name": ({"pixels_train": GREY, "extra": GREY}, "not known what the array 'pixels_train' is; wanted names"),
    "twice": ({"x_train": GREY, "train_images": GREY}, "x_train and train_images are both images of train; remove one"),
    "no training": ({"x_test": GREY, "y_test": LABELS}, "wanted arrays for training, got none of images, labels"),
    "other lengths": ({"x": GREY, "y": LABELS[1:]}, "labels: wanted 30, one a row, got"),
    "fewer splits": (
        {"x_train": GREY, "x_test": GREY, "y_train": LABELS},
        "labels: wanted rows for the splits of images",
    ),
    "fractions": ({"counts": LABELS / 2}, "counts: wanted whole numbers from 0, got 0.5"),
}


@pytest.mark.parametrize("case", BAD)
def test_files_that_make_no_data_set(tmp_path, case):
    arrays, message = BAD[case]
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "set.npz")


def test_one_array_in_two_files(tmp_path):
    np.save(tmp_path / "x_train.npy", GREY)
    np.savez(tmp_path / "train.npz", x=GREY)
    with pytest.raises(
        DataError, match="wanted one array for the images of train, got another one, x_train; remove one"
    ):
        load(tmp_path)


def test_what_is_nothing_of_ones_own(tmp_path):
    with pytest.raises(ValueError, match=r"auto, or a folder or file of your own, got '.*/nothing'"):
        load(tmp_path / "nothing")
    (tmp_path / "notes.md").write_text("")
    with pytest.raises(ValueError, match=r"notes.md'; read it with a library for such files"):
        load(tmp_path / "notes.md")
    with pytest.raises(ValueError, match="size: wanted none, as the images of digits have"):
        load("digits", size=8)
    assert sorted(read_arrays(np_file(tmp_path))) == ["x"]
    with pytest.raises(ValueError, match=r"size: wanted none, as .*one.npz holds arrays and no pictures, got 8"):
        load(tmp_path / "one.npz", size=8)


def np_file(folder):
    np.savez(folder / "one.npz", x=GREY)
    return folder / "one.npz"
