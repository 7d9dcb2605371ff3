"""Rows in memory as the fields of three splits: given apart, or as shares of the training rows."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vae.data.fields import checked_fields
from pyro_vae.data.levels import channels_first, grey_levels, recognised
from pyro_vae.data.mapped import take
from pyro_vae.data.raw import DataWarning, check_levels
from pyro_vae.data.shares import SPLITS, divided, is_share
from pyro_vae.errors import warn

Fields = dict[str, Tensor]  # the fields of a split, by name


def fields_of_splits(
    given: Mapping[str, Any],
    valid: Any = 0.1,
    test: Any = 0.1,
    *,
    layout: str | None = None,
    seed: int = 0,
    columns: Sequence[Hashable] = (),
) -> dict[str, Fields]:
    """Return the checked fields of train, valid and test from arrays or tensors.

    Args:
        given: field -> the training rows, or a mapping of the names of splits to rows.
        valid, test: the images of the split, or the share of the training rows that becomes the split where ``given``
            has no rows for it: a fraction or a number of rows.
        layout: of the images, see ``grey_levels``.
        seed: of the rows that are taken.
        columns: the names of the table's columns, for messages.

    Raises ValueError for fields whose splits or lengths differ, and for what the name of a field does not allow.
    """
    by_field = {name: _by_split(name, rows) for name, rows in given.items() if rows is not None}
    for split, rows in (("valid", valid), ("test", test)):
        if not is_share(rows):
            by_field.setdefault("images", {})[split] = rows
    _check_splits(by_field)
    if "images" in by_field:
        _make_pictures(by_field, layout)
    apart = next(iter(by_field.values()))
    splits = {split: checked_fields({name: rows[split] for name, rows in by_field.items()}) for split in apart}
    shares = {split: rows for split, rows in (("valid", valid), ("test", test)) if split not in apart}
    _check_classes(splits)
    splits |= _taken(splits["train"], shares, seed)
    if "table" in splits["train"]:
        check_columns(splits["train"]["table"], columns)
    return {split: splits[split] for split in SPLITS}


def checked_splits(given: Mapping[str, Mapping[str, Any]]) -> dict[str, Fields]:
    """Return the checked fields of splits that are complete, with images as uint8 (N, C, H, W)."""
    splits = {split: checked_fields(given[split]) for split in SPLITS}
    if all("images" in fields for fields in splits.values()):
        check_levels({split: fields["images"] for split, fields in splits.items()})
    _check_classes(splits)
    if "table" in splits["train"]:
        check_columns(splits["train"]["table"])
    return splits


def check_columns(table: Tensor, names: Sequence[Hashable] = ()) -> None:
    """Check a table for training, float (N, D): raise ValueError for a column without any value, warn if all are equal.

    Infinite values raise ValueError, too. Warns with DataWarning.

    >>> check_columns(torch.tensor([[1.0, torch.nan], [2.0, torch.nan]]), names=["age", "income"])
    Traceback (most recent call last):
        ...
    ValueError: table: wanted some values in each column for training, got none in income; drop it
    """
    words = [str(name) for name in names] or [f"column {place}" for place in range(table.shape[1])]
    seen = ~table.isnan()
    empty = [word for word, any_ in zip(words, seen.any(0).tolist()) if not any_]
    if empty:
        raise ValueError(
            f"table: wanted some values in each column for training, got none in {', '.join(empty)}; drop "
            + ("it" if len(empty) == 1 else "them")
        )
    infinite = [word for word, any_ in zip(words, table.isinf().any(0).tolist()) if any_]
    if infinite:
        raise ValueError(
            "table: wanted finite numbers, or NaN where a value is missing, got infinite ones in "
            f"{', '.join(infinite)}; if they are missing, write torch.where(table.isinf(), torch.nan, table)"
        )
    low = torch.where(seen, table, torch.inf).amin(0)
    high = torch.where(seen, table, -torch.inf).amax(0)
    alike = [f"{word} ({value:g})" for word, value, same in zip(words, low.tolist(), (low == high).tolist()) if same]
    if alike:
        warn(f"table: all training rows have one value in {', '.join(alike)}; such a column says nothing", DataWarning)


def _by_split(name: str, rows: Any) -> dict[str, Any]:
    if not isinstance(rows, Mapping):
        return {"train": rows}
    unknown = [key for key in rows if key not in SPLITS]
    if unknown or "train" not in rows:
        raise ValueError(f"{name}: wanted rows for train, and for valid and test if given apart, got {list(rows)}")
    return dict(rows)


def _check_splits(by_field: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ValueError unless there is a field, and all fields have rows for the same splits."""
    if not by_field:
        raise ValueError("train: wanted images or another field, got none; write for instance counts=...")
    first, *_ = by_field
    if "train" not in by_field[first]:
        raise ValueError("train: wanted training images, as images for another split are given; write train=...")
    wanted = set(by_field[first])
    for name, rows in by_field.items():
        if set(rows) != wanted:
            splits = [split for split in SPLITS if split in wanted | set(rows)]
            cure = ", ".join(f"{split!r}: ..." for split in splits)
            raise ValueError(
                f"{name}: wanted rows for the splits of {first}, {', '.join(s for s in SPLITS if s in wanted)}, got "
                f"{', '.join(s for s in SPLITS if s in rows)}; give each field for each of these splits: "
                f"{name}={{{cure}}}"
            )


def _make_pictures(by_field: dict[str, dict[str, Any]], layout: str | None) -> None:
    """Replace the images by grey levels (N, C, H, W), and bring a mask of the same shape into the same layout."""
    images, shape = by_field["images"], getattr(by_field["images"]["train"], "shape", ())
    layout = recognised(shape, layout)
    by_field["images"] = dict(grey_levels(images, layout))
    masks = by_field.get("mask", {})
    for split, mask in masks.items():
        if len(shape) in (3, 4) and getattr(mask, "shape", ())[1:] == shape[1:]:
            masks[split] = channels_first(mask, layout).contiguous()


def _check_classes(splits: Mapping[str, Fields]) -> None:
    """Warn if a split that was given apart has labels that no training row has."""
    known = splits["train"].get("labels")
    for split, fields in splits.items():
        if known is None or split == "train":
            continue
        new = sorted(set(fields["labels"].unique().tolist()) - set(known.unique().tolist()) - {-1})
        if new:
            words = ", ".join(map(str, new[:10])) + (", …" if len(new) > 10 else "")
            warn(f"labels: no training row is of the classes {words}, which {split} has", DataWarning)


def _taken(train: Fields, shares: Mapping[str, float], seed: int) -> dict[str, Fields]:
    """Return the training rows without the shares, and the rows of the shares."""
    if not shares:
        return {"train": train}
    rows = divided(len(next(iter(train.values()))), shares, seed)
    return {split: {name: take(field, index) for name, field in train.items()} for split, index in rows.items()}
