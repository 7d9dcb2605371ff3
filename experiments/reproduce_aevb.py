#!/usr/bin/env python
"""Auto-Encoding Variational Bayes (Kingma & Welling 2013) reproduced, with the published curves in the same figures.

    python experiments/reproduce_aevb.py --quick
    python experiments/reproduce_aevb.py
    python experiments/reproduce_aevb.py --panels mnist-20 frey-20 --samples 1e8
    python experiments/reproduce_aevb.py --panels mnist-20 --algorithms aevb --binarize intensity
    python experiments/reproduce_aevb.py --report

Figure 2 of the paper: bound against training samples seen, for AEVB and wake-sleep (panels mnist-3 … frey-20). Figure
3: log p(x) of AEVB, wake-sleep and Monte Carlo EM (likelihood-1000, likelihood-50000). Figures 4 and 5: manifolds in
the plane and random samples (mnist-2 beside the others).

Each run, of one algorithm in one panel, writes its JSON and its parameters into --out when it ends, and is not repeated
with the same settings, so that the same command continues one that was interrupted. At the end, or at once with
--report, all runs in --out are gathered in tables (<out>.txt, <out>.json) and figures (<out>_figure2.png …).
"""

import argparse
import os
import sys
from functools import partial
from pathlib import Path

from experiments.aevb.algorithms import MINIBATCH
from experiments.aevb.report import gather
from experiments.aevb.runs import AEVB, LITERAL, MCEM, PANELS, WAKE_SLEEP, PanelRun, finish
from pyro_vae import load
from pyro_vae.config import BINARIZE
from pyro_vae.runs import exit_status, is_done, make_folder, run_together
from pyro_vae.runs.options import check_taken, given, home_path
from pyro_vae.runs.parser import Parser
from pyro_vae.training.engines import ENGINES

DRAWS, QUICK_DRAWS = 2**18, 2**14  # of the prior, for the marginal likelihood; at the end of a run twice as many
CHOICE, QUICK_CHOICE = 500_000, 10_000  # training samples on which each step is tried; short trials favour small steps


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--panels",
        choices=PANELS,
        nargs="+",
        default=list(PANELS),
        metavar="PANEL",
        help=f"some of {', '.join(PANELS)}",
    )
    parser.add_argument("--algorithms", choices=(AEVB, WAKE_SLEEP, MCEM), nargs="+", default=[AEVB, WAKE_SLEEP, MCEM])
    parser.add_argument("--report", action="store_true", help="run nothing: gather the runs in --out")
    group = parser.add_argument_group("training")
    group.add_argument("--samples", type=float, default=1e7, help="training samples seen by each run (the paper: 1e8)")
    group.add_argument("--quick", action="store_true", help="a tenth of the samples")
    group.add_argument(
        "--estimator",
        choices=("trace", "meanfield"),
        default="meanfield",
        help="that of AEVB: trace, L^A; meanfield, L^B",
    )
    group.add_argument(
        "--binarize", choices=BINARIZE, default="dynamic", help="how x is made of MNIST, which the paper does not say"
    )
    group.add_argument("--seed", type=int, default=0)
    group.add_argument(
        "--engine",
        choices=(*ENGINES, LITERAL),
        default="auto",
        help="that of fit; literal: algorithm 1 of the paper, written out",
    )
    group.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, each on one core")
    add_data_and_results_options(parser.add_argument_group("data and results"))
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


def add_data_and_results_options(group: argparse._ArgumentGroup) -> None:
    """Add the options of where the data lie and where the results go."""
    group.add_argument("--digits", action="store_true", help="the bundled 8 × 8 digits in every panel, to try it out")
    group.add_argument("--data-dir", type=home_path, default=None, help="folder in which the data lie")
    group.add_argument(
        "--out",
        type=home_path,
        default=None,
        help="folder of the runs; the names of tables and figures begin with it (default: figures/aevb; with --quick "
        "figures/aevb_quick)",
    )
    group.add_argument("--quiet", action="store_true", help="no line for each run")


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    done = "the runs that had ended are in {out}; the same command goes on"
    return exit_status(lambda: parse_arguments(argv), measure, done)


def measure(args: argparse.Namespace) -> int:
    """Do the runs and print the report; return 1 if a run failed."""
    failed = 0 if args.report else run_all(args)
    print(gather(args.out, [f"{panel}-{algorithm}" for panel in PANELS for algorithm in PANELS[panel].algorithms]))
    return 1 if failed else 0


def run_all(args: argparse.Namespace) -> int:
    """Do all requested runs that are not in the folder yet, ``--jobs`` at a time; return how many of them failed."""
    runs = [run for run in asked_for(args) if not is_done(args.out / f"{run.name}.json", vars(run))]
    make_folder(args.out)
    for name in {run.dataset for run in runs}:
        load(name, root=args.data_dir)  # once, before many processes look for it
    return run_together({run.name: partial(finish, run, args) for run in runs}, args.jobs, args.quiet)


def asked_for(args: argparse.Namespace) -> list[PanelRun]:
    """Return the runs of a command line; ValueError for impossible settings."""
    samples = int(args.samples / (10 if args.quick else 1))
    if samples < MINIBATCH:
        raise ValueError(f"--samples: wanted at least {MINIBATCH}, a minibatch, got {samples}")
    choice = min(QUICK_CHOICE if args.quick else CHOICE, samples)
    draws = QUICK_DRAWS if args.quick else DRAWS
    return [
        PanelRun(
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


if __name__ == "__main__":
    sys.exit(main())
