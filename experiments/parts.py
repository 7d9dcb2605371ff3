"""The words of the experiments' command lines: options that several have, and what their words stand for."""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO

from pyro_vae.config import ACTIVATIONS, BINARIZE, FEW, GUIDES, LIKELIHOODS, NETWORKS, PRIORS, TAKEN_BY
from pyro_vae.data import sets as data
from pyro_vae.estimators import (
    DoublyReparameterized,
    ImportanceWeighted,
    ScoreFunction,
    StickingTheLanding,
    WakeSleep,
)
from pyro_vae.files import expanded
from pyro_vae.training.engines import ENGINES
from pyro_vae.training.loop import warm_cosine

ESTIMATORS: dict[str, Callable[[int], ELBO]] = {
    "trace": lambda K: Trace_ELBO(K, vectorize_particles=K > 1, max_plate_nesting=1),
    "meanfield": lambda K: TraceMeanField_ELBO(K, vectorize_particles=K > 1, max_plate_nesting=1),
    "sticking-the-landing": StickingTheLanding,
    "importance-weighted": ImportanceWeighted,
    "doubly-reparameterized": DoublyReparameterized,
    "score-function": ScoreFunction,
    "score-function-baseline": lambda K: ScoreFunction(K, baseline="leave-one-out"),
    "wake-sleep": lambda K: WakeSleep(),
}
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}
SCHEDULES = {"warm-cosine": warm_cosine, "constant": None}
Takers = Mapping[str, Mapping[str, Iterable[str]]]


def parsed(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, taken_by: Takers = TAKEN_BY
) -> argparse.Namespace:
    """The options of a command line; ValueError where it has one that is ignored beside its others."""
    args = parser.parse_args(argv)
    check_taken(given(parser, argv), {name: [str(value)] for name, value in vars(args).items()}, taken_by)
    return args


