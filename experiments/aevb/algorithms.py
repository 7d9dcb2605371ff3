"""Auto-encoding variational Bayes as the paper states it, and all three algorithms through the library.

``aevb`` is the paper's algorithm 1 word by word, without Pyro; ``trained`` trains by it, or by wake-sleep, with the
library's ``Training``; ``mcem`` is Monte Carlo EM. "The paper" is Kingma & Welling (2013).
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor, nn

from pyro_vae import VAE, Training, guides, likelihoods, networks, priors
from pyro_vae.data import Data, Split, batches
from pyro_vae.evidence.annealing import AnnealingPath, hamiltonian
from pyro_vae.random import seeded
from pyro_vae.training import History

MINIBATCH = 100
INITIAL_SCALE = 0.01  # of the weights' N(0, 0.01): a standard deviation in the code that the first author published
HELD_OUT = 100  # validation images, of which ``Training`` needs some; the paper's bounds are measured apart
EPOCH = 20_000  # the least number of images in an epoch of ``Training``
LEAPFROG, UPDATES, ACCEPTANCE = 10, 5, 0.9  # of Monte Carlo EM
FIRST_STEP, ADAPTATION, CHUNK = 0.1, 2.0, 1000  # of its Hamiltonian chains; images that are moved at once

Bound = Callable[[VAE, Tensor, Tensor], Tensor]
Update = Callable[[list[Tensor], Iterable[Tensor]], None]


def program(
    shape: tuple[int, int, int], latent: int, hidden: int, gaussian: bool, binarize: Callable[..., Tensor], seed: int
) -> VAE:
    """Return the paper's program: one hidden tanh layer in encoder and decoder, all parameters drawn from N(0, 0.01).

    Its decoder is Bernoulli, or Gaussian with a mean squashed to (0, 1) and a scale for each pixel.
    """
    with seeded(seed):
        decoder = networks.MLPDecoder(latent, shape, shape[0] * (2 if gaussian else 1), (hidden,), nn.Tanh)
        likelihood = likelihoods.Normal(decoder) if gaussian else likelihoods.Bernoulli(decoder, binarize)
        guide = guides.MeanField(networks.MLPEncoder(shape, (hidden,), nn.Tanh), latent)
        vae = VAE(priors.StandardNormal(latent), likelihood, guide)
        with torch.no_grad():
            for parameter in vae.parameters():
                parameter.normal_(0, INITIAL_SCALE)
    return vae


def aevb(vae: VAE, images: Tensor, bound: Bound, update: Update, epochs: int, M: int = MINIBATCH) -> Iterator[int]:
    """Do algorithm 1 of the paper, L = 1, with the prior N(0, I) on all parameters; yield the samples seen so far."""
    parameters, N = list(vae.parameters()), len(images)
    for epoch in range(epochs):
        for number, index in enumerate(batches(N, M), start=1):
            x = vae.observe(images[index])  # X^M: a random minibatch of M datapoints
            epsilon = torch.randn(len(x), vae.prior().event_shape[0], dtype=x.dtype)  # samples of the noise p(ε)
            log_prior = -sum(parameter.square().sum() for parameter in parameters) / 2
            objective = N / M * bound(vae, x, epsilon).sum() + log_prior
            update(parameters, torch.autograd.grad(objective, parameters))  # g = ∇ L^M(θ, φ; X^M, ε)
            yield epoch * N + min(number * M, N)


def bound_a(vae: VAE, x: Tensor, epsilon: Tensor) -> Tensor:
    """Return L^A = log p(x, z) − log q(z | x), z = μ + σ ε: (M,); the paper's equation 6."""
    q = vae.posterior(x)
    z = q.base_dist.loc + q.base_dist.scale * epsilon
    return vae.likelihood(z).log_prob(x) + vae.prior().log_prob(z) - q.log_prob(z)


def bound_b(vae: VAE, x: Tensor, epsilon: Tensor) -> Tensor:
    """Return L^B = ½ Σ (1 + log σ² − μ² − σ²) + log p(x | z), z = μ + σ ε: (M,); the paper's equations 7 and 10."""
    q = vae.posterior(x).base_dist
    z = q.loc + q.scale * epsilon
    return (1 + q.variance.log() - q.mean.square() - q.variance).sum(-1) / 2 + vae.likelihood(z).log_prob(x)


def sgd(step: float) -> Update:
    """Return the update θ ← θ + step g."""

    @torch.no_grad()
    def update(parameters: list[Tensor], gradients: Iterable[Tensor]) -> None:
        for theta, g in zip(parameters, gradients):
            theta += step * g

    return update


