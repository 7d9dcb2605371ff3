"""Files of known data sets: searched in folders, and downloaded whole or not at all."""

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pyro_vae.data.formats import existing
from pyro_vae.data.raw import DataError
from pyro_vae.data.splits import Split
from pyro_vae.files import cache_folder, expanded

ENVIRONMENT = "PYRO_VAE_DATA"
TIMEOUT = 5.0  # seconds to wait for a silent network


@dataclass(frozen=True)
class KnownSet:
    """A record of ``SETS``: how a data set is read, fetched and split.

    Attributes:
        word: its name.
        help: a description.
        read: from the paths of its files to all images, or to the training images and those for test, and for
            validation, if they are apart; None for what is not apart.
        valid_size: the number of validation images, and of test images if they are not apart.
        files: below the folder that is searched; none for a data set that is generated or comes with a library.
        fetch: what downloads the files into a folder.
        first_labels: of the training images, for sets whose files have the same names.
        classes: the names of the classes.
        rows: the numbers of images in the files, for training, test and validation; without them neither they nor
            ``shape`` and ``classes`` are checked.
        shape: (C, H, W) of an image.
    """

    word: str
    help: str
    read: Callable[..., tuple[Split | None, ...]]
    valid_size: int
    files: tuple[str, ...] = ()
    fetch: Callable[[Path], object] = lambda folder: None
    first_labels: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()
    rows: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()


class MissingData(DataError):
    """A data set that is in none of the folders searched and cannot be downloaded."""


def folders(root: Path | str | None) -> list[Path]:
    """Return the folders in which files are searched; the last one is for downloads."""
    if root is not None:
        return [expanded(root)]
    named = os.environ.get(ENVIRONMENT)
    return [expanded(named), cache_folder()] if named else [cache_folder()]


def find(known: KnownSet, root: Path | str | None) -> list[Path] | None:
    """Return the data set's files from the first folder that has some of them; raise DataError if it lacks others."""
    for folder in folders(root):
        for paths in ([folder / file for file in known.files], [folder / Path(file).name for file in known.files]):
            found = {path: existing(path) for path in paths}
            there = [file for file in found.values() if file]
            if len(there) == len(paths):
                return there
            if there:
                missing = next(path for path, file in found.items() if not file)
                raise DataError(f"{missing} is missing beside {there[0].name}; put it there too")
    return None


def fetched(known: KnownSet, root: Path | str | None, allowed: bool) -> list[Path]:
    """Download into a temporary folder, and move the files to their places when all of them are complete."""
    name, folder, file = known.word, folders(root)[-1], known.files[0]
    searched = ", ".join(str(path / file) for path in folders(root))
    cure = f"put its files where they are searched, {searched}, or give their folder by --data-dir or {ENVIRONMENT}"
    if not allowed:
        raise MissingData(f"{name} was not found, and download is False; {cure}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = TemporaryDirectory(prefix=".download-", dir=folder, ignore_cleanup_errors=True)
    except OSError as error:
        raise MissingData(f"{name} was not found, and {folder} cannot be written ({error.strerror}); {cure}") from error
    try:
        with scratch as downloads, _timeout(TIMEOUT):
            known.fetch(Path(downloads))
            for path in [path for path in Path(downloads).rglob("*") if path.is_file()]:
                target = folder / path.relative_to(downloads)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
    except Exception as error:
        raise MissingData(f"{name} was not found, and its download failed ({error}); {cure}") from error
    files = find(known, folder)
    if files is None:
        raise MissingData(f"{name} was downloaded into {folder}, but its files are not there; {cure}")
    return files


def read(known: KnownSet, paths: Sequence[Path]) -> tuple[Split | None, ...]:
    """Return the images of training, test and validation; raise DataError for other ones than the record tells."""
    parts = known.read(*paths)
    for name, part, wanted in zip(("training", "test", "validation"), parts, known.rows):
        where = f"{paths[0].parent}: wanted"
        if part is not None and len(part) != wanted:
            raise DataError(
                f"{where} {wanted:,} {name} images of {known.word}, got {len(part):,}; remove the files to download "
                "them again"
            )
        if part is not None and part.images.shape[1:] != known.shape:
            raise DataError(
                f"{where} images of {known.word} of shape {known.shape}, got {tuple(part.images.shape[1:])}; remove "
                "the files to download them again"
            )
        if part is not None and known.classes and not 0 <= part.labels.min() <= part.labels.max() < len(known.classes):
            raise DataError(
                f"{where} labels of {known.word} from 0 to {len(known.classes) - 1}, got {int(part.labels.min())} to "
                f"{int(part.labels.max())}; remove the files to download them again"
            )
    return parts


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Context manager in which sockets have a default timeout, as torchvision's downloads do not set one."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
