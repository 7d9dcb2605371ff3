#!/usr/bin/env python
"""Counts of genes in cells from two labs: does a program with a library size and a lab label find what they are of?

    python experiments/counts.py
    python experiments/counts.py --quick
    python experiments/counts.py --report

Cells are simulated (``experiments/cells``): six types and a continuous state within each, library sizes that differ
between the labs, an effect of the lab on every gene. The program is that of Lopez et al. (2018), with and without the
label of the lab; principal components of log-normalised counts stand beside it. Measured on test cells:

- accuracy of the types by the nearest neighbours of the codes;
- mixing: the share of the other lab among a cell's 30 nearest, 1 where the labs are mixed within each type;
- the lab's effect and each gene's ln θ against the truth;
- the bound in nats per cell, beside log p(x | all that x was made from);
- the seconds of the training, and its memory beyond the data.

The weight of the KL grows over the first epochs. Without that (--warm-up 0) z may stay unused: with the label it did in
two of the first three trainings, at rates of 2.2 and 0.02 nats per cell.

Each run writes its own file into --out when it ends, and is not repeated with the same settings. At the end, or at once
with --report, all runs are gathered in <out>.json and <out>.png.
"""

import argparse
import math
import resource
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pyro.infer import TraceMeanField_ELBO

from experiments.cells.program import CountProgram
from experiments.cells.recovery import by_components, codes, of_program
from experiments.cells.simulation import LABS, World, simulated
from pyro_vae.data import Data
from pyro_vae.plots import COLOURS, DPI, GREY
from pyro_vae.runs import (
    SingleRun,
    add_jobs_option,
    beside,
    describe,
    make_folder,
    mean,
    run_missing,
    save_figure,
    single_runs,
    sweep_status,
    warmed_up,
    write_json,
)
from pyro_vae.runs.options import home_path, parsed
from pyro_vae.runs.parser import Parser
from pyro_vae.training import fit

WAYS = {"with the lab": LABS, "without the lab": 0}
SHOWN = 1000  # cells in the picture
QUICK = {"cells": 2000, "held_out": 500, "genes": 200, "epochs": 40}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--cells", type=int, default=20_000, metavar="N", help="cells for training")
    parser.add_argument("--held-out", type=int, default=2000, metavar="N", help="cells for validation, and for test")
    parser.add_argument("--genes", type=int, default=1000, metavar="D")
    parser.add_argument("--latent", type=int, default=10, metavar="D", help="dimensions of z")
    parser.add_argument("--width", type=int, default=128, metavar="UNITS", help="of the hidden layers")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument(
        "--warm-up",
        type=float,
        default=None,
        metavar="EPOCHS",
        help="in which the weight of the KL grows from 0 to 1 (default: a quarter of all)",
    )
    parser.add_argument("--engine", choices=("auto", "eager", "compiled"), default="auto")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    add_jobs_option(parser)
    parser.add_argument("--quick", action="store_true", help="fewer cells, genes and epochs")
    parser.add_argument("--report", action="store_true", help="train nothing: gather the runs in --out")
    parser.add_argument("--out", type=home_path, default=Path("figures/counts"), help="folder of the runs")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parsed(parser, argv)
    vars(args).update(QUICK if args.quick else {})
    args.warm_up = args.epochs / 4 if args.warm_up is None else args.warm_up
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return sweep_status(lambda: parse_arguments(argv), run, lambda args: gather(args.out))


def run(args: argparse.Namespace) -> int:
    """Do all runs that are not in the folder yet; return how many failed."""
    make_folder(args.out)
    names = ("cells", "held_out", "genes", "latent", "width", "epochs", "batch", "lr", "warm_up")
    settings = {name: getattr(args, name) for name in names}
    runs = []
    for seed in args.seeds:
        cells, world = simulated(args.cells, args.held_out, args.genes, seed)
        entries = {"seed": seed, "settings": settings, "dataset": describe(cells)}
        works = {way: partial(trained, labs, cells, world, seed, args) for way, labs in WAYS.items()}
        works["principal components"] = partial(by_components, cells, args.latent)
        for way, work in works.items():
            path = args.out / f"{way.removeprefix('principal ').replace(' ', '-')}-seed{seed}.json"
            runs.append(SingleRun(path, f"{way}, seed {seed}", {"way": way, **entries}, work, summary))
    return run_missing(runs, args.jobs)


def summary(result: dict[str, Any]) -> str:
    """Return a result as a line."""
    return f"types {result['type_accuracy']:.1%}, mixing {result['mixing']:.2f}"


