"""Arrays in files: .npy, .npz, .mat, text (.amat, .txt) and idx, packed or not; no file can run code."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pyro_vae._lazy import LazyModule
from pyro_vae.data.formats import is_idx, read_idx
from pyro_vae.data.raw import DataError
from pyro_vae.files import expanded

if TYPE_CHECKING:
    import scipy.io
else:
    scipy = LazyModule("scipy")

TEXT = (".amat", ".txt")
SUFFIXES = (".npy", ".npz", ".mat", *TEXT)


def read_arrays(path: Path | str) -> dict[str, np.ndarray]:
    """Return the arrays of a file by their names; that of a format with one array is named as the file.

    ``.npz`` and ``.npy`` are NumPy's, ``.mat`` MATLAB's up to version 7; ``.amat`` and ``.txt`` are text, a row a line;
    idx files of unsigned bytes, and ``.gz`` archives of them, are known by their first bytes. Raises DataError for
    other files, for damaged ones, and for arrays of Python objects.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/rows.npz", x=np.eye(2), y=np.arange(2))
    ...     sorted(read_arrays(f"{folder}/rows.npz"))
    ['x', 'y']
    """
    path = expanded(path)
    if not path.is_file():
        raise DataError(f"{path}: wanted a file, got {'a folder' if path.is_dir() else 'nothing there'}")
    try:
        return _arrays(path)
    except DataError:
        raise
    except NotImplementedError as error:
        raise DataError(f"{path}: files of MATLAB 7.3 are not read; save it by save(..., '-v7') in MATLAB") from error
    except Exception as error:  # the libraries raise many kinds of errors
        words = " ".join(str(error).split())[:200]
        raise DataError(f"{path} cannot be read ({words}); make it again, of numbers alone") from error


def read_array(path: Path | str) -> np.ndarray:
    """Return the only array of a file, see ``read_arrays``; raise DataError if it holds several."""
    arrays = read_arrays(path)
    if len(arrays) != 1:
        names = ", ".join(arrays) or "none"
        raise DataError(f"{path}: wanted one array, got {len(arrays)}: {names}; write read_arrays({str(path)!r})[name]")
    return next(iter(arrays.values()))


def is_readable(path: Path) -> bool:
    """Return whether a file looks like one that ``read_arrays`` reads."""
    if not path.is_file():
        return False
    if path.suffix.lower() in SUFFIXES or _is_text(path):
        return True
    may_be_idx = path.suffix.lower() in ("", ".gz", ".idx") or path.name.lower().endswith("-ubyte")
    return may_be_idx and path.stat().st_size > 4 and is_idx(path)


def _is_text(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith(TEXT)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return {path.stem: np.load(path, allow_pickle=False)}
    if suffix == ".npz":
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    if suffix == ".mat":
        content = scipy.io.loadmat(path)
        found = {name: value for name, value in content.items() if isinstance(value, np.ndarray)}
        return {name: value for name, value in found.items() if value.dtype.kind in "biuf"}
    if _is_text(path):
        return {path.name.partition(".")[0]: np.loadtxt(path, ndmin=2)}
    if is_readable(path):
        return {path.name.removesuffix(".gz"): read_idx(path).numpy()}
    raise DataError(
        f"{path}: wanted a file {', '.join(SUFFIXES)} or idx, got another; make arrays of it by its library"
    )
