"""Images as uint8 tensors: found in a folder, downloaded, bundled or mapped from disk; split; in shuffled batches."""

import gzip
import io
import math
import os
import shutil
import socket
import tempfile
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import scipy.io
import sklearn.datasets
import torch
import torchvision
from torch import Generator, Tensor
from tqdm.auto import tqdm

from pyro_vae.mapped import is_mapped, map_array

IDX = {"mnist": "MNIST", "fashion": "FashionMNIST", "kmnist": "KMNIST"}  # names of torchvision's classes and folders
NAMES = (*IDX, "frey", "digits")
VALID_SIZES = {"mnist": 10_000, "fashion": 10_000, "kmnist": 10_000, "frey": 200, "digits": 250}
ENVIRONMENT = "PYRO_VAE_DATA"
TIMEOUT = 5.0  # seconds that a silent network is waited for
FREY_FILE = "frey/frey_rawface.mat"
FREY_URL = "https://cs.nyu.edu/~roweis/data/frey_rawface.mat"
FREY_BYTES = 4_000_000  # the file has 1 MB, unpacked 1.2 MB; more is another file
IDX_BYTES = 200_000_000  # MNIST's training images have 47 MB


class DataError(RuntimeError):
    """A data set that cannot be had or read: the message names the file and the cure."""


class MissingData(DataError):
    """A data set that is in no folder searched and could not be downloaded."""


@dataclass(frozen=True)
class Split:
    """Images, uint8 (N, C, H, W), and their labels, int64 (N,), or None.

    >>> Split(torch.zeros(3, 28, 28))
    Traceback (most recent call last):
        ...
    ValueError: images: wanted a uint8 tensor (N, C, H, W), got torch.float32 of shape (3, 28, 28)
    """

    images: Tensor
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            got = f"{self.images.dtype} of shape {tuple(self.images.shape)}"
            raise ValueError(f"images: wanted a uint8 tensor (N, C, H, W), got {got}")
        if self.labels is not None and self.labels.shape != self.images.shape[:1]:
            raise ValueError(f"labels: wanted {len(self.images)}, one an image, got {list(self.labels.shape)}")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: slice | Tensor) -> "Split":
        return Split(self.images[index], None if self.labels is None else self.labels[index])

    def to(self, device: torch.device | str) -> "Split":
        return Split(self.images.to(device), None if self.labels is None else self.labels.to(device))


@dataclass(frozen=True)
class Data:
    """A data set in three splits. ``note`` says where another one was asked for first; else it is empty."""

    name: str
    train: Split
    valid: Split
    test: Split
    note: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return tuple(self.train.images.shape[1:])

    def to(self, device: torch.device | str) -> "Data":
        """The same on a device; but training images that are mapped from disk stay there."""
        train = self.train if is_mapped(self.train.images) else self.train.to(device)
        return replace(self, train=train, valid=self.valid.to(device), test=self.test.to(device))


def load(
    name: Path | str,
    root: Path | str | None = None,
    valid_size: int | None = None,
    *,
    seed: int = 0,
    download: bool = True,
) -> Data:
    """A data set by name: ``mnist``, ``fashion``, ``kmnist``, ``frey``, ``digits`` or ``auto``; or a folder of arrays.

    Files are looked for in ``root``, if it is given, and nowhere else; otherwise in the folder that the environment
    variable ``PYRO_VAE_DATA`` names and then in the user's cache folder. What is not found is downloaded, into
    ``root`` or the cache folder. ``digits`` comes with scikit-learn and needs no file. ``auto`` is MNIST where it can
    be had, and otherwise ``digits``, with a ``note`` that says so.

    Splits: the training images are permuted by ``numpy.random.RandomState(seed).permutation``, a stream that is the
    same on every machine; the last ``valid_size`` of them are for validation. MNIST, Fashion-MNIST and KMNIST:
    50,000 / 10,000 / 10,000, their own test images. Frey Face, 28 × 20, has neither test images nor labels: after the
    permutation the first 200 are for test, 1,565 / 200 / 200. Digits, 8 × 8: the first 250, 1,297 / 250 / 250.

    A folder holds ``train.npy``, ``valid.npy`` and ``test.npy``, uint8 of shape (N, C, H, W) or (N, H, W), and, where
    there are any, ``train_labels.npy`` and so on, whole numbers (N,). Its images are mapped from disk, not read: those
    to train on may be many more than the memory holds, the others are used whole.

    Raises:
        ValueError: for an unknown name or a validation set that leaves nothing to train on.
        MissingData: where the files are in no folder and could not be downloaded.
        DataError: for a file that is damaged, or a folder that cannot be written.

    >>> digits = load("digits")
    >>> digits.shape, len(digits.train), len(digits.valid), len(digits.test)
    ((1, 8, 8), 1297, 250, 250)
    """
    if name == "auto":
        try:
            return load("mnist", root, valid_size, seed=seed, download=download)
        except MissingData as error:
            note = f"not MNIST but scikit-learn's 8 × 8 digits, because {' '.join(str(error).split())}"
            return replace(load("digits", seed=seed), note=note)
    if name not in NAMES:
        if not Path(name).is_dir():
            raise ValueError(f"name: wanted one of {', '.join(NAMES)}, auto, or a folder of .npy files, got {name!r}")
        if valid_size is not None:
            raise ValueError(f"valid_size: wanted none, as {name} has validation images of its own, got {valid_size}")
        return _mapped(Path(name))
    if name == "digits":
        everything, test = _digits(), None
    else:
        folder = _find(name, root) or _download(name, root, download)
        frey = name == "frey"
        everything, test = (_frey(folder / FREY_FILE), None) if frey else _idx_splits(folder / IDX[name] / "raw")
    return _split(name, everything, test, VALID_SIZES[name] if valid_size is None else valid_size, seed)


