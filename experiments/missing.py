#!/usr/bin/env python
"""How well does a VAE that is trained on data with gaps fill them in? MIWAE (Mattei & Frellsen 2019) against others.

    python experiments/missing.py
    python experiments/missing.py --data wine diabetes --seeds 0
    python experiments/missing.py --report

A share of the values is removed, each by chance, from black and white MNIST digits and from real tables. MIWAE is a
``Masked`` program trained by ``ImportanceWeighted``; the missing values are those of ``impute``. It is compared with
column means, scikit-learn's IterativeImputer and chained forests in the manner of missForest, by the root mean squared
error (RMSE) of the removed values, in tables in standard deviations of the seen values. On a table all methods see the
same gaps as they fill in. On MNIST they fill in test images; the two chained methods learn from 2,000 training images
and predict each pixel from its nearest ones, since all of them would take hours.

Each run, of one data set and seed, writes its own file into --out when it ends, and is not repeated with the same
settings, so that several commands can share the work. At the end, or at once with --report, all runs in --out are
gathered in one table, <out>.json, and the digits of the first run are drawn in <out>.png.
"""

import argparse
import shutil
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.imputation import pictures
from experiments.imputation.methods import extra_trees, iterative_imputer, mean_imputer, random_forests, rmse
from experiments.imputation.tables import FEW_ROWS, TABLES, miwae, standardised
from pyro_vae import UntrustedImputation, load
from pyro_vae.checks import whole_number
from pyro_vae.plots import image_rows
from pyro_vae.runs import (
    SingleRun,
    add_jobs_option,
    beside,
    estimate,
    make_folder,
    mean,
    run_missing,
    save_figure,
    single_runs,
    sweep_status,
    write_json,
)
from pyro_vae.runs.options import home_path
from pyro_vae.runs.parser import Parser

METHODS = "MIWAE", "mean", "iterative", "forests"
IMAGES = "mnist", "digits"
ROUNDS = 10  # of the forests, as in missForest
FORESTS_OF_MANY = {"trees": 20, "max_iter": 3}  # ExtraTrees, on tables of many rows


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = Parser(description=__doc__)
    names = [*IMAGES, *TABLES]
    parser.add_argument(
        "--data", nargs="+", choices=names, default=["mnist", *TABLES], metavar="NAME", help=f"of {', '.join(names)}"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the gaps and of all methods")
    parser.add_argument("--share", type=float, default=0.5, help="of the values that are removed")
    add_jobs_option(parser)
    parser.add_argument("--report", action="store_true", help="run nothing: gather the runs in --out")
    parser.add_argument("--quick", action="store_true", help="a short run on small data, which shows nothing")
    parser.add_argument("--trees", type=int, default=100, help="of the forests on tables of up to 1,000 rows")
    group = parser.add_argument_group("MIWAE on tables")
    group.add_argument("--steps", type=int, default=6000, help="at most")
    group.add_argument("--rows", type=int, default=64, help="of a step")
    group.add_argument("--particles", type=int, default=20, metavar="K", help="in training")
    group.add_argument("--lr", type=float, default=1e-3)
    group.add_argument("--family", choices=("student", "normal"), default="student", help="of a column given z")
    group = parser.add_argument_group("MIWAE on digits")
    group.add_argument("--epochs", type=int, default=15)
    group.add_argument("--images", type=int, default=1000, help="test images that are filled in")
    parser.add_argument("--draws", type=int, default=2000, metavar="K", help="particles of the imputation by MIWAE")
    parser.add_argument("--data-dir", type=home_path, default=None, help="folder in which the images lie")
    parser.add_argument("--out", type=home_path, default=Path("figures/missing"), help="folder of the runs")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)
    if args.quick:
        args.data, args.seeds, args.steps, args.epochs, args.images, args.draws = (
            ["digits", "wine"],
            [0],
            50,
            2,
            50,
            200,
        )
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return sweep_status(lambda: checked(parse_arguments(argv)), run_all, lambda args: report(args.out))


