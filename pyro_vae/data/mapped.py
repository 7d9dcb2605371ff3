"""Arrays of uint8 in .npy files that stay on disk: tensors in mapped memory, with a bounded part resident."""

import mmap
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from pyro_vae.files import expanded

RESIDENT = 64 << 20  # bytes of a file that are in memory at once, about
TOUCHED = 2 << 20  # bytes that Linux may map around an image that is read
BLOCK = 2 << 20  # bytes of neighbouring images that are read together where most of them are to be taken
TOGETHER = 32 << 20  # bytes of images that are in memory at once in a pass over all images
# Private, and on Linux without a reservation: otherwise the whole file would have to fit into memory.
PRIVATE = (
    {"flags": mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0x4000), "prot": mmap.PROT_READ | mmap.PROT_WRITE}
    if sys.platform == "linux"
    else {"access": mmap.ACCESS_COPY}
)

_MAPPED: WeakValueDictionary[int, mmap.mmap] = WeakValueDictionary()  # keys: the address of the tensor's storage


class _Blocks(NamedTuple):
    """Copies of blocks (n, rows, ...) of a part of a file, by their numbers."""

    part: tuple
    numbers: Tensor
    images: Tensor


_BLOCKS: WeakKeyDictionary[mmap.mmap, _Blocks] = WeakKeyDictionary()  # what ``take_blocks`` has read


def map_array(path: Path | str) -> Tensor:
    """Return the uint8 array of a .npy file as a tensor that reads from disk when it is indexed.

    Writing to the tensor does not change the file, and the change may be lost. Raises OSError for a file that cannot be
    read, and ValueError for a file that is no .npy file of unsigned bytes in C order or is shorter than it declares.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/train.npy", np.arange(6, dtype=np.uint8).reshape(3, 2))
    ...     array = map_array(f"{folder}/train.npy")
    >>> is_mapped(array), take(array, torch.tensor([2, 0]))
    (True, tensor([[4, 5],
            [0, 1]], dtype=torch.uint8))
    """
    path = expanded(path)
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.memmap) or array.dtype != np.uint8 or not array.flags.c_contiguous or not array.size:
        got = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{path}: wanted an array of uint8 in C order, got {got}")
    with path.open("rb") as file:
        pages = mmap.mmap(file.fileno(), 0, **PRIVATE)
    tensor = torch.frombuffer(pages, dtype=torch.uint8, count=array.size, offset=array.offset).reshape(array.shape)
    _MAPPED[tensor.untyped_storage().data_ptr()] = pages
    return tensor


def is_mapped(tensor: Tensor) -> bool:
    """Return whether the tensor is, or is a part of, a tensor of ``map_array``."""
    return tensor.device.type == "cpu" and tensor.untyped_storage().data_ptr() in _MAPPED


def take(images: Tensor, index: Tensor) -> Tensor:
    """Return ``images[index]``, in memory and contiguous; of a mapped tensor about ``RESIDENT`` bytes are resident."""
    index = index.to(images.device)
    if not is_mapped(images):
        return images[index].contiguous()
    pages, chosen = _MAPPED[images.untyped_storage().data_ptr()], []
    for part in index.split(max(1, RESIDENT // max(TOUCHED, image_bytes(images)))):
        chosen.append(images[part])
        if hasattr(mmap, "MADV_DONTNEED"):
            pages.madvise(mmap.MADV_DONTNEED)
    return torch.cat(chosen).contiguous()


def take_blocks(images: Tensor, index: Tensor) -> Tensor:
    """Return ``images[index]`` of a mapped tensor from copies of whole blocks, which are kept until others are needed.

    It is the way to read rows in the order of ``order.shuffled``: each block is then read once, from its start to its
    end, whatever the system reads ahead or keeps of the file. The blocks of an index are in memory at once.
    """
    index = index.to(images.device)
    pages, rows = _MAPPED[images.untyped_storage().data_ptr()], max(1, BLOCK // image_bytes(images))
    part = images.data_ptr(), images.shape, images.stride()  # of the file, as two parts have other blocks
    wanted = (index // rows).unique()
    held = _BLOCKS.get(pages)
    if held is None or held.part != part or not torch.isin(wanted, held.numbers).all():
        held = _BLOCKS[pages] = _read(images, wanted, rows, held if held and held.part == part else None)
        if hasattr(mmap, "MADV_DONTNEED"):
            pages.madvise(mmap.MADV_DONTNEED)
    return held.images[torch.searchsorted(held.numbers, index // rows), index % rows]


def _read(images: Tensor, wanted: Tensor, rows: int, held: _Blocks | None) -> _Blocks:
    """Return the wanted blocks, and those that are held as far as both are few; numbers in ascending order."""
    old = {} if held is None else dict(zip(held.numbers.tolist(), held.images))
    needed = set(wanted.tolist())
    numbers = sorted(needed | (old.keys() if len(needed | old.keys()) <= 2 * RESIDENT // BLOCK else set()))
    blocks = images.new_empty(len(numbers), rows, *images.shape[1:])
    for block, number in zip(blocks, numbers):
        whole = old.get(number)
        block = block if whole is not None else block[: len(images) - number * rows]  # the last one may be shorter
        block.copy_(images[number * rows : (number + 1) * rows] if whole is None else whole)
    return _Blocks((images.data_ptr(), images.shape, images.stride()), torch.tensor(numbers), blocks)


def parts(images: Tensor, index: Tensor | None = None) -> Iterator[Tensor]:
    """Yield all images, or those of an index, in parts of at most ``TOGETHER`` bytes, and at least one image.

    >>> [len(part) for part in parts(torch.zeros(5, 1, 4096, 4096, dtype=torch.uint8))]
    [2, 2, 1]
    """
    index = torch.arange(len(images)) if index is None else index
    for part in index.split(max(1, TOGETHER // image_bytes(images))):
        yield take(images, part)


def image_bytes(images: Tensor) -> int:
    """Return the number of bytes of one image, at least 1."""
    return max(1, images.nbytes // max(1, len(images)))