def batches(
    count: int, batch_size: int, device: torch.device | str = "cpu", generator: Generator | None = None
) -> Iterator[Tensor]:
    """Indices 0 … count − 1 in random order, ``batch_size`` at a time, the last batch what is left; on the device.

    >>> [len(index) for index in batches(10, 4)]
    [4, 4, 2]
    """
    yield from torch.randperm(count, device=device, generator=generator).split(batch_size)


def _split(name: str, everything: Split, test: Split | None, valid_size: int, seed: int) -> Data:
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(everything)))
    if test is None:
        test, order = everything[order[: VALID_SIZES[name]]], order[VALID_SIZES[name] :]
    if not 1 <= valid_size < len(order):
        raise ValueError(f"valid_size: wanted 1 to {len(order) - 1} of {name}'s {len(order)} images, got {valid_size}")
    return Data(name, everything[order[:-valid_size]], everything[order[-valid_size:]], test)


def _mapped(folder: Path) -> Data:
    """The images of a folder of .npy files, which stay on disk."""
    splits, cure = {}, "write it anew by numpy.save"
    for split in ("train", "valid", "test"):
        path, labels = folder / f"{split}.npy", folder / f"{split}_labels.npy"
        if not path.is_file():
            raise DataError(f"{path} is missing; wanted train.npy, valid.npy and test.npy, uint8 of shape (N, C, H, W)")
        with _readable(path, cure):
            images = map_array(path)
            splits[split] = Split(images.unsqueeze(1) if images.dim() == 3 else images)
        if labels.is_file():
            with _readable(labels, cure):
                numbers = torch.from_numpy(np.load(labels, allow_pickle=False)).long()
                splits[split] = replace(splits[split], labels=numbers)
    data = Data(folder.resolve().name, **splits)
    for split, part in splits.items():
        if tuple(part.images.shape[1:]) != data.shape:
            raise DataError(f"{folder / split}.npy: wanted images of {data.shape}, as in train.npy, got "
                            f"{tuple(part.images.shape[1:])}")
    return data


def _folders(root: Path | str | None) -> list[Path]:
    if root is not None:
        return [Path(root)]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyro_vae"
    named = os.environ.get(ENVIRONMENT)
    return [Path(named), cache] if named else [cache]


def _files(name: str) -> list[str]:
    if name == "frey":
        return [FREY_FILE]
    kinds = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return [f"{IDX[name]}/raw/{kind}-ubyte" for kind in kinds]


def _find(name: str, root: Path | str | None) -> Path | None:
    """The first folder that holds some of the data set's files; DataError where it lacks others."""
    for folder in _folders(root):
        there = [file for file in _files(name) if _existing(folder / file)]
        lacking = [file for file in _files(name) if file not in there]
        if there and lacking:
            raise DataError(f"{folder / lacking[0]} is missing beside {there[0]}; put it there, or remove the others")
        if there:
            return folder
    return None


def _existing(path: Path) -> Path | None:
    """The file, or its gzip archive, if one of them exists."""
    return next((file for file in (path, path.with_name(path.name + ".gz")) if file.is_file()), None)


