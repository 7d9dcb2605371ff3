"""Files of known data sets: read whole, or an error that names the file and the cure."""

import gzip
import struct
import subprocess

import numpy as np
import pytest
import torch
from data_files import idx_bytes, mat_bytes
from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor

from pyro_vae.data import formats
from pyro_vae.data import sets as D


@pytest.mark.parametrize("shape", [(5,), (4, 3, 2)])
def test_idx_files_are_read_as_torchvision_reads_them(tmp_path, shape):
    path = tmp_path / "file"
    path.write_bytes(idx_bytes(np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)))
    read = formats.read_idx(path, len(shape))
    assert read.dtype == torch.uint8 and torch.equal(read, read_sn3_pascalvincent_tensor(str(path)))


def test_faces_stand_upright(tmp_path):
    faces = np.random.RandomState(0).randint(0, 256, (1965, 28, 20)).astype(np.uint8)
    for compress in (False, True):
        (tmp_path / "file").write_bytes(mat_bytes(compress, ff=faces.reshape(1965, 560).T))
        assert np.array_equal(formats.read_frey(tmp_path / "file")[:, 0], faces)


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
        (bytes(formats.FREY_BYTES + 1), "it is larger than"),
    ],
)
def test_damaged_frey_face(tmp_path, content, message):
    path = tmp_path / D.FREY_FILE
    path.parent.mkdir()
    path.write_bytes(content if isinstance(content, bytes) else mat_bytes(**content))
    with pytest.raises(D.DataError, match=f"{path}.*{message}"):
        D.load("frey", tmp_path)


@pytest.mark.parametrize("below", ["MNIST/raw", "."])
@pytest.mark.parametrize("dotted", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_as_they_are_passed_around(mnist, tmp_path, below, dotted, packed):
    root, written = mnist
    new = tmp_path / "new" / below
    new.mkdir(parents=True)
    for path in (root / "MNIST/raw").iterdir():
        name = path.name.replace("-idx", ".idx") if dotted else path.name
        (new / (name + ".gz" if packed else name)).write_bytes((gzip.compress if packed else bytes)(path.read_bytes()))
    data = D.load("mnist", tmp_path / "new", valid_size=7)
    assert np.array_equal(data.test.images[:, 0], written["t10k"][0])
    with pytest.raises(D.DataError, match=r"holds no train.npy but files of mnist; write load\('mnist', "):
        D.load(tmp_path / "new")
    with pytest.raises(ValueError, match="got 10000; write for instance valid_size=3"):
        D.load("mnist", tmp_path / "new")
    next(new.glob("t10k-labels*")).unlink()
    with pytest.raises(D.DataError, match=r"t10k-labels-idx1-ubyte is missing beside train-images.*; put it there too"):
        D.load("mnist", tmp_path / "new")


@pytest.mark.slow
def test_idx_files_of_any_size(mnist, monkeypatch):
    root, _ = mnist
    monkeypatch.setattr(formats, "UNPACKED_BYTES", 10_000)  # the images have 23,520 and 7,840
    assert len(D.load("mnist", root, valid_size=7).train) == 23
    path = root / "MNIST/raw/train-images-idx3-ubyte"
    content = path.read_bytes()
    path.unlink()
    archive = path.with_name(path.name + ".gz")
    archive.write_bytes(gzip.compress(content))
    with pytest.raises(D.DataError, match=r"gz: its 23,520 bytes are more .*; unpack it with gzip -d, if") as refused:
        D.load("mnist", root, valid_size=7)
    assert str(archive) in str(refused.value) and "remove" not in str(refused.value)
    subprocess.run(["gzip", "-d", archive], check=True)
    assert len(D.load("mnist", root, valid_size=7).train) == 23
    path.unlink()
    archive.write_bytes(gzip.compress(content[:-1]))
    with pytest.raises(D.DataError, match=r"the header declares 23,520 bytes, it holds .*; remove it"):
        D.load("mnist", root, valid_size=7)


def test_a_file_that_cannot_be_read_may_be_whole(mnist, monkeypatch):
    def refuse(*args):
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr(formats, "_filled", refuse)
    with pytest.raises(D.DataError, match=r"Unable to allocate 9 GiB\); the file itself may be intact"):
        D.load("mnist", mnist[0], valid_size=7)
