"""Intervals against their coverage, a bootstrap and Hall's formula."""

import math
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from gradients import Gaussians, Scores, draws, streamed
from monte_carlo import assert_share_is
from scipy.stats import skew
from scipy.stats import t as student

from pyro_vae.comparison.intervals import TAIL, Estimate, interval, quantile, short, skewness, without_skewness


@pytest.mark.slow
def test_intervals_cover_the_truth():
    torch.manual_seed(0)
    loc = torch.tensor([1.0, -0.7, 0.8, 0.5, 1.2, 0.6]).double()
    tril = (0.3 * torch.randn(6, 6) + torch.eye(6)).tril().double()
    variance = tril.square().sum(1)
    truth = (variance.sum(), (loc.abs() / variance.sqrt()).mean(), loc.norm() / variance.sum().sqrt())
    check_coverage((streamed(draws(80, loc, tril, seed), seed=seed) for seed in range(250)), truth)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gradient", "batches"),
    [
        (Gaussians(torch.tensor([0.3]).double()), 1),
        (Gaussians(torch.zeros(10).double()), 1),
        (Gaussians(torch.ones(10).double(), 0.9), 1),
        (Scores(1), 1),
        (Scores(6), 1),
        (Scores(3), 4),
    ],
    ids=["one coordinate", "mean zero", "correlated", "score function", "score, 6 images", "score, 4 batches"],
)
def test_intervals_of_100_draws_cover_the_truth(gradient, batches):
    mean, variance = gradient.moments()
    truth = (variance.sum(), (mean.abs() / variance.sqrt()).mean(), mean.norm() / variance.sum().sqrt())
    drawn = (gradient.draws(100, torch.Generator().manual_seed(seed)).chunk(batches) for seed in range(200))
    check_coverage((streamed(*g, seed=seed) for seed, g in enumerate(drawn)), truth)


def check_coverage(found, truth):
    """Check that the 95 % intervals of variance, SNR and norm ratio hold the truth in 93 % or more of the cases."""
    covered = [
        [estimate.low <= value <= estimate.high for estimate, value in zip(intervals, truth)]
        for moments in found
        for intervals in [(moments.trace(), moments.snr(), moments.norm_ratio())]
    ]
    for held in zip(*covered):
        assert_share_is(held, at_least=0.93, sees=0.75)


@pytest.mark.slow
def test_intervals_of_the_variance_allow_for_tails_that_few_draws_miss():
    """Of the heaviest tails; 100 draws each, and a coverage of 90 % is told from 93 %."""
    n, gradient = 5000, Scores(1)
    g = gradient.draws(100 * n, torch.Generator().manual_seed(1)).view(n, 100, -1)
    before = g.cumsum(1)[:, :-1] / torch.arange(1, 100).view(-1, 1)
    t = (g[:, 1:] - before).square().sum(-1) * torch.arange(1, 100) / torch.arange(2, 101)
    trace, truth = t.mean(1, keepdim=True), gradient.moments()[1].sum().item()
    ends = [interval(value.item(), u, TAIL)[:2] for value, u in zip(trace, (t - trace) / 99)]
    assert_share_is([low <= truth <= high for low, high in ends], at_least=0.93, sees=0.9)


def test_interval_of_the_variance_is_halls():
    g = Scores(1).draws(100, torch.Generator().manual_seed(0))
    g = torch.cat([g, 100 * g], 1)[:, :4]
    estimate = streamed(g).trace()
    t = np.array([i / (i + 1) * ((g[i] - g[:i].mean(0)) ** 2).sum().item() for i in range(1, 100)])
    trace, error = t.mean(), t.std() / math.sqrt(99)
    shape = TAIL * skew(t) / math.sqrt(99)
    spread = ((t - trace) ** 4).sum() / ((t - trace) ** 2).sum() ** 2 - 1 / 100
    for end, sign in ((estimate.low, 1), (estimate.high, -1)):
        T = (trace - end) / error
        x = T + shape / 3 * T**2 + shape**2 / 27 * T**3 + shape / 6
        np.testing.assert_allclose(x, sign * student.ppf(0.975, 2 / spread), rtol=1e-6)
    np.testing.assert_allclose(estimate.freedom, 2 / spread, rtol=1e-6)


@pytest.mark.parametrize("tail", [1.0, 1.5])
@pytest.mark.parametrize("skewed", [-1.0, 1.0])
def test_the_ends_are_where_halls_x_is_the_quantile(tail, skewed):
    """The ends put into Hall's formula, which has another form than its inverse, give the quantiles of Student's t."""
    u = skewed * torch.tensor([-0.3, -0.2, 0.1, 0.15, -0.25, 0.7, -0.05, 0.2]).double()
    low, high, freedom = interval(2.0, u, tail)
    error, m = u.norm().item(), len(u)
    kurtosis = (u**4).sum().item() / error**4
    assert freedom == pytest.approx(min(m - 1, 2 / (kurtosis - 1 / m)))
    gamma = tail * (u**3).sum().item() / error**3
    assert skewness(u) == pytest.approx(gamma / tail)
    for end, sign in ((low, 1), (high, -1)):
        assert without_skewness((2.0 - end) / error, gamma) == pytest.approx(sign * student.ppf(0.975, freedom))
    assert interval(2.0, u)[:2] == interval(2.0, u, 1.0)[:2]
    assert (interval(2.0, u, tail)[:2] == interval(2.0, u)[:2]) == (tail == 1.0)


