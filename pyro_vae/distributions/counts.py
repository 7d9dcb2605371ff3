"""Distributions of counts by the logarithm of their mean, exact up to rounding for any mean, dispersion and count.

log p(x) of a large count is a small difference of large logarithms of Γ, off by nats in float32. Here it is a sum of
terms of one sign (Loader 2000): deviances, ``_deviance(a, b) = a ln(a / b) − (a − b) ≥ 0``, and Stirling's remainders.
"""

import math
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

from pyro_vae.distributions.families import polynomial, stirling_remainder

LARGEST_RATE = 1e18  # of a Poisson draw, which is a 64-bit number
NEAR = 0.03  # |a − b| / (a + b) below which the deviance is a series
ATANH = [1 / (2 * k + 3) for k in range(4)]  # (atanh(v) − v) / v³ = Σ_k v^2k / (2k + 3): to 1e-13 for |v| ≤ 0.03


class PoissonCounts(TorchDistribution):
    """Poisson distribution of mean μ = e^η, for η = ``log_mean``.

    log p(x) = −deviance(x, μ) − δ(x) − ½ ln 2πx for x ≥ 1, and −μ for x = 0, with Stirling's remainder δ of ln Γ.

    >>> PoissonCounts(torch.tensor([0.0, -200.0])).log_prob(torch.tensor([1e6, 1.0]))
    tensor([-1.2816e+07, -2.0000e+02])
    """

    arg_constraints = {"log_mean": constraints.real}  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    support = constraints.nonnegative_integer  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]

    def __init__(self, log_mean: Tensor, validate_args: bool | None = None):
        self.log_mean = log_mean
        super().__init__(log_mean.shape, torch.Size(), validate_args=validate_args)

    def expand(self, batch_shape, _instance=None) -> "PoissonCounts":
        """Return the distribution expanded to a batch shape."""
        new: Any = self._get_checked_instance(PoissonCounts, _instance)
        PoissonCounts.__init__(new, self.log_mean.expand(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape=()) -> Tensor:
        """Draw counts, shape (*sample_shape, *batch)."""
        with torch.no_grad():
            return _poisson(self.mean.expand(self._extended_shape(torch.Size(sample_shape))))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of counts, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        x, mean = value.clamp(min=1), self.mean
        log_p = -_deviance(x, x - mean, x.log() - self.log_mean) - _remainder(x)
        return torch.where(value == 0, -mean, log_p)

    @property
    def mean(self) -> Tensor:
        """The mean, shape (*batch)."""
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        """The variance, which is the mean."""
        return self.mean


class NegativeBinomialCounts(TorchDistribution):
    """Negative binomial distribution of mean μ and dispersion θ, by their logarithms: variance μ + μ² / θ.

    It is the Poisson distribution of a rate that is gamma distributed with shape θ and mean μ, and nears the Poisson
    distribution of mean μ as θ grows. With n = x + θ, p = θ / (θ + μ) and q = 1 − p,

        log p(x) = δ(n) − δ(θ) − δ(x) − ½ ln 2πx − ½ ln(n / θ) − deviance(x, n q) − deviance(θ, n p)

    for x ≥ 1, and −θ ln(1 + μ / θ) for x = 0.

    >>> p = NegativeBinomialCounts(torch.tensor(1.0), torch.tensor([0.0, 30.0]))
    >>> p.log_prob(torch.tensor(3.0)), PoissonCounts(torch.tensor(1.0)).log_prob(torch.tensor(3.0))
    (tensor([-2.2530, -1.5100]), tensor(-1.5100))
    """

    arg_constraints = {"log_mean": constraints.real, "log_dispersion": constraints.real}  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    support = constraints.nonnegative_integer  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]

    def __init__(self, log_mean: Tensor, log_dispersion: Tensor, validate_args: bool | None = None):
        self.log_mean, self.log_dispersion = log_mean, log_dispersion
        shape = torch.broadcast_shapes(log_mean.shape, log_dispersion.shape)
        super().__init__(shape, torch.Size(), validate_args=validate_args)

    def expand(self, batch_shape, _instance=None) -> "NegativeBinomialCounts":
        """Return the distribution expanded to a batch shape."""
        new: Any = self._get_checked_instance(NegativeBinomialCounts, _instance)
        # What is shared by many values stays so: its functions are then computed once.
        NegativeBinomialCounts.__init__(new, self.log_mean.expand(batch_shape), self.log_dispersion, False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape=()) -> Tensor:
        """Draw counts, shape (*sample_shape, *batch)."""
        with torch.no_grad():
            log_mean, t = broadcast_all(self.log_mean, self.log_dispersion)
            gamma = torch.distributions.Gamma(t.exp(), torch.ones_like(t), validate_args=False)
            return _poisson(gamma.sample(torch.Size(sample_shape)) * (log_mean - t).exp())

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of counts, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        x, eta, t = value.clamp(min=1), self.log_mean, self.log_dispersion
        theta = t.exp()
        n = x + theta
        log_n = n.log()
        log_ratio = torch.logaddexp(t, eta) - log_n  # ln(θ / n p) = ln((θ + μ) / (θ + x))
        excess = torch.sigmoid(t - eta) * (x - eta.exp())  # x − n q = n p − θ
        deviance = _deviance(x, excess, x.log() - eta + log_ratio) + _deviance(theta, -excess, log_ratio)
        remainder = stirling_remainder(n) - stirling_remainder(theta) - 0.5 * (log_n - t)
        return torch.where(value == 0, -theta * F.softplus(eta - t, threshold=40), remainder - _remainder(x) - deviance)

    @property
    def mean(self) -> Tensor:
        """The mean, shape (*batch)."""
        return self.log_mean.exp().expand(self.batch_shape)

    @property
    def variance(self) -> Tensor:
        """The variance μ + μ² / θ."""
        return self.mean + (2 * self.log_mean - self.log_dispersion).exp()


