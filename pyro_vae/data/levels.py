"""Pictures in arrays of any usual kind as grey levels, uint8 (N, C, H, W)."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.mapped import is_mapped
from pyro_vae.data.raw import advice, as_images, check_levels, kind, layout_question, may_be_channels_last
from pyro_vae.words import LAYOUTS

CHANNELS = (1, 3, 4)  # the usual numbers of channels
AT_ONCE = 1 << 24  # numbers that are converted at once

_LOGGER = logging.getLogger(__name__)


def grey_levels(images: Mapping[str, Any], layout: str | None = None) -> dict[str, Tensor]:
    """Return the pictures of each split as uint8 (N, C, H, W).

    Pictures are uint8 or floating-point numbers in [0, 1], of shape (N, H, W), (N, C, H, W) or (N, H, W, C), in a
    NumPy array or a tensor. Floating-point numbers become the nearest of 256 grey levels; a line in the log says so,
    and another that the channels were recognised in the last axis. ``layout``, "NCHW" or "NHWC", says where the
    channels are. Raises ValueError for anything else.

    >>> grey_levels({"train": np.linspace(0, 1, 12).reshape(3, 2, 2)})["train"].flatten().tolist()
    [0, 23, 46, 70, 93, 116, 139, 162, 185, 209, 232, 255]
    """
    arrays = {split: _array(split, rows) for split, rows in images.items()}
    layout = recognised(arrays["train"].shape, layout)
    whole = {split: rows if rows.dtype == np.uint8 else _rounded(rows, images) for split, rows in arrays.items()}
    changed = [split for split, rows in arrays.items() if rows.dtype != np.uint8]
    if changed:
        say_rounded(", ".join(changed))
    tensors = {
        split: rows if isinstance(rows, Tensor) and is_mapped(rows) else whole[split] for split, rows in images.items()
    }
    levels = {split: as_images(channels_first(rows, layout)) for split, rows in tensors.items()}
    check_levels(levels)
    return levels


def recognised(shape: Sequence[int], layout: str | None = None) -> str:
    """Return the layout of pictures of this shape, if it is not given; raise ValueError if the shape does not show it.

    A line in the log says that the channels were found in the last axis.

    >>> recognised((60, 28, 28)), recognised((60, 3, 32, 32)), recognised((60, 32, 32, 3), "NHWC")
    ('NCHW', 'NCHW', 'NHWC')
    """
    if layout not in LAYOUTS:
        raise ValueError(f'layout: wanted "NCHW", "NHWC" or None, got {layout!r}')
    if layout or len(shape) != 4 or not may_be_channels_last(shape[1:]):
        return layout or "NCHW"
    if shape[1] <= max(CHANNELS) or shape[3] not in CHANNELS:
        raise ValueError(
            f'{layout_question(shape[1:])} Write layout="NCHW" for the first, layout="NHWC" for the second'
        )
    _LOGGER.warning(
        'images: %s are read as %d × %d pixels with %d channels; write layout="NCHW" if they have %d channels',
        tuple(shape),
        *shape[1:],
        shape[1],
    )
    return "NHWC"


def channels_first(rows: Any, layout: str) -> Tensor:
    """Return rows (N, H, W), (N, C, H, W) or (N, H, W, C), in an array or a tensor, as a tensor (N, C, H, W)."""
    tensor = rows if isinstance(rows, Tensor) else torch.from_numpy(np.require(rows, requirements=["C", "W"]))
    if tensor.dim() == 3:
        return tensor.unsqueeze(1)
    return tensor.permute(0, 3, 1, 2) if layout == "NHWC" else tensor


def rounded(values: np.ndarray) -> np.ndarray:
    """Return the nearest grey levels, uint8, of numbers in [0, 1].

    >>> rounded(np.array([0, 0.5, 1])).tolist()
    [0, 128, 255]
    """
    return np.rint(values * np.float32(255)).astype(np.uint8)


def say_rounded(where: str) -> None:
    """Log that images lose precision."""
    _LOGGER.warning(
        "images: floating-point numbers in [0, 1] are stored as the nearest of 256 grey levels, in %s", where
    )


def array_of(tensor: Tensor) -> np.ndarray:
    """Return the numbers of a tensor in the host's memory; those of bfloat16, which NumPy does not have, as float32."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().cpu().numpy()


def _array(split: str, rows: Any) -> np.ndarray:
    """Return pictures as an array that shares their memory; raise ValueError unless they are of a kind that is read."""
    array: Any = rows
    if isinstance(rows, Tensor) and rows.layout == torch.strided:
        array = array_of(rows)
    if not isinstance(array, np.ndarray) or np.ma.is_masked(array):
        as_images(rows)  # raises an error with the cure
    if not (array.dtype == np.uint8 or array.dtype.kind == "f") or array.ndim not in (3, 4) or not array.size:
        by_name = {1: " (labels: labels=...)", 2: " (rows without pixels: counts=... or table=...)"}
        raise ValueError(
            f"images: wanted uint8, or floating-point numbers in [0, 1], of shape (N, H, W), (N, C, H, W) or "
            f"(N, H, W, C), got {kind(rows)} in {split}{by_name.get(array.ndim, '')}; {advice([rows])}"
        )
    return array


def _rounded(rows: np.ndarray, images: Mapping[str, Any]) -> np.ndarray:
    """Return floating-point numbers in [0, 1] as grey levels, in pieces; raise ValueError if one is outside [0, 1]."""
    levels = np.empty(rows.shape, np.uint8)
    step = max(1, AT_ONCE * len(rows) // rows.size)
    for start in range(0, len(rows), step):
        piece = rows[start : start + step]
        if not (piece.min() >= 0 and piece.max() <= 1):  # also if there is NaN
            floats = [other for other in images.values() if other.dtype not in (np.uint8, torch.uint8)]
            raise ValueError(
                f"images: wanted uint8, or floating-point numbers in [0, 1], got {kind(rows)} with numbers from "
                f"{np.fmin.reduce(piece, None):.3g} to {np.fmax.reduce(piece, None):.3g}; {advice(floats)}"
            )
        levels[start : start + step] = rounded(piece)
    return levels
