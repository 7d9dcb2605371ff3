"""The estimators that ``best_estimator`` compares where none are given."""

from collections.abc import Sequence

from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO

from pyro_vae.checks import whole_number
from pyro_vae.estimators import (
    OVIS,
    Antithetic,
    DisARM,
    DoublyReparameterized,
    GeneralizedDReG,
    ImportanceWeighted,
    QuasiMonteCarlo,
    ReinMax,
    ScoreFunction,
    StickingTheLanding,
    StraightThrough,
)


def candidates(particles: Sequence[int] = (1, 4, 16)) -> dict[str, ELBO]:
    """Return estimators of the ELBO and of L_K by name, with these numbers of particles where they have several.

    No program takes all of them: some need reparameterised draws, some discrete ones.

    >>> list(candidates([1]))
    ['L^A', 'L^B', 'straight-through', 'ReinMax', 'STL, K = 1']
    """
    found: dict[str, ELBO] = {
        "L^A": Trace_ELBO(),
        "L^B": TraceMeanField_ELBO(),
        "straight-through": StraightThrough(),
        "ReinMax": ReinMax(),
    }
    for K in [whole_number("particles", K) for K in particles]:
        found[f"STL, K = {K}"] = StickingTheLanding(K)
        if K > 1:
            found |= _of_several(K)
    return found


def _of_several(K: int) -> dict[str, ELBO]:
    found: dict[str, ELBO] = {
        f"STL antithetic, K = {K}": Antithetic(StickingTheLanding(K)),
        f"STL quasi-random, K = {K}": QuasiMonteCarlo(StickingTheLanding(K)),
        f"score function, K = {K}": ScoreFunction(K, baseline="leave-one-out"),
        f"IWAE, K = {K}": ImportanceWeighted(K),
        f"DReG, K = {K}": DoublyReparameterized(K),
        f"GDReG, K = {K}": GeneralizedDReG(K),
        f"OVIS, K = {K}": OVIS(K),
    }
    return found | ({} if K % 2 else {f"DisARM, K = {K}": DisARM(K)})
