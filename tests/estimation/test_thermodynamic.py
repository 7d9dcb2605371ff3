"""The thermodynamic bound: the exact mean gradient, its ends, and its place between them draw by draw."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from estimator_programs import assert_mean, estimate, exact_gradient, known_programs

from pyro_vae.estimation.description import describe
from pyro_vae.estimation.thermodynamic import TVO
from pyro_vae.estimators import ImportanceWeighted

pytestmark = pytest.mark.usefixtures("float64")


def bound(log_w):
    """The left sum over β = 0, 0.2, √0.2, 1, written out."""
    w, points = log_w.exp(), (0.0, 0.2, 0.2**0.5, 1.0)
    return sum((b - a) * (w**a * log_w).sum(-1) / (w**a).sum(-1) for a, b in itertools.pairwise(points))


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_the_mean_gradient_is_that_of_the_bound(number):
    program, x = known_programs()[number]
    _, expected = exact_gradient(program, x, bound, K=2)
    assert_mean(TVO(2, S=3, first=0.2), program, x, expected)


def losses(*estimators):
    program, x = known_programs()[1]
    return [estimate(estimator, program, x.expand(6))[0].item() for estimator in estimators]


def test_each_draw_lies_between_the_elbo_and_l_k_and_reaches_both():
    elbo, one, few, many, l_k = losses(
        ImportanceWeighted(1, M=8), TVO(8, S=1), TVO(8, S=3), TVO(8, S=400, first=0.01), ImportanceWeighted(8)
    )
    assert one == pytest.approx(elbo, rel=1e-12)
    assert elbo > few > many > l_k
    assert many == pytest.approx(l_k, abs=0.02 * (elbo - l_k))
    assert describe(TVO(8, S=1)).estimates == "ELBO" != describe(TVO(8)).estimates


@pytest.mark.parametrize("least", [0.0, math.inf])
def test_a_weight_of_zero_makes_the_bound_minus_infinity_as_that_of_the_elbo(least):
    """No x comes from a z below ``least``: half of the draws, or all, have the weight zero."""

    def guide():
        with pyro.plate("images", 1):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    def model():
        with pyro.plate("images", 1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("x", torch.where(z < least, -math.inf, 0.0))

    assert [each.loss(model, guide) for each in (TVO(9), ImportanceWeighted(1, M=9))] == [math.inf, math.inf]


@pytest.mark.parametrize("first", [0.0, 1.0])
def test_temperatures_outside_are_refused(first):
    with pytest.raises(ValueError, match="first: wanted a temperature β between 0 and 1"):
        TVO(3, first=first)


def test_its_ends_are_described_as_what_they_are():
    for estimator in (TVO(1), TVO(8, S=1)):
        assert describe(estimator) == describe(ImportanceWeighted(1)) and describe(estimator).plain
    assert describe(TVO(8, S=3, first=0.2)).estimates == "TVO, S = 3 from 0.2, K = 8" and describe(TVO(8)).plain
    assert TVO(8, S=3, first=0.25).betas == [0.0, 0.25, 0.5, 1.0]
