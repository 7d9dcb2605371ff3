#!/usr/bin/env python
"""Which gradient estimator to take? All of them on five programs, in the course of a training.

    python experiments/atlas.py
    python experiments/atlas.py --quick

At each moment of a training every estimator that a program takes is drawn many times: variance and signal-to-noise
ratio (Rainforth et al. 2018) of the guide's and the model's gradient, seconds, and the share of the choice of images in
all variance. Each program, moment and seed leaves a file in the folder; the same command goes on where it was stopped.

    oracle      the linear Gaussian program, whose guide is the exact posterior at the start
    vae         the default convolutional VAE
    two-layer   a VAE of two stochastic layers, of the same networks
    sigmoid     a sigmoid belief network of binary units
    logistic    Bayesian logistic regression, is it an even digit, with AutoNormal
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import ELBO, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam
from torch import Tensor, nn

from experiments.atlases import answers
from experiments.discrete import SigmoidBeliefNetwork
from experiments.two_layer import TwoLayers, normal
from pyro_vae import compare_estimators, fit, fixed_x, guides, priors
from pyro_vae.comparison import candidates
from pyro_vae.config import PartSettings, build_encoder, build_likelihood, build_vae
from pyro_vae.data import Data
from pyro_vae.estimators import CIWAE, PIWAE, TVO, RenyiBound, ScoreFunction, WakeSleep
from pyro_vae.linear_gaussian import LinearGaussian
from pyro_vae.random import seeded
from pyro_vae.runs import (
    SingleRun,
    add_jobs_option,
    beside,
    describe,
    load_data,
    make_folder,
    provenance,
    run_missing,
    save_figure,
    single_runs,
    sweep_status,
    write_json,
)
from pyro_vae.runs.options import add_data_options
from pyro_vae.runs.parser import Parser

QUICK = {
    "dataset": "digits",
    "moments": [0, 30],
    "seeds": [0],
    "draws": 32,
    "batches": 2,
    "particles": [1, 4, 16],
    "engine": "eager",
}
SETTINGS = ("particles", "draws", "images", "batches", "batch", "latent", "lr")


class LogisticRegression(nn.Module):
    """p(w) = N(0, I), y_n ~ Bernoulli(σ(w · x_n)), with AutoNormal; a batch stands for all ``rows``."""

    def __init__(self, rows: int, features: int):
        super().__init__()
        self.rows, self.features = rows, features
        self.guide = AutoNormal(self.model)

    def model(self, x: Tensor, y: Tensor) -> None:
        """Sample w and y."""
        w = pyro.sample("w", dist.Normal(x.new_zeros(self.features + 1), 1.0).to_event(1))
        with pyro.plate("rows", len(x)), pyro.poutine.scale(scale=self.rows / len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x @ w[1:] + w[0]), obs=y)

    def observe(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return pixels as rows and whether the digit is even."""
        return images.flatten(1).float() / 255, (labels % 2 == 0).float()


def oracle(images: Data, args: argparse.Namespace) -> nn.Module:
    """Return the linear Gaussian program with random weights and, for these, the exact guide."""
    pixels = images.train.images[0].numel()
    return LinearGaussian(0.1 * torch.randn(pixels, args.latent), scale=0.3, shape=images.shape)


def vae(images: Data, args: argparse.Namespace) -> nn.Module:
    """Return the default VAE."""
    return build_vae(PartSettings(latent=args.latent), images.train.images)


def two_layer(images: Data, args: argparse.Namespace) -> nn.Module:
    """Return the VAE of two layers, the upper of half the dimensions."""
    parts, top = PartSettings(latent=args.latent), args.latent // 2
    first = guides.MeanField(build_encoder(parts, images.shape), args.latent)
    middle, second = normal(top, 50, args.latent), normal(args.latent, 50, top)
    return TwoLayers(priors.StandardNormal(top), middle, build_likelihood(parts, images.shape), first, second)


def sigmoid(images: Data, args: argparse.Namespace) -> nn.Module:
    """Return the sigmoid belief network."""
    return SigmoidBeliefNetwork(images.shape, units=10 * args.latent)


def logistic(images: Data, args: argparse.Namespace) -> nn.Module:
    """Return the logistic regression."""
    return LogisticRegression(len(images.train), images.train.images[0].numel())


PROGRAMS: dict[str, Callable[[Data, argparse.Namespace], Any]] = {
    "oracle": oracle,
    "vae": vae,
    "two-layer": two_layer,
    "sigmoid": sigmoid,
    "logistic": logistic,
}


