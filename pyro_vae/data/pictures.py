"""Single pictures, of any format and mode that Pillow reads, as grey levels."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_vae.data.levels import rounded
from pyro_vae.optional import optional

if TYPE_CHECKING:
    from PIL.Image import Image

# EPS would run another program; the others are no pictures, or known to Pillow by their name alone.
UNREAD = {"EPS", "BUFR", "GRIB", "HDF5", "WMF", "MPEG", "IPTC"}


@cache
def suffixes() -> frozenset[str]:
    """Return the suffixes of the formats that are read, in lower case.

    >>> {".png", ".jpg", ".tif", ".webp"} <= suffixes(), ".txt" in suffixes()
    (True, False)
    """
    pillow = imported()
    pillow.init()
    known = pillow.registered_extensions().items()
    return frozenset(suffix for suffix, name in known if name in pillow.OPEN and name not in UNREAD)


def imported() -> Any:
    """Return Pillow's module of images; raise ImportError that says how to install it."""
    return optional("PIL.Image", "pictures")


class PictureReader:
    """Reads pictures one after the other, and remembers what is to be said about them.

    Transparent pixels show the ``background``, a grey level. ``size`` (height, width): scale each picture until it
    covers this size, and cut what is beyond it at opposite sides.

    Attributes:
        transparent: the number of pictures with transparent pixels.
        deepest: the greatest level, 0 to 65,535, of the pictures with 16 bits; None if there were none.
        dark: the number of these that have no level above 255, though they are not black.
    """

    def __init__(self, size: tuple[int, int] | None = None, background: int = 255):
        self.size, self.background = size, background
        self.transparent, self.deepest, self.dark = 0, None, 0

    def read(self, path: Path) -> np.ndarray:
        """Return the picture of a file, see ``levels``; Pillow raises many kinds of errors."""
        with imported().open(path) as picture:
            if picture.format in UNREAD:
                raise ValueError(f"pictures in the format {picture.format} are not read")
            if getattr(picture, "n_frames", 1) > 1:
                raise ValueError(f"wanted one picture, got {picture.n_frames}; save each in a file of its own")
            return self.levels(picture)

    def levels(self, picture: "Image") -> np.ndarray:
        """Return grey levels (H, W), or colours (H, W, 3), of a picture that stands upright.

        Pictures with 16 bits lose the lower 8. Raises ValueError for floating-point numbers outside [0, 1].
        """
        picture = optional("PIL.ImageOps", "pictures").exif_transpose(picture)
        if picture.mode.startswith("I") or picture.mode == "F":
            picture = imported().fromarray(self._in_8_bits(np.asarray(picture)))
        elif "transparency" in picture.info or picture.getbands()[-1].lower() == "a":
            picture = self._opaque(picture.convert("RGBA"))
        elif picture.mode not in ("L", "RGB"):
            picture = picture.convert("L" if picture.mode == "1" else "RGB")
        if self.size is not None and picture.size != self.size[::-1]:
            height, width = self.size
            fit, method = optional("PIL.ImageOps", "pictures").fit, imported().Resampling.LANCZOS
            picture = fit(picture, (width, height), method=method)
        return np.asarray(picture)

    def _opaque(self, picture: "Image") -> "Image":
        self.transparent += bool(np.asarray(picture.getchannel("A")).min() < 255)
        pillow = imported()
        ground = pillow.new("RGBA", picture.size, (*[self.background] * 3, 255))
        return pillow.alpha_composite(ground, picture).convert("RGB")

    def _in_8_bits(self, values: np.ndarray) -> np.ndarray:
        low, high = values.min(), values.max()
        if values.dtype.kind == "f" and low >= 0 and high <= 1:
            return rounded(values)
        if values.dtype.kind == "f" or low < 0 or high > 65535:
            raise ValueError(f"its levels go from {low:g} to {high:g}, wanted 0 to 65,535, or fractions from 0 to 1")
        self.deepest = max(self.deepest or 0, int(high))
        self.dark += 0 < high < 256
        return np.rint(values / 257).astype(np.uint8)


def is_coloured(picture: np.ndarray) -> bool:
    """Return whether a picture (H, W) or (H, W, 3) has pixels that are not grey.

    >>> is_coloured(np.zeros((2, 2, 3))), is_coloured(np.arange(12).reshape(2, 2, 3))
    (False, True)
    """
    return picture.ndim == 3 and bool((picture != picture[..., :1]).any())
