"""Tests run on a changed copy of the package, in processes forked from one that has imported torch and Pyro."""

import contextlib
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SLOW = (
    "torch",
    "pyro",
    "torch.export",
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "scipy.stats",
    "scipy.integrate",
    "hypothesis",
    "pandas",
    "sklearn.datasets",
    "torchvision",
    "matplotlib.pyplot",
)


class Copy:
    """A copy of the repository whose modules are changed one at a time.

    Args:
        folder: that holds it.
        fast: whether tests that are marked slow are left out.
    """

    def __init__(self, folder: Path, fast: bool = False):
        self.folder, self.fast = folder, fast

    @classmethod
    @contextlib.contextmanager
    def made(cls, fast: bool = False) -> Iterator["Copy"]:
        """Copy the repository to a temporary folder, import what is slow, and delete the folder in the end."""
        with tempfile.TemporaryDirectory() as folder:
            left_out = shutil.ignore_patterns(".git", "build", "__pycache__", "*_cache")
            shutil.copytree(ROOT, folder, ignore=left_out, dirs_exist_ok=True)
            for name in SLOW:
                with contextlib.suppress(ImportError):
                    importlib.import_module(name)
            yield cls(Path(folder), fast)

    def seconds(self, paths: Sequence[str]) -> float:
        """Run the tests of some files on the package as it is; raise RuntimeError where one fails."""
        start = time.monotonic()
        code, text = self._run(paths, timeout=600, stop=False)
        if code != 0:
            raise RuntimeError(f"the tests of {' '.join(paths)} fail on the package as it is:\n{text[-3000:]}")
        return time.monotonic() - start

    def caught_by(self, module: Path, source: str, paths: Sequence[str], timeout: float) -> str | None:
        """Return the test that fails when a module has another source, or None where all pass."""
        path = self.folder / module
        before, times = path.read_text(), path.stat()
        try:
            path.write_text(source)
            code, text = self._run(paths, timeout, stop=True)
        finally:
            path.write_text(before)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        if code == 0:
            return None
        failed = [line for line in text.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return failed[0].split(" - ")[0] if failed else "timeout" if code is None else f"exit {code}"

    def _run(self, paths: Sequence[str], timeout: float, stop: bool) -> tuple[int | None, str]:
        """Return pytest's exit code, None after a timeout, and what it printed."""
        printed = self.folder.with_suffix(".printed")
        child = os.fork()
        if not child:
            os.setsid()
            self._pytest(paths, printed, stop)
        code = _exit_code(child, timeout)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # what the tests started
        text = printed.read_text(errors="replace")
        printed.unlink()
        return code, text

    def _pytest(self, paths: Sequence[str], printed: Path, stop: bool) -> None:
        """Run the tests and end the process."""
        code = 99
        try:
            os.chdir(self.folder)
            sys.path.insert(0, str(self.folder))
            sys.dont_write_bytecode = stop  # a mutant's must not be read for the module's own
            os.environ.update(PYTHONPATH=str(self.folder), **({"PYTHONDONTWRITEBYTECODE": "1"} if stop else {}))
            file = os.open(printed, os.O_WRONLY | os.O_CREAT)
            os.dup2(file, 1)
            os.dup2(file, 2)
            options = [
                "-q",
                "-rfE",
                "-W",
                "ignore::pytest.PytestAssertRewriteWarning",
                "--tb=no" if stop else "--tb=short",
                "-p",
                "no:cacheprovider",
                *["-x"] * stop,
                *["-m", "not slow"] * self.fast,
            ]
            code = pytest.main([*options, *paths], plugins=[_QuickFirst(self.folder / "durations.txt", stop)])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(int(code))


class _QuickFirst:
    """Writes what each test takes and, when it is known, runs the quick ones first, file by file."""

    def __init__(self, path: Path, known: bool):
        self._path, self._known = path, known
        self._seconds: dict[str, float] = defaultdict(float)

    def pytest_collection_modifyitems(self, items: list) -> None:
        if self._known and self._path.is_file():
            lines = (line.split(" ", 1) for line in self._path.read_text().splitlines())
            seconds = {name: float(value) for value, name in lines}
            files = Counter()
            for item in items:
                files[item.path] += seconds.get(item.nodeid, 0.0)
            items.sort(key=lambda item: (files[item.path], seconds.get(item.nodeid, 0.0)))

    def pytest_runtest_logreport(self, report) -> None:
        self._seconds[report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        if not self._known:
            self._path.write_text("".join(f"{seconds:.3f} {name}\n" for name, seconds in self._seconds.items()))


def _exit_code(child: int, timeout: float) -> int | None:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None
