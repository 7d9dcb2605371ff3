#!/usr/bin/env python
"""A digit given its class: p(x | z, y) q(z | x, y) as a program of 25 lines, trained and measured as any other.

    python experiments/conditional.py
    python experiments/conditional.py --quick

The program is ``Conditional`` below. On the test images, in nats per image: the bound; log p(x | y) at least, by L_K;
log p(x) at least, by the sum over all y with their shares of the training labels; and log p(x | y) − log p(x), which is
log p(y | x) / p(y) and at most −log p(y) = 2.3 where ten classes have equal shares. As a check of sense, the class of
the largest log p(x | y) + log p(y). The guide was trained with true labels, so that L_K may be less tight for a wrong
one, which counts in favour of the true class. Results: <out>.json, and <out>.png, samples of each class, in which the
images of a column share their z.

The training is saved as it goes on, in --out: the same command continues one that was interrupted.
"""

import argparse
import sys
import time
import warnings
from math import prod
from pathlib import Path
from typing import Any

import pyro
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from pyro_vae import Checkpoints, UntrustedEvidence, guides, likelihoods, log_evidence, networks, one_hot, plots, priors
from pyro_vae.checks import whole_number
from pyro_vae.data import Data, Split
from pyro_vae.random import mode, seeded
from pyro_vae.runs import (
    beside,
    describe,
    estimate,
    exit_status,
    load_data,
    make_folder,
    over_images,
    run_once,
    save_figure,
    single_runs,
    trained,
    write_json,
)
from pyro_vae.runs.options import add_data_options, add_quick, add_training_options, parsed
from pyro_vae.runs.parser import Parser
from pyro_vae.training import evaluate, fixed_x

COMMON = ("latent", "width", "estimator", "epochs", "batch", "lr", "schedule", "particles", "images")
QUICK = {
    "dataset": "digits",
    "latent": 8,
    "width": 64,
    "epochs": 60,
    "particles": 20,
    "quiet": True,
    "out": Path("figures/conditional_quick"),
}
MEASURED = 2000  # test images for L_K
ACROSS = 10  # samples of each class in the picture


