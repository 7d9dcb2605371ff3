"""``pyro-vae evidence``: how tight the bounds on log p(x) of a trained model are."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from pyro_vae._lazy import LazyModule
from pyro_vae.records import flag
from pyro_vae.runs.commands import exit_status
from pyro_vae.runs.options import DATA_DIR, DEVICE, SEED, add_options, add_quick, given, home_path
from pyro_vae.runs.parser import Parser

if TYPE_CHECKING:
    from pyro_vae.runs import bounds
else:
    bounds = LazyModule("pyro_vae.runs.bounds")

DESCRIPTION = """\
How tight are the bounds on log p(x)?

For one trained model: the bound by importance sampling, for several numbers of particles (draws of z per image); by
annealed importance sampling, for several numbers of temperatures; and, on images that the model itself draws, a lower
and an upper bound on log p(x), by annealing and by importance sampling with the most particles. A table is printed, and
drawn. Where k-hat, the shape of the tail of the importance weights (Vehtari et al. 2024), is above 0.7, importance
sampling cannot be trusted.

    pyro-vae train --latent 20 --out figures/mnist
    pyro-vae evidence --run figures/mnist --local
"""
QUICK = {"images": 20, "particles": [1, 10, 100], "temperatures": [10, 30], "chains": 4, "simulated": 10}
NOT_OF_A_BUDGET = ("particles", "bfloat16", "local", "refit", "temperatures", "chains", "leapfrog", "simulated")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = Parser(prog="pyro-vae evidence", description=DESCRIPTION)
    parser.add_argument(
        "--run", type=home_path, required=True, metavar="FOLDER", help="of a model that was trained or saved"
    )
    _add_importance(parser.add_argument_group("importance sampling"))
    group = parser.add_argument_group(
        "budget", "log p(x) of each image, by the method that suits it, instead of all bounds"
    )
    group.add_argument("--target", type=float, default=None, metavar="NATS", help="wanted standard error of an image")
    group.add_argument("--seconds", type=float, default=None, metavar="S", help="to spend on the least standard error")
    group = parser.add_argument_group("annealing", "from the prior, and from the guide, to the posterior")
    group.add_argument(
        "--temperatures", type=int, nargs="+", default=[100, 300, 1000], metavar="T", help="steps of that way"
    )
    group.add_argument("--chains", type=int, default=8, metavar="N", help="weighted chains per image")
    group.add_argument("--leapfrog", type=int, default=1, metavar="N", help="steps of each Hamiltonian transition")
    group.add_argument(
        "--simulated", type=int, default=100, metavar="N", help="images that the model draws for both bounds"
    )
    add_options(parser.add_argument_group("both"), [replace(SEED, help="of all random draws"), DEVICE])
    add_places(parser)
    add_quick(parser, argv, QUICK, "few images, particles and temperatures: a first look")
    args = parser.parse_args(argv)
    check_used(args, given(parser, argv))
    return args


def check_used(args: argparse.Namespace, options: set[str]) -> None:
    """Raise ValueError for an option of the command line that another one would leave unused."""
    budget = [flag(name) for name in ("target", "seconds") if getattr(args, name) is not None]
    unused = [flag(name) for name in NOT_OF_A_BUDGET if name in options]
    if budget and unused:
        raise ValueError(
            f"{', '.join(unused)}: ignored beside {' '.join(budget)}, which chooses methods and draws itself; leave "
            f"{' and '.join(unused)} out, or leave {' and '.join(budget)} out for all bounds"
        )
    if budget and args.all and "images" in options:
        raise ValueError(f"--images: ignored beside --all {' '.join(budget)}; leave one of --images and --all out")


def _add_importance(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--images", type=int, default=None, metavar="N", help="test images, from the first on (default: 200, or all)"
    )
    group.add_argument("--all", action="store_true", help="all test images; only the first --images are annealed")
    group.add_argument(
        "--particles", type=int, nargs="+", default=[1, 10, 100, 1000, 5000], metavar="K", help="draws of z per image"
    )
    group.add_argument(
        "--bfloat16",
        action="store_true",
        help="measure the first --images again with the networks in bfloat16 and the most particles, and compare",
    )
    group.add_argument(
        "--local", action="store_true", help="also draw from a proposal that is fitted to the posterior of each image"
    )
    group.add_argument(
        "--refit",
        type=int,
        default=0,
        metavar="EPOCHS",
        help="also draw from a guide that is refitted to the training images, by so many epochs; the model stays",
    )


def add_places(parser: argparse.ArgumentParser) -> None:
    """Add the options of where the data lie and the results go."""
    group = parser.add_argument_group("data and results")
    group.add_argument(
        "--dataset", default=None, metavar="NAME", help="data set or folder (default: what the model was trained on)"
    )
    add_options(group, [DATA_DIR])
    group.add_argument(
        "--out",
        type=home_path,
        default=None,
        metavar="FOLDER",
        help="of the results (default: evidence, in the folder of --run)",
    )
    group.add_argument("--overwrite", action="store_true", help="replace the results of another run in --out")
    group.add_argument("--quiet", action="store_true", help="no progress bar")


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(lambda: parse_arguments(argv), lambda args: bounds.run(args), "nothing is saved")
