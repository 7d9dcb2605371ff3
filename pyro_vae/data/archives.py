"""The files of known data sets in formats of their own, as torchvision stores them: images and labels."""

import bz2
import io
import pickle
import zipfile
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae._lazy import LazyModule
from pyro_vae.data.formats import opened, readable
from pyro_vae.data.pictures import imported
from pyro_vae.data.raw import DataError
from pyro_vae.optional import optional

if TYPE_CHECKING:
    import scipy.io
else:
    scipy = LazyModule("scipy")

DIGITS_FILE = "datasets/data/digits.csv.gz"  # in the folder of scikit-learn
SVHN_BYTES = 4_000_000_000  # unpacked; the training images have 226 MB
_RECONSTRUCT = np.zeros(0).__reduce__()[0]  # NumPy's function that makes an array
# What the pickles of CIFAR-10 name: the parts of arrays, under their names of NumPy 1 and 2.
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
}


def read_svhn(path: Path) -> tuple[Tensor, Tensor]:
    """Read street view house numbers, uint8 (N, 3, 32, 32); their files have 10 for the digit 0."""
    with readable(path):
        content = scipy.io.loadmat(path)
        images, labels = content["X"], content["y"].reshape(-1).astype(np.int64) % 10
        if images.ndim != 4 or images.dtype != np.uint8:
            raise DataError(
                f"{path}: wanted X, uint8 (32, 32, 3, N), got {images.dtype} {images.shape}; remove it to "
                "download it again"
            )
    return torch.from_numpy(np.ascontiguousarray(images.transpose(3, 2, 0, 1))), torch.from_numpy(labels)


def read_cifar(paths: Sequence[Path]) -> tuple[Tensor, Tensor]:
    """Read batches of CIFAR-10, uint8 (N, 3, 32, 32), without running code that a file names."""
    batches = []
    for path in paths:
        with readable(path), path.open("rb") as file:
            batches.append(_ArraysOnly(file, encoding="latin1").load())
    images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([batch["labels"] for batch in batches])
    return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))


def read_usps(path: Path) -> tuple[Tensor, Tensor]:
    """Read digits of the US Postal Service, uint8 (N, 1, 16, 16), from text: label + 1, then "pixel:level", −1 to 1."""
    with readable(path), bz2.open(path, "rt") as file:
        rows = [line.split() for line in file]
        levels = np.array([[field.partition(":")[2] for field in row[1:]] for row in rows], np.float64)
        labels = np.array([int(row[0]) - 1 for row in rows])
    pixels = np.rint((levels + 1) * 127.5).astype(np.uint8).reshape(-1, 1, 16, 16)
    return torch.from_numpy(pixels), torch.from_numpy(labels)


def read_omniglot(path: Path, side: int = 28) -> tuple[Tensor, Tensor]:
    """Read handwritten characters, uint8 (N, 1, side, side), white on black, from an archive or a folder of pictures.

    Each character of each alphabet is a class, in the order of their names. A pixel is the mean of its area.
    """
    pillow = imported()
    pictures, labels, characters = [], [], {}
    with readable(path):
        for name, content in _pictures(path):
            *_, alphabet, character, _ = name.split("/")
            labels.append(characters.setdefault((alphabet, character), len(characters)))
            with pillow.open(io.BytesIO(content)) as picture:
                drawn = picture.convert("L").resize((side, side), pillow.Resampling.BOX)
            pictures.append(255 - np.asarray(drawn))
    return torch.from_numpy(np.stack(pictures)[:, None]), torch.tensor(labels)


def read_binary(path: Path, side: int = 28) -> Tensor:
    """Read images of 0 and 1 in text, as grey levels 0 and 255, uint8 (N, 1, side, side), an image a line."""
    with readable(path), opened(path) as file:
        content = np.frombuffer(file.read(), np.uint8)
        digits = content[(content == ord("0")) | (content == ord("1"))] - ord("0")
        rows = int((content == ord("\n")).sum()) + int(content[-1] != ord("\n"))
        others = np.setdiff1d(content, np.frombuffer(b"01 \t\r\n", np.uint8))
        if len(others) or len(digits) != rows * side**2:
            got = f"{bytes(others[:1])!r}" if len(others) else f"{len(digits):,} digits in {rows:,} lines"
            raise DataError(
                f"{path}: wanted lines of {side**2} digits 0 and 1, got {got}; remove it to download it again"
            )
    return torch.from_numpy(digits.reshape(-1, 1, side, side) * np.uint8(255))


def read_digits() -> tuple[Tensor, Tensor]:
    """Return the digits that come with scikit-learn, uint8 (1797, 1, 8, 8), and their labels.

    They are read from its file, where that is in its place, since to import scikit-learn takes as long as torch.

    >>> images, labels = read_digits()
    >>> images.shape, labels[:5].tolist()
    (torch.Size([1797, 1, 8, 8]), [0, 1, 2, 3, 4])
    """
    spec = find_spec("sklearn")
    file = Path(spec.origin).parent / DIGITS_FILE if spec and spec.origin else None
    if file is not None and file.is_file():
        table = np.loadtxt(file, delimiter=",")
        pixels, labels = table[:, :-1], table[:, -1]
    else:
        pixels, labels = optional("sklearn.datasets", "the bundled digits").load_digits(return_X_y=True)
    grey = np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    return torch.from_numpy(grey), torch.from_numpy(labels.astype(np.int64))


def _pictures(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the names and the contents of all pictures of an archive or a folder, sorted by name."""
    if path.is_dir():
        for file in sorted(path.rglob("*.png")):
            yield file.as_posix(), file.read_bytes()
        return
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".png"):
                yield name, archive.read(name)


class _ArraysOnly(pickle.Unpickler):
    """A reader of pickles that make arrays, numbers, strings, lists and dictionaries, and nothing else."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """Return what makes an array; raise an error for any other name."""
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which makes no array") from None
