"""The objective by which the epochs of a training are compared: the one that is trained, with its weights."""

import math
from collections.abc import Mapping
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample

from pyro_vae.arguments import ProgramArguments
from pyro_vae.estimation import describe
from pyro_vae.observation import Arguments
from pyro_vae.program import Program
from pyro_vae.random import mode, seeded
from pyro_vae.tracing.probing import evaluating, left_as_it_was
from pyro_vae.training import ranks
from pyro_vae.training.evaluation import own_part

Weights = dict[str, list[float]]  # by site of model or guide, the factors of its log-probabilities


class Objective:
    """Minus the estimator's loss on the validation images, in nats per image, with the weights of the training.

    The program is in evaluation mode, but each site has its weight of training mode. So a KL weight that applies in
    training only, as in ``handlers.KLWeighted``, counts. The random numbers are the same each time. Estimators that are
    no bound are judged by the bound with one particle.

    Args:
        program: the program whose epochs are compared.
        estimator: the estimator that trains it.
        args: the arguments of model and guide that are made of the validation images, x first.
        batch: those of a first batch of training; the weights are those of its sites.
        batch_size: the number of images measured at once; training uses the same number.
    """

    def __init__(self, program: Program, estimator: ELBO, args: Arguments, batch: Arguments, batch_size: int):
        self.program: Any = program
        self.estimator: Any = estimator
        self.args, self.batch, self.batch_size = args, batch, batch_size

    @property
    def name(self) -> str:
        """The objective in words, with the number of particles."""
        name, particles = type(self.estimator).__name__, self.estimator.num_particles
        if describe(self.estimator).is_bound:
            return f"the objective of {name} with {particles} particle{'' if particles == 1 else 's'}"
        return f"the bound with one particle, as {name} trains no bound"

    def weights(self, training: bool = True) -> Weights:
        """Return the weight of each site of model and guide on the first batch: one number, or one an image."""
        found: Weights = {}
        guide, model = self.program.guide, self.program.model
        with (
            torch.no_grad(),
            pyro.validation_enabled(False),
            left_as_it_was(model, guide),
            mode(self.program, training),
        ):
            with _RecordedWeights("guide", found):
                guide(*self.batch)
            with _RecordedWeights("model", found):
                model(*self.batch)
        return found

    def value(self, bound: float, weights: Weights) -> float:
        """Return the objective on all validation images, given their bound with one particle, in nats per image.

        All ranks must call it. Raises FloatingPointError where the objective is not finite.
        """
        if self.is_the_bound(weights):
            return bound
        value = -ranks.all_reduce_sum(self.loss(own_part(self.args), weights)) / len(self.args[0])
        if not math.isfinite(value):
            raise FloatingPointError(f"{self.name} on the validation images is {value}")
        return value

    def is_the_bound(self, weights: Weights) -> bool:
        """Whether the objective is the bound with one particle, so that nothing more has to be measured."""
        described = describe(self.estimator)
        plain = described.plain and self.estimator.num_particles == 1
        return not described.is_bound or (plain and len({weight for each in weights.values() for weight in each}) == 1)

    @torch.no_grad()
    def loss(self, args: Arguments, weights: Weights) -> float:
        """Return the estimator's loss on these images, in nats, summed; the sites have the ``weights`` given."""
        own = self.weights(training=False)
        ratios = {
            site: weight[0] / own[site][0]
            for site, weight in weights.items()
            if len(weight) == len(own.get(site, ())) == 1 and own[site][0]
        }
        estimator: Any = self.estimator
        model, guide = self.program.model, self.program.guide
        if any(ratio != 1 for ratio in ratios.values()):
            model, guide = _ScaledSites("model", ratios)(model), _ScaledSites("guide", ratios)(guide)
        given = ProgramArguments.of(args, rows=len(args[0]))
        with seeded(ranks.own_seed(0), given.device), evaluating(self.program):
            return sum(float(estimator.loss(model, guide, *part.args)) for part in given.batches(self.batch_size))


def alike(one: Mapping[str, list[float]], other: Mapping[str, list[float]]) -> bool:
    """Whether no two weights of a site differ by more than a thousandth, so that objectives can be compared.

    >>> alike({"model z": [1.0]}, {"model z": [1.0001]}), alike({"model z": [0.5]}, {"model z": [1.0]})
    (True, False)
    """
    pairs = [(one[site], other[site]) for site in one if site in other]
    return len(pairs) == len(one) == len(other) and all(
        len(a) == len(b) and all(math.isclose(x, y, rel_tol=1e-3) for x, y in zip(a, b)) for a, b in pairs
    )


class _RecordedWeights(Messenger):
    """Records the factor of each sample site's log-probability."""

    def __init__(self, name: str, weights: Weights):
        super().__init__()
        self.name, self.weights = name, weights

    def _pyro_post_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg) and not msg["infer"].get("_deterministic"):
            self.weights[f"{self.name} {msg['name']}"] = torch.as_tensor(msg["scale"]).flatten().tolist()


class _ScaledSites(Messenger):
    """Multiplies the weights of sites by given ratios."""

    def __init__(self, name: str, ratios: Mapping[str, float]):
        super().__init__()
        self.name, self.ratios = name, ratios

    def _pyro_sample(self, msg: Any) -> None:
        msg["scale"] = msg["scale"] * self.ratios.get(f"{self.name} {msg['name']}", 1.0)
