"""Checks of raw images and labels before they are used: type, layout and range. Messages say what to write instead.

The code in a message refers to ``images`` or ``labels`` in memory, or to the files at ``paths``.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.mapped import image_bytes, is_mapped, parts
from pyro_vae.errors import DataError as DataError
from pyro_vae.errors import warn

DARK = 127  # images without a brighter pixel may be on another scale than 0 to 255
PLACES, IN_A_ROW = 64, 32  # of a large split, 32 images at each of 64 places are checked
LOOKED_AT_BYTES = 1 << 30  # the most that is checked of a split with large images
ABOUT_1 = 1.01  # rounding may give a little more than 1

Array = Tensor | np.ndarray


class DataWarning(UserWarning):
    """Images whose grey levels or layout may not be what they seem."""


def as_images(images: Array) -> Tensor:
    """Return images as uint8 (N, C, H, W), contiguous or mapped from disk; raise ValueError if they are anything else.

    >>> as_images(torch.rand(3, 1, 28, 28))
    Traceback (most recent call last):
        ...
    ValueError: images: wanted a uint8 tensor (N, C, H, W), got torch.float32 of shape (3, 1, 28, 28); if 0 is black and
    1 white, write (images.float() * (255 / 1)).round().to(torch.uint8)
    """
    check_whole("images", images)
    if isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 4:
        images = torch.from_numpy(np.require(images, requirements=["C", "W"]))
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.dim() != 4:
        raise ValueError(f"images: wanted a uint8 tensor (N, C, H, W), got {kind(images)}; {advice([images])}")
    return images if is_mapped(images) else images.contiguous()


def as_labels(labels: Array | Sequence[int], count: int, paths: Sequence[Path] = ()) -> Tensor:
    """Return N whole numbers of any dtype as int64 (N,); raise ValueError for fractions and other values.

    −1 stands for a label that is not known.

    >>> as_labels(np.array([2.0, 0.9]), 2)
    Traceback (most recent call last):
        ...
    ValueError: labels: wanted whole numbers from 0, or −1 where unknown, got 0.9; if each value is a class, write
    np.searchsorted(classes, np.asarray(labels)), classes being np.unique of the labels of all splits
    """
    check_whole("labels", labels)
    if isinstance(labels, Tensor):
        array = (labels.double() if labels.is_floating_point() else labels).detach().cpu().numpy()
    else:
        array = _array_of(labels)
    if array.shape != (count,):
        got = list(array.shape) if array.ndim else kind(labels)
        raise ValueError(f"labels: wanted {count}, one a row, got {got}; {_one_each(array, paths)}")
    wrong = _no_class(array)
    if wrong.any():
        got, gaps = repr(array[wrong].tolist()[0]), array.dtype.kind == "f" and bool(np.isnan(array).any())
        cure = _numbered(paths, gaps)
        raise ValueError(f"labels: wanted whole numbers from 0, or −1 where unknown, got {got}; {cure}")
    if set(np.unique(array).tolist()) == {-1, 1}:
        raise ValueError(
            "labels: wanted classes numbered from 0, and −1 where unknown, got −1 and 1 alone; if these are two "
            "classes, write (labels + 1) // 2"
        )
    return labels.long() if isinstance(labels, Tensor) else torch.tensor(array.astype(np.int64))


def check_levels(splits: Mapping[str, Tensor], paths: Mapping[str, Path] | None = None) -> None:
    """Raise an error for images of only 0 and 1, and warn of dark ones: their white may be another number than 255.

    Images are uint8 (N, C, H, W). Of a split of more than 2,048 images only some are checked, at 64 places. All dark
    splits have one white, the brightest level in any of them. If each of them has a single grey level, nothing is known
    about its white. Raises ValueError, or DataError if ``paths`` is given; warns with DataWarning.

    >>> check_levels({"train": torch.eye(8, dtype=torch.uint8)[None, None]})
    Traceback (most recent call last):
        ...
    ValueError: pixels: wanted grey levels from 0, black, to 255, white, got only 0 and 1 in train; write
    255 * images
    """
    levels = {name: _levels(images) for name, images in splits.items()}
    dark = {name: found for name, found in levels.items() if 0 < found[1] <= DARK}
    if not any(low < high for low, high, _ in dark.values()):
        return
    files = [paths[name] for name in dark] if paths else []
    where = ", ".join(_looked_at(name, seen, len(splits[name])) for name, (_, _, seen) in dark.items())
    white = max(high for _, high, _ in dark.values())
    if white == 1:
        raise (DataError if paths else ValueError)(
            f"pixels: wanted grey levels from 0, black, to 255, white, got only 0 and 1 in {where}; write "
            + _written("255 * {}".format, files)
        )
    warn(
        f"pixels: no grey level above {white} of 255 was found in {where}; ignore this if the images are so dark; "
        f"if {white} is white, write {_written(_scaled(0, white, not paths), files)}",
        DataWarning,
    )


def _looked_at(name: str, seen: int, count: int) -> str:
    return name if seen == count else f"{name} ({seen:,} of {count:,} images were looked at)"


def may_be_channels_last(shape: Sequence[int]) -> bool:
    """Return whether (C, H, W) could be the (H, W, C) of images whose channels come last.

    >>> [may_be_channels_last(shape) for shape in ((28, 28, 1), (32, 32, 4), (32, 32, 16), (3, 32, 4), (8, 3, 3))]
    [True, True, True, False, False]
    """
    first, second, last = shape
    return first not in (1, 3) and second != last and (last <= 4 or first == second)


def layout_question(shape: Sequence[int]) -> str:
    """Return the question about the layout of such images, as the beginning of a sentence."""
    first, second, last = shape
    return (
        f"images of shape {tuple(shape)}: are they {first} channels of {second} × {last} pixels, or {last} of "
        f"{first} × {second}, as (N, H, W, C) has them?"
    )


def kind(rows: object) -> str:
    """Describe the type and shape of a value in words."""
    array = isinstance(rows, Array)
    return f"{rows.dtype} of shape {tuple(rows.shape)}" if array else f"a {type(rows).__name__}"


def check_whole(name: str, rows: object) -> None:
    """Raise ValueError for a masked array or a sparse tensor, which hold only some of their values."""
    if np.ma.is_masked(rows):
        these, fill = {"table": ("are missing", "np.nan"), "labels": ("are unknown", "-1")}.get(
            name, ("should be 0", "0")
        )
        cure = f"{name}.filled({fill})"
        if not isinstance(rows, np.ma.MaskedArray):  # of pandas
            cure = f"{name}.to_numpy({'float' if name == 'table' else 'int'}, na_value={fill})"
        got = f"a masked array without {np.ma.count_masked(rows)} of them"
        raise ValueError(f"{name}: wanted all values, got {got}; if these {these}, write {cure}")
    if isinstance(rows, Tensor) and rows.layout != torch.strided:
        raise ValueError(f"{name}: wanted a dense tensor, got {rows.layout}; write {name}.to_dense()")


def advice(images: Sequence[Array], paths: Sequence[Path] = ()) -> str:
    """Return the code that makes uint8 (N, C, H, W) of arrays or tensors like the first one, on one scale."""
    first = images[0]
    if not isinstance(first, Array):
        return "write np.array(images)"
    if first.ndim not in (2, 3, 4) or not math.prod(first.shape) or not _is_real(first):
        start = "write it again with numpy.save" if paths else "make it again"
        return f"{start}, as numbers of this shape, one image at least"
    alike = [n for n, other in enumerate(images) if (other.dtype, other.ndim) == (first.dtype, first.ndim)]
    tensor = isinstance(first, Tensor)
    shaped, conditions = _shaped(first.shape)
    scaled = str
    if first.dtype not in (np.uint8, torch.uint8):
        ranges = {n: _range(images[n]) for n in alike}
        if not all(math.isfinite(value) for found in ranges.values() for value in found):
            fill = f"{'torch' if tensor else 'np'}.nan_to_num({{}}, nan=0, posinf=0, neginf=0)"
            return f"some pixels are not finite; if they should be 0, write {_written(fill.format, _of(paths, alike))}"
        alike = [n for n in alike if _from_0_to_1(*ranges[n]) == _from_0_to_1(*ranges[0])]
        black, white = _scale(min(ranges[n][0] for n in alike), max(ranges[n][1] for n in alike))
        scaled = _scaled(black, white, tensor)
        conditions.append(f"{_number(black)} is black and {_number(white)} white")
    condition = f"if {', and '.join(conditions)}, " if conditions else ""
    return f"{condition}write {_written(lambda name: scaled(shaped(name)), _of(paths, alike))}"


def _of(paths: Sequence[Path], numbers: Sequence[int]) -> list[Path]:
    """Return the paths with these numbers; no paths if there are none."""
    return [paths[n] for n in numbers] if paths else []


def _shaped(shape: Sequence[int]) -> tuple[Callable[[str], str], list[str]]:
    """Return the code that makes (N, C, H, W) of images of this shape, and the conditions under which it is right."""
    if len(shape) == 4:
        return str, []
    if len(shape) == 3:
        return "{}[:, None]".format, []
    side = math.isqrt(shape[1])
    if side**2 == shape[1]:
        return f"{{}}.reshape(-1, 1, {side}, {side})".format, [f"the images have {side} × {side} pixels"]
    return "{}.reshape(-1, C, H, W)".format, [f"C × H × W = {shape[1]}"]


def _scale(low: float, high: float) -> tuple[float, float]:
    """Return the numbers that are black and white, as far as the least and the greatest value show."""
    if max(-low, high) <= ABOUT_1:
        white = max(1.0, -low, high)
        return (-white if low < 0 else 0.0), white
    if low < 0:
        return low, high
    return 0.0, high if high <= DARK else float(max(255, 2 ** round(high).bit_length() - 1))


def _from_0_to_1(low: float, high: float) -> bool:
    return low >= 0 and high <= ABOUT_1


def _scaled(black: float, white: float, tensor: bool) -> Callable[[str], str]:
    """Return the code that makes uint8 grey levels of a tensor or an array with another black and white."""

    def code(name: str) -> str:
        value = f"{name}.float()" if tensor else name
        value = f"({value} + {-black!r})" if black else value
        value = value if white - black == 255 else f"{value} * (255 / {_number(white - black)})"
        return f"({value}).round().to(torch.uint8)" if tensor else f"np.rint({value}).astype(np.uint8)"

    return code


def _written(code: Callable[[str], str], paths: Sequence[Path], name: str = "images") -> str:
    """Return the code for images in memory or, if there are paths, for the files."""
    if not paths:
        return code(name)
    return f"for path in {_words(paths)}: np.save(path, {code('np.load(path)')})"


def _words(paths: Sequence[Path]) -> list[str]:
    return [str(path) for path in paths]


def _number(value: float) -> str:
    """Return the shortest decimal that equals the number."""
    return f"{value:.0f}" if abs(value) < 1e16 and value == round(value) else repr(float(value))


def _levels(images: Tensor) -> tuple[int, int, int]:
    """Return the least and greatest grey level of the images checked, until one is not dark, and their number."""
    low, high, seen, n = 255, 0, 0, len(images)
    run = max(1, min(IN_A_ROW, LOOKED_AT_BYTES // (PLACES * image_bytes(images))))
    places = range(0, n, run) if n <= PLACES * run else [place * n // PLACES for place in range(PLACES)]
    for start in places:
        for part in parts(images, torch.arange(start, min(start + run, n))):
            low, high, seen = min(low, int(part.min())), max(high, int(part.max())), seen + len(part)
        if high > DARK:
            break
    return low, high, seen


def _range(images: Array) -> tuple[float, float]:
    """Return the least and the greatest value, or NaN if there is one."""
    array = images.detach().double() if isinstance(images, Tensor) else images
    return float(array.min()), float(array.max())


def _is_real(images: Array) -> bool:
    return not images.is_complex() if isinstance(images, Tensor) else images.dtype.kind in "biuf"


def _array_of(labels: object) -> np.ndarray:
    try:
        return np.asarray(labels)
    except ValueError as error:  # rows of different lengths
        raise ValueError(
            f"labels: wanted whole numbers, one a row, got {kind(labels)} of rows of different "
            "lengths; give one number for each row"
        ) from error


def _no_class(labels: np.ndarray) -> np.ndarray:
    """Return a mask of the labels that are not whole numbers from −1."""
    if labels.dtype.kind not in "biuf":
        return np.ones(labels.shape, bool)
    with np.errstate(invalid="ignore"):  # NaN and numbers that are too large
        whole = labels.astype(np.int64)
    return (whole != labels) | (whole < -1)


def _one_each(labels: np.ndarray, paths: Sequence[Path]) -> str:
    numbers = labels.dtype.kind in "biuf"
    one_hot = numbers and labels.ndim == 2 and np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all()
    if one_hot and labels.shape[1] > 1:
        return f"if they are one-hot, write {_written('np.asarray({}).argmax(1)'.format, paths[:1], 'labels')}"
    if labels.ndim == 2 and 1 in labels.shape:
        return f"write {_written('{}.reshape(-1)'.format, paths[:1], 'labels')}"
    return "give as many labels as rows" + ("" if labels.ndim else ", in a list, an array or a tensor")


def _numbered(paths: Sequence[Path], gaps: bool) -> str:
    """Return the code that numbers the classes in order, in the same way in all files, and NaN (``gaps``) as −1."""
    start, files = "if each value is a class, write", _words(paths)
    labels = "np.load(path)" if files else "np.asarray(labels)"
    numbers = f"np.searchsorted(classes, {labels})"
    numbers = f"np.where(np.isnan({labels}), -1, {numbers})" if gaps else numbers
    if not files:
        return f"{start} {numbers}, classes being np.unique of the labels of all splits"
    return (
        f"{start} classes = np.unique(np.concatenate([np.load(path) for path in {files}])); "
        f"[np.save(path, {numbers}) for path in {files}]"
    )
