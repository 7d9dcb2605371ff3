#!/usr/bin/env python
"""Auto-Encoding Variational Bayes (Kingma & Welling 2013), done again and laid over the published curves.

    python experiments/reproduce_aevb.py --quick
    python experiments/reproduce_aevb.py
    python experiments/reproduce_aevb.py --panels mnist-20 frey-20 --samples 1e8
    python experiments/reproduce_aevb.py --panels mnist-20 --algorithms aevb --binarize intensity
    python experiments/reproduce_aevb.py --report

Figure 2 of the paper: bound against training samples seen, for AEVB and wake-sleep (panels mnist-3 … frey-20). Figure
3: log p(x) of AEVB, wake-sleep and Monte Carlo EM (likelihood-1000, likelihood-50000). Figures 4 and 5: manifolds in
the plane and random samples (mnist-2 beside the others).

Each run, one algorithm in one panel, leaves its own JSON and parameters in --out as soon as it ends; what lies there
with the same settings is not run again, so that one command that was interrupted goes on. In the end, and with
--report alone, all that lies in --out is put into tables (<out>.txt, <out>.json) and figures (<out>_figure2.png …).
"""

import argparse
import math
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from copy import deepcopy
from dataclasses import dataclass, replace
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import torch
from aevb import algorithms
from aevb.marginal import marginal_likelihood
from aevb.report import gather
from parts import BINARIZE, ESTIMATORS, check_taken, given, home_path
from pyro.infer import ELBO
from results import exit_status, is_done, make_folder, provenance, reason, write_json
from torch import Tensor

from pyro_vae import VAE, annealed_evidence, evaluate, load
from pyro_vae.data.sets import Data
from pyro_vae.printing import spell_out
from pyro_vae.random import seeded
from pyro_vae.training.engines import ENGINES, fast_matmul
from pyro_vae.training.loop import NonFiniteLoss, fixed_x

STEPS = (0.01, 0.02, 0.1)  # of Adagrad, from which the paper chooses
AEVB, WAKE_SLEEP, MCEM = "aevb", "wake-sleep", "mcem"
LITERAL = "literal"
TRAIN_IMAGES = 10_000  # the first so many training images on which the training bound is measured
EVIDENCE_IMAGES = 1000  # of either split for the marginal likelihood, as in the paper
DRAWS, QUICK_DRAWS = 2**18, 2**14  # of the prior, for the marginal likelihood; at the end of a run twice as many
ANNEALED_IMAGES = 50  # of the test set on which the last one is checked by annealing
ANNEALING = {"num_temperatures": 200, "chains": 8, "leapfrog": 5}
CHOICE, QUICK_CHOICE = 500_000, 10_000  # training samples on which each step is tried; short trials favour small steps
TURNS = 5  # of Monte Carlo EM that try a step, if those are more


@dataclass(frozen=True)
class Panel:
    """What a panel of the paper shows: a data set, D, hidden units, and how many training images (all if None)."""

    dataset: str
    latent: int
    hidden: int
    algorithms: tuple[str, ...] = (AEVB, WAKE_SLEEP)
    images: int | None = None
    evidence: bool = False


LIKELIHOOD = Panel("mnist", 3, 100, (AEVB, WAKE_SLEEP, MCEM), evidence=True)
PANELS = {
    **{f"mnist-{latent}": Panel("mnist", latent, 500) for latent in (3, 5, 10, 20, 200)},
    **{f"frey-{latent}": Panel("frey", latent, 200) for latent in (2, 5, 10, 20)},
    "likelihood-1000": replace(LIKELIHOOD, images=1000),
    "likelihood-50000": replace(LIKELIHOOD, images=50_000),
    "mnist-2": Panel("mnist", 2, 500, (AEVB,)),
}


