"""Seconds of whole processes that import the package or print its help, in turns."""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable

from experiments.benchmarks.processes import ROOT
from experiments.benchmarks.rows import Row, ratios, row
from experiments.benchmarks.ways import in_turns
from pyro_vae.data import Data

OPTIONS = ("rounds",)
USUAL = (
    "import pyro_vae as pv; pv.load, pv.VAE, pv.fit, pv.evaluate, pv.log_evidence; pv.priors.StandardNormal, "
    "pv.likelihoods.Bernoulli, pv.guides.MeanField, pv.networks.MLPEncoder, pv.networks.MLPDecoder"
)
COMMANDS = {
    "import of torch and pyro": ["-c", "import torch, pyro"],
    "import of pyro_vae with the usual names": ["-c", USUAL],
    "pyro-vae train --help": ["-m", "pyro_vae", "train", "--help"],
    "run.py --help": ["experiments/run.py", "--help"],
}


def rows(images: Data, args: argparse.Namespace) -> list[Row]:
    """Return seconds of each command, and the ratio of the imports."""
    seconds = in_turns({name: process(words) for name, words in COMMANDS.items()}, args.rounds, "import")
    base, own = list(seconds)[:2]
    return [
        row(f"{own} / {base.removeprefix('import ')}", ratios(seconds[own], seconds[base]), lower=True),
        *(row(name, values, "s", lower=True) for name, values in seconds.items()),
    ]


def process(words: list[str]) -> Callable[[], float]:
    """Return a function to the seconds of Python with these words."""

    def run() -> float:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, *words],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": path},
        )
        return time.perf_counter() - start

    return run
