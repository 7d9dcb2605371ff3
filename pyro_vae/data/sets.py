"""Images as uint8 tensors: found in a folder, downloaded, bundled or mapped from disk; split; in shuffled batches."""

import gzip
import io
import math
import os
import shutil
import socket
import tempfile
import urllib.request
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import InitVar, dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import BinaryIO

import numpy as np
import scipy.io
import sklearn.datasets
import torch
import torchvision
from torch import Generator, Tensor
from tqdm.auto import tqdm

from pyro_vae.data.folders import LAYOUTS, how_to_read, read_folder
from pyro_vae.data.mapped import is_mapped, take
from pyro_vae.data.raw import DataError, as_images, as_labels, check_levels, kind, layout_question, may_be_channels_last
from pyro_vae.files import expanded

IDX = {"mnist": "MNIST", "fashion": "FashionMNIST", "kmnist": "KMNIST"}  # names of torchvision's classes and folders
NAMES = (*IDX, "frey", "digits")
VALID_SIZES = {"mnist": 10_000, "fashion": 10_000, "kmnist": 10_000, "frey": 200, "digits": 250}
ENVIRONMENT = "PYRO_VAE_DATA"
TIMEOUT = 5.0  # seconds that a silent network is waited for
FREY_FILE = "frey/frey_rawface.mat"
FREY_URL = "https://cs.nyu.edu/~roweis/data/frey_rawface.mat"
FREY_BYTES = 4_000_000  # the file has 1 MB, unpacked 1.2 MB; more is another file
UNPACKED_BYTES = 2_000_000_000  # of an idx archive; MNIST's training images have 47 MB, EMNIST's 547 MB
# Of the training sets, whose files have the same names.
FIRST_LABELS = {"mnist": [5, 0, 4, 1, 9, 2, 1, 3, 1, 4], "fashion": [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]}


class MissingData(DataError):
    """A data set that is in no folder searched and could not be downloaded."""


@dataclass(frozen=True)
class Split:
    """Images, uint8 (N, C, H, W), and their labels, int64 (N,), or None. NumPy arrays become tensors.

    Images are contiguous, or mapped from disk. ``split[index]`` takes a slice, row numbers or a mask, and is a split
    again. Labels may be whole numbers of any type. ValueError for anything else, with what to write instead.

    >>> Split(torch.zeros(3, 28, 28))
    Traceback (most recent call last):
        ...
    ValueError: images: wanted a uint8 tensor (N, C, H, W), got torch.float32 of shape (3, 28, 28); if 0 is black and 1
    white, write (images[:, None].float() * (255 / 1)).round().to(torch.uint8)
    >>> len(Split(np.zeros((3, 1, 28, 28), np.uint8))[::-2])
    2
    """

    images: Tensor
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        images = as_images(self.images)
        vars(self).update(images=images, labels=None if self.labels is None else as_labels(self.labels, len(images)))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: slice | Sequence[int] | np.ndarray | Tensor) -> "Split":
        rows = _rows(self, index)
        images = self.images[rows] if isinstance(rows, slice) else take(self.images, rows)
        return Split(images, None if self.labels is None else self.labels[rows])

    def to(self, device: torch.device | str) -> "Split":
        return Split(self.images.to(device), None if self.labels is None else self.labels.to(device))


@dataclass(frozen=True)
class Data:
    """A data set in three splits. ``note`` says where another one was asked for first; else it is empty.

    The splits have at least one image each, all of one shape. Their grey levels are looked at: ValueError for images
    of 0 and 1 alone, a warning for dark ones, as their white may be another number than 255; and a warning for shapes
    that may have the channels last. ``looked_at``: this was done before.
    """

    name: str
    train: Split
    valid: Split
    test: Split
    note: str = ""
    looked_at: InitVar[bool] = False

    def __post_init__(self, looked_at: bool) -> None:
        for field in ("name", "note"):
            if not isinstance(getattr(self, field), str):
                raise ValueError(f"{field}: wanted a string, got {getattr(self, field)!r:.80}")
        splits = {"train": self.train, "valid": self.valid, "test": self.test}
        for name, split in splits.items():
            if not isinstance(split, Split):
                raise ValueError(f"{name}: wanted a Split, got {kind(split)}; write Split(images)")
            if not split.images.numel() or split.images.shape[1:] != self.train.images.shape[1:]:
                raise ValueError(
                    f"{name}: wanted at least one image, of shape {self.shape} as in train, got "
                    f"{len(split)} of {tuple(split.images.shape[1:])}"
                )
        if not looked_at:
            check_levels({name: split.images for name, split in splits.items()})
            if may_be_channels_last(self.shape):
                warnings.warn(
                    f"images: {layout_question(self.shape)} They are taken as the first; for the second "
                    "write images.permute(0, 3, 1, 2)",
                    stacklevel=3,
                )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return tuple(self.train.images.shape[1:])

    def to(self, device: torch.device | str) -> "Data":
        """The same on a device; but training images that are mapped from disk stay there."""
        train = self.train if is_mapped(self.train.images) else self.train.to(device)
        return replace(self, train=train, valid=self.valid.to(device), test=self.test.to(device), looked_at=True)


