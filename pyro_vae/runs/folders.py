"""Results in files and folders that are written whole or not at all."""

import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_vae._lazy import LazyModule
from pyro_vae.files import locked, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pyro_vae import saved
else:
    saved = LazyModule("pyro_vae.saved")


def make_folder(out: Path) -> None:
    """Make the folder; raise OSError, before any work, if files cannot be written to it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except FileExistsError as error:
        raise FileExistsError(f"{out} is not a run's results but a file; give another --out") from error
    except OSError as error:
        raise OSError(f"{out} cannot be written ({error.strerror}); give another --out") from error


@contextmanager
def run_folder(out: Path) -> Iterator[None]:
    """Context manager in which the folder exists and no other run has it; an empty folder is removed afterwards."""
    make_folder(out)
    with locked(out):
        try:
            yield
        finally:
            with suppress(OSError):
                out.rmdir()


@contextmanager
def results_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """Context manager with a temporary folder that takes the place of ``out`` if no error is raised.

    Raises FileExistsError if ``out`` holds files already (with ``overwrite``: files that are not a run's results), and
    OSError if it cannot be written.
    """
    out = Path(out).absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not (out / saved.METRICS).is_file():
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
    """Write strict JSON (no NaN), indented, with paths as strings."""
    text = json.dumps(content, indent=2, allow_nan=False, default=str) + "\n"
    write_whole(path, text.encode())


def save_figure(path: Path, figure: "Figure") -> None:
    """Write the figure as a PNG file."""
    write_whole(path, png(figure))


def png(figure: "Figure") -> bytes:
    """Return the figure as the bytes of a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def beside(out: Path, ending: str) -> Path:
    """Return the file beside a folder that has the folder's name with this ending.

    >>> beside(Path("figures/sweep"), ".json").name, beside(Path("figures/sweep/."), ".json").name
    ('sweep.json', 'sweep.json')
    """
    out = Path(os.path.abspath(out))  # "." has no name
    return out.with_name(f"{out.name}{ending}")
