"""Splits and batches; files found, fabricated, damaged and missing."""

import gzip
import io
import os
import socket
import struct
import subprocess
import time
import urllib.error
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from cures import code_in, cured, cured_files, follow
from torch.utils.data import DataLoader, TensorDataset

from pyro_vae.data import sets as D

SHARED = Path(os.environ.get(D.ENVIRONMENT) or Path(__file__).parents[3] / "shared/data")


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


@pytest.mark.parametrize(
    "name",
    [
        "digits",
        pytest.param(
            "frey", marks=pytest.mark.skipif(not (SHARED / D.FREY_FILE).is_file(), reason=f"no Frey Face in {SHARED}")
        ),
    ],
)
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


GREY = np.random.RandomState(0).randint(0, 256, (30, 1, 8, 8)).astype(np.uint8)
TENSOR = torch.from_numpy(GREY)


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


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
        with pytest.raises(ValueError, match=r"images: wanted a uint8 .* make it anew, as numbers of this shape"):
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
        ([3, -1, 4], "-1"),
        ([0.0, 1e30, 2.0], r"1e\+30"),
        (["a", "c", "b"], "'a'"),
        (np.array(["a", "c", "b"], object), "'a'"),
        (np.array([0, 2**63 + 5, 1], np.uint64), "9223372036854775813"),
        (torch.tensor([0.0, 0.9, 1.0]).bfloat16(), r"0\.8984375"),
    ],
)
def test_labels_that_are_no_classes_are_refused_and_the_cure_works(labels, got):
    with pytest.raises(ValueError, match=f"labels: wanted whole numbers from 0, got {got}") as refused:
        D.Split(GREY[:3], labels)
    labels = labels.float() if isinstance(labels, torch.Tensor) else labels
    code, classes = code_in(refused.value).split(", classes being ")
    assert classes == "np.unique of the labels of all splits"
    numbers = eval(code, {"np": np, "labels": labels, "classes": np.unique(labels)})
    assert D.Split(GREY[:3], numbers).labels.tolist() == np.argsort(np.argsort(np.asarray(labels))).tolist()


def test_labels_in_another_shape_are_refused_and_the_cure_works():
    for labels in (np.arange(30)[:, None], np.eye(30), torch.eye(30), torch.arange(30)[:, None], torch.eye(30).bool()):
        with pytest.raises(ValueError, match=r"labels: wanted 30, one an image, got \[30, "):
            D.Split(GREY, labels)
        split = cured(lambda given: D.Split(GREY, given), labels, "labels")
        assert split.labels.tolist() == list(range(30))
    for labels in (np.arange(29), np.zeros((30, 2)), np.int64(3), []):
        with pytest.raises(ValueError, match=r"labels: wanted 30, one an image.*; give as many labels as images"):
            D.Split(GREY, labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[1], [2, 3], *range(28)], "got a list of which some hold more than others; give a number for each image"),
        ((n for n in range(30)), "got a generator; give as many labels as images, in a list, an array or a tensor"),
        (set(range(30)), "got a set; give"),
        ([None] * 30, "wanted whole numbers from 0, got None"),
    ],
)
def test_labels_that_are_no_numbers_are_named(labels, message):
    with pytest.raises(ValueError, match=f"labels: .*{message}"):
        D.Split(GREY, labels)


def test_values_that_are_not_there_are_not_made_up():
    """A masked array holds something behind its mask, a sparse tensor zeros that it does not hold."""
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


MASK = GREY[:, 0, 0, 0] > 100


@pytest.mark.parametrize(
    "index",
    [
        slice(3),
        slice(None, None, 2),
        slice(None, None, -1),
        slice(20, 5, -3),
        slice(0, 0),
        slice(-4, None),
        [4, 2],
        [],
        np.array([4, -1]),
        np.array([4, 2], np.int32),
        np.arange(30)[::-1],
        MASK,
        MASK.tolist(),
        np.array([3], np.uint16),
    ],
)
def test_a_split_is_indexed_as_an_array_is(index):
    split = D.Split(GREY, np.arange(30))[index]
    wanted = np.zeros(0, int) if isinstance(index, list) and not index else index
    assert np.array_equal(split.images, GREY[wanted]) and np.array_equal(split.labels, np.arange(30)[wanted])
    if isinstance(index, np.ndarray):
        tensor = torch.from_numpy(index.copy())
        assert torch.equal(D.Split(GREY)[tensor].images, split.images)


@pytest.mark.parametrize(
    "index",
    [
        0,
        -1,
        np.int64(3),
        True,
        torch.tensor(3),
        (0, 2),
        (slice(3), 0),
        None,
        "a",
        0.5,
        [0.5],
        [[1, 2]],
        [True],
        np.ones(30, np.uint8),
        Ellipsis,
    ],
)
def test_what_is_no_index_of_a_split(index):
    split = D.Split(GREY, np.arange(30))
    with pytest.raises(ValueError, match=r"index: wanted a slice, .* DataLoader\(TensorDataset"):
        split[index]