def load(
    name: Path | str,
    root: Path | str | None = None,
    valid_size: int | None = None,
    *,
    seed: int = 0,
    download: bool = True,
    layout: str | None = None,
) -> Data:
    """A data set by name: ``mnist``, ``fashion``, ``kmnist``, ``frey``, ``digits`` or ``auto``; or a folder of arrays.

    Files are looked for in ``root``, if it is given, and nowhere else; otherwise in the folder that the environment
    variable ``PYRO_VAE_DATA`` names and then in the user's cache folder. What is not found is downloaded, into
    ``root`` or the cache folder. ``digits`` comes with scikit-learn and needs no file. ``auto`` is MNIST where it can
    be had, and otherwise ``digits``, with a ``note`` that says so. ``~`` is the home folder. A name in the list is
    never a folder: write ``./digits`` for one that is called so.

    Files of MNIST and the like are ``train-images-idx3-ubyte`` (or ``train-images.idx3-ubyte``; or ``.gz`` of these)
    and so on in ``MNIST/raw``, where torchvision has them, or in ``root`` itself.

    Splits: the training images are permuted by ``numpy.random.RandomState(seed).permutation``, a stream that is the
    same on every machine; the last ``valid_size`` of them are for validation. MNIST, Fashion-MNIST and KMNIST:
    50,000 / 10,000 / 10,000, their own test images. Frey Face, 28 × 20, has neither test images nor labels: after the
    permutation the first 200 are for test, 1,565 / 200 / 200. Digits, 8 × 8: the first 250, 1,297 / 250 / 250.

    A folder holds ``train.npy``, ``valid.npy`` and ``test.npy``, uint8 of shape (N, C, H, W) or (N, H, W), and, where
    there are any, ``train_labels.npy`` and so on, whole numbers (N,). Its images are mapped from disk, not read (but
    those in Fortran order are read): those to train on may be many more than the memory holds, the others are used
    whole. Where a shape leaves it open which axis holds the channels, ``layout`` says it: "NCHW" or "NHWC".

    Raises:
        ValueError: for an unknown name, a validation set that leaves nothing to train on, or another bad argument.
        MissingData: where the files are in no folder and could not be downloaded.
        DataError: for a file that is damaged or of another kind, and a folder that cannot be written.

    Warns where no grey level of a folder is above 127, and where a folder has the name of a data set.

    >>> digits = load("digits")
    >>> digits.shape, len(digits.train), len(digits.valid), len(digits.test)
    ((1, 8, 8), 1297, 250, 250)
    """
    _check_arguments(name, valid_size, seed, layout)
    if name == "auto":
        try:
            return load("mnist", root, valid_size, seed=seed, download=download)
        except MissingData as error:
            note = f"not MNIST but scikit-learn's 8 × 8 digits, because {' '.join(str(error).split())}"
            return replace(load("digits", seed=seed), note=note)
    if name not in NAMES:
        return _own(expanded(name), valid_size, layout)
    if Path(name, "train.npy").is_file():
        warnings.warn(
            f"name: {name!r} is the known data set, although there is a folder {name} that holds train.npy; "
            f"write './{name}' for the folder",
            stacklevel=2,
        )
    if name == "digits":
        everything, test = _digits(), None
    else:
        files = _find(name, root) or _download(name, root, download)
        everything, test = (_frey(*files), None) if name == "frey" else _idx_splits(name, files)
    return _split(name, everything, test, VALID_SIZES[name] if valid_size is None else valid_size, seed)


def batches(
    count: int, batch_size: int, device: torch.device | str = "cpu", generator: Generator | None = None
) -> Iterator[Tensor]:
    """Indices 0 … count − 1 in random order, ``batch_size`` at a time, the last batch what is left; on the device.

    >>> [len(index) for index in batches(10, 4)]
    [4, 4, 2]
    """
    yield from torch.randperm(count, device=device, generator=generator).split(batch_size)


