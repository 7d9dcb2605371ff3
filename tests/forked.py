"""Python in a process that is new, but for torch and other packages, which a server has imported once for all."""

import atexit
import multiprocessing
import os
import socket
import sys
import types
from pathlib import Path
from typing import NamedTuple

import torch

# Packages of others, which take seconds each time; nothing of pyro_vae, whose imports are part of what is tested.
PRELOADED = ["pyro", "scipy.stats", "sklearn.neighbors", "matplotlib.pyplot"]
PRELOADED += ["torch._dynamo", "torch._inductor.compile_fx"]


class Done(NamedTuple):
    """How a process ended: its exit status, or minus the signal that ended it, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


class Forked:
    """A process that runs a program, given as text, in a folder; ``wait`` returns how it ended."""

    def __init__(self, program, folder, variables, words=(), log=None):
        self._logs = [Path(log or folder, name) for name in ("stdout", "stderr")]
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        arguments = program, str(folder), {key: str(value) for key, value in variables.items()}, self._logs
        if str(Path(__file__).parent) not in sys.path:  # of a test's own
            sys.path.append(str(Path(__file__).parent))
        self._process = context.Process(target=run, args=(*arguments, [str(word) for word in words]))
        self._process.start()

    def wait(self, seconds=120):
        self._process.join(seconds)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise TimeoutError(f"it takes too long: {[log.read_text() for log in self._logs]}")
        return Done(self._process.exitcode, *(log.read_text() for log in self._logs))


def file_of(script):
    """Return the program that runs a file."""
    return f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')"


def ranks(script, *words, folder, variables, count=2):
    """Run a script in processes that know of one another, as torchrun's do; return one that failed, or the last."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1], "WORLD_SIZE": count}
    processes = []
    for rank in range(count):
        log = Path(folder, f"rank{rank}")
        log.mkdir()
        own = {**variables, **place, "RANK": rank, "LOCAL_RANK": rank}
        processes.append(Forked(file_of(script), folder, own, words, log))
    done = [process.wait() for process in processes]
    return next((each for each in done if each.returncode), done[-1])


def run(program, folder, variables, logs, words):
    """Run a program as ``python - WORDS`` does, with these variables and no others."""
    for number, log in enumerate(logs, start=1):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.clear()
    os.environ.update(variables)
    sys.path[:0] = filter(None, variables.get("PYTHONPATH", "").split(os.pathsep))
    os.chdir(folder)
    if "OMP_NUM_THREADS" in variables:  # OpenMP has read it already, when the server began
        torch.set_num_threads(int(variables["OMP_NUM_THREADS"]))
    sys.argv = ["-", *words]
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    try:
        exec(compile(program, "<stdin>", "exec"), vars(main))
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
