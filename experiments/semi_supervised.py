#!/usr/bin/env python
"""A VAE learns to classify from few labels: semi-supervised learning on MNIST (Kingma et al. 2014, M2).

    python experiments/semi_supervised.py
    python experiments/semi_supervised.py --labels 100 --seeds 0 1 2 --epochs 5
    python experiments/semi_supervised.py --report

The program is ``m2.program.M2``: p(y) p(z) p(x | y, z) with the guide q(y | x) q(z | x, y). Rows with a label observe
y; in the others y is summed out exactly, or drawn (--estimator drawn). The classifier q(y | x) starts as one that was
trained on the labelled rows alone, whose error stands beside; its input is moved at random in training (--jitter).

Each run, of one number of labels and seed, writes its own file into --out when it ends, and is not repeated with the
same settings. At the end, or at once with --report, the runs in --out are gathered in one table, <out>.json, and one
figure, <out>.png; <out>_analogies.png has test images in a column, beside those with the same z and each class y.

The settings were found by trials on seed 0, whose test error was seen once on the way: its errors may be too good.
One epoch is what the computing time allowed.
"""

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import Generator, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from experiments.m2.program import CLASSES, M2, analogies, build
from experiments.m2.report import PUBLISHED, in_words, picture, tabulate
from pyro_vae import evaluate, fit
from pyro_vae.checks import whole_number
from pyro_vae.data import Data, Split
from pyro_vae.files import write_whole
from pyro_vae.plots import samples
from pyro_vae.random import mode
from pyro_vae.runs import (
    SingleRun,
    add_jobs_option,
    beside,
    describe,
    load_data,
    make_folder,
    run_missing,
    save_figure,
    single_runs,
    sweep_status,
    write_json,
)
from pyro_vae.runs.options import DEVICE, ENGINE, PRECISION, PRECISIONS, add_data_options, add_options, parsed
from pyro_vae.runs.parser import Parser
from pyro_vae.training import warm_cosine

TRAINING = ("epochs", "batch", "lr", "classifier_lr", "alpha", "share", "pretraining", "estimator", "precision")
COMMON = (*TRAINING, "latent", "hidden", "jitter")
ESTIMATORS = {"summed": TraceEnum_ELBO(max_plate_nesting=1), "drawn": Trace_ELBO()}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--labels", type=int, nargs="+", default=[100, 600, 1000, 3000], metavar="N", help="in all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of labels, parameters and batches")
    add_jobs_option(parser)
    parser.add_argument("--report", action="store_true", help="run nothing: gather the runs in --out")
    parser.add_argument("--quick", action="store_true", help="one epoch of one run with 100 labels")
    group = parser.add_argument_group("program")
    group.add_argument("--latent", type=int, default=10, help="dimensions of z")
    group.add_argument("--hidden", type=int, default=128, metavar="UNITS", help="of each dense layer")
    group.add_argument("--jitter", type=float, default=0.2, help="of the classifier's input in training, 0 for none")
    group = parser.add_argument_group("training")
    group.add_argument("--estimator", choices=ESTIMATORS, default="summed", help="whether y is summed out or drawn")
    group.add_argument("--alpha", type=float, default=10.0, help="weight of log q(y | x) in a row with a label")
    group.add_argument("--share", type=float, default=0.1, help="of rows with a label: they are repeated in the data")
    group.add_argument("--pretraining", type=int, default=600, metavar="STEPS", help="of the classifier alone")
    group.add_argument("--epochs", type=int, default=1)
    group.add_argument("--batch", type=int, default=64, help="rows of a step")
    group.add_argument("--lr", type=float, default=4e-3, help="largest step of Adam")
    group.add_argument(
        "--classifier-lr", type=float, default=2e-4, help="the same for the classifier, which has a start"
    )
    add_options(group, [replace(PRECISION, default="bfloat16"), ENGINE, DEVICE])
    add_data_options(
        parser,
        Path("figures/semi_supervised"),
        "folder of the runs; the table and the figure have its name, with .json and .png",
    )
    args = parsed(parser, argv)
    if args.quick:
        args.labels, args.seeds, args.epochs, args.pretraining = args.labels[:1], args.seeds[:1], 1, 100
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return sweep_status(lambda: parse_arguments(argv), run, lambda args: gather(args.out))


def run(args: argparse.Namespace) -> int:
    """Do all numbers of labels and seeds that are not in the folder yet; return how many failed."""
    images = load_data(args)
    partly = {
        (count, seed): with_few_labels(images, count, args.share, seed) for seed in args.seeds for count in args.labels
    }
    for name in ("latent", "hidden", "pretraining"):
        whole_number(f"--{name}", getattr(args, name))
    make_folder(args.out)
    settings = {"dataset": images.name, **{name: getattr(args, name) for name in COMMON}}
    runs = []
    for (count, seed), data in partly.items():
        path = args.out / f"labels{count}-seed{seed}.json"
        entries = {"labels": count, "seed": seed, "settings": settings, "dataset": describe(images)}
        work = partial(train, data, images, seed, args, path.with_suffix(".png"))
        runs.append(SingleRun(path, f"{count} labels, seed {seed}", entries, work, line))
    return run_missing(runs, args.jobs)


def line(result: dict[str, Any]) -> str:
    """Return the result of a run as a line."""
    return f"test error {result['m2']['test']:.2%}, of the classifier alone {result['alone']['test']:.2%}"


