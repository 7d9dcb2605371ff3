"""Folders of arrays that stay on disk: the same training as from memory, little of them resident, clear errors."""

import math
import mmap
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from pyro_vae import VAE, fit, guides, likelihoods, load, networks, priors
from pyro_vae.data import mapped
from pyro_vae.data.sets import DataError, Split

COUNTS = {"train": 60, "valid": 20, "test": 10}


@pytest.fixture
def folder(tmp_path):
    """Make a folder of noise: coloured images of 4 × 5 pixels in three splits, and labels of the test images."""
    for split, count in COUNTS.items():
        np.save(tmp_path / f"{split}.npy", np.random.RandomState(count).randint(0, 256, (count, 3, 4, 5), np.uint8))
    np.save(tmp_path / "test_labels.npy", np.arange(10, dtype=np.int32))
    return tmp_path


def resident():
    """Return the bytes of mapped files in the memory of this process."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("RssFile"))


def test_a_folder_of_arrays_is_loaded_as_it_lies_there(folder):
    data = load(str(folder))
    assert data.name == folder.name and data.shape == (3, 4, 5)
    for split, count in COUNTS.items():
        images = getattr(data, split).images
        assert len(images) == count and mapped.is_mapped(images)
        assert np.array_equal(images, np.load(folder / f"{split}.npy"))
    assert data.train.labels is None and data.test.labels.tolist() == list(range(10))
    np.save(folder / "train.npy", np.zeros((7, 4, 5), np.uint8))
    for split in ("valid", "test"):
        np.save(folder / f"{split}.npy", np.zeros((2, 4, 5), np.uint8))
    (folder / "test_labels.npy").unlink()
    assert load(folder).shape == (1, 4, 5)


@pytest.mark.slow
def test_training_from_disk_is_training_from_memory(folder):
    on_disk = load(folder)
    in_memory = replace(on_disk, train=Split(on_disk.train.images.clone()))
    assert not mapped.is_mapped(in_memory.train.images) and mapped.is_mapped(on_disk.to("cpu").train.images)
    (folder / "last").mkdir()
    for split in COUNTS:
        np.save(folder / f"last/{split}.npy", np.moveaxis(np.load(folder / f"{split}.npy"), 1, -1))
    channels_last = load(folder / "last", layout="NHWC")
    assert mapped.is_mapped(channels_last.train.images) and channels_last.shape == on_disk.shape
    rows = []
    for data in (on_disk, in_memory, channels_last):
        torch.manual_seed(0)
        vae = VAE(
            priors.StandardNormal(2),
            likelihoods.Normal(networks.MLPDecoder(2, data.shape, maps=6, hidden=(8,))),
            guides.MeanField(networks.MLPEncoder(data.shape, hidden=(8,)), 2),
        )
        rows.append(fit(vae, data, epochs=2, batch_size=16, engine="eager", progress=False).rows)
    bounds = [[row["valid_bound"] for row in history] for history in rows]
    assert bounds[0] == bounds[1] == bounds[2]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the resident size is read from Linux's /proc")
def test_little_of_the_file_is_resident(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "RESIDENT", 8 << 20)
    np.save(tmp_path / "train.npy", np.ones((100_000, 1, 28, 28), np.uint8))
    images = mapped.map_array(tmp_path / "train.npy")
    before, most = resident(), 0
    for index in torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).split(64):
        assert mapped.take(images, index).all()
        most = max(most, resident() - before)
    assert most < 20 << 20
    assert images.sum() == images.numel()
    assert resident() - before > 70 << 20  # what it is without ``take``: the test can tell


@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux can the file be a sparse one")
def test_more_images_than_the_memory_holds(tmp_path):
    shape = (2_000_000_000, 1, 28, 28)  # 1.6 TB
    with (tmp_path / "train.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        file.truncate(file.tell() + math.prod(shape))
    images = mapped.map_array(tmp_path / "train.npy")
    assert images.shape == shape and not mapped.take(images, torch.tensor([0, 1_999_999_999])).any()


def test_what_is_written_does_not_reach_the_file(folder):
    images = load(folder).train.images
    images.zero_()
    assert np.load(folder / "train.npy").any()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.npy", np.zeros((5, 4, 5)), "train.npy cannot be read .*wanted an array of uint8 in C order, got"),
        ("train.npy", np.zeros(5, np.uint8), r"train.npy cannot be read .*wanted a uint8 tensor \(N, C, H, W\), got"),
        ("train.npy", np.zeros((0, 3, 4, 5), np.uint8), "train.npy cannot be read .*write it again with numpy.save"),
        ("valid.npy", np.zeros((5, 3, 4, 4), np.uint8), r"valid.npy: wanted images of \(3, 4, 5\), as in train.npy"),
        ("test_labels.npy", np.zeros(3), "test_labels.npy cannot be read .*labels: wanted 10, one a row, got"),
        ("test.npy", b"no array", "test.npy cannot be read"),
        ("test.npy", None, r"test.npy is missing; wanted train.npy, valid.npy and test.npy, uint8 of shape"),
    ],
)
def test_what_does_not_belong_in_the_folder(folder, name, content, message):
    (folder / name).unlink()
    if isinstance(content, bytes):
        (folder / name).write_bytes(content)
    elif content is not None:
        np.save(folder / name, content)
    with pytest.raises(DataError, match=message):
        load(folder)


def test_a_file_that_is_shorter_than_it_declares(folder):
    content = (folder / "train.npy").read_bytes()
    (folder / "train.npy").write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"train.npy cannot be read"):
        load(folder)


def test_a_folder_has_validation_images_of_its_own(folder):
    with pytest.raises(ValueError, match=r"valid_size: wanted none, as .* has validation images of its own, got 5"):
        load(folder, valid_size=5)


class Pages:
    """Counts how often the pages of a file are let go."""

    def __init__(self):
        self.calls = 0

    def madvise(self, option):
        self.calls += 1


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="pages cannot be let go")
def test_images_are_let_go_after_as_many_as_may_be_resident(folder, monkeypatch):
    images, pages = mapped.map_array(folder / "train.npy"), Pages()
    monkeypatch.setitem(mapped._MAPPED, images.untyped_storage().data_ptr(), pages)
    for resident, calls in ((1, 7), (3 * mapped.TOUCHED, 3), (7 * mapped.TOUCHED, 1)):
        monkeypatch.setattr(mapped, "RESIDENT", resident)
        pages.calls, index = 0, torch.tensor([5, 0, 59, 5, 1, 2, 3])
        assert torch.equal(mapped.take(images, index), images.clone()[index])
        assert pages.calls == calls
    pages.calls = 0
    monkeypatch.setattr(mapped, "BLOCK", 120)  # bytes of two images
    assert torch.equal(mapped.take_blocks(images, index), images.clone()[index]) and pages.calls == 1
    assert torch.equal(mapped.take_blocks(images, index), images.clone()[index]) and pages.calls == 1  # a copy is held
    assert mapped._BLOCKS[pages].images.shape == (4, 2, 3, 4, 5)  # of images 0 and 1, 2 and 3, 4 and 5, 58 and 59


@pytest.mark.parametrize(("together", "lengths"), [(59, [1] * 5), (60, [1] * 5), (180, [3, 2]), (1 << 20, [5])])
def test_a_pass_over_images_has_no_more_at_once_than_fit(folder, monkeypatch, together, lengths):
    monkeypatch.setattr(mapped, "TOGETHER", together)
    images = mapped.map_array(folder / "train.npy")[:5]  # of 60 bytes each
    assert [len(part) for part in mapped.parts(images)] == lengths
    assert torch.equal(torch.cat([*mapped.parts(images)]), images)
    index = torch.tensor([4, 0])
    assert torch.equal(torch.cat([*mapped.parts(images, index)]), images.clone()[index])


def test_an_image_has_its_bytes_however_many_there_are():
    assert [mapped.image_bytes(torch.zeros(n, 3, 5)) for n in (1, 2, 7)] == [60, 60, 60]
    assert mapped.image_bytes(torch.zeros(0, 3, 5)) == mapped.image_bytes(torch.zeros(4, 0)) == 1