def trained(labs: int, cells: Data, world: World, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Return the results of one program."""
    torch.manual_seed(seed)
    program = CountProgram(args.genes, labs, args.latent, args.width)
    before = peak_memory()
    weighted, by = warmed_up(program, args.lr, args.warm_up * math.ceil(len(cells.train) / args.batch))
    history = fit(
        weighted,
        cells,
        TraceMeanField_ELBO(),
        epochs=args.epochs,
        batch_size=args.batch,
        seed=seed,
        engine=args.engine,
        progress=not args.quiet,
        **by,
    )
    if history.interrupted:
        raise KeyboardInterrupt
    data = sum(field.numel() * field.element_size() for field in cells.train.fields.values())
    shown = codes(program, cells.test[:SHOWN])
    return {
        **of_program(program, cells, world),
        "plane": plane(shown).tolist(),
        "labels": cells.test.labels[:SHOWN].tolist(),
        "lab": cells.test.lab[:SHOWN].tolist(),
        "engine": history.engine,
        "seconds": history.rows[-1]["seconds"],
        "data_mb": data / 2**20,
        "memory_mb": peak_memory() - before,
        "history": history.rows,
    }


def peak_memory() -> float:
    """Return the most memory that this process has had, in MB; a second run in a process may not raise it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def plane(z: torch.Tensor) -> torch.Tensor:
    """Return the first two principal components of codes, (N, 2)."""
    centred = z - z.mean(0)
    return centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].T


def gather(out: Path) -> str:
    """Write table and figure of all runs in the folder beside it; return the table as text."""
    runs = list(single_runs(out).values())
    table = {
        way: tabulated([run for run in runs if run["way"] == way]) for way in dict.fromkeys(r["way"] for r in runs)
    }
    save_figure(beside(out, ".png"), picture(runs))
    unshown = ("settings", "dataset", "plane", "labels", "lab", "history")
    write_json(
        beside(out, ".json"),
        {
            "settings": runs[0]["settings"],
            "dataset": runs[0]["dataset"],
            "table": table,
            "runs": [{key: value for key, value in run.items() if key not in unshown} for run in runs],
        },
    )
    return in_words(table)


def tabulated(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the means over the seeds."""
    row: dict[str, Any] = {name: mean([run[name] for run in runs]) for name in ("type_accuracy", "mixing")}
    for name in ("seconds", "memory_mb", "data_mb", "log_px_given_the_truth"):
        row[name] = mean([run[name] for run in runs if name in run])
    row["bound"] = mean([run["test"]["bound"] for run in runs if "test" in run])
    row["distortion"] = mean([run["test"]["distortion"] for run in runs if "test" in run])
    for name in ("dispersion", "lab_effect"):
        row[name] = mean([run[name]["correlation"] for run in runs if name in run])
    return row


def in_words(table: dict[str, dict[str, Any]]) -> str:
    """Return the table as text."""
    columns = {
        "type_accuracy": "types",
        "mixing": "mixing",
        "lab_effect": "lab effect",
        "dispersion": "ln θ",
        "bound": "bound",
        "distortion": "distortion",
        "seconds": "seconds",
        "memory_mb": "MB",
        "data_mb": "data MB",
    }
    lines = [f"{'':<22}" + "".join(f"{name:>12}" for name in columns.values())]
    for way, row in table.items():
        cells = (row[name]["mean"] if row[name] else None for name in columns)
        lines.append(f"{way:<22}" + "".join(f"{'' if cell is None else f'{cell:.3f}':>12}" for cell in cells))
    truth = next(
        (row["log_px_given_the_truth"]["mean"] for row in table.values() if row["log_px_given_the_truth"]), None
    )
    note = "lab effect and ln θ: correlation with the truth; bound and distortion in nats per cell"
    return "\n".join([*lines, note, f"log p(x | all that x was made from): {truth:.1f} nats per cell"])


def picture(runs: list[dict[str, Any]]) -> Figure:
    """Draw the codes of test cells of the first seed, by type and by lab."""
    shown = {run["way"]: run for run in sorted(runs, key=lambda run: -run["seed"]) if "plane" in run}
    figure = Figure(figsize=(8.4, 4.2 * len(shown)), dpi=DPI, layout="constrained")
    grid = figure.subplots(len(shown), 2, squeeze=False)
    for axes, (way, run) in zip(grid, shown.items()):
        for one, name in zip(axes, ("labels", "lab")):
            scatter(one, run["plane"], run[name], "type" if name == "labels" else "lab")
        axes[0].set_title(f"{way}: types {run['type_accuracy']:.1%}", fontsize="medium")
        axes[1].set_title(f"mixing of the labs {run['mixing']:.2f}", fontsize="medium")
    figure.suptitle("Codes of test cells, first two principal components", fontsize="medium")
    return figure


def scatter(axes: Axes, plane: list[list[float]], classes: list[int], name: str) -> None:
    """Draw points in the colours of their classes."""
    for number in sorted(set(classes)):
        points = [point for point, one in zip(plane, classes) if one == number]
        axes.scatter(*zip(*points), s=5, alpha=0.6, linewidths=0, color=COLOURS[number], label=f"{name} {number}")
    axes.legend(fontsize="x-small", frameon=False, markerscale=2)
    axes.tick_params(labelsize="x-small", colors=GREY)


if __name__ == "__main__":
    sys.exit(main())