def checked(args: argparse.Namespace) -> argparse.Namespace:
    """Return the options; ValueError for numbers that cannot be."""
    if not 0 < args.share < 1:
        raise ValueError(f"--share: wanted a number between 0 and 1, got {args.share}")
    for name in ("steps", "rows", "epochs", "images", "particles", "draws", "trees"):
        whole_number(f"--{name}", getattr(args, name))
    return args


def run_all(args: argparse.Namespace) -> int:
    """Do the runs that are missing; return how many failed."""
    make_folder(args.out)
    names = ("share", "steps", "rows", "family", "epochs", "images", "particles", "draws", "lr", "trees")
    settings = {name: getattr(args, name) for name in names}
    runs = []
    for seed in args.seeds:
        for name in args.data:
            path = args.out / f"{name.replace(' ', '-')}-seed{seed}.json"
            entries = {"data": name, "seed": seed, "settings": settings}
            runs.append(SingleRun(path, f"{name}, seed {seed}", entries, partial(run, name, seed, args), line))
    return run_missing(runs, args.jobs)


def run(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Return the numbers of one data set and seed; the pictures of digits are written beside."""
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrustedImputation)  # the results hold the share of these rows
        if name in IMAGES:
            training = args.out / f"{name}-seed{seed}"
            numbers, rows = pictures.measure(load(name, root=args.data_dir), seed, training, args)
            shutil.rmtree(training)
            save_figure(args.out / f"{name}-seed{seed}.png", image_rows(rows))
        else:
            numbers = on_table(TABLES[name](), seed, args)
    return {"results": numbers, "seconds": time.perf_counter() - started}


def on_table(table: np.ndarray, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Remove values of a table, and return how well each method fills them in."""
    mask = np.random.default_rng(seed).random(table.shape) >= args.share
    table = standardised(table, mask)
    x = np.where(mask, table, np.nan)
    filled, told = miwae(table, mask, seed, args)
    few = len(table) <= FEW_ROWS
    forests = random_forests(seed, args.trees, ROUNDS) if few else extra_trees(seed, **FORESTS_OF_MANY)
    methods = {"mean": mean_imputer, "iterative": iterative_imputer(seed), "forests": forests}
    others = {name: method(x, x) for name, method in methods.items()}
    errors = {name: rmse(values, table, mask) for name, values in ({"MIWAE": filled} | others).items()}
    return {"rmse": errors, "removed": float((~mask).mean()), "rows": len(table), "columns": table.shape[1], **told}


def line(result: dict[str, Any]) -> str:
    """Return the errors of one run as a line."""
    errors = ", ".join(f"{name} {result['results']['rmse'][name]:.4f}" for name in METHODS)
    return f"RMSE: {errors}; {result['seconds']:.0f} seconds"


def report(out: Path) -> str:
    """Gather all runs into <out>.json and <out>.png; return the table of errors, mean and standard error over seeds."""
    runs = list(single_runs(out).values())
    data: dict[str, Any] = {}
    for name in dict.fromkeys(run["data"] for run in runs):
        of_data = [run for run in runs if run["data"] == name]
        errors = {method: mean([run["results"]["rmse"][method] for run in of_data]) for method in METHODS}
        data[name] = {"rmse": errors, "runs": of_data}
    write_json(beside(out, ".json"), {"settings": runs[0]["settings"], "data": data})
    drawn = sorted(out.glob("*-seed*.png"))
    if drawn:
        beside(out, ".png").write_bytes(drawn[0].read_bytes())
    head = f"{'RMSE of removed values':<24}{''.join(f'{method:>20}' for method in METHODS)}"
    rows = [f"{name:<24}{''.join(f'{cell(of[method]):>20}' for method in METHODS)}" for name, of in errors_of(data)]
    return "\n".join([head, *rows])


def errors_of(data: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the name of each data set with its number of seeds, and its errors."""
    return [(f"{name} ({len(of['runs'])} seeds)", of["rmse"]) for name, of in data.items()]


def cell(error: dict[str, Any]) -> str:
    """Return a mean with its standard error."""
    return estimate(error["mean"], error["standard_error"], 4)


if __name__ == "__main__":
    sys.exit(main())
