"""Where numbers come from: the data, the versions of the packages, the commit of the code."""

import hashlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_vae.data import Data, Split

PACKAGES = ("torch", "torchvision", "pyro-ppl", "numpy", "scikit-learn", "matplotlib")
_STARTED: list[str | None] = []  # the commit at the start, once it is noted


def describe(images: "Data") -> dict[str, Any]:
    """Return name, shape of a row, note and sizes of a data set, and a digest that tells its test rows from others."""
    splits = {split: len(getattr(images, split)) for split in ("train", "valid", "test")}
    return {
        "name": images.name,
        "shape": list(images.shape),
        "note": images.note,
        **splits,
        "test_digest": digest(images.test),
    }


def digest(rows: "Split") -> str:
    """Return twelve digits that depend on all fields of these rows.

    >>> from pyro_vae.data import load
    >>> digest(load("digits").test)
    '4d78c1f43b86'
    """
    found = hashlib.sha256()
    for name, field in rows.fields.items():
        array = field.to("cpu").contiguous().numpy()
        found.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return found.hexdigest()[:12]


def provenance() -> dict[str, Any]:
    """Return the versions of Python and packages, and the git commit of this file's folder if there is one.

    The commit is that of the code that runs, read when the command began. If the folder has moved on since then,
    ``git_commit_at_the_end`` names the new commit.
    """
    began, now = commit_at_start(), git_commit()
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{name: installed(name) for name in PACKAGES},
        "git_commit": began,
        **({} if now == began else {"git_commit_at_the_end": now}),
    }


def installed(package: str) -> str | None:
    """Return the version of a package, or None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit_at_start() -> str | None:
    """Return the commit at the first call in this process, or that of ``started_at``."""
    if not _STARTED:
        started_at(git_commit())
    return _STARTED[0]


def started_at(commit: str | None) -> None:
    """Take over the commit that was noted by the command for which this process works."""
    _STARTED[:] = [commit]


def git_commit() -> str | None:
    """Return the commit that this file belongs to, with "+" if tracked files differ from it; None without git."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # an installed copy may lie in another repository
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
