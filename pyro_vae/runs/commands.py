"""How a command starts and ends: its device and data, its exit status, and the command line that resumes it."""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_vae._lazy import LazyModule
from pyro_vae.errors import DataError, NonFiniteLoss
from pyro_vae.files import CheckpointError
from pyro_vae.optional import MissingPackage
from pyro_vae.printing import spell_out
from pyro_vae.runs.origins import commit_at_start

if TYPE_CHECKING:
    import torch

    from pyro_vae import data, random
else:
    torch, data, random = map(LazyModule, ("torch", "pyro_vae.data", "pyro_vae.random"))

PROGRAM = "pyro-vae"
INTERRUPTED = 130  # exit status after Ctrl-C, as in a shell
ERRORS = (  # their messages say what to do
    ValueError,
    OSError,
    FloatingPointError,
    NonFiniteLoss,
    DataError,
    CheckpointError,
    MissingPackage,
    subprocess.CalledProcessError,
)
LONGEST, TENSOR = 1000, 60  # characters of an error that are printed, and of a tensor in it


def exit_status(
    parse: Callable[[], argparse.Namespace], work: Callable[[argparse.Namespace], int | None], interrupted: str
) -> int:
    """Do the work that a command line asks for; return the exit status of the command.

    The status is what the work returns, or 0; 1 after an error that says what to do; 130 after Ctrl-C. After an error
    or Ctrl-C one line is printed to standard error. ``interrupted`` may name options, as in "the runs are in {out}".
    """
    begin()
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


def begin() -> None:
    """Make every character printable on this terminal, and note the commit of the code that runs."""
    spell_out()
    commit_at_start()


def reason(error: BaseException) -> str:
    """Return what an error says as one short line, without the numbers of a whole tensor."""
    words = " ".join(str(error).split()) or type(error).__name__
    start = words.find("tensor([")
    longest = LONGEST if start < 0 else min(LONGEST, start + TENSOR)
    return words if len(words) <= longest else f"{words[:longest]} …"


def attempted(works: Mapping[str, Callable[[], Any]], left_out: dict[str, str]) -> dict[str, Any]:
    """Do each of these works and return their results; one that fails is noted in ``left_out``, with the reason."""
    done = {}
    for name, work in works.items():
        try:
            done[name] = work()
        except Exception as error:  # of any kind: a trained model must not be lost for a picture of it
            left_out[name] = reason(error)
    return done


@contextmanager
def terminable() -> Iterator[None]:
    """Context manager in which SIGTERM does what Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, random.interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def launched(command: str = "") -> list[str]:
    """Return the words that started this process, up to its options: interpreter or torchrun, then script or module.

    ``command``: the one of ``pyro-vae`` that runs; called from Python, it is as if a shell had started it.
    """
    local = os.environ.get("LOCAL_WORLD_SIZE")
    torchrun = ["torchrun", f"--nproc-per-node={local}"] if local else []
    spec = sys.modules["__main__"].__spec__
    module = spec.name.removesuffix(".__main__") if spec else ""
    if command and module != "pyro_vae":
        return [*torchrun, *(["--no-python"] if torchrun else []), _console_script(), command]
    started = ["-m", module] if module else [sys.argv[0]]
    return [*(torchrun or [Path(sys.executable).name]), *started, *([command] if command else [])]


def _console_script() -> str:
    """Return what a shell calls ``pyro-vae``: its path, if it was started by one that the shell does not search."""
    script = sys.argv[0]
    return script if Path(script).stem == PROGRAM and shutil.which(PROGRAM) != script else PROGRAM


def choose_device(name: str) -> "torch.device":
    """Return the device for ``--device``: auto, cpu or cuda."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no CUDA device on this machine; take --device cpu")
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else "cpu" if name == "auto" else name)


def load_data(args: argparse.Namespace) -> "data.Data":
    """Return the data that the options name, on their device; print a note about the data to standard error."""
    images = data.load(args.dataset, root=args.data_dir).to(choose_device(args.device))
    if images.note:
        print(f"NOTE: {images.note}", file=sys.stderr)
    return images
