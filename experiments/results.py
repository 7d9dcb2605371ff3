"""Where experiments leave what they found: whole folders or none, and what each number came from."""

import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

METRICS = "metrics.json"


@contextmanager
def results_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside ``out`` that takes its place when the block ends without an error.

    Raises FileExistsError where ``out`` holds something already (with ``overwrite``: something that is no run's
    results), and OSError where it cannot be written.
    """
    out = Path(out).absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not (out / METRICS).is_file():
            raise FileExistsError(f"{out} holds files that are not a run's results; give another --out")
        if not overwrite:
            raise FileExistsError(f"{out} holds another run's results; give another --out, or --overwrite")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise OSError(f"{out} cannot be written ({error.strerror}); give another --out") from error
    try:
        yield folder
        if out.exists():
            shutil.rmtree(out)
        folder.chmod(0o755)
        os.replace(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Strict JSON (no NaN), indented; paths as strings."""
    path.write_text(json.dumps(content, indent=2, allow_nan=False, default=str) + "\n")


def provenance() -> dict[str, Any]:
    """Versions of Python and packages, and the git commit of this folder where there is one."""
    packages = ("torch", "torchvision", "pyro-ppl", "numpy", "scikit-learn", "matplotlib")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{name: version(name) for name in packages},
        "git_commit": git_commit(),
    }


def git_commit() -> str | None:
    """The commit that this file belongs to, with a plus sign where tracked files differ from it; None without git."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
