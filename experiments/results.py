"""Where experiments leave what they found: whole folders or none, and what each number came from."""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pyro_vae.data.sets import DataError
from pyro_vae.files import CheckpointError
from pyro_vae.printing import spell_out
from pyro_vae.training.loop import NonFiniteLoss

METRICS = "metrics.json"
INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it
ERRORS = (  # that say what to do
    ValueError,
    OSError,
    FloatingPointError,
    NonFiniteLoss,
    DataError,
    CheckpointError,
    subprocess.CalledProcessError,
)
LONGEST, TENSOR = 1000, 60  # characters of an error that are printed, and of a tensor in it


def exit_status(
    parse: Callable[[], argparse.Namespace], work: Callable[[argparse.Namespace], int | None], interrupted: str
) -> int:
    """Does the work that a command line asks for; what the command ends with.

    That is what the work returns, or 0; 1 after an error that says what to do; 130 after Ctrl-C. Either is said in a
    line: ``interrupted`` may name options, as in "the runs are in {out}".
    """
    spell_out()
    args = argparse.Namespace()
    try:
        args = parse()
        return work(args) or 0
    except ERRORS as error:
        print(f"error: {reason(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted: {interrupted.format(**vars(args))}", file=sys.stderr)
        return INTERRUPTED


def reason(error: BaseException) -> str:
    """What an error says, in one line that can be read at a glance, without the numbers of a whole tensor."""
    words = " ".join(str(error).split()) or type(error).__name__
    start = words.find("tensor([")
    longest = LONGEST if start < 0 else min(LONGEST, start + TENSOR)
    return words if len(words) <= longest else f"{words[:longest]} …"


def attempted(works: Mapping[str, Callable[[], Any]], left_out: dict[str, str]) -> dict[str, Any]:
    """What each of these works comes to. One that fails is left out, with the reason, and costs nothing else."""
    done = {}
    for name, work in works.items():
        try:
            done[name] = work()
        except Exception as error:  # of whatever kind: the training is not to be lost for a picture of it
            left_out[name] = reason(error)
    return done


def make_folder(out: Path) -> None:
    """The folder is there afterwards, and files can be written to it; else an OSError says so before any work."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except FileExistsError as error:
        raise FileExistsError(f"{out} is not a run's results but a file; give another --out") from error
    except OSError as error:
        raise OSError(f"{out} cannot be written ({error.strerror}); give another --out") from error


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
    make_folder(out.parent)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
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


def beside(out: Path, ending: str) -> Path:
    """A file that lies beside a folder and has its name, with this ending.

    >>> beside(Path("figures/sweep"), ".json").name, beside(Path("figures/sweep/."), ".json").name
    ('sweep.json', 'sweep.json')
    """
    out = Path(os.path.abspath(out))  # "." has no name
    return out.with_name(f"{out.name}{ending}")


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
    """Versions of Python and packages, and the git commit of this folder where there is one.

    The commit is that of the code that runs, which was read when the command began. Where the folder has moved on since
    then, ``git_commit_at_the_end`` says to which one.
    """
    now = git_commit()
    packages = ("torch", "torchvision", "pyro-ppl", "numpy", "scikit-learn", "matplotlib")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{name: installed(name) for name in packages},
        "git_commit": BEGAN_AT,
        **({} if now == BEGAN_AT else {"git_commit_at_the_end": now}),
    }


def installed(package: str) -> str | None:
    """The version of a package; None where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """The commit that this file belongs to, with a plus sign where tracked files differ from it; None without git."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


BEGAN_AT = git_commit()
