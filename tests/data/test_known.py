"""Records of known data sets: searched in order, fetched whole, and checked by what the record says."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pyro_vae.data import DataError, MissingData, Split
from pyro_vae.data.known import KnownSet, fetched, find, folders, read

LABELS = torch.arange(3)


def write(folder):
    (folder / "sub").mkdir()
    (folder / "sub/a.bin").write_bytes(b"a")
    (folder / "sub/b.bin").write_bytes(b"b")


KNOWN = KnownSet(
    "toy",
    "a toy",
    lambda *paths: (Split(np.zeros((3, 1, 2, 2), np.uint8), LABELS), None),
    valid_size=1,
    files=("sub/a.bin", "sub/b.bin"),
    fetch=write,
    classes=("x", "y", "z"),
    rows=(3,),
    shape=(1, 2, 2),
)


def test_files_are_found_in_the_folder_or_below(tmp_path):
    assert find(KNOWN, tmp_path) is None
    write(tmp_path)
    assert find(KNOWN, tmp_path) == find(KNOWN, tmp_path / "sub") == [tmp_path / "sub/a.bin", tmp_path / "sub/b.bin"]
    (tmp_path / "sub/b.bin").unlink()
    with pytest.raises(DataError, match=r"b.bin is missing beside a.bin; put it there too"):
        find(KNOWN, tmp_path)


def test_folders_are_searched_in_order(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYRO_VAE_DATA", str(tmp_path / "named"))
    assert folders(None) == [tmp_path / "named", tmp_path / "cache/pyro_vae"] and folders(tmp_path) == [tmp_path]


def test_files_are_fetched_whole_or_not_at_all(tmp_path):
    def fail(folder):
        write(folder)
        raise OSError("the line is cut")

    with pytest.raises(MissingData, match=r"its download failed .the line is cut.; put its files where"):
        fetched(replace(KNOWN, fetch=fail), tmp_path, allowed=True)
    assert not list(tmp_path.iterdir())
    assert fetched(KNOWN, tmp_path, allowed=True) == [tmp_path / "sub/a.bin", tmp_path / "sub/b.bin"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": (4,)}, "wanted 4 training images of toy, got 3; remove the files"),
        ({"shape": (1, 2, 3)}, r"wanted images of toy of shape \(1, 2, 3\), got \(1, 2, 2\); remove the files"),
        ({"classes": ("x",)}, "wanted labels of toy from 0 to 0, got 0 to 2; remove the files"),
    ],
)
def test_what_the_record_says_is_checked(tmp_path, changes, message):
    assert len(read(KNOWN, [tmp_path / "a.bin"])[0]) == 3
    with pytest.raises(DataError, match=f"{tmp_path}: {message}"):
        read(replace(KNOWN, **changes), [tmp_path / "a.bin"])