@dataclass(frozen=True)
class Run:
    """One algorithm in one panel, with the settings that its numbers depend on."""

    panel: str
    algorithm: str
    samples: int
    seed: int
    estimator: str
    binarize: str
    choice: int
    draws: int
    digits: bool = False

    @property
    def name(self) -> str:
        return "-".join([self.panel, self.algorithm, *([self.binarize] if self.binarize != "dynamic" else [])])

    @property
    def dataset(self) -> str:
        return "digits" if self.digits else PANELS[self.panel].dataset


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--panels",
        choices=PANELS,
        nargs="+",
        default=list(PANELS),
        metavar="PANEL",
        help=f"some of {', '.join(PANELS)}",
    )
    parser.add_argument("--algorithms", choices=(AEVB, WAKE_SLEEP, MCEM), nargs="+", default=[AEVB, WAKE_SLEEP, MCEM])
    parser.add_argument("--report", action="store_true", help="run nothing: gather what lies in --out")
    group = parser.add_argument_group("training")
    group.add_argument("--samples", type=float, default=1e7, help="training samples seen by each run (the paper: 1e8)")
    group.add_argument("--quick", action="store_true", help="a tenth of the samples")
    group.add_argument("--estimator", choices=("trace", "meanfield"), default="meanfield", help="L^A or L^B of AEVB")
    group.add_argument("--binarize", choices=BINARIZE, default="dynamic", help="of MNIST, which the paper does not say")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument(
        "--engine",
        choices=(*ENGINES, LITERAL),
        default="auto",
        help="of fit; literal: AEVB as the paper's algorithm 1 spells it",
    )
    group.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, each on one core")
    group = parser.add_argument_group("data and results")
    group.add_argument("--digits", action="store_true", help="the bundled 8 × 8 digits in every panel, to try it out")
    group.add_argument("--data-dir", type=home_path, default=None, help="folder in which the data lie")
    group.add_argument(
        "--out",
        type=home_path,
        default=None,
        help="folder of the single runs, and beside it names of tables and figures (figures/aevb; with "
        "--quick figures/aevb_quick)",
    )
    group.add_argument("--quiet", action="store_true", help="no word of each run")
    args = parser.parse_args(argv)
    check_taken(
        given(parser, argv),
        {"panels": args.panels, "algorithms": args.algorithms},
        {
            "binarize": {"panels": [name for name, panel in PANELS.items() if panel.dataset == "mnist"]},
            "estimator": {"algorithms": [AEVB]},
        },
    )
    args.out = args.out or Path("figures/aevb_quick" if args.quick else "figures/aevb")
    return args


def main(argv: list[str] | None = None) -> int:
    done = "the runs that had ended are in {out}; the same command goes on"
    return exit_status(lambda: parse_arguments(argv), measure, done)


def measure(args: argparse.Namespace) -> int:
    failed = 0 if args.report else run_all(args)
    print(gather(args.out, [f"{panel}-{algorithm}" for panel in PANELS for algorithm in PANELS[panel].algorithms]))
    return 1 if failed else 0


def run_all(args: argparse.Namespace) -> int:
    """All runs asked for that are not in the folder yet, ``--jobs`` at a time; how many of them failed."""
    runs = [run for run in asked_for(args) if not is_done(args.out / f"{run.name}.json", vars(run))]
    make_folder(args.out)
    for name in {run.dataset for run in runs}:
        load(name, root=args.data_dir)  # found, downloaded or missed once, before many processes look for it
    if args.jobs == 1 or len(runs) < 2:
        return sum(not finished(run, args) for run in runs)
    pool, failed = ProcessPoolExecutor(args.jobs, get_context("spawn"), begin_worker), 0
    active: set[Future[bool]] = set()
    try:
        while runs or active:
            active |= {pool.submit(finished, runs.pop(0), args) for _ in range(min(len(runs), args.jobs - len(active)))}
            done, active = wait(active, return_when=FIRST_COMPLETED)
            failed += sum(not future.result() for future in done)
    finally:
        pool.shutdown()  # after Ctrl-C, which the runs hear of too, they are waited for
    return failed


def begin_worker() -> None:
    """One thread for the runs of this process, which ends when the one that started it is killed."""
    torch.set_num_threads(1)
    spell_out()
    threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()


def finished(run: Run, args: argparse.Namespace) -> bool:
    """Whether a run could be made; the others go on where one could not."""
    try:
        finish(run, args)
        return True
    except (ValueError, OSError, FloatingPointError, NonFiniteLoss) as error:
        print(f"error: {run.name}: {reason(error)}", file=sys.stderr)
        return False


