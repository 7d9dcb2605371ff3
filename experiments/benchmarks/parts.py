"""What a training step costs under other priors and guides."""

import argparse
import statistics
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from pyro.infer import Trace_ELBO

from experiments.benchmarks.speed import ratio
from experiments.benchmarks.ways import adam, in_turns, stacked, timed, with_fast_matmul
from pyro_vae.config import PartSettings, build_vae
from pyro_vae.data import Data
from pyro_vae.training.engines import Compiled, Eager

OPTIONS = ("rounds",)
PARTS = {  # --prior and --guide of run.py; the others are compared with the first
    "standard normal, mean-field": {},
    "flow prior": {"prior": "autoregressive", "flow_depth": 4, "flow_width": 256},
    "VampPrior of 500": {"prior": "vamp", "components": 500},
    "flow guide": {"guide": "inverse-autoregressive", "flow_depth": 4, "flow_width": 256},
}


def measure(images: Data, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the cost of a step under each prior and guide, for each engine."""
    return [cost(images, engine, args.rounds) for engine in (Eager, Compiled)]


def cost(images: Data, kind: type, rounds: int, steps: int = 5, batch: int = 256) -> dict[str, Any]:
    """Return seconds a step under each prior and guide, in turns, and the median ratio to the first in one round."""
    pixels, ways = stacked(images, batch, steps * batch), {}
    for name, words in PARTS.items():
        torch.manual_seed(0)
        vae = build_vae(PartSettings(latent=32, **words), images.train.images[:1000])
        ways[name] = with_fast_matmul(timed(kind(vae, Trace_ELBO(), adam(vae))))
        ways[name](pixels[:2])
    seconds = in_turns({name: lambda run=run: run(pixels) / steps for name, run in ways.items()}, rounds, kind.name)
    return {
        "engine": kind.name,
        "seconds": seconds,
        "ratios": {name: ratio(seconds, name, next(iter(PARTS))) for name in PARTS},
    }


def table(cases: list[dict[str, Any]]) -> str:
    """Return the costs as text."""
    return "\n".join(
        f"{case['engine']:<9} {name:<28} {1e3 * statistics.median(case['seconds'][name]):7.1f} ms a step, "
        f"{case['ratios'][name]:.2f} ×"
        for case in cases
        for name in PARTS
    )


def figure(cases: list[dict[str, Any]]) -> Figure:
    """Draw the ratios."""
    drawn, axes = plt.subplots(1, len(cases), figsize=(4.5 * len(cases), 2.4), sharey=True, layout="constrained")
    for axis, case in zip(axes, cases):
        axis.barh(list(PARTS), list(case["ratios"].values()))
        axis.set(title=case["engine"], xlabel="seconds a step / those of the first")
    axes[0].invert_yaxis()
    return drawn
