#!/usr/bin/env python
"""What is a richer prior or guide worth? The same networks, training and seeds with another module in one slot.

    python experiments/compare_priors_and_guides.py
    python experiments/compare_priors_and_guides.py --rows flow-guide --flow-depth 8
    python experiments/compare_priors_and_guides.py --report

Each run, of one row and seed, writes its own file into --out when it ends, and is not repeated with the same settings.
So several commands can share the work, and the same command continues one that was interrupted. At the end, or at once
with --report, all runs in --out are gathered in one table, <out>.json, and one figure, <out>.png: bounds on dynamic
MNIST in nats per image, mean over the seeds ± its standard error, and the difference from the standard row, seed by
seed.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae import VAE, analysis
from pyro_vae.config import TAKEN_BY, build_guide, build_likelihood, build_prior
from pyro_vae.data import Data, Split
from pyro_vae.plots import COLOURS, DPI, GREY
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
from pyro_vae.runs.options import (
    PRECISIONS,
    add_data_options,
    add_network_options,
    add_settings_of_priors_and_guides,
    add_training_options,
    parsed,
)
from pyro_vae.runs.parser import Parser
from pyro_vae.training import evaluate, fixed_x

STANDARD = "standard"
SLOTS = ("prior", "guide")
ROWS = {  # --prior and --guide of run.py
    STANDARD: ("standard", "meanfield"),
    "diagonal": ("diagonal", "meanfield"),
    "mixture": ("mixture", "meanfield"),
    "vamp": ("vamp", "meanfield"),
    "flow-prior": ("autoregressive", "meanfield"),
    "spline-prior": ("spline", "meanfield"),
    "full-rank": ("standard", "full-rank"),
    "low-rank": ("standard", "low-rank"),
    "planar-guide": ("standard", "planar"),
    "flow-guide": ("standard", "inverse-autoregressive"),
    "flow-both": ("autoregressive", "inverse-autoregressive"),
}
COMMON = (
    "latent",
    "net",
    "hidden",
    "epochs",
    "batch",
    "lr",
    "schedule",
    "precision",
    "estimator",
    "warm_up",
    "particles",
)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--rows", choices=ROWS, nargs="+", default=[STANDARD, "vamp", "flow-prior", "flow-guide"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add_jobs_option(parser)
    parser.add_argument("--report", action="store_true", help="run nothing: gather the runs in --out")
    add_settings_of_priors_and_guides(parser.add_argument_group("priors and guides"))
    add_network_options(parser, latent=32)
    parser.set_defaults(components=500, flow_depth=4, flow_width=256, hidden=[])  # short runs: no dense layers
    group = add_training_options(parser, epochs=30, lr=3e-3)
    group.add_argument("--precision", choices=PRECISIONS, default="bfloat16", help="of the networks in training")
    group.add_argument(
        "--warm-up", type=float, default=0.0, metavar="EPOCHS", help="epochs in which the KL weight grows from 0 to 1"
    )
    group.add_argument("--particles", type=int, default=10, metavar="K", help="draws of z per image in the evaluation")
    add_data_options(
        parser,
        Path("figures/priors_and_guides"),
        "folder of the runs; the table and the figure have its name, with .json and .png",
    )
    return parsed(parser, argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return sweep_status(lambda: parse_arguments(argv), run, lambda args: gather(args.out))


def run(args: argparse.Namespace) -> int:
    """Do all seeds of all rows that are not in the folder yet, seed by seed; return how many failed."""
    images = load_data(args)
    for row in args.rows:  # an option that a row cannot have is known before anything is trained
        build(row, args, images.train.images.cpu())
    make_folder(args.out)
    return run_missing([single_run(row, seed, images, args) for seed in args.seeds for row in args.rows], args.jobs)


def single_run(row: str, seed: int, images: Data, args: argparse.Namespace) -> SingleRun:
    """Return the run of one row and seed."""
    name = name_of(row, args)
    entries = {
        "row": row,
        "name": name,
        "seed": seed,
        "settings": {"dataset": images.name, **{option: getattr(args, option) for option in COMMON}},
        "own": own(row, args),
        "dataset": describe(images),
    }
    work, path = partial(train, row, seed, images, args), args.out / f"{name}-seed{seed}.json"
    return SingleRun(path, f"{row}, seed {seed}", entries, work, line)


def line(result: dict[str, Any]) -> str:
    """Return the result of a run as a line."""
    return f"validation bound {result['valid']['bound']:.2f} nats per image"


def train(row: str, seed: int, images: Data, args: argparse.Namespace) -> dict[str, Any]:
    """Return the numbers of one row and seed."""
    torch.manual_seed(seed)
    vae = build(row, args, images.train.images.cpu()).to(images.train.images.device)
    started = time.perf_counter()
    history = trained(vae, images, seed, args)
    return {
        "valid": measured(vae, images.valid, args.particles),
        "test": measured(vae, images.test, args.particles),
        "active_units": int(analysis.active_units(analysis.codes(vae, fixed_x(vae, images.valid.images))).sum()),
        "kl_in_closed_form": has_closed_kl(vae, images),
        "parameters": sum(parameter.numel() for parameter in vae.parameters()),
        "best_epoch": history.best_epoch,
        "engine": history.engine,
        "seconds": {"training": history.rows[-1]["seconds"], "all": time.perf_counter() - started},
        "history": history.rows,
    }


def build(row: str, args: argparse.Namespace, images: Tensor) -> VAE:
    """Return the program of a row. At one seed all rows start from the same decoder and encoder."""
    prior, guide = ROWS[row]
    words = argparse.Namespace(**vars(args), prior=prior, guide=guide, lik="bernoulli", binarize="dynamic")
    shape = tuple(images.shape[1:])
    likelihood, posterior = build_likelihood(words, shape), build_guide(words, shape)
    return VAE(build_prior(words, posterior, images), likelihood, posterior)


def measured(vae: VAE, split: Split, particles: int) -> dict[str, float]:
    """Return bound, rate and distortion of a split, in nats per image."""
    # Small batches: a mixture scores images × particles × components at once.
    evaluation = evaluate(vae, fixed_x(vae, split.images), particles=particles, batch_size=100)
    return {**evaluation.summary(), "particles": particles}


def own(row: str, args: argparse.Namespace) -> dict[str, int]:
    """Return the options that only this row's prior or guide takes."""
    return {
        option: getattr(args, option)
        for slot, word in zip(SLOTS, ROWS[row])
        for option, takers in TAKEN_BY.items()
        if word in takers.get(slot, ())
    }


