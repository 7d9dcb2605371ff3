"""Distributions that stay precise where torch's lose precision: in float32, or within the caller's autocast."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_vae.random import without_autocast

# ln (sinh h / h) = Σ_k c_k h^2k for k = 1 … 8, c_k = 2^2k B_2k / (2k (2k)!): to 1e-14 where |h| ≤ ½.
SINH = (1 / 6, -1 / 180, 1 / 2835, -1 / 37800, 1 / 467775, -691 / 3831077250, 2 / 127702575, -3617 / 2605132530000)
# ln Γ(a) − (a − ½) ln a + a − ½ ln 2π = Σ_k s_k a^(1 − 2k) for k = 1 … 6: to 1e-15 where a ≥ 10 (Stirling).
STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360)


class ContinuousBernoulli(dist.ContinuousBernoulli):
    """p(x) = e^(l (x − ½)) h / sinh h on [0, 1], h = l / 2, for a logit l (Loaiza-Ganem & Cunningham 2019).

    torch's class subtracts numbers near ½, and probabilities near 1: at logits of 0.004 to 0.02 its variance may be
    negative and its mean off by 0.003, and beyond ±16 it is no density in float32.

    >>> p = ContinuousBernoulli(logits=torch.tensor(0.01))
    >>> p.mean, p.variance
    (tensor(0.5008), tensor(0.0833))
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return l (x − ½) + ln (h / sinh h)."""
        if self._validate_args:
            self._validate_sample(value)
        return self.logits * (value - 0.5) - log_sinhc(self.logits / 2)

    @property
    def mean(self) -> Tensor:
        """The mean ½ + (coth h − 1/h) / 2."""
        near, h = _off_zero(self.logits / 2)
        coefficients = [2 * k * c for k, c in enumerate(SINH, 1)]
        series = polynomial(coefficients, (self.logits / 2).square()) * self.logits / 2
        return 0.5 + 0.5 * torch.where(near, series, 1 / torch.tanh(h) - 1 / h)

    @property
    def variance(self) -> Tensor:
        """The variance (1/h² − 1/sinh² h) / 4."""
        near, h = _off_zero(self.logits / 2)
        coefficients = [2 * k * (2 * k - 1) * c for k, c in enumerate(SINH, 1)]
        a, b = 1 / h.abs(), -2 * (-h.abs()).exp() / torch.expm1(-2 * h.abs())
        return 0.25 * torch.where(near, polynomial(coefficients, (self.logits / 2).square()), (a - b) * (a + b))

    def cdf(self, value: Tensor) -> Tensor:
        """Return expm1(l x) / expm1(l); for l > 0 the same with 1 − x and −l."""
        near, logits = _off_zero(self.logits, self._linear)
        x, rate = value.clamp(0, 1), -logits.abs()
        y = torch.expm1(rate * torch.where(logits > 0, 1 - x, x)) / torch.expm1(rate)
        return torch.where(near, x - self.logits * x * (1 - x) / 2, torch.where(logits > 0, 1 - y, y))

    def icdf(self, value: Tensor) -> Tensor:
        """Return the quantile of a probability, the inverse of ``cdf``."""
        near, logits = _off_zero(self.logits, self._linear)
        u, rate = torch.where(logits > 0, 1 - value, value), -logits.abs()
        y = torch.log1p(u.clamp(max=1 - torch.finfo(u.dtype).eps) * torch.expm1(rate)) / rate
        return torch.where(near, value + self.logits * value * (1 - value) / 2, torch.where(logits > 0, 1 - y, y))

    def entropy(self) -> Tensor:
        """Return −E[ln p(x)], in nats."""
        return log_sinhc(self.logits / 2) - self.logits * (self.mean - 0.5)

    def _cont_bern_log_norm(self) -> Tensor:  # torch's KL divergences call it
        return F.softplus(self.logits) - self.logits / 2 - log_sinhc(self.logits / 2)

    @property
    def _linear(self) -> float:
        """The largest |l| for which the density is linear in x, up to rounding."""
        return torch.finfo(self.logits.dtype).eps ** 0.5


if TYPE_CHECKING:
    Mixed = Any  # the distribution that the mixin below is combined with
else:
    Mixed = object


class FullPrecision(Mixed):
    """Mixin for distributions whose draws and densities multiply matrices: autocast does not lower their precision."""

    @without_autocast()
    def sample(self, *args, **kwargs) -> Tensor:
        """Draw without gradients, in full precision."""
        return super().sample(*args, **kwargs)

    @without_autocast()
    def rsample(self, *args, **kwargs) -> Tensor:
        """Draw a differentiable sample, in full precision."""
        return super().rsample(*args, **kwargs)

    @without_autocast()
    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density, computed in full precision."""
        return super().log_prob(value)


