"""Data sets of torch are read once, whole or not at all, and known again only if nothing has changed."""

import os
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset, TensorDataset
from torch_sets import GREY, READ, Elsewhere, Files, Noisy, Rows, Stream
from torchvision import transforms
from torchvision.datasets import FakeData, ImageFolder

from pyro_vae.data import Data, DataError, DataWarning
from pyro_vae.data.mapped import is_mapped

LABELS = np.arange(40) % 3


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    READ.clear()
    return tmp_path / "cache/pyro_vae/datasets"


def splits(data):
    return data.train, data.valid, data.test


def check(data, seed=0, valid=4, test=4, images=GREY, labels=LABELS):
    """Compare with the documented permutation; the order within a split is that of the data set."""
    order = np.random.RandomState(seed).permutation(len(images))
    rows = order[test : len(images) - valid], order[len(images) - valid :], order[:test]
    for split, index in zip(splits(data), map(np.sort, rows)):
        assert np.array_equal(split.images[:, 0], images[index])
        assert labels is None or split.labels.tolist() == labels[index].tolist()


ITEMS = {
    "arrays": [(image, label) for image, label in zip(GREY, LABELS)],
    "tensors": [(torch.from_numpy(image)[None], int(label)) for image, label in zip(GREY, LABELS)],
    "floats": [(image.astype(np.float32) / 255, label) for image, label in zip(GREY, LABELS)],
    "pictures": [(Image.fromarray(image), int(label)) for image, label in zip(GREY, LABELS)],
    "channels last": [(image[..., None], label) for image, label in zip(GREY, LABELS)],
    "mappings": [{"image": Image.fromarray(image), "label": label} for image, label in zip(GREY, LABELS)],
}


@pytest.mark.parametrize("memory", [1e9, 100])
@pytest.mark.parametrize("kind", ITEMS)
def test_items_of_any_kind(kind, memory):
    data = Data.from_dataset(Rows(ITEMS[kind]), memory=memory, name=kind)
    check(data)
    assert [is_mapped(split.images) for split in splits(data)] == [memory == 100] * 3 and data.name == kind


@pytest.mark.parametrize("memory", [1e9, 100])
def test_iterables_without_a_length_are_drawn_row_by_row(memory, cache):
    data = Data.from_dataset(Stream(ITEMS["arrays"]), valid=0.2, test=0.2, seed=1, memory=memory)
    u = np.random.RandomState(1).random_sample(40)
    for split, chosen in zip(splits(data), (u >= 0.4, (u >= 0.2) & (u < 0.4), u < 0.2)):
        assert np.array_equal(split.images[:, 0], GREY[chosen]) and split.labels.tolist() == LABELS[chosen].tolist()
    assert is_mapped(data.train.images) == (memory == 100) and not list(cache.iterdir())


def test_iterables_with_a_length_and_generators(cache):
    check(Data.from_dataset(Stream(ITEMS["arrays"], length=40)))
    data = Data.from_dataset((image for image in GREY), valid=Rows(GREY[:5]), test=Rows(GREY[5:9]))
    assert np.array_equal(data.train.images[:, 0], GREY) and np.array_equal(data.test.images[:, 0], GREY[5:9])
    assert not list(cache.iterdir())