def _check_arguments(name: object, valid_size: object, seed: object, layout: object) -> None:
    if not isinstance(name, str | os.PathLike):
        raise ValueError(
            f"name: wanted the name of a data set or of a folder, got {kind(name)}; build "
            "Data(name, Split(images), ...) of images in memory"
        )
    if valid_size is not None and not _is_whole(valid_size):
        raise ValueError(f"valid_size: wanted a whole number of images, got {valid_size!r}")
    if not _is_whole(seed) or not 0 <= seed < 2**32:
        raise ValueError(f"seed: wanted a whole number from 0 to {2**32 - 1}, got {seed!r}")
    if layout not in LAYOUTS or (layout and name in (*NAMES, "auto")):
        raise ValueError(f'layout: wanted "NCHW" or "NHWC" for a folder, else None, got {layout!r} for {name}')


def _is_whole(number: object) -> bool:
    return isinstance(number, Integral) and not isinstance(number, bool)


def _rows(split: Split, index: object) -> slice | Tensor:
    """A slice that goes forwards, or row numbers (n,); ValueError for another index."""
    if isinstance(index, slice):
        forwards = index.step is None or index.step > 0
        return index if forwards else torch.from_numpy(np.arange(len(split))[index].copy())
    try:
        rows = index if isinstance(index, Tensor) else torch.from_numpy(np.array(index))
    except (TypeError, ValueError):
        rows = torch.zeros(())
    if rows.dim() == 1 and not isinstance(index, tuple):  # a tuple would be an index of several axes
        if rows.dtype == torch.bool and len(rows) == len(split):
            return rows.nonzero().flatten()
        if not len(rows) or not (rows.is_floating_point() or rows.dtype in (torch.bool, torch.uint8)):
            return rows.long()
    fields = "split.images" if split.labels is None else "split.images, split.labels"
    got = kind(index) if isinstance(index, Tensor | np.ndarray) else repr(index)
    raise ValueError(
        f"index: wanted a slice, whole numbers (n,) or a mask ({len(split)},), got {got:.80}; write split[0:1] for a "
        f"split of one image, split.images[0] for the image, DataLoader(TensorDataset({fields})) for batches of tensors"
    )


def _split(name: str, everything: Split, test: Split | None, valid_size: int, seed: int) -> Data:
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(everything)))
    if test is None:
        test, order = everything[order[: VALID_SIZES[name]]], order[VALID_SIZES[name] :]
    if not 1 <= valid_size < len(order):
        raise ValueError(
            f"valid_size: wanted 1 to {len(order) - 1} of {name}'s {len(order)} images, got {valid_size}; "
            f"write for instance valid_size={max(1, len(order) // 10)}"
        )
    return Data(name, everything[order[:-valid_size]], everything[order[-valid_size:]], test)


def _own(folder: Path, valid_size: int | None, layout: str | None) -> Data:
    """The images of a folder of .npy files, which stay on disk."""
    if not folder.is_dir():
        cure = f"; {how_to_read(folder)}" if folder.is_file() else ""
        raise ValueError(
            f"name: wanted one of {', '.join(NAMES)}, auto, or a folder of .npy files, got {str(folder)!r}{cure}"
        )
    if valid_size is not None:
        raise ValueError(f"valid_size: wanted none, as {folder} has validation images of its own, got {valid_size}")
    if not (folder / "train.npy").exists():
        for name in IDX:
            if _find(name, folder):
                raise DataError(
                    f"{folder} holds no train.npy but files of {name}; write load({name!r}, {str(folder)!r})"
                )
    splits = {split: Split(*part) for split, part in read_folder(folder, layout).items()}
    return Data(folder.resolve().name, **splits, looked_at=True)