class MultivariateNormal(FullPrecision, dist.MultivariateNormal):
    """torch's multivariate normal, in full precision within autocast."""


class LowRankMultivariateNormal(FullPrecision, dist.LowRankMultivariateNormal):
    """torch's low-rank multivariate normal, in full precision within autocast."""


class Beta(dist.Beta):
    """The beta distribution, whose density is exact up to rounding at any concentration c = α + β.

    torch's density in float32 is a difference of logarithms of Γ, 0.005 nats off at c = 8000.

    With the mean m = α / c and Stirling's remainder δ of ln Γ (DiDonato & Morris 1992),

        ln p(x) = α ln(x / m) + β ln((1 − x) / (1 − m)) − ln x − ln(1 − x) + ½ ln(α β / 2πc) + δ(c) − δ(α) − δ(β).

    >>> Beta(torch.tensor(4000.0), torch.tensor(4000.0)).log_prob(torch.tensor(0.5))
    tensor(4.2678)
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return ln p(x), in nats."""
        if self._validate_args:
            self._validate_sample(value)
        a, b = self.concentration1, self.concentration0
        c, log_x, log_y = a + b, value.log(), torch.log1p(-value)
        log_a, log_b, log_c = a.log(), b.log(), c.log()
        excess = value * b - (1 - value) * a  # c (x − m)
        tilt = a * _log_ratio(excess, a, log_x + log_c - log_a) + b * _log_ratio(-excess, b, log_y + log_c - log_b)
        peak = 0.5 * (log_a + log_b - log_c - math.log(2 * math.pi)) - log_x - log_y
        return tilt + peak + stirling_remainder(c) - stirling_remainder(a) - stirling_remainder(b)


def log_sinhc(h: Tensor) -> Tensor:
    """Return ln (sinh h / h).

    >>> log_sinhc(torch.tensor([0.0, 1e-3, 100.0]))
    tensor([0.0000e+00, 1.6667e-07, 9.4702e+01])
    """
    near, far = _off_zero(h)
    far = far.abs()
    return torch.where(
        near, h.square() * polynomial(SINH, h.square()), far - (2 * far).log() + torch.log1p(-(-2 * far).exp())
    )


def stirling_remainder(a: Tensor) -> Tensor:
    """Return δ(a) = ln Γ(a) − (a − ½) ln a + a − ½ ln 2π, for a > 0.

    >>> stirling_remainder(torch.tensor([1.0, 1e4]))
    tensor([8.1061e-02, 8.3333e-06])
    """
    large = a >= 10
    small, inverse = torch.where(large, 10.0, a), 1 / torch.where(large, a, 10.0)  # clamp has no gradient at its bound
    direct = small.lgamma() - (small - 0.5) * small.log() + small - 0.5 * math.log(2 * math.pi)
    return torch.where(large, inverse * polynomial(STIRLING, inverse.square()), direct)


def polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """Return Σ_k c_k x^k, from k = 0.

    >>> polynomial([1.0, 2.0, 3.0], torch.tensor(10.0))
    tensor(321.)
    """
    total = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + coefficient
    return total


def _off_zero(h: Tensor, bound: float = 0.5) -> tuple[Tensor, Tensor]:
    """Return where |h| is at most the bound, and h with ones in those places, so that no gradient there is NaN."""
    near = h.abs() <= bound
    return near, torch.where(near, 1.0, h)


def _log_ratio(excess: Tensor, a: Tensor, otherwise: Tensor) -> Tensor:
    """Return ln(1 + excess / a) where |excess / a| < ½, and elsewhere the difference of logarithms that is given."""
    share = excess / torch.maximum(a, 2 * excess.abs())  # at most ½, so that no gradient is infinite elsewhere
    return torch.where(2 * excess.abs() < a, torch.log1p(share), otherwise)