def given(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> set[str]:
    """The options that a command line has, those that it sets to their default too."""
    unset = argparse.Namespace(**dict.fromkeys(vars(parser.parse_args(argv))))
    return {name for name, value in vars(parser.parse_args(argv, unset)).items() if value is not None}


def check_taken(options: Iterable[str], chosen: Mapping[str, Sequence[str]], taken_by: Takers = TAKEN_BY) -> None:
    """ValueError for an option that none of the words chosen for other options takes.

    >>> check_taken({"scale"}, {"lik": ["normal"]})
    >>> check_taken({"scale"}, {"lik": ["bernoulli"]})
    Traceback (most recent call last):
        ...
    ValueError: --scale: ignored beside --lik bernoulli; write --lik normal, or leave --scale out
    """
    for option in sorted(set(options) & set(taken_by)):
        takers = {slot: words for slot, words in taken_by[option].items() if slot in chosen}
        if takers and not any(set(words) & set(chosen[slot]) for slot, words in takers.items()):
            beside = " ".join(f"--{slot} {' '.join(chosen[slot])}" for slot in takers)
            cure = ", or ".join(f"--{slot} {' or '.join(words)}" for slot, words in takers.items())
            flag = f"--{option.replace('_', '-')}"
            raise ValueError(f"{flag}: ignored beside {beside}; write {cure}, or leave {flag} out")


def home_path(text: str) -> Path:
    """The folder that an option names; ``~`` is the home folder, which shells leave as it is in --out=~/results."""
    try:
        return expanded(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_part_options(parser: argparse.ArgumentParser, latent: int | None = 2) -> None:
    """The options that choose prior, likelihood, guide and networks; ``latent`` as in ``add_network_options``."""
    group = parser.add_argument_group("likelihood")
    group.add_argument("--lik", choices=LIKELIHOODS, default="bernoulli", help="family of p(x | z)")
    group.add_argument(
        "--binarize",
        choices=BINARIZE,
        default="dynamic",
        help="bernoulli: drawn anew each batch, grey level > 127, or the grey level as a probability",
    )
    group.add_argument("--bins", type=int, default=16, help="categorical: number of bins, 2 to 256")
    group.add_argument(
        "--scale",
        default="pixel",
        help="normal: 'pixel' (learned, one a pixel), 'shared' (learned, one in all) or a fixed number",
    )
    group = parser.add_argument_group("prior and guide")
    group.add_argument("--prior", choices=PRIORS, default="standard")
    group.add_argument("--guide", choices=GUIDES, default="meanfield")
    add_settings_of_priors_and_guides(group)
    add_network_options(parser, latent)


def add_settings_of_priors_and_guides(group: argparse._ArgumentGroup) -> None:
    """What single priors and guides depend on."""
    group.add_argument(
        "--components",
        type=int,
        default=100,
        metavar="K",
        help="mixture: Gaussians; vamp: pseudo-inputs, which start as training images",
    )
    group.add_argument("--rank", type=int, default=1, help="low-rank: rank beside the diagonal")
    group.add_argument("--flow-depth", type=int, default=2, metavar="STEPS", help="steps of a flow, prior or guide")
    group.add_argument(
        "--flow-width",
        type=int,
        default=None,
        metavar="UNITS",
        help="hidden layers of a flow's steps (twice the latent dimensions, at least 64)",
    )


def add_network_options(parser: argparse.ArgumentParser, latent: int | None) -> None:
    """The options that choose the networks; ``latent``: the default of --latent, None where a script sets it itself."""
    group = parser.add_argument_group("networks")
    group.add_argument("--net", choices=NETWORKS, default="conv")
    if latent is not None:
        group.add_argument("--latent", type=int, default=latent, metavar="D", help="dimensions of z")
    group.add_argument(
        "--channels",
        type=int,
        nargs="+",
        default=[32, 64],
        metavar="MAPS",
        help="conv: maps of the 4 × 4 convolutions of stride 2, in the decoder reversed (32 64)",
    )
    group.add_argument("--activation", choices=ACTIVATIONS, default="relu", help="after each layer")
    group.add_argument(
        "--hidden",
        type=int,
        nargs="*",
        default=None,
        metavar="UNITS",
        help="widths of the dense layers, in the decoder reversed; none where no number follows (400; "
        f"conv up to {FEW} latent dimensions, of which a decoder has to make more: 256 256)",
    )


def add_training_options(parser: argparse.ArgumentParser, epochs: int) -> argparse._ArgumentGroup:
    """The options of a training by Adam, and the group that they are in."""
    group = parser.add_argument_group("training")
    group.add_argument("--estimator", choices=ESTIMATORS, default="trace", help="of the ELBO and its gradient")
    group.add_argument("--epochs", type=int, default=epochs)
    group.add_argument("--batch", type=int, default=256)
    group.add_argument("--lr", type=float, default=3e-3, help="largest step of Adam")
    group.add_argument("--schedule", choices=SCHEDULES, default="warm-cosine", help="of the step")
    group.add_argument("--engine", choices=ENGINES, default="auto", help="what takes the steps; all train alike")
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return group


def add_data_options(
    parser: argparse.ArgumentParser, out: Path | None, results: str, quiet: str = "no progress bar"
) -> argparse._ArgumentGroup:
    """The options of where data lie and ``results`` go, and what ``quiet`` does, as --help has it; and the group."""
    group = parser.add_argument_group("data and results")
    group.add_argument(
        "--dataset",
        choices=("auto", *data.NAMES),
        default="auto",
        help="auto: MNIST where it is found or can be downloaded, else the bundled digits",
    )
    group.add_argument("--data-dir", type=home_path, default=None, help="folder in which the data lie")
    group.add_argument("--out", type=home_path, default=out, help=results)
    group.add_argument("--quiet", action="store_true", help=quiet)
    return group


def build_estimator(args: argparse.Namespace) -> ELBO:
    """The estimator by K particles, which lie in a plate of their own at dim −2."""
    if args.particles < 1:
        raise ValueError(f"--particles: wanted at least 1, got {args.particles}")
    return ESTIMATORS[args.estimator](args.particles)
