"""The result of ``compare_estimators``: its numbers, and the table that ``print`` shows."""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from matplotlib.figure import Figure

from pyro_vae import plots
from pyro_vae.comparison.intervals import Estimate, short
from pyro_vae.printing import printable

GROUPS = ("guide", "model")
DOUBT = 0.01  # chance of a false alarm over all pairs that should agree
MANY = 6  # estimators, above which the table shows only the pairs that should agree
WIDTH = 24  # characters of a name in the table, at most


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


@dataclass(frozen=True)
class Comparison:
    """The result of ``compare_estimators``: ``print`` it for a table; ``to_dict`` and ``figure`` give more."""

    estimators: Mapping[str, EstimatorStatistics]
    agreements: tuple[Agreement, ...]
    reference: str
    draws: int
    batches: int
    images: int | None
    seed: int
    shared: tuple[str, ...]

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
        return _plain(result)

    def figure(self) -> Figure:
        """Plot the gradient's variance by estimator, for guide and model apart; see ``plots.estimator_variance``."""
        return plots.estimator_variance({"": self.to_dict()})

    def __str__(self) -> str:
        return printable("\n".join(_report(self)))

    def _variance_times_seconds(self, name: str, group: str) -> float:
        numbers = getattr(self.estimators[name], group)
        return numbers.variance.value * self.estimators[name].seconds if numbers else math.nan


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _report(comparison: Comparison) -> Iterator[str]:
    """Yield the lines of the table, of at most 110 characters."""
    width = min(WIDTH, max(map(len, comparison.estimators)))
    where = f"{comparison.batches} batches" if comparison.batches > 1 else "one batch"
    unit = f" of {comparison.images} images; nats per image" if comparison.images else "; nats for all data"
    settings = f"{comparison.draws} draws each, seed {comparison.seed}, at {where}"
    yield f"{len(comparison.estimators)} estimators, {settings}{unit}"
    yield f"{'':{width + 48}}variance between batches" if comparison.batches > 1 else ""
    heading = f"   {'bound':>9} {'guide':>9} {'model':>9}" if comparison.batches > 1 else ""
    yield f"{'':{width}}  {'bound':>22}  {'variance':>9}  {'seconds':>8}{heading}"
    for name, entry in comparison.estimators.items():
        bound = f"{entry.bound.mean:.4f} ± {entry.bound.standard_error:.4f}{' ' if entry.is_bound else '*'}"
        numbers = f"{bound:>22}  {short(entry.bound.variance):>9}  {short(entry.seconds):>8}"
        yield f"{name[:width]:{width}}  {numbers}" + _batch_numbers(comparison, entry)
    for group in GROUPS:
        yield from _gradient_report(comparison, group, width)
    yield from _agreement_report(comparison)
    yield from _notes(comparison)


def _batch_numbers(comparison: Comparison, entry: EstimatorStatistics) -> str:
    if comparison.batches == 1:
        return ""
    found = [part.minibatch_variance if part else None for part in (entry.bound, entry.guide, entry.model)]
    parts = [math.nan if part is None else part for part in found]
    return "   " + " ".join(f"{short(part):>9}" for part in parts)


def _gradient_report(comparison: Comparison, group: str, width: int) -> Iterator[str]:
    first = getattr(next(iter(comparison.estimators.values())), group)
    if first is None:
        return
    yield ""
    yield f"gradient of the {group}'s {first.parameters:,} parameters, with 95 % intervals"
    yield f"{'':{width}}  {'(a) variance':<27}{'(b) |mean| / sd':<25}{'(c) ‖mean‖ / ‖sd‖':<24}   cost"
    for name, entry in comparison.estimators.items():
        numbers = getattr(entry, group)
        cells = f"{numbers.variance!s:<26} {numbers.snr!s:<24} {numbers.norm_ratio!s:<23}"
        yield f"{name[:width]:{width}}  {cells} {short(comparison.cost(name, group)):>7}"


def _agreement_report(comparison: Comparison) -> Iterator[str]:
    pairs = [pair for pair in comparison.agreements if pair.expected or len(comparison.estimators) <= MANY]
    if not pairs:
        return
    yield ""
    yield "mean gradients: = should agree, ! and do not; the largest z (median if equal), p of a global test"
    for (first, second), entries in itertools.groupby(pairs, key=lambda pair: (pair.first, pair.second)):
        entries = list(entries)
        mark = "!" if any(entry in comparison.disagreements() for entry in entries) else ""
        mark = mark or ("=" if any(entry.expected for entry in entries) else " ")
        cells = [
            f"{entry.group} {short(entry.largest_z):>4} ({entry.typical_largest_z:.1f}), p {short(entry.p_value):<7}"
            for entry in entries
        ]
        yield f"{mark} {f'{first[:21]} – {second[:21]}':<45} {'  '.join(cells)}".rstrip()


def _notes(comparison: Comparison) -> Iterator[str]:
    yield ""
    floor, reference = math.sqrt(2 / (math.pi * comparison.draws * comparison.batches)), comparison.reference[:WIDTH]
    yield f"(b) is about {floor:.2g} where the mean is zero. Cost: variance (a) × seconds, {reference} = 1."
    if any(estimate.doubtful for estimate in _estimates(comparison)):
        yield "? a few draws make the width of the interval: such tails may be too heavy for any; give more draws"
    if any(not entry.is_bound for entry in comparison.estimators.values()):
        yield "* minus the loss of an estimator that has no bound"
    silent = _undescribed(comparison)
    if silent:
        yield f"no gradient is known to agree with that of {', '.join(silent[:2])}{', …' * (len(silent) > 2)}:"
        yield "  give agree=[(name, name), ...], or the class a description (pyro_vae.estimators.Description)"
    if comparison.shared:
        yield f"shared by model and guide, counted as the guide's: {len(comparison.shared)} tensors"
    if len(comparison.estimators) > MANY:
        yield "pairs that need not agree are in to_dict()"


def _undescribed(comparison: Comparison) -> list[str]:
    """Return the bounds that no test compares, because nothing is known of what they estimate."""
    known = {name for pair in comparison.agreements if pair.expected for name in (pair.first, pair.second)}
    return [
        name[:WIDTH]
        for name, entry in comparison.estimators.items()
        if entry.is_bound and not entry.estimates and name not in known and len(comparison.estimators) > 1
    ]


def _estimates(comparison: Comparison) -> Iterator[Estimate]:
    for entry in comparison.estimators.values():
        for numbers in filter(None, (entry.guide, entry.model)):
            yield from (numbers.variance, numbers.snr, numbers.norm_ratio)
