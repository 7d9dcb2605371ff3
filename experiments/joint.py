#!/usr/bin/env python
"""What does a control variate for draws and batches buy? Asked of a logistic regression with many weights.

    python experiments/joint.py
    python experiments/joint.py --quick

The program is p(w) = N(0, I), y ~ Bernoulli(σ(w · x)), x the pixels of a digit and y whether it is even, with an
AutoNormal; batches are drawn at random. Measured for L^A, sticking the landing and ``JointControlVariate``:

- the variance of the guide's gradient over draws and batches, at the start and after each of two trainings by L^A, by
  the control variate with parameters of now, and with those of an epoch before;
- the seconds of a gradient;
- the ELBO of all training rows, which is what inference maximises, after equal seconds of a processor by each of them.

Each seed leaves a file in the folder; the same command goes on where it was stopped. All seeds are gathered in
<out>.json; ``--into PAGE`` writes them into a page with the lines ``<!-- joint -->`` and ``<!-- end -->``.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam  # pyright: ignore[reportAttributeAccessIssue]
from torch import Tensor

from experiments.atlases.answers import spread
from experiments.atlases.programs import LogisticRegression, built, observed
from experiments.benchmarks.report import filled
from pyro_vae.checks import whole_number
from pyro_vae.data import Data
from pyro_vae.estimators import JointControlVariate, StickingTheLanding
from pyro_vae.files import write_whole
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
from pyro_vae.runs.options import add_data_options, home_path
from pyro_vae.runs.parser import Parser

QUICK = {"dataset": "digits", "rows": 500, "draws": 50, "seconds": 2.0, "seeds": [0], "epochs": [1, 5]}
NEVER = 10**9  # steps
OLD, NEW = "control variate, an epoch old", "control variate"
WAYS = ("L^A", "sticking the landing", NEW)
EXACT = 500  # draws of all rows for the ELBO at the end
Batches = list[tuple[Tensor, Tensor]]


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000, help="training images")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--lr", type=float, default=0.01, help="step of Adam")
    parser.add_argument(
        "--epochs", type=int, nargs="+", default=[2, 20], help="of training by L^A before a measurement"
    )
    parser.add_argument("--draws", type=int, default=400, help="gradients of each estimator")
    parser.add_argument("--seconds", type=float, default=60.0, help="of a processor, to train by each estimator")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--report", action="store_true", help="measure nothing: gather the runs in --out")
    parser.add_argument("--into", type=home_path, metavar="PAGE", help="write the tables into this page")
    add_data_options(parser, Path("figures/joint"), "folder of the runs; the JSON has its name")
    parser.set_defaults(jobs=1)
    parser.add_argument("--quick", action="store_true", help="few draws on the digits: a minute")
    if parser.parse_args(argv).quick:
        parser.set_defaults(**QUICK, out=Path("figures/joint-quick"))
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return sweep_status(lambda: parse_arguments(argv), run, gather)


def run(args: argparse.Namespace) -> int:
    """Measure the seeds that are not in the folder yet; return how many failed."""
    images = load_data(args)
    images = replace(images, train=images.train[: whole_number("--rows", args.rows)])
    make_folder(args.out)
    return run_missing(list(cells(images, args)), 1)


def cells(images: Data, args: argparse.Namespace) -> Iterator[SingleRun]:
    """Yield a run for each seed."""
    settings = {key: getattr(args, key) for key in ("rows", "batch", "lr", "epochs", "draws", "seconds")}
    for seed in args.seeds:
        entries = {"seed": seed, "settings": settings, "dataset": describe(images)}
        path = args.out / f"logistic-seed{seed}.json"
        yield SingleRun(path, f"seed {seed}", entries, partial(measured, seed, images, args), line)


def measured(seed: int, images: Data, args: argparse.Namespace) -> dict[str, Any]:
    """Return variances and seconds at each moment, and the ELBO after equal seconds."""
    begin = partial(begun, seed, images, args)
    program, batches = begin()
    moments: dict[str, Any] = {"start": variances(program, batches, estimators(batches), args.draws, seed)}
    step = steps(program, Trace_ELBO(), args.lr)
    for epoch in range(1, max(args.epochs) + 1):
        old = JointControlVariate(batches, NEVER)
        old.loss_and_grads(program.model, program.guide, *batches[0])  # takes the parameters of now
        for batch in shuffled(batches):
            step(*batch)
        if epoch in args.epochs:
            compared = {**estimators(batches), OLD: old}
            moments[f"{epoch} epochs"] = variances(program, batches, compared, args.draws, seed)
    return {"moments": moments, "trained": {name: trained(name, begin, args) for name in WAYS}}


def begun(seed: int, images: Data, args: argparse.Namespace) -> tuple[LogisticRegression, Batches]:
    """Return the program at its start, and all batches; rows beyond a whole number of batches are left out."""
    program = built("logistic", seed, images, args)
    x, y = observed(program, images.train)
    whole = len(x) // args.batch * args.batch
    program.rows = whole
    return program, list(zip(x[:whole].split(args.batch), y[:whole].split(args.batch)))


def estimators(batches: Batches) -> dict[str, Any]:
    """Return the estimators that are compared, by name."""
    return dict(zip(WAYS, (Trace_ELBO(), StickingTheLanding(), JointControlVariate(batches, NEVER))))


def variances(
    program: LogisticRegression, batches: Batches, compared: Mapping[str, Any], draws: int, seed: int
) -> dict[str, dict[str, float]]:
    """Return, for each estimator, the variance of the guide's gradient over draws and batches, and its seconds."""
    parameters, found = dict(program.guide.named_parameters()), {}
    for name, elbo in compared.items():
        elbo.loss_and_grads(program.model, program.guide, *batches[0])  # the control variate takes its parameters
        torch.manual_seed(seed)
        chosen, gradients, seconds = torch.randint(len(batches), (draws,)).tolist(), [], 0.0
        for index in chosen:
            program.zero_grad()
            started = time.process_time()
            elbo.loss_and_grads(program.model, program.guide, *batches[index])
            seconds += time.process_time() - started
            gradients.append(
                [parameter.grad.clone() for parameter in parameters.values() if parameter.grad is not None]
            )
        parts = [torch.stack(part).double().var(0).sum().item() for part in zip(*gradients)]
        found[name] = {"variance": sum(parts), **dict(zip(parameters, parts)), "seconds": seconds / draws}
    return found


