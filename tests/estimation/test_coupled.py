"""Coupled draws: the mean is as without, or by quadrature that of the bound they make, and the variance falls."""

import pytest
import torch
from estimator_programs import (
    Bits,
    Chain,
    assert_mean,
    enumerated_gradient,
    estimate,
    exact_gradient,
    known_programs,
    variances,
)

from pyro_vae.estimation.description import Description, describe
from pyro_vae.estimators import (
    Antithetic,
    DisARM,
    DoublyReparameterized,
    ImportanceWeighted,
    QuasiMonteCarlo,
    ScoreFunction,
    StickingTheLanding,
)
from pyro_vae.linear_gaussian import LinearGaussian

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("float64")]
BOTH = [Antithetic, QuasiMonteCarlo]


class Mirrored(Chain):
    """The weights of a pair of opposite noise."""

    def log_w(self, y, noise):
        return torch.cat([super().log_w(y, noise), super().log_w(y, -noise)], -1)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("vectorize", [None, False])
def test_the_mean_gradient_is_that_of_the_elbo(number, kind, vectorize):
    program, x = known_programs()[number]
    _, expected = exact_gradient(program, x, lambda log_w: log_w.mean(-1), K=1)
    n = 500 if vectorize is None else 20
    for inner in (StickingTheLanding(5, vectorize=vectorize), ImportanceWeighted(1, M=4, vectorize=vectorize)):
        assert_mean(kind(inner), program, x, expected, n=n)
        assert describe(kind(inner)) == describe(inner)


@pytest.mark.parametrize("kind", BOTH)
def test_score_functions_of_bits_keep_their_mean(kind):
    program, y = Bits(), torch.tensor([0.7])
    assert_mean(kind(ScoreFunction(4)), program, y, enumerated_gradient(program, y), n=500, runs=100)


def test_importance_weights_of_pairs_have_a_bound_of_their_own():
    program, y = Mirrored(), torch.ones(1)
    _, expected = exact_gradient(program, y, lambda log_w: log_w.exp().mean(-1).log(), K=1)
    assert_mean(Antithetic(ImportanceWeighted(2)), program, y, expected)
    described = describe(Antithetic(ImportanceWeighted(2)))
    assert described.estimates == described.guide_gradient == "L_2, antithetic draws" and described.is_bound


def test_a_bound_without_a_claimed_gradient_stays_so():
    class Value(StickingTheLanding):
        description = Description("ELBO")

    assert describe(Antithetic(Value(4))) == describe(QuasiMonteCarlo(Value(4))) == Description("ELBO")


@pytest.mark.parametrize("kind", BOTH)
def test_sticking_the_landing_still_has_no_gradient_where_the_guide_is_exact(kind):
    program = LinearGaussian(torch.randn(5, 2))
    slopes = estimate(kind(StickingTheLanding(4)), program, program.simulate(3))[1]
    of_guide = [slope for key, slope in slopes.items() if key.startswith("posterior.")]
    assert of_guide and max(slope.abs().max() for slope in of_guide) < 1e-10


def test_the_variance_falls_below_that_of_independent_draws():
    """The gradient of a location is nearly odd in the noise."""
    for program, x in known_programs():
        key = "posterior.loc_bias" if hasattr(program, "posterior") else "loc1"
        plain, pairs, points = (
            variances(kind, program, x, n=50, runs=60)[key]
            for kind in (
                ImportanceWeighted(1, M=16),
                Antithetic(ImportanceWeighted(1, M=16)),
                QuasiMonteCarlo(ImportanceWeighted(1, M=16)),
            )
        )
        assert pairs < 0.5 * plain
        assert points < 0.4 * plain


def test_the_variance_of_points_falls_faster_than_that_of_draws():
    program, y = known_programs()[1]
    few, many = (sum(variances(QuasiMonteCarlo(StickingTheLanding(K)), program, y, n=20).values()) for K in (4, 64))
    assert few / many > 64


@pytest.mark.parametrize("kind", BOTH)
def test_estimators_that_need_independent_draws_are_refused(kind):
    for inner in (
        DoublyReparameterized(4),
        ScoreFunction(4, "leave-one-out"),
        DisARM(4),
        kind(StickingTheLanding(4)),
        "word",
    ):
        with pytest.raises(ValueError, match="needs independent particles; wanted StickingTheLanding"):
            kind(inner)


def test_the_given_estimator_stays_as_it_is():
    inner = StickingTheLanding(4)
    assert Antithetic(inner).num_particles == 4 and inner.coupling is None
