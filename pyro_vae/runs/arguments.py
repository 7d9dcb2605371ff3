"""The options of a run, with defaults that suit the images, and recipes."""

import argparse
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_vae.config import ACTIVATION, ESTIMATOR, NETWORK, SLOTS, hidden
from pyro_vae.records import flag, options_of, taken_by
from pyro_vae.runs.options import (
    AUTO,
    BATCH,
    BETA,
    BETA2,
    DATA_DIR,
    DATASET,
    DEVICE,
    EMA,
    ENGINE,
    EPOCHS,
    LR,
    OPTIMIZER,
    PATIENCE,
    PRECISION,
    SCHEDULE,
    SEED,
    VALIDATE,
    WARM_UP,
    WEIGHT_DECAY,
    add_options,
    add_part_options,
    given,
    home_path,
    parsed,
)
from pyro_vae.runs.parser import Parser
from pyro_vae.words import LAYOUTS

if TYPE_CHECKING:
    from pyro_vae.data import Data

DESCRIPTION = """\
Train one VAE and measure it: pictures, metrics and parameters in one folder.

    pyro-vae train --dataset digits
    pyro-vae train --lik categorical --bins 32 --latent 32 --epochs 20
    pyro-vae train --dataset my/pictures --size 32
    pyro-vae train --recipe fast

Several processes, or machines, train one VAE together, each on its share of every batch:

    torchrun --nproc-per-node=2 -m pyro_vae train --lik bernoulli

A run that was stopped, by Ctrl-C, a signal or a loss of power, goes on where it stood with the same command and
--resume. So does one that has ended, with --resume and more --epochs.
"""
BOUNDS = """\
It maximises a lower bound on log p(x), in nats per image: L^A = log p(x, z) - log q(z | x) for a z of the guide, or
L^B, with the KL (the Kullback-Leibler divergence) of guide and prior in closed form, or L_K, the log of the mean of K
weights p(x, z) / q(z | x).
"""
# Of options that the command line leaves open.
DEFAULTS = {option.name: option.default for option in (NETWORK, ACTIVATION, EPOCHS, BATCH)}
EVIDENCE = 50  # draws of z for log p(x)
FEW, FEW_IMAGES = 5000, {"epochs": 100}  # training images up to which ten epochs are too few steps
OPTIONS_TAKEN_BY = taken_by(*SLOTS, ESTIMATOR)
RECIPES = {  # options in a word; what the command line says beside it holds
    "fast": {
        "net": "conv",
        "latent": 32,
        "prior": "autoregressive",
        "flow_width": 128,
        "channels": [16, 32],
        "hidden": [256],
        "activation": "silu",
        "estimator": "sticking-the-landing",
        "epochs": 9,
        "batch": 128,
        "lr": 1e-2,
        "beta2": 0.99,
        "validate": 2000,
        "precision": "bfloat16",
        "engine": "compiled",
    },
    # The conv networks halve 8 × 8 pixels to 2 × 2 and leave latent dimensions unused. Chosen on validation images.
    "small": {"net": "mlp", "hidden": [256, 256, 256], "activation": "silu", "batch": 100},
}
SMALL = 16  # pixels a side below which that recipe is the default


def parse_arguments(
    argv: list[str] | None = None, description: str | None = None, script: str = ""
) -> argparse.Namespace:
    """Return the options of the command line; None for those that ``fill_in`` fits to the images.

    ``script``, ``description``: a file whose command this is, in the place of ``pyro-vae train``.
    """
    prog = Path(script).name or "pyro-vae train"
    parser = Parser(prog=prog, description=description or DESCRIPTION, epilog=recipes_page())
    parser.add_argument("--recipe", choices=RECIPES, default=None, help="defaults for a purpose, listed at the end")
    add_data_options(parser.add_argument_group("data"))
    add_result_options(parser.add_argument_group("results"))
    add_part_options(parser)
    add_own_training_options(parser.add_argument_group("training", BOUNDS))
    group = parser.add_argument_group("measurement", "of the test images, after the training")
    group.add_argument(
        "--evidence",
        type=int,
        default=None,
        metavar="K",
        help="draws of z per test image by which importance sampling estimates log p(x); 0: no estimate (default: "
        f"{EVIDENCE})",
    )
    group.add_argument(
        "--measure",
        choices=("short", "full", "none"),
        default=None,
        help="short: log p(x) on as many test images as take, with all other numbers, about half as long as the "
        "training, by its number of steps; full: on all test images; none: measure nothing, and only draw (default: "
        "short, or full if --evidence gives K)",
    )
    words = given(parser, argv)
    if not words & {"net", "channels"}:
        parser.set_defaults(net=None, activation=None)
    parser.set_defaults(**RECIPES.get(parser.parse_args(argv).recipe, {}))
    if "free_bits" in words:
        parser.set_defaults(estimator="free-bits")
    return parsed(parser, argv, OPTIONS_TAKEN_BY)


def add_own_training_options(group: argparse._ArgumentGroup) -> None:
    """Add the options of the training; the numbers of epochs and of images a step are fitted to the images."""
    epochs = f"{EPOCHS.help} (default: {EPOCHS.default}; {FEW_IMAGES['epochs']} for at most {FEW:,} training images)"
    batch = f"{BATCH.help} (default: {BATCH.default}, or all training images if they are fewer)"
    open_ones = replace(EPOCHS, default=None, help=epochs), replace(BATCH, default=None, help=batch)
    add_options(group, [*open_ones, LR, SEED, DEVICE, PATIENCE, VALIDATE, BETA, WARM_UP])
    add_options(group, [ESTIMATOR, *options_of(ESTIMATOR).values()], OPTIONS_TAKEN_BY)
    add_options(group, [OPTIMIZER, BETA2, WEIGHT_DECAY, SCHEDULE, EMA, PRECISION, ENGINE])
    group.add_argument(
        "--clip",
        type=float,
        default=None,
        metavar="NORM",
        help="largest norm of the gradient, that of all parameters together (default: any)",
    )
    group.add_argument(
        "--skip-non-finite",
        type=int,
        default=0,
        metavar="N",
        help="leave out up to N steps whose loss or gradient is not finite; metrics.json counts them",
    )