def asked_for(args: argparse.Namespace) -> list[Run]:
    """The runs of a command line; ValueError for settings that cannot be."""
    samples = int(args.samples / (10 if args.quick else 1))
    if samples < algorithms.MINIBATCH:
        raise ValueError(f"--samples: wanted at least {algorithms.MINIBATCH}, a minibatch, got {samples}")
    if args.jobs < 1:
        raise ValueError(f"--jobs: wanted at least 1, got {args.jobs}")
    choice = min(QUICK_CHOICE if args.quick else CHOICE, samples)
    draws = QUICK_DRAWS if args.quick else DRAWS
    return [
        Run(
            name,
            algorithm,
            samples,
            args.seed,
            args.estimator,
            "dynamic" if PANELS[name].dataset == "frey" else args.binarize,
            choice,
            draws,
            args.digits,
        )
        for name in args.panels
        for algorithm in PANELS[name].algorithms
        if algorithm in args.algorithms
    ]


def finish(run: Run, args: argparse.Namespace) -> None:
    """A run from its start to its files."""
    started = time.perf_counter()
    panel, images = PANELS[run.panel], images_of(run, args.data_dir)
    with fast_matmul("cpu"):
        choice = choose_step(run, images, args.engine)
        step = max(choice, key=lambda entry: -math.inf if entry["train"] is None else entry["train"])["step"]
        points, vae = train(run, images, step, run.samples, points_of(run), measurement(run), args.engine)
    result = {
        "settings": vars(run),
        "panel": vars(panel),
        "step": step,
        "choice_of_step": choice,
        "points": points,
        "engine": args.engine,
        "shape": images.shape,
        "train_images": len(images.train),
        "versions": provenance(),
        "seconds": time.perf_counter() - started,
    }
    torch.save(vae.state_dict(), args.out / f"{run.name}.pt")
    write_json(args.out / f"{run.name}.json", result)
    if not args.quiet:
        last = ", ".join(f"{split} {points[-1][split]:.1f}" for split in ("train", "test"))
        print(f"{run.name}: {last} nats per image, step {step}, {result['seconds']:.0f} s", flush=True)


def images_of(run: Run, data_dir: Path | None) -> Data:
    images = load(run.dataset, root=data_dir)
    return replace(images, train=images.train[: PANELS[run.panel].images])


def build(run: Run, images: Data) -> VAE:
    panel = PANELS[run.panel]
    binarize = BINARIZE[run.binarize]
    return algorithms.program(images.shape, panel.latent, panel.hidden, panel.dataset == "frey", binarize, run.seed)


def choose_step(run: Run, images: Data, engine: str) -> list[dict[str, Any]]:
    """The training bound after a short run with each step, in nats per image; None where it diverged.

    For Monte Carlo EM, which has no bound, it is the marginal likelihood of a few training images, after a few turns.
    """
    samples = run.choice
    if run.algorithm == MCEM:
        samples = max(samples, TURNS * (algorithms.LEAPFROG + algorithms.UPDATES) * len(images.train))

    def measure(vae: VAE, images: Data, seen: int) -> dict[str, float]:
        if run.algorithm == MCEM:
            return {"train": marginal_likelihood(vae, fixed_x(vae, images.train.images[:100]), run.draws).mean}
        return {"train": evaluate(vae, fixed_x(vae, images.train.images[:1000])).summary()["bound"]}

    rows = []
    for step in STEPS:
        try:
            points, _ = train(run, images, step, samples, [samples], measure, engine)
            rows.append({"step": step, "samples": samples, "train": points[-1]["train"]})
        except (NonFiniteLoss, FloatingPointError):
            rows.append({"step": step, "samples": samples, "train": None})
    return rows


