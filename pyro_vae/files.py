"""Files that are written completely or not at all, and read without running any code."""

import errno
import os
import pickletools
import re
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pyro_vae._lazy import LazyModule
from pyro_vae.errors import warn

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

try:
    import fcntl
except ImportError:  # Windows, where two runs into one folder are not detected
    fcntl = None

LARGEST = 1 << 32  # the most bytes of a file
LARGEST_TREE = 1 << 23  # the most bytes of everything that is not a tensor
# The globals in the pickles of state dicts. weights_only allows more, some of which can take any amount of memory.
ALLOWED = {
    "collections OrderedDict",
    "collections Counter",
    "torch Size",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
}
CURES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "raise the limit on the size of a file",
    errno.ENOENT: "there is no such folder: make it, or give another",
    errno.EACCES: "make the folder writable",
    errno.EPERM: "make the folder writable",
    errno.EROFS: "make the file system writable",
}


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, is damaged or belongs to another run; the message names file and cure."""


class FolderNotLocked(UserWarning):
    """A folder on a file system without locks, in which other runs could write at the same time."""


def expanded(path: Path | str) -> Path:
    """Return the path with ``~`` or ``~user`` replaced by the home folder; raise ValueError for an unknown user.

    >>> expanded("~/data") == Path.home() / "data"
    True
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: there is no such home folder; write {Path.cwd() / path} for this folder") from error


def cache_folder() -> Path:
    """Return the folder of downloads and other files that can be made again, in the user's cache folder.

    The environment variable PYRO_VAE_CACHE names another one.
    """
    if named := os.environ.get("PYRO_VAE_CACHE"):
        return expanded(named)
    return expanded(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyro_vae"


def load_tree(file: BinaryIO, name: object) -> dict[str, Any]:
    """Load a dictionary that ``torch.save`` wrote, onto the CPU; raise CheckpointError for anything else.

    Loading runs no code from the file.
    """
    try:
        check_payload(file, name)
        file.seek(0)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # torch's readers raise many kinds of errors
        raise CheckpointError(f"{name} cannot be read ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{name}: wanted a dictionary, got {type(content).__name__}")
    return content


def read_bytes(path: Path, largest: int = LARGEST) -> bytes:
    """Return the content of a file of at most ``largest`` bytes; raise CheckpointError if it cannot be read.

    >>> read_bytes(Path("nowhere"))
    Traceback (most recent call last):
        ...
    pyro_vae.files.CheckpointError: nowhere cannot be read (No such file or directory)
    """
    try:
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path} is no file")  # opening a named pipe would wait for a writer
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(size + 1) if size <= largest else None  # read(n) allocates n bytes at once
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
    if data is None:
        raise CheckpointError(f"{path} is larger than {largest >> 20} MiB, so it is no checkpoint")
    return data


def write_whole(path: Path, data: bytes, keep: Path | None = None) -> None:
    """Replace a file at once: at every moment it holds all of the old content or all of the new.

    With ``keep`` the old content moves to that path; between the two renames it is the only one. Raises CheckpointError
    with the cure if the file cannot be written; the old content is then unchanged.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_whole(Path(folder, "file"), b"content")
    ...     Path(folder, "file").read_bytes()
    b'content'
    """
    writer = threading.get_native_id()  # others, of this process too, may write the same file
    temporary = path.with_name(f"{path.name}.{writer}.new")
    try:
        try:
            with temporary.open("wb") as file:
                _write(file, data)
                file.flush()
                os.fsync(file.fileno())
            if keep is not None and path.exists():
                os.replace(path, keep)
            os.replace(temporary, path)
            _sync_folder(path.parent)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
    except OSError as error:
        cure = CURES.get(error.errno or 0, "make sure that it can be written")
        raise CheckpointError(
            f"{path} cannot be written ({error.strerror}); what was saved before is untouched: {cure}, and do it again"
        ) from error


def unfinished(path: Path) -> list[Path]:
    """Return what ``write_whole`` left beside a path in processes that were killed while they wrote it."""
    name = re.compile(rf"{re.escape(path.name)}(\.\d+)?\.new")
    return [other for other in path.parent.iterdir() if name.fullmatch(other.name)]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Context manager in which no other process can lock the folder; a process that dies releases its lock.

    Raises CheckpointError if another process holds the lock. On a file system without locks it warns with
    FolderNotLocked.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise CheckpointError(f"another run is writing to {folder}; wait, or give another folder") from error
    except OSError as error:
        message = f"{folder} cannot be locked ({error.strerror}): make sure that no other run writes to it"
        warn(message, FolderNotLocked)
    try:
        yield
    finally:
        os.close(handle)


def check_payload(file: BinaryIO, name: object) -> None:
    """Raise CheckpointError for content that ``torch.save`` does not write for a state dict, before unpickling it."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if len({entry.filename for entry in entries}) != len(entries):
            raise CheckpointError(f"{name} holds two files of one name, which torch.save does not write")
        tops = {entry.filename.partition("/")[0] for entry in entries}
        if len(tops) != 1 or any(".." in entry.filename.split("/") for entry in entries) or "" in tops:
            raise CheckpointError(f"{name} holds files with names that torch.save does not give")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise CheckpointError(f"{name} holds compressed files, which torch.save does not write")
        tree = archive.getinfo(f"{tops.pop()}/data.pkl")
        if tree.file_size > LARGEST_TREE:
            raise CheckpointError(f"{name} holds more than {LARGEST_TREE >> 20} MiB that are no tensors")
        for opcode, argument, _ in pickletools.genops(archive.read(tree)):
            if opcode.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
                raise CheckpointError(f"{name} holds {opcode.name}, which torch.save does not write")
            if opcode.name == "GLOBAL" and argument not in ALLOWED and not _is_storage(str(argument)):
                raise CheckpointError(
                    f"{name} holds {str(argument).replace(' ', '.')}: only tensors, numbers, strings, "
                    "lists and dictionaries are read"
                )


def _is_storage(name: str) -> bool:
    module, _, word = name.partition(" ")
    return module == "torch" and word.endswith("Storage") and word.isalnum()


def _write(file: BinaryIO, data: bytes) -> None:
    file.write(data)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a loss of power, if the file system can synchronise folders."""
    with suppress(PermissionError):  # Windows cannot open folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # the file system cannot synchronise folders
                raise
        finally:
            os.close(handle)
