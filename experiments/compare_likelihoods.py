#!/usr/bin/env python
"""Which likelihood is best, on the same images, in the same unit?

One VAE is trained under each of them, with the settings of run.py, and measured: bits/dim if the likelihood scores grey
levels, nats if it scores black and white pixels, and for all of them what does not depend on the likelihood: probes of
the codes, error of the pictures.

    python experiments/compare_likelihoods.py
    python experiments/compare_likelihoods.py --families beta logistic --seeds 0
    python experiments/compare_likelihoods.py --report

Each run is saved when it ends and is not trained again. So the same command continues one that was interrupted, and
several processes may share the work, each with its own --families or --seeds. At the end, or at once with --report, all
runs in --out are gathered: table (likelihoods.txt), numbers (likelihoods.json), figure (likelihoods.png) and
likelihood_pictures.png.
Every run is a folder that ``evidence.py --run`` takes too.
"""

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from experiments.likelihoods.families import DEFAULT, FAMILIES, FAMILY_SETTINGS, RUNS, SHARED_SETTINGS
from experiments.likelihoods.measurement import measure, strips
from experiments.likelihoods.report import report, scores, unit
from pyro_vae import VAE
from pyro_vae.config import build_vae
from pyro_vae.data import Data
from pyro_vae.runs import (
    add_jobs_option,
    arguments,
    attempted,
    describe,
    load_data,
    make_folder,
    provenance,
    results_folder,
    run_together,
    sweep_status,
    trained,
    write_json,
)
from pyro_vae.runs.options import add_data_options
from pyro_vae.runs.parser import Parser
from pyro_vae.saved import METRICS, PARAMETERS, describe_model
from pyro_vae.training import History, NonFiniteLoss
from pyro_vae.training.engines import ENGINES


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--families",
        nargs="+",
        choices=FAMILIES,
        default=DEFAULT,
        metavar="NAME",
        help=f"of {', '.join(FAMILIES)} (default: all but categorical-256)",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add_jobs_option(parser)
    parser.add_argument("--report", action="store_true", help="train nothing: gather the runs in --out")
    group = parser.add_argument_group("training, the rest as in run.py")
    group.add_argument("--net", choices=("conv", "mlp"), default="conv")
    group.add_argument("--latent", type=int, default=20, metavar="D")
    group.add_argument(
        "--hidden", type=int, nargs="*", default=[], metavar="UNITS", help="as in run.py (default: no dense layers)"
    )
    group.add_argument("--epochs", type=int, default=5)
    group.add_argument(
        "--engine", choices=ENGINES, default="auto", help="what takes the steps; all give the same training"
    )
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    group = parser.add_argument_group("measurement")
    group.add_argument("--evidence", type=int, default=1000, metavar="K", help="particles of the bound L_K")
    group.add_argument("--images", type=int, default=1000, help="test images for L_K, from the first on")
    group = add_data_options(parser, Path("figures"), "folder of the results", quiet="no progress bar")
    group.add_argument("--overwrite", action="store_true", help="train again the runs that are already in --out")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return sweep_status(lambda: parse_arguments(argv), train_all, lambda args: report(args.out))


def train_all(args: argparse.Namespace) -> int:
    """Do the runs that are not there yet, all families with the first seed, then the next; return how many failed."""
    images = load_data(args)
    if args.evidence < 1 or not 1 <= args.images <= len(images.test):
        raise ValueError(
            f"--evidence: wanted at least 1, --images: 1 to {len(images.test)} (the test images); got "
            f"{args.evidence} and {args.images}"
        )
    make_folder(args.out / RUNS)
    works = {}
    for seed in args.seeds:
        for name in args.families:
            settings, folder = run_settings(args, name, seed, images), args.out / RUNS / f"{name}-seed{seed}"
            if (folder / METRICS).is_file() and not args.overwrite:
                check_same(folder, identity(settings, args, images))
            else:
                works[f"{name}, seed {seed}"] = partial(train_one, name, settings, images, args, folder)
    return run_together(works, args.jobs)


