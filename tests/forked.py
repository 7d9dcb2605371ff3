"""Python in a process that is new, but for torch and other packages, which a server has imported once for all."""

import atexit
import multiprocessing
import os
import sys
import types
import warnings
from pathlib import Path
from typing import NamedTuple

# Packages of others, which take seconds each time; nothing of pyro_vae, whose imports are part of what is tested.
PRELOADED = ["pyro", "scipy.stats", "sklearn.neighbors", "torch._dynamo", "torch._inductor.compile_fx"]


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
        self._process = context.Process(target=run, args=(*arguments, [str(word) for word in words]))
        self._process.start()

    def wait(self, seconds=120):
        self._process.join(seconds)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise TimeoutError(f"it takes too long: {[log.read_text() for log in self._logs]}")
        return Done(self._process.exitcode, *(log.read_text() for log in self._logs))


def run(program, folder, variables, logs, words):
    """Run a program as ``python -W error::UserWarning - WORDS`` does, with these variables and no others."""
    for number, log in enumerate(logs, start=1):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.clear()
    os.environ.update(variables)
    sys.path[:0] = filter(None, variables.get("PYTHONPATH", "").split(os.pathsep))
    os.chdir(folder)
    warnings.resetwarnings()
    warnings.simplefilter("default")
    warnings.simplefilter("error", UserWarning)
    sys.argv = ["-", *words]
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    try:
        exec(compile(program, "<stdin>", "exec"), vars(main))
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
