"""Data sets by name: found in a folder, downloaded or bundled, and split for training, validation and test."""

import os
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from string import ascii_letters, ascii_lowercase, digits
from typing import Any

import torch
from tqdm import tqdm

from pyro_vae.checks import whole_number
from pyro_vae.data.archives import read_binary, read_cifar, read_digits, read_omniglot, read_svhn, read_usps
from pyro_vae.data.formats import idx_as_array, read_frey, read_idx
from pyro_vae.data.known import ENVIRONMENT, KnownSet, MissingData, fetched, find, read
from pyro_vae.data.own import load_own
from pyro_vae.data.raw import DataError, DataWarning, kind
from pyro_vae.data.shares import divided
from pyro_vae.data.splits import Data, Split, batches
from pyro_vae.errors import warn
from pyro_vae.files import expanded
from pyro_vae.optional import optional
from pyro_vae.words import LAYOUTS

__all__ = ["ENVIRONMENT", "Data", "DataError", "MissingData", "Split", "batches", "load"]

FREY_FILE = "frey/frey_rawface.mat"
FREY_URL = "https://cs.nyu.edu/~roweis/data/frey_rawface.mat"
BINARY_URL = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"
BINARY_FILES = tuple(f"BinarizedMNIST/binarized_mnist_{split}.amat" for split in ("train", "valid", "test"))
DIGITS = tuple(digits)
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
KANA = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")  # those of KMNIST
# EMNIST joins the two cases of the letters that look alike in both.
BALANCED = "".join(sorted(set(digits + ascii_letters) - set("cijklmopsuvwxyz")))


