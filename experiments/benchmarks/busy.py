"""Another process that keeps one core busy until its parent ends it.

python -m experiments.benchmarks.busy CORE
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def compute(core: int) -> None:
    """Compute on one core while the parent lives; say by a line that it has begun."""
    parent = os.getppid()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    print("computing", flush=True)
    while os.getppid() == parent:
        for _ in range(1_000_000):
            pass


@contextmanager
def busy_core() -> Iterator[int]:
    """Context manager in which a process computes on the first core of this one; gives that process's id."""
    core = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    command = [sys.executable, "-m", "experiments.benchmarks.busy", str(core)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as process:
        try:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise RuntimeError(f"the process that should keep core {core} busy has ended at once")
            yield process.pid
        finally:
            process.kill()


if __name__ == "__main__":
    compute(int(sys.argv[1]))
