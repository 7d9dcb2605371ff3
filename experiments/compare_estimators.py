#!/usr/bin/env python
"""Which gradient estimator varies how much? One VAE is trained; at initialisation, after the first epoch and at the end
every estimator is drawn many times at fixed parameters on fixed images.

    python experiments/compare_estimators.py
    python experiments/compare_estimators.py --quick

In the results: the tables, all numbers as JSON, and one figure. Most of the time goes into the largest number of
particles; fewer --images make it shorter, and every variance smaller.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from parts import add_data_options, add_part_options, parsed
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from results import METRICS, attempted, exit_status, provenance, results_folder, write_json
from run import choose_device, describe
from torch import nn

from pyro_vae import VAE, fit, load
from pyro_vae.comparison.compare import Comparison, compare_estimators
from pyro_vae.config import build_vae
from pyro_vae.data.sets import Data
from pyro_vae.estimators import DoublyReparameterized, ImportanceWeighted, ScoreFunction, StickingTheLanding
from pyro_vae.plots import estimator_variance
from pyro_vae.training.loop import fixed_x

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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_part_options(parser)
    group = parser.add_argument_group("training, by Trace_ELBO")
    group.add_argument("--epochs", type=int, default=10, help="at least 2")
    group.add_argument("--batch", type=int, default=128)
    group.add_argument("--lr", type=float, default=1e-3, help="step of Adam")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    group = parser.add_argument_group("measurement")
    group.add_argument("--draws", type=int, default=1000, help="of each estimator, at each stage")
    group.add_argument("--images", type=int, default=32, help="of the training set, in the fixed batch")
    group.add_argument(
        "--particles",
        type=int,
        nargs="+",
        default=[1, 8, 64],
        metavar="K",
        help="of the importance-weighted estimators",
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
    return exit_status(lambda: parse_arguments(argv), run, "nothing is saved")


def run(args: argparse.Namespace) -> int:
    started = time.perf_counter()
    device = choose_device(args.device)
    images = load(args.dataset, root=args.data_dir).to(device)
    if args.epochs < 2 or not 1 <= args.images <= len(images.train):
        raise ValueError(
            f"--epochs: wanted at least 2, --images: 1 to {len(images.train)} (the training images); "
            f"got {args.epochs} and {args.images}"
        )
    torch.manual_seed(args.seed)
    vae = build_vae(args, images.train.images.cpu()).to(device)
    out = args.out or Path("figures") / f"{images.name}-estimators-seed{args.seed}"
    with results_folder(out, args.overwrite) as folder:
        stages, bounds = {}, {}
        for stage, bound in train(vae, images, args):
            stages[stage], bounds[stage] = measure(vae, images, args), bound
            print(f"\n{stage}\n\n{stages[stage]}", flush=True)
        numbers = {stage: comparison.to_dict() for stage, comparison in stages.items()}
        title = f"{images.name}, {args.images} images, {args.draws} draws"
        figure, left_out = folder / "estimators.png", {}
        attempted({figure.name: lambda: estimator_variance(numbers, title).savefig(figure)}, left_out)
        tables = "\n\n\n".join(f"{stage}\n\n{table}" for stage, table in stages.items())
        (folder / "tables.txt").write_text(tables + "\n", encoding="utf-8")
        write_json(
            folder / METRICS,
            {
                "settings": vars(args),
                "dataset": describe(images),
                "versions": provenance(),
                "valid_bound": bounds,
                "stages": numbers,
                "left_out": left_out,
                "seconds": time.perf_counter() - started,
            },
        )
    print(
        "",
        *(f"left out: {name}: {why}" for name, why in left_out.items()),
        f"results in {out}, {time.perf_counter() - started:.0f} seconds",
        sep="\n",
    )
    return 0


def estimators(particles: list[int]) -> dict[str, ELBO]:
    """All that are compared, by the name that tables and figure give them."""
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
    """Trains to the next stage and gives its name and the bound on the validation images; one Adam for all epochs."""
    yield "at initialisation", None
    adam = torch.optim.Adam(vae.parameters(), lr=args.lr)

    def same(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return adam

    for epochs, stage in ((1, "after 1 epoch"), (args.epochs - 1, f"after {args.epochs} epochs")):
        history = fit(
            vae,
            images,
            epochs=epochs,
            batch_size=args.batch,
            seed=args.seed + epochs,
            optimizer=same,
            progress=not args.quiet,
        )
        if history.interrupted:
            raise KeyboardInterrupt
        yield stage, max(row["valid_bound"] for row in history.rows)


def measure(vae: VAE, images: Data, args: argparse.Namespace) -> Comparison:
    x = fixed_x(vae, images.train.images[: args.images])
    return compare_estimators(
        vae.model,
        vae.guide,
        x,
        estimators=estimators(args.particles),
        draws=args.draws,
        seed=args.seed,
        progress=not args.quiet,
    )


if __name__ == "__main__":
    sys.exit(main())