class Conditional(nn.Module):
    """p(z) p(x | z, y), q(z | x, y): the label is one more input of the decoder and of the encoder."""

    def __init__(self, shape: tuple[int, int, int], classes: int = 10, latent: int = 50, width: int = 500):
        super().__init__()
        self.classes, self.prior = classes, priors.StandardNormal(latent)
        self.likelihood = likelihoods.Bernoulli(networks.MLPDecoder(latent + classes, shape, 1, (width, width)))
        layers = nn.Linear(prod(shape) + classes, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        self.posterior = guides.MeanField(nn.Sequential(*layers), latent, features=width)

    def model(self, x: Tensor | None, y: Tensor) -> Tensor:
        """Sample z and x; x is observed if it is given."""
        with pyro.plate("images", len(y)):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.likelihood(self.labelled(z, y)), obs=x)

    def guide(self, x: Tensor, y: Tensor) -> Tensor:
        """Sample z given x and y."""
        with pyro.plate("images", len(y)):
            return pyro.sample("z", self.posterior(self.labelled(x.flatten(-3), y)))

    def observe(self, batch: Split, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return x and y, the arguments of model and guide, of a batch of rows."""
        return self.likelihood.observe(batch.images, generator), batch.labels

    def labelled(self, value: Tensor, y: Tensor) -> Tensor:
        """Return values (..., n) with the label of each row behind them, (..., n + classes)."""
        return torch.cat([value, one_hot(y, self.classes).expand(*value.shape[:-1], -1)], -1)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--latent", type=int, default=50, metavar="D", help="dimensions of z")
    parser.add_argument("--width", type=int, default=500, metavar="UNITS", help="of the two hidden layers of a network")
    group = add_training_options(parser, epochs=12, lr=2e-3)
    group.add_argument("--seed", type=int, default=0)
    parser.set_defaults(estimator="meanfield")
    group = parser.add_argument_group("measurement, on test images")
    group.add_argument("--particles", type=int, default=100, metavar="K", help="particles of L_K, for each class")
    group.add_argument("--images", type=int, default=None, help="of them, for L_K (default: 2,000, or all)")
    add_data_options(parser, Path("figures/conditional"), "folder of the run; results have its name")
    add_quick(parser, argv, QUICK, "small networks on the digits, few epochs: seconds")
    return parsed(parser, argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(lambda: parse_arguments(argv), run, "what was trained is in {out}; the same command goes on")


def run(args: argparse.Namespace) -> None:
    """Train, measure and draw the program; print the results."""
    images = load_data(args)
    for name in ("latent", "width", "particles"):
        whole_number(f"--{name}", getattr(args, name))
    if images.train.labels is None:
        raise ValueError(f"--dataset: wanted images with labels, got {images.name}, which has none")
    args.images = whole_number("--images", args.images or min(MEASURED, len(images.test)), most=len(images.test))
    make_folder(args.out)
    path = args.out / f"{images.name}-seed{args.seed}.json"
    settings = {"dataset": images.name, **{name: getattr(args, name) for name in COMMON}}
    entries = {"seed": args.seed, "settings": settings, "dataset": describe(images)}
    program, history = build(images, args)
    run_once(path, f"{images.name}, seed {args.seed}", entries, lambda: measured(program, history, images, args), line)
    result = single_runs(args.out)[path]
    save_figure(beside(args.out, ".png"), picture(program, args.seed))
    write_json(beside(args.out, ".json"), result)
    print(report(result))


def build(images: Data, args: argparse.Namespace) -> tuple[Conditional, Any]:
    """Return the program, trained, and its history; a training that has ended is read from its checkpoint."""
    torch.manual_seed(args.seed)
    classes = int(images.train.labels.max()) + 1
    program = Conditional(images.shape, classes, args.latent, args.width).to(images.train.labels.device)
    checkpoints = Checkpoints(args.out / f"{images.name}-seed{args.seed}", resume=True)
    return program, trained(program, images, args.seed, args, checkpoints)


def measured(program: Conditional, history: Any, images: Data, args: argparse.Namespace) -> dict[str, Any]:
    """Return the numbers of the trained program."""
    started = time.perf_counter()
    shares = torch.bincount(images.train.labels, minlength=program.classes) / len(images.train)
    return {
        "test": evaluate(program, images.test, seed=args.seed).summary(),
        **by_class(program, images.test[: args.images], shares.log(), args.particles, args.seed),
        "parameters": sum(parameter.numel() for parameter in program.parameters()),
        "kept_epoch": history.kept_epoch,
        "engine": history.engine,
        "history": history.rows,
        "seconds": {"training": history.rows[-1]["seconds"], "measurement": time.perf_counter() - started},
    }


def by_class(program: Conditional, split: Split, log_py: Tensor, particles: int, seed: int) -> dict[str, Any]:
    """Return what log p(x | y) says for each y: at the true labels, of p(x) and of the class."""
    x, y = fixed_x(program, split)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrustedEvidence)  # the results hold the share of these images
        every = [
            log_evidence(program, (x, torch.full_like(y, label)), particles, seed=seed) for label in range(len(log_py))
        ]
    log_pxy = torch.stack([evidence.log_px for evidence in every])  # log p(x | y), (classes, images)
    log_px = (log_pxy + log_py[:, None]).logsumexp(0)
    given, of_the_label = log_pxy.gather(0, y[None])[0], y == torch.arange(len(log_py), device=y.device)[:, None]
    bad = torch.stack([evidence.pareto_k > 0.7 for evidence in every]).double()
    right = ((log_pxy + log_py[:, None]).argmax(0) == y).double()
    return {
        "log_p_x_given_y": over_images(given),
        "log_p_x": over_images(log_px),
        "gain_by_the_label": over_images(given - log_px),
        "error": over_images(100 * (1 - right)),
        "share_pareto_k_above_0.7": bad[of_the_label].mean().item(),
        "share_pareto_k_above_0.7_at_wrong_labels": bad[~of_the_label].mean().item(),
    }


@torch.no_grad()
def picture(program: Conditional, seed: int) -> Figure:
    """Draw the mean images of all classes, each in a row, at the same draws of z."""
    labels = torch.arange(program.classes, device=program.prior().mean.device)
    with seeded(seed, labels.device), mode(program, training=False):
        z = program.prior().sample((ACROSS,))
        images = [program.likelihood(program.labelled(z, label.expand(ACROSS))).mean for label in labels]
    return plots.image_rows({str(label): row for label, row in zip(labels.tolist(), images)}, columns=ACROSS)


def line(result: dict[str, Any]) -> str:
    """Return the result in a line."""
    return f"test bound {result['test']['bound']:.2f} nats per image, after {result['seconds']['training']:.0f} seconds"


def report(result: dict[str, Any]) -> str:
    """Return the numbers as a few lines."""
    test, particles = result["test"], result["settings"]["particles"]
    rows = {
        "test bound": estimate(test["bound"], test["standard_error"]),
        f"log p(x | y), L_{particles}": in_words(result["log_p_x_given_y"]),
        f"log p(x), L_{particles}": in_words(result["log_p_x"]),
        "difference": in_words(result["gain_by_the_label"]),
        "error of the class": f"{in_words(result['error'])} %",
    }
    return "\n".join(f"{name:<22} {value}" for name, value in rows.items()) + "\nnats per image, ± standard error"


def in_words(entry: dict[str, Any]) -> str:
    """Return a mean with its standard error."""
    return estimate(entry["mean"], entry["standard_error"])


if __name__ == "__main__":
    sys.exit(main())