def test_fields_of_other_names():
    counts = torch.arange(80).reshape(40, 2)
    data = Data.from_dataset(TensorDataset(counts, torch.from_numpy(LABELS)), fields=("counts", "batch"))
    assert data.train.images is None and torch.equal(data.train.batch, data.train.counts[:, 0] // 2 % 3)


def test_torchvision_and_subsets(tmp_path):
    for name, part in (("cat", GREY[:20]), ("dog", GREY[20:])):
        (tmp_path / name).mkdir()
        for n, image in enumerate(part):
            Image.fromarray(image).save(tmp_path / f"{name}/{n:02}.png")
    folder = ImageFolder(tmp_path, transform=transforms.Compose([transforms.Grayscale(), transforms.ToTensor()]))
    labels = np.arange(40) // 20
    data = Data.from_dataset(folder)
    check(data, labels=labels)
    assert data.classes == ("cat", "dog") and data.name == "ImageFolder"
    check(Data.from_dataset(Subset(folder, range(10, 40))), valid=3, test=3, images=GREY[10:], labels=labels[10:])
    assert Data.from_dataset(FakeData(20, (3, 8, 9))).shape == (3, 8, 9)


# The cache


def read(dataset, **arguments):
    READ.clear()
    return Data.from_dataset(dataset, memory=100, **arguments), len(READ)


def test_the_second_time_is_immediate(cache, caplog):
    first, all_rows = read(Rows(ITEMS["arrays"]))
    assert all_rows > 40 and "are kept in" in caplog.text and len(list(cache.iterdir())) == 1
    second, probed = read(Rows(ITEMS["arrays"]))
    assert probed <= 22
    check(second)
    assert is_mapped(second.train.images) and second.train.labels.dtype == torch.int64
    assert len(list(cache.iterdir())) == 1
    check(first)


CHANGES = {
    "one pixel": lambda items: Rows([(items[0][0] ^ 1, items[0][1]), *items[1:]]),
    "one pixel of a row that is not probed": lambda items: Rows([*items[:1], (items[1][0] ^ 1, 1), *items[2:]]),
    "one row less": lambda items: Rows(items[:-1]),
    "another order": lambda items: Rows(items[::-1]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_rows_that_changed_are_read_again(change, cache):
    items = ITEMS["arrays"]
    read(Rows(items))
    changed = CHANGES[change](items)
    data, count = read(changed)
    assert count > 40 - 2 and len(list(cache.iterdir())) == 2
    images = np.stack([image for image, _ in changed.items])
    check(data, images=images, labels=np.array([label for _, label in changed.items]))


@pytest.mark.parametrize("arguments", [{"seed": 1}, {"valid": 5}, {"test": 0.2}])
def test_other_arguments_are_other_rows(arguments):
    read(Rows(ITEMS["arrays"]))
    data, count = read(Rows(ITEMS["arrays"]), **arguments)
    assert count > 40
    check(data, **{"valid": 4, "test": 4, **arguments, **({"test": 8} if "test" in arguments else {})})


def test_a_file_that_changed_is_seen(tmp_path):
    np.save(tmp_path / "rows.npy", GREY)
    read(Files(tmp_path / "rows.npy"))
    assert read(Files(tmp_path / "rows.npy"))[1] <= 22
    changed = GREY.copy()
    changed[1] ^= 1  # a row that is not probed
    time = os.stat(tmp_path / "rows.npy").st_mtime_ns
    np.save(tmp_path / "rows.npy", changed)
    os.utime(tmp_path / "rows.npy", ns=(time, time + 1))
    data, count = read(Files(tmp_path / "rows.npy"))
    assert count > 40
    check(data, images=changed, labels=None)
    assert read(Files(tmp_path / "rows.npy", level=1))[1] > 40


@pytest.mark.parametrize("dataset", [Elsewhere(), Stream(ITEMS["arrays"]), Rows([*ITEMS["arrays"][:1]] * 40)])
def test_rows_that_cannot_be_known_again_are_kept_by_a_key_alone(dataset, cache, caplog):
    if isinstance(dataset, Rows):
        dataset.made_by = lambda: None  # cannot be pickled
    Data.from_dataset(dataset, valid=0.2, test=0.2, memory=100)
    assert "will be read again next time" in caplog.text and not list(cache.iterdir())
    first = Data.from_dataset(dataset, valid=0.2, test=0.2, memory=100, key="May")
    assert len(list(cache.iterdir())) == 1
    again = (
        Data.from_dataset(Stream([]), valid=0.2, test=0.2, memory=100, key="May")
        if isinstance(dataset, Stream)
        else Data.from_dataset(dataset, valid=0.2, test=0.2, memory=100, key="May")
    )
    assert torch.equal(first.train.images, again.train.images) and len(list(cache.iterdir())) == 1
    Data.from_dataset(dataset, valid=0.2, test=0.2, memory=100, key="June")
    assert len(list(cache.iterdir())) == 2


def test_tensors_are_known_again_in_another_place_in_memory(cache):
    for _ in range(2):
        Data.from_dataset(TensorDataset(torch.from_numpy(GREY.copy()), torch.from_numpy(LABELS.copy())), memory=100)
    assert len(list(cache.iterdir())) == 1


# Bad input


BAD = {
    "ends early": (Stream(GREY, length=41), "train: wanted 41 rows, as its length says, got 40: row 40 is missing"),
    "goes on": (Stream(GREY, length=39), "train: wanted 39 rows, as its length says, got row 39, too"),
    "too long a length": (Rows(GREY, length=41), r"train: row 40 cannot be read \(IndexError"),
    "another shape": (Rows([*GREY[:30], GREY[0, :5]]), r"row 30: wanted images: uint8 of shape \(1, 8, 8\), as in the"),
    "another shape in a stream": (Stream([*GREY[:30], GREY[0, :5]]), r"row 30: wanted images: .* got .*\(1, 5, 8\)"),
    "another dtype": (Rows([*ITEMS["arrays"][:9], (GREY[0], 0.5)]), "row 9: wanted .*labels: int64.* got .*float64"),
    "fields missing": (Rows([*ITEMS["mappings"][:9], {"image": GREY[0]}]), "row 9: wanted .* got images: uint8"),
    "three parts": (Rows([(GREY[0], 1, 2)] * 9), "row 0: wanted the fields images, labels, got 3 parts; name them"),
    "normalised": (Rows(GREY / 127.5 - 1), "row 0: wanted floating-point numbers in .0, 1. as image, got -1 to 1"),
    "NaN": (Rows([*(GREY / 255), np.full((8, 8), np.nan)]), "row 40: wanted floating-point numbers"),
    "no image": (Rows([np.arange(4)] * 9), "row 0: wanted as image a picture of Pillow.* got int64 of shape"),
    "no name": (Rows([{"my image": GREY[0]}] * 9), "row 0: wanted names of fields, such as counts, got 'my image'"),
    "nothing": (Rows([]), "train: wanted at least one row, got an empty data set"),
    "an empty stream": (Stream([]), "train, valid, test: wanted at least one row, got none"),
    "a failing item": (Rows([*GREY[:9], None]), "row 9: wanted as image"),
}


@pytest.mark.parametrize("memory", [1e9, 10])
@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_names_the_row_and_leaves_nothing(case, memory, cache):
    dataset, message = BAD[case]
    with pytest.raises(DataError, match=message):
        Data.from_dataset(dataset, memory=memory, key="bad")
    assert not cache.exists() or not list(cache.iterdir())


def test_a_row_that_raises_is_named():
    def rows():
        yield from GREY[:7]
        raise OSError("the tape is torn")

    with pytest.raises(DataError, match=r"train: row 7 cannot be read .*the tape is torn"):
        Data.from_dataset(rows())


def test_what_is_no_data_set():
    with pytest.raises(ValueError, match=r"train: wanted a data set of torch, got a DataLoader.* write loader.dataset"):
        Data.from_dataset(DataLoader(Rows(GREY)))
    with pytest.raises(ValueError, match=r"valid: wanted a data set of torch, .* got a NoneType"):
        Data.from_dataset(Rows(GREY), valid=None)
    with pytest.raises(ValueError, match="test: wanted a fraction, as the number of rows is not known"):
        Data.from_dataset(Stream(GREY), test=5)


def test_augmentation_that_would_be_frozen_is_said():
    with pytest.warns(DataWarning, match="train: rows differ each time they are read.*observe") as said:
        Data.from_dataset(Noisy(GREY))
    assert said[0].filename == __file__


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot be written .*set another cache folder by XDG_CACHE_HOME"):
        Data.from_dataset(Rows(GREY), memory=100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(Data.from_dataset(Rows(GREY)), labels=None)