def test_an_interval_without_skewness_is_students():
    u = torch.tensor([-0.3, 0.3, 0.1, -0.1]).double()
    low, high, freedom = interval(1.0, u)
    wanted = student.ppf(0.975, freedom) * u.norm().item()
    assert (low, high) == pytest.approx((1 - wanted, 1 + wanted))
    equal = torch.tensor([0.5, -0.5, 0.5, -0.5]).double()  # Σu⁴ = s⁴ / m: their spread says nothing
    assert interval(0.0, equal)[2] == 3 and interval(0.0, equal)[1] == pytest.approx(student.ppf(0.975, 3))


def test_an_interval_of_sections_that_agree_is_a_point_and_of_nan_is_nan():
    assert interval(3.0, torch.zeros(5)) == (3.0, 3.0, math.inf)
    *ends, freedom = interval(3.0, torch.tensor([1.0, math.nan]))
    assert all(math.isnan(end) for end in ends) and freedom == math.inf  # no draws are too few for what is not there


def test_an_estimate_is_doubtful_below_five_degrees_of_freedom():
    assert [Estimate(0.0, -1.0, 1.0, freedom).doubtful for freedom in (4.99, 5.0, math.inf)] == [True, False, False]
    assert not Estimate(0.0, -1.0, 1.0).doubtful
    assert quantile(math.inf) == pytest.approx(1.959964, abs=1e-6)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.001, "-0.001"),
        (0.00099949, "9.99e-4"),
        (99_949.0, "99900"),
        (99_999.0, "100000"),
        (100_000.0, "1.00e5"),
        (-123_456.0, "-1.23e5"),
        (1.005, "1"),
        (12.36, "12.4"),
        (math.inf, "inf"),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert short(value) == text and len(text) <= 8


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(1000,), (333, 333, 333)])
def test_joined_draws_make_much_the_same_interval(sizes):
    g = Gaussians(torch.linspace(0, 1, 10).double(), 0.5).draws(sum(sizes), torch.Generator().manual_seed(0))
    moments, n = streamed(*g.split(sizes)), sum(sizes)
    t = torch.cat([(part - part.mean(0)).square().sum(1) for part in g.split(sizes)])
    joint = torch.cat([part - part.mean(0) for part in g.split(sizes)])
    widths = [estimate.high - estimate.low for estimate in (moments.trace(), moments.snr(), moments.norm_ratio())]
    m, v, trace = g.mean(0), joint.var(0), joint.var(0).sum()
    snr = (m.sign() / v.sqrt() * joint - m.abs() / 2 / v**1.5 * joint.square()).mean(1)
    ratio = joint @ m / m.norm() / trace.sqrt() - m.norm() / trace**1.5 / 2 * t
    expected = [2 * 1.97 * part.std().item() / math.sqrt(n) for part in (t, snr, ratio)]
    np.testing.assert_allclose(widths, expected, rtol=0.2)


@pytest.mark.parametrize("n", [2, 3])
def test_two_draws_make_no_interval(n):
    moments = streamed(torch.randn(n, 5, generator=torch.Generator().manual_seed(0)))
    for estimate in (moments.trace(), moments.snr(), moments.norm_ratio()):
        assert math.isfinite(estimate.value)
        assert math.isfinite(estimate.low) == math.isfinite(estimate.high) == (n > 2)


@pytest.mark.slow
def test_tails_that_allow_no_interval_are_marked():
    doubtful = {}
    for kind in ("Gaussian", "Cauchy"):
        draw = torch.distributions.Normal(0.0, 1.0) if kind == "Gaussian" else torch.distributions.Cauchy(0.0, 1.0)
        torch.manual_seed(0)
        estimates = [streamed(draw.sample((100, 3))).trace() for _ in range(30)]
        doubtful[kind] = np.mean([estimate.doubtful for estimate in estimates])
        assert all(str(estimate).endswith("?") == estimate.doubtful for estimate in estimates)
    assert doubtful["Gaussian"] == 0
    assert doubtful["Cauchy"] > 0.8


@pytest.mark.slow
def test_intervals_from_a_sample_of_coordinates_are_those_of_a_bootstrap_of_stored_draws():
    torch.manual_seed(0)
    factors = torch.randn(20, 4000) * torch.rand(4000)
    g = torch.randn(200, 20) @ factors + 0.5 * torch.randn(200, 4000) + torch.randn(4000)
    moments, stored, rng = streamed(g), g.numpy(), np.random.default_rng(0)

    def three(sample):
        mean, variance = sample.mean(0), sample.var(0, ddof=1)
        square = mean @ mean - 2 * variance.sum() / 200  # the resampling adds as much as sampling does
        return variance.sum(), (abs(mean) / np.sqrt(variance)).mean(), math.sqrt(square / variance.sum())

    replicates = np.array([three(stored[rng.integers(200, size=200)]) for _ in range(200)])
    widths = np.quantile(replicates, 0.975, axis=0) - np.quantile(replicates, 0.025, axis=0)
    for estimate, width in zip((moments.trace(), moments.snr(), moments.norm_ratio()), widths):
        assert 0.7 < (estimate.high - estimate.low) / width < 1.5
        assert estimate.low < estimate.value < estimate.high


def test_an_estimate_is_not_changed():
    estimate = Estimate(1.0, 0.5, 2.0)
    with pytest.raises(FrozenInstanceError):
        estimate.low = 0.9
    assert len({estimate, Estimate(1.0, 0.5, 2.0), Estimate(1.0, 0.5, 3.0)}) == 2
