"""``pyro-vae compare``: how much gradient estimators vary."""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO

from pyro_vae import VAE, Conditional, Training, plots
from pyro_vae.comparison import Comparison, compare_estimators
from pyro_vae.config import build_vae
from pyro_vae.data import Data
from pyro_vae.estimators import DoublyReparameterized, ImportanceWeighted, ScoreFunction, StickingTheLanding
from pyro_vae.runs.commands import attempted, exit_status, load_data
from pyro_vae.runs.folders import results_folder, save_figure, write_json
from pyro_vae.runs.options import (
    BATCH,
    DEVICE,
    EPOCHS,
    LR,
    SEED,
    add_data_options,
    add_options,
    add_part_options,
    add_quick,
    parsed,
)
from pyro_vae.runs.origins import describe, provenance
from pyro_vae.runs.parser import Parser
from pyro_vae.saved import METRICS
from pyro_vae.training import fixed_x

DESCRIPTION = """\
How much do gradient estimators vary?

One VAE is trained. At initialisation, after the first epoch and at the end every estimator of the bound and its
gradient is drawn many times, at fixed parameters and on fixed images. The results are tables, all numbers as JSON, and
a figure.

    pyro-vae compare --quick
    pyro-vae compare --dataset mnist --draws 200

The largest number of particles takes most of the time; fewer --images take less, and make every variance smaller.
"""
QUICK = {
    "dataset": "digits",
    "net": "mlp",
    "hidden": [32],
    "latent": 4,
    "epochs": 2,
    "batch": 64,
    "images": 16,
    "draws": 40,
    "particles": [1, 4],
}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = Parser(prog="pyro-vae compare", description=DESCRIPTION)
    group = parser.add_argument_group("measurement")
    group.add_argument("--draws", type=int, default=1000, metavar="N", help="draws of each estimator at each stage")
    group.add_argument("--images", type=int, default=32, metavar="N", help="training images in the fixed batch")
    group.add_argument(
        "--particles",
        type=int,
        nargs="+",
        default=[1, 8, 64],
        metavar="K",
        help="draws of z per image, of the importance-weighted estimators",
    )
    group = add_data_options(parser, None, "of the results (default: figures/<dataset>-estimators-seed<seed>)")
    group.add_argument("--overwrite", action="store_true", help="replace the results of another run in --out")
    add_part_options(parser, latent=20)
    group = parser.add_argument_group("training", "by Trace_ELBO and Adam")
    epochs = replace(EPOCHS, help=f"{EPOCHS.help}, at least 2")
    add_options(group, [epochs, replace(BATCH, default=128), replace(LR, default=1e-3), SEED, DEVICE])
    add_quick(parser, argv, QUICK, "a small network on the digits, few draws: seconds")
    return parsed(parser, argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(lambda: parse_arguments(argv), run, "nothing is saved")


def run(args: argparse.Namespace) -> None:
    """Train, compare at each stage and write the results."""
    started = time.perf_counter()
    images = load_data(args)
    if args.epochs < 2 or not 1 <= args.images <= len(images.train):
        raise ValueError(
            f"--epochs: wanted at least 2, --images: 1 to {len(images.train)} (the training images); "
            f"got {args.epochs} and {args.images}"
        )
    torch.manual_seed(args.seed)
    vae = build_vae(args, images.train.images.cpu()).to(images.train.images.device)
    out = args.out or Path("figures") / f"{images.name}-estimators-seed{args.seed}"
    with results_folder(out, args.overwrite) as folder:
        stages, bounds = {}, {}
        for stage, bound in train(vae, images, args):
            stages[stage], bounds[stage] = measure(vae, images, args), bound
            print(f"\n{stage}\n\n{stages[stage]}", flush=True)
        tables = "\n\n\n".join(f"{stage}\n\n{table}" for stage, table in stages.items())
        (folder / "tables.txt").write_text(tables + "\n", encoding="utf-8")
        numbers = {stage: comparison.to_dict() for stage, comparison in stages.items()}
        left_out = draw(numbers, f"{images.name}, {args.images} images, {args.draws} draws", folder)
        metrics = {
            "settings": vars(args),
            "dataset": describe(images),
            "versions": provenance(),
            "valid_bound": bounds,
            "stages": numbers,
            "left_out": left_out,
            "seconds": time.perf_counter() - started,
        }
        write_json(folder / METRICS, metrics)
    lost = [f"left out: {name}: {why}" for name, why in left_out.items()]
    print("", *lost, f"results in {out}, {time.perf_counter() - started:.0f} seconds", sep="\n")


def draw(numbers: dict[str, Any], title: str, folder: Path) -> dict[str, str]:
    """Draw the figure; return why it is left out, if it is."""
    figure, left_out = folder / "estimators.png", {}
    attempted({figure.name: lambda: save_figure(figure, plots.estimator_variance(numbers, title))}, left_out)
    return left_out


def estimators(particles: list[int]) -> dict[str, ELBO]:
    """Return all estimators that are compared, by their names in tables and figure."""
    return {
        "L^A": Trace_ELBO(),
        "L^B": TraceMeanField_ELBO(),
        "sticking the landing": StickingTheLanding(),
        "score function": ScoreFunction(),
        "score, baseline K = 2": ScoreFunction(2, baseline="leave-one-out"),
        **{f"IWAE, K = {K}": ImportanceWeighted(K) for K in sorted(particles)},
        **{f"DReG, K = {K}": DoublyReparameterized(K) for K in sorted(particles)},
    }


def train(vae: VAE | Conditional, images: Data, args: argparse.Namespace) -> Iterator[tuple[str, float | None]]:
    """Train to the next stage; yield its name and the bound on the validation images."""
    options: dict[str, Any] = {"epochs": args.epochs, "batch_size": args.batch, "lr": args.lr, "seed": args.seed}
    training = Training(vae, images, **options, progress=not args.quiet)  # before the first stage: it checks options
    yield "at initialisation", None
    for row in training:
        if row["epoch"] == 1:
            yield "after 1 epoch", row["valid_bound"]
    if training.history.interrupted:
        raise KeyboardInterrupt
    yield f"after {args.epochs} epochs", max(row["valid_bound"] for row in training.history.rows)


def measure(vae: VAE | Conditional, images: Data, args: argparse.Namespace) -> Comparison:
    """Compare the estimators at the present parameters."""
    x = fixed_x(vae, images.train.images[: args.images])
    return compare_estimators(
        vae,
        x,
        estimators=estimators(args.particles),
        draws=args.draws,
        seed=args.seed,
        progress=not args.quiet,
    )