def train_one(name: str, settings: argparse.Namespace, images: Data, args: argparse.Namespace, folder: Path) -> str:
    """Do one run, leave its folder and return a line about it."""
    with results_folder(folder, args.overwrite) as temporary:
        metrics = {
            "family": name,
            **identity(settings, args, images),
            "versions": provenance(),
            **run(settings, images, args, temporary),
        }
        write_json(temporary / METRICS, metrics)
    return line(metrics)


def run_settings(args: argparse.Namespace, name: str, seed: int, images: Data) -> argparse.Namespace:
    """Return the options of run.py that train this run."""
    settings = arguments.parse_arguments(
        [
            *FAMILIES[name].words.split(),
            "--net",
            args.net,
            "--latent",
            str(args.latent),
            "--hidden",
            *map(str, args.hidden),
            "--epochs",
            str(args.epochs),
            "--seed",
            str(seed),
            "--engine",
            args.engine,
            *["--quiet"] * args.quiet,
        ]
    )
    arguments.fill_in(settings, images)
    return settings


def identity(settings: argparse.Namespace, args: argparse.Namespace, images: Data) -> dict[str, Any]:
    """Return what the numbers of a run depend on."""
    return {
        "settings": {name: getattr(settings, name) for name in (*FAMILY_SETTINGS, *SHARED_SETTINGS)},
        "measurement": {"particles": args.evidence, "images": args.images},
        "dataset": describe(images),
    }


def check_same(folder: Path, wanted: dict[str, Any]) -> None:
    """Raise ValueError if the folder holds another run than the one that is wanted."""
    found = json.loads((folder / METRICS).read_text())
    for part, values in wanted.items():
        for name, value in values.items():
            if name != "note" and found[part].get(name) != value:
                raise ValueError(
                    f"{folder} holds a run with {part} {name} = {found[part].get(name)}, wanted {value}; "
                    "give another --out, or --overwrite"
                )


def run(settings: argparse.Namespace, images: Data, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train one VAE, save parameters and pictures and return its numbers; "failed" says why there are none."""
    started = time.perf_counter()
    torch.manual_seed(settings.seed)
    vae = build_vae(settings, images.train.images.cpu()).to(images.train.images.device)
    outcome: dict[str, Any] = {"failed": None, "results": None}
    try:
        history = trained(vae, images, settings.seed, settings)
        outcome |= {"best_epoch": history.best_epoch, "engine": history.engine}
        outcome |= measured(vae, images, history, args, folder)
    except NonFiniteLoss as error:
        outcome["failed"] = str(error)
    model, parameters = describe_model(vae, settings, images.shape)
    (folder / PARAMETERS).write_bytes(parameters)
    return {**outcome, **model, "seconds": time.perf_counter() - started}


def measured(vae: VAE, images: Data, history: History, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure a trained VAE and save its pictures; what fails is left out, with the reason."""
    left_out: dict[str, str] = {}

    def results() -> dict[str, Any]:
        return {
            **measure(vae, images, args.evidence, args.images),
            "training_seconds": history.rows[-1]["seconds"],
        }

    done = attempted(
        {"results": results, "pictures": lambda: torch.save(strips(vae, images), folder / "pictures.pt")}, left_out
    )
    return {"left_out": left_out, "failed": left_out.get("results"), "results": done.get("results")}


def line(metrics: dict[str, Any]) -> str:
    """Return one run as a line."""
    if metrics["failed"]:
        return metrics["failed"]
    results, score = metrics["results"], scores(metrics["results"])
    return (
        f"bound {score['bound']['mean']:.3f}, L_{metrics['measurement']['particles']} "
        f"{score['log_px']['mean']:.3f} {unit(results)}, {results['training_seconds']:.0f} seconds of training, "
        f"{metrics['seconds']:.0f} in all"
    )


if __name__ == "__main__":
    sys.exit(main())
