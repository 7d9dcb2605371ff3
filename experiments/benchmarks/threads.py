"""The compiled step on all cores against one thread, in each precision, in turns in one process."""

import argparse
from collections.abc import Callable

import torch

from experiments.benchmarks.rows import Row, ratios, row
from experiments.benchmarks.ways import NAMES, WAYS, Round, in_turns, stacked
from pyro_vae.data import Data
from pyro_vae.parallel import threads, usable_cores

OPTIONS = ("nets", "batches", "images", "rounds")
COMPILED = ("compiled", "compiled bfloat16")


def rows(images: Data, args: argparse.Namespace) -> list[Row]:
    """Return the ratio for each net, batch size and precision; raise ValueError on a single core."""
    if usable_cores() < 2:
        raise ValueError("wanted at least two cores for this process, got one; widen its affinity or its quota")
    return [row for net in args.nets for batch in args.batches for row in compare(images, net, batch, args)]


def compare(images: Data, net: str, batch: int, args: argparse.Namespace) -> list[Row]:
    """Return the ratios of one net and batch size."""
    pixels, made = stacked(images, batch, args.images), {}
    for name in COMPILED:
        for number in (1, usable_cores()):
            made[name, number] = on_threads(WAYS[name], net, number)
            made[name, number](pixels[:2])
    about = f"{NAMES[net]}, batch {batch}: all cores / one thread, "
    ways = {key: lambda run=run: run(pixels) for key, run in made.items()}
    seconds = in_turns(ways, args.rounds, f"{net}, batch {batch}, threads")
    return [row(about + name, ratios(seconds[name, 1], seconds[name, usable_cores()])) for name in COMPILED]


def on_threads(make: Callable[[str], Round], net: str, number: int) -> Round:
    """Make and run a way with so many threads, from which a compiled step takes the number of its shards."""
    with threads(number):
        run = make(net)

    def limited(pixels: torch.Tensor) -> float:
        with threads(number):
            return run(pixels)

    return limited