class ZeroInflatedCounts(dist.ZeroInflatedDistribution):
    """Counts that are zero with probability π = sigmoid(``gate_logits``), and else those of ``base_dist``.

    Pyro's class cannot be expanded after a draw or a look at its mean, and then scores without small probabilities.

    >>> p = ZeroInflatedCounts(PoissonCounts(torch.tensor(5.0)), gate_logits=torch.tensor(0.0))
    >>> p.log_prob(torch.tensor(0.0))
    tensor(-0.6931)
    """

    gate_logits: Any  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def gate(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The probability π."""
        return self.gate_logits.sigmoid()

    def log_prob(self, value: Tensor) -> Tensor:
        """Return ln(1 − π) + log p(x) for x ≥ 1, and ln(π + (1 − π) p(0)) for x = 0."""
        if self._validate_args:
            self._validate_sample(value)
        log_p = self.base_dist.log_prob(value) + F.logsigmoid(-self.gate_logits)
        return torch.where(value == 0, torch.logaddexp(F.logsigmoid(self.gate_logits), log_p), log_p)


def _deviance(a: Tensor, excess: Tensor, log_ratio: Tensor) -> Tensor:
    """Return a ln(a / b) − (a − b), from a, a − b and ln(a / b), each of them exact where a is near b."""
    v = excess / (2 * a - excess)
    near = v.abs() < NEAR
    v = torch.where(near, v, 0.0)  # so that no gradient is NaN elsewhere
    series = 2 * a * v.square() * (1 / (1 + v) + v * polynomial(ATANH, v.square()))
    return torch.where(near, series, a * log_ratio - excess)


def _remainder(x: Tensor) -> Tensor:
    """Return ln x! − (x ln x − x), for x ≥ 1."""
    return stirling_remainder(x) + 0.5 * (2 * math.pi * x).log()


def _poisson(rate: Tensor) -> Tensor:
    return torch.poisson(rate.clamp(max=LARGEST_RATE))