def adagrad(step: float, epsilon: float = 1e-10) -> Update:
    """Return the update G ← G + g², θ ← θ + step g / (√G + ε) (Duchi et al. 2010)."""
    squares: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def update(parameters: list[Tensor], gradients: Iterable[Tensor]) -> None:
        for theta, g in zip(parameters, gradients):
            G = squares[theta] = squares.get(theta, 0) + g.square()
            theta += step * g / (G.sqrt() + epsilon)

    return update


def map_adagrad(parameters: list[nn.Parameter], step: float, share: float) -> torch.optim.Optimizer:
    """Return Adagrad on a loss summed over this share of all training images, and on minus the log prior N(0, I).

    The gradient of the prior belongs to all images, so a minibatch of M out of N takes M / N of it.
    """
    return torch.optim.Adagrad(parameters, lr=step, weight_decay=share, fused=True)


def trained(
    vae: VAE,
    images: Data,
    estimator: ELBO,
    *,
    step: float,
    samples: int,
    after: Callable[[int], None],
    seed: int = 0,
    engine: str = "auto",
) -> History:
    """Train by the library's ``Training`` as the paper does: minibatches of 100, Adagrad, the prior on the weights.

    ``after`` is called after each update with the number of samples seen, of which there are at least ``samples``.
    At the end the program has the parameters of the epoch that is best on a few validation images. A small training set
    is repeated within an epoch.
    """
    N = len(images.train)
    n = min(samples, max(N, EPOCH))
    data = replace(images, train=images.train[torch.arange(n) % N], valid=images.valid[:HELD_OUT])
    per_epoch = math.ceil(n / MINIBATCH)
    training = Training(
        vae,
        data,
        estimator,
        epochs=math.ceil(samples / n),
        batch_size=MINIBATCH,
        seed=seed,
        optimizer=lambda parameters: map_adagrad(parameters, step, MINIBATCH / N),
        engine=engine,
        progress=False,
    )
    for taken in training.steps():
        epoch, number = divmod(taken.number, per_epoch)
        after(epoch * n + number * MINIBATCH)
    return training.history


def mcem(vae: VAE, images: Split, step: float) -> Iterator[int]:
    """Do Monte Carlo EM (the paper's appendix E); yield, after each update, the samples seen so far. It does not end.

    Each image keeps its z. In turns, all z are moved by a Hamiltonian trajectory of ten leapfrog steps that leaves
    p(z | x) invariant, its step size tuned to an acceptance of 90 %, and the decoder takes five steps of Adagrad on
    the log prior and log p(x, z) of all images. An image counts as seen by the gradient at the end of each of the ten
    steps (not by the one at their start) and by each of the five of the weights; the guide is unused.
    """
    N, seen = len(images), 0
    optimizer = map_adagrad(list(vae.likelihood.parameters()), step, share=1.0)
    chains, z = Chains(vae), vae.prior().sample((1, N))
    while True:
        x = vae.observe(images.images)
        parts = list(zip(x.split(CHUNK), z.split(CHUNK, dim=1)))
        parts = [(x, chains.move(x, z)) for x, z in parts]
        z = torch.cat([z for _, z in parts], dim=1)
        seen += LEAPFROG * N
        for _ in range(UPDATES):
            optimizer.zero_grad()
            for x, z_x in parts:
                (-log_joint(vae, x, z_x)).backward()
            optimizer.step()
            seen += N
            yield seen


class Chains:
    """Hamiltonian chains on z, one an image, that leave p(z | x) invariant; their step size follows the acceptance."""

    def __init__(self, vae: VAE, step: float = FIRST_STEP):
        self.vae, self.step, self.acceptance, self.plan = vae, step, math.nan, None

    def move(self, x: Tensor, z: Tensor) -> Tensor:
        """Return the next z, after a trajectory from z (1, B, D) given x (B, C, H, W)."""
        path = AnnealingPath(self.vae.model, None, (x,), plan=self.plan)
        self.plan = path.plan
        with pyro.validation_enabled(False):
            step, momentum = z.new_full(z.shape[1:], self.step), torch.randn_like(z)
            end, _, probability = hamiltonian(path, path(z), momentum, 1.0, step, LEAPFROG)
        self.acceptance = probability.mean().item()
        self.step *= math.exp(ADAPTATION * (self.acceptance - ACCEPTANCE))
        return end.z


def log_joint(vae: VAE, x: Tensor, z: Tensor) -> Tensor:
    """Return log p(x, z), summed over the images; z (1, B, D)."""
    with pyro.validation_enabled(False):
        return poutine.trace(poutine.condition(vae.model, data={"z": z[0]})).get_trace(x).log_prob_sum()
