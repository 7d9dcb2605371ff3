"""Programs with a known log p(x), in which evidence is measured."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from monte_carlo import assert_evidence_is
from programs import conv_vae
from scipy import stats
from torch import nn
from torch.distributions import biject_to

from pyro_vae.linear_gaussian import LinearGaussian, mean_field_guide

P, D = 6, 2
X = torch.linspace(-2, 2, 7)
EAGER = {"engine": "eager"}  # compiled programs have tests of their own
RECORDED = {"engine": "compiled"}  # beside ``quick_compiler``: the same numbers, sooner where a program runs often


def oracle(seed: int = 0, scale: float = 0.7) -> LinearGaussian:
    """A program with an exact guide, in float64."""
    weight = torch.randn(P, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return LinearGaussian(weight, scale=scale)


def rough(seed: int = 0, narrower: float = 0.9, **options) -> LinearGaussian:
    """A program whose factorised guide is moved and too narrow."""
    program = oracle(seed, **options)
    guide = mean_field_guide(program)
    with torch.no_grad():
        guide.loc_bias += 0.1
        guide.log_scale += math.log(narrower)
    program.posterior = guide
    return program


def images(program: LinearGaussian, n: int, seed: int = 0) -> torch.Tensor:
    """x of n images drawn from the program."""
    torch.manual_seed(seed)
    return program.simulate(n)


def truth(program: LinearGaussian, x: torch.Tensor) -> torch.Tensor:
    """The exact log p(x)."""
    return program.log_px(x).detach()


def hierarchical(x: torch.Tensor, guide: bool = False, scale: float = 1.0):
    """u scalar, z | u per pixel in an inner plate at dim −1, images at dim −2: x ~ N(0, 2 I + 1 1ᵀ) per image."""
    with pyro.plate("images", len(x), dim=-2):
        u = pyro.sample("u", dist.Normal(x.new_zeros(()), scale))
        with pyro.plate("pixels", x.shape[1], dim=-1):
            z = pyro.sample("z", dist.Normal(u, scale))
            return None if guide else pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def hierarchical_evidence(x: torch.Tensor) -> torch.Tensor:
    """The exact log p(x) of ``hierarchical``."""
    covariance = 2 * torch.eye(x.shape[1]) + 1
    return dist.MultivariateNormal(torch.zeros(x.shape[1]), covariance).log_prob(x).double()


def exact(x, loc=0.0, variance=1.0):
    """The exact log p(x) of z ~ N(loc, 1), x ~ N(z, √variance), as in ``scaled``."""
    return dist.Normal(loc, math.sqrt(1 + variance)).log_prob(x).double()


def check(evidence, wanted, sees=0.5):
    """Assert that estimates are those of log p(x), in their standard errors."""
    assert evidence.log_px.shape == wanted.shape
    assert_evidence_is(evidence, wanted, sees=sees)


def calibrated(evidence, wanted, least=0.9):
    """Assert that most images are trusted, and that z = (log p̂ − log p) / standard error is N(0, 1) for these.

    For 400 images each of the two checks fails by chance with a probability of 10⁻⁴. The share of intervals that hold
    the truth, 95 ± 4.2 %, finds one of 88 % with a probability of 95 %, and one of 86 % always; the Kolmogorov-Smirnov
    test finds a mean of z of a quarter with a probability of 90 %.
    """
    trusted = evidence.trusted
    assert trusted.double().mean() >= least
    z = ((evidence.log_px - wanted) / evidence.standard_error)[trusted].numpy()
    held = (np.abs(z) < 1.96).mean()
    assert abs(held - 0.95) < 3.9 * math.sqrt(0.95 * 0.05 / len(z)), held
    assert stats.kstest(z, "norm").pvalue > 1e-4, (z.mean(), z.std())


def scaled(x, loc=0.0, *, sizes=None, flag=True, first=0, guide=False):
    """z ~ N(loc + sizes, 1) in each row, x | z ~ N(z, 1), and a guide that is exact."""
    assert flag is True and first == 0
    shift = loc if sizes is None else loc + torch.as_tensor(sizes, dtype=torch.float)
    with pyro.plate("rows", len(x)):
        if guide:
            pyro.sample("z", dist.Normal((x + shift) / 2, 0.5**0.5))
        else:
            z = pyro.sample("z", dist.Normal(shift + torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def proposed(*args, **kwargs):
    scaled(*args, **kwargs, guide=True)


def program(latent, likelihood, proposal):
    """z ~ latent, x ~ likelihood(z), and a guide z ~ proposal, in one plate over rows."""

    def model(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("x", likelihood(pyro.sample("z", latent(x))), obs=x)

    def guide(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", proposal(x))

    return model, guide


def transformed(support, dims=()):
    """A proposal over a support: what biject_to makes of a normal distribution."""
    return lambda x: dist.TransformedDistribution(
        dist.Normal(torch.zeros(*dims), 0.8).expand([len(x), *dims]).to_event(len(dims)), biject_to(support)
    )


COUNTS = torch.tensor([0.0, 1.0, 4.0, 9.0])
LOW, HIGH = torch.tensor([-1.0, 0.0, 0.5]), torch.tensor([0.5, 2.0, 3.0])
DICE = torch.tensor([[3.0, 0.0, 2.0], [1.0, 1.0, 1.0]])
CONCENTRATION = torch.tensor([0.7, 1.5, 2.0])


def binomial(x):
    """A uniform success rate makes every number of successes as likely."""
    return torch.full((4,), -math.log(11.0))


def uniform(x):
    normal = torch.distributions.Normal(x, 0.4)
    return ((normal.cdf(HIGH) - normal.cdf(LOW)) / (HIGH - LOW)).log()


PROGRAMS = {
    "positive": (
        lambda x: dist.Gamma(2.0, 0.5), dist.Poisson, lambda x: dist.LogNormal(torch.log(x + 1), 0.6), COUNTS,
        lambda x: dist.GammaPoisson(2.0, 0.5).log_prob(x),
    ),
    "unit interval": (
        lambda x: dist.Beta(1.0, 1.0), lambda z: dist.Binomial(10, z), lambda x: dist.Beta(2.0, 2.0), COUNTS, binomial,
    ),
    "bounds of each row": (
        lambda x: dist.Uniform(LOW, HIGH), lambda z: dist.Normal(z, 0.4), lambda x: dist.Uniform(LOW, HIGH),
        torch.tensor([0.0, 1.9, 1.0]), uniform,
    ),
    "simplex": (
        lambda x: dist.Dirichlet(CONCENTRATION), lambda z: dist.Multinomial(5, z, validate_args=False),
        transformed(dist.constraints.simplex, (2,)), DICE,
        lambda x: dist.DirichletMultinomial(CONCENTRATION, x.sum(-1)).log_prob(x),
    ),
    "several positive in an event": (
        lambda x: dist.Gamma(torch.tensor([1.0, 3.0]), 1.0).to_event(1), lambda z: dist.Poisson(z).to_event(1),
        transformed(dist.constraints.positive, (2,)), COUNTS.reshape(2, 2),
        lambda x: dist.GammaPoisson(torch.tensor([1.0, 3.0]), 1.0).log_prob(x).sum(-1),
    ),
}  # fmt: skip


class OneBatchDimension(nn.Module):
    """x | z ~ N(W z, ½) by a network that flattens what it gets, and has as many outputs as there are rows."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.linear, self.norm = kind, nn.Linear(2, 6, bias=False).double(), nn.BatchNorm1d(6).double()
        self.norm.eval()

    def decode(self, z):
        if self.kind == "view":
            return self.linear(z).view(-1, 6)
        if self.kind == "norm":
            return self.norm(self.linear(z)) * math.sqrt(1 + self.norm.eps)
        return self.linear(z)[torch.arange(len(z))]

    def model(self, x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decode(z), 0.5**0.5).to_event(1), obs=x)

    def guide(self, x):
        weight = self.linear.weight
        precision = torch.eye(2).double() + 2 * weight.T @ weight
        with pyro.plate("rows", len(x)):
            loc = 2 * x @ weight @ torch.linalg.inv(precision)
            pyro.sample("z", dist.MultivariateNormal(loc, precision_matrix=precision))