def add_data_options(group: argparse._ArgumentGroup) -> None:
    """Add the options of where the data lie, and how they are read."""
    group.add_argument(
        "--dataset",
        default=DATASET.default,
        metavar="NAME",
        help="a data set by its name, such as mnist, fashion or digits (pyro-vae data lists all); a folder of "
        "pictures, a class a folder; a folder or file of arrays, such as train.npy, valid.npy and test.npy, uint8 "
        f"(N, C, H, W); {AUTO}",
    )
    group.add_argument(
        "--size",
        type=int,
        nargs="+",
        default=None,
        metavar="PIXELS",
        help="side, or height and width, to which a folder's pictures are cut and scaled (default: as they are)",
    )
    group.add_argument(
        "--layout",
        choices=LAYOUTS[1:],
        default=None,
        help="order of the axes of a folder's arrays, where their shape does not show which one is C, the channels",
    )
    group.add_argument(
        "--conditional",
        action="store_true",
        help="train p(x | z, y) on images with classes y (Sohn et al. 2015): guide and decoder are given the class",
    )
    add_options(group, [DATA_DIR])


def add_result_options(group: argparse._ArgumentGroup) -> None:
    """Add the options of what becomes of the results."""
    group.add_argument(
        "--out",
        type=home_path,
        default=None,
        metavar="FOLDER",
        help="of the results (default: figures/<dataset>-<lik>-z<latent>-seed<seed>)",
    )
    group.add_argument("--overwrite", action="store_true", help="replace the results of another run in --out")
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run that was stopped in --out, to the same result; if there is none, begin",
    )
    group.add_argument(
        "--checkpoint-every",
        type=interval,
        default="60s",
        metavar="STEPS",
        help="save the run after so many steps or, as in 30s, seconds",
    )
    group.add_argument("--quiet", action="store_true", help="no plan and no progress bar")


def recipes_page() -> str:
    """Return what the page of help says about recipes, at its end."""
    purposes = {
        "fast": "a high log p(x) after a minute on a CPU",
        "small": f"the default below {SMALL} pixels a side, as for digits, unless --net or --channels is given",
    }
    indented = {"initial_indent": "  ", "subsequent_indent": "  ", "width": 76, "break_on_hyphens": False}
    recipes = [textwrap.fill(f"{name}: {purposes[name]}: {words_of(name)}", **indented) for name in RECIPES]
    return "\n\n".join(["recipes, which options beside them change:", *recipes])


def size_of(args: argparse.Namespace) -> int | tuple[int, int] | None:
    """Return ``--size`` as ``load`` takes it. Raises ValueError for more than two numbers.

    >>> size_of(argparse.Namespace(size=[28])), size_of(argparse.Namespace(size=[28, 20]))
    (28, (28, 20))
    """
    if args.size is not None and len(args.size) > 2:
        raise ValueError(f"--size: wanted a side, or height and width, got {' '.join(map(str, args.size))}")
    return args.size[0] if args.size and len(args.size) == 1 else tuple(args.size) if args.size else None


def words_of(recipe: str) -> str:
    """Return the options that a recipe stands for, as one would write them."""
    options = {name: value if isinstance(value, list) else [value] for name, value in RECIPES[recipe].items()}
    return " ".join(f"{flag(name)} {' '.join(map(str, values))}" for name, values in options.items())


def fill_in(args: argparse.Namespace, images: "Data") -> None:
    """Give the options that the command line leaves open the values that suit the images."""
    values = DEFAULTS | (FEW_IMAGES if len(images.train) <= FEW else {})
    if args.net is None and min(images.shape[1:]) < SMALL:
        values |= RECIPES["small"]
    for name, value in (values | {"batch": min(values["batch"], len(images.train))}).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.measure = args.measure or ("full" if args.evidence else "short")
    args.evidence = EVIDENCE if args.evidence is None else args.evidence
    args.hidden = list(hidden(args))
    args.classes = number_of_classes(images) if args.conditional else None


def number_of_classes(images: "Data") -> int:
    """Return the number of classes. Raises ValueError unless every image has one, and the training images have two."""
    known = {name: getattr(images, name).labels for name in ("train", "valid", "test")}
    lacking = [name for name, labels in known.items() if labels is None or bool((labels < 0).any())]
    if lacking:
        raise ValueError(
            f"--conditional: wanted a label of each image, and {', '.join(lacking)} of {images.name} lack some; give "
            "labels, a folder for each class, or leave --conditional out"
        )
    numbers = {name: 1 + int(labels.max()) for name, labels in known.items()}
    classes = len(images.classes) or max(numbers.values())
    if len(known["train"].unique()) < 2 or numbers["train"] < max(numbers.values()):
        raise ValueError(
            f"--conditional: wanted training images of at least two classes, and of the last of {classes} classes, got "
            f"labels {sorted(known['train'].unique().tolist())[:20]}; number the classes from 0, or leave it out"
        )
    return classes


def interval(text: str) -> dict[str, Any]:
    """Return the settings of ``Checkpoints`` for 500 (steps) or 30s (seconds)."""
    if text.endswith("s"):
        return {"seconds": float(text[:-1]), "steps": None}
    return {"seconds": None, "steps": int(text)}
