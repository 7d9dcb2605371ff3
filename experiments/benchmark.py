#!/usr/bin/env python
"""How fast is a training step, against other ways to write the same VAE, and what does it cost as things grow?

    python experiments/benchmark.py                    # the MLP 784-400-20 and the conv 32-64 net, batch 128 and 512
    python experiments/benchmark.py --nets mlp --batches 128 --rounds 5 --only compiled "torch whole step"
    python experiments/benchmark.py --nets default --batches 256 --only fit "torch eager"
    python experiments/benchmark.py --scaling          # cost against images, particles, latent size and image side
    python experiments/benchmark.py --parts            # cost of other priors and guides, conv net, z of 32, batch 256
    python experiments/benchmark.py --start            # seconds to the first compiled step, cold and warm
    python experiments/benchmark.py --ranks            # two processes against one
    python experiments/benchmark.py --quality          # seconds until log p(x) of test images is as published

Every way sees the same images in memory, in turns: each round takes some steps of each, one after the other, so that a
busy machine is busy for all. The images a second of one machine say little; the ratios of a round do.

    fit               with its data path, engine="eager"; the others find their batches ready
    svi               pyro.infer.SVI with pyro.optim.Adam, as Pyro's tutorials have it
    eager, compiled   the engines of fit, in float32 and with the networks in bfloat16
    torch eager       the same step by hand: closed-form KL, fused Adam
    torch compiled    the same under torch.compile, backward() and fused Adam
    torch whole step  the same with gradient and Adam in one compiled graph, float32 matmul as fit sets it
    numpyro           where numpyro and jax are installed: one jitted step, a scan over the steps of a round
"""

import argparse
import sys
from pathlib import Path

import pyro
from benchmarks import parts, quality, ranks, scaling, speed, start
from benchmarks.ways import WAYS
from parts import home_path
from results import exit_status, make_folder, provenance, save_figure, write_json

from pyro_vae import load
from pyro_vae.data import sets as data
from pyro_vae.training.engines import keep_freed_memory

QUESTIONS = {"scaling": scaling, "parts": parts, "start": start, "ranks": ranks, "quality": quality}  # beside speed


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_mutually_exclusive_group()
    for name, module in QUESTIONS.items():
        group.add_argument(
            f"--{name}", dest="question", action="store_const", const=name, help=module.__doc__.splitlines()[0]
        )
    parser.set_defaults(question="speed")
    parser.add_argument(
        "--nets", nargs="+", choices=("mlp", "conv", "default"), default=["mlp", "conv"], help="default: that of run.py"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 512], metavar="SIZE")
    parser.add_argument(
        "--only", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help="of: " + ", ".join(WAYS)
    )
    parser.add_argument("--images", type=int, default=5120, help="that each way sees in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of --quality")
    parser.add_argument(
        "--evidence", type=int, default=5000, metavar="K", help="particles of --quality, on all test images"
    )
    parser.add_argument("--dataset", choices=("auto", *data.NAMES), default="auto")
    parser.add_argument("--data-dir", type=home_path, default=None, help="folder in which the data lie")
    parser.add_argument(
        "--out",
        type=home_path,
        default=None,
        help="the results, .json and .png (default: figures/benchmark, _scaling, _parts …, that of "
        "--quality with a folder of its single runs, which are not run again)",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    return exit_status(lambda: parse_arguments(argv), measure, "nothing is saved but whole runs of --quality")


def measure(args: argparse.Namespace) -> int:
    keep_freed_memory()  # as fit does
    images = load(args.dataset, root=args.data_dir)
    if tuple(images.shape) != (1, 28, 28):
        raise ValueError(f"the nets are for images of 1 × 28 × 28, as of MNIST, not for {images.name}")
    question = QUESTIONS.get(args.question, speed)
    args.out = args.out or Path("figures/benchmark" + f"_{args.question}" * (question is not speed))
    numbers, picture = (args.out.with_suffix(ending) for ending in (".json", ".png"))
    make_folder(args.out.parent)
    with pyro.validation_enabled(False):
        found = question.measure(images, args)
    print(question.table(found))
    write_json(
        numbers, {"settings": vars(args), "dataset": images.name, "versions": provenance(), args.question: found}
    )
    save_figure(picture, question.figure(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
