"""Programs, data and small helpers that several tests use."""

from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import Independent, MultivariateNormal

from pyro_vae import VAE, fit, guides, likelihoods, load, networks, priors
from pyro_vae.compiling import missing_compiler
from pyro_vae.data import Data
from pyro_vae.linear_gaussian import LinearGaussian

DIGITS = load("digits")
FEW = Data("few", DIGITS.train[:200], DIGITS.valid[:100], DIGITS.test[:100])
SHAPE = DIGITS.shape

needs_compiler = pytest.mark.skipif(bool(missing_compiler()), reason="no C++ compiler")
refused_by_2_11 = pytest.mark.xfail(
    torch.__version__.startswith("2.11."),
    reason="the compiler of torch 2.11 takes the noise of such a step in another order, so that it is refused",
)


def small_vae(
    latent=2, *, seed=0, family=likelihoods.Bernoulli, maps=1, prior=priors.StandardNormal, guide=guides.MeanField
):
    """A VAE of the digits whose encoder and decoder have one small layer."""
    torch.manual_seed(seed)
    likelihood = family(networks.MLPDecoder(latent, SHAPE, maps, hidden=(16,)))
    return VAE(prior(latent), likelihood, guide(networks.MLPEncoder(SHAPE, hidden=(16,)), latent))


def conv_vae(latent=2, *, seed=0):
    """A VAE of the digits with small convolutional networks."""
    torch.manual_seed(seed)
    likelihood = likelihoods.Bernoulli(networks.ConvDecoder(latent, SHAPE, maps=1, channels=(8, 8)))
    posterior = guides.MeanField(networks.ConvEncoder(SHAPE, channels=(8, 8)), latent)
    return VAE(priors.StandardNormal(latent), likelihood, posterior)


def linear_gaussian(seed=0):
    """Probabilistic PCA of five pixels and two latents in float64, with the exact guide."""
    torch.manual_seed(seed)
    weight, bias = torch.randn(5, 2, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    return LinearGaussian(weight, bias, scale=0.7)


def as_full(q):
    """A Gaussian in the form that has a covariance matrix."""
    return MultivariateNormal(q.mean, torch.diag_embed(q.variance)) if isinstance(q, Independent) else q


def with_rate(vae):
    """The VAE, of two latent dimensions, with codes two standard deviations away: a rate of four nats, not of none."""
    (*_, bias) = vae.posterior.parameters()
    with torch.no_grad():
        bias[:2] += 2.0
    return vae


class NormalizedDecoder(nn.Module):
    """A decoder that takes one batch dimension, and normalizes over it."""

    def __init__(self, latent=2):
        super().__init__()
        self.linear, self.norm = nn.Linear(latent, 64), nn.BatchNorm1d(64)

    def forward(self, z):
        return self.norm(self.linear(z)).view(-1, *SHAPE)


class Breaks(nn.Module):
    """A program that passes each training batch through ``on_batch(number of the batch, x)``.

    The first batch is the one that ``fit`` checks the program with.
    """

    def __init__(self, vae, on_batch):
        super().__init__()
        self.vae, self.model, self.guide = vae, vae.model, vae.guide
        self.noted = SimpleNamespace(on_batch=on_batch, count=0)  # no part of what two programs have in common

    @property
    def count(self):
        return self.noted.count

    def observe(self, pixels, generator=None):
        x = self.vae.observe(pixels, generator)
        if generator is None:
            self.noted.count += 1
            x = self.noted.on_batch(self.count, x)
        return x


def quick(vae, data=FEW, estimator=None, **settings):
    """Train for two epochs of four steps."""
    step = {} if "optimizer" in settings else {"lr": 1e-2}
    return fit(vae, data, estimator, **{"epochs": 2, "batch_size": 50, "progress": False, **step, **settings})


def copy_of(module):
    """Copy the state of a module."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(module, state):
    """Return whether the state of a module has the bits of this copy."""
    return all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


def same_bits(first, second):
    """Return whether two modules have the same bits."""
    return same(first, second.state_dict())


def flat_model(x):
    """z in an event of two, x ~ N(z₁ + z₂, ½) in each row."""
    with pyro.plate("images", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.deterministic("twice", 2 * z, event_dim=1)
        pyro.sample("x", dist.Normal(z.sum(-1), 0.5), obs=x)


def flat_guide(x):
    with pyro.plate("images", len(x)):
        pyro.sample("z", dist.Normal(x.unsqueeze(-1).expand(-1, 2), 0.3).to_event(1))


def grid_model(x):
    """The images at dim −2, z in a plate of three parts at dim −1, x about their sum."""
    with pyro.plate("images", len(x), dim=-2):
        with pyro.plate("parts", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 0.5), obs=x.unsqueeze(-1))


def grid_guide(x):
    with pyro.plate("images", len(x), dim=-2), pyro.plate("parts", 3, dim=-1):
        pyro.sample("z", dist.Normal(x.unsqueeze(-1), 0.3))


class PlainNetworks(nn.Module):
    """A program of plain linear networks, whose results autocast lowers; ``cast`` brings them back to float32."""

    def __init__(self, cast=False):
        super().__init__()
        torch.manual_seed(0)
        self.decoder, self.encoder, self.cast = nn.Linear(2, 50), nn.Linear(50, 2), cast

    def through(self, network, value):
        return network(value).float() if self.cast else network(value)

    def model(self, x):
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.through(self.decoder, z), 0.05).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("images", len(x)):
            loc = self.through(self.encoder, x)
            pyro.sample("z", dist.Normal(loc, loc.exp() / 2).to_event(1))


def normal_model(scale=None):
    """Three rows of z ~ N(0, scale), x ~ N(z, 1)."""
    scale = torch.ones(()) if scale is None else scale
    with pyro.plate("images", 3):
        z = pyro.sample("z", dist.Normal(0.0, scale))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.ones(3))
