"""Splits and batches; files found, fabricated, damaged and missing."""

import gzip
import io
import os
import socket
import struct
import time
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from pyro_vae import data as D

SHARED = Path(os.environ.get(D.ENVIRONMENT) or Path(__file__).parents[2] / "shared/data")


def idx_bytes(array):
    return struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def mnist(tmp_path):
    """A folder with 30 training and 10 test images of noise, and what was written there."""
    raw, random, written = tmp_path / "MNIST/raw", np.random.RandomState(1), {}
    raw.mkdir(parents=True)
    for part, count in (("train", 30), ("t10k", 10)):
        images = random.randint(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = random.randint(0, 10, count).astype(np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
        written[part] = images, labels
    return tmp_path, written


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, no environment variable, an empty cache."""
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network in this test")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.delenv(D.ENVIRONMENT, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/pyro_vae"


def test_idx_files_are_read_and_split_by_the_documented_permutation(mnist):
    root, written = mnist
    data = D.load("mnist", root, valid_size=7)
    order = np.random.RandomState(0).permutation(30)
    images, labels = written["train"]
    assert data.shape == (1, 28, 28) and data.note == ""
    assert np.array_equal(data.train.images[:, 0], images[order[:23]])
    assert np.array_equal(data.valid.images[:, 0], images[order[23:]])
    assert np.array_equal(data.valid.labels, labels[order[23:]])
    assert np.array_equal(data.test.images[:, 0], written["t10k"][0])
    assert data.train.images.dtype == torch.uint8 and data.train.labels.dtype == torch.int64


def test_gzip_archives_and_read_only_folders_will_do(mnist):
    root, written = mnist
    for path in (root / "MNIST/raw").iterdir():
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    root.chmod(0o500)
    assert np.array_equal(D.load("mnist", root, valid_size=7).test.images[:, 0], written["t10k"][0])
    root.chmod(0o700)


@pytest.mark.parametrize("name", ["digits", pytest.param("frey", marks=pytest.mark.skipif(
    not (SHARED / D.FREY_FILE).is_file(), reason=f"no Frey Face in {SHARED}"))])
def test_splits_are_disjoint_and_complete(name):
    data = D.load(name, None if name == "digits" else SHARED)
    rows = [tuple(image.flatten().tolist()) for split in (data.train, data.valid, data.test) for image in split.images]
    everything = D._digits() if name == "digits" else D._frey(SHARED / D.FREY_FILE)
    assert sorted(rows) == sorted(tuple(image.flatten().tolist()) for image in everything.images)
    other = D.load(name, None if name == "digits" else SHARED, seed=1)
    assert torch.equal(data.train.images, D.load(name, None if name == "digits" else SHARED).train.images)
    assert not torch.equal(data.train.images, other.train.images)


def test_digits_use_the_whole_range_of_grey_levels():
    digits = D.load("digits")
    assert digits.train.images.min() == 0 and digits.train.images.max() == 255
    assert digits.test.labels.unique().tolist() == list(range(10))


@pytest.mark.skipif(not (SHARED / "MNIST/raw").is_dir(), reason=f"no MNIST in {SHARED}")
def test_real_mnist():
    data = D.load("mnist", SHARED)
    assert [len(split) for split in (data.train, data.valid, data.test)] == [50_000, 10_000, 10_000]
    both = torch.cat([data.train.images, data.valid.images])
    assert both.double().mean().item() / 255 == pytest.approx(0.1307, abs=5e-5)  # torchvision's well-known mean
    assert data.test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


def test_batches_are_a_shuffled_partition():
    index = list(D.batches(10, 4, generator=torch.Generator().manual_seed(0)))
    assert [len(batch) for batch in index] == [4, 4, 2]
    assert sorted(torch.cat(index).tolist()) == list(range(10)) != torch.cat(index).tolist()


def test_search_order(mnist, offline, monkeypatch):
    root, _ = mnist
    offline.parent.mkdir()
    offline.symlink_to(root)
    assert len(D.load("mnist", valid_size=7).train) == 23
    with pytest.raises(D.MissingData):
        D.load("mnist", root / "elsewhere")
    monkeypatch.setenv(D.ENVIRONMENT, str(root / "nothing"))
    assert len(D.load("mnist", valid_size=7).train) == 23
    (root / "nothing/MNIST/raw").mkdir(parents=True)
    (root / "nothing/MNIST/raw/train-images-idx3-ubyte").write_bytes(b"")
    with pytest.raises(D.DataError, match=r"train-labels-idx1-ubyte is missing beside"):
        D.load("mnist")


def test_auto_takes_the_digits_and_says_so(offline):
    data = D.load("auto")
    assert data.name == "digits" and "not MNIST but" in data.note and "no network in this test" in data.note


def test_auto_takes_mnist_where_it_is(mnist):
    assert D.load("auto", mnist[0], valid_size=7).name == "mnist"


def test_a_named_data_set_is_never_replaced(offline):
    for name in ("mnist", "fashion", "kmnist", "frey"):
        with pytest.raises(D.MissingData, match=r"(?s)no network in this test.*--data-dir or PYRO_VAE_DATA"):
            D.load(name)
    assert list(offline.iterdir()) == []  # nothing half downloaded


def test_frey_is_downloaded_whole_or_not_at_all(offline, monkeypatch, tmp_path):
    faces = np.random.RandomState(0).randint(0, 256, (560, 1965), dtype=np.uint8)
    scipy.io.savemat(tmp_path / "source.mat", {"ff": faces})

    class Answer:
        headers = {}

        def __enter__(self):
            self.file = open(tmp_path / "source.mat", "rb")
            return self.file_with_headers()

        def file_with_headers(self):
            self.read = self.file.read
            return self

        def __exit__(self, *args):
            self.file.close()

    monkeypatch.setattr("urllib.request.urlopen", lambda url: Answer())
    data = D.load("frey")
    first = np.random.RandomState(0).permutation(1965)[0]
    assert np.array_equal(data.test.images[0, 0].flatten(), faces[:, first]) and data.test.labels is None
    assert (offline / D.FREY_FILE).is_file() and len(list(offline.iterdir())) == 1


def test_a_network_that_answers_nothing_is_not_waited_for(monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and never says a word
        monkeypatch.setattr(D, "FREY_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/frey_rawface.mat")
        monkeypatch.setattr(D, "TIMEOUT", 0.2)
        start = time.monotonic()
        with pytest.raises(D.MissingData, match=r"its download failed \(timed out\); put its files where"):
            D.load("frey", tmp_path)
    assert time.monotonic() - start < 10 and socket.getdefaulttimeout() is None
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(offline, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(D.MissingData, match=r"cannot be written \(Not a directory\)"):
        D.load("mnist", tmp_path / "file/folder")


def damaged(raw, name, change):
    path = raw / name
    path.write_bytes(change(path.read_bytes()))
    return path.name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[:-1], "declares 23,520 bytes, it holds 23,519"),
        (lambda b: b + b"x", "it holds more"),
        (lambda b: b"", "got an empty file"),
        (lambda b: b[:9], "got 00 00 08 03 00 00 00 1e 00; remove"),
        (lambda b: b"\0\0\x0d\x03" + b[4:], "begins with 00 00 08 03, got 00 00 0d 03"),
        (lambda b: b[:4] + b"\xff" * 12 + b[16:], "declares 79,228"),
        (lambda b: b[:4] + struct.pack(">III", 30, 14, 56) + b[16:], "wanted train images of 28 × 28"),
        (lambda b: struct.pack(">IIII", 0x803, 0, 28, 28), "wanted train images of 28 × 28"),
    ],
)
def test_damaged_images_name_the_file_and_the_cure(mnist, change, message):
    raw = mnist[0] / "MNIST/raw"
    damaged(raw, "train-images-idx3-ubyte", change)
    with pytest.raises(D.DataError, match=f"(?s){raw}.*{message}"):
        D.load("mnist", mnist[0], valid_size=7)


def test_labels_that_do_not_belong(mnist):
    damaged(mnist[0] / "MNIST/raw", "t10k-labels-idx1-ubyte", lambda b: idx_bytes(np.zeros(9, np.uint8)))
    with pytest.raises(D.DataError, match=r"as many labels, got \(10, 28, 28\) and \(9,\)"):
        D.load("mnist", mnist[0], valid_size=7)


def test_labels_that_are_no_digits(mnist):
    damaged(mnist[0] / "MNIST/raw", "t10k-labels-idx1-ubyte", lambda b: idx_bytes(np.full(10, 200, np.uint8)))
    with pytest.raises(D.DataError, match="the t10k labels go up to 200, wanted 0 to 9"):
        D.load("mnist", mnist[0], valid_size=7)


def test_a_download_leaves_what_is_there_and_is_checked(tmp_path, monkeypatch):
    (tmp_path / "frey").mkdir()
    (tmp_path / "frey/notes.txt").write_text("mine")

    def serve(url):
        answer = io.BytesIO(content)
        answer.headers = {}
        return answer

    monkeypatch.setattr("urllib.request.urlopen", serve)
    content = b"<html>log in first</html>"
    with pytest.raises(D.MissingData, match="its download failed"):
        D.load("frey", tmp_path)
    assert [path.name for path in (tmp_path / "frey").iterdir()] == ["notes.txt"]
    file = io.BytesIO()
    scipy.io.savemat(file, {"ff": np.random.RandomState(0).randint(0, 256, (560, 1965), dtype=np.uint8)})
    content = file.getvalue()
    assert len(D.load("frey", tmp_path).train) == 1565
    assert (tmp_path / "frey/notes.txt").read_text() == "mine"


def test_damaged_gzip(mnist):
    path = mnist[0] / "MNIST/raw/train-images-idx3-ubyte"
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes())[:100])
    path.unlink()
    with pytest.raises(D.DataError, match=r"idx3-ubyte.gz cannot be read .*; remove it"):
        D.load("mnist", mnist[0], valid_size=7)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"gg": np.zeros(3)}, "got none"),
        ({"ff": np.zeros((560, 1965), np.int8)}, r"got int8 \(560, 1965\)"),
        ({"ff": np.zeros((560, 10), np.uint8)}, r"got uint8 \(560, 10\)"),
        (b"MATLAB 5.0 MAT-file, but not really" * 9, "cannot be read"),
        (b"", "cannot be read"),
        (bytes(D.FREY_BYTES + 1), "it is larger than"),
    ],
)
def test_damaged_frey_face(tmp_path, content, message):
    path = tmp_path / D.FREY_FILE
    path.parent.mkdir()
    path.write_bytes(content) if isinstance(content, bytes) else scipy.io.savemat(path, content)
    with pytest.raises(D.DataError, match=f"{path}.*{message}"):
        D.load("frey", tmp_path)


def test_bad_arguments(mnist):
    with pytest.raises(ValueError, match=r"wanted one of mnist, .*, auto, or a folder of .npy files, got 'cifar'"):
        D.load("cifar")
    for size in (0, -1, 30):
        with pytest.raises(ValueError, match=f"valid_size: wanted 1 to 29 of mnist's 30 images, got {size}"):
            D.load("mnist", mnist[0], valid_size=size)
    with pytest.raises(ValueError, match="wanted a uint8 tensor"):
        D.Split(torch.zeros(3, 28, 28, dtype=torch.uint8))
    with pytest.raises(ValueError, match="wanted 3, one an image, got"):
        D.Split(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.zeros(2))
