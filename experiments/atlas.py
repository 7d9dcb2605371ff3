#!/usr/bin/env python
"""Which gradient estimator to take? All of them on six programs, in the course of a training, and what they buy.

    python experiments/atlas.py
    python experiments/atlas.py --quick

At each moment of a training, and where it has converged, every estimator that a program takes is drawn many times:
variance and signal-to-noise ratio (Rainforth et al. 2018) of the guide's and the model's gradient, seconds, and the
share of the choice of images in all variance. Then programs are trained by each of several estimators for equal seconds
of a processor: which bound is reached? Each program, moment and seed leaves a file in the folder, and a training is
saved as it goes; the same command goes on where it was stopped.

    oracle         the linear Gaussian program, whose guide is the exact posterior at the start
    vae            the default convolutional VAE
    two-layer      a VAE of two stochastic layers, of the same networks
    sigmoid        a sigmoid belief network of binary units
    logistic       Bayesian logistic regression, is it an even digit, with AutoNormal
    logistic-flow  the same on means of 4 × 4 pixels, with AutoIAFNormal
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pyro.infer import ELBO
from torch import Tensor

from experiments.atlases import answers
from experiments.atlases.answers import CONVERGED, GAINS
from experiments.atlases.gains import TRAINERS, gained
from experiments.atlases.programs import PROGRAMS, estimators, observed
from experiments.atlases.trajectories import Course, converged, course
from pyro_vae import compare_estimators
from pyro_vae.checks import whole_number
from pyro_vae.data import Data
from pyro_vae.runs import (
    SingleRun,
    add_jobs_option,
    beside,
    describe,
    load_data,
    make_folder,
    provenance,
    run_together,
    save_figure,
    single_runs,
    sweep_status,
    write_json,
)
from pyro_vae.runs.options import add_data_options
from pyro_vae.runs.parser import Parser

QUICK = {
    "dataset": "digits",
    "moments": [0, 1],
    "longest": 30,
    "seeds": [0],
    "draws": 32,
    "images": 16,
    "batches": 2,
    "seconds": 5.0,
    "engine": "eager",
}
SETTINGS = (
    "particles",
    "most",
    "draws",
    "images",
    "batches",
    "batch",
    "latent",
    "rows",
    "lr",
    "seconds",
    "patience",
    "longest",
)


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
    group.add_argument("--rows", type=int, default=10_000, help="training images; a fifth as many for validation")
    group.add_argument("--batch", type=int, default=100)
    group.add_argument("--lr", type=float, default=1e-3, help="step of Adam")
    group.add_argument("--patience", type=int, default=10, metavar="EPOCHS", help="without a rise: converged")
    group.add_argument("--longest", type=int, default=300, metavar="EPOCHS", help="converged or not, the end")
    group.add_argument("--engine", default="auto", help="what takes the steps")
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    group = parser.add_argument_group("measurement")
    group.add_argument("--particles", type=int, nargs="+", default=[1, 8], metavar="K")
    group.add_argument("--most", type=int, default=32, metavar="K", help="of IWAE and DReG besides")
    group.add_argument("--draws", type=int, default=64, help="of each estimator at each batch")
    group.add_argument("--images", type=int, default=4, help="training images in a batch that is measured")
    group.add_argument("--batches", type=int, default=4, help="such batches")
    group.add_argument("--seconds", type=float, default=60.0, help="of a processor, to train by each estimator")
    add_data_options(parser, Path("figures/atlas"), "folder of the runs; JSON and figures have its name")
    parser.add_argument("--quick", action="store_true", help="few draws on the digits: at most ten minutes")
    if parser.parse_args(argv).quick:
        parser.set_defaults(**QUICK, out=Path("figures/atlas-quick"))
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return sweep_status(lambda: parse_arguments(argv), run, lambda args: gather(args.out))


def run(args: argparse.Namespace) -> int:
    """Do the cells that are not in the folder yet; return how many courses of them failed."""
    images = load_data(args)
    rows = whole_number("--rows", args.rows)
    images = replace(images, train=images.train[:rows], valid=images.valid[: max(1, rows // 5)])
    if args.images * args.batches > len(images.train):
        raise ValueError(f"--images × --batches: wanted at most {len(images.train)} (the training images)")
    make_folder(args.out)
    return run_together(dict(courses(images, args)), args.jobs)


def courses(images: Data, args: argparse.Namespace) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield what is left to do: for each seed and program its training, measured at all moments, then the gains."""
    for seed in args.seeds:
        for name in args.programs:
            cells = [cell(name, moment, seed, images, args) for moment in moments(args)]
            if not all(each.is_done for each in cells):
                yield f"{name}, seed {seed}", partial(followed, name, seed, images, args)
        for name in args.programs:
            if name in TRAINERS and not (gains := gains_of(name, seed, images, args)).is_done:
                yield gains.label, gains


