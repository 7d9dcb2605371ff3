"""The rows of a data set: one split, the three splits of a data set, and random batches of row numbers."""

from collections.abc import Iterator, Sequence
from dataclasses import InitVar, dataclass, replace

import numpy as np
import torch
from torch import Generator, Tensor

from pyro_vae.data.mapped import is_mapped, take
from pyro_vae.data.raw import (
    DataWarning,
    as_images,
    as_labels,
    check_levels,
    kind,
    layout_question,
    may_be_channels_last,
)
from pyro_vae.errors import warn


@dataclass(frozen=True)
class Split:
    """Images, uint8 (N, C, H, W), and their labels, int64 (N,), or None. NumPy arrays become tensors.

    Images are contiguous, or mapped from disk. ``split[index]`` takes a slice, row numbers or a mask, and returns a
    split. Labels may be whole numbers of any dtype. Raises ValueError for anything else; the message says what to
    write instead.

    >>> Split(torch.zeros(3, 28, 28))
    Traceback (most recent call last):
        ...
    ValueError: images: wanted a uint8 tensor (N, C, H, W), got torch.float32 of shape (3, 28, 28); if 0 is black and 1
    white, write (images[:, None].float() * (255 / 1)).round().to(torch.uint8)
    >>> Split(np.zeros((3, 1, 28, 28), np.uint8))[::-2]
    Split(images: 2 × 1 × 28 × 28, labels: none)
    """

    images: Tensor
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        images = as_images(self.images)
        vars(self).update(images=images, labels=None if self.labels is None else as_labels(self.labels, len(images)))

    def __repr__(self) -> str:
        labels = "none" if self.labels is None else str(len(self.labels))
        return f"Split(images: {' × '.join(map(str, self.images.shape))}, labels: {labels})"

    def __len__(self) -> int:
        """Return N, the number of images."""
        return len(self.images)

    def __getitem__(self, index: slice | Sequence[int] | np.ndarray | Tensor) -> "Split":
        """Return the split of the rows that a slice, row numbers or a mask select."""
        rows = _rows(self, index)
        images = self.images[rows] if isinstance(rows, slice) else take(self.images, rows)
        return Split(images, None if self.labels is None else self.labels[rows])

    def to(self, device: torch.device | str) -> "Split":
        """Return the split on a device."""
        return Split(self.images.to(device), None if self.labels is None else self.labels.to(device))


@dataclass(frozen=True)
class Data:
    """A data set in three splits. ``note`` says which data set was asked for, if it was another one.

    Each split has at least one image, and all images have one shape. The grey levels are checked: images of only 0
    and 1 raise ValueError, and dark images warn, because their white may be another number than 255. A shape that may
    have the channels last warns, too. ``looked_at``: skip these checks, they were made before.
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
                warn(
                    f"images: {layout_question(self.shape)} They are taken as the first; for the second "
                    "write images.permute(0, 3, 1, 2)",
                    DataWarning,
                )

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of an image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device | str) -> "Data":
        """Return the data set on a device, except for training images that are mapped from disk, which stay there."""
        train = self.train if is_mapped(self.train.images) else self.train.to(device)
        return replace(self, train=train, valid=self.valid.to(device), test=self.test.to(device), looked_at=True)


def batches(
    count: int, batch_size: int, device: torch.device | str = "cpu", generator: Generator | None = None
) -> Iterator[Tensor]:
    """Yield the indices 0 … count − 1 in random order, ``batch_size`` at a time; the last batch may be smaller.

    The indices are on ``device``.

    >>> [len(index) for index in batches(10, 4)]
    [4, 4, 2]
    """
    yield from torch.randperm(count, device=device, generator=generator).split(batch_size)


def _rows(split: Split, index: object) -> slice | Tensor:
    """Return a slice that goes forwards, or row numbers (n,); raise ValueError for any other index."""
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
