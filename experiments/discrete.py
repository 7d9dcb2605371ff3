#!/usr/bin/env python
"""Discrete latents: a sigmoid belief network and a VAE with categorical units, trained by the score function.

    python experiments/discrete.py
    python experiments/discrete.py --quick

Both programs are below: ``SigmoidBeliefNetwork`` has 200 binary units, ``CategoricalVAE`` 20 units of 10 values each.
``ScoreFunction`` with its leave-one-out baseline trains them, ``log_evidence`` scores them: no part of either knows
that the latents are discrete. A third run trains the first program without the baseline.

The results, as JSON, are the bound, L_K, and the variance of the gradient with and without the baseline; the pictures
are samples, reconstructions and these variances. Each run leaves a file in the folder, and the same command goes on
where it was stopped.
"""

import argparse
import math
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Generator, Tensor, nn

from pyro_vae import Checkpoints, UntrustedEvidence, compare_estimators, evaluate, fit, log_evidence
from pyro_vae.data import Data
from pyro_vae.estimators import ScoreFunction
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.networks import MLPDecoder
from pyro_vae.plots import estimator_variance, image_rows
from pyro_vae.random import mode, seeded
from pyro_vae.runs import (
    SingleRun,
    add_jobs_option,
    beside,
    describe,
    estimate,
    load_data,
    make_folder,
    run_missing,
    save_figure,
    single_runs,
    sweep_status,
    write_json,
)
from pyro_vae.runs.options import add_data_options
from pyro_vae.runs.parser import Parser
from pyro_vae.training import warm_cosine

QUICK = {"dataset": "digits", "epochs": 3, "batch": 128, "images": 50, "particles": 100, "draws": 40}
SETTINGS = ("epochs", "batch", "lr", "draws_of_a_step", "images", "particles", "draws", "compared")
SHOWN = 10  # images in a row of the pictures


class SigmoidBeliefNetwork(nn.Module):
    """p(z) p(x | z) of binary units, one layer each way (Neal 1992; Mnih & Gregor 2014).

    z_i ~ Bernoulli(σ(a_i)), x_j ~ Bernoulli(σ((W z + b)_j)), q(z_i | x) = Bernoulli(σ((V x + c)_i)). All units are one
    site, whose event they are, so that the only plate is that over the images.
    """

    def __init__(self, shape: tuple[int, int, int], units: int = 200):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(units))
        self.likelihood = Bernoulli(MLPDecoder(units, shape, maps=1, hidden=()))
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), units))

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """Sample z and x; x is observed if it is given."""
        with pyro.plate("images", n if x is None else len(x)):
            z = pyro.sample("z", dist.Bernoulli(logits=self.logits).to_event(1))
            return pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x: Tensor) -> Tensor:
        """Sample z given x."""
        with pyro.plate("images", len(x)):
            return pyro.sample("z", dist.Bernoulli(logits=self.encoder(x)).to_event(1))

    def observe(self, batch: Any, generator: Generator | None = None) -> Tensor:
        """Return x in black and white, drawn anew from the grey levels of each batch."""
        return self.likelihood.observe(batch.images, generator)


class CategoricalVAE(nn.Module):
    """p(z) p(x | z) of units with several values, each a one-hot vector: z has the event (units, values)."""

    def __init__(self, shape: tuple[int, int, int], units: int = 20, values: int = 10, hidden: int = 200):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(units, values))
        self.likelihood = Bernoulli(MLPDecoder(units * values, shape, maps=1, hidden=(hidden,)))
        layers = nn.Flatten(), nn.Linear(math.prod(shape), hidden), nn.ReLU(), nn.Linear(hidden, units * values)
        self.encoder = nn.Sequential(*layers, nn.Unflatten(-1, (units, values)))

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """Sample z and x; x is observed if it is given."""
        with pyro.plate("images", n if x is None else len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=self.logits).to_event(1))
            return pyro.sample("x", self.likelihood(z.flatten(-2)), obs=x)

    def guide(self, x: Tensor) -> Tensor:
        """Sample z given x."""
        with pyro.plate("images", len(x)):
            return pyro.sample("z", dist.OneHotCategorical(logits=self.encoder(x)).to_event(1))

    def observe(self, batch: Any, generator: Generator | None = None) -> Tensor:
        """Return x in black and white, drawn anew from the grey levels of each batch."""
        return self.likelihood.observe(batch.images, generator)


class Way(NamedTuple):
    """A program and how it is trained."""

    title: str
    program: type[nn.Module]
    baseline: str | None = "leave-one-out"


