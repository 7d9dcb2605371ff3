"""The names of arrays and of files say which field and which split they are."""

import numpy as np
import pytest
import scipy.io

from pyro_vae.data import Data, DataError, read_arrays
from pyro_vae.data.array_files import array_files, fields_of_files

GREY = np.random.RandomState(0).randint(0, 256, (30, 8, 8)).astype(np.uint8)
MEANINGS = {
    "X_train": "images",
    "trainImages": None,
    "y-valid": "labels",
    "val_targets": "labels",
    "counts.test": "counts",
    "train_train": None,
    "images_labels": None,
    "t10k-labels-idx1-ubyte": "labels",
    "mask": "mask",
}


@pytest.mark.parametrize("name", MEANINGS)
def test_meanings(tmp_path, name):
    np.save(tmp_path / f"{name}.npy", GREY)
    assert [path.name for path in array_files(tmp_path)] == ([f"{name}.npy"] if MEANINGS[name] else [])


def test_splits_of_two_files(tmp_path):
    np.savez(tmp_path / "train.npz", x=GREY, weight=np.arange(30))
    with pytest.raises(DataError, match="it is not known what the array 'weight' is; wanted names of images"):
        fields_of_files(array_files(tmp_path))
    np.savez(tmp_path / "train.npz", x=GREY, mask=GREY > 5)
    np.savez(tmp_path / "val.npz", x=GREY[:4], mask=GREY[:4] > 5)
    fields = fields_of_files(array_files(tmp_path), test=0.2)
    assert {split: len(rows["images"]) for split, rows in fields.items()} == {"train": 24, "valid": 4, "test": 6}
    assert all((rows["mask"] == (rows["images"] > 5)).all() for rows in fields.values())


@pytest.mark.parametrize("shape", [(8, 8, 30), (8, 8, 3, 30)])
def test_images_of_matlab_along_the_last_axis_are_not_taken_for_others(tmp_path, shape):
    scipy.io.savemat(tmp_path / "train.mat", {"x": np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)})
    with pytest.raises(DataError, match=r"may be 30 images of 8 × 8 pixels, or 8 of others; .*np\.moveaxis") as refused:
        fields_of_files(array_files(tmp_path))
    code = str(refused.value).split("write ")[1].split(", else ")[0]
    data = eval(code, {"np": np, "Data": Data, "read_arrays": read_arrays})
    assert sum(map(len, (data.train, data.valid, data.test))) == 30 and data.shape[1:] == (8, 8)
