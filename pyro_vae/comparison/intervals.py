"""Numbers with confidence intervals that allow for skewed draws (Hall 1992)."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit
from torch import Tensor

LEVEL = 0.95  # of the intervals
TAIL = 1.5  # factor on the measured skewness of variances and means: samples miss heavy tails
FEW = 5  # degrees of freedom below which a few draws determine the width of an interval


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, which is NaN for fewer than three draws a batch.

    ``freedom`` is the number of degrees of freedom behind the interval's width. Below five the width comes from a few
    draws: the tails of the gradient may be too heavy for any interval, and ``str`` adds a question mark.

    >>> print(Estimate(0.5, 0.45, 0.56), Estimate(0.5, 0.2, 1.4, freedom=3.1))
    0.5 [0.45, 0.56] 0.5 [0.2, 1.4]?
    """

    value: float
    low: float
    high: float
    freedom: float = math.inf

    @property
    def doubtful(self) -> bool:
        """Whether a few draws determine the interval's width."""
        return self.freedom < FEW

    def __repr__(self) -> str:
        return f"Estimate({self})"

    def __str__(self) -> str:
        return f"{short(self.value)} [{short(self.low)}, {short(self.high)}]{'?' * self.doubtful}"


def interval(value: float, u: Tensor, tail: float = 1.0, level: float = LEVEL) -> tuple[float, float, float]:
    """Return the ends of the interval of a value and its degrees of freedom.

    u (sections,) holds what each section adds to the value. The standard error is s = √Σu², the skewness of the value
    γ = ``tail`` Σu³ / s³. Hall's (1992, J. R. Stat. Soc. B 54) transformation frees T = (value − truth) / s of skewness
    to first order; it is monotone and has an inverse in closed form:

        x = T + γ/3 T² + γ²/27 T³ + γ/6,        T = 3/γ ((1 + γ (x − γ/6))^⅓ − 1).

    x is taken for Student's t with Satterthwaite's (1946) degrees of freedom of s²: 2 s⁴ / var s², var s² = Σu⁴ − s⁴/m
    for m sections, and at most m − 1.

    >>> low, high, freedom = interval(1.0, Tensor([-0.01, -0.01, -0.01, 0.03]).double())
    >>> f"{low:.2f} {high:.2f} {freedom:.1f}"
    '0.93 1.35 3.0'
    """
    error = u.norm().item()
    if not error > 0:
        return value + error, value + error, math.inf  # NaN where u is
    spread = (u / error).pow(4).sum().item() - 1 / len(u)
    freedom = min(2 / spread, len(u) - 1.0) if spread > 0 else len(u) - 1.0
    x, gamma = quantile(freedom, level), tail * skewness(u)
    return value - error * _with_skewness(x, gamma), value - error * _with_skewness(-x, gamma), freedom


def skewness(u: Tensor) -> float:
    """Return Σu³ / (Σu²)^(3/2).

    >>> skewness(Tensor([2.0, 0.0]))
    1.0
    """
    return (u / u.norm()).pow(3).sum().item()


def without_skewness(t: float, gamma: float) -> float:
    """Return x of T, see ``interval``; γ is the skewness.

    >>> without_skewness(2.0, 0.0)
    2.0
    """
    return t + gamma / 3 * t**2 + gamma**2 / 27 * t**3 + gamma / 6


def _with_skewness(x: float, gamma: float) -> float:
    """Return T of x, see ``interval``."""
    if abs(gamma) < 1e-6:
        return x
    return 3 / gamma * (float(np.cbrt(1 + gamma * (x - gamma / 6))) - 1)


def quantile(freedom: float, level: float = LEVEL) -> float:
    """Return the |t| below which a share ``level`` of Student's t lies.

    >>> round(quantile(10), 3)
    2.228
    """
    return float(stdtrit(freedom, (1 + level) / 2))


def short(value: float) -> str:
    """Return the value with three significant digits, in at most eight characters.

    >>> [short(value) for value in (0.12345, 1234.5, -1.2345e-7, float("nan"))]
    ['0.123', '1230', '-1.23e-7', 'nan']
    """
    if not math.isfinite(value) or value == 0 or 1e-3 <= abs(value) < 1e5:
        digits = f"{value:.3g}"
        return f"{float(digits):.0f}" if "e" in digits else digits
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"
