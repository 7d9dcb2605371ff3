"""From the words of a command line to the parts of a program: the only place where strings choose mathematics."""

import argparse
import math
from collections.abc import Callable

import torch
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from pyro_vae import VAE, guides, likelihoods, networks, priors

BINARIZE = {
    "dynamic": likelihoods.dynamic,
    "threshold": likelihoods.threshold,
    "intensity": likelihoods.intensity,
}
ESTIMATORS: dict[str, Callable[..., ELBO]] = {"trace": Trace_ELBO, "meanfield": TraceMeanField_ELBO}
LIKELIHOODS = ("bernoulli", "continuous-bernoulli", "normal", "beta", "categorical", "logistic")
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
    group = parser.add_argument_group("networks")
    group.add_argument("--net", choices=("conv", "mlp"), default="conv")
    group.add_argument("--latent", type=int, default=2, metavar="D", help="dimensions of z")
    group.add_argument("--hidden", type=int, nargs="+", default=None, metavar="UNITS",
                       help="dense units: one number for conv (256), one or more for mlp (400)")


def build_vae(args: argparse.Namespace, shape: tuple[int, int, int]) -> VAE:
    """The program that the options describe, for images of shape (C, H, W), parameters drawn from torch's generator."""
    return VAE(build_prior(args), build_likelihood(args, shape), build_guide(args, shape))


def build_prior(args: argparse.Namespace) -> nn.Module:
    return priors.StandardNormal(args.latent)


def build_guide(args: argparse.Namespace, shape: tuple[int, int, int]) -> nn.Module:
    return guides.MeanField(build_encoder(args, shape), args.latent)


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
    if args.net == "mlp":
        return networks.MLPEncoder(shape, hidden=args.hidden or (400,))
    return networks.ConvEncoder(shape, hidden=_conv_hidden(args))


def build_decoder(args: argparse.Namespace, shape: tuple[int, int, int], maps: int) -> nn.Module:
    if args.net == "mlp":
        return networks.MLPDecoder(args.latent, shape, maps, hidden=(args.hidden or (400,))[::-1])
    return networks.ConvDecoder(args.latent, shape, maps, hidden=_conv_hidden(args))


def _conv_hidden(args: argparse.Namespace) -> int:
    if args.hidden and len(args.hidden) > 1:
        raise ValueError(f"--hidden: the conv network has one dense layer, got {args.hidden}; give one number")
    return args.hidden[0] if args.hidden else 256


def build_estimator(args: argparse.Namespace) -> ELBO:
    """The estimator with its particles in a plate of their own at dim −2."""
    if args.particles < 1:
        raise ValueError(f"--particles: wanted at least 1, got {args.particles}")
    return ESTIMATORS[args.estimator](
        num_particles=args.particles, vectorize_particles=args.particles > 1, max_plate_nesting=1
    )
