#!/usr/bin/env python
"""What is a richer prior or guide worth? The same networks, training and seeds with another module in one slot.

    python experiments/compare_priors_and_guides.py
    python experiments/compare_priors_and_guides.py --rows flow-guide --flow-depth 8
    python experiments/compare_priors_and_guides.py --report

Each row and seed leaves its own file in --out as soon as it ends; what lies there with the same settings is not run
again. So several commands can share the rows and seeds, and one that was interrupted goes on. In the end, and with
--report alone, all that lies in --out is put into one table, <out>.json, and one figure, <out>.png: bounds on dynamic
MNIST in nats per image, mean over the seeds ± its standard error, and the difference from the standard row, which is
taken seed by seed.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from parts import (
    ESTIMATORS,
    PRECISIONS,
    SCHEDULES,
    add_data_options,
    add_network_options,
    add_settings_of_priors_and_guides,
    add_training_options,
    parsed,
)
from results import beside, exit_status, is_done, make_folder, mean, parts_of, provenance, save_figure, write_json
from run import choose_device, describe, has_closed_kl
from torch import Tensor, nn

from pyro_vae import VAE, analysis, evaluate, fit, load
from pyro_vae.config import TAKEN_BY, build_guide, build_likelihood, build_prior
from pyro_vae.data.sets import Data, Split
from pyro_vae.handlers import KLWeighted, LinearWarmUp
from pyro_vae.plots import COLOURS, DPI, GREY
from pyro_vae.training.loop import History, fixed_x

STANDARD = "standard"
SLOTS = ("prior", "guide")
ROWS = {  # in the words of run.py
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", choices=ROWS, nargs="+", default=[STANDARD, "vamp", "flow-prior", "flow-guide"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--report", action="store_true", help="run nothing: gather what lies in --out")
    add_settings_of_priors_and_guides(parser.add_argument_group("priors and guides"))
    add_network_options(parser, latent=32)
    parser.set_defaults(components=500, flow_depth=4, flow_width=256, hidden=[])  # short runs: no dense layers
    group = add_training_options(parser, epochs=30)
    group.add_argument("--precision", choices=PRECISIONS, default="bfloat16", help="of the networks in training")
    group.add_argument(
        "--warm-up", type=float, default=0.0, metavar="EPOCHS", help="in which the weight of the KL grows from 0 to 1"
    )
    group.add_argument("--particles", type=int, default=10, metavar="K", help="draws of z per image in the evaluation")
    add_data_options(
        parser,
        Path("figures/priors_and_guides"),
        "folder of the single runs, and beside it name of the table and the figure",
    )
    return parsed(parser, argv)


def main(argv: list[str] | None = None) -> int:
    done = "the runs that had ended are in {out}; the same command goes on"
    return exit_status(lambda: parse_arguments(argv), measure, done)


def measure(args: argparse.Namespace) -> None:
    if not args.report:
        run(args)
    print(gather(args.out))


def run(args: argparse.Namespace) -> None:
    """All seeds of all rows that are not in the folder yet, seed by seed."""
    images = load(args.dataset, root=args.data_dir).to(choose_device(args.device))
    if images.note:
        print(f"NOTE: {images.note}", file=sys.stderr)
    make_folder(args.out)
    for seed in args.seeds:
        for row in args.rows:
            path = args.out / f"{name_of(row, args)}-seed{seed}.json"
            settings = {"dataset": images.name, **{name: getattr(args, name) for name in COMMON}}
            if is_done(path, settings):
                continue
            print(f"{row}, seed {seed}", flush=True)
            part = {
                "row": row,
                "name": name_of(row, args),
                "seed": seed,
                "settings": settings,
                "own": own(row, args),
                "dataset": describe(images),
                "versions": provenance(),
                **train(row, seed, images, args),
            }
            write_json(path, part)
            print(f"{row}, seed {seed}: validation bound {part['valid']['bound']:.2f} nats per image", flush=True)


def train(row: str, seed: int, images: Data, args: argparse.Namespace) -> dict[str, Any]:
    """The numbers of one row and seed. KeyboardInterrupt where the training was interrupted."""
    torch.manual_seed(seed)
    vae = build(row, args, images.train.images.cpu()).to(images.train.images.device)
    started = time.perf_counter()
    history = trained(vae, images, seed, args)
    if history.interrupted:
        raise KeyboardInterrupt
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
    """The program of a row. At one seed all rows start from the same decoder and encoder."""
    prior, guide = ROWS[row]
    words = argparse.Namespace(**vars(args), prior=prior, guide=guide, lik="bernoulli", binarize="dynamic")
    shape = tuple(images.shape[1:])
    likelihood, posterior = build_likelihood(words, shape), build_guide(words, shape)
    return VAE(build_prior(words, posterior, images), likelihood, posterior)


def trained(vae: VAE, images: Data, seed: int, args: argparse.Namespace) -> History:
    program = KLWeighted(vae) if args.warm_up > 0 else vae

    def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(parameters, lr=args.lr, fused=True)
        steps = args.warm_up * len(images.train) / args.batch
        return program.anneal(optimizer, LinearWarmUp(steps)) if program is not vae else optimizer

    return fit(
        program,
        images,
        ESTIMATORS[args.estimator](1),
        epochs=args.epochs,
        batch_size=args.batch,
        seed=seed,
        optimizer=adam,
        schedule=SCHEDULES[args.schedule],
        precision=PRECISIONS[args.precision],
        engine=args.engine,
        progress=not args.quiet,
    )


def measured(vae: VAE, split: Split, particles: int) -> dict[str, float]:
    # Small batches: a mixture scores images × particles × components at once.
    evaluation = evaluate(vae, fixed_x(vae, split.images), particles=particles, batch_size=100)
    return {**evaluation.summary(), "particles": particles}


def own(row: str, args: argparse.Namespace) -> dict[str, int]:
    """The options that a prior or guide alone depends on."""
    return {
        option: getattr(args, option)
        for slot, word in zip(SLOTS, ROWS[row])
        for option, takers in TAKEN_BY.items()
        if word in takers.get(slot, ())
    }


def name_of(row: str, args: argparse.Namespace) -> str:
    """The row with the options that are its own, such as flow-guide-depth4-width256; a prior's before a guide's."""
    return "-".join([row, *(f"{option.rpartition('_')[2]}{value}" for option, value in own(row, args).items())])


def gather(out: Path) -> str:
    """Table and figure of all runs in the folder, written beside it; returns the table in words."""
    parts = parts_of(out)
    table = tabulate(list(parts.values()))
    first = next(iter(parts.values()))
    save_figure(beside(out, ".png"), picture(table, first))
    runs = [
        {key: value for key, value in part.items() if key not in ("settings", "dataset", "history")}
        | {"valid_bound_by_epoch": [row["valid_bound"] for row in part["history"]]}
        for part in parts.values()
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
    """For each row: means over its seeds, and their differences from the standard row at the same seeds."""
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
    def cell(entry: dict[str, Any] | None, digits: int = 2, sign: str = "") -> str:
        if entry is None:
            return ""
        error = "" if entry["standard_error"] is None else f" ± {entry['standard_error']:.{digits}f}"
        return f"{entry['mean']:{sign}.{digits}f}{error}"

    width = max(map(len, table))
    lines = [
        f"{'':<{width}} {'validation':>16} {'gain':>14} {'test':>16} {'gain':>14} {'active':>6} {'seconds':>7} "
        f"{'engine':>8}"
    ]
    for name, row in table.items():
        lines.append(
            f"{name:<{width}} {cell(row['valid']):>16} {cell(row['valid_gain'], sign='+'):>14} {cell(row['test']):>16} "
            f"{cell(row['test_gain'], sign='+'):>14} {row['active_units']['mean']:>6.1f} {row['seconds']['mean']:>7.0f}"
            f" {'/'.join(row['engines']):>8}   seeds {' '.join(map(str, row['seeds']))}"
        )
    return "\n".join([*lines, "nats per image, higher is better; gains are differences from standard, seed by seed"])


def picture(table: dict[str, dict[str, Any]], run: dict[str, Any]) -> Figure:
    """Bounds, and gains over the standard row, each with two standard errors and the single seeds."""
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