def train(
    run: Run,
    images: Data,
    step: float,
    samples: int,
    at: list[int],
    measure: Callable[[VAE, Data, int], dict],
    engine: str = "auto",
) -> tuple[list[dict[str, Any]], VAE]:
    """What was measured at the points, and the program at the last of them. Raises KeyboardInterrupt on Ctrl-C."""
    vae, points, due, state = build(run, images), [], sorted(at), {}

    def after(seen: int) -> None:
        if due and seen >= due[0]:
            points.append({"samples": seen, **measure(vae, images, seen)})
            due[:] = [point for point in due if point > seen]
            state.update(deepcopy(vae.state_dict()) if not due else {})

    if run.algorithm == MCEM or (run.algorithm == AEVB and engine == LITERAL):
        with seeded(run.seed):
            for seen in by_hand(run, vae, images, step, samples):
                after(seen)
                if not due:
                    break
    else:
        options = {"step": step, "samples": samples, "after": after, "seed": run.seed, "engine": engine}
        history = algorithms.trained(vae, images, estimator(run), **options)
        if history.interrupted:
            raise KeyboardInterrupt
        points[-1]["engine"] = history.engine
    vae.load_state_dict(state)
    return points, vae


def by_hand(run: Run, vae: VAE, images: Data, step: float, samples: int) -> Iterator[int]:
    """The algorithms that are spelled out, which yield the samples seen after each update."""
    if run.algorithm == MCEM:
        return algorithms.mcem(vae, images.train, step)
    bound = {"trace": algorithms.bound_a, "meanfield": algorithms.bound_b}[run.estimator]
    epochs = math.ceil(samples / len(images.train))
    return algorithms.aevb(vae, images.train.images, bound, algorithms.adagrad(step), epochs)


def estimator(run: Run) -> ELBO:
    return ESTIMATORS[WAKE_SLEEP if run.algorithm == WAKE_SLEEP else run.estimator](1)


def points_of(run: Run) -> list[int]:
    """Samples seen at which a run is measured, in equal ratios: bounds on the paper's grid, eight a decade."""
    if PANELS[run.panel].evidence:
        coarse = sorted({lead * 10**power for power in range(3, 9) for lead in (1, 2, 5)} | {40_000_000, 60_000_000})
        return [n for n in coarse if run.samples / 20 <= n < run.samples] + [run.samples]
    grid = [round(10 ** (k / 8)) for k in range(24, 80)]
    return [n for n in grid if min(run.samples / 32, 10**5.5) <= n < run.samples] + [run.samples]


def measurement(run: Run) -> Callable[[VAE, Data, int], dict[str, Any]]:
    """What is measured at the points: log p(x) in Figure 3, else the bound; of both splits, in nats per image."""
    panel = PANELS[run.panel]

    def measure(vae: VAE, images: Data, seen: int) -> dict[str, Any]:
        first = EVIDENCE_IMAGES if panel.evidence else TRAIN_IMAGES
        pixels = {"train": images.train.images[:first], "test": images.test.images[: first if panel.evidence else None]}
        numbers: dict[str, Any] = {}
        for split, part in pixels.items():
            x = fixed_x(vae, part)
            if panel.evidence:
                details = marginal_likelihood(vae, x, run.draws * (2 if seen >= run.samples else 1), run.seed)
                numbers |= {split: details.mean, f"{split}_details": details.to_dict()}
            else:
                details = evaluate(vae, x).summary()
                numbers |= {split: details["bound"], f"{split}_details": details}
        if panel.evidence and seen >= run.samples:
            numbers["check"] = {
                "marginal": details.log_px[:ANNEALED_IMAGES].mean().item(),
                "annealed": annealed(vae, x[:ANNEALED_IMAGES], run.seed),
            }
        return numbers

    return measure


def annealed(vae: VAE, x: Tensor, seed: int) -> dict[str, Any]:
    """log p(x) by annealing from the prior: another way to what ``marginal_likelihood`` estimates."""
    with warnings.catch_warnings():
        # The acceptance, and the shares of images that these are about, are in the row.
        warnings.filterwarnings("ignore", message="Pareto k̂|Hamiltonian Monte Carlo accepted nothing")
        return annealed_evidence(vae.model, None, x, **ANNEALING, seed=seed).to_dict()


if __name__ == "__main__":
    sys.exit(main())
