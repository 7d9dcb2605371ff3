"""Folders of .npy files: the checked images and labels of three splits, or a message that says what to write."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.mapped import map_array
from pyro_vae.data.raw import (
    DataError,
    advice,
    as_images,
    as_labels,
    check_levels,
    kind,
    layout_question,
    may_be_channels_last,
)
from pyro_vae.data.reading import SUFFIXES
from pyro_vae.data.shares import SPLITS

WANTED = "wanted train.npy, valid.npy and test.npy, uint8 of shape (N, C, H, W)"
READERS = {
    ".pt": "torch.load({!r}, weights_only=True)",
    ".pkl": 'pickle.loads(Path({!r}).read_bytes(), encoding="latin1")',
    ".pickle": 'pickle.loads(Path({!r}).read_bytes(), encoding="latin1")',
}
MAGIC, OBJECTS = b"\x93NUMPY", "Python objects"  # the first bytes of a file; words of np.load about a file of objects


def read_folder(folder: Path, layout: str | None = None) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Read the images, uint8 (N, C, H, W), and the labels, int64 (N,) or None, of train, valid and test.

    Images in C order are mapped from disk, those in Fortran order are read. ``layout`` gives the order of the axes if
    the shape does not show it. Raises DataError for anything missing or wrong.
    """
    paths = {split: folder / f"{split}.npy" for split in SPLITS}
    for path in paths.values():
        if not path.is_file():
            raise DataError(f"{path} is missing; {WANTED}; {_instead(path)}")
    arrays = {split: _opened(path) for split, path in paths.items()}
    _check_kinds(arrays, paths)
    _check_layout(arrays, paths, layout)
    images = {split: _images(paths[split], array, layout) for split, array in arrays.items()}
    check_levels(images, paths)
    return {split: (part, _labels(folder, split, len(part))) for split, part in images.items()}


def how_to_read(path: Path) -> str:
    """Return advice for a file that was given in place of a folder of .npy files, or is in such a folder."""
    if path.suffix == ".npy":
        return f"give the folder that it is in, {str(path.parent)!r}"
    if path.suffix.lower() in SUFFIXES:
        return f"write load({str(path)!r})"
    if path.suffix.lower() == ".csv":
        return f"write Data.from_frame(pandas.read_csv({str(path)!r}))"
    reader = READERS.get(path.suffix.lower(), "a library for such files")
    trust = "if you trust it, " if "pickle" in reader else ""
    return (
        f"{trust}read it with {reader.format(str(path))} and write its images into a folder, np.save('train.npy', "
        "images), and valid.npy and test.npy likewise"
    )


def _opened(path: Path) -> np.ndarray:
    """Map the array of the file from disk."""
    try:
        with path.open("rb") as file:
            begin = file.read(len(MAGIC))
        if begin != MAGIC:
            raise ValueError(f"it is no .npy file, but begins with {begin!r}")
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:
        raise DataError(f"{path} cannot be read ({error}); {_rewritten(path, error)}") from error


def _rewritten(path: Path, error: Exception) -> str:
    if OBJECTS not in str(error):
        return "write it again with numpy.save"
    ending = "_labels.npy" if path.stem.endswith("_labels") else ".npy"
    files = [path.with_name(split + ending) for split in SPLITS]
    rows = "[np.array(np.array(row).tolist()) for row in np.load(path, allow_pickle=True)]"
    return (
        "if all rows are numbers, or all are texts, and if you trust the file, as reading objects may run code, "
        f"write for path in {[str(file) for file in files if _holds_objects(file)]}: np.save(path, "
        f"np.stack({rows}), allow_pickle=False)"
    )


def _holds_objects(path: Path) -> bool:
    try:
        np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # also for a file that is missing or damaged
        return OBJECTS in str(error)
    return False


def _check_kinds(arrays: Mapping[str, np.ndarray], paths: Mapping[str, Path]) -> None:
    wrong = [
        split
        for split, array in arrays.items()
        if array.dtype != np.uint8 or array.ndim not in (3, 4) or not array.size
    ]
    if wrong:
        array = arrays[wrong[0]]
        wanted = "an array of uint8 in C order" if array.dtype != np.uint8 else "a uint8 tensor (N, C, H, W)"
        cure = advice([arrays[split] for split in wrong], [paths[split] for split in wrong])
        raise DataError(f"{paths[wrong[0]]} cannot be read (wanted {wanted}, got {kind(array)}); {cure}")


