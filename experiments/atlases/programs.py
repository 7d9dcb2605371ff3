"""The programs of the atlas, and the estimators that are tried on them."""

import argparse
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import ELBO
from pyro.infer.autoguide import AutoIAFNormal, AutoNormal
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from experiments.discrete import SigmoidBeliefNetwork
from experiments.two_layer import TwoLayers, normal
from pyro_vae import fixed_x, guides, priors
from pyro_vae.comparison import candidates
from pyro_vae.config import PartSettings, build_encoder, build_likelihood, build_vae
from pyro_vae.data import Data
from pyro_vae.data.splits import Split
from pyro_vae.estimators import (
    CIWAE,
    PIWAE,
    TVO,
    DoublyReparameterized,
    ImportanceWeighted,
    RenyiBound,
    ScoreFunction,
    WakeSleep,
)
from pyro_vae.linear_gaussian import LinearGaussian


class LogisticRegression(nn.Module):
    """p(w) = N(0, I), y_n ~ Bernoulli(σ(w · x_n)), with an autoguide; a batch stands for all ``rows``.

    Features are means of squares of ``pool`` pixels a side.
    """

    def __init__(self, images: Data, autoguide: Callable = AutoNormal, pool: int = 1):
        super().__init__()
        maps, height, width = images.shape
        self.rows, self.features = len(images.train), maps * (height // pool) * (width // pool)
        self.pool = pool
        self.guide = autoguide(self.model)

    def model(self, x: Tensor, y: Tensor) -> None:
        """Sample w and y."""
        w = pyro.sample("w", dist.Normal(x.new_zeros(self.features + 1), 1.0).to_event(1))
        with pyro.plate("rows", len(x)), pyro.poutine.scale(scale=self.rows / len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x @ w[1:] + w[0]), obs=y)

    def observe(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return pixels as rows and whether the digit is even."""
        pixels = avg_pool2d(images.float() / 255, self.pool)
        return pixels.flatten(1), (labels % 2 == 0).float()


def oracle(images: Data, args: argparse.Namespace) -> nn.Module:
    """Return the linear Gaussian program with random weights and, for these, the exact guide."""
    pixels = images.train.images[0].numel()
    return LinearGaussian(0.1 * torch.randn(pixels, args.latent), scale=0.3, shape=images.shape)


def vae(images: Data, args: argparse.Namespace) -> nn.Module:
    """Return the default VAE."""
    return build_vae(PartSettings(latent=args.latent), images.train.images)


def two_layer(images: Data, args: argparse.Namespace) -> nn.Module:
    """Return the VAE of two layers, the upper of half the dimensions."""
    parts, top = PartSettings(latent=args.latent), args.latent // 2
    first = guides.MeanField(build_encoder(parts, images.shape), args.latent)
    middle, second = normal(top, 50, args.latent), normal(args.latent, 50, top)
    return TwoLayers(priors.StandardNormal(top), middle, build_likelihood(parts, images.shape), first, second)


def sigmoid(images: Data, args: argparse.Namespace) -> nn.Module:
    """Return the sigmoid belief network."""
    return SigmoidBeliefNetwork(images.shape, units=10 * args.latent)


def logistic(images: Data, args: argparse.Namespace) -> nn.Module:
    """Return the logistic regression, its guide a normal distribution of independent weights."""
    return LogisticRegression(images)


def logistic_flow(images: Data, args: argparse.Namespace) -> nn.Module:
    """Return the logistic regression on fewer pixels, its guide an inverse autoregressive flow.

    The flow's density at a given w takes as many passes through its network as there are weights.
    """
    return LogisticRegression(images, AutoIAFNormal, pool=4)


PROGRAMS: dict[str, Callable[[Data, argparse.Namespace], Any]] = {
    "oracle": oracle,
    "vae": vae,
    "two-layer": two_layer,
    "sigmoid": sigmoid,
    "logistic": logistic,
    "logistic-flow": logistic_flow,
}


def built(name: str, seed: int, images: Data, args: argparse.Namespace) -> Any:
    """Return a program with the parameters of a seed."""
    pyro.clear_param_store()
    torch.manual_seed(seed)
    program = PROGRAMS[name](images, args).to(images.train.images.device)
    if isinstance(program, LogisticRegression):
        program.guide(*observed(program, images.train[:1]))  # makes its parameters
    return program


def observed(program: Any, split: Split) -> tuple[Tensor, ...]:
    """Return the arguments of a program for some images."""
    if isinstance(program, LogisticRegression):
        return program.observe(split.images, split.labels)
    x = fixed_x(program, split)
    return x if isinstance(x, tuple) else (x,)


def estimators(particles: list[int], most: int) -> dict[str, ELBO]:
    """Return all estimators by name; L_K alone, and its doubly reparameterised gradient, have ``most`` particles."""
    found = {**candidates(particles), "wake-sleep": WakeSleep(), "score function, K = 1": ScoreFunction()}
    for K in particles:
        if K > 1:
            found |= {f"VR-IWAE α = ½, K = {K}": RenyiBound(0.5, K), f"TVO, K = {K}": TVO(K)}
            found |= {f"CIWAE β = ½, K = {K}": CIWAE(K), f"PIWAE, M = {K}": PIWAE(1, M=K)}
    return found | {f"IWAE, K = {most}": ImportanceWeighted(most), f"DReG, K = {most}": DoublyReparameterized(most)}
