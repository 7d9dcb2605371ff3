"""Families of the columns of a table: modules from the outputs of a network to distributions in the table's own units.

A family is built from the columns that have it, ``Family(columns)``, and is computed for all of them at once. Its call
takes outputs (..., outputs) and returns a distribution with batch (..., n) for n columns. The statistics of the columns
that standardise them are its buffers. At outputs of zero each column has its distribution in the training rows, or one
close to it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyro_vae.construction import Constructed
from pyro_vae.distributions.counts import NegativeBinomialCounts, PoissonCounts
from pyro_vae.distributions.rows import Levels
from pyro_vae.likelihoods.base import soft_minimum
from pyro_vae.tables.columns import Column

SMALLEST_LOG_SCALE, LARGEST_LOG_SCALE = -4.0, 3.0  # of densities, in standard deviations of the column
LOG_RATE = 15.0  # a mean is within e^±15 of the column's
LOG_DISPERSION = (-6.0, 6.0)


class Family(Constructed, ABC):
    """Abstract class of the families of columns.

    ``kinds``: the kinds of columns that it scores. ``outputs``: the number of outputs of the network that it takes.
    """

    kinds: tuple[str, ...]
    loc: Tensor
    scale: Tensor

    def __init__(self, columns: Sequence[Column], per_column: int):
        super().__init__()
        self.outputs = len(columns) * per_column
        self.per_column = per_column
        wrong = next((column for column in columns if column.kind not in self.kinds), None)
        if wrong is not None:
            raise ValueError(
                f"families: {type(self).__name__} scores columns of the kind {' or '.join(self.kinds)}, got the column "
                f"{wrong.name!r} of the kind {wrong.kind}; give the column another family, or another kind when the "
                f"schema is made: kinds={{{wrong.name!r}: {self.kinds[0]!r}}}"
            )
        for name in ("loc", "scale"):
            self.register_buffer(name, torch.tensor([getattr(column, name) for column in columns]))

    def forward(self, outputs: Tensor) -> TorchDistribution:
        """Return the distributions of the columns, batch (..., n), from outputs (..., outputs)."""
        return self.distribution(*outputs.unflatten(-1, (-1, self.per_column)).unbind(-1))

    @abstractmethod
    def distribution(self, *parameters: Any, **kwargs: Any) -> TorchDistribution:
        """Return the distributions of the columns from ``per_column`` parameters, each (..., n)."""


class _Located(Family):
    """A location and a scale, in standard deviations of the column; the scale is above e^min_log_scale of them."""

    def __init__(self, columns: Sequence[Column], min_log_scale: float = SMALLEST_LOG_SCALE):
        super().__init__(columns, 2)
        self.min_log_scale = min_log_scale

    def located(self, loc: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
        """Return location and scale in the units of the column."""
        log_scale = soft_minimum(log_scale, self.min_log_scale).clamp(max=LARGEST_LOG_SCALE)
        return self.loc + self.scale * loc, self.scale * log_scale.exp()


class Normal(_Located):
    """Normal density of a real column.

    The scale is at least e^−4 = 1.8 % of the column's standard deviation. A column that holds one value in many rows
    would otherwise have no largest density: the bound belongs to each result on such a column.
    """

    kinds = ("real",)

    def distribution(self, loc: Tensor, log_scale: Tensor) -> TorchDistribution:
        """Return normal distributions."""
        return dist.Normal(*self.located(loc, log_scale))


class StudentT(_Located):
    """Student's t density of a real column with heavy tails; the degrees of freedom, above 2, are learned a column."""

    kinds = ("real",)

    def __init__(self, columns: Sequence[Column], min_log_scale: float = SMALLEST_LOG_SCALE):
        super().__init__(columns, min_log_scale)
        self.raw_df = nn.Parameter(torch.full((len(columns),), 3.0))

    def distribution(self, loc: Tensor, log_scale: Tensor) -> TorchDistribution:
        """Return Student's t distributions."""
        loc, scale = self.located(loc, log_scale)
        return dist.StudentT(2 + F.softplus(self.raw_df), loc, scale)


class LogNormal(_Located):
    """Log-normal density of a positive column: ln x is normal, its scale bounded as in ``Normal``."""

    kinds = ("positive",)

    def distribution(self, loc: Tensor, log_scale: Tensor) -> TorchDistribution:
        """Return log-normal distributions."""
        return dist.LogNormal(*self.located(loc, log_scale))


class Gamma(Family):
    """Gamma density of a positive column, by mean and concentration."""

    kinds = ("positive",)

    def __init__(self, columns: Sequence[Column]):
        super().__init__(columns, 2)

    def distribution(self, log_mean: Tensor, log_concentration: Tensor) -> TorchDistribution:
        """Return gamma distributions whose mean is e^log_mean times the geometric mean of the column."""
        concentration = bounded(log_concentration, *LOG_DISPERSION).exp()
        return dist.Gamma(concentration, concentration * (-self.loc - bounded(log_mean, -LOG_RATE, LOG_RATE)).exp())


