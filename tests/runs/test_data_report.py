"""What is said about data sets, folders and files."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from data_files import idx_bytes
from PIL import Image
from small_runs import own_images

from pyro_vae import load
from pyro_vae.data import sets
from pyro_vae.runs import data

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("searched")]


def said(capsys, *words, status=0):
    assert data.main(list(words)) == status
    return capsys.readouterr().out


def write_mnist(folder, count=20):
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx_bytes(np.full((count, 28, 28), 255, np.uint8)))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(count, dtype=np.uint8) % 10))


def test_all_data_sets_are_listed_with_their_places(capsys, searched, tmp_path):
    write_mnist(searched / "MNIST/raw")
    (searched / "frey").mkdir()
    (searched / "usps.bz2").write_bytes(b"some")
    page = said(capsys)
    size = sum(file.stat().st_size for file in (searched / "MNIST/raw").iterdir()) / 1e6
    assert f"  mnist            {size:.1f} MB" in page and f"in {searched / 'MNIST/raw'}\n" in page
    assert "  frey             download " in page and "  digits           bundled " in page
    assert f"  usps             incomplete  {searched / 'usps.t.bz2'} is missing beside usps.bz2" in page
    assert all(
        f"\n  {known.word} " in page and known.help in page for known in sets.SETS.values() if known.word != "usps"
    )
    assert f"searched: {searched}, {tmp_path / 'cache/pyro_vae'};" in page


def test_a_data_set_that_is_there_is_described(capsys, searched, monkeypatch):
    write_mnist(searched / "MNIST/raw")
    monkeypatch.setitem(sets.SETS, "mnist", replace(sets.SETS["mnist"], valid_size=3))
    page = said(capsys, "mnist")
    assert f"files      {searched / 'MNIST/raw'}, " in page and "pyro-vae train --dataset mnist" in page
    assert "fields     images: 1 × 28 × 28, uint8; labels: one number, int64\n" in page
    assert "rows       train 17, valid 3, test 20\n" in page and "classes    10, of which training has 0 (" in page


def test_the_bundled_digits_are_described_as_they_are_loaded(capsys):
    digits = load("digits").train
    zeros = int((digits.labels == 0).sum())
    page = said(capsys, "digits")
    assert "rows       train 1,297, valid 250, test 250\n" in page and f"training has 0 ({zeros})" in page
    assert page.endswith("\n") and "note" not in page and "scikit-learn" in page


def test_a_data_set_that_is_not_there_comes_with_the_way_to_get_it(capsys, tmp_path):
    page = said(capsys, "frey", status=1)
    assert f"  {tmp_path / 'cache/pyro_vae/frey/frey_rawface.mat'}\n" in page and "frey --download fetches it" in page
    assert str(tmp_path / "own/frey/frey_rawface.mat") in said(
        capsys, "frey", "--data-dir", str(tmp_path / "own"), status=1
    )


def test_a_download_is_asked_for(capsys, tmp_path, monkeypatch):
    def fetch(folder):
        write_mnist(folder / "MNIST/raw")

    monkeypatch.setitem(sets.SETS, "mnist", replace(sets.SETS["mnist"], valid_size=3, fetch=fetch))
    assert "rows       train 17," in said(capsys, "mnist", "--download")
    assert "rows       train 17," in said(capsys, "mnist")  # it is there now
    folder = str(tmp_path / "cache/pyro_vae")
    assert f"--data-dir {folder}, or pyro_vae.load('mnist', root='{folder}')" in said(
        capsys, "mnist", "--data-dir", folder
    )


def test_a_folder_of_pictures(capsys, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(10):
            Image.new("L", (9, 8), 25 * number).save(tmp_path / "pets" / name / f"{number}.png")
    page = said(capsys, str(tmp_path / "pets"), "--size", "4", "6")
    assert f"use        pyro-vae train --dataset {tmp_path / 'pets'} --size 4 6, or pyro_vae.load('" in page
    assert page.endswith("size=(4, 6))\n")
    assert "read as    pictures\n" in page and "images: 1 × 4 × 6, uint8" in page
    assert "rows       train 16, valid 2, test 2\n" in page and "has cat (" in page


def test_folders_and_files_of_arrays(capsys, tmp_path):
    page = said(capsys, own_images(tmp_path / "disk", (30, 4, 5), labels={"train": range(20)}))
    assert (
        "read as    arrays, which stay on disk: train.npy" in page and "rows       train 30, valid 4, test 5\n" in page
    )
    assert "classes    20, of which training has 1 to 2 rows each" in page
    (tmp_path / "files").mkdir()
    np.save(tmp_path / "files/x_train.npy", np.arange(20 * 64, dtype=np.uint8).reshape(20, 8, 8))
    assert "read as    arrays: x_train.npy\n" in said(capsys, str(tmp_path / "files"))
    np.savez(tmp_path / "one.npz", images=np.arange(20 * 64, dtype=np.uint8).reshape(20, 8, 8))
    assert "rows       train 16, valid 2, test 2\n" in said(capsys, str(tmp_path / "one.npz"))


def test_a_table(capsys, tmp_path):
    frame = pd.DataFrame({"age": [1.0, None] * 10, "kind": ["cat", "dog"] * 10})
    frame.to_csv(tmp_path / "pets.csv", index=False)
    page = said(capsys, str(tmp_path / "pets.csv"))
    assert "columns    age, kind (cat, dog)\n" in page and "table: 2, float64, " in page and "% missing" in page
    assert f"pandas.read_csv('{tmp_path / 'pets.csv'}')" in page


def test_what_a_user_should_know_is_a_warning(capsys, tmp_path):
    dark = own_images(tmp_path / "dark", (30, 4, 5), pixels=np.arange(64).reshape(8, 8))
    assert data.main([dark]) == 0
    assert "WARNING: " in capsys.readouterr().err
