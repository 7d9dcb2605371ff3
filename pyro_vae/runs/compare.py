"""``pyro-vae compare``: how much gradient estimators vary."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from pyro_vae._lazy import LazyModule
from pyro_vae.runs.commands import exit_status
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
from pyro_vae.runs.parser import Parser

if TYPE_CHECKING:
    from pyro_vae.runs import variances
else:
    variances = LazyModule("pyro_vae.runs.variances")

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
    return exit_status(lambda: parse_arguments(argv), lambda args: variances.run(args), "nothing is saved")
