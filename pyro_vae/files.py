"""Files that are written whole or not at all, and read without running any code."""

import errno
import os
import pickletools
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

try:
    import fcntl
except ImportError:  # Windows: two runs into one folder are then not noticed
    fcntl = None

LARGEST = 1 << 32  # bytes of a file
LARGEST_TREE = 1 << 23  # bytes of all that is not a tensor
# What state dicts are pickled of; weights_only allows more, some of which takes any amount of memory.
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
    errno.ENOENT: "the folder is gone: make it again, or give another",
    errno.EACCES: "make the folder writable",
    errno.EPERM: "make the folder writable",
    errno.EROFS: "make the file system writable",
}


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, is damaged or is of another run: the message names the file and the cure."""


def expanded(path: Path | str) -> Path:
    """The path with its ``~`` or ``~user`` replaced by the home folder; ValueError for a user that there is not.

    >>> expanded("~/data") == Path.home() / "data"
    True
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: there is no such home folder; write {Path.cwd() / path} for this folder") from error


def load_tree(file: BinaryIO, name: object) -> dict[str, Any]:
    """A dictionary that ``torch.save`` wrote, on the CPU; CheckpointError for anything else. It can run no code."""
    try:
        check_payload(file, name)
        file.seek(0)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # torch's readers raise many kinds
        raise CheckpointError(f"{name} cannot be read ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{name}: wanted a dictionary, got {type(content).__name__}")
    return content


def read_bytes(path: Path, largest: int = LARGEST) -> bytes:
    """The content of a file of at most so many bytes; CheckpointError where it cannot be read.

    >>> read_bytes(Path("nowhere"))
    Traceback (most recent call last):
        ...
    pyro_vae.files.CheckpointError: nowhere cannot be read (No such file or directory)
    """
    try:
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path} is no file")  # to open a named pipe would wait for a writer
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(size + 1) if size <= largest else None  # read(n) takes n bytes of memory at once
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
    if data is None:
        raise CheckpointError(f"{path} is larger than {largest >> 20} MiB, so it is none of ours")
    return data


def write_whole(path: Path, data: bytes, keep: Path | None = None) -> None:
    """Puts a file in its place at once: at every moment all of the old content is there or all of the new.

    With ``keep`` the old content is there afterwards, and between two renames it is there alone. Raises CheckpointError
    with the cure where it cannot be written; what was there before is then untouched.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_whole(Path(folder, "file"), b"content")
    ...     Path(folder, "file").read_bytes()
    b'content'
    """
    temporary = path.with_name(f"{path.name}.new")
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
        cure = CURES.get(error.errno, "see that it can be written")
        raise CheckpointError(
            f"{path} cannot be written ({error.strerror}); what was saved before is untouched: {cure}, then resume"
        ) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """A block in which no other process has the folder; a process that dies lets go of it.

    Raises CheckpointError where another one has it. Where a file system knows no locks, none is held.
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
        warnings.warn(f"{folder} cannot be locked ({error.strerror}): see that no other run writes to it", stacklevel=3)
    try:
        yield
    finally:
        os.close(handle)


def check_payload(file: BinaryIO, name: object) -> None:
    """Refuse what ``torch.save`` would not have written of a state dict, before anything of it is unpacked."""
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
            if opcode.name == "GLOBAL" and argument not in ALLOWED and not _is_storage(argument):
                raise CheckpointError(
                    f"{name} holds {argument.replace(' ', '.')}: only tensors, numbers, strings, "
                    "lists and dictionaries are read"
                )


def _is_storage(name: str) -> bool:
    module, _, word = name.partition(" ")
    return module == "torch" and word.endswith("Storage") and word.isalnum()


def _write(file: BinaryIO, data: bytes) -> None:
    file.write(data)


def _sync_folder(folder: Path) -> None:
    """Makes a rename last beyond a loss of power, where folders can be synchronised."""
    with suppress(PermissionError):  # Windows opens no folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that synchronises no folders
                raise
        finally:
            os.close(handle)
