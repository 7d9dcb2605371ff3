"""Files of known data sets as torchvision stores them: read as torchvision reads them, and without running code."""

import bz2
import io
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import scipy.io
import torch
from data_files import usps_text
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import USPS

from pyro_vae.data import archives
from pyro_vae.data.pixels import dynamic
from pyro_vae.data.raw import DataError

RANDOM = np.random.RandomState(0)


def test_usps(tmp_path):
    pixels = RANDOM.randint(0, 256, (6, 256))
    (tmp_path / "usps.bz2").write_bytes(bz2.compress(usps_text(pixels / 127.5 - 1, range(6))))
    images, labels = archives.read_usps(tmp_path / "usps.bz2")
    assert np.array_equal(images, pixels.reshape(6, 1, 16, 16)) and labels.tolist() == list(range(6))
    theirs = USPS(tmp_path, train=True)
    assert np.abs(images[:, 0].numpy().astype(int) - theirs.data).max() <= 1  # torchvision cuts, and does not round
    assert labels.tolist() == theirs.targets


def test_svhn(tmp_path):
    images = RANDOM.randint(0, 256, (5, 3, 32, 32)).astype(np.uint8)
    scipy.io.savemat(tmp_path / "file.mat", {"X": images.transpose(2, 3, 1, 0), "y": [[10], [1], [9], [5], [10]]})
    found, labels = archives.read_svhn(tmp_path / "file.mat")
    assert np.array_equal(found, images) and labels.tolist() == [0, 1, 9, 5, 0]
    scipy.io.savemat(tmp_path / "file.mat", {"X": np.zeros((5, 4)), "y": [[1]]})
    with pytest.raises(DataError, match=r"file.mat: wanted X, uint8 \(32, 32, 3, N\), got float64 \(5, 4\)"):
        archives.read_svhn(tmp_path / "file.mat")


@pytest.mark.parametrize("protocol", [2, 4])
def test_cifar(tmp_path, protocol):
    images, paths = RANDOM.randint(0, 256, (6, 3, 32, 32)).astype(np.uint8), [tmp_path / "one", tmp_path / "two"]
    for path, part in zip(paths, (images[:4], images[4:])):
        batch = {"data": part.reshape(-1, 3072), "labels": part[:, 0, 0, 0].tolist(), "filenames": ["a.png"]}
        path.write_bytes(pickle.dumps(batch, protocol=protocol))
    found, labels = archives.read_cifar(paths)
    assert np.array_equal(found, images) and labels.tolist() == images[:, 0, 0, 0].tolist()


def test_cifar_as_python_2_wrote_it(tmp_path):
    """Strings of bytes, and the names of NumPy 1."""
    images = RANDOM.randint(0, 256, (2, 3072)).astype(np.uint8)
    content = (
        b"\x80\x02}q\x00(U\x04dataq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01b"
        b"\x87R(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff"
        b"\xffK\x00tb\x89T" + images.nbytes.to_bytes(4, "little") + images.tobytes() + b"tbU\x06labels](K\x03K\x07eu."
    )
    (tmp_path / "batch").write_bytes(content)
    found, labels = archives.read_cifar([tmp_path / "batch"])
    assert np.array_equal(found.reshape(2, -1), images) and labels.tolist() == [3, 7]


def test_pickles_run_no_code(tmp_path):
    class Payload:
        def __reduce__(self):
            return type(tmp_path).touch, (tmp_path / "run",)

    (tmp_path / "file").write_bytes(pickle.dumps({"data": Payload(), "labels": []}))
    with pytest.raises(DataError, match=r"file cannot be read .it names pathlib.*, which makes no array"):
        archives.read_cifar([tmp_path / "file"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("packed", [True, False])
def test_omniglot(tmp_path, packed):
    drawn, files = RANDOM.rand(6, 105, 105) > 0.9, {}
    for n, strokes in enumerate(drawn):
        file = io.BytesIO()
        Image.fromarray(~strokes).save(file, "PNG")  # black on white
        files[f"images_background/{'BA'[n // 4]}/character0{n // 2 % 2}/{n:04}_01.png"] = file.getvalue()
    with zipfile.ZipFile(tmp_path / "images_background.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    if not packed:
        with zipfile.ZipFile(tmp_path / "images_background.zip") as archive:
            archive.extractall(tmp_path)
    images, labels = archives.read_omniglot(tmp_path / f"images_background{'.zip' * packed}")
    assert labels.tolist() == [0, 0, 1, 1, 2, 2] and images.shape == (6, 1, 28, 28)
    order = [4, 5, 0, 1, 2, 3]  # alphabet A comes first
    means = images.float().mean((1, 2, 3)).numpy()
    assert np.abs(means - 255 * drawn[order].mean((1, 2))).max() < 1  # the mean of each area
    tiny, _ = archives.read_omniglot(tmp_path / f"images_background{'.zip' * packed}", side=105)
    assert np.array_equal(tiny[:, 0], 255 * drawn[order])


def test_binary_images_stay_what_they_are(tmp_path):
    ones = RANDOM.randint(0, 2, (9, 28, 28))
    np.savetxt(tmp_path / "file.amat", ones.reshape(9, 784), fmt="%d")
    images = archives.read_binary(tmp_path / "file.amat")
    assert np.array_equal(images[:, 0], 255 * ones) and images.dtype == torch.uint8
    for seed in range(20):  # not binarised again: x is 0 and 1 as in the file, whatever is drawn
        assert np.array_equal(dynamic(images, torch.Generator().manual_seed(seed))[:, 0], ones)
    u = torch.tensor([0.0, 1 - 2.0**-24])  # the least and the greatest number that is drawn
    assert not (u * 255 < 0).any() and (u * 255 < 255).all()


@pytest.mark.parametrize(
    ("text", "got"), [("0 1 2\n", "b'2'"), ("0 1\n0 1\n", "4 digits in 2 lines"), ("0 1 1\n0 1", "5 digits in 2 lines")]
)
def test_text_that_is_not_binary(tmp_path, text, got):
    (tmp_path / "file.amat").write_text(text)
    with pytest.raises(DataError, match=f"wanted lines of 1 digits 0 and 1, got {got}; remove it"):
        archives.read_binary(tmp_path / "file.amat", side=1)


def test_digits_are_those_of_scikit_learn_with_and_without_its_file(monkeypatch):
    known = load_digits()
    images, labels = archives.read_digits()
    assert images.dtype == torch.uint8 and labels.tolist() == known.target.tolist()
    assert np.array_equal(images[:, 0], np.round(known.images * (255 / 16)))
    monkeypatch.setattr(archives, "DIGITS_FILE", "not/there")
    assert all(map(torch.equal, archives.read_digits(), (images, labels)))


@pytest.mark.slow
def test_the_digits_come_without_scikit_learn():
    code = "import sys; from pyro_vae import load; load('digits'); print(*{'sklearn', 'scipy'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
