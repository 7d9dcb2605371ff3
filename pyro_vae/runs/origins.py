"""Where numbers come from: the data, the versions of the packages, the commit of the code."""

import hashlib
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_vae._lazy import LazyModule
from pyro_vae.printing import differences

if TYPE_CHECKING:
    from pyro_vae.data import Data, Split, mapped, shares
else:
    mapped, shares = map(LazyModule, ("pyro_vae.data.mapped", "pyro_vae.data.shares"))  # with torch

PACKAGES = ("torch", "torchvision", "pyro-ppl", "numpy", "scikit-learn", "matplotlib")
_STARTED: list[str | None] = []  # the commit at the start, once it is noted


def describe(images: "Data") -> dict[str, Any]:
    """Return name, shape of a row, note and sizes of a data set, and digests that tell its rows from others."""
    splits = {name: getattr(images, name) for name in shares.SPLITS}
    return {
        "name": images.name,
        "shape": list(images.shape),
        "note": images.note,
        **{name: len(split) for name, split in splits.items()},
        **{f"{name}_digest": digest(split) for name, split in splits.items()},
    }


def check_same_rows(path: Path, there: Mapping[str, Any], here: Mapping[str, Any], cure: str) -> None:
    """Raise ValueError if the numbers in a file or folder are of other rows; both descriptions are of ``describe``.

    Earlier versions wrote fewer digests.

    >>> check_same_rows(Path("out"), {"test": 3, "train": 9}, {"test": 4, "train": 9}, "give another --out")
    Traceback (most recent call last):
        ...
    ValueError: out: its numbers are of other rows than those of this command: test is 3 there and 4 here; give another
    --out
    """
    names = ("shape", *shares.SPLITS, *(f"{name}_digest" for name in shares.SPLITS))
    words = differences({name: there[name] for name in names if name in there}, here)
    if words:
        raise ValueError(f"{path}: its numbers are of other rows than those of this command: {words}; {cure}")


def digest(rows: "Split") -> str:
    """Return twelve digits that depend on all fields of these rows.

    >>> from pyro_vae.data import load
    >>> digest(load("digits").test)
    '4d78c1f43b86'
    """
    found = hashlib.sha256()
    for name, field in rows.fields.items():
        found.update(f"{name} {field[:0].cpu().numpy().dtype} {tuple(field.shape)}".encode())
        for part in mapped.parts(field):
            found.update(part.cpu().numpy().data)
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
