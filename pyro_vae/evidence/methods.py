"""How a budget is spent: methods of weighing an image, from the cheapest to the surest.

A method is anything with the fields and functions of ``Method``. ``budget.spend`` tries them in their order.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pyro_vae.arguments import ProgramArguments
from pyro_vae.compiling import Graphs
from pyro_vae.compiling.untraceable import first_line
from pyro_vae.evidence.annealing import PILOTS, AnnealingSettings, annealing_settings, forward_chains
from pyro_vae.evidence.pareto import NORMAL_95, pareto_limit
from pyro_vae.evidence.path import AnnealingPath
from pyro_vae.evidence.plan import MeasurementPlan
from pyro_vae.evidence.results import as_array

UNIT = 250  # importance weights of a row that are drawn at once
TAIL = 0.6  # the largest upper limit of the tail's shape at which importance weights are trusted
SPREAD = 1.2  # the largest upper limit of the variance of an annealed log weight at which its error can be trusted
LADDER = ({"num_temperatures": 10, "leapfrog": 8}, {"num_temperatures": 50, "leapfrog": 8})  # of annealing
SILENT = tqdm(disable=True)


class Method(Protocol):
    """A way of drawing weights of each row, with E w = p(x).

    Attributes:
        name: in results and saved plans.
        draws: the number of weights of a row that are drawn at once, the unit of a budget.
        pilots: how many such units decide on an image.
        most: so many units are at most spent on an image.
        rows: the number of rows that run at once.
    """

    name: str
    draws: int
    pilots: int
    most: int
    rows: int

    def weigh(self, batch: ProgramArguments) -> np.ndarray:
        """Return log weights (draws, B)."""
        ...

    def variance(self, log_w: np.ndarray) -> np.ndarray:
        """Return the relative variance Var w / (E w)² of each column of log weights (K, B), (B,)."""
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

    >>> method = ImportanceDraws(lambda batch, K, bar: torch.zeros(K, batch.rows), rows=1)
    >>> log_u = np.log(np.random.default_rng(0).random((1000, 1)))  # of tails of shape 0.1 and 0.6
    >>> method.trusts(-0.1 * log_u), method.trusts(-0.6 * log_u)
    (array([ True]), array([False]))
    """

    sampler: Callable[[ProgramArguments, int, tqdm], Tensor]
    rows: int
    name: str = "importance"
    draws: int = UNIT
    pilots: int = 4
    most: int = 400

    def weigh(self, batch: ProgramArguments) -> np.ndarray:
        """Return log weights (draws, B)."""
        return as_array(self.sampler(batch, self.draws, SILENT))

    def variance(self, log_w: np.ndarray) -> np.ndarray:
        """Return the relative variance of the weights, (B,)."""
        return relative_variance(log_w)

    def trusts(self, log_w: np.ndarray) -> np.ndarray:
        """Return whether the shape of the tail is at most ``TAIL``, with 95 % confidence, (B,)."""
        return pareto_limit(log_w) <= TAIL


@dataclass
class AnnealedDraws:
    """Annealed importance sampling, trusted where the log weights hardly differ.

    The steps of a chain take the tail of the weights apart: each counts by a small power of the importance weight. What
    is left is about a normal distribution of log w, whose variance few chains show.
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
    most: int = 250

    def __post_init__(self) -> None:
        self.name, self.draws = f"annealed-{self.settings.num_temperatures}", self.settings.chains

    def weigh(self, batch: ProgramArguments) -> np.ndarray:
        """Return log weights (draws, B), of chains whose step sizes two others set."""
        path = AnnealingPath(self.model, self.guide, *batch, self.graphs, plan=self.plan)
        return forward_chains(path, self.settings, SILENT).log_w

    def variance(self, log_w: np.ndarray) -> np.ndarray:
        """Return the relative variance of the weights, and at least that of a normal log w of their variance, (B,)."""
        spread = _variance_of_log(log_w)
        return np.maximum(relative_variance(log_w), np.expm1(np.minimum(spread, 100)))

    def trusts(self, log_w: np.ndarray) -> np.ndarray:
        """Return whether the variance of log w is at most ``SPREAD``, with 95 % confidence, (B,)."""
        limit = _variance_of_log(log_w) * (len(log_w) - 1) / chi_square_quantile(len(log_w) - 1)
        return limit <= SPREAD


def annealing_ladder(
    model: Callable, guide: Callable | None, plan: MeasurementPlan, compiled: bool | None, chunk: int
) -> list[AnnealedDraws]:
    """Return the methods of annealing, by more and more temperatures; none if the program cannot be annealed."""
    try:
        AnnealingPath(model, guide, *next(plan.batches()), plan=plan)
    except (ValueError, NotImplementedError) as error:
        logging.getLogger(__name__).info("log p(x) is not annealed: %s", first_line(error))
        return []
    ladder = [annealing_settings(**options) for options in LADDER]
    graphs = plan.graphs(compiled, plan.weights * ladder[0].num_temperatures)
    at_once = [max(1, min(plan.weights, chunk // (settings.chains + PILOTS))) for settings in ladder]
    return [AnnealedDraws(model, guide, plan, *each, graphs=graphs) for each in zip(ladder, at_once)]


def relative_variance(log_w: np.ndarray) -> np.ndarray:
    """Return Var w / (mean w)² of each column of log weights (K, B); ∞ where all are zero.

    >>> relative_variance(np.log([[1.0, 2.0], [3.0, 2.0]])).round(2)
    array([0.5, 0. ])
    """
    peak = log_w.max(0)
    w = np.exp(np.asarray(log_w, np.float64) - np.where(np.isfinite(peak), peak, 0))
    mean = w.mean(0)
    return np.divide(w.var(0, ddof=1), mean**2, out=np.full(len(mean), np.inf), where=mean > 0)


def chi_square_quantile(freedom: int) -> float:
    """Return about the 5 % quantile of the χ² distribution (Wilson & Hilferty 1931).

    >>> round(chi_square_quantile(15), 1)
    7.3
    """
    spread = 2 / (9 * freedom)
    return freedom * (1 - spread - NORMAL_95 * math.sqrt(spread)) ** 3


def _variance_of_log(log_w: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(np.asarray(log_w, np.float64).var(0, ddof=1), nan=math.inf)
