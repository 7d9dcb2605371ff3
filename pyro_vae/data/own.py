"""A user's own files: a folder of pictures, a folder of arrays, a file of arrays."""

from collections.abc import Collection
from pathlib import Path

from pyro_vae.data.array_files import array_files, fields_of_files
from pyro_vae.data.folders import how_to_read, read_folder
from pyro_vae.data.known import KnownSet, find
from pyro_vae.data.picture_folders import holds_pictures
from pyro_vae.data.raw import DataError
from pyro_vae.data.reading import is_readable
from pyro_vae.data.splits import Data, Split


def load_own(
    path: Path,
    sets: Collection[KnownSet],
    valid_size: int | None = None,
    *,
    seed: int = 0,
    layout: str | None = None,
    size: int | tuple[int, int] | None = None,
) -> Data:
    """Load a folder of pictures or arrays, or a file of arrays; ``sets`` are those that are known by name.

    The images of a folder with train.npy stay on disk. Raises ValueError for what is neither, and DataError for a
    folder of files that are a known set's or cannot be read.
    """
    files = array_files(path) if path.is_dir() else [path] * (path.is_file() and is_readable(path))
    if not path.is_dir() and (not files or path.suffix == ".npy"):
        cure = how_to_read(path) if path.is_file() else "nothing is there"
        names = ", ".join(known.word for known in sets)
        raise ValueError(
            f"name: wanted one of {names}, auto, or a folder or file of your own, got {str(path)!r}; {cure}"
        )
    if size is not None and (files or not holds_pictures(path)):
        raise ValueError(f"size: wanted none, as {path} holds arrays and no pictures, got {size!r}")
    if (path / "train.npy").exists():
        return _arrays_on_disk(path, valid_size, layout)
    for known in sets if path.is_dir() else ():
        if known.files and _is_whole(known, path):
            raise DataError(
                f"{path} holds no train.npy but files of {known.word}; write load({known.word!r}, {str(path)!r})"
            )
    valid = 0.1 if valid_size is None else valid_size
    name = path.resolve().stem if path.is_file() else path.resolve().name
    if files:
        return Data.of_fields(name, fields_of_files(files, valid, layout=layout, seed=seed))
    if holds_pictures(path):
        return Data.from_folder(path, size, valid=valid, seed=seed)
    return _arrays_on_disk(path, valid_size, layout)  # which says what is missing


def _is_whole(known: KnownSet, folder: Path) -> bool:
    """Return whether all files of a known set are in a folder."""
    try:
        return find(known, folder) is not None
    except DataError:  # some of them are missing
        return False


def _arrays_on_disk(folder: Path, valid_size: int | None, layout: str | None) -> Data:
    if valid_size is not None:
        raise ValueError(f"valid_size: wanted none, as {folder} has validation images of its own, got {valid_size}")
    splits = {split: Split(*part) for split, part in read_folder(folder, layout).items()}
    return Data(folder.resolve().name, splits["train"], splits["valid"], splits["test"], looked_at=True)
