"""The options that several commands have, from the records of ``config``, and command lines read with them."""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_vae._lazy import LazyModule
from pyro_vae.config import ESTIMATOR, GUIDE, LATENT, LIKELIHOOD, NETWORK, PRIOR, SLOTS, TAKEN_BY
from pyro_vae.files import expanded
from pyro_vae.records import Option, Words, flag, options_of
from pyro_vae.words import ENGINES

if TYPE_CHECKING:
    import torch
    from torch import optim

    from pyro_vae.training import schedules
else:
    torch, optim, schedules = map(LazyModule, ("torch", "torch.optim", "pyro_vae.training.schedules"))


def home_path(text: str) -> Path:
    """Return the path that an option names, ``~`` replaced, which shells leave as it is in ``--out=~/results``."""
    try:
        return expanded(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


TakenBy = Mapping[str, Mapping[str, Sequence[str]]]
PRECISIONS = Words(float32=lambda: None, bfloat16=lambda: torch.bfloat16)
SCHEDULES = Words(**{"warm-cosine": lambda: schedules.warm_cosine, "constant": lambda: None})
OPTIMIZERS = Words(  # function(parameters, lr=, weight_decay=)
    adam=lambda: partial(optim.Adam, fused=True),
    adamw=lambda: partial(optim.AdamW, fused=True),
    adamax=lambda: optim.Adamax,
    nadam=lambda: optim.NAdam,
    radam=lambda: optim.RAdam,
    rmsprop=lambda: optim.RMSprop,
    sgd=lambda: partial(optim.SGD, momentum=0.9),
)
DEVICES = ("auto", "cpu", "cuda")
PARTS = {slot.name: [part.word for part in slot.parts()] for slot in (*SLOTS, ESTIMATOR)}

# The defaults of every command that does not say its own.
EPOCHS = Option("epochs", int, 10, "passes over the training images", metavar="N")
BATCH = Option("batch", int, 256, "images of a step", metavar="N")
LR = Option("lr", float, 5e-3, "learning rate: the largest step of the optimiser")
OPTIMIZER = Option(
    "optimizer", str, "adam", f"of torch.optim: {', '.join(OPTIMIZERS)}; sgd has a momentum of 0.9", OPTIMIZERS
)
WEIGHT_DECAY = Option(
    "weight_decay",
    float,
    0.0,
    "how strongly the optimiser pulls the weights to zero, by the gradient, or in adamw beside it",
    metavar="W",
)
WITH_BETAS = ("adam", "adamw", "adamax", "nadam", "radam")
BETA2 = Option(
    "beta2",
    float,
    None,
    f"of {', '.join(WITH_BETAS)}: the squares of the gradients are averaged over about 1 / (1 - beta2) steps, which "
    "should be a small share of a short training (default: 0.999)",
    metavar="B",
)
BETA = Option("beta", float, 1.0, "weight of the KL in training; bounds are reported without it", metavar="W")
WARM_UP = Option("warm_up", float, 0.0, "epochs in which the weight of the KL grows from 0 to --beta", metavar="EPOCHS")
EMA = Option(
    "ema",
    float,
    None,
    "measure and keep an exponential moving average of the weights, such as 0.999 (default: the last weights)",
    metavar="DECAY",
)
PATIENCE = Option(
    "patience",
    int,
    None,
    "stop after so many epochs without a better validation bound (default: train all epochs)",
    metavar="EPOCHS",
)
VALIDATE = Option(
    "validate",
    int,
    None,
    "measure each epoch on at most so many of the validation images, and of the training images (default: as many as "
    "there are validation images)",
    metavar="N",
)
SCHEDULE = Option(
    "schedule",
    str,
    "warm-cosine",
    "of the learning rate: warm-cosine, it grows over a tenth of the training and falls to zero as a cosine; constant",
    SCHEDULES,
)
PRECISION = Option("precision", str, "float32", "of the numbers in the networks, in training", PRECISIONS)
ENGINE = Option(
    "engine",
    str,
    "auto",
    "what takes the steps; all train alike: eager, Python; compiled, torch.compile; svi, Pyro's SVI; auto, compiled "
    "where the training is long enough to earn it back",
    ENGINES,
)
SEED = Option("seed", int, 0, "of parameters, batches and draws")
DEVICE = Option("device", str, "auto", "that computes; auto, a GPU where there is one", DEVICES)
AUTO = "auto, MNIST where it is found or can be downloaded, else the bundled digits"
DATASET = Option(
    "dataset",
    str,
    "auto",
    "a data set by its name, such as mnist, fashion or digits (pyro-vae data lists all), or a folder of pictures or "
    f"arrays; {AUTO}",
    metavar="NAME",
)
DATA_DIR = Option(
    "data_dir",
    home_path,
    None,
    "where the files of data sets lie (default: $PYRO_VAE_DATA, then the cache folder)",
    metavar="FOLDER",
)


def add_options(group: argparse._ActionsContainer, options: Iterable[Option], takers: TakenBy | None = None) -> None:
    """Add options to a parser or to a group of one; ``takers`` as ``taken_by`` returns them, for the help."""
    for option in options:
        words = _short((takers or {}).get(option.name, {}))
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


def _short(taking: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the words of the parts that take an option; where most of a slot's parts do, those that do not.

    >>> _short({"prior": ["vamp"]}), _short({"estimator": [word for word in PARTS["estimator"] if word != "trace"]})
    (['vamp'], ['all but trace'])
    """
    words = []
    for slot, names in taking.items():
        others = [name for name in PARTS[slot] if name not in names]
        words += [f"all but {' and '.join(others)}"] if len(others) < len(names) / 4 else names
    return words


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
    group = parser.add_argument_group("likelihood", "p(x | z): an image x given its code z")
    add_options(group, [LIKELIHOOD, *options_of(LIKELIHOOD).values()], TAKEN_BY)
    group = parser.add_argument_group(
        "prior and guide", "p(z): the codes before an image is seen; q(z | x): the guide, which codes an image x"
    )
    add_options(group, [PRIOR, GUIDE])
    add_settings_of_priors_and_guides(group)
    add_network_options(parser, latent)


def add_settings_of_priors_and_guides(group: argparse._ArgumentGroup) -> None:
    """Add the options of single priors and guides."""
    add_options(group, options_of(PRIOR, GUIDE).values(), TAKEN_BY)


def add_network_options(parser: argparse.ArgumentParser, latent: int | None) -> None:
    """Add the options of the networks; ``latent``: the default of --latent, None where a script sets it itself."""
    group = parser.add_argument_group("networks", "the encoder of the guide and the decoder of the likelihood")
    add_options(group, [NETWORK, *([] if latent is None else [replace(LATENT, default=latent)])])
    add_options(group, options_of(NETWORK).values(), TAKEN_BY)


def add_quick(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, defaults: Mapping[str, Any], help: str
) -> None:
    """Add ``--quick``, which gives other options these defaults; call it after they were added."""
    parser.add_argument("--quick", action="store_true", help=help)
    if parser.parse_args(argv).quick:
        parser.set_defaults(**defaults)


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
    group.add_argument("--out", type=home_path, default=out, metavar="FOLDER", help=results)
    group.add_argument("--quiet", action="store_true", help=quiet)
    return group


def add_jobs_option(group: argparse._ActionsContainer) -> None:
    """Add the option of how many single runs go at a time."""
    group.add_argument(
        "--jobs",
        type=int,
        default=None,
        metavar="N",
        help="runs at a time, each in a process with one thread; -1: as many as there are cores (default: 1, in this "
        "process)",
    )