class Poisson(Family):
    """Poisson mass of a column of counts."""

    kinds = ("count",)

    def __init__(self, columns: Sequence[Column]):
        super().__init__(columns, 1)

    def distribution(self, log_mean: Tensor) -> TorchDistribution:
        """Return Poisson distributions whose mean is e^log_mean times that of the column."""
        return PoissonCounts(self.loc + bounded(log_mean, -LOG_RATE, LOG_RATE))


class NegativeBinomial(Family):
    """Negative binomial mass of a column of counts, by mean μ and dispersion θ: the variance is μ + μ² / θ."""

    kinds = ("count",)

    def __init__(self, columns: Sequence[Column]):
        super().__init__(columns, 2)

    def distribution(self, log_mean: Tensor, log_dispersion: Tensor) -> TorchDistribution:
        """Return negative binomial distributions whose mean is e^log_mean times that of the column."""
        log_mean = self.loc + bounded(log_mean, -LOG_RATE, LOG_RATE)
        return NegativeBinomialCounts(log_mean, bounded(log_dispersion, *LOG_DISPERSION))


class _OfLevels(Family):
    """Masses on the levels of columns that have equally many."""

    levels: Tensor
    start: Tensor

    def __init__(self, columns: Sequence[Column], per_column: int):
        super().__init__(columns, per_column)
        self.register_buffer("levels", torch.tensor([column.levels for column in columns]))
        shares = torch.tensor([column.shares for column in columns], dtype=torch.float64)
        self.register_buffer("start", self.started(shares).float())

    @abstractmethod
    def started(self, shares: Tensor) -> Tensor:
        """Return what the outputs are added to, from the shares (n, K) of the levels in the training rows."""


class Categorical(_OfLevels):
    """Mass on the levels of a column of categories or of two values, from K − 1 logits; that of the first is 0."""

    kinds = ("binary", "category", "ordinal")

    def __init__(self, columns: Sequence[Column]):
        super().__init__(columns, len(columns[0].levels) - 1)

    def started(self, shares: Tensor) -> Tensor:
        """Return the log shares."""
        return shares.log()

    def distribution(self, *logits: Tensor) -> TorchDistribution:
        """Return categorical distributions over the levels."""
        return Levels(self.levels, self.start + F.pad(torch.stack(logits, -1), (1, 0)))


class Ordered(_OfLevels):
    """Cumulative logits of an ordinal column: P(x ≤ level k) = σ((c_k − η) / s), c_1 < c_2 < … (McCullagh 1980).

    The cut points c are learned a column; the network gives η and ln s.
    """

    kinds = ("ordinal", "binary")

    def __init__(self, columns: Sequence[Column]):
        super().__init__(columns, 2)
        self.raw_gaps = nn.Parameter(torch.log(torch.expm1(self.start[:, 1:])))
        self.first = nn.Parameter(self.start[:, :1].clone())

    def started(self, shares: Tensor) -> Tensor:
        """Return the first cut point and the gaps to the next ones, (n, K − 1)."""
        cuts = torch.logit(shares.cumsum(-1)[:, :-1].clamp(1e-6, 1 - 1e-6))
        return torch.cat([cuts[:, :1], cuts.diff(dim=-1).clamp_min(1e-3)], -1)

    def distribution(self, eta: Tensor, log_scale: Tensor) -> TorchDistribution:
        """Return distributions over the levels: ln(σ(b) − σ(a)) = ln σ(b) + ln σ(−a) + ln(1 − e^(a − b))."""
        gaps, per_scale = F.softplus(self.raw_gaps) + 1e-4, (-bounded(log_scale, -4.0, 4.0)).exp().unsqueeze(-1)
        edges = (torch.cat([self.first, gaps], -1).cumsum(-1) - eta.unsqueeze(-1)) * per_scale
        below, above = F.logsigmoid(edges), F.logsigmoid(-edges)
        between = below[..., 1:] + above[..., :-1] + torch.log(-torch.expm1(-gaps * per_scale))
        return Levels(self.levels, torch.cat([below[..., :1], between, above[..., -1:]], -1))


FAMILIES = {
    "real": Normal,
    "positive": LogNormal,
    "count": NegativeBinomial,
    "binary": Categorical,
    "category": Categorical,
    "ordinal": Ordered,
}


def bounded(value: Tensor, low: float, high: float) -> Tensor:
    """Return the value within smooth bounds; halfway between them it is unchanged.

    >>> bounded(torch.tensor([-99.0, 0.0, 99.0]), -6.0, 6.0)
    tensor([-6.,  0.,  6.])
    """
    half, centre = (high - low) / 2, (high + low) / 2
    return centre + half * torch.tanh((value - centre) / half)