def test_a_loader_of_a_split_says_how_to_make_one():
    split = D.Split(GREY, np.arange(30))
    for attempt in (lambda: next(iter(DataLoader(split))), lambda: list(split)):
        with pytest.raises(ValueError, match="index: wanted a slice") as refused:
            attempt()
    code = str(refused.value).rsplit(", ", 2)[1:]
    assert code == ["DataLoader(TensorDataset(split.images", "split.labels)) for batches of tensors"]
    images, labels = next(iter(DataLoader(TensorDataset(split.images, split.labels), batch_size=30)))
    assert np.array_equal(images, GREY) and labels.tolist() == list(range(30))
    with pytest.raises(ValueError, match=r"TensorDataset\(split.images\)\)"):
        D.Split(GREY)[0]


def in_memory(train, valid=None, test=None):
    return D.Data("own", *(D.Split(train if part is None else part) for part in (train, valid, test)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "name: wanted a string, got 3"),
        ({"note": None}, "note: wanted a string, got None"),
        ({"train": GREY}, r"train: wanted a Split, got uint8 of shape \(30, 1, 8, 8\); write Split\(images\)"),
        ({"test": None}, r"test: wanted a Split, got a NoneType"),
        ({"valid": D.Split(GREY[:0])}, r"valid: wanted at least one image, of shape \(1, 8, 8\).*got 0 of"),
        ({"train": D.Split(GREY[:0])}, "train: wanted at least one image"),
        ({"test": D.Split(GREY[:, :, 1:])}, r"test: wanted .* \(1, 8, 8\) as in train, got 30 of \(1, 7, 8\)"),
    ],
)
def test_a_data_set_is_three_splits_of_one_shape(change, message):
    with pytest.raises(ValueError, match=message):
        replace(in_memory(GREY), **change)


@pytest.mark.parametrize("splits", [(1, 1, 1), (255, 255, 1), (255, 1, 255), (1, 255, 255)])
def test_images_of_zero_and_one_are_refused(splits):
    ones = (GREY > 178).astype(np.uint8)
    named = ", ".join(name for name, white in zip(("train", "valid", "test"), splits) if white == 1)
    with pytest.raises(ValueError, match=f"got 0 and 1 alone in {named}; write ") as refused:
        in_memory(*(white * ones for white in splits))
    for images in (ones, torch.from_numpy(ones)):
        cure = eval(code_in(refused.value), {"images": images})
        assert np.array_equal(in_memory(cure).train.images, 255 * ones)


@pytest.mark.parametrize("white", [2, 15, 16, 40, 100, 127])
def test_dark_images_are_pointed_out_once_and_the_cure_works(white):
    dark = torch.from_numpy(np.round(GREY / 255 * white).astype(np.uint8))
    with pytest.warns(UserWarning, match=f"no grey level above {white} of 255 was found in train, valid, test") as said:
        data = in_memory(dark)
    assert len(said) == 1 and said[0].filename == __file__
    assert torch.equal(data.to("cpu").train[::2].images, dark[::2]) and len(data.valid[3:]) == 27  # without a word
    bright = in_memory(cured_by(said[0].message, dark)).train.images
    assert bright.max() == 255 and (bright / 255 - dark / white).abs().max() <= 0.5 / 255 + 1e-6
    with pytest.warns(UserWarning, match="was found in test; go on"):
        in_memory(GREY, GREY, dark)


def cured_by(message, images):
    return eval(code_in(message), {"images": images, "torch": torch})


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


def test_a_tilde_is_the_home_folder(mnist, offline, monkeypatch, tmp_path):
    root, _ = mnist
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(root))
    for home in ("~", Path("~")):
        assert len(D.load("mnist", home, valid_size=7).train) == 23
    monkeypatch.setenv(D.ENVIRONMENT, "~/")
    assert len(D.load("mnist", valid_size=7).train) == 23
    monkeypatch.delenv(D.ENVIRONMENT)
    monkeypatch.setenv("XDG_CACHE_HOME", "~/new")
    with pytest.raises(D.MissingData):
        D.load("kmnist")
    (root / "own images").mkdir()
    for split in ("train", "valid", "test"):
        np.save(root / f"own images/{split}.npy", GREY)
    assert D.load("~/own images").name == "own images"
    with pytest.raises(ValueError, match=r"~nobody-here/x: there is no such home folder; write .*/here/~nobody-here/x"):
        D.load("mnist", "~nobody-here/x")
    assert list(Path.cwd().iterdir()) == []


