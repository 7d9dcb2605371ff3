"""Data sets by name: found in a folder, downloaded or bundled, and split for training, validation and test."""

import os
import socket
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import sklearn.datasets
import torch
import torchvision
from tqdm.auto import tqdm

from pyro_vae.checks import whole_number
from pyro_vae.data.folders import LAYOUTS, how_to_read, read_folder
from pyro_vae.data.formats import existing, idx_as_array, read_frey, read_idx
from pyro_vae.data.raw import DataError, DataWarning, kind
from pyro_vae.data.splits import Data, Split, batches
from pyro_vae.errors import warn
from pyro_vae.files import expanded

__all__ = ["Data", "DataError", "MissingData", "Split", "batches", "load"]

ENVIRONMENT = "PYRO_VAE_DATA"
TIMEOUT = 5.0  # seconds to wait for a silent network
FREY_FILE = "frey/frey_rawface.mat"
FREY_URL = "https://cs.nyu.edu/~roweis/data/frey_rawface.mat"


@dataclass(frozen=True)
class KnownSet:
    """A record of ``SETS``: how a data set is read, fetched and split.

    Attributes:
        word: its name.
        help: a description.
        read: from the paths of its files to all images, and to those for test if they are apart.
        valid_size: the number of validation images, and of test images if they are not apart.
        files: below the folder that is searched; none for a data set that is generated or comes with a library.
        fetch: what downloads the files into a folder.
        first_labels: of the training images, for sets whose files have the same names.
    """

    word: str
    help: str
    read: Callable[..., tuple[Split, Split | None]]
    valid_size: int
    files: tuple[str, ...] = ()
    fetch: Callable[[Path], object] = lambda folder: None
    first_labels: tuple[int, ...] = ()


class MissingData(DataError):
    """A data set that is in none of the folders searched and cannot be downloaded."""


