"""From the words of a command line to the parts of a program: the only place where strings choose mathematics."""

import argparse
import math
from collections.abc import Callable

import torch
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from pyro_vae import VAE, guides, likelihoods, networks, priors
from pyro_vae.estimators import (
    DoublyReparameterized,
    ImportanceWeighted,
    ScoreFunction,
    StickingTheLanding,
    WakeSleep,
)

BINARIZE = {
    "dynamic": likelihoods.dynamic,
    "threshold": likelihoods.threshold,
    "intensity": likelihoods.intensity,
}
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
PRIORS = ("standard", "diagonal", "mixture", "vamp", "autoregressive", "spline")
GUIDES = ("meanfield", "full-rank", "low-rank", "inverse-autoregressive", "planar")
LIKELIHOODS = ("bernoulli", "continuous-bernoulli", "normal", "beta", "categorical", "logistic")
FEW = 5  # latent dimensions up to which the conv networks have dense layers by default
SHARED_LOG_SCALE = -1.5  # where a learned scale that all pixels share starts


def add_part_options(parser: argparse.ArgumentParser) -> None:
    """The options that choose prior, likelihood, guide and networks."""
    group = parser.add_argument_group("likelihood")
    group.add_argument("--lik", choices=LIKELIHOODS, default="bernoulli", help="family of p(x | z)")
    group.add_argument("--binarize", choices=BINARIZE, default="dynamic",
                       help="bernoulli: drawn anew each batch, grey level > 127, or the grey level as a probability")
    group.add_argument("--bins", type=int, default=16, help="categorical: number of bins, 2 to 256")
    group.add_argument("--scale", default="pixel",
                       help="normal: 'pixel' (learned, one a pixel), 'shared' (learned, one in all) or a fixed number")
    group = parser.add_argument_group("prior and guide")
    group.add_argument("--prior", choices=PRIORS, default="standard")
    group.add_argument("--guide", choices=GUIDES, default="meanfield")
    add_settings_of_priors_and_guides(group)
    add_network_options(parser)


def add_settings_of_priors_and_guides(group: argparse._ArgumentGroup) -> None:
    """What single priors and guides depend on."""
    group.add_argument("--components", type=int, default=100, metavar="K",
                       help="mixture: Gaussians; vamp: pseudo-inputs, which start as training images")
    group.add_argument("--rank", type=int, default=1, help="low-rank: rank beside the diagonal")
    group.add_argument("--flow-depth", type=int, default=2, metavar="STEPS", help="steps of a flow, prior or guide")
    group.add_argument("--flow-width", type=int, default=None, metavar="UNITS",
                       help="hidden layers of a flow's steps (twice the latent dimensions, at least 64)")


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """The options that choose the networks, and the size of the code between them."""
    group = parser.add_argument_group("networks")
    group.add_argument("--net", choices=("conv", "mlp"), default="conv")
    group.add_argument("--latent", type=int, default=2, metavar="D", help="dimensions of z")
    group.add_argument("--hidden", type=int, nargs="+", default=None, metavar="UNITS",
                       help="widths of the dense layers, in the decoder reversed (mlp: 400; conv: 256 256 up to "
                            f"{FEW} latent dimensions, of which a decoder has to make more, else none)")


def build_vae(args: argparse.Namespace, images: Tensor) -> VAE:
    """The program that the options describe, for images like these (N, C, H, W), uint8: the ones it will be trained on.

    Its parameters are drawn from torch's generator.
    """
    guide = build_guide(args, tuple(images.shape[1:]))
    return VAE(build_prior(args, guide, images), build_likelihood(args, tuple(images.shape[1:])), guide)


def build_prior(args: argparse.Namespace, guide: nn.Module, images: Tensor) -> nn.Module:
    if args.prior == "standard":
        return priors.StandardNormal(args.latent)
    if args.prior == "diagonal":
        return priors.DiagonalNormal(args.latent)
    if args.prior == "mixture":
        return priors.Mixture(args.latent, args.components)
    if args.prior == "vamp":
        if not 1 <= args.components <= len(images):
            raise ValueError(f"--components: wanted 1 to {len(images)} training images, got {args.components}")
        chosen = images[torch.randperm(len(images))[: args.components]]
        return priors.Vamp(guide, chosen / 255)
    steps = {"autoregressive": priors.autoregressive, "spline": priors.spline}[args.prior]
    return priors.Flow(args.latent, steps, args.flow_depth, args.flow_width)


def build_guide(args: argparse.Namespace, shape: tuple[int, int, int]) -> nn.Module:
    encoder = build_encoder(args, shape)
    if args.guide == "meanfield":
        return guides.MeanField(encoder, args.latent)
    if args.guide == "full-rank":
        return guides.FullRank(encoder, args.latent)
    if args.guide == "low-rank":
        return guides.LowRank(encoder, args.latent, args.rank)
    steps = {"inverse-autoregressive": guides.inverse_autoregressive, "planar": guides.planar}[args.guide]
    return guides.Flow(encoder, args.latent, steps, args.flow_depth, args.flow_width)


def build_likelihood(args: argparse.Namespace, shape: tuple[int, int, int]) -> nn.Module:
    def decoder(parameters_per_pixel: int) -> nn.Module:
        return build_decoder(args, shape, shape[0] * parameters_per_pixel)

    if args.lik == "bernoulli":
        return likelihoods.Bernoulli(decoder(1), binarize=BINARIZE[args.binarize])
    if args.lik == "continuous-bernoulli":
        return likelihoods.ContinuousBernoulli(decoder(1))
    if args.lik == "normal":
        log_scale = log_scale_option(args.scale)
        return likelihoods.Normal(decoder(2 if log_scale is None else 1), log_scale=log_scale)
    if args.lik == "beta":
        return likelihoods.Beta(decoder(2))
    if args.lik == "categorical":
        return likelihoods.Categorical(decoder(args.bins), bins=args.bins)
    return likelihoods.DiscretizedLogistic(decoder(2))


def log_scale_option(scale: str) -> float | nn.Parameter | None:
    """What ``likelihoods.Normal`` takes for ``--scale``."""
    if scale == "pixel":
        return None
    if scale == "shared":
        return nn.Parameter(torch.tensor(SHARED_LOG_SCALE))
    try:
        return math.log(float(scale))
    except ValueError as error:
        raise ValueError(f"--scale: wanted 'pixel', 'shared' or a positive number, got {scale!r}") from error


def build_encoder(args: argparse.Namespace, shape: tuple[int, int, int]) -> nn.Module:
    network = {"conv": networks.ConvEncoder, "mlp": networks.MLPEncoder}[args.net]
    return network(shape, hidden=hidden(args))


def build_decoder(args: argparse.Namespace, shape: tuple[int, int, int], maps: int) -> nn.Module:
    network = {"conv": networks.ConvDecoder, "mlp": networks.MLPDecoder}[args.net]
    return network(args.latent, shape, maps, hidden=hidden(args)[::-1])


def hidden(args: argparse.Namespace) -> tuple[int, ...]:
    """The encoder's dense layers; the decoder has them in reverse."""
    return tuple(args.hidden or {"conv": (256, 256) if args.latent <= FEW else (), "mlp": (400,)}[args.net])


def build_estimator(args: argparse.Namespace) -> ELBO:
    """The estimator by K particles, which lie in a plate of their own at dim −2."""
    if args.particles < 1:
        raise ValueError(f"--particles: wanted at least 1, got {args.particles}")
    return ESTIMATORS[args.estimator](args.particles)
