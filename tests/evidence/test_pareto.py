"""k̂ against Pyro's fit, draws of a known shape, and any weights at all."""

import math
import warnings

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pyro.ops.stats import fit_generalized_pareto
from scipy import stats

from pyro_vae.evidence import from_log_weights
from pyro_vae.evidence.pareto import error_freedom, generalized_pareto_shape, pareto_k, pareto_limit, shrunk


@pytest.mark.parametrize("k", [-1.0, -0.3, 0.0, 0.3, 0.7, 1.5])
def test_shape_of_generalised_pareto_draws(k):
    u = np.random.default_rng(0).random((50, 2000))
    x = 3.0 * (-np.log(u) if k == 0 else (u**-k - 1) / k)
    shapes = np.array([generalized_pareto_shape(row) for row in x])
    assert abs(shapes.mean() - k) < 0.04 and shapes.std() < 0.08


def test_the_number_is_that_of_pyro_where_pyro_gives_one():
    random = np.random.default_rng(1)
    for spread in (0.1, 1.0, 10.0):
        log_w = spread * random.standard_normal((400, 20))
        for k, column in zip(pareto_k(log_w), np.exp(log_w - log_w.max(0)).T):
            top = np.sort(column)[-61:]  # ⌈min(K/5, 3√K)⌉ = 60, and where the tail begins
            assert k == pytest.approx(fit_generalized_pareto(torch.from_numpy(top[1:] - top[0]))[0], rel=1e-9, abs=1e-9)


def test_the_limit_where_theta_is_zero():
    """Of 100 to 120 draws that are all 1 one θ of the grid is 0, where Pyro divides by zero; of 0.7 none is."""
    shapes = [generalized_pareto_shape(np.full(N, value)) for N in range(95, 126) for value in (1.0, 0.7, 1e-200)]
    assert np.ptp(np.diff(np.reshape(shapes, (-1, 3)), axis=1)) < 1e-9
    assert np.abs(np.diff(shapes[::3])).max() < 0.05


WEIGHTS = st.one_of(
    st.floats(-1e6, 1e6),
    st.floats(-800, 0),
    st.sampled_from([0.0, 1.0, -math.inf, -1e300, 1e300, -700.0, -745.0, -5e-324]),
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(arrays.arrays(np.float64, st.tuples(st.integers(1, 130), st.integers(1, 2)), elements=WEIGHTS), st.booleans())
def test_any_weights_have_a_k_and_no_exception(log_w, few_values):
    log_w = log_w.round(-2) if few_values else log_w
    log_w[0] = np.where(np.isfinite(log_w).any(0), log_w[0], 0.0)  # all −inf is an error of its own
    with warnings.catch_warnings(), np.errstate(all="raise", under="ignore"):
        warnings.simplefilter("error")
        evidence = from_log_weights(torch.from_numpy(log_w))
    K, k_hat = len(log_w), evidence.pareto_k.numpy()
    assert K > 20 or np.isnan(k_hat).all()
    if K > 20:
        top = -np.sort(-log_w, axis=0)[: math.ceil(min(K / 5, 3 * math.sqrt(K))) + 1]
        assert (k_hat[top[0] == top[-1]] == -math.inf).all()
        assert (k_hat[np.isfinite(top[-1]) & (top[0] - top[-1] > 700)] == math.inf).all()
    assert (evidence.ess >= 1 - 1e-9).all() and (evidence.ess <= K * (1 + 1e-9)).all()


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 5), st.floats(-600, 600))
def test_a_constant_factor_of_the_weights_changes_no_k(seed, spread, shift):
    log_w = spread * np.random.default_rng(seed).standard_normal((100, 3))
    np.testing.assert_allclose(pareto_k(log_w + shift), pareto_k(log_w), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [30.0, 100.0, 1000.0, 1e5])
def test_badly_scaled_weights_are_never_trusted(scale):
    log_w = torch.from_numpy(scale * np.random.default_rng(2).standard_normal((200, 100)))
    evidence = from_log_weights(log_w)
    assert (evidence.pareto_k > 0.7).all() and evidence.untrusted == 1.0


def test_a_few_of_one_size_that_carry_all_are_not_trusted():
    """Seven of a thousand weights are equal and the rest vanish beside them: without these there is no tail to see."""
    log_w = torch.full((1000, 2), -900.0).double() * torch.linspace(1, 2, 1000).unsqueeze(1).double()
    log_w[:7] = torch.linspace(-0.1, 0.0, 7).unsqueeze(1)
    assert from_log_weights(log_w).pareto_k.tolist() == [math.inf, math.inf]
    log_w[7:] = -math.inf  # weights of zero, as of a uniform likelihood: the others have no tail
    assert (from_log_weights(log_w).pareto_k < 0).all()


def test_differences_of_rounding_are_ties():
    """Two values of which the smaller has been rounded differently: no heavy tail of differences of 1e-7."""
    noise = 1e-7 * torch.randn(1000, generator=torch.Generator().manual_seed(0))
    log_w = torch.where(torch.arange(1000) % 50 == 0, 0.0, -1.0 + noise).unsqueeze(1)
    assert from_log_weights(log_w).pareto_k.item() < 0
    log_w[log_w == 0.0] += 1e-4 * torch.rand(20)  # no largest one: what is left is a tail
    assert from_log_weights(log_w.double()).pareto_k.item() > 0.7  # in float64 the noise is the tail's