def _check_layout(arrays: Mapping[str, np.ndarray], paths: Mapping[str, Path], layout: str | None) -> None:
    """Raise DataError unless the layout is known and all images have one shape."""
    first = arrays["train"].shape
    if layout is None and len(first) == 4 and may_be_channels_last(first[1:]):
        raise DataError(
            f'{paths["train"]}: {layout_question(first[1:])} Set it by load(..., layout="NCHW") or "NHWC", or by '
            f"pyro-vae train --layout; or, if the channels are last, write {_last_axis_moved(paths.values(), 1)}"
        )
    wanted = _channels_first(first[1:], layout)
    for split, array in arrays.items():
        got = _channels_first(array.shape[1:], layout)
        if got != wanted:
            hint = ""
            if array.shape[:-1] == first[:-1]:
                hint = f"; if all images lie along the last axis, write {_last_axis_moved(paths.values(), 0)}"
            elif array.ndim == 4 and _channels_first(got, "NHWC") == wanted:
                hint = f"; if its channels are last, write {_last_axis_moved([paths[split]], 1)}"
            raise DataError(f"{paths[split]}: wanted images of {wanted}, as in train.npy, got {got}{hint}")


def _last_axis_moved(paths: Iterable[Path], place: int) -> str:
    """Return the code that moves the last axis of the arrays in the files to another place."""
    return f"for path in {[str(path) for path in paths]}: np.save(path, np.moveaxis(np.load(path), -1, {place}))"


def _channels_first(shape: tuple[int, ...], layout: str | None) -> tuple[int, ...]:
    """Return the shape (C, H, W) of an image."""
    if len(shape) == 2:
        return (1, *shape)
    return (shape[2], *shape[:2]) if layout == "NHWC" else shape


def _images(path: Path, array: np.ndarray, layout: str | None) -> Tensor:
    try:
        images = map_array(path) if array.flags.c_contiguous else torch.from_numpy(np.array(array, order="C"))
    except (OSError, ValueError, MemoryError) as error:
        raise DataError(f"{path} cannot be read ({error!r}); write it again with numpy.save") from error
    if images.dim() == 3:
        return images.unsqueeze(1)
    return as_images(images.permute(0, 3, 1, 2) if layout == "NHWC" else images)


def _labels(folder: Path, split: str, count: int) -> Tensor | None:
    """Read the labels of a split; None if there are none."""
    files = [folder / f"{name}_labels.npy" for name in SPLITS]
    path = folder / f"{split}_labels.npy"
    if not path.is_file():
        return None
    array = _opened(path)
    try:
        return as_labels(array, count, [path, *(file for file in files if file.is_file() and file != path)])
    except ValueError as error:
        raise DataError(f"{path} cannot be read as {error}") from error


def _instead(path: Path) -> str:
    """Say what the folder holds in place of the missing file, and how to make the file from it."""
    folder = path.parent
    names = sorted(f"{file.name}/" if file.is_dir() else file.name for file in folder.iterdir())
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{folder} holds {', '.join(names[:5]) or 'nothing'}{more}; {_made_of(path)}"


def _made_of(path: Path) -> str:
    folder, train = path.parent, path.parent / "train.npy"
    if path != train and train.is_file() and len(np.atleast_1d(_opened(train))) > 1:
        return f"to take a tenth of the training images, write {_held_out(train, path)}"
    known = {*READERS, *SUFFIXES, ".csv"} - {".npy"}
    readable = next((file for file in sorted(folder.iterdir()) if file.suffix.lower() in known), None)
    return how_to_read(readable) if readable else "write it by numpy.save"


def _held_out(train: Path, held_out: Path) -> str:
    """Return the code that moves a random tenth of the training images, and of their labels, to another split."""
    code = [f"order = np.random.RandomState(0).permutation(len(np.load({str(train)!r})))", "n = len(order) // 10 or 1"]
    for old, new in ((train, held_out), (_labels_of(train), _labels_of(held_out))):
        if old.is_file():
            code += [
                f"array = np.load({str(old)!r})",
                f"np.save({str(new)!r}, array[order[:n]])",
                f"np.save({str(old)!r}, array[order[n:]])",
            ]
    return "; ".join(code)


def _labels_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}_labels.npy")
