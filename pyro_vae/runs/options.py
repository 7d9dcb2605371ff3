"""The options that several commands have, from the records of ``config``, and command lines read with them."""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from pyro_vae.config import ESTIMATOR, GUIDE, LATENT, LIKELIHOOD, NETWORK, PRIOR, TAKEN_BY
from pyro_vae.data import sets
from pyro_vae.files import expanded
from pyro_vae.records import Option, flag, options_of
from pyro_vae.training import warm_cosine
from pyro_vae.training.engines import ENGINES


def home_path(text: str) -> Path:
    """Return the path that an option names, ``~`` replaced, which shells leave as it is in ``--out=~/results``."""
    try:
        return expanded(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


TakenBy = Mapping[str, Mapping[str, Sequence[str]]]
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}
SCHEDULES = {"warm-cosine": warm_cosine, "constant": None}
OPTIMIZERS = {  # function(parameters, lr=, weight_decay=)
    "adam": partial(torch.optim.Adam, fused=True),
    "adamw": partial(torch.optim.AdamW, fused=True),
    "adamax": torch.optim.Adamax,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "sgd": partial(torch.optim.SGD, momentum=0.9),
}
DEVICES = ("auto", "cpu", "cuda")

# The defaults of every command that does not say its own.
EPOCHS = Option("epochs", int, 10, "passes over the training images")
BATCH = Option("batch", int, 256, "images of a step")
LR = Option("lr", float, 5e-3, "largest step of the optimiser")
OPTIMIZER = Option("optimizer", str, "adam", "of torch.optim; sgd has a momentum of 0.9", OPTIMIZERS)
WEIGHT_DECAY = Option(
    "weight_decay", float, 0.0, "of the optimiser: added to the gradient, and decoupled from it in adamw"
)
BETA = Option("beta", float, 1.0, "weight of the KL in training; bounds are reported without it")
WARM_UP = Option("warm_up", float, 0.0, "the weight of the KL grows to --beta over so many epochs", metavar="EPOCHS")
EMA = Option(
    "ema",
    float,
    None,
    "measure and keep the exponential moving average of the weights, such as 0.999 (default: the weights)",
    metavar="DECAY",
)
PATIENCE = Option(
    "patience",
    int,
    None,
    "stop after so many epochs without a better one on the validation images (default: train all epochs)",
    metavar="EPOCHS",
)
SCHEDULE = Option(
    "schedule",
    str,
    "warm-cosine",
    "the step grows over a tenth of the training and falls to zero as a cosine, or is constant",
    SCHEDULES,
)
PRECISION = Option("precision", str, "float32", "of the networks in training", PRECISIONS)
ENGINE = Option(
    "engine",
    str,
    "auto",
    "what takes the steps; all train alike, and auto compiles where the training is long enough to earn it back",
    ENGINES,
)
SEED = Option("seed", int, 0, "of parameters, batches and draws")
DEVICE = Option("device", str, "auto", "auto: a GPU where there is one", DEVICES)
DATASET = Option(
    "dataset",
    str,
    "auto",
    "auto: MNIST where it is found or can be downloaded, else the bundled digits",
    ("auto", *sets.SETS),
)
DATA_DIR = Option("data_dir", home_path, None, "folder in which the data lie")


def add_options(group: argparse._ActionsContainer, options: Iterable[Option], takers: TakenBy | None = None) -> None:
    """Add options to a parser or to a group of one; ``takers`` as ``taken_by`` returns them, for the help."""
    for option in options:
        words = [word for taking in (takers or {}).get(option.name, {}).values() for word in taking]
        default = list(option.default) if isinstance(option.default, tuple) else option.default
        words_of_default = " ".join(map(str, default)) if isinstance(default, list) else "%(default)s"
        shown = "" if default is None else f" (default: {words_of_default})"
        extra = {name: getattr(option, name) for name in ("choices", "metavar", "nargs")}
        group.add_argument(
            option.flag,
            type=option.type,
            default=default,
            help=option.described(words) + shown,
            **{name: value for name, value in extra.items() if value is not None},
        )