def load(
    name: Path | str,
    root: Path | str | None = None,
    valid_size: int | None = None,
    *,
    seed: int = 0,
    download: bool = True,
    layout: str | None = None,
    size: int | tuple[int, int] | None = None,
) -> Data:
    """Load a data set by its name, or from a folder of pictures or arrays, or from a file of arrays.

    Names: ``mnist``, ``fashion``, ``kmnist``, ``qmnist``, ``emnist-letters``, ``emnist-balanced``, ``usps``, ``svhn``,
    ``cifar10``, ``omniglot``, ``binarized-mnist``, ``frey``, ``digits`` and ``auto``.

    If ``root`` is given, files are searched there and nowhere else. Otherwise they are searched in the folder that the
    environment variable ``PYRO_VAE_DATA`` names, and then in the user's cache folder. Missing files are downloaded into
    ``root`` or the cache folder. ``digits`` comes with scikit-learn and needs no file. ``auto`` loads MNIST if it is
    found or downloaded, and otherwise ``digits`` with a ``note`` that says so. ``~`` is the home folder. The name of a
    data set never means a folder: write ``./digits`` for a folder of that name.

    Files are where torchvision stores them, or in ``root`` itself: those of MNIST, Fashion-MNIST and KMNIST are
    ``train-images-idx3-ubyte`` (or ``train-images.idx3-ubyte``, or the ``.gz`` of these) and so on in ``MNIST/raw``.

    Splits: ``numpy.random.RandomState(seed).permutation``, which is the same on every machine, permutes the training
    images; the last ``valid_size`` of them are the validation images. MNIST, Fashion-MNIST and KMNIST: 50,000 / 10,000
    / 10,000, with their own test images. Frey Face, 28 × 20, has neither test images nor labels: the first 200 after
    the permutation are the test images, 1,565 / 200 / 200. Digits, 8 × 8: the first 250, 1,297 / 250 / 250. The images
    of ``binarized-mnist`` (Larochelle & Murray 2011) are 0 and 255, its three splits those of its files. Omniglot is
    made smaller, 105 to 28 pixels, and white on black; its test images are of alphabets that training has not.

    A folder of pictures is read by ``Data.from_folder``, with ``size`` as there and ``valid_size`` as ``valid``. A
    file, or a folder of files, of arrays whose names say field and split (``x_train``, ``test_labels``) is read, too,
    in the formats of ``read_arrays``.

    For images larger than memory a folder holds ``train.npy``, ``valid.npy`` and ``test.npy``, uint8 of shape
    (N, C, H, W) or (N, H, W), and optionally ``train_labels.npy`` and so on, whole numbers (N,). These images are
    mapped from disk instead of read (except for arrays in Fortran order, which are read). If a shape does not show
    which axis holds the channels, set ``layout`` to "NCHW" or "NHWC".

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
        return load_own(expanded(name), SETS.values(), valid_size, seed=seed, layout=layout, size=size)
    if size is not None:
        raise ValueError(f"size: wanted none, as the images of {name} have a size of their own, got {size!r}")
    if Path(name, "train.npy").is_file():
        warn(
            f"name: {name!r} is the known data set, although there is a folder {name} that holds train.npy; "
            f"write './{name}' for the folder",
            DataWarning,
        )
    paths = (find(known, root) or fetched(known, root, download)) if known.files else []
    return _split(known, read(known, paths), valid_size, seed)


def _check_arguments(name: Any, valid_size: Any, seed: Any, layout: Any) -> None:
    if not isinstance(name, str | os.PathLike):
        raise ValueError(
            f"name: wanted the name of a data set or of a folder, got {kind(name)}; build "
            "Data(name, Split(images), ...) of images in memory"
        )
    if not str(name):
        raise ValueError("name: wanted the name of a data set or of a folder, got nothing; write '.' for this folder")
    if valid_size is not None:
        whole_number("valid_size", valid_size, least=None)
    whole_number("seed", seed, least=0, most=2**32 - 1)
    if layout not in LAYOUTS or (layout and name in (*SETS, "auto")):
        raise ValueError(f'layout: wanted "NCHW" or "NHWC" for a folder, else None, got {layout!r} for {name}')


def _split(known: KnownSet, parts: Sequence[Split | None], valid_size: int | None, seed: int) -> Data:
    everything, test, valid = (*parts, None)[:3]
    if everything is None or (valid is not None and valid_size is not None):
        raise ValueError(f"valid_size: wanted none, as {known.word} has validation images of its own, got {valid_size}")
    if valid is not None and test is not None:
        return Data(known.word, everything, valid, test, classes=known.classes)
    size, count = known.valid_size if valid_size is None else valid_size, len(everything)
    shares = {"valid": size} if test is not None else {"valid": size, "test": known.valid_size}
    left = count - shares.get("test", 0)
    if not 1 <= size < left:
        raise ValueError(
            f"valid_size: wanted 1 to {left - 1} of {known.word}'s {left} images, got {size}; "
            f"write for instance valid_size={max(1, left // 10)}"
        )
    rows = divided(count, shares, seed)
    test = everything[rows["test"]] if test is None else test
    return Data(known.word, everything[rows["train"]], everything[rows["valid"]], test, classes=known.classes)


def _fetch_url(url: str, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with urllib.request.urlopen(url) as source, path.open("wb") as file:
        length = int(source.headers.get("Content-Length") or 0)
        with tqdm.wrapattr(file, "write", total=length, desc=path.name) as target:
            while chunk := source.read(1 << 16):
                target.write(chunk)


def _fetch_frey(folder: Path) -> None:
    _fetch_url(FREY_URL, folder / FREY_FILE)
    read_frey(folder / FREY_FILE)  # raises DataError unless it is complete and the right file


def _idx_splits(name: str, files: Sequence[Path], most: int = 9) -> tuple[Split, Split]:
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
        if labels.max() > most:
            raise DataError(f"{folder}: the {part} labels go up to {labels.max()}, wanted 0 to {most}; {cure}")
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


def _apart(reader: Callable[[Path], Sequence[torch.Tensor]], train: Path, test: Path) -> tuple[Split, Split]:
    """Return the training and the test split, from a file of images and labels each."""
    return Split(*reader(train)), Split(*reader(test))


def _emnist(word: str, first: int, classes: int, *paths: Path) -> tuple[Split, ...]:
    """Return the training and the test split; the files have the images lying, and letters numbered from 1."""
    parts = _idx_splits(word, paths, classes - 1 + first)
    return tuple(Split(part.images.transpose(2, 3), part.labels - first) for part in parts)


def _qmnist(*paths: Path) -> tuple[Split, ...]:
    """Return the training and the test split; of the eight columns of labels the first is the digit."""
    files = zip(paths[::2], paths[1::2])
    return tuple(Split(read_idx(one, 3).unsqueeze(1), read_idx(two, 2, kind=12)[:, 0]) for one, two in files)


def _omniglot(background: Path, evaluation: Path) -> tuple[Split, Split]:
    train, (images, labels) = Split(*read_omniglot(background)), read_omniglot(evaluation)
    return train, Split(images, labels + int(train.labels.max()) + 1)


def _digits() -> tuple[Split, None]:
    return Split(*read_digits()), None


def _torchvision(name: str, *arguments: dict[str, Any]) -> Callable[[Path], object]:
    """Return what downloads a data set of torchvision, once with each of the arguments."""

    def fetch(root: Path) -> None:
        datasets = optional("torchvision.datasets", "downloads")
        for given in arguments:
            getattr(datasets, name)(root, download=True, **given)

    return fetch


def _idx_set(
    word: str, folder: str, help: str, classes: tuple[str, ...], first_labels: tuple[int, ...] = ()
) -> KnownSet:
    """Return the record of a data set in the files of MNIST, by the name of torchvision's class and folder."""
    kinds = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return KnownSet(
        word,
        f"{help}, 28 × 28",
        lambda *paths: _idx_splits(word, paths),
        valid_size=10_000,
        files=tuple(f"{folder}/raw/{kind}-ubyte" for kind in kinds),
        fetch=_torchvision(folder, {}),
        first_labels=first_labels,
        classes=classes,
    )


