"""What is left of a step's speed while another process keeps one core busy, in turns with quiet rounds."""

import argparse
from contextlib import nullcontext

from torch import Tensor
from tqdm import tqdm

from experiments.benchmarks.busy import busy_core
from experiments.benchmarks.rows import Row, ratios, row
from experiments.benchmarks.ways import NAMES, WAYS, Round, stacked
from pyro_vae.data import Data

OPTIONS = ("batches", "rounds")
COMPARED = ("compiled", "compiled bfloat16", "torch eager", "torch whole step", "numpyro")
STEPS = 8  # in a call of a way, which can take seconds beside a busy core
LEAST = 1.0  # seconds of a way in a round, at least: several time slices of the kernel


def rows(images: Data, args: argparse.Namespace) -> list[Row]:
    """Return for each way the share of its quiet speed, and its images a second beside the busy core."""
    batch, net = args.batches[0], "mlp"
    pixels = stacked(images, batch, STEPS * batch)
    ways = {name: WAYS[name](net) for name in COMPARED if name in WAYS}
    for run in ways.values():
        run(pixels)
    quiet, busy = ({name: [] for name in ways} for _ in range(2))
    for _ in tqdm(range(args.rounds), desc="busy core"):
        for rates, load in (quiet, nullcontext), (busy, busy_core):
            with load():
                for name, run in ways.items():
                    rates[name].append(rate(run, pixels))
    return rows_of(f"{NAMES[net]}, batch {batch}: ", quiet, busy)


def rows_of(about: str, quiet: dict[str, list[float]], busy: dict[str, list[float]]) -> list[Row]:
    """Return the rows of images a second."""
    left = {name: [100 * share for share in ratios(busy[name], quiet[name])] for name in quiet}
    return [
        *(row(f"{about}speed left beside a busy core, {name}", shares, "%") for name, shares in left.items()),
        *(row(f"{about}{name}, beside a busy core", rates, "images/s") for name, rates in busy.items()),
    ]


def rate(run: Round, pixels: Tensor) -> float:
    """Return images a second, over at least ``LEAST`` seconds."""
    times, seconds = 0, 0.0
    while seconds < LEAST:
        seconds += run(pixels)
        times += 1
    return times * pixels.shape[0] * pixels.shape[1] / seconds
