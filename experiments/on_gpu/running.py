"""A step in a process of its own, which is ended when its time is over; whatever it does, the next step begins."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from experiments.on_gpu.steps import ROOT, Step

GRACE = 10.0  # seconds from the request to end to the end
TAIL = 4000  # characters of a log that the results hold


def taken(step: Step, seconds: float, environment: Mapping[str, str], logs: Path) -> dict[str, Any]:
    """Take a step in at most ``seconds``; return how it ended and what it found. Raises nothing but Ctrl-C."""
    begun, log = time.monotonic(), logs / f"{step.name}.log"
    status = run(step.command, seconds, {**environment, "SECONDS_LEFT": f"{seconds:.0f}"}, log)
    took = round(time.monotonic() - begun, 1)
    return {
        "status": status,
        "seconds": took,
        "command": plain(step.command),
        "log": _end_of(log, status),
        "found": found(step.results),
    }


def run(command: tuple[str, ...], seconds: float, environment: Mapping[str, str], log: Path) -> str:
    """Run a command with its output in a file; return "done", "failed (status)", or "out of time" where it was ended.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     [run(("sh", "-c", word), 0.5, {}, Path(folder) / "log") for word in ("true", "exit 3", "exec sleep 9")]
    ['done', 'failed (3)', 'out of time']
    """
    try:
        with log.open("wb") as file:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **environment},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return _ended(process, seconds)
    except OSError as error:
        return f"failed ({error})"


def found(results: Path | None) -> Any:
    """Return what a step has written so far; None where there is nothing to read."""
    try:
        text = results.read_text() if results else ""
        return counts(text) if results and results.suffix == ".xml" else json.loads(text)
    except (OSError, ValueError, ElementTree.ParseError):
        return None


def plain(command: Sequence[str]) -> str:
    """Return a command as one would write it on any machine: files without the folders that they lie in here.

    >>> plain((sys.executable, "-m", "pytest", "--junitxml=/somewhere/tests.xml"))
    'python -m pytest --junitxml=tests.xml'
    """
    words = ["python" if word == sys.executable else word for word in command]
    return " ".join(re.sub(r"(^|=)/(?:[^/]+/)*", r"\1", word) for word in words)


def counts(report: str) -> dict[str, Any]:
    """Return how many tests of a report of pytest ran and how they ended, and which have failed.

    >>> counts('<testsuite tests="2" failures="1" errors="0" skipped="0" time="3.5"><testcase name="good"/>'
    ...        '<testcase name="bad"><failure/></testcase></testsuite>')
    {'tests': 2, 'failures': 1, 'errors': 0, 'skipped': 0, 'seconds': 3.5, 'failed': ['bad']}
    """
    root = ElementTree.fromstring(report)
    suites, cases = list(root.iter("testsuite")), list(root.iter("testcase"))
    failed = [case.get("name") for case in cases if {part.tag for part in case} & {"failure", "error"}]
    numbers = ("tests", "failures", "errors", "skipped")
    found: dict[str, Any] = {name: sum(int(suite.get(name, 0)) for suite in suites) for name in numbers}
    return {**found, "seconds": sum(float(suite.get("time", 0)) for suite in suites), "failed": failed}


def _ended(process: subprocess.Popen, seconds: float) -> str:
    try:
        status = process.wait(max(seconds, 0.0))
        return "done" if status == 0 else f"failed ({status})"
    except subprocess.TimeoutExpired:
        return "out of time"
    finally:
        _end(process)


def _end(process: subprocess.Popen) -> None:
    """End a process and those that it started, first by a request."""
    for number, patience in (signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE):
        if process.poll() is not None:
            return
        os.killpg(process.pid, number)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue


def _end_of(log: Path, status: str) -> str:
    """Return the last line of what a step has said; more of it where the step is not done."""
    try:
        said = log.read_text(errors="replace")[-TAIL:]
    except OSError:
        return ""
    return said if status != "done" else "".join(said.strip().splitlines()[-1:])