def with_few_labels(images: Data, count: int, share: float, seed: int) -> Data:
    """Return data of which ``count`` training rows keep their label, as many in each class, and are repeated.

    They are repeated until they are the ``share`` of all rows, so that every batch has some. The objective counts such
    a row as often.
    """
    labels = images.train.labels
    each, rest = divmod(whole_number("--labels", count), CLASSES)
    rarest = int(torch.bincount(labels, minlength=CLASSES).min())
    if rest or each > rarest:
        raise ValueError(f"--labels: wanted a multiple of {CLASSES} up to {CLASSES * rarest}, got {count}")
    if not 0 < share < 1:
        raise ValueError(f"--share: wanted a number between 0 and 1, got {share:g}")
    order = torch.randperm(len(labels), generator=Generator().manual_seed(seed))
    kept = torch.cat([order[labels[order].cpu() == y][:each] for y in range(CLASSES)])
    others = torch.ones(len(labels), dtype=torch.bool).index_fill(0, kept, False).nonzero().flatten()
    visits = max(1, round(len(others) * share / (1 - share) / count))
    rows = torch.cat([others, kept.repeat(visits)]).to(labels.device)
    hidden = torch.where(torch.arange(len(rows), device=labels.device) < len(others), -1, labels[rows])
    valid = images.valid[:1000]
    unlabelled = Split(images=valid.images, labels=torch.full_like(valid.labels, -1))
    return Data(images.name, Split(images=images.train.images[rows], labels=hidden), unlabelled, images.test)


def train(data: Data, images: Data, seed: int, args: argparse.Namespace, picture: Path) -> dict[str, Any]:
    """Return the errors of the classifier alone and of the one in M2; draw the analogies."""
    torch.manual_seed(seed)
    program = build(images, args).to(data.train.images.device)
    pretrain(program, data.train[data.train.labels >= 0], args.pretraining)
    alone = {split: error(program, getattr(images, split)) for split in ("valid", "test")}
    history = fit(
        program,
        data,
        ESTIMATORS[args.estimator],
        epochs=args.epochs,
        batch_size=args.batch,
        optimizer=lambda _: adam(program, args),
        schedule=classifier_later,
        precision=PRECISIONS[args.precision],
        seed=seed,
        engine=args.engine,
        keep="last",
        progress=not args.quiet,
    )
    if history.interrupted:
        raise KeyboardInterrupt
    save_figure(picture, samples(analogies(program, images.test), columns=CLASSES + 1))
    return {
        "alone": alone,
        "m2": {split: error(program, getattr(images, split)) for split in ("valid", "test")},
        "bound": evaluate(program, data.valid).summary(),
        "visits": int((data.train.labels >= 0).sum()),
        "parameters": sum(parameter.numel() for parameter in program.parameters()),
        "engine": history.engine,
        "history": history.rows,
    }


def adam(program: M2, args: argparse.Namespace) -> torch.optim.Adam:
    """Return Adam with smaller steps for the classifier than for the networks that begin with random weights."""
    classifier = list(program.classifier.parameters())
    known = {id(parameter) for parameter in classifier}
    others = [parameter for parameter in program.parameters() if id(parameter) not in known]
    groups = [{"params": others}, {"params": classifier, "lr": args.classifier_lr}]
    return torch.optim.Adam(groups, args.lr, fused=True)


def classifier_later(optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """Return the schedule: the classifier stands still for a quarter of the steps, and both fall to zero in the end."""

    def falling(step: int) -> float:
        return min(1.0, 2 * (1 - step / steps))

    return LambdaLR(optimizer, [falling, lambda step: falling(step) if 4 * step > steps else 0.0])


def pretrain(program: M2, labelled: Split, steps: int, lr: float = 2e-3) -> None:
    """Train the classifier alone on the rows that have a label."""
    optimizer = torch.optim.Adam(program.classifier.parameters(), lr)
    schedule = warm_cosine(optimizer, steps)
    for _ in range(steps):
        x, y = program.observe(labelled[torch.randint(len(labelled), (100,))])
        optimizer.zero_grad()
        nn.functional.cross_entropy(program.classifier(x), y).backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def error(program: M2, split: Split) -> float:
    """Return the share of rows that the classifier takes for another class, given their grey levels."""
    with mode(program, training=False):
        wrong = [
            program.classifier(part.images.float() / 255).argmax(-1) != part.labels
            for part in (split[start : start + 1000] for start in range(0, len(split), 1000))
        ]
    return torch.cat(wrong).float().mean().item()


def gather(out: Path) -> str:
    """Write table, figure and analogies of all runs in the folder beside it; return the table as text."""
    parts = list(single_runs(out).values())
    table = tabulate(parts)
    save_figure(beside(out, ".png"), picture(table))
    styles = out / f"labels{max(table)}-seed{table[max(table)]['seeds'][0]}.png"
    write_whole(beside(out, "_analogies.png"), styles.read_bytes())
    entries = [{key: value for key, value in part.items() if key not in ("settings", "dataset")} for part in parts]
    first = {key: parts[0][key] for key in ("settings", "dataset")}
    write_json(beside(out, ".json"), {**first, "published": PUBLISHED, "labels": table, "runs": entries})
    return in_words(table)


if __name__ == "__main__":
    sys.exit(main())
