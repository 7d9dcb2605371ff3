"""Files of arrays whose names say what they hold, as the rows of fields."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pyro_vae.data.arrays import Fields, fields_of_splits
from pyro_vae.data.raw import DataError
from pyro_vae.data.reading import is_readable, read_arrays

SPLIT_WORDS = {
    "train": ("train", "training", "tr"),
    "valid": ("valid", "val", "validation", "dev"),
    "test": ("test", "testing", "te", "t10k"),
}
FIELD_WORDS = {
    "images": ("x", "image", "images", "img", "imgs", "data"),
    "labels": ("y", "label", "labels", "target", "targets"),
    "counts": ("counts",),
    "table": ("table",),
    "mask": ("mask",),
}
IDLE = re.compile(r"idx\d|ubyte")  # parts of the names of idx files
_SPLITS = {word: split for split, words in SPLIT_WORDS.items() for word in words}
_FIELDS = {word: field for field, words in FIELD_WORDS.items() for word in words}
KNOWN = "images (x), labels (y), counts, table and mask, with train, valid or test, such as x_train or test_labels"


def array_files(folder: Path) -> list[Path]:
    """Return the files of a folder that can be read and whose names say what they hold."""
    files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and is_readable(path)]
    return [path for path in files if _meaning(_stem(path)) is not None]


def fields_of_files(
    paths: Iterable[Path], valid: float = 0.1, test: float = 0.1, *, layout: str | None = None, seed: int = 0
) -> dict[str, Fields]:
    """Return the fields of three splits from files of arrays, see ``fields_of_splits``.

    The name of an array, or of a file with one array, says its field and its split: ``x_train``, ``test_labels``,
    ``images``. Arrays of no split are divided by ``valid`` and ``test``. Raises DataError for a name that says neither,
    and for two arrays with one meaning.
    """
    given: dict[str, dict[str, Any]] = {}
    paths = list(paths)
    where = str(paths[0]) if len(paths) == 1 else str(paths[0].parent)
    for path in paths:
        for (field, split), (name, rows) in _meanings(path).items():
            rows_of = given.setdefault(field, {})
            if split in rows_of:
                raise DataError(
                    f"{path}: wanted one array for the {field} of {split}, got another one, {name}; remove one"
                )
            rows_of[split] = rows.reshape(-1) if field == "labels" and rows.ndim == 2 and 1 in rows.shape else rows
    _check_training(where, given)
    try:
        return fields_of_splits(given, valid, test, layout=layout, seed=seed)
    except ValueError as error:
        file = next((str(path) for path in paths if path.suffix), str(paths[0]))
        raise DataError(
            f"{where}: the arrays make no data set; make one by Data.from_arrays(images), of images such as "
            f"read_arrays({file!r})[name] ({error})"
        ) from error


def _meanings(path: Path) -> dict[tuple[str, str], tuple[str, np.ndarray]]:
    """Return the arrays of a file by their fields and splits."""
    arrays = read_arrays(path)
    found: dict[tuple[str, str], tuple[str, np.ndarray]] = {}
    of_file = _meaning(_stem(path)) or ("images", None)
    alone = len(arrays) == 1
    for name, rows in arrays.items():
        meaning = of_file if alone and _meaning(name) is None else _meaning(name)
        if meaning is None:
            raise DataError(f"{path}: it is not known what the array {name!r} is; wanted names of {KNOWN}")
        field, split = meaning
        if path.suffix.lower() == ".mat" and field == "images":
            _check_first_axis(path, name, rows.shape)
        key = field, split or of_file[1] or "train"
        if key in found:
            raise DataError(f"{path}: {found[key][0]} and {name} are both {field} of {key[1]}; remove one")
        found[key] = name, rows
    return found


def _check_first_axis(path: Path, name: str, shape: tuple[int, ...]) -> None:
    """Raise DataError for images that may lie along the last axis, as MATLAB's do, such as (28, 28, 300)."""
    if len(shape) in (3, 4) and shape[0] == shape[1] and shape[-1] > 4:
        rows = f"read_arrays({str(path)!r})[{name!r}]"
        raise DataError(
            f"{path}: {name} of shape {shape} may be {shape[-1]} images of {shape[0]} × {shape[1]} pixels, or "
            f"{shape[0]} of others; for the first write Data.from_arrays(np.moveaxis({rows}, -1, 0)), else "
            f"Data.from_arrays({rows})"
        )


def _meaning(name: str) -> tuple[str, str | None] | None:
    """Return the field and the split that a name says; None if it says something else.

    >>> [_meaning(name) for name in ("x_train", "val_labels", "test", "faces", "t10k-images-idx3-ubyte")]
    [('images', 'train'), ('labels', 'valid'), ('images', 'test'), None, ('images', 'test')]
    """
    words = [word for word in re.split(r"[_\-. ]", name.lower()) if word and not IDLE.fullmatch(word)]
    splits = [_SPLITS[word] for word in words if word in _SPLITS]
    fields = [word for word in words if word not in _SPLITS]
    if len(splits) > 1 or len(fields) > 1 or not words or any(word not in _FIELDS for word in fields):
        return None
    return (_FIELDS[fields[0]] if fields else "images"), (splits[0] if splits else None)


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").rsplit(".", 1)[0] if path.suffix else path.name


def _check_training(where: str, given: Mapping[str, Mapping[str, Any]]) -> None:
    without = [field for field, rows in given.items() if "train" not in rows]
    if not given or without:
        raise DataError(
            f"{where}: wanted arrays for training, got none of {', '.join(without) or 'any kind'}; wanted {KNOWN}"
        )
