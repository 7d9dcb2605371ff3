#!/usr/bin/env python
"""How much do gradient estimators vary?

One VAE is trained; at initialisation, after the first epoch and at the end every estimator is drawn many times at fixed
parameters on fixed images.

    python experiments/compare_estimators.py
    python experiments/compare_estimators.py --quick

The results are the tables, all numbers as JSON, and one figure. The largest number of particles takes most of the time;
fewer --images take less, and make every variance smaller.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO

from pyro_vae import VAE, Training
from pyro_vae.comparison import Comparison, compare_estimators
from pyro_vae.config import build_vae
from pyro_vae.data import Data
from pyro_vae.estimators import DoublyReparameterized, ImportanceWeighted, ScoreFunction, StickingTheLanding
from pyro_vae.plots import estimator_variance
from pyro_vae.runs import (
    attempted,
    describe,
    exit_status,
    load_data,
    provenance,
    results_folder,
    save_figure,
    write_json,
)
from pyro_vae.runs.options import add_data_options, add_part_options, parsed
from pyro_vae.saved import METRICS
from pyro_vae.training import fixed_x

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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_part_options(parser)
    group = parser.add_argument_group("training, by Trace_ELBO")
    group.add_argument("--epochs", type=int, default=10, help="at least 2")
    group.add_argument("--batch", type=int, default=128)
    group.add_argument("--lr", type=float, default=1e-3, help="step of Adam")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    group = parser.add_argument_group("measurement")
    group.add_argument("--draws", type=int, default=1000, help="draws of each estimator at each stage")
    group.add_argument("--images", type=int, default=32, help="training images in the fixed batch")
    group.add_argument(
        "--particles",
        type=int,
        nargs="+",
        default=[1, 8, 64],
        metavar="K",
        help="particles of the importance-weighted estimators",
    )
    group = add_data_options(parser, None, "folder of the results (default: figures/<dataset>-estimators-seed<seed>)")
    group.add_argument("--overwrite", action="store_true", help="replace the results of another run in --out")
    group.add_argument("--quick", action="store_true", help="a small network on the digits, few draws: seconds")
    parser.set_defaults(latent=20)
    quick = argparse.ArgumentParser(add_help=False)
    quick.add_argument("--quick", action="store_true")
    if quick.parse_known_args(argv)[0].quick:
        parser.set_defaults(**QUICK)
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
    attempted({figure.name: lambda: save_figure(figure, estimator_variance(numbers, title))}, left_out)
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


def train(vae: VAE, images: Data, args: argparse.Namespace) -> Iterator[tuple[str, float | None]]:
    """Train to the next stage; yield its name and the bound on the validation images."""
    yield "at initialisation", None
    options: dict[str, Any] = {"epochs": args.epochs, "batch_size": args.batch, "lr": args.lr, "seed": args.seed}
    training = Training(vae, images, **options, progress=not args.quiet)
    for row in training:
        if row["epoch"] == 1:
            yield "after 1 epoch", row["valid_bound"]
    if training.history.interrupted:
        raise KeyboardInterrupt
    yield f"after {args.epochs} epochs", max(row["valid_bound"] for row in training.history.rows)


def measure(vae: VAE, images: Data, args: argparse.Namespace) -> Comparison:
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


if __name__ == "__main__":
    sys.exit(main())
