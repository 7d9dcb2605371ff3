"""Tests of equal means against their size, and against numpy; which pairs should agree."""

import numpy as np
import pytest
import torch
from comparing import compare, oracle
from gradients import Scores, draws, streamed
from monte_carlo import assert_share_is
from pyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO
from scipy.stats import f, kstest, ttest_ind

from pyro_vae.comparison.agreement import equal_means_p_value, largest_z, typical_largest_z
from pyro_vae.comparison.moments import Mean
from pyro_vae.estimators import (
    DoublyReparameterized,
    ImportanceWeighted,
    ScoreFunction,
    StickingTheLanding,
    WakeSleep,
)


@pytest.mark.slow
def test_p_values_are_uniform_where_means_are_equal_and_covariances_are_not():
    torch.manual_seed(0)
    first = (torch.randn(40, 40) + 3 * torch.eye(40)).double()
    second = first * torch.linspace(0.1, 10, 40)
    loc = torch.randn(40).double()
    p = []
    for seed in range(200):
        a = streamed(draws(120, loc, first, 2 * seed), sizes=[30, 7, 3], projections=12)
        b = streamed(draws(60, loc, second, 2 * seed + 1), sizes=[30, 7, 3], projections=12)
        p.append(equal_means_p_value(a.mean(), b.mean()))
    assert kstest(p, "uniform").pvalue > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("images", [1, 6])
def test_tails_that_few_draws_show_raise_no_false_alarm(images):
    """Of 200 p-values: a share of 22 % below 0.05 is seen, and one of 12 % below 0.01."""
    gradient, p = Scores(images), []
    mean, variance = gradient.moments()
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        noise = 0.01 * variance.sqrt() * torch.randn(100, 3, generator=generator, dtype=torch.float64)
        p.append(equal_means_p_value(*(streamed(g).mean() for g in (gradient.draws(100, generator), mean + noise))))
    assert_share_is(np.array(p) < 0.05, at_most=0.05, sees=0.22)
    assert_share_is(np.array(p) < 0.01, at_most=0.01, sees=0.12)


@pytest.mark.slow
def test_means_that_differ_in_one_tensor_are_told_apart():
    torch.manual_seed(0)
    loc, eye = torch.zeros(2003), torch.eye(2003)
    shifted = loc.clone()
    shifted[2000:] = 0.5  # a bias beside a big weight
    a = streamed(draws(200, loc, eye, 0), sizes=[2000, 3], projections=12).mean()
    b = streamed(draws(200, shifted, eye, 1), sizes=[2000, 3], projections=12).mean()
    c = streamed(draws(200, loc, eye, 2), sizes=[2000, 3], projections=12).mean()
    assert equal_means_p_value(a, b) < 1e-4 < 0.01 < equal_means_p_value(a, c)


def test_largest_z_is_numpys():
    torch.manual_seed(0)
    a, b = torch.randn(100, 9).double(), torch.randn(100, 9).double()
    z, where = largest_z(streamed(a).mean(), streamed(b).mean())
    expected = (a.mean(0) - b.mean(0)).abs() / ((a.var(0) + b.var(0)) / 100).sqrt()
    np.testing.assert_allclose(z, expected.max(), rtol=0.005)
    assert where == expected.argmax()


@pytest.mark.parametrize("where", [0, 1, (1 << 18) - 1, 1 << 18, (1 << 18) + 2])
def test_the_coordinate_that_differs_is_found_wherever_it_is(where):
    nothing = torch.zeros(1, 1)
    one, other = torch.zeros(2, (1 << 18) + 3)
    other[where] = 3.0
    error = torch.full_like(one, 0.5)
    means = (Mean(mean, error, nothing[0], nothing, 9, nothing) for mean in (one, other))
    assert largest_z(*means) == (pytest.approx(3 / 0.5**0.5, rel=1e-6), where)


def test_typical_largest_z_is_the_median_of_the_largest():
    largest = np.abs(np.random.default_rng(0).standard_normal((20_000, 50))).max(1)
    assert abs(typical_largest_z(50) - np.median(largest)) < 0.02