def _emnist_set(part: str, help: str, classes: str, rows: tuple[int, int], first: int = 0) -> KnownSet:
    """Return the record of a part of EMNIST; ``first`` is the number of the first class in its files."""
    word, kinds = f"emnist-{part}", ("train-images-idx3", "train-labels-idx1", "test-images-idx3", "test-labels-idx1")
    return KnownSet(
        word,
        f"{help}, 28 × 28",
        partial(_emnist, word, first, len(classes)),
        valid_size=rows[1],
        files=tuple(f"EMNIST/raw/emnist-{part}-{kind}-ubyte" for kind in kinds),
        fetch=_torchvision("EMNIST", {"split": part}),
        classes=tuple(classes),
        rows=rows,
        shape=(1, 28, 28),
    )


_SETS = (
    _idx_set("mnist", "MNIST", "handwritten digits", DIGITS, (5, 0, 4, 1, 9, 2, 1, 3, 1, 4)),
    _idx_set("fashion", "FashionMNIST", "clothes", CLOTHES, (9, 0, 0, 3, 0, 2, 7, 2, 5, 5)),
    _idx_set("kmnist", "KMNIST", "Japanese characters", KANA),
    KnownSet(
        "qmnist",
        "MNIST's digits, with 60,000 for test, 28 × 28",
        _qmnist,
        valid_size=10_000,
        files=tuple(
            f"QMNIST/raw/qmnist-{part}-{kind}"
            for part in ("train", "test")
            for kind in ("images-idx3-ubyte", "labels-idx2-int")
        ),
        fetch=_torchvision("QMNIST", {"what": "train"}, {"what": "test"}),
        classes=DIGITS,
        rows=(60_000, 60_000),
        shape=(1, 28, 28),
    ),
    _emnist_set("letters", "handwritten letters, 26 classes", ascii_lowercase, (124_800, 20_800), first=1),
    _emnist_set("balanced", "handwritten letters and digits, 47 classes", BALANCED, (112_800, 18_800)),
    KnownSet(
        "usps",
        "digits of the US Postal Service, 16 × 16",
        partial(_apart, read_usps),
        valid_size=1_000,
        files=("usps.bz2", "usps.t.bz2"),
        fetch=_torchvision("USPS", {"train": True}, {"train": False}),
        classes=DIGITS,
        rows=(7_291, 2_007),
        shape=(1, 16, 16),
    ),
    KnownSet(
        "svhn",
        "street view house numbers, 3 × 32 × 32",
        partial(_apart, read_svhn),
        valid_size=10_000,
        files=("train_32x32.mat", "test_32x32.mat"),
        fetch=_torchvision("SVHN", {"split": "train"}, {"split": "test"}),
        classes=DIGITS,
        rows=(73_257, 26_032),
        shape=(3, 32, 32),
    ),
    KnownSet(
        "cifar10",
        "photographs of ten kinds of things, 3 × 32 × 32",
        lambda *paths: (Split(*read_cifar(paths[:-1])), Split(*read_cifar(paths[-1:]))),
        valid_size=5_000,
        files=tuple(
            f"cifar-10-batches-py/{name}" for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch")
        ),
        fetch=_torchvision("CIFAR10", {}),
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        rows=(50_000, 10_000),
        shape=(3, 32, 32),
    ),
    KnownSet(
        "omniglot",
        "characters of 50 alphabets, those for test from others than those for training, 28 × 28",
        _omniglot,
        valid_size=1_280,
        files=("omniglot-py/images_background.zip", "omniglot-py/images_evaluation.zip"),
        fetch=_torchvision("Omniglot", {"background": True}, {"background": False}),
        rows=(19_280, 13_180),
        shape=(1, 28, 28),
    ),
    KnownSet(
        "binarized-mnist",
        "MNIST as Larochelle binarized it, without labels, 28 × 28",
        lambda train, valid, test: tuple(Split(read_binary(path)) for path in (train, test, valid)),
        valid_size=10_000,
        files=BINARY_FILES,
        fetch=lambda root: [_fetch_url(BINARY_URL + Path(file).name, root / file) for file in BINARY_FILES],
        rows=(50_000, 10_000, 10_000),
        shape=(1, 28, 28),
    ),
    KnownSet(
        "frey",
        "the face of Brendan Frey, 28 × 20, without labels",
        lambda path: (Split(read_frey(path)), None),
        valid_size=200,
        files=(FREY_FILE,),
        fetch=_fetch_frey,
    ),
    KnownSet("digits", "scikit-learn's handwritten digits, 8 × 8", _digits, valid_size=250, classes=DIGITS),
)
SETS = {known.word: known for known in _SETS}
NAMES = tuple(SETS)
