"""How a budget is spent: methods of weighing an image, from the cheapest to the surest.

A method is anything with the fields and functions of ``Method``. ``budget.spend`` tries them in their order.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from torch import Tensor
from tqdm import tqdm

from pyro_vae.arguments import ProgramArguments
from pyro_vae.compiling import Graphs
from pyro_vae.compiling.untraceable import first_line
from pyro_vae.evidence.annealing import AnnealingSettings, anneal, annealing_settings
from pyro_vae.evidence.pareto import LIGHT, NORMAL_95, pareto_limit, relative_weights, rounding_error, shrunk
from pyro_vae.evidence.path import AnnealingPath
from pyro_vae.evidence.pilots import piloted
from pyro_vae.evidence.plan import MeasurementPlan
from pyro_vae.evidence.proposals import MOST_DIMENSIONS, LocalProposal
from pyro_vae.evidence.results import as_array

UNIT = 250  # importance weights of a row that are drawn at once
SPREAD = 1.2  # the largest upper limit of the variance of an annealed log weight at which its error can be trusted
LOCAL_UNIT = 1000  # the same from a proposal that is fitted anew, which costs as much as about 800 weights
LADDER = (100, 400)  # temperatures
OFF = 0.1  # standard errors by which log p̂ may be too low on average
SILENT = tqdm(disable=True)


class Method(Protocol):
    """A way of drawing weights of each row, with E w = p(x).

    Attributes:
        name: in results and saved plans.
        draws: the number of weights of a row that are drawn at once, the unit of a budget.
        pilots: how many such units decide on an image, and ``together`` how many draws on all of them.
        least, most: so many units are at least and at most spent on an image.
        dear: an image that needs more units is tried by the next method.
        rows: the number of rows that run at once.
    """

    name: str
    draws: int
    pilots: int
    together: int
    least: int
    most: int
    dear: int
    rows: int

    def weigh(self, batch: ProgramArguments) -> np.ndarray:
        """Return log weights (draws, B)."""
        ...

    def variance(self, log_w: np.ndarray) -> np.ndarray:
        """Return the relative variance Var w / (E w)² of each column of log weights (K, B), (B,)."""
        ...

    def enough(self, log_w: np.ndarray) -> np.ndarray:
        """Return how many draws make log p̂ about normal, by these log weights (K, B), (B,)."""
        ...

    def trusts(self, log_w: np.ndarray) -> np.ndarray:
        """Return whether value and error of further draws can be trusted, by these log weights (K, B), (B,)."""
        ...


@dataclass
class ImportanceDraws:
    """Importance sampling, trusted where the tail of the weights is surely light.

    Args:
        sampler: draws log weights (K, B) of a batch.
        rows: the number of rows that run at once.

    >>> method = ImportanceDraws(lambda batch, K, bar: None, rows=1)
    >>> log_u = np.log(np.random.default_rng(0).random((1000, 1)))  # of tails of shape 0.1 and 0.6
    >>> method.trusts(-0.1 * log_u), method.trusts(-0.6 * log_u)
    (array([ True]), array([False]))
    """

    sampler: Callable[[ProgramArguments, int, tqdm], Tensor]
    rows: int
    name: str = "importance"
    draws: int = UNIT
    pilots: int = 4
    together: int = 0
    least: int = 2
    most: int = 400
    dear: int = 16

    def weigh(self, batch: ProgramArguments) -> np.ndarray:
        """Return log weights (draws, B)."""
        return as_array(self.sampler(batch, self.draws, SILENT))

    def variance(self, log_w: np.ndarray) -> np.ndarray:
        """Return the relative variance of the weights, (B,)."""
        return relative_variance(log_w)

    def enough(self, log_w: np.ndarray) -> np.ndarray:
        """Return how many draws make log p̂ about normal, by the skewness of these, (B,)."""
        return draws_for_a_normal(self.variance(log_w), skewness(log_w))

    def trusts(self, log_w: np.ndarray) -> np.ndarray:
        """Return whether the shape of the tail is at most ½, with 95 % confidence, (B,)."""
        return pareto_limit(log_w, rounding_error(log_w)) <= LIGHT


@dataclass
class AnnealedDraws:
    """Annealed importance sampling, trusted where the log weights hardly differ.

    The steps of a chain take the tail of the weights apart: each counts by a small power of the importance weight. What
    is left is about a normal distribution of log w, whose variance few chains show. Whether a tail is left, because
    the chains did not move far enough, only many chains show: those of all images together.
    """

    model: Callable
    guide: Callable | None
    plan: MeasurementPlan
    settings: AnnealingSettings
    rows: int
    graphs: Graphs
    name: str = field(init=False)
    draws: int = field(init=False)
    pilots: int = 1
    together: int = 1000
    least: int = 4
    most: int = 250
    dear: int = 250

    def __post_init__(self) -> None:
        self.name, self.draws = f"annealed-{self.settings.num_temperatures}", self.settings.chains

    def weigh(self, batch: ProgramArguments) -> np.ndarray:
        """Return log weights (draws, B), of chains whose temperatures and step sizes others found."""
        path = AnnealingPath(self.model, self.guide, *batch, self.graphs, plan=self.plan)
        moves = piloted(path, self.settings, SILENT)
        return anneal(path, path.draw(self.settings.chains), moves, SILENT).log_w

    def variance(self, log_w: np.ndarray) -> np.ndarray:
        """Return the relative variance of the weights, and at least that of a normal log w of their variance, (B,)."""
        mean, spread = _log_spread(log_w)
        return np.maximum(relative_variance(log_w), np.expm1(np.exp(mean + spread**2 / 2).clip(max=100)))

    def enough(self, log_w: np.ndarray) -> np.ndarray:
        """Return how many draws make log p̂ about normal, by the skewness of the weights of all images, (B,)."""
        variance, of_all = self.variance(log_w), skewness(_together(log_w, _near(log_w)))
        return draws_for_a_normal(variance, np.maximum(of_all, (variance + 3) * np.sqrt(variance)))

    def trusts(self, log_w: np.ndarray) -> np.ndarray:
        """Return whether the variance of log w is at most ``SPREAD``, with 95 % confidence, (B,).

        False if the weights of all these images together, each divided by its geometric mean, have a heavy tail.
        """
        near = _near(log_w)
        together = _together(log_w, near)
        return near & (near.any() and pareto_limit(together, rounding_error(together)) <= LIGHT)


def further_methods(
    model: Callable,
    guide: Callable | None,
    plan: MeasurementPlan,
    compiled: bool | None,
    chunk: int,
    proposal: LocalProposal | None,
) -> list[Method]:
    """Return what follows importance sampling: local proposals, then annealing by more and more temperatures.

    None if the latent variables of the program are not continuous; raises ValueError then if a proposal is given.
    """
    try:
        path = AnnealingPath(model, guide, *next(plan.batches()), plan=plan)
    except (ValueError, NotImplementedError) as error:
        if proposal is not None:
            raise
        logging.getLogger(__name__).info("log p(x) is neither fitted nor annealed: %s", first_line(error))
        return []
    methods: list[Method] = []
    proposal = proposal or LocalProposal()
    if sum(shape.numel() for shape in path.shapes.values()) <= MOST_DIMENSIONS:
        rows = min(plan.weights, proposal.rows_at_once(chunk))
        sampler = proposal.sampler(model, guide, replace(plan, size=rows), chunk, compiled)
        methods.append(ImportanceDraws(sampler, rows, "local", LOCAL_UNIT, pilots=1, least=1, most=100, dear=100))
    ladder = [annealing_settings(T) for T in LADDER]
    rows = max(1, min(plan.weights, chunk // ladder[0].chains))
    graphs = plan.graphs(compiled, ladder[0].num_temperatures * math.ceil(plan.weights / rows))
    return [*methods, *(AnnealedDraws(model, guide, plan, settings, rows, graphs) for settings in ladder)]


def relative_variance(log_w: np.ndarray) -> np.ndarray:
    """Return Var w / (mean w)² of each column of log weights (K, B); ∞ where all are zero.

    >>> relative_variance(np.log([[1.0, 2.0], [3.0, 2.0]])).round(2)
    array([0.5, 0. ])
    """
    w, _ = relative_weights(np.asarray(log_w, np.float64))
    mean = w.mean(0)
    return np.divide(w.var(0, ddof=1), mean**2, out=np.full(len(mean), np.inf), where=mean > 0)


def skewness(log_w: np.ndarray) -> np.ndarray:
    """Return the skewness of the weights of each column of log weights (K, B), (B,); 0 where all are equal.

    >>> skewness(np.log([[1.0, 1.0], [1.0, 1.0], [4.0, 1.0]])).round(2)
    array([0.71, 0.  ])
    """
    w = np.exp(log_w - log_w.max(0))
    spread, third = w.std(0), np.mean((w - w.mean(0)) ** 3, 0)
    return np.divide(third, spread**3, out=np.zeros_like(spread), where=spread > 0)


def draws_for_a_normal(variance: np.ndarray, skewness: np.ndarray) -> np.ndarray:
    """Return the number of draws K for which z = (log p̂ − log p) / error is off by at most ``OFF`` on average.

    A skewed sample whose mean is low has a small standard deviation as well, and the logarithm is curved, so that

        E z ≈ −(skewness + √variance) / (2 √K)

    with the relative variance of a weight. The first part is that of Student's statistic (Hall 1987).

    >>> draws_for_a_normal(np.array([1.0]), np.array([2.0]))
    array([225.])
    """
    return ((np.abs(skewness) + np.sqrt(variance)) / (2 * OFF)) ** 2


def _near(log_w: np.ndarray) -> np.ndarray:
    """Return whether the variance of log w is surely small, for each column (K, B)."""
    mean, spread = _log_spread(log_w)
    return np.exp(mean + NORMAL_95 * spread) <= SPREAD


def _together(log_w: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Return the log weights of all images that are ``near``, or of all, each less its mean, in one column."""
    return (log_w - log_w.mean(0))[:, near if near.any() else slice(None)].reshape(-1, 1)


def _log_spread(log_w: np.ndarray) -> tuple[np.ndarray, float]:
    """Return means and standard deviation of what the log of the variance of log w is, for each column (K, B)."""
    with np.errstate(invalid="ignore"):
        variance = np.nan_to_num(np.asarray(log_w, np.float64).var(0, ddof=1), nan=math.inf)
    return shrunk(np.log(variance.clip(1e-12, 1e12)), math.sqrt(2 / (len(log_w) - 1)))