def estimators(particles: list[int]) -> dict[str, ELBO]:
    """Return all estimators by name."""
    found = {**candidates(particles), "wake-sleep": WakeSleep(), "score function, K = 1": ScoreFunction()}
    for K in particles:
        if K > 1:
            found |= {f"VR-IWAE α = ½, K = {K}": RenyiBound(0.5, K), f"TVO, K = {K}": TVO(K)}
            found |= {f"CIWAE β = ½, K = {K}": CIWAE(K), f"PIWAE, M = {K}": PIWAE(1, M=K)}
    return found


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS), help="default: all")
    parser.add_argument("--moments", type=int, nargs="+", default=[0, 1, 10, 100], metavar="EPOCHS", help="of training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add_jobs_option(parser)
    parser.add_argument("--report", action="store_true", help="measure nothing: gather the runs in --out")
    group = parser.add_argument_group("programs and their training")
    group.add_argument("--latent", type=int, default=20, help="latent dimensions; binary units: ten times as many")
    group.add_argument("--batch", type=int, default=100)
    group.add_argument("--lr", type=float, default=1e-3, help="step of Adam")
    group.add_argument("--engine", default="auto", help="what takes the steps")
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    group = parser.add_argument_group("measurement")
    group.add_argument("--particles", type=int, nargs="+", default=[1, 8, 64], metavar="K")
    group.add_argument("--draws", type=int, default=200, help="of each estimator at each batch")
    group.add_argument("--images", type=int, default=16, help="training images in a batch that is measured")
    group.add_argument("--batches", type=int, default=4, help="such batches")
    add_data_options(parser, Path("figures/atlas"), "folder of the runs; JSON and figures have its name")
    parser.add_argument("--quick", action="store_true", help="few draws on the digits: at most ten minutes")
    if parser.parse_args(argv).quick:
        parser.set_defaults(**QUICK, out=Path("figures/atlas-quick"))
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return sweep_status(lambda: parse_arguments(argv), run, lambda args: gather(args.out))


def run(args: argparse.Namespace) -> int:
    """Do the cells that are not in the folder yet; return how many failed."""
    images = load_data(args)
    if args.images * args.batches > len(images.train):
        raise ValueError(f"--images × --batches: wanted at most {len(images.train)} (the training images)")
    make_folder(args.out)
    return run_missing(list(cells(images, args)), args.jobs)


def cells(images: Data, args: argparse.Namespace) -> Iterator[SingleRun]:
    """Yield a run for each seed, moment and program."""
    settings = {key: getattr(args, key) for key in SETTINGS} | {"dataset": images.name}
    for seed in args.seeds:
        for epochs in args.moments:
            for name in args.programs:
                label = f"{name}, {epochs} epochs, seed {seed}"
                entries = {"program": name, "epochs": epochs, "seed": seed, "settings": settings}
                path = args.out / f"{name}-{epochs}-seed{seed}.json"
                yield SingleRun(
                    path,
                    label,
                    {**entries, "dataset": describe(images)},
                    partial(measured, name, epochs, seed, images, args),
                    answers.line,
                )


def measured(name: str, epochs: int, seed: int, images: Data, args: argparse.Namespace) -> dict[str, Any]:
    """Return the numbers of all estimators on a program after so many epochs."""
    pyro.clear_param_store()
    torch.manual_seed(seed)
    program = PROGRAMS[name](images, args).to(images.train.images.device)
    batches = [observed(program, images, i * args.images, args.images) for i in range(args.batches)]
    if isinstance(program, LogisticRegression):
        program.guide(*batches[0])  # makes its parameters
    if epochs:
        train(program, images, epochs, seed, args)
    taken, left_out = trial(program, batches[0], estimators(args.particles))
    compared = compare_estimators(
        program, batches=batches, estimators=taken, draws=args.draws, seed=seed, progress=not args.quiet
    )
    return {"left_out": left_out, "estimators": compared.to_dict()["estimators"],
            "disagreements": [repr(pair) for pair in compared.disagreements()]}  # fmt: skip


def observed(program: Any, images: Data, start: int, count: int) -> tuple[Tensor, ...]:
    """Return the arguments of a program for some training images."""
    split = images.train[start : start + count]
    if isinstance(program, LogisticRegression):
        return program.observe(split.images, split.labels)
    x = fixed_x(program, split)
    return x if isinstance(x, tuple) else (x,)


def train(program: Any, images: Data, epochs: int, seed: int, args: argparse.Namespace) -> None:
    """Train a program; discrete latents by the score function, others by ``Trace_ELBO``."""
    if isinstance(program, LogisticRegression):
        train_regression(program, images, epochs, seed, args)
        return
    by = ScoreFunction(5, "leave-one-out") if isinstance(program, SigmoidBeliefNetwork) else Trace_ELBO()
    settings = {"epochs": epochs, "batch_size": args.batch, "lr": args.lr, "seed": seed, "engine": args.engine}
    if fit(program, images, by, **settings, progress=not args.quiet).interrupted:
        raise KeyboardInterrupt


def train_regression(program: Any, images: Data, epochs: int, seed: int, args: argparse.Namespace) -> None:
    """Train by Pyro's own SVI: w is no latent of a row, so that the bound is not one per image."""
    svi = SVI(program.model, program.guide, Adam({"lr": args.lr}), Trace_ELBO())
    with seeded(seed, images.train.images.device):
        for _ in range(epochs):
            for rows in torch.randperm(len(images.train)).split(args.batch):
                svi.step(*program.observe(images.train.images[rows], images.train.labels[rows]))


def trial(program: Any, batch: tuple[Tensor, ...], found: dict[str, ELBO]) -> tuple[dict[str, ELBO], dict[str, str]]:
    """Return the estimators that take a program, and why the others do not."""
    taken, left_out = {}, {}
    for name, elbo in found.items():
        try:
            compare_estimators(program, *batch, estimators={name: elbo}, draws=2, progress=False)
            taken[name] = elbo
        except (ValueError, NotImplementedError) as error:
            left_out[name] = str(error)
    return taken, left_out


def gather(out: Path) -> str:
    """Write all cells as one JSON file, draw a figure for each question, and return the answers."""
    found = sorted(single_runs(out).values(), key=lambda run: (run["epochs"], list(PROGRAMS).index(run["program"])))
    if not found:
        return f"{out} holds no run yet"
    write_json(beside(out, ".json"), {"versions": provenance(), "cells": found})
    for question, figure in answers.figures(found).items():
        save_figure(beside(out, f"-{question}.png"), figure)
    return answers.table(found)


if __name__ == "__main__":
    sys.exit(main())
