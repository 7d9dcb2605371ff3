"""The rows of a data set: one split, the three splits of a data set, and random batches of row numbers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from pyro_vae.data.arrays import Fields
from pyro_vae.data.fields import checked_fields
from pyro_vae.data.mapped import is_mapped, take
from pyro_vae.data.raw import DataWarning, check_levels, kind, layout_question, may_be_channels_last
from pyro_vae.data.sources import Sources
from pyro_vae.data.thumbnails import thumbnails
from pyro_vae.errors import warn
from pyro_vae.printing import listed
from pyro_vae.showing import Shown, on_one_line


class Split:
    """Rows of a data set: named tensors of one length, the *fields*. ``split[:256]`` is a split again, a *batch*.

    Each field is an attribute, such as ``split.counts``; ``split.images`` and ``split.labels`` are None where they are
    missing. NumPy arrays become tensors. The names of these fields say what they hold:

    - ``images``: uint8 (N, C, H, W), contiguous or mapped from disk.
    - ``labels``: whole numbers (N,) of any dtype, which become int64; −1 where the class is unknown.
    - ``counts``: whole numbers from 0, (N, ...), of any dtype.
    - ``table``: float (N, D), a column for each variable; NaN where a value is missing.
    - ``mask``: bool, of the shape of the images, the table or the counts; True where a value was seen.

    A field of any other name is a tensor of N rows. ``split[index]`` takes a slice, row numbers or a mask. Raises
    ValueError for anything else; the message says what to write instead.

    >>> Split(torch.zeros(3, 28, 28))
    Traceback (most recent call last):
        ...
    ValueError: images: wanted a uint8 tensor (N, C, H, W), got torch.float32 of shape (3, 28, 28); if 0 is black and 1
    white, write (images[:, None].float() * (255 / 1)).round().to(torch.uint8)
    >>> Split(np.zeros((3, 1, 28, 28), np.uint8))[::-2]
    Split(images: 2 × 1 × 28 × 28, labels: none)
    >>> Split(counts=np.array([[3, 0], [1, 7], [0, 2]]), size=np.ones(3)).size
    tensor([1., 1., 1.], dtype=torch.float64)
    """

    fields: dict[str, Tensor]

    def __init__(self, images: Any = None, labels: Any = None, **fields: Any):
        given = {"images": images, **fields, "labels": labels}
        vars(self)["fields"] = checked_fields({name: rows for name, rows in given.items() if rows is not None})

    @classmethod
    def of_fields(cls, fields: Mapping[str, Tensor]) -> "Split":
        """Return the split of tensors that were checked before, such as rows of another split."""
        split = cls.__new__(cls)
        vars(split)["fields"] = dict(fields)
        return split

    def __getattr__(self, name: str) -> Any:
        fields = vars(self).get("fields", {})
        if name in fields:
            return fields[name]
        if name in ("images", "labels"):
            return None
        raise AttributeError(f"split: wanted one of its fields {', '.join(fields)}, got {name}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{name}: a split cannot be changed; make another one, Split(..., {name}=...)")

    def __repr__(self) -> str:
        shapes = {name: " × ".join(map(str, rows.shape)) for name, rows in self.fields.items()}
        if "images" in shapes:
            shapes = {"images": shapes.pop("images"), "labels": shapes.pop("labels", "none"), **shapes}
        return on_one_line(f"Split({', '.join(f'{name}: {shape}' for name, shape in shapes.items())})")

    def __str__(self) -> str:
        return repr(self)

    def _repr_html_(self) -> str:
        title = f"{len(self):,} rows"
        return Shown(title, _rows_of(self), ["field", "shape of a row", "type"], pictures=_pictures(self)).html()

    def __len__(self) -> int:
        """Return N, the number of rows."""
        return len(next(iter(self.fields.values())))

    def __getitem__(self, index: slice | Sequence[int] | np.ndarray | Tensor) -> "Split":
        """Return the split of the rows that a slice, row numbers or a mask select."""
        rows = _rows(self, index)
        return Split.of_fields(
            {name: field[rows] if isinstance(rows, slice) else take(field, rows) for name, field in self.fields.items()}
        )

    def to(self, device: torch.device | str) -> "Split":
        """Return the split on a device, except for fields that are mapped from disk, which stay there."""
        return Split.of_fields(
            {name: field if is_mapped(field) else field.to(device) for name, field in self.fields.items()}
        )


@dataclass(frozen=True)
class Data(Sources):
    """A data set in three splits of the same fields, each with at least one row of the same shape.

    The grey levels of images are checked: images of only 0 and 1 raise ValueError, and dark images warn, because their
    white may be another number than 255. A shape that may have the channels last warns, too.

    Args:
        name: of the data set.
        train, valid, test: the splits.
        note: says which data set was asked for, if it was another one.
        classes: the names of the classes, in the order of the labels, where they are known.
        looked_at: skip the checks of grey levels, they were made before.
    """

    name: str
    train: Split
    valid: Split
    test: Split
    note: str = ""
    classes: tuple[str, ...] = ()
    looked_at: InitVar[bool] = False

    def __post_init__(self, looked_at: bool) -> None:
        for field in ("name", "note"):
            if not isinstance(getattr(self, field), str):
                raise ValueError(f"{field}: wanted a string, got {getattr(self, field)!r:.80}")
        splits = {"train": self.train, "valid": self.valid, "test": self.test}
        for name, split in splits.items():
            if not isinstance(split, Split):
                raise ValueError(f"{name}: wanted a Split, got {kind(split)}; write Split(images)")
            self._check_alike(name, split)
        _check_classes(splits, self.classes)
        if not looked_at and self.train.images is not None:
            check_levels({name: split.images for name, split in splits.items()})
            if may_be_channels_last(self.shape):
                warn(
                    f"images: {layout_question(self.shape)} They are taken as the first; for the second "
                    "write images.permute(0, 3, 1, 2)",
                    DataWarning,
                )

    def __repr__(self) -> str:
        sizes = ", ".join(f"{count:,} {name}" for name, count in self._sizes())
        fields = ", ".join(f"{row[0]} {row[1]}".removesuffix(" a number") for row in _rows_of(self.train))
        classes = f"; {len(self.classes)} classes" if self.classes else ""
        return on_one_line(f"Data({self.name!r}: {sizes}; {fields}{classes})")

    def __str__(self) -> str:
        return str(self._shown())

    def _repr_html_(self) -> str:
        return replace(self._shown(), pictures=_pictures(self.train)).html()

    def _shown(self) -> Shown:
        sizes = [f"{count:,} {name}" for name, count in self._sizes()]
        named = f"{len(self.classes)} classes: {listed(self.classes, most=20)}" if self.classes else ""
        columns = ["field", "shape of a row", "type"]
        notes = [note for note in (named, self.note) if note]
        return Shown(f"{self.name}: {', '.join(sizes)}", _rows_of(self.train), columns, notes)

    def _sizes(self) -> list[tuple[str, int]]:
        return [(name, len(getattr(self, name))) for name in ("train", "valid", "test")]

    @classmethod
    def of_fields(cls, name: str, parts: Mapping[str, Fields], classes: Sequence[str] = ()) -> "Data":
        """Return the data set of the fields of train, valid and test, whose grey levels were checked before."""
        train, valid, test = (Split.of_fields(parts[split]) for split in ("train", "valid", "test"))
        return cls(name, train, valid, test, classes=tuple(classes), looked_at=True)

    @property
    def shape(self) -> Any:
        """The shape (C, H, W) of an image; without images, the shape of a row of the first field."""
        return tuple(next(iter(self.train.fields.values())).shape[1:])

    def to(self, device: torch.device | str) -> "Data":
        """Return the data set on a device, except for training rows that are mapped from disk, which stay there."""
        moved = {name: getattr(self, name).to(device) for name in ("train", "valid", "test")}
        held_out = {name: in_memory(moved[name], device) for name in ("valid", "test")}
        return replace(self, train=moved["train"], **held_out, looked_at=True)

    def _check_alike(self, name: str, split: Split) -> None:
        first = next(iter(self.train.fields))
        shape = split.fields[first].shape[1:] if first in split.fields else None
        if shape is None or not split.fields[first].numel() or shape != self.train.fields[first].shape[1:]:
            noun = first.removesuffix("s") if first == "images" else f"row of {first}"
            got = f"{len(split)} of {tuple(shape)}" if shape is not None else f"a split without {first}"
            raise ValueError(
                f"{name}: wanted at least one {noun}, of shape {self.shape} as in train, got {got}; give all three "
                f"rows of at least one number, or leave {first} out"
            )
        wanted = {field: tuple(rows.shape[1:]) for field, rows in self.train.fields.items() if field != "labels"}
        found = {field: tuple(rows.shape[1:]) for field, rows in split.fields.items() if field != "labels"}
        if wanted != found:
            raise ValueError(
                f"{name}: wanted the fields and row shapes of train, {wanted}, got {found}; make all three alike"
            )


def batches(
    count: int, batch_size: int, device: torch.device | str = "cpu", generator: Generator | None = None
) -> Iterator[Tensor]:
    """Yield the indices 0 … count − 1 in random order, ``batch_size`` at a time; the last batch may be smaller.

    The indices are on ``device``.

    >>> [len(index) for index in batches(10, 4)]
    [4, 4, 2]
    """
    yield from torch.randperm(count, device=device, generator=generator).split(batch_size)


def in_memory(split: Split, device: torch.device | str = "cpu") -> Split:
    """Return the split on a device, also what was mapped from disk."""
    return Split.of_fields({name: field.to(device) for name, field in split.fields.items()})


def _rows_of(split: Split) -> list[tuple[str, str, str]]:
    """Return the name, the shape of a row and the type of each field."""
    return [
        (name, " × ".join(map(str, field.shape[1:])) or "a number", str(field.dtype).removeprefix("torch."))
        for name, field in split.fields.items()
    ]


def _pictures(split: Split) -> str:
    return "" if split.images is None else thumbnails(split.images)


def _check_classes(splits: Mapping[str, Split], classes: Sequence[str]) -> None:
    """Raise ValueError for a label that has no name among the classes, where these are given."""
    if not isinstance(classes, tuple) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"classes: wanted a tuple of names, got {classes!r:.80}")
    for name, split in splits.items():
        if classes and split.labels is not None and len(split) and int(split.labels.max()) >= len(classes):
            raise ValueError(
                f"labels: wanted −1 (unknown) or 0 to {len(classes) - 1}, a number for each of the {len(classes)} "
                f"classes, got {int(split.labels.max())} in {name}; give all classes a name, or correct the label"
            )


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
    first, fields = next(iter(split.fields)), ", ".join(f"split.{name}" for name in split.fields)
    got = kind(index) if isinstance(index, Tensor | np.ndarray) else repr(index)
    raise ValueError(
        f"index: wanted a slice, whole numbers (n,) or a mask ({len(split)},), got {got:.80}; write split[0:1] for a "
        f"split of one row, split.{first}[0] for that row, DataLoader(TensorDataset({fields})) for batches of tensors"
    )