def _folders(root: Path | str | None) -> list[Path]:
    if root is not None:
        return [expanded(root)]
    cache = expanded(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyro_vae"
    named = os.environ.get(ENVIRONMENT)
    return [expanded(named), cache] if named else [cache]


def _files(name: str) -> list[str]:
    """The files of a data set, below a folder that is searched."""
    if name == "frey":
        return [FREY_FILE]
    kinds = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return [f"{IDX[name]}/raw/{kind}-ubyte" for kind in kinds]


def _find(name: str, root: Path | str | None) -> list[Path] | None:
    """The data set's files, from the first place that has some of them; DataError where it lacks others."""
    names = _files(name)
    for folder in _folders(root):
        for paths in ([folder / file for file in names], [folder / Path(file).name for file in names]):
            found = [_existing(path) for path in paths]
            if all(found):
                return found
            if any(found):
                there = next(path for path in found if path)
                raise DataError(f"{paths[found.index(None)]} is missing beside {there.name}; put it there too")
    return None


def _existing(path: Path) -> Path | None:
    """The file, or the same under the name that some archives give it, or the gzip archive of one, if it exists."""
    names = (path.name, path.name.replace("-idx", ".idx"))
    files = (path.with_name(name + suffix) for suffix in ("", ".gz") for name in names)
    return next((file for file in files if file.is_file()), None)


def _download(name: str, root: Path | str | None, allowed: bool) -> list[Path]:
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
    return _find(name, folder)


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


def _idx_splits(name: str, files: Sequence[Path]) -> tuple[Split, Split]:
    """The training and the test images of files of images and labels, in turn."""
    splits = []
    for part, split, images_file, labels_file in zip(("train", "t10k"), ("train", "test"), files[::2], files[1::2]):
        folder, images, labels = images_file.parent, _idx(images_file, dims=3), _idx(labels_file, dims=1)
        cure = f"put the files of {name} there; for a folder of arrays write " + "; ".join(
            (_as_array(images_file, split, images.shape[1:]), _as_array(labels_file, f"{split}_labels", ()))
        )
        if images.shape[1:] != (28, 28) or len(images) != len(labels) or not len(images):
            raise DataError(
                f"{folder}: wanted {part} images of 28 × 28 pixels and as many labels, got "
                f"{tuple(images.shape)} and {tuple(labels.shape)}; {cure}"
            )
        if labels.max() > 9:
            raise DataError(f"{folder}: the {part} labels go up to {labels.max()}, wanted 0 to 9; {cure}")
        for other, first in FIRST_LABELS.items():
            if part == "train" and other != name and labels[: len(first)].tolist() == first:
                raise DataError(
                    f"{folder}: these are the files of {other}, not of {name}, which have "
                    f"the same names; write load({other!r}), with the files in {IDX[other]}/raw or in root"
                )
        splits.append(Split(images.unsqueeze(1), labels))
    return tuple(splits)


def _as_array(path: Path, name: str, shape: Sequence[int]) -> str:
    """Code that makes a .npy file of an idx file whose elements have this shape."""
    content = f"Path({str(path)!r}).read_bytes()"
    content = f"gzip.decompress({content})" if path.suffix == ".gz" else content
    content = f"np.frombuffer({content}, np.uint8, offset={8 + 4 * len(shape)})"
    return f"np.save('{name}.npy', {content}.reshape({(-1, *shape)}))"


def _idx(path: Path, dims: int) -> Tensor:
    """A file of unsigned bytes in the idx format: magic number 0, 0, 8, dims; the sizes, big-endian; the bytes."""
    path = _existing(path) or path
    packed = path.suffix == ".gz"
    with _readable(path), (gzip.open if packed else open)(path, "rb") as file:
        header, magic = file.read(4 + 4 * dims), bytes([0, 0, 8, dims])
        if header[:4] != magic or len(header) != 4 + 4 * dims:
            raise DataError(
                f"{path}: wanted a header of {4 + 4 * dims} bytes that begins with {magic.hex(' ')}, got "
                f"{header.hex(' ') or 'an empty file'}; remove it to download it anew"
            )
        sizes = np.frombuffer(header[4:], ">u4").tolist()
        declared = math.prod(sizes)
        held = (_size_at_end(path) if packed else path.stat().st_size) - len(header)
        if packed and declared > UNPACKED_BYTES and (held - declared) % 2**32 == 0:
            raise DataError(
                f"{path}: its {declared:,} bytes are more than the {UNPACKED_BYTES:,} that are unpacked in "
                "memory; unpack it by gzip -d, if you trust it"
            )
        content = np.empty(0, np.uint8)
        if declared <= UNPACKED_BYTES if packed else held == declared:
            content = _filled(file, declared)
            held = len(content) + len(file.read(1))
    if held != declared:
        got = f"{held:,}" if held < declared else "more"
        raise DataError(f"{path}: the header declares {declared:,} bytes, it holds {got}; remove it to have it anew")
    return torch.from_numpy(content).reshape(sizes)


def _size_at_end(archive: Path) -> int:
    """What a gzip archive says of the size that it has unpacked, modulo 2³²."""
    with archive.open("rb") as file:
        file.seek(-4, os.SEEK_END)
        return int.from_bytes(file.read(), "little")


def _filled(file: BinaryIO, size: int) -> np.ndarray:
    """The next bytes of the file, ``size`` of them or as many as there are."""
    content, n = np.empty(size, np.uint8), 0
    while got := file.readinto(memoryview(content)[n:]):
        n += got
    return content[:n]


def _frey(path: Path) -> Split:
    with _readable(path):
        if path.stat().st_size > FREY_BYTES:
            raise DataError(f"{path}: it is larger than {FREY_BYTES:,} bytes, so it is not Frey Face; move it away")
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
def _readable(path: Path) -> Iterator[None]:
    """Whatever a library says of a damaged file becomes a DataError that names the file and the cure."""
    try:
        yield
    except DataError:
        raise
    except (MemoryError, PermissionError) as error:
        raise DataError(f"{path} cannot be read ({error}); the file itself may be whole") from error
    except Exception as error:
        raise DataError(f"{path} cannot be read ({error}); remove it to download it anew") from error
