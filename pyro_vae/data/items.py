"""The items of a torch data set as rows: one array for each field, all of one shape."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from pyro_vae.data.levels import array_of, recognised, rounded, say_rounded
from pyro_vae.data.pictures import PictureReader, imported
from pyro_vae.data.raw import DataError, kind

Row = dict[str, np.ndarray]
SAME = {"image": "images", "label": "labels", "target": "labels", "targets": "labels"}  # other names of fields


class ItemReader:
    """Makes rows of items: an image, or a tuple of the named fields, or a mapping; raises DataError for other ones.

    An image is a picture of Pillow, uint8, or floating-point numbers in [0, 1], of shape (H, W), (C, H, W) or
    (H, W, C). All items are of the shape and dtype of the first one.
    """

    def __init__(self, fields: Sequence[str], layout: str | None = None, background: int = 255):
        self.fields, self.layout, self.background = tuple(fields), layout, background
        self._pictures, self._first = PictureReader(background=background), {}

    def row(self, item: Any, number: int) -> Row:
        """Return the fields of an item; ``number`` is that of the row, for messages."""
        if isinstance(item, Mapping):
            parts: dict[Any, Any] = {SAME.get(name, name): part for name, part in item.items()}
        elif isinstance(item, tuple | list):
            parts = dict(zip(self.fields, item))
            if len(item) > len(self.fields):
                raise DataError(
                    f"row {number}: wanted the fields {', '.join(self.fields)}, got {len(item)} parts; name them, as "
                    f"in from_dataset(..., fields={(*self.fields, 'name')})"
                )
        else:
            parts = {self.fields[0]: item}
        for name in parts:
            if not isinstance(name, str) or not name.isidentifier():
                raise DataError(f"row {number}: wanted names of fields, such as counts, got {name!r}")
        if "labels" in parts and parts["labels"] is None:
            raise DataError(f"row {number}: wanted a label, got None; give −1 where the class is unknown")
        row = {name: self._image(part, number) if name == "images" else _array(part) for name, part in parts.items()}
        found = {name: f"{array.dtype} of shape {array.shape}" for name, array in row.items()}
        self._first = self._first or found
        if found != self._first:
            cure = "give all rows the same fields, each of one dtype and shape"
            if found.get("images") != self._first.get("images"):
                cure = "a transform to one size gives all images one shape"
            raise DataError(
                f"row {number}: wanted {_words(self._first)}, as in the first row, got {_words(found)}; {cure}"
            )
        return row

    def _image(self, part: Any, number: int) -> np.ndarray:
        """Return grey levels (C, H, W)."""
        if "PIL.Image" in sys.modules and isinstance(part, imported().Image):
            levels = self._pictures.levels(part)
            return levels[None] if levels.ndim == 2 else np.moveaxis(levels, -1, 0)
        array = _array(part)
        if array.ndim not in (2, 3) or not (array.dtype == np.uint8 or array.dtype.kind == "f"):
            raise DataError(
                f"row {number}: wanted as image a picture of Pillow, uint8, or floating-point numbers in [0, 1], of "
                f"two or three dimensions, got {kind(array)}; if it is no image, name the fields: from_dataset(..., "
                "fields=('table', 'labels'))"
            )
        if array.dtype != np.uint8:
            if not (array.min() >= 0 and array.max() <= 1):
                raise DataError(
                    f"row {number}: wanted floating-point numbers in [0, 1] as image, got {array.min():.3g} to "
                    f"{array.max():.3g}; leave out the transform that normalises them"
                )
            if not self._first:
                say_rounded("all rows")
            array = rounded(array)
        if array.ndim == 2:
            return array[None]
        if self.layout is None:
            self.layout = recognised((1, *array.shape))
        return np.moveaxis(array, -1, 0) if self.layout == "NHWC" else array


def _array(part: Any) -> np.ndarray:
    if isinstance(part, Tensor):
        return array_of(part)
    array = np.asarray(part)
    return array.astype(array.dtype.newbyteorder("="))


def _words(fields: Mapping[str, str]) -> str:
    return ", ".join(f"{name}: {words}" for name, words in fields.items())
