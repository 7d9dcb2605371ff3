"""Rows that arrive one after the other, kept in memory or written to a .npy file."""

from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.mapped import map_array


class Column(Protocol):
    """Rows of one shape and dtype."""

    def append(self, row: np.ndarray) -> None:
        """Add a row."""
        ...

    def close(self) -> None:
        """Write what is to be written; no row is added afterwards."""
        ...


class MemoryColumn:
    """A column of at most ``count`` rows in memory; ``rows`` is an array (N, ...).

    >>> column = MemoryColumn(3)
    >>> column.append(np.float32([1, 2]))
    >>> column.rows
    array([[1., 2.]], dtype=float32)
    """

    def __init__(self, count: int):
        self._count, self._length, self._rows = count, 0, np.empty(0)

    def append(self, row: np.ndarray) -> None:
        """Add a row."""
        if not self._length:
            self._rows = np.empty((self._count, *row.shape), row.dtype)
        self._rows[self._length] = row
        self._length += 1

    def close(self) -> None:
        """Do nothing: there is no file."""

    @property
    def rows(self) -> np.ndarray:
        """The rows, (N, ...)."""
        return self._rows[: self._length]


class FileColumn:
    """A column in a .npy file, whose header is written when the number of rows is known."""

    def __init__(self, path: Path):
        self.path, self._length = path, 0
        self._file: BinaryIO | None = None

    def append(self, row: np.ndarray) -> None:
        """Add a row."""
        if self._file is None:
            self._file = self.path.open("wb")
            self._shape, self._dtype = row.shape, row.dtype
            self._write_header(self._file)
        self._file.write(row.tobytes())
        self._length += 1

    def close(self) -> None:
        """Write the header with the number of rows; a column without rows leaves no file."""
        if self._file is None:
            return
        with self._file as file:
            start = file.tell() - self._length * self._dtype.itemsize * int(np.prod(self._shape))
            file.seek(0)
            self._write_header(file)
            if file.tell() != start:
                raise OSError(f"{self.path}: the header has another length for {self._length} rows than for none")

    def _write_header(self, file: BinaryIO) -> None:
        """Write the header; NumPy pads it, so that its length is the same for any number of rows."""
        shape = (self._length, *self._shape)
        description = np.lib.format.dtype_to_descr(self._dtype)
        np.lib.format.write_array_header_1_0(file, {"descr": description, "fortran_order": False, "shape": shape})


def opened(path: Path) -> Tensor:
    """Return the rows of a file: bytes (N, C, H, W) mapped from disk, others read into memory."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.dtype == np.uint8 and array.ndim == 4:
        return map_array(path)
    return torch.from_numpy(np.array(array))
