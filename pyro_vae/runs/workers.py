"""A single run in a worker: alone in its process, on one thread, and a line whether it succeeds or fails."""

import os
import threading
import time
import traceback
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch

from pyro_vae.parallel import threads
from pyro_vae.runs.commands import ERRORS, reason
from pyro_vae.runs.origins import started_at

# Pyro's handlers and torch's random numbers belong to the process: two runs in it at once would give wrong numbers.
_ALONE = threading.RLock()


class Origin(NamedTuple):
    """The command that asks for a run: its process, the commit of its code, and how many runs go at a time."""

    pid: int
    commit: str | None
    jobs: int


class Outcome(NamedTuple):
    """The end of a run: its line, or the reason of its failure, and its seconds."""

    name: str
    failed: bool
    line: str
    seconds: float


def attempt(name: str, work: Callable[[], str], origin: Origin) -> Outcome:
    """Do a run, of which this process does one at a time, and return how it ended. Ctrl-C is raised."""
    elsewhere = os.getpid() != origin.pid
    if elsewhere:
        end_with_parent()
    with _ALONE, threads(1 if elsewhere or origin.jobs > 1 else torch.get_num_threads()):
        started_at(origin.commit)
        started = time.perf_counter()
        try:
            failed, line = False, work()
        except Exception as error:  # of any kind: the other runs go on
            failed, line = True, why(error)
        return Outcome(name, failed, line, time.perf_counter() - started)


def why(error: Exception) -> str:
    """Return the reason of a failure as a line; with kind and place, unless the message says what to do.

    >>> why(ValueError("--lr: wanted a positive number, got -1"))
    '--lr: wanted a positive number, got -1'
    >>> why(KeyError("lr"))
    "KeyError: 'lr'"
    """
    if isinstance(error, ERRORS):
        return reason(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {reason(error)}{place}"


@cache
def end_with_parent() -> None:
    """End this process when the one that started it has ended: a run must not outlive a command that was killed."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
