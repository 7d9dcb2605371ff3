"""The table of the estimators: gradient estimators and bounds by their words."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pyro_vae._lazy import LazyModule
from pyro_vae.records import Option, Part, options_of, table

if TYPE_CHECKING:
    from pyro import infer
    from pyro.infer import ELBO

    from pyro_vae import estimators, handlers
else:
    infer, estimators, handlers = map(LazyModule, ("pyro.infer", "pyro_vae.estimators", "pyro_vae.handlers"))

PARTICLES = Option("particles", int, 1, "draws of z per image", metavar="K")
ALPHA = Option("alpha", float, 0.5, "order of the Rényi bound: 0 is L_K, near 1 the ELBO", metavar="A")
TEMPERATURE = Option("temperature", float, 1.0, "of the Gumbel-softmax: a low one has less bias and more variance")
ELBO_SHARE = Option("elbo_share", float, 0.5, "of the ELBO in the bound; L_K has the rest", metavar="BETA")
FREE_BITS = Option(
    "free_bits", float, 0.5, "nats of each latent dimension's KL that cost nothing (Kingma et al. 2016)", metavar="NATS"
)


def _of_pyro(elbo: "type[ELBO]", particles: int) -> "ELBO":
    """Return an estimator of Pyro's; its particles lie in a plate of their own at dim −2."""
    return elbo(particles, vectorize_particles=particles > 1, max_plate_nesting=1)


def _estimator(word: str, build: "Callable[[int], ELBO]", help: str) -> Part:
    return Part(word, lambda particles: build(particles), help, (PARTICLES,))


# build(**options)
ESTIMATORS = table(
    _estimator("trace", lambda K: _of_pyro(infer.Trace_ELBO, K), "L^A, every term from a draw of z"),
    _estimator("meanfield", lambda K: _of_pyro(infer.TraceMeanField_ELBO, K), "L^B, the KL in closed form"),
    _estimator(
        "sticking-the-landing",
        lambda K: estimators.StickingTheLanding(K),
        "L^A without the score of the guide",
    ),
    _estimator("importance-weighted", lambda K: estimators.ImportanceWeighted(K), "L_K, tighter the more draws"),
    _estimator(
        "doubly-reparameterized",
        lambda K: estimators.DoublyReparameterized(K),
        "L_K by a gradient of lower variance",
    ),
    _estimator(
        "generalized-dreg",
        lambda K: estimators.GeneralizedDReG(K),
        "L_K by a gradient of lower variance in guide and priors",
    ),
    Part(
        "renyi-bound",
        lambda particles, alpha: estimators.RenyiBound(alpha, particles),
        "the Rényi bound of order --alpha, between the ELBO and L_K",
        (PARTICLES, ALPHA),
    ),
    _estimator("score-function", lambda K: estimators.ScoreFunction(K), "L^A by the log-derivative trick"),
    _estimator(
        "score-function-baseline",
        lambda K: estimators.ScoreFunction(K, baseline="leave-one-out"),
        "the same with a leave-one-out baseline",
    ),
    _estimator(
        "disarm",
        lambda K: estimators.DisARM(K),
        "L^A for Bernoulli sites by antithetic pairs, an even number of draws",
    ),
    _estimator("tvo", lambda K: estimators.TVO(K), "a thermodynamic bound between L^A and L_K, of 5 temperatures"),
    _estimator("piwae", lambda K: estimators.PIWAE(1, M=K), "L_K for the model, the ELBO for the guide"),
    Part(
        "ciwae",
        lambda particles, elbo_share: estimators.CIWAE(particles, elbo_share),
        "the ELBO and L_K together",
        (PARTICLES, ELBO_SHARE),
    ),
    _estimator("ovis", lambda K: estimators.OVIS(K), "L_K by the log-derivative trick, from 2 draws on"),
    Part(
        "straight-through",
        lambda particles, temperature: estimators.StraightThrough(particles, temperature),
        "L^A for one-hot and Bernoulli sites by a Gumbel-softmax, biased",
        (PARTICLES, TEMPERATURE),
    ),
    _estimator("reinmax", lambda K: estimators.ReinMax(K), "the same by a path of second order, biased"),
    _estimator(
        "antithetic",
        lambda K: estimators.Antithetic(estimators.StickingTheLanding(K)),
        "sticking-the-landing with draws in pairs of opposite noise",
    ),
    _estimator(
        "quasi-monte-carlo",
        lambda K: estimators.QuasiMonteCarlo(estimators.StickingTheLanding(K)),
        "sticking-the-landing with draws from an even set of points",
    ),
    Part("wake-sleep", lambda: estimators.WakeSleep(), "wake phase for the model, sleep phase for the guide, no bound"),
    Part(
        "free-bits",
        lambda particles, free_bits: handlers.FreeBits(free_bits, particles),
        "L^A in which the first nats of the KL cost nothing, chosen by --free-bits alone",
        (PARTICLES, FREE_BITS),
    ),
)

ESTIMATOR = Option("estimator", str, "trace", "the bound that is maximised, and how its gradient is drawn", ESTIMATORS)


def build_estimator(settings: Any, particles: int | None = None) -> "ELBO":
    """Return the estimator; ``particles`` replaces the number of particles in the settings.

    Options that the settings lack have their defaults.

    >>> build_estimator(SimpleNamespace(estimator="free-bits", free_bits=0.25)).nats
    0.25
    """
    defaults = {option.name: option.default for option in options_of(ESTIMATOR).values()}
    values = defaults | vars(settings) | ({} if particles is None else {"particles": particles})
    if values["particles"] < 1:
        raise ValueError(f"--particles: wanted at least 1, got {values['particles']}")
    try:
        return ESTIMATORS[settings.estimator](SimpleNamespace(**values))
    except ValueError as error:
        raise ValueError(f"--estimator {settings.estimator}, whose K is --particles: {error}") from error
