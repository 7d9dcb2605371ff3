"""Distributions of single pixels: of grey levels, of bins of grey levels, and of values in the unit interval."""

import functools
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import SigmoidTransform, biject_to, constraints, transform_to
from torch.distributions.utils import broadcast_all

from pyro_vae.data.pixels import LEVELS
from pyro_vae.distributions import families
from pyro_vae.random import without_autocast


class _Interior(constraints.Constraint):
    """The open interval 0 < x < 1."""

    def check(self, value: Tensor) -> Tensor:
        return (value > 0) & (value < 1)


@biject_to.register(_Interior)
@transform_to.register(_Interior)
def _to_interior(support: _Interior) -> SigmoidTransform:
    return SigmoidTransform()


class _Grid(constraints.Constraint):
    """The points (i + offset) / n for whole i in 0 … count − 1."""

    is_discrete = True

    def __init__(self, count: int, n: int, offset: float):
        self.count, self.n, self.offset = count, n, offset

    def check(self, value: Tensor) -> Tensor:
        index = value * self.n - self.offset
        on_grid = (index - index.round()).abs() < 1e-3
        return on_grid & (index.round() >= 0) & (index.round() < self.count)


class IntensityBernoulli(dist.Bernoulli):
    """A Bernoulli distribution that scores probabilities x in [0, 1] by their cross-entropy."""

    support = constraints.unit_interval


class InteriorBeta(families.Beta):
    """A beta distribution that refuses 0 and 1, where its density may be zero or infinite."""

    support = _Interior()


class BinCentres(TorchDistribution):
    """Categorical distribution over the bin centres (i + ½) / B, i = 0 … B − 1, from logits (..., B)."""

    arg_constraints = {"logits": constraints.real_vector}  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    has_enumerate_support = True

    def __init__(self, logits: Tensor, validate_args: bool | None = None):
        self.categorical = torch.distributions.Categorical(logits=logits, validate_args=False)
        self.logits, self.bins = logits, logits.shape[-1]
        super().__init__(logits.shape[:-1], torch.Size(), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the constraint to the bin centres."""
        return _Grid(self.bins, self.bins, 0.5)

    def expand(self, batch_shape, _instance=None) -> "BinCentres":
        """Return the distribution expanded to a batch shape."""
        new: Any = self._get_checked_instance(BinCentres, _instance)
        BinCentres.__init__(new, self.logits.expand(*batch_shape, self.bins), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def centre(self, index: Tensor) -> Tensor:
        """Return the centre (i + ½) / B of bin i."""
        return (index.to(self.logits.dtype) + 0.5) / self.bins

    def sample(self, sample_shape=()) -> Tensor:
        """Draw bin centres, shape (*sample_shape, *batch)."""
        return self.centre(self.categorical.sample(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of the bin centre nearest to each value."""
        if self._validate_args:
            self._validate_sample(value)
        index = (value * self.bins - 0.5).round().long()
        log_p = self.categorical.logits.expand(*torch.broadcast_shapes(index.shape, self.batch_shape), self.bins)
        return log_p.gather(-1, index.expand(log_p.shape[:-1]).unsqueeze(-1)).squeeze(-1)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Return all bin centres, shape (B, *batch), or (B, 1, …) if not ``expand``."""
        centres = self.centre(torch.arange(self.bins, device=self.logits.device))
        centres = centres.reshape(-1, *[1] * len(self.batch_shape))
        return centres.expand(-1, *self.batch_shape) if expand else centres

    @property
    def mean(self) -> Tensor:
        """The mean, shape (*batch)."""
        with without_autocast():
            return self.categorical.probs @ self.centre(torch.arange(self.bins, device=self.logits.device))


class LogisticLevels(TorchDistribution):
    """Logistic distribution rounded to the levels i / 255, i = 0 … 255; the end levels take the tails. In log space.

    With a = (x + h − μ)/s and b = (x − h − μ)/s, h = ½/255:  σ(a) − σ(b) = σ(a) σ(−b) (1 − e^(b − a)).
    """

    arg_constraints = {"loc": constraints.real, "log_scale": constraints.real}  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    support = _Grid(LEVELS, LEVELS - 1, 0.0)  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    half = 0.5 / (LEVELS - 1)

    def __init__(self, loc: Tensor, log_scale: Tensor, validate_args: bool | None = None):
        self.loc, self.log_scale = broadcast_all(loc, log_scale)
        super().__init__(self.loc.shape, torch.Size(), validate_args=validate_args)

    def expand(self, batch_shape, _instance=None) -> "LogisticLevels":
        """Return the distribution expanded to a batch shape."""
        new: Any = self._get_checked_instance(LogisticLevels, _instance)
        LogisticLevels.__init__(new, self.loc.expand(batch_shape), self.log_scale.expand(batch_shape), False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape=()) -> Tensor:
        """Draw grey levels i / 255, shape (*sample_shape, *batch)."""
        with torch.no_grad():
            tiny = torch.finfo(self.loc.dtype).tiny
            u = torch.rand(self._extended_shape(torch.Size(sample_shape)), dtype=self.loc.dtype, device=self.loc.device)
            x = self.loc + self.log_scale.exp() * (u.clamp_min(tiny).log() - torch.log1p(-u))
            return (x * (LEVELS - 1)).round().clamp(0, LEVELS - 1) / (LEVELS - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of a grey level i / 255."""
        if self._validate_args:
            self._validate_sample(value)
        inverse = (-self.log_scale).exp()
        centred = value - self.loc
        below = F.logsigmoid((centred + self.half) * inverse)  # log F at the upper edge of the level
        above = F.logsigmoid(-(centred - self.half) * inverse)  # log (1 − F) at its lower edge
        inside = below + above + (-torch.expm1(-2 * self.half * inverse)).log()
        return torch.where(value < self.half, below, torch.where(value > 1 - self.half, above, inside))

    @property
    def mean(self) -> Tensor:
        """The exact mean Σ_g P(level > g) / 255."""
        inverse = (-self.log_scale).exp()
        edges = (torch.arange(LEVELS - 1) + 0.5).div(LEVELS - 1).tolist()
        above = (torch.sigmoid((self.loc - edge) * inverse) for edge in edges)
        return functools.reduce(torch.add, above) / (LEVELS - 1)