def test_a_largest_weight_that_is_drawn_again_and_again_ends_the_tail():
    """Weights of six values: the two smallest of the tail are close together, and a fit to the gaps would find 3.1."""
    values = {0.0: 9, -0.2: 25, -0.59: 8, -0.74: 16, -2.28: 31, -2.3: 7, -3.0: 904}
    log_w = torch.tensor([value for value, count in values.items() for _ in range(count)]).double().unsqueeze(1)
    assert from_log_weights(log_w).pareto_k.item() == -math.inf
    log_w[: 9 - 4] = -3.0  # seen four times it may be the beginning of more
    assert math.isfinite(from_log_weights(log_w).pareto_k.item())


@pytest.mark.parametrize("k", [0.2, 0.5, 0.8, 1.2])
def test_pareto_k_of_pareto_weights(k):
    u = torch.rand(100_000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    evidence = from_log_weights(-k * u.log())
    assert (evidence.pareto_k - k).abs().max() < 0.15
    assert evidence.pareto_k.mean().item() == pytest.approx(k, abs=0.06)


@pytest.mark.slow
@pytest.mark.parametrize("scale, k", [(0.8, 0.36), (0.5, 0.75)])
def test_pareto_k_of_too_narrow_a_gaussian(scale, k):
    """q = N(0, s²) for p = N(0, 1): log w = χ²₁ (1 − s²)/2 + constant, so that the tail has k = 1 − s²."""
    z = scale * torch.randn(200_000, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p, q = dist.Normal(0.0, 1.0), dist.Normal(0.0, scale)
    assert from_log_weights(p.log_prob(z) - q.log_prob(z)).pareto_k.mean().item() == pytest.approx(k, abs=0.1)


def test_pareto_k_where_there_is_no_tail():
    few = from_log_weights(torch.zeros(20, 3)).pareto_k  # too few to say
    assert few.shape == (3,) and few.isnan().all()
    assert (from_log_weights(torch.zeros(21, 3)).pareto_k == -math.inf).all()
    two_values = torch.arange(1000).remainder(50).eq(0).double().unsqueeze(1)
    assert not (from_log_weights(two_values).pareto_k > 0.7).any()


def test_weights_that_have_collapsed_onto_a_few_are_not_trusted():
    """Three draws carry all: the others have underflowed beside them, and a fit finds no tail of which to give k̂."""
    log_w = torch.full((1000, 1), -2000.0)
    log_w[:3] = torch.tensor([[0.0], [-1.0], [-2.0]])
    log_w[3:6] = -math.inf
    evidence = from_log_weights(log_w)
    assert evidence.pareto_k.tolist() == [math.inf] and evidence.untrusted == 1.0


def test_limit_of_many_tails_is_sharper_than_that_of_one():
    log_u = np.log(np.random.default_rng(1).random((1000, 60)))
    alone = np.concatenate([pareto_limit(-0.3 * column[:, None]) for column in log_u.T])
    together = pareto_limit(-0.3 * log_u)
    assert (alone > 0.3).mean() > 0.9 and (together > 0.3).mean() > 0.9
    assert alone.max() > 0.6 and together.max() < 0.5
    assert pareto_limit(np.zeros((1000, 2))).tolist() == [-np.inf, -np.inf]
    assert np.isnan(pareto_limit(log_u[:10])).all()


def test_shrunk_values_are_nearer_to_what_lies_under_them():
    generator = np.random.default_rng(2)
    truth = generator.normal(1.0, 0.3, 2000)
    mean, spread = shrunk(truth + generator.normal(0, 0.4, 2000), noise=0.4)
    assert spread == pytest.approx(0.24, rel=0.05)  # 1 / √(1/0.3² + 1/0.4²)
    assert (mean - truth).std() == pytest.approx(spread, rel=0.05)


@pytest.mark.parametrize("k", [0.2, 0.4, 0.45])
def test_intervals_by_the_freedom_of_the_error_hold_for_pareto_weights(k):
    """E u^−k = 1 / (1 − k). Where the normal's quantile misses too often, Student's does not."""
    w = np.exp(-k * np.log(np.random.default_rng(0).random((1000, 4000))))
    error = np.abs(w.mean(0) - 1 / (1 - k)) / (w.std(0, ddof=1) / math.sqrt(1000))
    freedom = error_freedom(np.array([k]), 1000)
    normal, student = ((error < quantile).mean() for quantile in (1.96, stats.t.ppf(0.975, freedom)))
    assert 0.945 < student < 0.965 if k < 0.4 else normal + 0.005 < student and 0.93 < student < 0.97, (normal, student)


def test_freedom_is_at_most_that_of_a_normal_sample_and_two_where_nothing_is_known():
    assert error_freedom(np.array([-np.inf, 0.0, 0.5, 3.0, np.nan]), 64).tolist() == [63, 63, 2, 2, 2]
    assert error_freedom(np.array([0.3]), 1).tolist() == [0]