WAYS = {
    "binary": Way("200 binary units", SigmoidBeliefNetwork),
    "categorical": Way("20 units of 10 values", CategoricalVAE),
    "binary-without": Way("200 binary units, no baseline", SigmoidBeliefNetwork, None),
}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="the runs (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    add_jobs_option(parser)
    parser.add_argument("--report", action="store_true", help="train nothing: gather the runs in --out")
    group = parser.add_argument_group("training, by ScoreFunction")
    group.add_argument("--epochs", type=int, default=30)
    group.add_argument("--batch", type=int, default=100)
    group.add_argument("--lr", type=float, default=3e-3, help="largest step of Adam")
    group.add_argument("--draws-of-a-step", type=int, default=5, metavar="K", help="draws of z per image in a step")
    group.add_argument("--engine", default="auto", help="what takes the steps")
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    group = parser.add_argument_group("measurement")
    group.add_argument("--particles", type=int, default=1000, metavar="K", help="particles of L_K")
    group.add_argument("--images", type=int, default=1000, help="test images for L_K; the bound is that of all")
    group.add_argument("--draws", type=int, default=500, help="draws of each estimator of the gradient")
    group.add_argument("--compared", type=int, default=16, help="training images for the estimators")
    add_data_options(parser, Path("figures/discrete"), "folder of the runs; JSON and pictures have its name")
    parser.add_argument("--quick", action="store_true", help="a few epochs on the digits: seconds")
    if parser.parse_args(argv).quick:
        parser.set_defaults(**QUICK, out=Path("figures/discrete-quick"))
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return sweep_status(lambda: parse_arguments(argv), run, lambda args: gather(args.out, args.seed))


def run(args: argparse.Namespace) -> int:
    """Do the runs that are not in the folder yet; return how many failed."""
    images = load_data(args)
    if not 1 <= args.images <= len(images.test):
        raise ValueError(f"--images: wanted 1 to {len(images.test)} (the test images), got {args.images}")
    make_folder(args.out)
    settings = {key: getattr(args, key) for key in SETTINGS} | {"dataset": images.name}
    entries = {"seed": args.seed, "settings": settings, "dataset": describe(images)}
    runs = [
        SingleRun(
            args.out / f"{name}-seed{args.seed}.json",
            WAYS[name].title,
            {"way": name, **entries},
            partial(train_and_measure, name, images, args),
            summary,
        )
        for name in args.ways
    ]
    return run_missing(runs, args.jobs)


def train_and_measure(name: str, images: Data, args: argparse.Namespace) -> dict[str, Any]:
    """Return the numbers of one run; its picture is written beside its file."""
    torch.manual_seed(args.seed)
    program = WAYS[name].program(images.shape).to(images.train.images.device)
    history = fit(
        program,
        images,
        ScoreFunction(args.draws_of_a_step, WAYS[name].baseline),
        epochs=args.epochs,
        batch_size=args.batch,
        lr=args.lr,
        schedule=warm_cosine,
        seed=args.seed,
        engine=args.engine,
        checkpoints=Checkpoints(args.out / f"{name}-seed{args.seed}", resume=True),
        progress=not args.quiet,
    )
    if history.interrupted:
        raise KeyboardInterrupt
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrustedEvidence)  # the results hold the share of these images
        evidence = log_evidence(program, images.test[: args.images], args.particles, seed=args.seed)
    compared = compare_estimators(
        program,
        images.train[: args.compared],
        estimators={
            "score function": ScoreFunction(args.draws_of_a_step),
            "leave-one-out": ScoreFunction(args.draws_of_a_step, "leave-one-out"),
        },
        draws=args.draws,
        seed=args.seed,
        progress=not args.quiet,
    )
    save_figure(args.out / f"{name}-seed{args.seed}.png", picture(program, images, args.seed, WAYS[name].title))
    return {
        "test": evaluate(program, images.test, seed=args.seed).summary(),
        "evidence": evidence.to_dict(),
        "estimators": compared.to_dict(),
        "parameters": sum(parameter.numel() for parameter in program.parameters()),
        "engine": history.engine,
        "history": history.rows,
    }


@torch.no_grad()
def picture(program: Any, images: Data, seed: int, title: str) -> Any:
    """Return a figure of test images, their reconstructions, and samples: means of p(x | z)."""
    x = program.observe(images.test[:SHOWN])
    with seeded(seed, x.device), mode(program, training=False):
        drawn = poutine.trace(program.guide).get_trace(x)
        reconstructed = poutine.trace(poutine.replay(program.model, drawn)).get_trace(x).nodes["x"]["fn"].mean
        sampled = poutine.trace(program.model).get_trace(n=SHOWN).nodes["x"]["fn"].mean
    return image_rows({"original": x, "reconstruction": reconstructed, "sample": sampled}, SHOWN, title)


def summary(result: dict[str, Any]) -> str:
    """Return the numbers of one run as a line."""
    test, evidence, compared = result["test"], result["evidence"], result["estimators"]["estimators"]
    without, with_it = (compared[name]["guide"]["variance"]["value"] for name in ("score function", "leave-one-out"))
    return (
        f"test bound {estimate(test['bound'], test['standard_error'])} nats per image ({test['images']} images), "
        f"L_{evidence['num_particles']} {estimate(evidence['log_px'], evidence['standard_error'])} "
        f"({evidence['images']} images), variance of the guide's gradient {without:.3g} without and {with_it:.3g} "
        "with the baseline"
    )


def gather(out: Path, seed: int) -> str:
    """Write all runs of a seed as one JSON file, draw the variances, and return the table."""
    found = {run["way"]: run for run in single_runs(out).values() if run["seed"] == seed}
    runs = {name: found[name] for name in WAYS if name in found}
    write_json(beside(out, ".json"), {"runs": runs})
    stages = {WAYS[name].title: run["estimators"] for name, run in runs.items()}
    save_figure(beside(out, ".png"), estimator_variance(stages, "gradient at the end of training"))
    return "\n".join(f"{WAYS[name].title}: {summary(run)}" for name, run in runs.items())


if __name__ == "__main__":
    sys.exit(main())
