"""Where experiments leave what they found: whole folders or none, and what each number came from."""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pyro_vae.data import DataError
from pyro_vae.training import NonFiniteLoss

METRICS = "metrics.json"
INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it


def exit_status(work: Callable[[], int | None], interrupted: str) -> int:
    """What the work returns, or 0; 1 after an error that says what to do, 130 after Ctrl-C, and a line that says so."""
    try:
        return work() or 0
    except (ValueError, OSError, NonFiniteLoss, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted: {interrupted}", file=sys.stderr)
        return INTERRUPTED


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
        folder.chmod(0o755)
        if out.exists():  # moved away, not removed: between the two renames nothing is lost
            os.replace(out, f"{folder}-old")
        os.replace(folder, out)
        shutil.rmtree(f"{folder}-old", ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Strict JSON (no NaN), indented; paths as strings. The whole file or none, also where another process reads it."""
    temporary(path).write_text(json.dumps(content, indent=2, allow_nan=False, default=str) + "\n")
    temporary(path).replace(path)


def save_figure(path: Path, figure: Figure) -> None:
    """The whole file or none."""
    figure.savefig(temporary(path), format=path.suffix[1:])
    temporary(path).replace(path)


def temporary(path: Path) -> Path:
    """A name for what is to take the place of a file: hidden, in the same folder, this process's own."""
    return path.with_name(f".{os.getpid()}-{path.name}")


def parts_of(out: Path) -> dict[Path, dict[str, Any]]:
    """The single runs in the folder of an experiment that can be shared and resumed, ``<run>-seed<seed>.json`` each.

    FileNotFoundError where there is none, ValueError where they were not run with the same settings.
    """
    parts = {path: json.loads(path.read_text()) for path in sorted(out.glob("[!.]*-seed*.json"))}
    if not parts:
        raise FileNotFoundError(f"{out} holds no run to report; run without --report first")
    check_settings(parts)
    return parts


def is_done(path: Path, settings: dict[str, Any]) -> bool:
    """Whether a single run has left its file; ValueError where it was run with other settings."""
    if path.exists():
        check_settings({path: json.loads(path.read_text()), "this command": {"settings": settings}})
    return path.exists()


def check_settings(parts: dict[Path | str, dict[str, Any]]) -> None:
    """ValueError unless all were run with the same settings."""
    (first, reference), *others = parts.items()
    for path, part in others:
        for name, value in reference["settings"].items():
            if part["settings"].get(name) != value:
                raise ValueError(
                    f"{first} has {name} = {value}, {path} has {part['settings'].get(name)}, and one table cannot hold "
                    "both; give another --out"
                )


def mean(values: Sequence[float]) -> dict[str, Any] | None:
    """Mean, its standard error where there are two values or more, and the values; None without any."""
    if not values:
        return None
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "standard_error": error, "values": list(values)}


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
