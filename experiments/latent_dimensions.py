#!/usr/bin/env python
"""How many latent dimensions does a VAE use, and do too many of them harm? The same VAE with z of 2 to 200 dimensions.

    python experiments/latent_dimensions.py
    python experiments/latent_dimensions.py --dimensions 500 --seeds 0 1
    python experiments/latent_dimensions.py --report

Each run, of one number of dimensions and seed, writes its own file into --out when it ends, and is not repeated with
the same settings. So several commands can share the work, and the same command continues one that was interrupted. At
the end, or at once with --report, all runs in --out are gathered in one table, <out>.json, and one figure, <out>.png:
bounds in nats per image on training and test images, active units (Burda et al. 2016), and the rate of each dimension.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, StrMethodFormatter

from pyro_vae import analysis
from pyro_vae.config import PartSettings, build_vae
from pyro_vae.data import Data
from pyro_vae.plots import DPI, GREY, TRAIN, VALID
from pyro_vae.runs import (
    SingleRun,
    add_jobs_option,
    beside,
    describe,
    estimate,
    has_closed_kl,
    load_data,
    make_folder,
    mean,
    run_missing,
    save_figure,
    single_runs,
    sweep_status,
    trained,
    write_json,
)
from pyro_vae.runs.options import PRECISIONS, add_data_options, add_part_options, add_training_options, parsed
from pyro_vae.runs.parser import Parser
from pyro_vae.training import evaluate, fixed_x

COMMON = ("epochs", "batch", "lr", "schedule", "precision", "estimator", "particles")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[2, 5, 10, 20, 50, 100, 200], metavar="D")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    add_jobs_option(parser)
    parser.add_argument("--report", action="store_true", help="run nothing: gather the runs in --out")
    add_part_options(parser, latent=None)
    parser.set_defaults(net="mlp")
    group = add_training_options(parser, epochs=30, lr=3e-3)
    group.add_argument("--precision", choices=PRECISIONS, default="float32", help="of the networks in training")
    group.add_argument("--particles", type=int, default=10, metavar="K", help="draws of z per image in the evaluation")
    add_data_options(
        parser,
        Path("figures/latent_dimensions"),
        "folder of the runs; the table and the figure have its name, with .json and .png",
    )
    return parsed(parser, argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return sweep_status(lambda: parse_arguments(argv), run, lambda args: gather(args.out))


def run(args: argparse.Namespace) -> int:
    """Do all numbers of dimensions and seeds that are not in the folder yet; return how many failed."""
    images = load_data(args)
    make_folder(args.out)
    runs = [single_run(latent, seed, images, args) for seed in args.seeds for latent in args.dimensions]
    return run_missing(runs, args.jobs)


def single_run(latent: int, seed: int, images: Data, args: argparse.Namespace) -> SingleRun:
    """Return the run of one number of dimensions and one seed."""
    parts = PartSettings.of(argparse.Namespace(**vars(args), latent=latent))
    settings = common_settings(parts, images, args)
    entries = {"latent": latent, "seed": seed, "settings": settings, "dataset": describe(images)}
    work, path = partial(train, parts, seed, images, args), args.out / f"z{latent}-seed{seed}.json"
    return SingleRun(path, f"D = {latent}, seed {seed}", entries, work, line)


def line(result: dict[str, Any]) -> str:
    """Return the result of a run as a line."""
    return f"test bound {result['test']['bound']:.2f} nats per image, {result['active_units']} active units"


def common_settings(parts: PartSettings, images: Data, args: argparse.Namespace) -> dict[str, Any]:
    """Return what all runs of one table share: everything but the number of dimensions."""
    settings = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(parts).items()
        if name != "latent"
    }
    return {"dataset": images.name, **settings, **{name: getattr(args, name) for name in COMMON}}


def train(parts: PartSettings, seed: int, images: Data, args: argparse.Namespace) -> dict[str, Any]:
    """Return the results for one number of dimensions and one seed."""
    torch.manual_seed(seed)
    vae = build_vae(parts, images.train.images.cpu()).to(images.train.images.device)
    history = trained(vae, images, seed, args)
    started = time.perf_counter()
    pixels = {"train": images.train.images[: len(images.test)], "test": images.test.images}
    x = {split: fixed_x(vae, part) for split, part in pixels.items()}
    rates = analysis.rate_per_dimension(vae, x["test"]).tolist() if has_closed_kl(vae, images) else None
    return {
        **{split: evaluate(vae, part, particles=args.particles).summary() for split, part in x.items()},
        "active_units": int(analysis.active_units(analysis.codes(vae, x["test"])).sum()),
        "rate_per_dimension": rates,
        "parameters": sum(parameter.numel() for parameter in vae.parameters()),
        "best_epoch": history.best_epoch,
        "engine": history.engine,
        "seconds": {"training": history.rows[-1]["seconds"], "evaluation": time.perf_counter() - started},
    }


def gather(out: Path) -> str:
    """Write table and figure of all runs in the folder beside it; return the table as text."""
    parts = list(single_runs(out).values())
    table = tabulate(parts)
    save_figure(beside(out, ".png"), picture(table, parts))
    write_json(
        beside(out, ".json"),
        {
            "settings": parts[0]["settings"],
            "dataset": parts[0]["dataset"],
            "dimensions": table,
            "runs": [
                {key: value for key, value in part.items() if key not in ("settings", "dataset")} for part in parts
            ],
        },
    )
    return in_words(table)


def tabulate(parts: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Return the means over the seeds for each number of dimensions, in increasing order."""
    table = {}
    for latent in sorted({part["latent"] for part in parts}):
        runs = sorted((part for part in parts if part["latent"] == latent), key=lambda part: part["seed"])
        table[latent] = {
            "seeds": [part["seed"] for part in runs],
            **{split: mean([part[split]["bound"] for part in runs]) for split in ("train", "test")},
            "test_standard_error_over_images": max(part["test"]["standard_error"] for part in runs),
            **{name: mean([part["test"][name] for part in runs]) for name in ("rate", "distortion")},
            "active_units": mean([part["active_units"] for part in runs]),
            "seconds": mean([part["seconds"]["training"] for part in runs]),
        }
    return table


