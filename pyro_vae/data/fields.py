"""Checks of the fields of a split: type, length, and what the name of a field promises."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.mapped import parts
from pyro_vae.data.raw import as_images, as_labels, check_whole, kind

MASKED = ("images", "table", "counts")  # the fields of which a mask says what was seen
TAKEN = ("fields", "of_fields", "to")  # names of a split's own attributes
UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)  # torch stores them, and compares and indexes none of them


def checked_fields(given: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the fields of a split as tensors of one length; raise ValueError for what a field's name does not allow.

    >>> checked_fields({"table": np.eye(3), "groups": [0, 1]})
    Traceback (most recent call last):
        ...
    ValueError: groups: wanted 3 rows, as many as table has, got 2; give every field one entry for each row
    """
    if not given:
        raise ValueError("split: wanted at least one field, got none; write Split(images) or Split(table=...)")
    first, *_ = given
    fields, count = {}, None
    for name, rows in given.items():
        if name in TAKEN:
            raise ValueError(f"{name}: a split has an attribute of this name; give the field another one")
        if name == "labels":
            count = _length(rows) if count is None else count
            fields[name] = as_labels(rows, count)
            continue
        fields[name] = _CHECKS.get(name, _as_rows)(name, rows)
        count = len(fields[name]) if count is None else count
        if len(fields[name]) != count:
            raise ValueError(
                f"{name}: wanted {count} rows, as many as {first} has, got {len(fields[name])}; "
                "give every field one entry for each row"
            )
    if "mask" in fields:
        _check_mask(fields)
    return fields


def masked_field(fields: Mapping[str, Tensor], name: str) -> bool:
    """Return whether the mask of a batch, if there is one, says which values of this field were seen.

    >>> masked_field({"counts": torch.ones(3, 2), "mask": torch.ones(3, 4, dtype=torch.bool)}, "counts")
    False
    """
    return "mask" in fields and fields["mask"].shape == fields[name].shape


def check_unmasked(fields: Mapping[str, Tensor], name: str) -> None:
    """Raise ValueError where a mask says which values of a field were seen, for a program that scores all of them."""
    if masked_field(fields, name):
        raise ValueError(
            f"batch: its mask says which {name} were seen, and this program scores all of them; write "
            f"pyro_vae.Masked(program), or Split({name}=...) without the mask"
        )


def _length(rows: Any) -> int:
    try:
        return len(rows)
    except TypeError:  # no rows, or an array without a dimension
        return 0


def _as_rows(name: str, rows: Any) -> Tensor:
    """Return a tensor or an array with a dimension of rows as a tensor."""
    check_whole(name, rows)
    if not isinstance(rows, Tensor):
        try:
            rows = np.asarray(rows)
        except ValueError:  # rows of different lengths
            rows = np.asarray(None)
        if rows.dtype.kind not in "biuf":
            raise ValueError(f"{name}: wanted numbers, one entry for each row, got {kind(rows)}; write np.array(rows)")
        if rows.dtype.char == "g":
            raise ValueError(
                f"{name}: wanted numbers of 64 bits at most, got {kind(rows)}; write np.asarray({name}, np.float64)"
            )
        rows = torch.from_numpy(np.require(rows, rows.dtype.newbyteorder("="), ["C", "W"]))
    if not rows.dim():
        raise ValueError(f"{name}: wanted one entry for each row, got {kind(rows)}; write {name}.reshape(1)")
    return rows.long() if rows.dtype in UNSIGNED else rows


def _as_counts(name: str, rows: Any) -> Tensor:
    counts = _as_rows(name, rows)
    if counts.is_complex() or counts.dtype == torch.bool:
        raise ValueError(f"{name}: wanted whole numbers from 0, got {counts.dtype}; write counts.long()")
    for part in parts(counts):
        wrong = part < 0
        if part.is_floating_point():
            wrong = wrong | (part != part.round()) | ~part.isfinite()
        if wrong.any():
            raise ValueError(
                f"{name}: wanted whole numbers from 0, got {part[wrong][0].item()}; give the raw counts, neither "
                "scaled nor their logarithms"
            )
    return counts


def _as_table(name: str, rows: Any) -> Tensor:
    table = _as_rows(name, rows)
    if not table.is_floating_point() or table.dim() != 2:
        raise ValueError(
            f"{name}: wanted floating-point numbers (N, D), one column for each variable, got {kind(table)}; "
            "write table.double(), or Data.from_frame(frame) for a pandas frame"
        )
    return table


def _as_mask(name: str, rows: Any) -> Tensor:
    mask = _as_rows(name, rows)
    if mask.dtype != torch.bool:
        raise ValueError(f"{name}: wanted bool, True where a value was seen, got {mask.dtype}; write mask > 0")
    return mask


def _check_mask(fields: Mapping[str, Tensor]) -> None:
    mask, masked = fields["mask"], [name for name in MASKED if name in fields]
    if masked and not any(fields[name].shape == mask.shape for name in masked):
        shapes = " or ".join(f"{tuple(fields[name].shape)} of {name}" for name in masked)
        raise ValueError(f"mask: wanted the shape {shapes}, got {tuple(mask.shape)}; write mask.expand_as({masked[0]})")


_CHECKS = {"images": lambda name, rows: as_images(rows), "counts": _as_counts, "table": _as_table, "mask": _as_mask}