def symmetric(n, size, seed, spread=1.0):
    """Draws without skewness, so that no correction of it has a part in the test."""
    half = spread * torch.randn(n // 2, size, generator=torch.Generator().manual_seed(seed)).double()
    return torch.cat([half, -half])


@pytest.mark.parametrize("shift", [0.0, 0.2, 0.7])
def test_the_p_value_of_one_coordinate_is_welchs(shift):
    a, b = symmetric(20, 1, 0), symmetric(12, 1, 1, spread=3.0) + shift
    p = equal_means_p_value(streamed(a).mean(), streamed(b).mean())
    assert p == pytest.approx(ttest_ind(a[:, 0], b[:, 0], equal_var=False).pvalue, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_p_value_against_a_known_mean_is_hotellings(scale):
    a, known = symmetric(20, 3, 0) @ torch.tensor([[1.0, 0.5, 0.0], [0.0, 2.0, 0.3], [0.0, 0.0, 0.1]]).double(), 0.05
    t_squared = 20 * known**2 * torch.linalg.inv(a.T.cov()).sum().item()
    known = torch.full((20, 3), known).double()
    p = equal_means_p_value(*(streamed(scale * g).mean() for g in (a, known)))
    assert p == pytest.approx(f.sf(t_squared * 17 / (19 * 3), 3, 17), rel=1e-6)


def test_a_coordinate_that_follows_from_others_changes_no_p_value():
    a, b = symmetric(20, 2, 0), symmetric(12, 2, 1, spread=3.0) + 0.5
    p, same = (
        equal_means_p_value(*(streamed(torch.cat([g, *more], 1)).mean() for g, more in pairs))
        for pairs in (((a, []), (b, [])), ((a, [a, a]), (b, [b, b])))
    )
    assert 0.01 < p < 0.9 and same == pytest.approx(p, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_p_value_does_not_depend_on_the_coordinates(seed):
    """Of skewed draws too, whose skewness is that in the direction in which the means differ."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.rand(20, 3, generator=generator, dtype=torch.float64).pow(-0.5) for _ in range(2))
    turn, b = torch.randn(3, 3, generator=generator, dtype=torch.float64), b - 0.3
    p, same = (
        equal_means_p_value(streamed(a @ by).mean(), streamed(b @ by).mean()) for by in (torch.eye(3).double(), turn)
    )
    assert same == pytest.approx(p, rel=1e-6)


def test_what_does_not_vary_is_no_difference():
    constant = torch.full((50, 4), 2.0)
    same, nearly, other = (streamed(factor * constant).mean() for factor in (1, 1 + 1e-7, 2))
    assert equal_means_p_value(same, nearly) == 1.0
    assert equal_means_p_value(same, other) == 0.0
    assert largest_z(same, nearly)[0] < 1


@pytest.mark.slow
def test_pairs_that_should_agree_are_known_and_agree():
    program, x = oracle(offset=0.3)
    estimators = {
        "L^A": Trace_ELBO(),
        "Graph": TraceGraph_ELBO(),
        "score": ScoreFunction(4, "leave-one-out"),
        "L_4": ImportanceWeighted(4, M=2),
        "DReG": DoublyReparameterized(4),
        "Renyi": RenyiELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1),
        "wake-sleep": WakeSleep(),
    }
    result = compare(program.model, program.guide, x, draws=150, estimators=estimators)
    expected = {(pair.first, pair.second, pair.group) for pair in result.agreements if pair.expected}
    of_elbo, of_iw = ["L^A", "Graph", "score"], ["L_4", "DReG", "Renyi"]
    pairs = {(names[i], names[j]) for names in (of_elbo, of_iw) for i in range(3) for j in range(i + 1, 3)}
    wake = {(name, "wake-sleep", "model") for name in of_elbo}
    assert expected == {(*pair, group) for pair in pairs for group in ("guide", "model")} | wake
    assert not result.disagreements()
    told = {(pair.first, pair.second) for pair in result.agreements if pair.p_value < 1e-6}
    assert ("L^A", "L_4") in told  # another bound, another gradient


@pytest.mark.slow
def test_a_biased_gradient_is_found_out():
    program, x = oracle(offset=0.5)

    class Biased(StickingTheLanding):
        def differentiable_loss(self, model, guide, *args):
            loss = super().differentiable_loss(model, guide, *args)
            return loss + 0.3 * program.posterior.loc_bias[1] - 0.3 * program.posterior.loc_bias[1].detach()

    estimators = {"right": StickingTheLanding(), "wrong": Biased()}
    result = compare(program.model, program.guide, x, estimators=estimators, agree=[("wrong", "right")])
    (found,) = result.disagreements()
    assert (found.first, found.second, found.group) == ("right", "wrong", "guide")
    assert found.parameter == "posterior.loc_bias[1]"
    assert "! right – wrong" in str(result)