def name_of(row: str, args: argparse.Namespace) -> str:
    """Return the row with its own options, such as flow-guide-depth4-width256; a prior's before a guide's."""
    return "-".join([row, *(f"{option.rpartition('_')[2]}{value}" for option, value in own(row, args).items())])


def gather(out: Path) -> str:
    """Write table and figure of all runs in the folder beside it; return the table as text."""
    parts = list(single_runs(out).values())
    table, first = tabulate(parts), parts[0]
    save_figure(beside(out, ".png"), picture(table, first))
    runs = [
        {key: value for key, value in part.items() if key not in ("settings", "dataset", "history")}
        | {"valid_bound_by_epoch": [row["valid_bound"] for row in part["history"]]}
        for part in parts
    ]
    write_json(
        beside(out, ".json"),
        {
            "settings": first["settings"],
            "dataset": first["dataset"],
            "rows": table,
            "runs": runs,
        },
    )
    return in_words(table)


def tabulate(parts: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return for each row the means over its seeds, and their differences from the standard row at the same seeds."""
    order = list(ROWS)
    names = sorted({part["name"]: order.index(part["row"]) for part in parts}.items(), key=lambda item: item[1])
    runs = {name: {part["seed"]: part for part in parts if part["name"] == name} for name, _ in names}
    table = {}
    for name, seeds in runs.items():
        row: dict[str, Any] = {"seeds": sorted(seeds)}
        for split in ("valid", "test"):
            bounds = {seed: part[split]["bound"] for seed, part in seeds.items()}
            base = {seed: part[split]["bound"] for seed, part in runs.get(STANDARD, {}).items() if seed in bounds}
            row[split] = mean(list(bounds.values()))
            row[f"{split}_gain"] = mean([bounds[seed] - base[seed] for seed in base]) if name != STANDARD else None
        for part in ("rate", "distortion"):
            row[f"valid_{part}"] = mean([run["valid"][part] for run in seeds.values()])
        row["active_units"] = mean([run["active_units"] for run in seeds.values()])
        row["seconds"] = mean([run["seconds"]["training"] for run in seeds.values()])
        row["engines"] = sorted({run.get("engine", "eager") for run in seeds.values()})
        row["kl_in_closed_form"] = all(run["kl_in_closed_form"] for run in seeds.values())
        table[name] = row
    return table


def in_words(table: dict[str, dict[str, Any]]) -> str:
    """Return the table as text."""
    width = max(map(len, table))
    lines = [
        f"{'':<{width}} {'validation':>16} {'gain':>14} {'test':>16} {'gain':>14} {'active':>6} {'seconds':>7} "
        f"{'engine':>8}"
    ]
    for name, row in table.items():
        bounds = " ".join(
            f"{cell(row[split]):>16} {cell(row[f'{split}_gain'], '+'):>14}" for split in ("valid", "test")
        )
        lines.append(
            f"{name:<{width}} {bounds} {row['active_units']['mean']:>6.1f} {row['seconds']['mean']:>7.0f}"
            f" {'/'.join(row['engines']):>8}   seeds {' '.join(map(str, row['seeds']))}"
        )
    return "\n".join([*lines, "nats per image, higher is better; gains are differences from standard, seed by seed"])


def cell(entry: dict[str, Any] | None, sign: str = "") -> str:
    """Return a mean over seeds with its standard error; nothing if there is none."""
    return "" if entry is None else estimate(entry["mean"], entry["standard_error"], sign=sign)


def picture(table: dict[str, dict[str, Any]], run: dict[str, Any]) -> Figure:
    """Draw bounds, and gains over the standard row, each with two standard errors and the single seeds."""
    figure = Figure(figsize=(10.4, 1.7 + 0.45 * len(table)), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, suffix, label in zip(panels, ("", "_gain"), ("bound", "gain over the standard row, seed by seed")):
        for split, colour, place in (("valid", COLOURS[0], -0.13), ("test", COLOURS[4], 0.13)):
            entries = [(i + place, row[split + suffix]) for i, row in enumerate(table.values()) if row[split + suffix]]
            errors = [2 * (entry["standard_error"] or 0) for _, entry in entries]
            axes.errorbar(
                [entry["mean"] for _, entry in entries],
                [at for at, _ in entries],
                xerr=errors,
                fmt="o",
                color=colour,
                capsize=3,
                label={"valid": "validation", "test": "test"}[split],
            )
            seeds = [(value, at) for at, entry in entries for value in entry["values"]]
            axes.scatter(*zip(*seeds) if seeds else ([], []), s=8, color=colour, alpha=0.5, linewidths=0)
        axes.set_xlabel(f"{label} (nats per image)")
        axes.grid(alpha=0.3)
    panels[1].axvline(0, color=GREY, linewidth=0.8)
    panels[0].set_yticks(range(len(table)), list(table))
    panels[0].set_ylim(len(table) - 0.5, -0.5)
    panels[0].legend(frameon=False, fontsize="small")
    settings = run["settings"]
    figure.suptitle(
        f"{settings['dataset']}, dynamically binarised, D = {settings['latent']}, {settings['epochs']} epochs; "
        f"bars: two standard errors over the seeds",
        fontsize="medium",
    )
    return figure


if __name__ == "__main__":
    sys.exit(main())
