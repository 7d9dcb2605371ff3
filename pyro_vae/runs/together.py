"""Several runs at a time, by joblib: in processes of this machine, or on a cluster that joblib knows."""

import math
import os
import statistics
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import BrokenExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from joblib import Parallel, delayed, effective_n_jobs, parallel_config
from joblib.parallel import get_active_backend

from pyro_vae.printing import duration
from pyro_vae.runs.commands import terminable
from pyro_vae.runs.origins import commit_at_start
from pyro_vae.runs.workers import Origin, Outcome, attempt, why

Works = Mapping[str, Callable[[], str]]
KILLED = "its process was ended from outside, or crashed; one that needs too much memory is: give fewer --jobs"


def run_together(works: Works, jobs: int | None = None, quiet: bool = False) -> int:
    """Do single runs by their names, ``jobs`` at a time, and return how many of them failed.

    Each run is a function that can be pickled (a ``functools.partial``, a lambda); it leaves its own file or folder and
    returns a line about it, which is printed with the time left. The reasons of failures are printed at the end. joblib
    has the workers: processes of this machine, or those of ``joblib.parallel_config(backend="dask")``. Without ``jobs``
    their number is joblib's: 1, or all workers of a cluster. With one job the runs are done in this process.

    A process does one run at a time, on one thread if there are several jobs, and every run knows the commit of this
    command. On Ctrl-C, or SIGTERM, the processes of this machine end and KeyboardInterrupt is raised.

    >>> run_together({"a": lambda: "-1.5 nats", "b": lambda: "-1.4 nats"}, quiet=True)
    0
    """
    size = at_a_time(jobs)
    told, failed = Told(works, size, quiet), {}
    origin = Origin(os.getpid(), commit_at_start(), size)
    try:
        with terminable(), one_thread_each(), warnings.catch_warnings():
            # A worker that has grown is replaced; a loop that Ctrl-C ends leaves outcomes behind.
            for message in ("A worker stopped while some jobs were given", r"\d+ tasks (have|which)"):
                warnings.filterwarnings("ignore", message=message)
            for outcome in ended(works, size, origin, told):
                told.end(outcome)
                if outcome.failed:
                    failed[outcome.name] = outcome.line
    except Exception as error:  # of the cluster, or of what cannot be sent to it
        failed |= dict.fromkeys(told.waiting, f"it did not end: {why(error)}")
    for name, line in failed.items():
        print(f"failed: {name}: {line}", file=sys.stderr, flush=True)
    return len(failed)


def at_a_time(jobs: int | None) -> int:
    """Return how many runs go at a time; without ``jobs`` joblib says it.

    >>> at_a_time(2), at_a_time(None)
    (2, 1)
    """
    if jobs == 0:
        raise ValueError("--jobs: wanted at least 1, or -1 for all cores, got 0")
    count: Any = effective_n_jobs  # joblib has no types that hold
    return count(jobs)


def ended(works: Works, size: int, origin: Origin, told: "Told") -> Iterator[Outcome]:
    """Yield the outcomes of runs as they end. Those whose worker has died are tried again alone, then the others."""
    suspects: list[str] = []
    while told.waiting:
        names = suspects[:1] or list(told.waiting)
        tasks = (delayed(attempt)(told.begin(name), works[name], origin) for name in names)
        try:
            yield from outcomes(tasks, min(size, max(2, len(names))))  # 1 would be in this process, which must not die
            suspects = suspects[1:]
        except BrokenExecutor:
            if suspects:
                yield Outcome(suspects.pop(0), True, KILLED, 0.0)
            else:
                suspects = [name for name in told.waiting if name in told.begun]


def outcomes(tasks: Iterable[Any], jobs: int) -> Iterator[Outcome]:
    """Return the outcomes of joblib's tasks as they end."""
    make: Any = Parallel
    return make(jobs, return_as="generator_unordered", batch_size=1, pre_dispatch="n_jobs", max_nbytes=None)(tasks)


def one_thread_each() -> AbstractContextManager[Any]:
    """Return the context manager in which joblib's own processes start with one OpenMP thread."""
    backend: Any = get_active_backend()[0]
    if not backend.supports_inner_max_num_threads:  # a cluster's, or threads
        return nullcontext()
    return parallel_config(backend="loky", inner_max_num_threads=1)


class Told:
    """Which runs wait, and what is printed: a line when one begins, if they go one by one, and one when it has ended.

    >>> told = Told(["a, seed 0", "a, seed 1", "a, seed 2"], jobs=2, quiet=False)
    >>> told.end(Outcome("a, seed 0", False, "-1.5 nats", 100.0))
    [1 of 3] a, seed 0: -1.5 nats (100 s); about 100 s left
    """

    def __init__(self, names: Iterable[str], jobs: int, quiet: bool):
        self.waiting, self.begun = dict.fromkeys(names), set()
        self.runs, self.jobs, self.quiet = len(self.waiting), jobs, quiet
        self.seconds: list[float] = []
        self._stream = sys.stdout  # a run in a thread of this process may put another one in its place

    def begin(self, name: str) -> str:
        """Note that a run begins; return its name."""
        self.begun.add(name)
        if not self.quiet and self.jobs == 1:
            print(name, file=self._stream, flush=True)
        return name

    def end(self, outcome: Outcome) -> None:
        """Note that a run has ended, and print its line."""
        del self.waiting[outcome.name]
        self.seconds.append(outcome.seconds)
        left = statistics.fmean(self.seconds) * math.ceil(len(self.waiting) / self.jobs)
        more = f"; about {duration(left)} left" if self.waiting else ""
        said = f"failed: {outcome.line}" if outcome.failed else outcome.line
        if not self.quiet:
            line = f"[{self.runs - len(self.waiting)} of {self.runs}] {outcome.name}: {said}"
            print(f"{line} ({duration(outcome.seconds)}){more}", file=self._stream, flush=True)