def load(
    name: Path | str,
    root: Path | str | None = None,
    valid_size: int | None = None,
    *,
    seed: int = 0,
    download: bool = True,
    layout: str | None = None,
) -> Data:
    """Load a data set: ``mnist``, ``fashion``, ``kmnist``, ``frey``, ``digits``, ``auto``, or a folder of arrays.

    If ``root`` is given, files are searched there and nowhere else. Otherwise they are searched in the folder that the
    environment variable ``PYRO_VAE_DATA`` names, and then in the user's cache folder. Missing files are downloaded into
    ``root`` or the cache folder. ``digits`` comes with scikit-learn and needs no file. ``auto`` loads MNIST if it is
    found or downloaded, and otherwise ``digits`` with a ``note`` that says so. ``~`` is the home folder. The name of a
    data set never means a folder: write ``./digits`` for a folder of that name.

    The files of MNIST, Fashion-MNIST and KMNIST are ``train-images-idx3-ubyte`` (or ``train-images.idx3-ubyte``, or the
    ``.gz`` of these) and so on in ``MNIST/raw``, as torchvision stores them, or in ``root`` itself.

    Splits: ``numpy.random.RandomState(seed).permutation``, which is the same on every machine, permutes the training
    images; the last ``valid_size`` of them are the validation images. MNIST, Fashion-MNIST and KMNIST: 50,000 / 10,000
    / 10,000, with their own test images. Frey Face, 28 × 20, has neither test images nor labels: the first 200 after
    the permutation are the test images, 1,565 / 200 / 200. Digits, 8 × 8: the first 250, 1,297 / 250 / 250.

    A folder holds ``train.npy``, ``valid.npy`` and ``test.npy``, uint8 of shape (N, C, H, W) or (N, H, W), and
    optionally ``train_labels.npy`` and so on, whole numbers (N,). Its images are mapped from disk instead of read
    (except for arrays in Fortran order, which are read), so that the training images may exceed the memory. If a shape
    does not show which axis holds the channels, set ``layout`` to "NCHW" or "NHWC".

    Raises:
        ValueError: for an unknown name, a validation set that leaves nothing to train on, or another bad argument.
        MissingData: if the files are in none of the folders and cannot be downloaded.
        DataError: for a file that is damaged or of another kind, and for a folder that cannot be written.

    Warns if no grey level of a folder is above 127, and if a folder has the name of a data set.

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
    known = SETS.get(str(name)) if isinstance(name, str) else None
    if known is None:
        return _own(expanded(name), valid_size, layout)
    if Path(name, "train.npy").is_file():
        warn(
            f"name: {name!r} is the known data set, although there is a folder {name} that holds train.npy; "
            f"write './{name}' for the folder",
            DataWarning,
        )
    paths = (_find(known, root) or _download(known, root, download)) if known.files else []
    return _split(known, *known.read(*paths), known.valid_size if valid_size is None else valid_size, seed)


def _check_arguments(name: Any, valid_size: Any, seed: Any, layout: Any) -> None:
    if not isinstance(name, str | os.PathLike):
        raise ValueError(
            f"name: wanted the name of a data set or of a folder, got {kind(name)}; build "
            "Data(name, Split(images), ...) of images in memory"
        )
    if valid_size is not None:
        whole_number("valid_size", valid_size, least=None)
    whole_number("seed", seed, least=0, most=2**32 - 1)
    if layout not in LAYOUTS or (layout and name in (*SETS, "auto")):
        raise ValueError(f'layout: wanted "NCHW" or "NHWC" for a folder, else None, got {layout!r} for {name}')


def _split(known: KnownSet, everything: Split, test: Split | None, valid_size: int, seed: int) -> Data:
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(everything)))
    if test is None:
        test, order = everything[order[: known.valid_size]], order[known.valid_size :]
    if not 1 <= valid_size < len(order):
        raise ValueError(
            f"valid_size: wanted 1 to {len(order) - 1} of {known.word}'s {len(order)} images, got {valid_size}; "
            f"write for instance valid_size={max(1, len(order) // 10)}"
        )
    return Data(known.word, everything[order[:-valid_size]], everything[order[-valid_size:]], test)


def _own(folder: Path, valid_size: int | None, layout: str | None) -> Data:
    """Load the images of a folder of .npy files, which stay on disk."""
    if not folder.is_dir():
        cure = f"; {how_to_read(folder)}" if folder.is_file() else ""
        raise ValueError(
            f"name: wanted one of {', '.join(SETS)}, auto, or a folder of .npy files, got {str(folder)!r}{cure}"
        )
    if valid_size is not None:
        raise ValueError(f"valid_size: wanted none, as {folder} has validation images of its own, got {valid_size}")
    if not (folder / "train.npy").exists():
        for known in SETS.values():
            if known.files and _find(known, folder):
                raise DataError(
                    f"{folder} holds no train.npy but files of {known.word}; "
                    f"write load({known.word!r}, {str(folder)!r})"
                )
    splits = {split: Split(*part) for split, part in read_folder(folder, layout).items()}
    return Data(folder.resolve().name, splits["train"], splits["valid"], splits["test"], looked_at=True)


def _folders(root: Path | str | None) -> list[Path]:
    if root is not None:
        return [expanded(root)]
    cache = expanded(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyro_vae"
    named = os.environ.get(ENVIRONMENT)
    return [expanded(named), cache] if named else [cache]


def _find(known: KnownSet, root: Path | str | None) -> list[Path] | None:
    """Return the data set's files from the first folder that has some of them; raise DataError if it lacks others."""
    for folder in _folders(root):
        for paths in ([folder / file for file in known.files], [folder / Path(file).name for file in known.files]):
            found = {path: existing(path) for path in paths}
            there = [file for file in found.values() if file]
            if len(there) == len(paths):
                return there
            if there:
                missing = next(path for path, file in found.items() if not file)
                raise DataError(f"{missing} is missing beside {there[0].name}; put it there too")
    return None


