"""The variances of gradient estimators in the course of a training."""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO

from pyro_vae import VAE, Conditional, Training, plots
from pyro_vae.comparison import Comparison, compare_estimators
from pyro_vae.config import build_vae
from pyro_vae.data import Data
from pyro_vae.estimators import DoublyReparameterized, ImportanceWeighted, ScoreFunction, StickingTheLanding
from pyro_vae.runs.commands import attempted, load_data
from pyro_vae.runs.folders import results_folder, save_figure, write_json
from pyro_vae.runs.origins import describe, provenance
from pyro_vae.saved import METRICS
from pyro_vae.training import fixed_x


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
