"""What a training step costs as images, particles, latent dimensions or the sides of the images grow."""

import argparse
import statistics

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from pyro.infer import Trace_ELBO

from experiments.benchmarks.ways import LATENT, adam, build, timed, with_fast_matmul
from pyro_vae.data import Data
from pyro_vae.plots import COLOURS, DPI
from pyro_vae.training.engines import Eager

OPTIONS = ("rounds",)
SIZES = {"images": (32, 128, 512, 2048), "particles": (1, 4, 16, 64), "latent": (2, 8, 32, 128), "side": (14, 28, 56)}
LABELS = {
    "images": "images in a batch",
    "particles": "particles",
    "latent": "dimensions of z",
    "side": "pixels a side of the images",
}


def measure(images: Data, args: argparse.Namespace) -> dict[str, dict[int, float]]:
    """Return seconds of an eager step of the MLP as one size grows, from 128 images, 1 particle, z 20, side 28."""
    return {what: {size: step_seconds(args.rounds, **{what: size}) for size in sizes} for what, sizes in SIZES.items()}


def step_seconds(rounds: int, images: int = 128, particles: int = 1, latent: int = LATENT, side: int = 28) -> float:
    """Return the median seconds of a step."""
    vae = build("mlp", (1, side, side), latent)
    elbo = Trace_ELBO(particles, vectorize_particles=particles > 1, max_plate_nesting=1)
    run = with_fast_matmul(timed(Eager(vae, elbo, adam(vae))))
    pixels = torch.randint(256, (4, images, 1, side, side), dtype=torch.uint8)
    run(pixels)
    return statistics.median(run(pixels) / 4 for _ in range(rounds))


def table(costs: dict[str, dict[int, float]]) -> str:
    """Return the costs as text."""
    return "\n".join(
        f"{what:<10}" + "".join(f"{size:>8}: {1e3 * s:7.1f} ms" for size, s in row.items())
        for what, row in costs.items()
    )


def figure(costs: dict[str, dict[int, float]]) -> Figure:
    """Draw a panel for each size that grows."""
    drawn, axes = plt.subplots(
        1, len(costs), figsize=(1.0 + 2.0 * len(costs), 2.4), sharey=True, dpi=DPI, layout="constrained"
    )
    for axis, (what, row) in zip(axes, costs.items()):
        axis.loglog(list(row), [1e3 * seconds for seconds in row.values()], "o-", color=COLOURS[0])
        axis.set_xticks(list(row), [f"{size:,}" for size in row])
        axis.set_xticks([], minor=True)
        axis.set(xlabel=LABELS[what])
        axis.grid(alpha=0.3)
    axes[0].yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes[0].set_ylabel("milliseconds a step")
    return drawn