def moments(args: argparse.Namespace) -> list[int | None]:
    """Return after how many epochs to measure; None: where the training has converged."""
    return sorted(set(args.moments)) + [None] * (args.longest > 0)


def followed(name: str, seed: int, images: Data, args: argparse.Namespace) -> str:
    """Measure a program at all moments of one training, and return a line about the last."""
    line, run = "", course(name, seed, images, args)
    for moment in moments(args):
        each = cell(name, moment, seed, images, args, run)
        line = each.label if each.is_done else f"{each.label}: {each()}"
        print(line, flush=True) if not args.quiet else None
    return line


def cell(
    name: str, moment: int | None, seed: int, images: Data, args: argparse.Namespace, run: Any = None
) -> SingleRun:
    """Return the run that measures a program at a moment of its training ``run``."""
    word = CONVERGED if moment is None else f"{moment} epochs"
    return SingleRun(
        args.out / f"{name}-{word.replace(' ', '-')}-seed{seed}.json",
        f"{name}, {word}, seed {seed}",
        {"program": name, "moment": word, **common(seed, images, args)},
        lambda: measured(run, moment, seed, images, args),
        answers.line,
    )


def gains_of(name: str, seed: int, images: Data, args: argparse.Namespace) -> SingleRun:
    """Return the run that trains a program by several estimators for equal seconds."""
    return SingleRun(
        args.out / f"{name}-gains-seed{seed}.json",
        f"{name}, gains, seed {seed}",
        {"program": name, "moment": GAINS, **common(seed, images, args)},
        partial(gained, name, seed, images, args),
        answers.line_of_gains,
    )


def common(seed: int, images: Data, args: argparse.Namespace) -> dict[str, Any]:
    """Return the entries of every cell."""
    settings = {key: getattr(args, key) for key in SETTINGS} | {"dataset": images.name}
    return {"seed": seed, "settings": settings, "dataset": describe(images)}


def measured(run: Course, moment: int | None, seed: int, images: Data, args: argparse.Namespace) -> dict[str, Any]:
    """Return the numbers of all estimators on a program at a moment of its training."""
    if moment is None:
        epochs, done = converged(run, args.patience, args.longest)
    else:
        run.to(moment)
        epochs, done = moment, None
    size = args.images
    batches = [observed(run.program, images.train[i * size :][:size]) for i in range(args.batches)]
    started = time.perf_counter()
    taken, left_out = trial(run.program, batches[0], estimators(args.particles, args.most))
    compared = compare_estimators(
        run.program, batches=batches, estimators=taken, draws=args.draws, seed=seed, progress=not args.quiet
    )
    return {
        "epochs": epochs,
        "converged": done,
        "bounds": run.bounds,
        "seconds": time.perf_counter() - started,
        "left_out": left_out,
        "estimators": compared.to_dict()["estimators"],
        "disagreements": [repr(pair) for pair in compared.disagreements()],
    }


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
    found = sorted(single_runs(out).values(), key=lambda run: list(PROGRAMS).index(run["program"]))
    write_json(beside(out, ".json"), {"versions": provenance(), "cells": found})
    for question, figure in answers.figures(found).items():
        save_figure(beside(out, f"-{question}.png"), figure)
    return answers.table(found)


if __name__ == "__main__":
    sys.exit(main())
