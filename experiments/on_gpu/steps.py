"""The steps of ``gpu``, most important first, and how the time is shared out among them."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
MARKED = (  # all files with tests marked ``gpu``
    "tests/training/test_on_gpu.py",
    "tests/training/test_graphed.py",
    "tests/compiling/test_captured.py",
)


@dataclass(frozen=True)
class Step:
    """A step of the measurement.

    Attributes:
        name: of the step.
        share: of the time that is left, in proportion to those of this step and all after it.
        command: the command line.
        results: the file that it writes, JSON or, of tests, XML.
    """

    name: str
    share: float
    command: tuple[str, ...]
    results: Path | None = None


def steps(device: str, work: Path) -> list[Step]:
    """Return the steps on a device, ``cuda``, or ``cpu`` for a trial in which each of them is small.

    >>> [step.name for step in steps("cuda", Path("work"))]
    ['tests', 'speed', 'quality', 'evidence', 'iwae']
    """
    small = device == "cpu"
    evidence = work / "evidence"

    def module(name: str, share: float) -> Step:
        file = work / f"{name}.json"
        command = (sys.executable, "-m", f"experiments.on_gpu.{name}", "--device", device, "--out", str(file))
        return Step(name, share, command, file)

    run = work / ("quality-1" if small else "quality-14")
    return [
        Step("tests", 2.0, _tests(small, work), work / "tests.xml"),
        module("speed", 4.0),
        module("quality", 3.0),
        Step("evidence", 2.0, _evidence(device, run, evidence), evidence / "metrics.json"),
        module("iwae", 1.5),
    ]


def limits(shares: Sequence[float], seconds: float) -> float:
    """Return the seconds of the first of some steps, of all that are left.

    >>> limits([3.0, 1.0], 100.0)
    75.0
    """
    return seconds * shares[0] / sum(shares)


def _tests(small: bool, work: Path) -> tuple[str, ...]:
    """Return the command of the tests that need a GPU; on a CPU one test of the simulation stands for them.

    Warnings of other versions of packages than those of the suite are no failures here.
    """
    chosen = [MARKED[0], "-k", "rules"] if small else [*MARKED, "-m", "gpu"]
    options = ["-q", "-W", "default", "-p", "no:cacheprovider", f"--junitxml={work / 'tests.xml'}"]
    together = [] if small or find_spec("xdist") is None else ["-n", "8"]  # compiling them takes the CPU's time
    return (sys.executable, "-m", "pytest", *options, *together, *chosen)


def _evidence(device: str, run: Path, out: Path) -> tuple[str, ...]:
    """Return the command of L_K of all test images, and of annealing for some."""
    many = {"images": "2", "particles": "20", "temperatures": "2", "simulated": "2", "chains": "2"}
    if device != "cpu":
        many = {"images": "200", "particles": "5000", "temperatures": "300", "simulated": "100", "chains": "8"}
    words = [word for name, value in many.items() for word in (f"--{name}", value)]
    command = (sys.executable, "experiments/evidence.py", "--run", str(run), "--device", device, "--quiet", "--all")
    return (*command, "--out", str(out), "--overwrite", *words)
