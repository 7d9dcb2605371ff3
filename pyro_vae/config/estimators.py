"""The table of the estimators: gradient estimators and bounds by their words."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO

from pyro_vae import estimators
from pyro_vae.handlers import FreeBits
from pyro_vae.records import Option, Part, options_of, table

PARTICLES = Option("particles", int, 1, "draws of z per image", metavar="K")
FREE_BITS = Option(
    "free_bits", float, 0.5, "nats of each latent dimension's KL that cost nothing (Kingma et al. 2016)", metavar="NATS"
)


def _of_pyro(elbo: type[ELBO]) -> Callable[[int], ELBO]:
    """Return a builder of an estimator of Pyro's; its particles lie in a plate of their own at dim −2."""
    return lambda particles: elbo(particles, vectorize_particles=particles > 1, max_plate_nesting=1)


def _estimator(word: str, elbo: Callable[[int], ELBO], help: str) -> Part:
    return Part(word, lambda particles: elbo(particles), help, (PARTICLES,))


# build(**options)
ESTIMATORS = table(
    _estimator("trace", _of_pyro(Trace_ELBO), "L^A, every term from a draw of z"),
    _estimator("meanfield", _of_pyro(TraceMeanField_ELBO), "L^B, the KL in closed form"),
    _estimator("sticking-the-landing", estimators.StickingTheLanding, "L^A without the score of the guide"),
    _estimator("importance-weighted", estimators.ImportanceWeighted, "L_K, tighter the more draws"),
    _estimator("doubly-reparameterized", estimators.DoublyReparameterized, "L_K by a gradient of lower variance"),
    _estimator("score-function", estimators.ScoreFunction, "L^A by the log-derivative trick"),
    _estimator(
        "score-function-baseline",
        partial(estimators.ScoreFunction, baseline="leave-one-out"),
        "the same with a leave-one-out baseline",
    ),
    Part("wake-sleep", estimators.WakeSleep, "wake phase for the model, sleep phase for the guide, no bound"),
    Part(
        "free-bits",
        lambda particles, free_bits: FreeBits(free_bits, particles),
        "L^A in which the first nats of the KL cost nothing, chosen by --free-bits alone",
        (PARTICLES, FREE_BITS),
    ),
)

ESTIMATOR = Option("estimator", str, "trace", "the bound that is maximised, and how its gradient is drawn", ESTIMATORS)


def build_estimator(settings: Any, particles: int | None = None) -> ELBO:
    """Return the estimator; ``particles`` replaces the number of particles in the settings.

    Options that the settings lack have their defaults.

    >>> build_estimator(SimpleNamespace(estimator="free-bits", free_bits=0.25)).nats
    0.25
    """
    defaults = {option.name: option.default for option in options_of(ESTIMATOR).values()}
    values = defaults | vars(settings) | ({} if particles is None else {"particles": particles})
    if values["particles"] < 1:
        raise ValueError(f"--particles: wanted at least 1, got {values['particles']}")
    return ESTIMATORS[settings.estimator](SimpleNamespace(**values))