def test_a_folder_with_the_name_of_a_data_set_is_not_passed_over_silently(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("digits").mkdir()
    assert D.load("digits").shape == (1, 8, 8)  # an empty folder is nobody's images
    for split in ("train", "valid", "test"):
        np.save(f"digits/{split}.npy", GREY[:, :, :5])
    with pytest.warns(UserWarning, match=r"'digits' is the known data set, .*; write './digits' for the folder"):
        assert D.load("digits").shape == (1, 8, 8)
    for name in ("./digits", Path("digits"), Path("digits").resolve()):
        assert D.load(name).shape == (1, 5, 8)


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


@pytest.mark.parametrize("other", D.FIRST_LABELS)
def test_files_of_another_set_under_the_same_names(mnist, other):
    root, written = mnist
    labels = np.array([*D.FIRST_LABELS[other], *written["train"][1][10:]], np.uint8)
    for name in D.IDX:
        raw = root / "all" / D.IDX[name] / "raw"
        raw.mkdir(parents=True)
        for path in (root / "MNIST/raw").iterdir():
            (raw / path.name).write_bytes(path.read_bytes())
        (raw / "train-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
        if name == other:
            assert D.load(name, root / "all", valid_size=7).name == other
        else:
            with pytest.raises(D.DataError, match=f"these are the files of {other}, not of {name}"):
                D.load(name, root / "all", valid_size=7)


def test_idx_files_of_any_size(mnist, monkeypatch):
    root, _ = mnist
    monkeypatch.setattr(D, "UNPACKED_BYTES", 10_000)  # the images have 23,520 and 7,840
    assert len(D.load("mnist", root, valid_size=7).train) == 23
    path = root / "MNIST/raw/train-images-idx3-ubyte"
    content = path.read_bytes()
    path.unlink()
    archive = path.with_name(path.name + ".gz")
    archive.write_bytes(gzip.compress(content))
    with pytest.raises(D.DataError, match=r"gz: its 23,520 bytes are more .*; unpack it by gzip -d, if") as refused:
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

    monkeypatch.setattr(D, "_filled", refuse)
    with pytest.raises(D.DataError, match=r"Unable to allocate 9 GiB\); the file itself may be whole"):
        D.load("mnist", mnist[0], valid_size=7)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("side", [28, 32])
def test_other_sets_of_idx_files_become_a_folder_of_arrays(tmp_path, monkeypatch, packed, side):
    images, labels = np.random.RandomState(0).randint(0, 256, (40, side, side), np.uint8), np.arange(40, dtype=np.uint8)
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for name, content in (("images-idx3", images), ("labels-idx1", labels)):
            path = raw / f"{part}-{name}-ubyte{'.gz' if packed else ''}"
            path.write_bytes((gzip.compress if packed else bytes)(idx_bytes(content)))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(D.DataError, match="put the files of mnist there; for a folder of arrays write") as refused:
        D.load("mnist", tmp_path)
    assert "remove" not in str(refused.value)
    follow(refused.value, gzip=gzip)
    (raw.parent / "raw").rename(tmp_path / "away")
    data = cured_files(lambda: D.load("."))
    assert [len(split) for split in (data.train, data.valid, data.test)] == [33, 4, 3]
    for split in (data.train, data.valid, data.test):
        assert np.array_equal(split.images[:, 0], images[split.labels])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": None}, "name: wanted the name of a data set or of a folder, got a NoneType"),
        ({"name": GREY}, r"name: wanted .*, got uint8 of shape .*; build Data\(name, Split\(images\), ...\)"),
        ({"name": b"digits"}, "name: wanted .*, got a bytes"),
        ({"valid_size": 200.0}, r"valid_size: wanted a whole number of images, got 200\.0"),
        ({"valid_size": True}, "valid_size: wanted a whole number of images, got True"),
        ({"valid_size": 0}, "valid_size: wanted 1 to 1546 of digits's 1547 images, got 0"),
        ({"valid_size": 1547}, "valid_size: wanted 1 to 1546 .*; write for instance valid_size=154"),
        ({"seed": 1.5}, r"seed: wanted a whole number from 0 to 4294967295, got 1\.5"),
        ({"seed": -1}, "seed: wanted a whole number"),
        ({"seed": True}, "seed: wanted a whole number"),
        ({"layout": "NHWC"}, 'layout: wanted "NCHW" or "NHWC" for a folder, else None, got \'NHWC\' for digits'),
        ({"name": "elsewhere", "layout": "HWC"}, "layout: wanted"),
    ],
)
def test_arguments_of_another_kind(arguments, message):
    with pytest.raises(ValueError, match=message):
        D.load(**{"name": "digits", **arguments})
    assert len(D.load("digits", valid_size=np.int64(5), seed=np.int32(1)).valid) == 5