def _download(name: str, root: Path | str | None, allowed: bool) -> Path:
    """Downloads into a temporary folder, whose files go into their places when all of them are whole."""
    folder, file = _folders(root)[-1], _files(name)[0]
    searched = ", ".join(str(path / file) for path in _folders(root))
    cure = f"put its files where {searched} is looked for, or name their folder by --data-dir or {ENVIRONMENT}"
    if not allowed:
        raise MissingData(f"{name} was not found, and is not to be downloaded; {cure}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".download-", dir=folder))
    except OSError as error:
        raise MissingData(f"{name} was not found, and {folder} cannot be written ({error.strerror}); {cure}") from error
    try:
        with _timeout(TIMEOUT):
            _fetch(name, scratch)
        for path in [path for path in scratch.rglob("*") if path.is_file()]:
            target = folder / path.relative_to(scratch)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
    except Exception as error:
        raise MissingData(f"{name} was not found, and its download failed ({error}); {cure}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _fetch(name: str, folder: Path) -> None:
    if name != "frey":
        getattr(torchvision.datasets, IDX[name])(folder, download=True)
        return
    path = folder / FREY_FILE
    path.parent.mkdir()
    with urllib.request.urlopen(FREY_URL) as source, path.open("wb") as file:
        length = int(source.headers.get("Content-Length") or 0)
        with tqdm.wrapattr(file, "write", total=length, desc=path.name) as target:
            shutil.copyfileobj(source, target)
    _frey(path)  # whole, and what was asked for


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """torchvision's downloads take no timeout of their own: a default one for the length of the block."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _idx_splits(folder: Path) -> tuple[Split, Split]:
    splits = []
    for part in ("train", "t10k"):
        images = _idx(folder / f"{part}-images-idx3-ubyte", dims=3)
        labels = _idx(folder / f"{part}-labels-idx1-ubyte", dims=1)
        if images.shape[1:] != (28, 28) or len(images) != len(labels) or not len(images):
            raise DataError(
                f"{folder}: wanted {part} images of 28 × 28 pixels and as many labels, got {tuple(images.shape)} and "
                f"{tuple(labels.shape)}; remove the folder to download them anew"
            )
        if labels.max() > 9:
            raise DataError(f"{folder}: the {part} labels go up to {labels.max()}, wanted 0 to 9; remove the folder to "
                            "download them anew")
        splits.append(Split(images.unsqueeze(1), labels.long()))
    return tuple(splits)


def _idx(path: Path, dims: int) -> Tensor:
    """A file of unsigned bytes in the idx format: magic number 0, 0, 8, dims; the sizes, big-endian; the bytes."""
    path = _existing(path) or path
    with _readable(path), (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        header, magic = file.read(4 + 4 * dims), bytes([0, 0, 8, dims])
        if header[:4] != magic or len(header) != 4 + 4 * dims:
            raise DataError(
                f"{path}: wanted a header of {4 + 4 * dims} bytes that begins with {magic.hex(' ')}, got "
                f"{header.hex(' ') or 'an empty file'}; remove it to download it anew"
            )
        sizes = np.frombuffer(header[4:], ">u4").tolist()
        declared = math.prod(sizes)
        content = file.read(declared + 1) if declared <= IDX_BYTES else b""
    if len(content) != declared:
        got = f"{len(content):,}" if len(content) < declared else "more"
        raise DataError(f"{path}: the header declares {declared:,} bytes, it holds {got}; remove it to have it anew")
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy()).reshape(sizes)


def _frey(path: Path) -> Split:
    with _readable(path):
        if path.stat().st_size > FREY_BYTES:
            raise DataError(f"{path}: it is larger than {FREY_BYTES:,} bytes, so it is not Frey Face; remove it")
        file = io.BytesIO(_unpacked_mat(path.read_bytes()))
        found = scipy.io.whosmat(file)  # before any of it is read: a file may declare anything
        if found != [("ff", (560, 1965), "uint8")]:
            got = next((f"{kind} {shape}" for name, shape, kind in found if name == "ff"), "none")[:200]
            wanted = "a variable ff, uint8 (560, 1965), and nothing else"
            raise DataError(f"{path}: wanted {wanted}, got {got}; remove it to download it anew")
        file.seek(0)
        faces = scipy.io.loadmat(file)["ff"]
    return Split(torch.from_numpy(faces.T.reshape(-1, 1, 28, 20).copy()))


def _unpacked_mat(content: bytes) -> bytes:
    """A MATLAB 5 file whose elements are compressed, at most FREY_BYTES of it, as one whose elements are not.

    A header of 128 bytes that ends with the byte order, then elements: type, size, content; type 15 is compressed.
    """
    if content[:10] != b"MATLAB 5.0" or content[126:128] != b"IM":
        raise ValueError("it is no little-endian MATLAB 5 file")
    unpacked, start = [content[:128]], 128
    while start + 8 <= len(content):
        kind, size = np.frombuffer(content[start : start + 8], "<u4").tolist()
        element = content[start : start + 8 + size]
        start += 8 + size
        if kind == 15:
            unpacker = zlib.decompressobj()
            element = unpacker.decompress(element[8:], FREY_BYTES)
        unpacked.append(element)
        if sum(map(len, unpacked)) > FREY_BYTES or len(unpacked) > 100:
            raise ValueError(f"unpacked it is larger than {FREY_BYTES:,} bytes")
    return b"".join(unpacked)


def _digits() -> Split:
    digits = sklearn.datasets.load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return Split(torch.from_numpy(pixels)[:, None], torch.from_numpy(digits.target).long())


@contextmanager
def _readable(path: Path, cure: str = "remove it to download it anew") -> Iterator[None]:
    """Whatever a library says of a damaged file becomes a DataError that names the file and the cure."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path} cannot be read ({error}); {cure}") from error
