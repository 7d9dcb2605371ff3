#!/usr/bin/env python
"""Does ``best_estimator`` find the estimator of the least variance × seconds? Asked on ten small programs.

    python experiments/best.py
    python experiments/best.py --quick

Each program is ranked twice, by other random numbers: in ``--seconds``, and in ten times as many, which is the truth.
The choice is right where its score in the long ranking is within 10 % of the best one there; a choice that the long
ranking cannot tell apart from its best is counted apart. Each program leaves a file in the folder; the same command
goes on where it was stopped.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch

from experiments.benchmarks import svi_programs
from experiments.discrete import CategoricalVAE, SigmoidBeliefNetwork
from experiments.two_layer import TwoLayers, normal
from pyro_vae import VAE, best_estimator, fixed_x, guides, likelihoods, networks, priors
from pyro_vae.comparison import Ranking
from pyro_vae.config import PartSettings, build_vae
from pyro_vae.data import Data
from pyro_vae.linear_gaussian import LinearGaussian
from pyro_vae.runs import (
    SingleRun,
    beside,
    describe,
    load_data,
    make_folder,
    provenance,
    run_missing,
    single_runs,
    sweep_status,
    write_json,
)
from pyro_vae.runs.options import add_data_options
from pyro_vae.runs.parser import Parser

QUICK = {"dataset": "digits", "seconds": 0.2, "programs": ["oracle", "eight_schools"]}
CLOSE = 1.1  # a score is as good as the best up to this factor
LONGER = 10  # times the seconds, for the truth
OF_SVI = ("logistic_normal", "bayesian_regression", "eight_schools", "baseball")
Program = tuple[Any, tuple]  # the program, or model and guide, and the arguments


def mlp(images: Data) -> Any:
    """Return a VAE of dense networks."""
    likelihood = likelihoods.Bernoulli(networks.MLPDecoder(4, images.shape, maps=1, hidden=(32,)))
    return VAE(priors.StandardNormal(4), likelihood, guides.MeanField(networks.MLPEncoder(images.shape, (32,)), 4))


def conv(images: Data) -> Any:
    """Return the default VAE, of convolutional networks."""
    return build_vae(PartSettings(latent=10), images.train.images)


def two_layer(images: Data) -> Any:
    """Return a VAE of two layers of dense networks."""
    likelihood = likelihoods.Bernoulli(networks.MLPDecoder(8, images.shape, maps=1, hidden=(32,)))
    first = guides.MeanField(networks.MLPEncoder(images.shape, (32,)), 8)
    return TwoLayers(priors.StandardNormal(4), normal(4, 16, 8), likelihood, first, normal(8, 16, 4))


def oracle(images: Data) -> Any:
    """Return the linear Gaussian program, whose guide is near the exact one."""
    program = LinearGaussian(0.1 * torch.randn(images.train.images[0].numel(), 4), scale=0.3, shape=images.shape)
    with torch.no_grad():
        next(program.posterior.parameters()).add_(0.02)
    return program


OF_IMAGES: dict[str, Callable[[Data], Any]] = {
    "mlp": mlp,
    "conv": conv,
    "two-layer": two_layer,
    "oracle": oracle,
    "sigmoid": lambda images: SigmoidBeliefNetwork(images.shape, units=20),
    "categorical": lambda images: CategoricalVAE(images.shape, units=4, values=5, hidden=32),
}
PROGRAMS = (*OF_IMAGES, *OF_SVI)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS), help="default: all")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a ranking; the truth takes ten times as many")
    parser.add_argument("--images", type=int, default=16, help="training images in the batch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--report", action="store_true", help="measure nothing: gather the runs in --out")
    add_data_options(parser, Path("figures/best"), "folder of the runs; the JSON has its name")
    parser.set_defaults(dataset="digits", jobs=1)
    parser.add_argument("--quick", action="store_true", help="two programs, a second each")
    if parser.parse_args(argv).quick:
        parser.set_defaults(**QUICK, out=Path("figures/best-quick"))
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return sweep_status(lambda: parse_arguments(argv), run, lambda args: gather(args.out))


def run(args: argparse.Namespace) -> int:
    """Rank the programs that are not in the folder yet; return how many failed."""
    images = load_data(args)
    make_folder(args.out)
    return run_missing(list(cells(images, args)), 1)  # one at a time: others would take seconds from it


def cells(images: Data, args: argparse.Namespace) -> Iterator[SingleRun]:
    """Yield a run for each program."""
    settings = {key: getattr(args, key) for key in ("seconds", "images")} | {"dataset": images.name}
    for name in args.programs:
        entries = {"program": name, "seed": args.seed, "settings": settings, "dataset": describe(images)}
        path = args.out / f"{name}-seed{args.seed}.json"
        yield SingleRun(path, name, entries, partial(ranked, name, images, args), line)


def ranked(name: str, images: Data, args: argparse.Namespace) -> dict[str, Any]:
    """Return both rankings of a program, and for each bound what was chosen and how good it is."""
    pyro.clear_param_store()
    torch.manual_seed(args.seed)
    given = case(name, images, args.images)
    short, long = (
        best_estimator(*given, seconds=args.seconds * times, seed=args.seed + times, progress=not args.quiet)
        for times in (1, LONGER)
    )
    choices = {target: choice(short, long, target) for target in short.targets}
    return {"choices": choices, "short": short.to_dict(), "long": long.to_dict()}


def case(name: str, images: Data, count: int) -> tuple[Any, ...]:
    """Return a program, or its model and guide, and the arguments."""
    if name in OF_SVI:
        found = svi_programs.PROGRAMS[name]()
        found.guide(*found.args)  # makes its parameters
        return found.model, found.guide, *found.args
    program = OF_IMAGES[name](images)
    x = fixed_x(program, images.train[:count])
    return program, *(x if isinstance(x, tuple) else (x,))


def choice(short: Ranking, long: Ranking, target: str) -> dict[str, Any]:
    """Return what the short ranking chose of a bound, and its score over that of the best in the long one."""
    scores = {entry.name: entry.score.value for entry in long.entries}
    chosen, best = short.best(target), long.best(target)
    return {
        "chosen": chosen,
        "best": best,
        "ratio": scores[chosen] / scores[best] if scores[best] else float(chosen == best),
        "tied": chosen in long.tied(target),
    }


def line(cell: dict[str, Any]) -> str:
    """Return the choice of the first bound as a line."""
    target, found = next(iter(cell["choices"].items()))
    return f"{target}: {found['chosen']}, {found['ratio']:.2f} times the score of {found['best']}{_tie(found)}"


def _tie(found: dict[str, Any]) -> str:
    return ", which cannot be told apart" if found["tied"] and found["chosen"] != found["best"] else ""


def table(cells: list[dict[str, Any]]) -> str:
    """Return the choices as text, and how many are right."""
    lines = [f"{cell['program']:20} {line(cell)}" for cell in cells]
    firsts = [next(iter(cell["choices"].values())) for cell in cells]
    every = [found for cell in cells for found in cell["choices"].values()]
    for what, found in (("first bound of each program", firsts), ("all bounds", every)):
        close = sum(each["ratio"] <= CLOSE for each in found)
        tied = sum(each["ratio"] > CLOSE and each["tied"] for each in found)
        lines.append(f"{what}: {close} of {len(found)} within 10 % of the best, {tied} more cannot be told apart")
    return "\n".join(lines)


def gather(out: Path) -> str:
    """Write all cells as one JSON file, and return the choices."""
    found = sorted(single_runs(out).values(), key=lambda run: PROGRAMS.index(run["program"]))
    write_json(beside(out, ".json"), {"versions": provenance(), "cells": found})
    return table(found)


if __name__ == "__main__":
    sys.exit(main())
