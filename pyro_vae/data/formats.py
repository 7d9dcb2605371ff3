"""The file formats of known data sets: idx files, and the MATLAB file of Frey Face."""

import gzip
import io
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae._lazy import LazyModule
from pyro_vae.data.raw import DataError

if TYPE_CHECKING:
    import scipy.io
else:
    scipy = LazyModule("scipy")

FREY_BYTES = 4_000_000  # the file has 1 MB, unpacked 1.2 MB; a larger one is another file
BYTES = 8
KINDS = {BYTES: "u1", 12: ">i4"}  # of numbers in idx files
UNPACKED_BYTES = 2_000_000_000  # the largest idx archive; MNIST's training images have 47 MB, EMNIST's 547 MB


def existing(path: Path) -> Path | None:
    """Return the file, the file under its other usual name, or the gzip archive of either; None if none exists.

    In place of a zip archive the folder will do that was unpacked from it.
    """
    if path.suffix == ".zip" and not path.is_file() and path.with_suffix("").is_dir():
        return path.with_suffix("")
    names = (path.name, path.name.replace("-idx", ".idx"))
    files = (path.with_name(name + suffix) for suffix in ("", ".gz") for name in names)
    return next((file for file in files if file.is_file()), None)


def opened(path: Path) -> Any:
    """Open a file for reading bytes, unpacked if it is a gzip archive."""
    return (gzip.open if path.suffix == ".gz" else open)(path, "rb")


def is_idx(path: Path) -> bool:
    """Return whether a file begins as an idx file of unsigned bytes does, or is an archive of one."""
    try:
        with opened(path) as file:
            begin = file.read(4)
    except (OSError, EOFError, zlib.error):  # no archive, although its name says so
        return False
    return begin[:3] == bytes([0, 0, BYTES]) and len(begin) == 4 and begin[3] in range(1, 6)


def read_idx(path: Path, dims: int | None = None, kind: int = BYTES) -> Tensor:
    """Read a file in the idx format: magic number 0, 0, kind, dims; the sizes, big-endian; the numbers.

    ``kind`` is 8 for unsigned bytes, 12 for int32, which is returned as int64. Without ``dims`` the file says it.
    """
    path = existing(path) or path
    packed = path.suffix == ".gz"
    with readable(path), opened(path) as file:
        sizes = _idx_sizes(file, path, dims, kind)
        declared = math.prod(sizes) * np.dtype(KINDS[kind]).itemsize
        held = (_size_at_end(path) if packed else path.stat().st_size) - 4 - 4 * len(sizes)
        if packed and declared > UNPACKED_BYTES and (held - declared) % 2**32 == 0:
            raise DataError(
                f"{path}: its {declared:,} bytes are more than the {UNPACKED_BYTES:,} that are unpacked in "
                "memory; unpack it with gzip -d, if you trust it"
            )
        # The sizes may be wrong: memory is taken only for what the file holds, or for what may be unpacked.
        is_safe = declared <= UNPACKED_BYTES if packed else held == declared
        content = _filled(file, declared if is_safe else 0)
        held = len(content) + len(file.read(1)) if is_safe else held
    if held != declared:
        got = f"{held:,}" if held < declared else "more"
        raise DataError(
            f"{path}: the header declares {declared:,} bytes, it holds {got}; remove it to download it again"
        )
    numbers = content if kind == BYTES else content.view(KINDS[kind]).astype(np.int64)
    return torch.from_numpy(numbers).reshape(sizes)


def idx_as_array(path: Path, name: str, shape: Sequence[int]) -> str:
    """Return code that writes a .npy file from an idx file whose elements have this shape."""
    content = f"Path({str(path)!r}).read_bytes()"
    content = f"gzip.decompress({content})" if path.suffix == ".gz" else content
    content = f"np.frombuffer({content}, np.uint8, offset={8 + 4 * len(shape)})"
    return f"np.save('{name}.npy', {content}.reshape({(-1, *shape)}))"


def read_frey(path: Path) -> Tensor:
    """Read the 1,965 images of Frey Face, uint8 (N, 1, 28, 20)."""
    with readable(path):
        if path.stat().st_size > FREY_BYTES:
            raise DataError(f"{path}: it is larger than {FREY_BYTES:,} bytes, so it is not Frey Face; move it away")
        file = io.BytesIO(_unpacked_mat(path.read_bytes()))
        found = scipy.io.whosmat(file)  # before anything is read: a file may declare any size
        if found != [("ff", (560, 1965), "uint8")]:
            got = next((f"{kind} {shape}" for name, shape, kind in found if name == "ff"), "none")[:200]
            wanted = "a variable ff, uint8 (560, 1965), and nothing else"
            raise DataError(f"{path}: wanted {wanted}, got {got}; remove it to download it again")
        file.seek(0)
        faces = scipy.io.loadmat(file)["ff"]
    return torch.from_numpy(faces.T.reshape(-1, 1, 28, 20).copy())


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Context manager in which any error of a library becomes a DataError that names the file and the cure."""
    try:
        yield
    except DataError:
        raise
    except (MemoryError, PermissionError) as error:
        raise DataError(f"{path} cannot be read ({error}); the file itself may be intact") from error
    except Exception as error:
        raise DataError(f"{path} cannot be read ({error}); remove it to download it again") from error


def _idx_sizes(file: io.BufferedIOBase, path: Path, dims: int | None, kind: int) -> list[int]:
    """Read the header of an idx file, and return the sizes of its dimensions."""
    begin = file.read(4)
    dims = begin[-1] if dims is None and len(begin) == 4 else dims or 1
    length, magic = 4 + 4 * dims, bytes([0, 0, kind, dims])
    header = begin + file.read(length - 4)
    if header[:4] != magic or len(header) != length:
        raise DataError(
            f"{path}: wanted a header of {length} bytes that begins with {magic.hex(' ')}, got "
            f"{header.hex(' ') or 'an empty file'}; remove it to download it again"
        )
    return np.frombuffer(header[4:], ">u4").tolist()


def _size_at_end(archive: Path) -> int:
    """Return the unpacked size that a gzip archive declares, modulo 2³²."""
    with archive.open("rb") as file:
        file.seek(-4, os.SEEK_END)
        return int.from_bytes(file.read(), "little")


def _filled(file: io.BufferedIOBase, size: int) -> np.ndarray:
    """Return the next ``size`` bytes of the file, or as many as there are."""
    content, n = np.empty(size, np.uint8), 0
    while got := file.readinto(content.data[n:]):
        n += got
    return content[:n]


def _unpacked_mat(content: bytes) -> bytes:
    """Decompress the elements of a MATLAB 5 file, FREY_BYTES at most, and return the file without compression.

    The format: a header of 128 bytes that ends with the byte order, then elements of type, size and content. Type 15
    is compressed.
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
