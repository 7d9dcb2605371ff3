"""PIWAE and CIWAE: exact mean gradients by quadrature, and the estimators that they become at their ends."""

import pytest
import torch
from estimator_programs import (
    assert_equal,
    assert_mean,
    assert_scale_multiplies,
    estimate,
    exact_gradient,
    known_programs,
)

from pyro_vae.estimation.description import describe
from pyro_vae.estimators import CIWAE, PIWAE, DoublyReparameterized, ImportanceWeighted

pytestmark = pytest.mark.usefixtures("float64")
GUIDES = ("posterior", "loc1", "loc2", "pull", "scale1", "scale2")


def mean_log_w(log_w):
    return log_w.mean(-1)


def l_k(log_w):
    return log_w.logsumexp(-1) - torch.tensor(log_w.shape[-1]).log()


def of_guide(program):
    """Which entries of the flat gradient are the guide's."""
    return torch.cat([torch.full((p.numel(),), name.startswith(GUIDES)) for name, p in program.named_parameters()])


@pytest.mark.parametrize("number", [0, 1])
def test_piwae_has_one_bound_for_the_guide_and_one_for_the_model(number):
    program, x = known_programs()[number]
    value, of_model = exact_gradient(program, x, l_k, K=2)
    _, elbo = exact_gradient(program, x, mean_log_w, K=2)
    assert_mean(PIWAE(1, M=2), program, x, torch.where(of_guide(program), elbo, of_model))
    losses = estimate(PIWAE(1, M=2), program, x.expand(40_000, *x.shape[1:]))[0].item() / 40_000
    assert losses == pytest.approx(-value, abs=0.02)


@pytest.mark.parametrize("number", [0, 1])
def test_the_mean_gradient_of_ciwae_is_that_of_its_bound(number):
    program, x = known_programs()[number]
    value, expected = exact_gradient(program, x, lambda log_w: 0.3 * mean_log_w(log_w) + 0.7 * l_k(log_w), K=2)
    assert_mean(CIWAE(2, beta=0.3), program, x, expected)
    losses = estimate(CIWAE(2, beta=0.3), program, x.expand(40_000, *x.shape[1:]))[0].item() / 40_000
    assert losses == pytest.approx(-value, abs=0.02)


@pytest.mark.parametrize(
    ("mixed", "plain"),
    [
        (PIWAE(3, M=1), ImportanceWeighted(3)),
        (CIWAE(3, beta=0.0), ImportanceWeighted(3)),
        (CIWAE(3, beta=1.0), ImportanceWeighted(1, M=3)),
    ],
)
def test_at_their_ends_they_are_other_estimators(mixed, plain):
    program, x = known_programs()[1]
    ours, theirs = (estimate(each, program, x.expand(4)) for each in (mixed, plain))
    assert ours[0].item() == pytest.approx(theirs[0].item(), rel=1e-12)
    assert_equal(ours[1], theirs[1])
    assert describe(mixed) == describe(plain)


@pytest.mark.parametrize("estimator", [PIWAE(2, M=2), CIWAE(3)])
def test_a_scale_multiplies_value_and_gradient(estimator):
    program, x = known_programs()[1]
    assert_scale_multiplies(estimator, program, x.expand(4))


def test_each_group_of_piwae_says_what_it_estimates():
    said = describe(PIWAE(4, M=2))
    assert (said.estimates, said.guide_gradient, said.model_gradient) == ("L_8", "L_4", "L_8")
    assert said.agrees_with(describe(DoublyReparameterized(4)), "guide")
    assert describe(CIWAE(4)).estimates == "CIWAE, β = 0.5, K = 4"


def test_a_weight_beyond_the_ends_is_refused():
    with pytest.raises(ValueError, match=r"beta: wanted a number from 0 \(L_K\) to 1 \(the ELBO\), got 1.5"):
        CIWAE(2, beta=1.5)