def two_layers(x, labels, guide=False):
    """Two latent sites, one in a plate of its own within the images, and an argument beside them."""
    with pyro.plate("images", x.shape[0], dim=-2):
        loc = labels[:, None].float()
        top = pyro.sample("top", dist.Normal(loc, 1.0))
        with pyro.plate("pixels", x.shape[1], dim=-1):
            low = pyro.sample("low", dist.Normal(top, 1.0))
            if not guide:
                pyro.sample("x", dist.Normal(low, 1.0), obs=x)


def programs():
    program = conv_vae()
    yield program.model, program.guide, program.observe(torch.randint(256, (7, 1, 8, 8), dtype=torch.uint8))
    yield two_layers, lambda *args: two_layers(*args, guide=True), (torch.randn(7, 3), torch.arange(7))


def shared_rate(x, *, offset):
    """A positive latent that all rows share, and one of each row on a simplex."""
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("images", len(x)):
        share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
        pyro.sample("x", dist.Poisson(rate.unsqueeze(-1) * share + offset.unsqueeze(-1)).to_event(1), obs=x)


def shared_rate_guide(x, *, offset):
    pyro.sample("rate", dist.Gamma(1.5, 1.0))
    with pyro.plate("images", len(x)):
        pyro.sample("share", dist.Dirichlet(1 + x / 4))
