"""Streamed moments against numpy on stored draws; intervals and tests against their coverage and size."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest, skew
from scipy.stats import t as student

from pyro_vae.comparison.moments import TAIL, Moments, equal_means_p_value, largest_z, typical_largest_z


def streamed(*batches, sizes=None, **options):
    moments = Moments(sizes or [batches[0].shape[1]], batches[0][0, :1], **options)
    for batch in batches:
        for g in batch:
            moments.add(g)
        moments.end_batch()
    return moments


def draws(n, loc, tril, seed):
    noise = torch.randn(n, len(loc), generator=torch.Generator().manual_seed(seed), dtype=loc.dtype)
    return loc + noise @ tril.T


class Scores:
    """Gradients of minus the ELBO of p(z) = N(0, 1), p(x | z) = N(2 z, 0.7²), by the score function without baseline.

    The guide is N(a x + b, s²); g is that of a, b and log s, summed over images. Its tails are heavy: the first entries
    are polynomials of degree 3 in a normal variable, the last of degree 4.
    """

    def __init__(self, images):
        self.x = 2.1 * torch.randn(images, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def __call__(self, noise):  # (..., images) -> (..., images, 3)
        z = 0.45 * self.x + 0.3 + 0.33 * noise
        log_p = -0.5 * ((self.x - 2 * z) / 0.7).square() - math.log(0.7) - 0.5 * z.square() - math.log(2 * math.pi)
        log_w = log_p + 0.5 * noise.square() + math.log(0.33) + 0.5 * math.log(2 * math.pi)
        score = torch.stack([self.x * noise / 0.33, noise / 0.33, noise.square() - 1], -1)
        return -log_w[..., None] * score

    def moments(self):
        """The mean and the variance of each coordinate, by Gauss–Hermite quadrature, which is exact here."""
        nodes, weights = (torch.tensor(part) for part in np.polynomial.hermite_e.hermegauss(20))
        g, weights = self(nodes[:, None].expand(-1, len(self.x))), weights[:, None, None] / weights.sum()
        mean = (weights * g).sum(0)
        return mean.sum(0), (weights * (g - mean).square()).sum((0, 1))

    def draws(self, n, generator):
        return self(torch.randn(n, len(self.x), generator=generator, dtype=torch.float64)).sum(-2)


class Gaussians:
    """Draws of a normal vector with the given means and variances of one, whose coordinates correlate."""

    def __init__(self, loc, correlation=0.0):
        self.loc, self.correlation = loc, correlation

    def moments(self):
        return self.loc, torch.ones_like(self.loc)

    def draws(self, n, generator):
        shared, own = (torch.randn(n, k, generator=generator, dtype=torch.float64) for k in (1, len(self.loc)))
        return self.loc + math.sqrt(self.correlation) * shared + math.sqrt(1 - self.correlation) * own


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("size", [7, 5000])
def test_moments_are_those_of_the_stored_draws(dtype, rtol, size):
    torch.manual_seed(0)
    g = (torch.randn(150, size, dtype=dtype) + 3.0) * torch.rand(size, dtype=dtype)
    moments, stored = streamed(g), g.double().numpy()
    mean, sd = stored.mean(0), stored.std(0, ddof=1)
    square = mean @ mean - (sd**2).sum() / 150
    np.testing.assert_allclose(moments.mean().mean, mean, rtol=rtol)
    np.testing.assert_allclose(moments.mean().error.double(), sd / math.sqrt(150), rtol=0.005)
    np.testing.assert_allclose(moments.trace().value, (sd**2).sum(), rtol=rtol)
    np.testing.assert_allclose(moments.snr().value, (abs(mean) / sd).mean(), rtol=rtol)
    np.testing.assert_allclose(moments.norm_ratio().value, math.sqrt(square / (sd**2).sum()), rtol=rtol)


def test_each_draw_brings_an_unbiased_trace_and_their_mean_is_the_sample_trace():
    g = torch.randn(20, 3, dtype=torch.float64)
    moments = Moments([3], g[0, :1])
    contrasts = [moments.add(row).item() for row in g]
    moments.end_batch()
    assert contrasts[0] == 0
    np.testing.assert_allclose(sum(contrasts) / 19, moments.trace().value, rtol=1e-12)


def test_variance_of_several_batches_is_split_as_in_analysis_of_variance():
    torch.manual_seed(0)
    loc = torch.randn(6, 1, 4, dtype=torch.float64)
    g = loc + 2 * torch.randn(6, 30, 4, dtype=torch.float64)
    moments = streamed(*g)
    within = g.var(1).mean(0).sum().item()
    between = g.mean(1).var(0).sum().item() - within / 30
    np.testing.assert_allclose(moments.trace().value, within, rtol=1e-12)
    np.testing.assert_allclose(moments.between(), between, rtol=1e-12)
    np.testing.assert_allclose(moments.mean().mean, g.mean((0, 1)), rtol=1e-12)
    assert streamed(g[0]).between() is None


def test_variance_between_batches_is_unbiased():
    torch.manual_seed(1)
    spread = [streamed(*(0.5 * torch.randn(4, 1, 3) + torch.randn(4, 5, 3))).between() for _ in range(300)]
    truth, error = 3 * 0.25, np.std(spread) / math.sqrt(300)
    assert abs(np.mean(spread) - truth) < 3 * error
    assert min(spread) < 0  # not clipped, or it would be biased


def test_intervals_cover_the_truth():
    torch.manual_seed(0)
    loc = torch.tensor([1.0, -0.7, 0.8, 0.5, 1.2, 0.6]).double()
    tril = (0.3 * torch.randn(6, 6) + torch.eye(6)).tril().double()
    variance = tril.square().sum(1)
    truth = (variance.sum(), (loc.abs() / variance.sqrt()).mean(), loc.norm() / variance.sum().sqrt())
    covered = np.zeros(3)
    repetitions = 250
    for seed in range(repetitions):
        moments = streamed(draws(80, loc, tril, seed), seed=seed)
        intervals = (moments.trace(), moments.snr(), moments.norm_ratio())
        covered += [estimate.low <= value <= estimate.high for estimate, value in zip(intervals, truth)]
    assert (covered / repetitions > 0.90).all(), covered / repetitions
    assert (covered / repetitions < 0.99).all(), covered / repetitions


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
    """At these seeds: the share of 200 that cover has itself a standard error of 1.5 %, where 95 % do."""
    mean, variance = gradient.moments()
    truth = (variance.sum(), (mean.abs() / variance.sqrt()).mean(), mean.norm() / variance.sum().sqrt())
    covered = np.zeros(3)
    for seed in range(200):
        g = gradient.draws(100, torch.Generator().manual_seed(seed)).chunk(batches)
        moments = streamed(*g, seed=seed)
        intervals = (moments.trace(), moments.snr(), moments.norm_ratio())
        covered += [estimate.low <= value <= estimate.high for estimate, value in zip(intervals, truth)]
    assert (covered / 200 >= 0.93).all(), covered / 200


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


def test_memory_does_not_grow_with_the_draws():
    def held(value, seen):
        if isinstance(value, torch.Tensor):
            seen[value.data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, tuple | list):
            [held(item, seen) for item in value]
        elif hasattr(value, "__dict__") and not isinstance(value, torch.Generator):
            [held(item, seen) for item in vars(value).values()]
        return sum(seen.values())

    moments, g, sizes = Moments([1_000_000], torch.zeros(1)), torch.randn(1_000_000), []
    for number in range(100):
        moments.add(g * number)
        if number in (10, 99):
            sizes.append(held(moments, {}))
    assert sizes[0] == sizes[1] < 5 * g.nbytes


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
    assert kstest(p, "uniform").pvalue > 0.01


@pytest.mark.parametrize("images", [1, 6])
def test_tails_that_few_draws_show_raise_no_false_alarm(images):
    """Of 200 p-values: the share below 0.05 has itself a standard error of 1.5 %."""
    gradient, p = Scores(images), []
    mean, variance = gradient.moments()
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        noise = 0.01 * variance.sqrt() * torch.randn(100, 3, generator=generator, dtype=torch.float64)
        p.append(equal_means_p_value(*(streamed(g).mean() for g in (gradient.draws(100, generator), mean + noise))))
    assert np.mean(np.array(p) < 0.05) <= 0.06
    assert np.mean(np.array(p) < 0.01) <= 0.02


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


def test_typical_largest_z_is_the_median_of_the_largest():
    largest = np.abs(np.random.default_rng(0).standard_normal((20_000, 50))).max(1)
    assert abs(typical_largest_z(50) - np.median(largest)) < 0.02


def test_what_does_not_vary_counts_neither_in_the_snr_nor_as_a_difference():
    torch.manual_seed(0)
    g = torch.randn(50, 4)
    g[:, 0], g[:, 1] = 0.0, 5.0
    moments = streamed(g)
    varying = g[:, 2:].double().numpy()
    assert moments.varying() == 2
    np.testing.assert_allclose(moments.snr().value, (abs(varying.mean(0)) / varying.std(0, ddof=1)).mean(), rtol=1e-5)
    constant = torch.full((50, 4), 2.0)
    same, nearly, other = (streamed(factor * constant).mean() for factor in (1, 1 + 1e-7, 2))
    assert equal_means_p_value(same, nearly) == 1.0
    assert equal_means_p_value(same, other) == 0.0
    assert largest_z(same, nearly)[0] < 1
    assert math.isnan(streamed(constant).snr().value)


def test_more_tensors_than_projections_share_them():
    torch.manual_seed(0)
    g = torch.randn(100, 90)
    mean = streamed(g, sizes=[3] * 30, projections=8).mean()
    assert mean.projected.shape == (8,)
    np.testing.assert_allclose(mean.covariance.diagonal().sum() * 100, g.var(0).sum(), rtol=0.3)