def parsed(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, takers: TakenBy = TAKEN_BY
) -> argparse.Namespace:
    """Return the options of a command line; ValueError for one that none of the chosen parts takes."""
    args = parser.parse_args(argv)
    check_taken(given(parser, argv), {name: [str(value)] for name, value in vars(args).items()}, takers)
    return args


def given(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> set[str]:
    """Return the names of the options that a command line has, those that it sets to their default too."""
    unset = argparse.Namespace(**dict.fromkeys(vars(parser.parse_args(argv))))
    return {name for name, value in vars(parser.parse_args(argv, unset)).items() if value is not None}


def check_taken(options: Iterable[str], chosen: Mapping[str, Sequence[str]], takers: TakenBy = TAKEN_BY) -> None:
    """Raise ValueError for an option that none of the words chosen for other options takes.

    >>> check_taken({"scale"}, {"lik": ["normal"]})
    >>> check_taken({"scale"}, {"lik": ["bernoulli"]})
    Traceback (most recent call last):
        ...
    ValueError: --scale: ignored beside --lik bernoulli; write --lik normal, or leave --scale out
    """
    for option in sorted(set(options) & set(takers)):
        taking = {slot: words for slot, words in takers[option].items() if slot in chosen}
        if taking and not any(set(words) & set(chosen[slot]) for slot, words in taking.items()):
            beside = " ".join(f"{flag(slot)} {' '.join(chosen[slot])}" for slot in taking)
            cure = ", or ".join(f"{flag(slot)} {' or '.join(words)}" for slot, words in taking.items())
            raise ValueError(f"{flag(option)}: ignored beside {beside}; write {cure}, or leave {flag(option)} out")


def add_part_options(parser: argparse.ArgumentParser, latent: int | None = LATENT.default) -> None:
    """Add the options that choose prior, likelihood, guide and networks; ``latent`` as in ``add_network_options``."""
    group = parser.add_argument_group("likelihood")
    add_options(group, [LIKELIHOOD, *options_of(LIKELIHOOD).values()], TAKEN_BY)
    group = parser.add_argument_group("prior and guide")
    add_options(group, [PRIOR, GUIDE])
    add_settings_of_priors_and_guides(group)
    add_network_options(parser, latent)


def add_settings_of_priors_and_guides(group: argparse._ArgumentGroup) -> None:
    """Add the options of single priors and guides."""
    add_options(group, options_of(PRIOR, GUIDE).values(), TAKEN_BY)


def add_network_options(parser: argparse.ArgumentParser, latent: int | None) -> None:
    """Add the options of the networks; ``latent``: the default of --latent, None where a script sets it itself."""
    group = parser.add_argument_group("networks")
    add_options(group, [NETWORK, *([] if latent is None else [replace(LATENT, default=latent)])])
    add_options(group, options_of(NETWORK).values(), TAKEN_BY)


def add_training_options(parser: argparse.ArgumentParser, epochs: int, lr: float) -> argparse._ArgumentGroup:
    """Add the options of a training by Adam, with the command's own defaults; return the group that they are in."""
    group = parser.add_argument_group("training")
    own = replace(EPOCHS, default=epochs), BATCH, replace(LR, default=lr)
    add_options(group, [ESTIMATOR, *own, SCHEDULE, ENGINE, DEVICE])
    return group


def add_data_options(
    parser: argparse.ArgumentParser, out: Path | None, results: str, quiet: str = "no progress bar"
) -> argparse._ArgumentGroup:
    """Add the options of where data lie and results go; return the group that they are in.

    ``results``, ``quiet``: what --help says of --out and --quiet.
    """
    group = parser.add_argument_group("data and results")
    add_options(group, [DATASET, DATA_DIR])
    group.add_argument("--out", type=home_path, default=out, help=results)
    group.add_argument("--quiet", action="store_true", help=quiet)
    return group
