"""Folders of pictures as the fields of three splits: a folder for each split, a folder for each class."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from pyro_vae.checks import whole_number
from pyro_vae.data.arrays import Fields, fields_of_splits
from pyro_vae.data.pictures import PictureReader, is_coloured, suffixes
from pyro_vae.data.raw import DataError, DataWarning
from pyro_vae.errors import warn
from pyro_vae.files import expanded

# The usual names of folders that hold the pictures of a split.
PICTURES_OF = {"train": ("train", "training"), "valid": ("valid", "val", "validation"), "test": ("test", "testing")}
DEEP = 4096  # the least level in 16 bits that the brightest pixel of some picture should have
NAMED = 10  # the most files that a warning names

_LOGGER = logging.getLogger(__name__)


class Found(NamedTuple):
    """The pictures of a split: their paths, and for each the name of its class, or None."""

    paths: list[Path]
    classes: list[str | None]


def fields_of_folder(
    folder: Path | str,
    size: int | tuple[int, int] | None = None,
    *,
    channels: int | None = None,
    background: int = 255,
    valid: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
) -> tuple[dict[str, Fields], tuple[str, ...]]:
    """Return the fields of three splits, and the names of the classes; see ``Data.from_folder``."""
    folder, reader = expanded(folder), _reader(size, background)
    if channels not in (None, 1, 3):
        raise ValueError(f"channels: wanted 1 for grey, 3 for colours, or None, got {channels!r}")
    found = _found(folder)
    classes = _class_names(folder, found)
    paths = [path for part in found.values() for path in part.paths]
    images, broken = _read(folder, paths, reader, channels)
    numbers: dict[str | None, int] = {name: number for number, name in enumerate(classes)}
    given: dict[str, dict[str, Any]] = {"images": {}, "labels": {}}
    start = 0
    for split, part in found.items():
        kept = [name for path, name in zip(part.paths, part.classes) if path not in broken]
        if not kept:
            raise DataError(
                f"{folder}: none of the {len(part.paths):,} pictures for {split} can be read; {_words(broken)}"
            )
        given["images"][split] = images[start : start + len(kept)]
        given["labels"][split] = np.array([numbers.get(name, -1) for name in kept])
        start += len(kept)
    _say(folder, len(paths), broken, reader)
    fields = {name: rows for name, rows in given.items() if name == "images" or classes}
    return fields_of_splits(fields, valid, test, layout="NCHW", seed=seed), classes


def holds_pictures(folder: Path, most: int = 10_000) -> bool:
    """Return whether there are pictures in a folder or below, among its first ``most`` files."""
    files = (path for _, path in zip(range(most), folder.rglob("*")))
    return any(path.suffix.lower() in suffixes() for path in files)


def _reader(size: Any, background: int) -> PictureReader:
    background = whole_number("background", background, least=0, most=255)
    if size is None:
        return PictureReader(None, background)
    sides = size if isinstance(size, tuple) else (size, size)
    if len(sides) != 2:
        raise ValueError(f"size: wanted a number of pixels, or (height, width), got {size!r}")
    height, width = (whole_number("size", side) for side in sides)
    return PictureReader((height, width), background)


def _found(folder: Path) -> dict[str, Found]:
    """Return the pictures of each split that has a folder of its own; all pictures are for training if none has."""
    if not folder.is_dir():
        raise DataError(
            f"{folder}: wanted a folder of pictures, got {'a file' if folder.exists() else 'nothing there'}"
        )
    paths = [path for path in sorted(folder.rglob("*")) if _is_picture(path, folder)]
    if not paths:
        raise DataError(f"{folder} holds no picture; wanted files that end in {', '.join(sorted(suffixes()))}")
    apart = _split_folders(folder)
    is_class = len(apart) == 1 and not all(path.is_relative_to(apart["train"]) for path in paths)
    if not apart or is_class:
        return {"train": _with_classes(folder, paths)}
    found = {
        split: _with_classes(part, [path for path in paths if path.is_relative_to(part)])
        for split, part in apart.items()
    }
    empty = [str(apart[split]) for split, part in found.items() if not part.paths]
    if empty:
        raise DataError(f"{', '.join(empty)}: there is no picture; put some there, or remove the folder")
    others = len(paths) - sum(len(part.paths) for part in found.values())
    if others:
        names = ", ".join(part.name for part in apart.values())
        warn(f"{folder}: {others:,} pictures are in none of the folders {names}, and are left out", DataWarning)
    return found


def _is_picture(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return not hidden and path.suffix.lower() in suffixes() and path.is_file()


def _split_folders(folder: Path) -> dict[str, Path]:
    """Return the folder of train, and those of valid and test that are beside it; none without any of them."""
    inside = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_dir()}
    apart = {}
    for split, names in PICTURES_OF.items():
        there = [inside[name] for name in names if name in inside]
        if len(there) > 1:
            raise DataError(
                f"{folder}: wanted one folder for {split}, got {' and '.join(p.name for p in there)}; join them"
            )
        if there:
            apart[split] = there[0]
    if apart and "train" not in apart:
        names = " and ".join(path.name for path in apart.values())
        raise DataError(
            f"{folder}: wanted a folder train beside {names}, got none; move the pictures for training there, or give "
            f"{names} another name if it is a class"
        )
    return apart


def _with_classes(folder: Path, paths: Sequence[Path]) -> Found:
    parts = [path.relative_to(folder).parts for path in paths]
    return Found(list(paths), [part[0] if len(part) > 1 else None for part in parts])


def _class_names(folder: Path, found: Mapping[str, Found]) -> tuple[str, ...]:
    """Return the names of the folders of the training pictures, sorted; none if there are fewer than two."""
    names = {split: {name for name in part.classes if name is not None} for split, part in found.items()}
    classes = tuple(sorted(names["train"]))
    new = sorted(set().union(*names.values()) - set(classes))
    if new and len(classes) > 1:
        raise DataError(
            f"{folder}: wanted the classes of train, {', '.join(classes)}, got also {', '.join(new)}; add "
            "pictures of these to train, or move their folders away"
        )
    if len(classes) < 2:
        return ()
    unknown = sum(name is None for part in found.values() for name in part.classes)
    if unknown:
        _LOGGER.warning("%s: %d pictures are in the folder of no class; their label is -1, unknown", folder, unknown)
    return classes


def _read(
    folder: Path, paths: Sequence[Path], reader: PictureReader, channels: int | None
) -> tuple[np.ndarray, dict[Path, str]]:
    """Return the pictures that can be read, uint8 (N, C, H, W), and the reasons why others cannot."""
    images, first, broken = np.empty((0, 1, 0, 0), np.uint8), None, {}
    for number, path in enumerate(tqdm(paths, desc=f"reading {folder.name}", unit="picture", disable=None)):
        picture = _picture(path, reader)
        if isinstance(picture, str):
            broken[path] = picture
            continue
        if first is None:
            first, images = path, np.empty((len(paths), channels or 1, *picture.shape[:2]), np.uint8)
        if picture.shape[:2] != images.shape[2:]:
            raise DataError(
                f"{folder}: wanted pictures of one size, got {_size(images[0, 0])} in {first.relative_to(folder)} and "
                f"{_size(picture)} in {path.relative_to(folder)}; set one: Data.from_folder({str(folder)!r}, size=64), "
                "or --size 64 on the command line"
            )
        if channels is None and images.shape[1] == 1 and is_coloured(picture):
            images = images.repeat(3, 1)
        images[number - len(broken)] = _with_channels(picture, images.shape[1])
    return images[: len(paths) - len(broken)], broken


def _picture(path: Path, reader: PictureReader) -> np.ndarray | str:
    """Return a picture, or the reason why it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of odd metadata and large pictures
            return reader.read(path)
    except MemoryError:
        raise
    except Exception as error:
        return " ".join(str(error).split())[:100] or type(error).__name__


