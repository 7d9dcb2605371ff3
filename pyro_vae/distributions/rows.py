"""The distribution of a row of a table, whose columns have families of their own and whose cells may be missing."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints

from pyro_vae.random import without_autocast

NEAR = 0.01  # share of the gap between two levels that rounding may move a value


class _OneOf(constraints.Constraint):
    """The numbers in ``levels`` (..., K), up to rounding."""

    is_discrete = True

    def __init__(self, levels: Tensor):
        self.levels = levels

    def check(self, value: Tensor) -> Tensor:
        return near_level(value, self.levels).any(-1)


class _Seen(constraints.Constraint):
    """Rows whose cells each lie in the support of their column, or are NaN."""

    event_dim = 1

    def __init__(self, row: "Row"):
        self.row = row

    def check(self, value: Tensor) -> Tensor:
        values = self.row.by_part(value)
        return torch.cat([v.isnan() | inside(part, v) for part, v in zip(self.row.parts, values)], -1).all(-1)


class Levels(TorchDistribution):
    """Categorical distribution over K numbers ``levels`` (..., K), from ``logits`` (*batch, K).

    >>> p = Levels(torch.tensor([0.0, 3.3, 4.6]), torch.tensor([1.0, 2.0, 0.0]))
    >>> p.mode, p.log_prob(torch.tensor(3.3)).exp()
    (tensor(3.3000), tensor(0.6652))
    """

    arg_constraints = {"logits": constraints.real_vector}  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]

    def __init__(self, levels: Tensor, logits: Tensor, validate_args: bool | None = None):
        self.levels, self.logits = levels, logits
        super().__init__(logits.shape[:-1], Size(), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the constraint to the levels."""
        return _OneOf(self.levels)

    def expand(self, batch_shape, _instance=None) -> "Levels":
        """Return the distribution expanded to a batch shape."""
        return Levels(self.levels, self.logits.expand(*batch_shape, self.logits.shape[-1]), validate_args=False)

    @property
    def probs(self) -> Tensor:
        """The probabilities of the levels, (*batch, K)."""
        return self.logits.softmax(-1)

    def sample(self, sample_shape=()) -> Tensor:
        """Draw levels, (*sample_shape, *batch)."""
        with torch.no_grad():
            codes = torch.distributions.Categorical(logits=self.logits, validate_args=False).sample(Size(sample_shape))
            return self.of_codes(codes)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of the level nearest to each value."""
        if self._validate_args:
            self._validate_sample(value)
        codes = (value.unsqueeze(-1) - self.levels).abs().argmin(-1)
        log_p = self.logits.log_softmax(-1).expand(*torch.broadcast_shapes(codes.shape, self.batch_shape), -1)
        return log_p.gather(-1, codes.expand(log_p.shape[:-1]).unsqueeze(-1)).squeeze(-1)

    @property
    def mode(self) -> Tensor:
        """The most probable level, (*batch)."""
        return self.of_codes(self.logits.argmax(-1))

    @property
    def mean(self) -> Tensor:
        """The mean of the levels, (*batch)."""
        return (self.probs * self.levels).sum(-1)

    @property
    def variance(self) -> Tensor:
        """The variance of the levels, (*batch)."""
        return (self.probs * (self.levels - self.mean.unsqueeze(-1)).square()).sum(-1)

    def of_codes(self, codes: Tensor) -> Tensor:
        """Return the levels of codes 0 … K − 1, (..., *batch)."""
        return self.levels.expand(*codes.shape, -1).gather(-1, codes.unsqueeze(-1)).squeeze(-1)


class Row(TorchDistribution):
    """Product of distributions of columns: batch (*batch), event (D,). A NaN is a missing cell and scores nothing.

    ``parts`` have the batch shapes (*batch, n), with ``sum(n) = D``; ``order`` (D,) holds the numbers of their
    columns in the row, part by part. ``typical`` (D,) is a value inside the support of each column. The value in a
    missing cell takes no part in the log-probability or its gradient. A cell outside the support of its column has
    log-probability −∞. Densities and masses are those of the parts, in their units.

    >>> import pyro.distributions as dist
    >>> normal, poisson = dist.Normal(torch.zeros(5, 2), 1.0), dist.Poisson(torch.ones(5, 1))
    >>> p = Row([normal, poisson], order=torch.tensor([0, 2, 1]), typical=torch.zeros(3))
    >>> p.log_prob(torch.tensor([0.0, 4.0, torch.nan])).exp()[0]  # N(0; 0, 1) P(4; 1)
    tensor(0.0061)
    """

    arg_constraints = {}  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]

    def __init__(
        self,
        parts: Sequence[TorchDistribution],
        order: Tensor,
        typical: Tensor,
        validate_args: bool | None = None,
    ):
        self.parts, self.order, self.typical = tuple(parts), order, typical
        super().__init__(self.parts[0].batch_shape[:-1], Size([len(order)]), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the constraint to rows whose cells are missing or in the support of their column."""
        return _Seen(self)

    def expand(self, batch_shape, _instance=None) -> "Row":
        """Return the distribution expanded to a batch shape."""
        parts = [part.expand(Size([*batch_shape, part.batch_shape[-1]])) for part in self.parts]
        row = Row(parts, self.order, self.typical, validate_args=False)
        row._validate_args = self._validate_args
        return row

    def sample(self, sample_shape=()) -> Tensor:
        """Draw whole rows, (*sample_shape, *batch, D)."""
        with torch.no_grad(), without_autocast():
            return self.as_row([part.sample(Size(sample_shape)) for part in self.parts])

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of the cells that are seen, (..., *batch); 0 where none is."""
        if self._validate_args:
            self._validate_sample(value)
        return self._cells(value, missing=0.0).sum(-1)

    def column_log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of each cell, (..., *batch, D); NaN where it is missing."""
        cells = self._cells(value, missing=torch.nan)
        return cells[..., self.order.argsort()]

    def _cells(self, value: Tensor, missing: float) -> Tensor:
        """Return the log-probabilities of the cells in the order of the parts."""
        cells = []
        for part, v, typical in zip(self.parts, self.by_part(value), self.by_part(self.typical)):
            is_missing, possible = v.isnan(), inside(part, v)
            with without_autocast():
                log_p = part.log_prob(torch.where(possible, v, typical))
            cells.append(torch.where(is_missing, missing, torch.where(possible, log_p, -torch.inf)))
        return torch.cat(cells, -1)

    @property
    def mean(self) -> Tensor:
        """The mean of each column, (*batch, D)."""
        return self.as_row([part.mean for part in self.parts])

    @property
    def variance(self) -> Tensor:
        """The variance of each column, (*batch, D)."""
        return self.as_row([part.variance for part in self.parts])

    @property
    def point(self) -> Tensor:
        """A value for each column, (*batch, D): its mean or, of levels, the most probable one."""
        return self.as_row([part.mode if isinstance(part, Levels) else part.mean for part in self.parts])

    def average(self, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return values, spreads and errors, each (*batch[1:], D), of the mixture of rows along the first dimension.

        ``weights`` (*batch) sum to one along that dimension. Numbers: the mean, the standard deviation, and the
        Monte Carlo error of the mean. Levels: the most probable one, the probability that it is another, and the Monte
        Carlo error of that probability.
        """
        columns = zip(*(_averaged(part, weights.unsqueeze(-1)) for part in self.parts))
        value, spread, error = map(self.as_row, columns)
        return value, spread, error

    def by_part(self, value: Tensor) -> tuple[Tensor, ...]:
        """Return the columns of a value (..., D) part by part, each (..., n)."""
        return value.index_select(-1, self.order).split([part.batch_shape[-1] for part in self.parts], -1)

    def as_row(self, values: Iterable[Tensor]) -> Tensor:
        """Return values of the parts, each (..., n), as rows (..., D): the inverse of ``by_part``."""
        joined = torch.cat([value.to(self.typical.dtype) for value in values], -1)
        return joined.index_select(-1, self.order.argsort())


def near_level(value: Tensor, levels: Tensor) -> Tensor:
    """Return which of the levels (..., K) a value (...) is, up to rounding: bool (..., K).

    >>> near_level(torch.tensor([3.3, 3.4]), torch.tensor([0.0, 3.3]))
    tensor([[False,  True],
            [False, False]])
    """
    gap = (levels.diff(dim=-1)).abs().amin(-1, keepdim=True)
    return (value.unsqueeze(-1) - levels).abs() <= NEAR * gap


def inside(part: TorchDistribution, value: Tensor) -> Tensor:
    """Return which values are finite and in the support of a part."""
    support: Any = part.support
    return value.isfinite() & support.check(value.nan_to_num(0.0, 0.0, 0.0))


def _averaged(part: TorchDistribution, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if isinstance(part, Levels):
        probs = (weights.unsqueeze(-1) * part.probs).sum(0)
        highest, codes = probs.max(-1)
        others = part.probs.gather(-1, codes.expand(part.batch_shape).unsqueeze(-1)).squeeze(-1) - highest
        return part.of_codes(codes), (1 - highest).clamp_min(0), (weights * others).square().sum(0).sqrt()
    mean = (weights * part.mean).sum(0)
    excess = part.mean - mean
    variance = (weights * (part.variance + excess.square())).sum(0)
    return mean, variance.sqrt(), (weights * excess).square().sum(0).sqrt()
