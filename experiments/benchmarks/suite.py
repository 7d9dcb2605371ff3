"""Seconds of the test suite, by README's command, once."""

import argparse
import subprocess
import sys
import time

from experiments.benchmarks.processes import ROOT
from experiments.benchmarks.rows import Row, row
from pyro_vae.data import Data

OPTIONS = ()


def rows(images: Data, args: argparse.Namespace) -> list[Row]:
    """Return the seconds; raise CalledProcessError if a test fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "auto", "--dist", "worksteal"]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    return [row("test suite", [time.perf_counter() - start])]
