"""Machine code kept between processes, in a folder of the user's own.

Machine code runs with the rights of this process, so it is taken only from a folder that belongs to the user and that
nobody else may write to; a checkpoint, which people hand on to each other, is no place for it.
"""

import hashlib
import logging
import os
import platform
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import torch

from pyro_vae.files import CheckpointError, cache_folder, read_bytes, write_whole

LARGEST_STORE = 1 << 29  # bytes of all files together; a library takes 1 to 5 MiB
KINDS = (".so", ".o")  # of machine code
OTHERS_WRITE = 0o022  # the permissions of group and others to write
ENVIRONMENT = ("TORCHINDUCTOR_CPP", "AOT_INDUCTOR_", "AOTI_", "CXX", "CPATH", "CPLUS_INCLUDE_PATH", "LD_PRELOAD")


def store() -> Path | None:
    """Return the folder of stored machine code, which is made if it is missing; None if it cannot be trusted or made.

    It is the folder ``compiled`` of ``files.cache_folder()``.
    """
    folder, reason = cache_folder() / "compiled", ""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_own(folder):
            reason = "it does not belong to this user, or others may write to it"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        logging.getLogger(__name__).warning(
            "compiled programs are not kept in %s (%s): make it a folder of your own by chmod go-w, or name another by "
            "the environment variable PYRO_VAE_CACHE",
            folder,
            reason,
        )
    return None if reason else folder


def name_of(*parts: str) -> str:
    """Return the name of machine code: a hash of all that it depends on, this machine included."""
    return hashlib.sha256("\0".join((*parts, *machine())).encode()).hexdigest()[:40]


def machine() -> list[str]:
    """Return what machine code depends on beside its source: versions, the CPU, the C++ compiler and its settings."""
    compiler = shutil.which(os.environ.get("CXX") or "g++") or ""
    file = os.stat(compiler) if compiler else None
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        cpu = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
        return [*_versions(), *cpu, compiler, f"{file and (file.st_size, file.st_mtime_ns)}", *_settings()]
    return [*_versions(), platform.processor(), compiler, *_settings()]


def checked(path: Path) -> bytes:
    """Return the content of a stored file.

    Raises OSError if it is missing, CheckpointError if it is damaged, or not this user's alone.
    """
    if not _is_own(path):
        raise CheckpointError("it is not this user's, or others may write to it")
    data = read_bytes(path)
    if path.with_suffix(".sha256").read_bytes() != _digest(data):
        raise CheckpointError("it is damaged")
    os.utime(path)
    return data


def keep(data: bytes, path: Path) -> None:
    """Store a file, and remove those that were not used for the longest time; what fails is logged."""
    try:
        for file, content in ((path.with_suffix(".sha256"), _digest(data)), (path, data)):
            write_whole(file, content)
            file.chmod(0o600)
        _make_room(path.parent)
    except (OSError, CheckpointError) as error:
        logging.getLogger(__name__).warning("a compiled program is not kept: %s", error)


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


def _make_room(folder: Path) -> None:
    """Remove the files that were not used for the longest time, until the others fit."""
    found = [(file.stat().st_mtime, file.stat().st_size, file) for file in folder.iterdir() if file.suffix in KINDS]
    total = 0
    for _, size, file in sorted(found, reverse=True):
        total += size
        if total > LARGEST_STORE:
            for old in (file, file.with_suffix(".sha256")):
                old.unlink(missing_ok=True)


def _is_own(path: Path) -> bool:
    """Return whether a file or folder belongs to this user, no link, and nobody else may write to it."""
    found = path.lstat()
    user = os.geteuid() if hasattr(os, "geteuid") else found.st_uid  # Windows
    return found.st_uid == user and not found.st_mode & OTHERS_WRITE and not path.is_symlink()


def _versions() -> list[str]:
    return [torch.__version__, str(torch.version.git_version), sys.version, platform.platform()]


def _settings() -> list[str]:
    """Return the settings of torch that decide on kernels."""
    named = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(ENVIRONMENT)]
    flags = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    return [*named, repr(flags), torch.backends.cpu.get_cpu_capability()]
