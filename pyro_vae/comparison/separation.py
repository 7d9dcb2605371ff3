"""Whether two estimators can be told apart by variance × cost."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import bdtr
from torch import Tensor

from pyro_vae.comparison.intervals import LEVEL, TAIL, Estimate, interval

TINY = 1e-300  # a variance of zero, in logarithms


@dataclass(frozen=True)
class Score:
    """Variance × cost of an estimator, as measured; the smaller, the better.

    Args:
        variance: the trace of the covariance of a draw of the gradient.
        sections: (m,), what each of m runs of neighbouring draws adds to it (``Moments.sections_of_trace``).
        cost: of a draw; where there are ``times``, their median.
        times: of draws, turn by turn with those of other estimators; empty where the cost is known.
    """

    variance: float
    sections: Tensor
    cost: float
    times: Sequence[float] = ()

    @property
    def value(self) -> float:
        """Variance × cost."""
        return self.variance * self.cost

    def estimate(self) -> Estimate:
        """Return variance × cost with its 95 % interval."""
        parts = [_log_variance(self, LEVEL), _logs_of_costs(self.times, self.cost, LEVEL)]
        _, low, high = _summed(parts)
        freedom = interval(self.variance, self.sections, TAIL)[2]
        return Estimate(self.value, math.exp(low), math.exp(high), freedom)


def log_ratio(a: Score, b: Score, level: float = LEVEL) -> tuple[float, float, float]:
    """Return log(a / b) of two scores of independent draws, and the ends of its interval of a level.

    The logarithms of both variances and the median of log(cost of a / cost of b), turn by turn, have an interval each
    (``intervals.interval``, ``median_interval``). The distances of their ends are added in squares (Zou & Donner 2008).

    >>> import torch
    >>> score = lambda value: Score(value, value * torch.tensor([0.01, -0.02, 0.01]).repeat(9).double(), 1.0)
    >>> print("%.2f, from %.2f to %.2f" % log_ratio(score(3.0), score(2.0)))
    0.41, from 0.17 to 0.64
    """
    value, low, high = _log_variance(b, level)
    paired = [x / y for x, y in zip(a.times, b.times)]
    costs = _logs_of_costs(paired, a.cost / b.cost, level)
    return _summed([_log_variance(a, level), (-value, -high, -low), costs])


def median_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """Return an interval of the median by order statistics, for any distribution; infinite for too few values.

    >>> median_interval(range(1, 21)), median_interval([1.0, 2.0])
    ((6, 15), (-inf, inf))
    """
    count, ordered = len(values), sorted(values)
    outside = sum(2 * bdtr(below, count, 0.5) <= 1 - level for below in range(count // 2))
    return (ordered[outside - 1], ordered[count - outside]) if outside else (-math.inf, math.inf)


def _log_variance(score: Score, level: float) -> tuple[float, float, float]:
    low, high, _ = interval(score.variance, score.sections, TAIL, level)
    value, low, high = (math.log(max(each, TINY)) if each == each else math.nan for each in (score.variance, low, high))
    return value, low, high


def _logs_of_costs(times: Sequence[float], cost: float, level: float) -> tuple[float, float, float]:
    if not times:
        return math.log(cost), math.log(cost), math.log(cost)
    logs = [math.log(each) for each in times]
    return statistics.median(logs), *median_interval(logs, level)


def _summed(parts: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Return the sum of independent numbers, each with the ends of its interval."""
    total = sum(value for value, _, _ in parts)
    below, above = (math.hypot(*(value - ends[i] for value, *ends in parts)) for i in (0, 1))
    return total, total - below, total + above
