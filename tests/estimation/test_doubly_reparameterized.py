"""The Rényi bound: the values of Pyro, exact mean gradients, and less variance than the total gradient has."""

import math

import pyro.infer
import pytest
import torch
from estimator_programs import (
    Local,
    P,
    assert_equal,
    assert_mean,
    assert_scale_multiplies,
    estimate,
    exact_gradient,
    known_programs,
)
from monte_carlo import assert_mean_is
from programs import linear_gaussian

from pyro_vae.estimation.description import describe
from pyro_vae.estimation.doubly_reparameterized import DoublyReparameterized, RenyiBound
from pyro_vae.estimators import StickingTheLanding
from pyro_vae.linear_gaussian import mean_field_guide

pytestmark = pytest.mark.usefixtures("float64")


def bound(alpha):
    """1 / (1 − α) log 1/K Σ_k w_k^(1 − α), as a function of log w in its last dimension."""
    return lambda log_w: ((1 - alpha) * log_w).exp().mean(-1).log() / (1 - alpha)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("K", [1, 4])
def test_the_value_is_that_of_pyro_at_the_same_draws(alpha, K):
    program, x = known_programs()[1]
    x = x.expand(7)
    ours, theirs = RenyiBound(alpha, K), pyro.infer.RenyiELBO(alpha, K, vectorize_particles=True, max_plate_nesting=1)
    losses = []
    for estimator in (ours, theirs):
        torch.manual_seed(1)
        losses.append(estimator.loss(program.model, program.guide, x))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert describe(ours).guide_gradient == describe(theirs).guide_gradient


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_the_mean_gradient_is_that_of_the_bound(number, alpha):
    program, x = known_programs()[number]
    value, expected = exact_gradient(program, x, bound(alpha), K=2)
    assert_mean(RenyiBound(alpha, 2), program, x, expected)
    torch.manual_seed(0)
    losses = [RenyiBound(alpha, 2).loss(program.model, program.guide, x.expand(2000, *x.shape[1:])) for _ in range(20)]
    assert_mean_is(torch.tensor(losses) / 2000, -value, sees=0.05)


@pytest.mark.parametrize("estimator", [DoublyReparameterized(1), RenyiBound(0.5, 1)])
def test_of_one_particle_they_are_described_as_pyros_elbo(estimator):
    assert describe(estimator) == describe(pyro.infer.Trace_ELBO())


@pytest.mark.parametrize("estimator", [DoublyReparameterized(3), RenyiBound(0.5, 3)])
def test_a_scale_multiplies_value_and_gradient(estimator):
    program, x = known_programs()[1]
    assert_scale_multiplies(estimator, program, x.expand(4))


def test_both_ends_are_the_estimators_of_the_elbo_and_of_l_k():
    program, x = known_programs()[1]
    x = x.expand(5)
    _, dreg = estimate(DoublyReparameterized(4), program, x)
    _, landing = estimate(StickingTheLanding(4), program, x)
    assert_equal(estimate(RenyiBound(0, 4), program, x)[1], dreg)
    for key, value in estimate(RenyiBound(1 - 1e-9, 4), program, x)[1].items():
        torch.testing.assert_close(value, landing[key], rtol=1e-6, atol=1e-6)


def test_the_variance_is_below_that_of_the_total_gradient():
    """Near the exact guide the total gradient keeps the score of q (Daudel et al. 2023)."""
    program = linear_gaussian()
    n, x = 5000, program.simulate(1)
    program.posterior = Local(mean_field_guide(program)(x), n)
    theirs = pyro.infer.RenyiELBO(0.5, 8, vectorize_particles=True, max_plate_nesting=1)
    torch.manual_seed(0)
    theirs.loss_and_grads(program.model, program.guide, x.expand(n, P))
    total = program.posterior.loc.grad.var(0).sum()
    ours = estimate(RenyiBound(0.5, 8), program, x.expand(n, P))[1]["posterior.loc"].var(0).sum()
    assert ours < 0.2 * total


def test_bounds_fall_with_alpha_and_grow_with_k():
    program, x = known_programs()[1]
    values = [[exact_gradient(program, x, bound(alpha), K)[0] for alpha in (0.0, 0.5, 0.9)] for K in (1, 2)]
    assert values[0][0] == pytest.approx(values[0][2])  # one particle: the ELBO
    assert values[1][0] > values[1][1] > values[1][2] > values[0][0]


@pytest.mark.parametrize("alpha", [-0.1, 1.0, math.nan])
def test_orders_without_this_gradient_are_refused(alpha):
    with pytest.raises(ValueError, match=r"alpha: wanted a number from 0 to below 1.*StickingTheLanding"):
        RenyiBound(alpha, 3)
