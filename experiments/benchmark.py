#!/usr/bin/env python
"""How fast is a training step, compared with other ways to write the same VAE, and how does its cost grow?

    python experiments/benchmark.py                    # the MLP 784-400-20 and the conv 32-64 net, batch 128 and 512
    python experiments/benchmark.py --nets mlp --batches 128 --rounds 5 --only compiled "torch whole step"
    python experiments/benchmark.py --nets default --batches 256 --only fit "torch eager"
    python experiments/benchmark.py --scaling          # cost against images, particles, latent size and image side
    python experiments/benchmark.py --parts            # cost of other priors and guides, conv net, z of 32, batch 256
    python experiments/benchmark.py --start            # seconds to the first compiled step, cold and warm
    python experiments/benchmark.py --worth            # which trainings earn back the seconds of compiling
    python experiments/benchmark.py --programs         # Pyro's SVI and CompiledSVI on twenty programs
    python experiments/benchmark.py --ranks            # two processes against one
    python experiments/benchmark.py --quality          # seconds until log p(x) of test images is as published
    python experiments/benchmark.py --quality --recipes fast fast:100     # and what was reached after how many minutes
    python experiments/benchmark.py --profile --nets mlp --batches 128    # where a compiled step spends its time
    python experiments/benchmark.py --summary          # a row for everything that is wanted: reached or missed
    python experiments/benchmark.py --summary --groups step threads --against OLD.json

All ways train on the same images in memory and take turns: in each round every way takes some steps, one way after the
other, so that other work on the machine slows all of them. Compare ratios within a round: images a second depend on the
machine.

    fit               fit with engine="eager", which makes its own batches; the others are given theirs
    svi               pyro.infer.SVI with pyro.optim.Adam, as Pyro's tutorials have it
    eager, compiled   the engines of fit, in float32 and with the networks in bfloat16
    torch eager       the same step by hand: closed-form KL, fused Adam
    torch compiled    the same under torch.compile, backward() and fused Adam
    torch whole step  the same with gradient and Adam in one compiled graph, and the float32 matmul of fit
    numpyro           if numpyro and jax are installed: one jitted step, a scan over the steps of a round
"""

import argparse
import sys
from pathlib import Path

import pyro

from experiments.benchmarks import (
    parts,
    profile,
    programs,
    quality,
    ranks,
    record,
    scaling,
    speed,
    start,
    summary,
    worth,
)
from experiments.benchmarks.ways import WAYS
from pyro_vae import load
from pyro_vae.data import sets as data
from pyro_vae.runs import exit_status, make_folder, save_figure
from pyro_vae.runs.options import given, home_path
from pyro_vae.runs.parser import Parser
from pyro_vae.training.engines import keep_freed_memory

SPEED = "speed"  # the question of a command that names none
QUESTIONS = {
    SPEED: speed,
    "scaling": scaling,
    "parts": parts,
    "start": start,
    "ranks": ranks,
    "quality": quality,
    "worth": worth,
    "profile": profile,
    "summary": summary,
    "programs": programs,
}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = Parser(description=__doc__)
    group = parser.add_mutually_exclusive_group()
    for name, module in QUESTIONS.items():
        if name != SPEED:
            about = module.__doc__.splitlines()[0]
            group.add_argument(f"--{name}", dest="question", action="store_const", const=name, help=about)
    parser.set_defaults(question=SPEED)
    parser.add_argument(
        "--nets",
        nargs="+",
        choices=("mlp", "conv", "default"),
        default=["mlp", "conv"],
        help="'default': the network of run.py",
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 512], metavar="SIZE")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=WAYS,
        default=list(WAYS),
        metavar="WAY",
        help="ways to compare, of: " + ", ".join(WAYS),
    )
    parser.add_argument("--images", type=int, default=5120, help="images in a round of each way")
    parser.add_argument("--rounds", type=int, default=5)
    add_quality_options(parser)
    add_summary_options(parser)
    parser.add_argument("--dataset", choices=("auto", *data.NAMES), default="auto")
    parser.add_argument("--data-dir", type=home_path, default=None, help="folder in which the data lie")
    parser.add_argument(
        "--out",
        type=home_path,
        default=None,
        help="name of the results, to which .json and .png are added (default: figures/benchmark, and with _scaling, "
        "_parts … for the other questions); --quality keeps its runs in a folder of this name and repeats none",
    )
    args = parser.parse_args(argv)
    check_taken_by(args.question, given(parser, argv))
    return args


def add_quality_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of --quality, of which --summary takes some."""
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the runs of --quality")
    parser.add_argument(
        "--recipes",
        nargs="+",
        default=["fast"],
        metavar="RECIPE",
        help="recipes of --quality; fast:100 trains 100 epochs",
    )
    parser.add_argument(
        "--evidence", type=int, default=300, metavar="K", help="particles of --quality, from local proposals"
    )


def add_summary_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that only --summary has."""
    often = [name for name in summary.GROUPS if name not in summary.SELDOM]
    parser.add_argument(
        "--groups",
        nargs="+",
        choices=summary.GROUPS,
        default=often,
        metavar="GROUP",
        help=f"of the rows of --summary: {', '.join(summary.GROUPS)} (default: all but {', '.join(summary.SELDOM)})",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep the groups that the results of --summary hold already, by the same commit, machine and settings",
    )
    parser.add_argument(
        "--against",
        type=home_path,
        default=None,
        metavar="JSON",
        help="earlier results of --summary on the same machine: print each row divided by what it was",
    )


def check_taken_by(question: str, options: set[str]) -> None:
    """Raise ValueError for an option that the question ignores.

    >>> check_taken_by("scaling", {"question", "rounds"})
    >>> check_taken_by("scaling", {"question", "recipes"})
    Traceback (most recent call last):
        ...
    ValueError: --recipes: ignored beside --scaling; write --quality, or leave --recipes out
    """
    for option in sorted(options - set(QUESTIONS[question].OPTIONS)):
        takers = [name for name, module in QUESTIONS.items() if option in module.OPTIONS]
        if takers:
            beside = "without a question" if question == SPEED else f"beside --{question}"
            cures = [" or ".join(f"--{name}" for name in takers if name != SPEED), "no question" * (SPEED in takers)]
            cure = ", or ".join(filter(None, cures))
            raise ValueError(f"--{option}: ignored {beside}; write {cure}, or leave --{option} out")


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(
        lambda: parse_arguments(argv),
        measure,
        "only whole runs of --quality and whole groups of --summary are kept; go on with --resume",
    )


def measure(args: argparse.Namespace) -> int:
    """Measure what the question asks; print the table, write numbers and figure."""
    keep_freed_memory()  # as fit does
    images = load(args.dataset, root=args.data_dir)
    if tuple(images.shape) != (1, 28, 28):
        size = " × ".join(map(str, images.shape))
        raise ValueError(f"--dataset: wanted images of 1 × 28 × 28, got {images.name} of {size}; write --dataset mnist")
    question = QUESTIONS[args.question]
    args.out = args.out or Path("figures/benchmark" + f"_{args.question}" * (args.question != SPEED))
    make_folder(args.out.parent)
    with pyro.validation_enabled(False):
        found = question.measure(images, args)
    print(question.table(found))
    record.write(images.name, args, found)
    save_figure(args.out.with_suffix(".png"), question.figure(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
