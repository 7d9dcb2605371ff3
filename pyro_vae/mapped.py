"""uint8 arrays of .npy files that stay on disk: tensors of mapped memory, a bounded part of which is resident."""

import mmap
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

RESIDENT = 64 << 20  # bytes of a file that may have been read, about, before its pages are given back
TOUCHED = 1 << 16  # bytes that Linux maps around an image that is read


class _Pages(mmap.mmap):
    """A private mapping of a file, which counts what was read of it since its pages were last given back."""

    read = 0


_MAPPED: WeakValueDictionary[int, _Pages] = WeakValueDictionary()  # by the address of the tensor's storage


def map_array(path: Path | str) -> Tensor:
    """The uint8 array of a .npy file, as a tensor that reads it from the disk where it is indexed.

    Writing to the tensor does not change the file, and may be forgotten. Raises OSError for a file that cannot be read,
    ValueError for one that is no .npy file of unsigned bytes in C order, or is shorter than it declares.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/train.npy", np.arange(6, dtype=np.uint8).reshape(3, 2))
    ...     array = map_array(f"{folder}/train.npy")
    >>> is_mapped(array), take(array, torch.tensor([2, 0]))
    (True, tensor([[4, 5],
            [0, 1]], dtype=torch.uint8))
    """
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.memmap) or array.dtype != np.uint8 or not array.flags.c_contiguous or not array.size:
        got = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{path}: wanted an array of uint8 in C order, got {got}")
    with Path(path).open("rb") as file:
        pages = _Pages(file.fileno(), 0, access=mmap.ACCESS_COPY)
    tensor = torch.frombuffer(pages, dtype=torch.uint8, count=array.size, offset=array.offset).reshape(array.shape)
    _MAPPED[tensor.untyped_storage().data_ptr()] = pages
    return tensor


def is_mapped(tensor: Tensor) -> bool:
    """Whether the tensor is, or is a part of, one of ``map_array``."""
    return tensor.device.type == "cpu" and tensor.untyped_storage().data_ptr() in _MAPPED


def take(images: Tensor, index: Tensor) -> Tensor:
    """``images[index]``, in memory. Of a mapped tensor no more than ``RESIDENT`` bytes, about, stay resident."""
    chosen = images[index]
    pages = _MAPPED.get(images.untyped_storage().data_ptr()) if is_mapped(images) else None
    if pages is not None:
        pages.read += len(index) * max(TOUCHED, images[0].nbytes)
        if pages.read > RESIDENT and hasattr(mmap, "MADV_DONTNEED"):
            pages.madvise(mmap.MADV_DONTNEED)
            pages.read = 0
    return chosen