def _download(known: KnownSet, root: Path | str | None, allowed: bool) -> list[Path]:
    """Download into a temporary folder, and move the files to their places when all of them are complete."""
    name, folder, file = known.word, _folders(root)[-1], known.files[0]
    searched = ", ".join(str(path / file) for path in _folders(root))
    cure = f"put its files where they are searched, {searched}, or give their folder by --data-dir or {ENVIRONMENT}"
    if not allowed:
        raise MissingData(f"{name} was not found, and download is False; {cure}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = TemporaryDirectory(prefix=".download-", dir=folder, ignore_cleanup_errors=True)
    except OSError as error:
        raise MissingData(f"{name} was not found, and {folder} cannot be written ({error.strerror}); {cure}") from error
    try:
        with scratch as downloads, _timeout(TIMEOUT):
            known.fetch(Path(downloads))
            for path in [path for path in Path(downloads).rglob("*") if path.is_file()]:
                target = folder / path.relative_to(downloads)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
    except Exception as error:
        raise MissingData(f"{name} was not found, and its download failed ({error}); {cure}") from error
    files = _find(known, folder)
    if files is None:
        raise MissingData(f"{name} was downloaded into {folder}, but its files are not there; {cure}")
    return files


def _fetch_frey(folder: Path) -> None:
    path = folder / FREY_FILE
    path.parent.mkdir()
    with urllib.request.urlopen(FREY_URL) as source, path.open("wb") as file:
        length = int(source.headers.get("Content-Length") or 0)
        with tqdm.wrapattr(file, "write", total=length, desc=path.name) as target:
            while chunk := source.read(1 << 16):
                target.write(chunk)
    read_frey(path)  # raises DataError unless it is complete and the right file


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Context manager in which sockets have a default timeout, as torchvision's downloads do not set one."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _idx_splits(name: str, files: Sequence[Path]) -> tuple[Split, Split]:
    """Return the training and the test split, from files of images and labels in turn."""
    splits = []
    for part, split, images_file, labels_file in zip(("train", "t10k"), ("train", "test"), files[::2], files[1::2]):
        folder, images, labels = images_file.parent, read_idx(images_file, dims=3), read_idx(labels_file, dims=1)
        cure = f"put the files of {name} there; for a folder of arrays write " + "; ".join(
            (idx_as_array(images_file, split, images.shape[1:]), idx_as_array(labels_file, f"{split}_labels", ()))
        )
        if images.shape[1:] != (28, 28) or len(images) != len(labels) or not len(images):
            raise DataError(
                f"{folder}: wanted {part} images of 28 × 28 pixels and as many labels, got "
                f"{tuple(images.shape)} and {tuple(labels.shape)}; {cure}"
            )
        if labels.max() > 9:
            raise DataError(f"{folder}: the {part} labels go up to {labels.max()}, wanted 0 to 9; {cure}")
        for other in SETS.values() if part == "train" else ():
            first = list(other.first_labels)
            if first and other.word != name and labels[: len(first)].tolist() == first:
                raise DataError(
                    f"{folder}: these are the files of {other.word}, not of {name}, which have the same names; write "
                    f"load({other.word!r}), with the files in {Path(other.files[0]).parent} or in root"
                )
        splits.append(Split(images.unsqueeze(1), labels))
    train, test = splits
    return train, test


def _digits() -> tuple[Split, None]:
    digits: Any = sklearn.datasets.load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return Split(torch.from_numpy(pixels)[:, None], torch.from_numpy(digits.target).long()), None


def _idx_set(word: str, folder: str, help: str, first_labels: tuple[int, ...] = ()) -> KnownSet:
    """Return the record of a data set in the files of MNIST, by the name of torchvision's class and folder."""
    kinds = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return KnownSet(
        word,
        f"{help}, 28 × 28",
        lambda *paths: _idx_splits(word, paths),
        valid_size=10_000,
        files=tuple(f"{folder}/raw/{kind}-ubyte" for kind in kinds),
        fetch=lambda root: getattr(torchvision.datasets, folder)(root, download=True),
        first_labels=first_labels,
    )


_SETS = (
    _idx_set("mnist", "MNIST", "handwritten digits", (5, 0, 4, 1, 9, 2, 1, 3, 1, 4)),
    _idx_set("fashion", "FashionMNIST", "clothes", (9, 0, 0, 3, 0, 2, 7, 2, 5, 5)),
    _idx_set("kmnist", "KMNIST", "Japanese characters"),
    KnownSet(
        "frey",
        "the face of Brendan Frey, 28 × 20, without labels",
        lambda path: (Split(read_frey(path)), None),
        valid_size=200,
        files=(FREY_FILE,),
        fetch=_fetch_frey,
    ),
    KnownSet("digits", "scikit-learn's handwritten digits, 8 × 8", _digits, valid_size=250),
)
SETS = {known.word: known for known in _SETS}
NAMES = tuple(SETS)
