"""What the epochs of a training are compared by: the objective that is trained, at the weights that it has."""

import math
from collections.abc import Mapping

import pyro
import torch
from pyro.infer import ELBO, ReweightedWakeSleep, Trace_ELBO, Trace_MMD, TraceGraph_ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.estimators import DoublyReparameterized, ImportanceWeighted, ScoreFunction, StickingTheLanding
from pyro_vae.program import Program
from pyro_vae.random import mode, seeded
from pyro_vae.tracing.probing import left_as_it_was
from pyro_vae.training import ranks

# With one particle each of these is the bound that ``evaluate`` measures.
ONE_DRAW = (Trace_ELBO, TraceGraph_ELBO, StickingTheLanding, ScoreFunction, ImportanceWeighted, DoublyReparameterized)
NO_BOUND = (ReweightedWakeSleep, Trace_MMD)  # of Pyro; ours have ``is_bound``

Weights = dict[str, list[float]]  # of the sites of model and guide: what multiplies their log-probabilities


class Objective:
    """Minus the estimator's loss on the validation images, in nats per image, with the weights of the training.

    The program is in evaluation mode, but each site is weighed as in training mode: so a KL weight counts that is
    applied in training alone, as by ``handlers.KLWeighted``. The random numbers are the same each time. Estimators
    that are no bound are judged by the bound of one particle, as are those whose loss is just that.

    Args:
        x: the validation images.
        batch: x of a first batch of training; the weights are those of its sites.
        batch_size: images of x that are measured at once, as many as are trained on at once.
    """

    def __init__(self, program: Program, estimator: ELBO, x: Tensor, batch: Tensor, batch_size: int):
        self.program, self.estimator, self.x, self.batch, self.batch_size = program, estimator, x, batch, batch_size

    @property
    def name(self) -> str:
        """In words, with the number of particles."""
        name, particles = type(self.estimator).__name__, self.estimator.num_particles
        if self._is_bound:
            return f"the objective of {name} with {particles} particle{'' if particles == 1 else 's'}"
        return f"the bound with one particle, as {name} trains no bound"

    @property
    def _is_bound(self) -> bool:
        return getattr(self.estimator, "is_bound", not isinstance(self.estimator, NO_BOUND))

    def weights(self, training: bool = True) -> Weights:
        """The weight of each site of model and guide on the first batch: one number, or one an image."""
        found: Weights = {}
        guide, model = self.program.guide, self.program.model
        with (
            torch.no_grad(),
            pyro.validation_enabled(False),
            left_as_it_was(model, guide),
            mode(self.program, training),
        ):
            with _Noted("guide", found):
                guide(self.batch)
            with _Noted("model", found):
                model(self.batch)
        return found

    def value(self, bound: float, weights: Weights) -> float:
        """The objective on all validation images, whose bound with one particle is given; all ranks must call it.

        Raises FloatingPointError where it is not finite.
        """
        if self.is_the_bound(weights):
            return bound
        part = self.x.tensor_split(ranks.world_size())[ranks.rank()]
        value = -ranks.all_reduce_sum(self.loss(part, weights)) / len(self.x)
        if not math.isfinite(value):
            raise FloatingPointError(f"{self.name} on the validation images is {value}")
        return value

    def is_the_bound(self, weights: Weights) -> bool:
        """Whether it is the bound with one particle, so that nothing more has to be measured."""
        one_draw = type(self.estimator) in ONE_DRAW and self.estimator.num_particles == 1
        return not self._is_bound or (one_draw and len({weight for each in weights.values() for weight in each}) == 1)

    @torch.no_grad()
    def loss(self, x: Tensor, weights: Weights) -> float:
        """The estimator's loss on these images, summed."""
        now = self.weights(training=False)
        ratios = {
            site: weight[0] / now[site][0]
            for site, weight in weights.items()
            if len(weight) == len(now.get(site, ())) == 1 and now[site][0]
        }
        model, guide = self.program.model, self.program.guide
        if any(ratio != 1 for ratio in ratios.values()):
            model, guide = _Weighed("model", ratios)(model), _Weighed("guide", ratios)(guide)
        with seeded(ranks.own_seed(0), x.device), mode(self.program, training=False):
            return sum(float(self.estimator.loss(model, guide, part)) for part in x.split(self.batch_size))


def alike(one: Mapping[str, list[float]], other: Mapping[str, list[float]]) -> bool:
    """Whether no weight differs from the other by more than a thousandth: objectives with them can be compared.

    >>> alike({"model z": [1.0]}, {"model z": [1.0001]}), alike({"model z": [0.5]}, {"model z": [1.0]})
    (True, False)
    """
    pairs = [(one[site], other[site]) for site in one if site in other]
    return len(pairs) == len(one) == len(other) and all(
        len(a) == len(b) and all(math.isclose(x, y, rel_tol=1e-3) for x, y in zip(a, b)) for a, b in pairs
    )


class _Noted(Messenger):
    """Notes what multiplies the log-probability of each sample site."""

    def __init__(self, name: str, weights: Weights):
        super().__init__()
        self.name, self.weights = name, weights

    def _pyro_post_sample(self, msg: Message) -> None:
        if not site_is_subsample(msg) and not msg["infer"].get("_deterministic"):
            self.weights[f"{self.name} {msg['name']}"] = torch.as_tensor(msg["scale"]).flatten().tolist()


class _Weighed(Messenger):
    """Multiplies the weights of sites."""

    def __init__(self, name: str, ratios: Mapping[str, float]):
        super().__init__()
        self.name, self.ratios = name, ratios

    def _pyro_sample(self, msg: Message) -> None:
        msg["scale"] = msg["scale"] * self.ratios.get(f"{self.name} {msg['name']}", 1.0)
