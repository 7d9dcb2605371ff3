"""Known data sets: found, downloaded, split and named; missing ones and wrong arguments."""

import bz2
import gzip
import io
import os
import pickle
import socket
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
import torchvision
from cures import cured_files, follow
from data_files import idx_bytes, mat_bytes, usps_text
from grey import GREY
from PIL import Image

from pyro_vae.data import DataWarning, formats, known
from pyro_vae.data import sets as D
from pyro_vae.likelihoods import Bernoulli

RANDOM = np.random.RandomState(0)
SHARED = Path(os.environ.get(D.ENVIRONMENT) or Path(__file__).parents[3] / "shared/data")


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
    everything = D._digits()[0] if name == "digits" else D.Split(formats.read_frey(SHARED / D.FREY_FILE))
    assert sorted(rows) == sorted(tuple(image.flatten().tolist()) for image in everything.images)
    other = D.load(name, None if name == "digits" else SHARED, seed=1)
    assert torch.equal(data.train.images, D.load(name, None if name == "digits" else SHARED).train.images)
    assert not torch.equal(data.train.images, other.train.images)


def test_digits_use_the_whole_range_of_grey_levels():
    digits = D.load("digits")
    assert digits.train.images.min() == 0 and digits.train.images.max() == 255
    assert digits.test.labels.unique().tolist() == list(range(10))


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "MNIST/raw").is_dir(), reason=f"no MNIST in {SHARED}")
def test_real_mnist():
    data = D.load("mnist", SHARED)
    assert [len(split) for split in (data.train, data.valid, data.test)] == [50_000, 10_000, 10_000]
    both = torch.cat([data.train.images, data.valid.images])
    assert both.double().mean().item() / 255 == pytest.approx(0.1307, abs=5e-5)  # torchvision's well-known mean
    assert data.test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


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
    (tmp_path / "source.mat").write_bytes(mat_bytes(ff=faces))

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
        monkeypatch.setattr(known, "TIMEOUT", 0.2)
        start = time.monotonic()
        with pytest.raises(D.MissingData, match=r"its download failed \(timed out\); put its files where"):
            D.load("frey", tmp_path)
    assert time.monotonic() - start < 10 and socket.getdefaulttimeout() is None
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(offline, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(D.MissingData, match=r"cannot be written \(Not a directory\)"):
        D.load("mnist", tmp_path / "file/folder")


def test_labels_that_do_not_belong(mnist):
    (mnist[0] / "MNIST/raw/t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(9, np.uint8)))
    with pytest.raises(D.DataError, match=r"as many labels, got \(10, 28, 28\) and \(9,\)"):
        D.load("mnist", mnist[0], valid_size=7)


def test_labels_that_are_no_digits(mnist):
    (mnist[0] / "MNIST/raw/t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.full(10, 200, np.uint8)))
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
    content = mat_bytes(ff=np.random.RandomState(0).randint(0, 256, (560, 1965), dtype=np.uint8))
    assert len(D.load("frey", tmp_path).train) == 1565
    assert (tmp_path / "frey/notes.txt").read_text() == "mine"


def test_bad_arguments(mnist):
    with pytest.raises(
        ValueError, match=r"wanted one of mnist, .*, auto, or a folder or file of your own, got 'cifar'"
    ):
        D.load("cifar")
    for size in (0, -1, 30):
        with pytest.raises(ValueError, match=f"valid_size: wanted 1 to 29 of mnist's 30 images, got {size}"):
            D.load("mnist", mnist[0], valid_size=size)
    with pytest.raises(ValueError, match="wanted a uint8 tensor"):
        D.Split(torch.zeros(3, 28, 28, dtype=torch.uint8))
    with pytest.raises(ValueError, match="wanted 3, one a row, got"):
        D.Split(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.zeros(2))


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
    with pytest.warns(DataWarning, match=r"'digits' is the known data set, .*; write './digits' for the folder"):
        assert D.load("digits").shape == (1, 8, 8)
    for name in ("./digits", Path("digits"), Path("digits").resolve()):
        assert D.load(name).shape == (1, 5, 8)


@pytest.mark.parametrize("other", [known.word for known in D.SETS.values() if known.first_labels])
def test_files_of_another_set_under_the_same_names(mnist, other):
    root, written = mnist
    labels = np.array([*D.SETS[other].first_labels, *written["train"][1][10:]], np.uint8)
    for name in ("mnist", "fashion", "kmnist"):
        raw = (root / "all" / D.SETS[name].files[0]).parent
        raw.mkdir(parents=True)
        for path in (root / "MNIST/raw").iterdir():
            (raw / path.name).write_bytes(path.read_bytes())
        (raw / "train-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
        if name == other:
            assert D.load(name, root / "all", valid_size=7).name == other
        else:
            with pytest.raises(D.DataError, match=f"these are the files of {other}, not of {name}"):
                D.load(name, root / "all", valid_size=7)


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
        ({"valid_size": 200.0}, r"valid_size: wanted a whole number, got 200\.0"),
        ({"valid_size": True}, "valid_size: wanted a whole number, got True"),
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


# The sets of torchvision, in tiny files of the layout that it keeps on disk


def write_emnist(root, part, first, classes):
    raw = root / "EMNIST/raw"
    raw.mkdir(parents=True)
    labels = np.arange(first, first + classes).astype(np.uint8)
    images = RANDOM.randint(0, 256, (classes, 28, 28)).astype(np.uint8)
    for split in ("train", "test"):
        (raw / f"emnist-{part}-{split}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (raw / f"emnist-{part}-{split}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    return images.transpose(0, 2, 1)[:, None], np.arange(classes)  # upright


def write_qmnist(root):
    raw, images, labels = root / "QMNIST/raw", RANDOM.randint(0, 256, (9, 28, 28)).astype(np.uint8), np.arange(9)
    raw.mkdir(parents=True)
    columns = np.stack([labels, *RANDOM.randint(0, 70_000, (7, 9))], 1).astype(">i4")
    header = b"\0\0\x0c\x02" + np.array(columns.shape, ">u4").tobytes()
    for split in ("train", "test"):
        (raw / f"qmnist-{split}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (raw / f"qmnist-{split}-labels-idx2-int").write_bytes(header + columns.tobytes())
    assert torch.equal(torchvision.datasets.QMNIST(root).targets[:, 0], torch.from_numpy(labels))
    return images[:, None], labels


def write_usps(root):
    pixels, labels = RANDOM.randint(0, 256, (9, 1, 16, 16)), np.arange(9)
    for name in ("usps.bz2", "usps.t.bz2"):
        (root / name).write_bytes(bz2.compress(usps_text(pixels.reshape(9, 256) / 127.5 - 1, labels)))
    return pixels, labels


def write_svhn(root):
    images, labels = RANDOM.randint(0, 256, (10, 3, 32, 32)).astype(np.uint8), np.arange(1, 11)
    for name in ("train_32x32.mat", "test_32x32.mat"):
        scipy.io.savemat(root / name, {"X": images.transpose(2, 3, 1, 0), "y": labels[:, None]})
    return images, labels % 10


def write_cifar(root):
    folder, images = root / "cifar-10-batches-py", RANDOM.randint(0, 256, (10, 3, 32, 32)).astype(np.uint8)
    folder.mkdir()
    for n in range(5):
        rows = {"data": images[2 * n : 2 * n + 2].reshape(2, -1), "labels": [2 * n, 2 * n + 1]}
        (folder / f"data_batch_{n + 1}").write_bytes(pickle.dumps(rows))
    (folder / "test_batch").write_bytes(pickle.dumps({"data": images.reshape(10, -1), "labels": list(range(10))}))
    return images, np.arange(10)


def write_omniglot(root):
    (root / "omniglot-py").mkdir()
    strokes = RANDOM.rand(9, 28, 28) > 0.8
    for part in ("background", "evaluation"):
        with zipfile.ZipFile(root / f"omniglot-py/images_{part}.zip", "w") as archive:
            for n, image in enumerate(strokes):
                file = io.BytesIO()
                Image.fromarray(~image).save(file, "PNG")
                archive.writestr(f"images_{part}/A/character{n:02}/0.png", file.getvalue())
    return 255 * strokes[:, None], np.arange(9)


WRITERS = {
    "emnist-letters": lambda root: write_emnist(root, "letters", 1, 26),
    "emnist-balanced": lambda root: write_emnist(root, "balanced", 0, 47),
    "qmnist": write_qmnist,
    "usps": write_usps,
    "svhn": write_svhn,
    "cifar10": write_cifar,
    "omniglot": write_omniglot,
}


def of_size(monkeypatch, name, **changes):
    monkeypatch.setitem(D.SETS, name, replace(D.SETS[name], **changes))


@pytest.mark.parametrize("name", WRITERS)
def test_sets_of_torchvision(name, tmp_path, monkeypatch):
    images, labels = WRITERS[name](tmp_path)
    count = len(images)
    with pytest.raises(D.DataError, match=f"{tmp_path}.*wanted .* training images of {name}, got {count}; remove"):
        D.load(name, tmp_path)
    of_size(monkeypatch, name, rows=(count, count))
    data = D.load(name, tmp_path, valid_size=2, seed=4)
    order = np.random.RandomState(4).permutation(count)
    for split, rows in ((data.train, order[:-2]), (data.valid, order[-2:]), (data.test, np.arange(count))):
        assert np.array_equal(split.images, images[rows])
        assert (
            split.labels.tolist()
            == (labels[rows] + (count if name == "omniglot" and split is data.test else 0)).tolist()
        )
    assert data.shape == D.SETS[name].shape and data.classes == D.SETS[name].classes


@pytest.mark.parametrize("name", WRITERS)
def test_sets_that_are_missing_or_of_other_shapes(name, tmp_path, monkeypatch, offline):
    with pytest.raises(D.MissingData, match=f"{name} was not found, and download is False; put its files where"):
        D.load(name, tmp_path, download=False)
    count = len(WRITERS[name](tmp_path)[0])
    of_size(monkeypatch, name, rows=(count, count), shape=(1, 5, 5))
    with pytest.raises(D.DataError, match=rf"wanted images of {name} of shape \(1, 5, 5\), got"):
        D.load(name, tmp_path)


def test_classes_of_the_sets():
    classes = {name: D.SETS[name].classes for name in ("emnist-letters", "emnist-balanced", "cifar10", "svhn")}
    assert classes["emnist-letters"] == tuple(torchvision.datasets.EMNIST.classes_split_dict["letters"][1:])
    assert classes["emnist-balanced"] == tuple(torchvision.datasets.EMNIST.classes_split_dict["balanced"])
    assert len(classes["cifar10"]) == len(classes["svhn"]) == 10


def test_labels_outside_the_classes(tmp_path, monkeypatch):
    write_svhn(tmp_path)
    of_size(monkeypatch, "svhn", rows=(10, 10), classes=("a", "b"))
    with pytest.raises(D.DataError, match="wanted labels of svhn from 0 to 1, got 0 to 9; remove the files"):
        D.load("svhn", tmp_path)


def test_binarized_mnist_has_its_own_splits(tmp_path, monkeypatch):
    ones = {"train": 9, "valid": 4, "test": 5}
    ones = {split: RANDOM.randint(0, 2, (count, 784)) for split, count in ones.items()}
    (tmp_path / "BinarizedMNIST").mkdir()
    for split, rows in ones.items():
        np.savetxt(tmp_path / f"BinarizedMNIST/binarized_mnist_{split}.amat", rows, fmt="%d")
    of_size(monkeypatch, "binarized-mnist", rows=(9, 5, 4))
    data = D.load("binarized-mnist", tmp_path)
    likelihood = Bernoulli(torch.nn.Identity())
    for split, rows in ones.items():
        found = getattr(data, split)
        assert found.labels is None and np.array_equal(found.images.flatten(1), 255 * rows)
        assert np.array_equal(likelihood.observe(found.images).flatten(1), rows)
    with pytest.raises(
        ValueError, match="valid_size: wanted none, as binarized-mnist has validation images of its own"
    ):
        D.load("binarized-mnist", tmp_path, valid_size=3)


def test_binarized_mnist_is_downloaded(tmp_path, monkeypatch):
    asked = []

    def serve(url):
        asked.append(url)
        answer = io.BytesIO(b"0 1 " * 392 + b"\n")
        answer.headers = {}
        return answer

    monkeypatch.setattr("urllib.request.urlopen", serve)
    of_size(monkeypatch, "binarized-mnist", rows=(1, 1, 1))
    assert len(D.load("binarized-mnist", tmp_path).train) == 1
    assert [url.rsplit("_", 1)[1] for url in asked] == ["train.amat", "valid.amat", "test.amat"]


def test_no_name_is_not_this_folder():
    with pytest.raises(ValueError, match="name: wanted the name of a data set or of a folder, got nothing"):
        D.load("")