def in_words(table: dict[int, dict[str, Any]]) -> str:
    """Return the table as text."""
    lines = [
        f"{'D':>5} {'test bound':>16} {'training bound':>16} {'rate':>7} {'distortion':>10} {'active':>7} "
        f"{'seconds':>7}"
    ]
    for latent, row in table.items():
        bounds = " ".join(
            f"{estimate(row[split]['mean'], row[split]['standard_error']):>16}" for split in ("test", "train")
        )
        lines.append(
            f"{latent:>5} {bounds} {row['rate']['mean']:>7.2f} {row['distortion']['mean']:>10.2f} "
            f"{row['active_units']['mean']:>7.1f} {row['seconds']['mean']:>7.0f}   seeds "
            f"{' '.join(map(str, row['seeds']))}"
        )
    return "\n".join([*lines, "nats per image, bounds: higher is better, ± standard error over the seeds"])


def picture(table: dict[int, dict[str, Any]], parts: list[dict[str, Any]]) -> Figure:
    """Draw bounds, active units, and the sorted rates of the single dimensions."""
    figure = Figure(figsize=(11.5, 3.9), dpi=DPI, layout="constrained")
    bounds, units, rates = figure.subplots(1, 3)
    for split, colour, label in (("train", TRAIN, "training images"), ("test", VALID, "test images")):
        points(bounds, {latent: row[split] for latent, row in table.items()}, colour, label)
    bounds.set_ylabel("bound (nats per image)")
    bounds.legend(frameon=False, fontsize="small")
    points(units, {latent: row["active_units"] for latent, row in table.items()}, VALID, "active")
    units.plot(list(table), list(table), color=GREY, linewidth=0.8, linestyle="--", label="all of them")
    units.set_yscale("symlog", linthresh=1)  # none active is a result too
    units.set_yticks(list(table), [str(latent) for latent in table])
    units.yaxis.set_minor_locator(NullLocator())
    units.set_ylim(bottom=0)
    units.set_ylabel("active units on test images")
    units.legend(frameon=False, fontsize="small")
    for axes in (bounds, units):
        axes.set_xscale("log")
        axes.set_xticks(list(table), [str(latent) for latent in table])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("latent dimensions D")
    spectra(rates, table, parts)
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    settings = parts[0]["settings"]
    seeds = {len(row["seeds"]) for row in table.values()}
    figure.suptitle(
        f"{settings['dataset']}, {settings['lik']} likelihood, {settings['net']} networks, "
        f"{settings['epochs']} epochs, {'one seed' if seeds == {1} else 'a faint point for each seed'}",
        fontsize="medium",
    )
    return figure


def points(axes: Axes, entries: dict[int, dict[str, Any]], colour: str, label: str) -> None:
    """Draw a line through the means, and the single seeds."""
    axes.plot(
        list(entries), [entry["mean"] for entry in entries.values()], "o-", color=colour, label=label, markersize=4
    )
    seeds = [(latent, value) for latent, entry in entries.items() for value in entry["values"]]
    axes.scatter(*zip(*seeds), s=10, color=colour, alpha=0.5, linewidths=0)


def spectra(axes: Axes, table: dict[int, dict[str, Any]], parts: list[dict[str, Any]]) -> None:
    """Draw KL(q(z_d | x) ‖ p(z_d)) of each dimension, in decreasing order, for the first seed of each D."""
    shades = colormaps["viridis"]
    for place, latent in enumerate(table):
        run = min((part for part in parts if part["latent"] == latent), key=lambda part: part["seed"])
        if run["rate_per_dimension"] is not None:
            ordered = sorted(run["rate_per_dimension"], reverse=True)
            axes.plot(
                range(1, latent + 1),
                ordered,
                "o-",
                color=shades(0.9 - 0.9 * place / len(table)),
                label=f"D = {latent}",
                markersize=2,
                linewidth=1,
            )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("dimension, the largest rate first")
    axes.set_ylabel("rate on test images (nats)")
    if axes.lines:
        axes.legend(frameon=False, fontsize="x-small")
    else:
        axes.text(0.5, 0.5, "no closed form", ha="center", transform=axes.transAxes)


if __name__ == "__main__":
    sys.exit(main())