def steps(program: LogisticRegression, elbo: Any, lr: float) -> Callable[..., Any]:
    """Return the function that takes a step of Pyro's SVI."""
    return SVI(program.model, program.guide, Adam({"lr": lr}), elbo).step


def trained(name: str, begin: Callable[[], tuple[LogisticRegression, Batches]], args: argparse.Namespace) -> dict:
    """Return the ELBO in nats per row, with its standard error, and the steps taken within ``args.seconds``."""
    program, batches = begin()
    made = {**estimators(batches), NEW: JointControlVariate(batches)}
    step, taken, started = steps(program, made[name], args.lr), 0, time.process_time()
    while time.process_time() - started < args.seconds:
        for batch in shuffled(batches):
            step(*batch)
            taken += 1
            if time.process_time() - started >= args.seconds:
                break
    torch.manual_seed(0)
    x, y = (torch.cat(part) for part in zip(*batches))
    losses = torch.tensor([Trace_ELBO().loss(program.model, program.guide, x, y) for _ in range(EXACT)]) / len(x)
    return {"steps": taken, "elbo": -losses.mean().item(), "se": losses.std().item() / EXACT**0.5}


def shuffled(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield all batches in a random order."""
    return (batches[index] for index in torch.randperm(len(batches)).tolist())


def line(cell: dict[str, Any]) -> str:
    """Return what the control variate buys at the end, as a line."""
    last = list(cell["moments"].values())[-1]
    return f"{last['L^A']['variance'] / last[NEW]['variance']:.3g} times less variance than L^A after training"


def gather(args: argparse.Namespace) -> str:
    """Write all seeds as one JSON file, and into a page if one is given; return the tables."""
    found = list(single_runs(args.out).values())
    write_json(beside(args.out, ".json"), {"versions": provenance(), "cells": found})
    tables = markdown(found)
    if args.into:
        write_whole(args.into, filled(args.into.read_text(encoding="utf-8"), "joint", tables).encode())
    return tables


def markdown(found: list[dict[str, Any]]) -> str:
    """Return both tables; numbers are means over seeds, with their least and largest in brackets."""
    lines = [
        "| moment, estimator | variance of the gradient | of the means | milliseconds |",
        "| --- | --- | --- | --- |",
    ]
    for moment, entries in found[0]["moments"].items():
        for name in entries:
            of = [cell["moments"][moment][name] for cell in found]
            means = [next(value for key, value in each.items() if "loc" in key) for each in of]
            seconds = [1000 * each["seconds"] for each in of]
            variance = [each["variance"] for each in of]
            lines.append(f"| {moment}, {name} | {spread(variance)} | {spread(means)} | {spread(seconds)} |")
    lines += ["", "| trained by | steps | ELBO, nats per row |", "| --- | --- | --- |"]
    for name in WAYS:
        of = [cell["trained"][name] for cell in found]
        taken, bound = (spread([each[key] for each in of], 5) for key in ("steps", "elbo"))
        lines.append(f"| {name} | {taken} | {bound} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
