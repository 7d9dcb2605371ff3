"""The result of ``compare_estimators``: its numbers, and the table that ``print`` shows."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from pyro_vae import plots
from pyro_vae.comparison.intervals import Estimate, short
from pyro_vae.comparison.report import GROUPS, report
from pyro_vae.data.frames import framed
from pyro_vae.showing import on_one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOUBT = 0.01  # chance of a false alarm over all pairs that should agree


@dataclass(frozen=True)
class BoundStatistics:
    """Minus the loss, in nats per image: mean, its standard error, and variance of a draw, in nats².

    ``minibatch_variance`` is the variance between batches without the share of sampling (unbiased, so perhaps
    negative); None for a single batch.
    """

    mean: float
    standard_error: float
    variance: float
    minibatch_variance: float | None

    def __repr__(self) -> str:
        return f"BoundStatistics({self.mean:.4f} ± {self.standard_error:.4f}, variance {short(self.variance)})"


@dataclass(frozen=True)
class GradientStatistics:
    """Statistics of the gradient of the loss (summed over the batch, in nats) in a group of parameters.

    ``variance`` is (a), the trace of the covariance of a draw; ``snr`` is (b), the mean over parameters of |mean| / sd;
    ``norm_ratio`` is (c), ‖mean‖ / √trace. ``varying`` counts the parameters whose gradient varies by more than
    rounding: (b) is a mean over these. ``minibatch_variance`` is the trace of the covariance of the mean gradient
    between batches, None for a single batch.
    """

    parameters: int
    varying: int
    variance: Estimate
    snr: Estimate
    norm_ratio: Estimate
    minibatch_variance: float | None

    def __repr__(self) -> str:
        values = f"variance {self.variance}, snr {self.snr}, norm_ratio {self.norm_ratio}"
        return on_one_line(f"GradientStatistics({self.parameters:,} parameters, {values})")


@dataclass(frozen=True)
class EstimatorStatistics:
    """Results of ``compare_estimators`` for one estimator; ``seconds`` is the time of a loss with its gradient.

    ``estimates`` is the bound that minus the loss is on average, such as "ELBO"; None where the estimator claims none
    (``estimators.describe``).
    """

    kind: str
    particles: int
    estimates: str | None
    is_bound: bool
    bound: BoundStatistics
    guide: GradientStatistics | None
    model: GradientStatistics | None
    seconds: float

    def __repr__(self) -> str:
        variances = [
            f"{group} {short(getattr(self, group).variance.value)}" for group in GROUPS if getattr(self, group)
        ]
        name = "bound" if self.is_bound else "minus loss"
        bound = f"{name} {self.bound.mean:.4f} ± {self.bound.standard_error:.4f}"
        return on_one_line(f"EstimatorStatistics({self.kind}, {bound}, gradient variances {', '.join(variances)})")


@dataclass(frozen=True)
class Agreement:
    """Whether the mean gradients of two estimators agree in a group of parameters.

    ``largest_z`` is the largest |z| over the parameters, reached at ``parameter``; compare it with
    ``typical_largest_z``, its median if the means are equal and the coordinates independent. ``p_value`` comes from a
    test of all coordinates together (``equal_means_p_value``). ``expected`` says whether the two mean gradients should
    be equal.
    """

    first: str
    second: str
    group: str
    largest_z: float
    typical_largest_z: float
    parameter: str
    p_value: float
    expected: bool

    def __repr__(self) -> str:
        test = f"largest z {short(self.largest_z)} (median {self.typical_largest_z:.1f}), p {short(self.p_value)}"
        return on_one_line(f"Agreement({self.first} – {self.second}, {self.group}: {test})")


@dataclass(frozen=True)
class Comparison:
    """The result of ``compare_estimators``: ``print`` it for a table; ``to_dict`` and ``figure`` give more.

    ``eager`` says why draws were not vectorised, by the name of the estimator. ``no_bound`` says why minus a loss of
    this program bounds no log p(x), as where a KL has a weight; it is "" where it does.
    """

    estimators: Mapping[str, EstimatorStatistics]
    agreements: tuple[Agreement, ...]
    reference: str
    draws: int
    batches: int
    images: int | None
    seed: int
    shared: tuple[str, ...]
    eager: Mapping[str, str] = field(default_factory=dict)
    no_bound: str = ""

    def cost(self, name: str, group: str) -> float:
        """Return variance (a) × seconds of an estimator relative to the reference; NaN without such parameters."""
        own, reference = (self._variance_times_seconds(key, group) for key in (name, self.reference))
        return own / reference if reference else (math.nan if own == 0 else math.inf)

    def disagreements(self) -> tuple[Agreement, ...]:
        """Return pairs that should agree and do not: p < 0.01 / the number of such pairs (Bonferroni)."""
        expected = [pair for pair in self.agreements if pair.expected]
        return tuple(pair for pair in expected if pair.p_value < DOUBT / len(expected))

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings, lists and dictionaries, for JSON; numbers that are not finite become None."""
        result = asdict(self)
        for name, entry in result["estimators"].items():
            for group in GROUPS:
                if entry[group]:
                    entry[group]["cost"] = self.cost(name, group)
        return plain(result)

    def figure(self) -> "Figure":
        """Plot the gradient's variance by estimator, for guide and model apart; see ``plots.estimator_variance``."""
        return plots.estimator_variance(self)

    def to_frame(self) -> Any:
        """Return a pandas frame with a row for each estimator. Raises ImportError without pandas.

        Columns are ``bound``, its ``standard_error`` and ``variance``, ``seconds``, and for guide and model, where they
        have parameters, such as ``guide_variance`` with the ends of its interval, ``guide_variance_low`` and ``_high``.
        """
        rows = [_row(name, entry) for name, entry in self.estimators.items()]
        return framed({column: [row[column] for row in rows] for column in rows[0]}, "estimator")

    def __str__(self) -> str:
        return "\n\n".join(map(str, report(self)))

    def __repr__(self) -> str:
        at = f"{self.batches} batch{'es' * (self.batches > 1)}{f' of {self.images} images' if self.images else ''}"
        count = f"{len(self.estimators)} estimators, {self.draws} draws each at {at}"
        return on_one_line(f"Comparison({count}: {', '.join(self.estimators)})")

    def _repr_html_(self) -> str:
        return "".join(table.html() for table in report(self))

    def _variance_times_seconds(self, name: str, group: str) -> float:
        numbers = getattr(self.estimators[name], group)
        return numbers.variance.value * self.estimators[name].seconds if numbers else math.nan


def _row(name: str, entry: EstimatorStatistics) -> dict[str, Any]:
    bound = {"bound": entry.bound.mean, "standard_error": entry.bound.standard_error, "variance": entry.bound.variance}
    row = {"estimator": name, "particles": entry.particles, **bound, "seconds": entry.seconds}
    for group, numbers in (("guide", entry.guide), ("model", entry.model)):
        for quantity in ("variance", "snr", "norm_ratio") if numbers else ():
            estimate = getattr(numbers, quantity)
            row[f"{group}_{quantity}"] = estimate.value
            row |= {f"{group}_{quantity}_{end}": getattr(estimate, end) for end in ("low", "high")}
    return row


def plain(value: Any) -> Any:
    """Return a result as JSON holds it.

    >>> plain({"a": (1.0, float("nan"))})
    {'a': [1.0, None]}
    """
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
