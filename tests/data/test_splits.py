"""Splits are indexed as arrays are; a data set is three of them; batches are a partition."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from grey import GREY, in_memory
from torch.utils.data import DataLoader, TensorDataset

from pyro_vae.data import mapped
from pyro_vae.data import sets as D


def test_batches_are_a_shuffled_partition():
    index = list(D.batches(10, 4, generator=torch.Generator().manual_seed(0)))
    assert [len(batch) for batch in index] == [4, 4, 2]
    assert sorted(torch.cat(index).tolist()) == list(range(10)) != torch.cat(index).tolist()


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


def test_fields_of_any_name_belong_to_a_data_set_and_are_looked_at():
    split = D.Split(GREY, np.arange(30), zeta=np.ones(30))
    assert D.Data("own", split, split[:3], split[3:5]).valid.zeta.tolist() == [1, 1, 1]
    other = D.Split(GREY, np.arange(30), zeta=np.ones((30, 2)))
    with pytest.raises(ValueError, match=r"test: wanted the fields and row shapes.*'zeta': \(\).*'zeta': \(2,\)"):
        D.Data("own", D.Split(GREY, zeta=np.ones(30)), D.Split(GREY, zeta=np.ones(30)), other)


def test_rows_move_to_a_device_and_files_stay(tmp_path):
    np.save(tmp_path / "rows.npy", GREY)
    on_disk, in_memory_ = D.Split(mapped.map_array(tmp_path / "rows.npy")), D.Split(GREY)
    assert in_memory_.to("meta").images.is_meta
    assert not on_disk.to("meta").images.is_meta


def test_notebooks_show_pictures_where_there_are_some():
    assert "<img" in D.Split(GREY)._repr_html_() and "<img" not in D.Split(counts=np.arange(30))._repr_html_()
