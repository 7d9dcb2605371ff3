"""Rows that were read before, in files of the cache folder: written whole or not at all."""

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from pyro_vae.data.arrays import Fields
from pyro_vae.data.columns import opened
from pyro_vae.data.raw import DataError
from pyro_vae.data.shares import SPLITS

RECORD = "fields.json"  # written last, into the folder of a data set
ABANDONED = 86_400.0  # seconds after which a folder that is still being written counts as left behind


@contextmanager
def writing(cache: Path, needed: int) -> Iterator[Path]:
    """Context manager with an empty folder on the disk of the cache, which is removed with what is left in it.

    Raises DataError if the cache cannot be written or has less than ``needed`` bytes free.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache).free
        folder = TemporaryDirectory(prefix=".writing-", dir=cache, ignore_cleanup_errors=True)
    except OSError as error:
        raise DataError(
            f"{cache} cannot be written ({error.strerror}); set another cache folder by XDG_CACHE_HOME, or keep the "
            "rows in memory by memory=..."
        ) from error
    with folder as path:
        if free < needed:
            raise DataError(
                f"{cache}: wanted {needed / 1e9:.1f} GB for the rows, {free / 1e9:.1f} GB are free; free some, or set "
                "another cache folder by XDG_CACHE_HOME"
            )
        _remove_abandoned(cache)
        yield Path(path)


def keep(written: Path, kept: Path | None, columns: Mapping[str, Mapping[str, object]]) -> dict[str, Fields]:
    """Move a folder of columns to its place, if it has one, and return the fields of each split.

    What another process put there meanwhile stays. Without a place the files go with their folder, but what is mapped
    from them can be read as long as it is in use (on Windows the files stay).
    """
    (written / RECORD).write_text(json.dumps({split: list(fields) for split, fields in columns.items()}))
    if kept is not None:
        with suppress(OSError):  # a folder that is not empty
            os.rename(written, kept)
    return kept_fields(kept if kept is not None and is_kept(kept) else written)


def kept_fields(folder: Path) -> dict[str, Fields]:
    """Return the fields of each split from a folder of columns; the images stay on disk."""
    columns = json.loads((folder / RECORD).read_text())
    return {
        split: {field: opened(column_path(folder, split, field)) for field in columns[split]}
        for split in SPLITS
        if split in columns
    }


def is_kept(folder: Path) -> bool:
    """Return whether a folder holds all columns of a data set."""
    return (folder / RECORD).is_file()


def column_path(folder: Path, split: str, field: str) -> Path:
    """Return the path of a column."""
    return folder / f"{split}.{field}.npy"


def _remove_abandoned(cache: Path) -> None:
    """Remove what processes left that were killed while they wrote."""
    for folder in cache.glob(".writing-*"):
        with suppress(OSError):
            newest = max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
            if time.time() - newest > ABANDONED:
                shutil.rmtree(folder)