def _with_channels(picture: np.ndarray, channels: int) -> np.ndarray:
    """Return a picture (H, W) or (H, W, 3) as (C, H, W), or such that it can be broadcast to it."""
    if picture.ndim == 2:
        return picture
    if channels == 3:
        return np.moveaxis(picture, -1, 0)
    luma = picture @ np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow has it
    return np.rint(luma).astype(np.uint8)


def _size(picture: np.ndarray) -> str:
    return f"{picture.shape[0]} × {picture.shape[1]}"


def _words(broken: Mapping[Path, str]) -> str:
    named = ", ".join(f"{path.name} ({reason})" for path, reason in list(broken.items())[:NAMED])
    return named + (f" and {len(broken) - NAMED:,} more" if len(broken) > NAMED else "")


def _say(folder: Path, count: int, broken: Mapping[Path, str], reader: PictureReader) -> None:
    """Warn of what was left out or may be another scale, and log what transparent pixels show."""
    if broken:
        warn(
            f"{folder}: {len(broken):,} of {count:,} pictures cannot be read and are left out: {_words(broken)}",
            DataWarning,
        )
    if reader.transparent:
        _LOGGER.warning(
            "%s: %d pictures are transparent; grey level %d of 255 shows through (background=...)",
            folder,
            reader.transparent,
            reader.background,
        )
    if reader.deepest is not None and reader.deepest < DEEP:
        warn(
            f"{folder}: no level of the pictures with 16 bits is above {reader.deepest:,} of 65,535; if this "
            "is white, scale the arrays yourself, and give them to Data.from_arrays",
            DataWarning,
        )
    elif reader.dark:
        warn(
            f"{folder}: {reader.dark:,} pictures of 16 or more bits have no level above 255 of 65,535, and others do; "
            "if 255 is their white, save them with 8 bits",
            DataWarning,
        )
