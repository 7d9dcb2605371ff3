"""Time to quality: seconds of training, from a cold start, until log p(x) of the test images is as published."""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pyro_vae.data import Data
from pyro_vae.plots import COLOURS, DPI, GREY
from pyro_vae.runs.resume import HISTORY
from pyro_vae.saved import METRICS, read_metrics

OPTIONS = ("seeds", "evidence")
RUN = Path(__file__).parents[1] / "run.py"
TARGET = -86.76  # nats: a VAE after 3,280 epochs, dynamically binarised MNIST (Burda et al. 2015, table 1)


def measure(images: Data, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the numbers of a run for each seed."""
    where = ["--dataset", images.name, *(["--data-dir", str(args.data_dir)] if args.data_dir else [])]
    return [trained(seed, args.evidence, args.out / f"seed{seed}", where) for seed in args.seeds]


def trained(seed: int, particles: int, out: Path, words: list[str]) -> dict[str, Any]:
    """Return the numbers of ``run.py --recipe fast``, run in its own process, with no compiled code of an earlier run.

    A run that is already in the folder is not repeated. Raises CalledProcessError if the command fails, ValueError
    if log p(x) of that run was measured with another number of particles, or ``particles`` is not positive.
    """
    if particles < 1:
        raise ValueError(f"--evidence: wanted at least 1 particle, got {particles}")
    command = [
        sys.executable,
        str(RUN),
        "--recipe",
        "fast",
        "--seed",
        str(seed),
        "--evidence",
        str(particles),
        "--quiet",
        "--resume",
        "--out",
        str(out),
        *words,
    ]
    with tempfile.TemporaryDirectory() as cache:
        subprocess.run(command, check=True, env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache})
    metrics = read_metrics(out / METRICS)
    found = metrics["evidence"]["num_particles"]
    if found != particles:
        raise ValueError(
            f"{out} holds a run whose log p(x) is by {found} particles, wanted {particles}; give another --out"
        )
    with (out / HISTORY).open() as file:
        history = [{name: float(row[name]) for name in ("seconds", "valid_bound")} for row in csv.DictReader(file)]
    return {
        "seed": seed,
        "seconds": metrics["seconds"]["training"],
        "settings": metrics["settings"],
        "dataset": metrics["dataset"],
        "test": metrics["test"],
        "evidence": metrics["evidence"],
        "history": history,
    }


def table(runs: list[dict[str, Any]]) -> str:
    """Return the runs as text."""
    lines = [f"{'seed':<6} {'seconds of training':>20} {'log p(x), nats':>20} {'k̂ > 0.7':>9}   published: {TARGET}"]
    for run in runs:
        evidence = run["evidence"]
        share = evidence["share_pareto_k_above_0.7"]
        verdict = "reached" if evidence["log_px"] >= TARGET else f"missed by {TARGET - evidence['log_px']:.2f}"
        value = f"{evidence['log_px']:.2f} ± {evidence['standard_error']:.2f}"
        lines.append(
            f"{run['seed']:<6} {run['seconds']:>20.0f} {value:>20} "
            f"{'' if share is None else format(share, '.1%'):>9}   {verdict}"
        )
    first = runs[0]["evidence"]
    return "\n".join(
        [
            *lines,
            f"log p(x): at least, by importance sampling, {first['num_particles']} particles, "
            f"{first['images']} test images",
        ]
    )


def figure(runs: list[dict[str, Any]]) -> Figure:
    """Draw the bound against seconds, with log p(x) at the end."""
    drawn = Figure(figsize=(6.5, 3.6), dpi=DPI, layout="constrained")
    axes = drawn.subplots()
    for colour, run in zip(cycle(COLOURS), runs):
        seconds, bounds = ([row[name] for row in run["history"]] for name in ("seconds", "valid_bound"))
        axes.plot(seconds, bounds, color=colour, label=f"bound on validation images, seed {run['seed']}")
        axes.plot(run["seconds"], run["evidence"]["log_px"], "*", ms=11, color=colour)
    axes.plot([], [], "k*", label="log p(x) of the test images")
    axes.axhline(TARGET, color=GREY, linestyle="--", label=f"published after 3,280 epochs: {TARGET}")
    axes.set(
        xlabel="seconds of training, compiling included",
        ylabel="nats per image",
        xlim=(0, None),
        ylim=(TARGET - 25, TARGET + 4),
    )
    axes.legend(fontsize="small", loc="lower right")
    axes.grid(alpha=0.3)
    return drawn
