"""Two processes against one on the same cores.

    torchrun --nproc-per-node=2 -m experiments.benchmarks.ranks NET BATCH IMAGES

prints the images a second of one training.
"""

import argparse
import json
import statistics
import sys
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

from experiments.benchmarks.processes import measured_by, random_images
from experiments.benchmarks.ways import build
from pyro_vae import fit
from pyro_vae.data import Data
from pyro_vae.training import ranks

OPTIONS = ("nets", "batches", "rounds", "images")
EPOCHS = 4  # the first compiles and does not count


def measure(images: Data, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return images a second of ``fit``, compiled: all cores in one process, and shared by two, in turns."""
    return [compare(net, batch, args) for net in args.nets for batch in args.batches]


def compare(net: str, batch: int, args: argparse.Namespace) -> dict[str, Any]:
    """Return the rates of one net and batch size in every round, and their median ratio."""
    rounds = [{ranks: rate(ranks, net, batch, args.images) for ranks in ("1", "2")} for _ in range(args.rounds)]
    return {
        "net": net,
        "batch": batch,
        "images_per_second": rounds,
        "ratio": statistics.median(row["2"] / row["1"] for row in rounds),
    }


def rate(ranks: str, net: str, batch: int, images: int) -> float:
    """Return images a second of so many ranks."""
    threads = max(1, torch.get_num_threads() // int(ranks))
    words = [
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
        "-m",
        "experiments.benchmarks.ranks",
        net,
        str(batch),
        str(images),
    ]
    return measured_by(words, {"OMP_NUM_THREADS": str(threads)})


def trained(net: str, batch: int, images: int) -> float:
    """Return images a second of this training, of all ranks together."""
    rows = fit(
        build(net), random_images(images), epochs=EPOCHS, batch_size=batch, engine="compiled", progress=False
    ).rows
    return (EPOCHS - 1) * images / (rows[-1]["seconds"] - rows[0]["seconds"])


def table(cases: list[dict[str, Any]]) -> str:
    """Return the rates as text."""
    return "\n".join(
        f"{case['net']}, batch {case['batch']}: "
        + ", ".join(
            f"{ranks} {'ranks' if ranks > '1' else 'rank'} "
            f"{statistics.median(row[ranks] for row in case['images_per_second']):,.0f} images/s"
            for ranks in ("1", "2")
        )
        + f", ratio {case['ratio']:.2f}"
        for case in cases
    )


def figure(cases: list[dict[str, Any]]) -> Figure:
    """Draw the ratios."""
    drawn, axes = plt.subplots(figsize=(6, 2.5), layout="constrained")
    for case in cases:
        ratios = [row["2"] / row["1"] for row in case["images_per_second"]]
        axes.plot(ratios, [f"{case['net']}, batch {case['batch']}"] * len(ratios), "o")
    axes.axvline(1, color="k", linewidth=0.5)
    axes.set(xlabel="images a second, two ranks / one rank on the same cores", xlim=(0, None))
    return drawn


if __name__ == "__main__":
    with ranks.processes():
        found = trained(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
        if ranks.rank() == 0:
            print(json.dumps(found))
