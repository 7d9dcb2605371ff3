"""Streamed moments against numpy on stored draws."""

import math

import numpy as np
import pytest
import torch
from gradients import Gaussians, Scores, streamed
from monte_carlo import assert_mean_is

from pyro_vae.comparison.moments import Moments


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("size", [7, 5000])
@pytest.mark.parametrize("at_once", [1, 64])
def test_moments_are_those_of_the_stored_draws(dtype, rtol, size, at_once):
    torch.manual_seed(0)
    g = (torch.randn(150, size, dtype=dtype) + 3.0) * torch.rand(size, dtype=dtype)
    moments, stored = streamed(g, at_once=at_once), g.double().numpy()
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


@pytest.mark.slow
def test_variance_between_batches_is_unbiased():
    torch.manual_seed(1)
    spread = [streamed(*(0.5 * torch.randn(4, 1, 3) + torch.randn(4, 5, 3))).between() for _ in range(400)]
    assert_mean_is(spread, 3 * 0.25, sees=0.25)  # one tensor's share
    assert min(spread) < 0  # not clipped, or it would be biased


@pytest.mark.slow
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


def test_more_tensors_than_projections_share_them():
    torch.manual_seed(0)
    g = torch.randn(100, 90)
    mean = streamed(g, sizes=[3] * 30, projections=8).mean()
    assert mean.projected.shape == (8,)
    np.testing.assert_allclose(mean.covariance.diagonal().sum() * 100, g.var(0).sum(), rtol=0.3)


def test_what_does_not_vary_does_not_count_in_the_snr():
    torch.manual_seed(0)
    g = torch.randn(50, 4)
    g[:, 0], g[:, 1] = 0.0, 5.0
    moments = streamed(g)
    varying = g[:, 2:].double().numpy()
    assert moments.varying() == 2
    np.testing.assert_allclose(moments.snr().value, (abs(varying.mean(0)) / varying.std(0, ddof=1)).mean(), rtol=1e-5)
    constant = torch.full((50, 4), 2.0)
    assert math.isnan(streamed(constant).snr().value)


@pytest.mark.parametrize(("sizes", "projections", "parts"), [([30, 7, 3], 12, [4, 4, 3]), ([5, 2], 2, [1, 1])])
def test_a_projection_is_a_signed_sum_over_neighbours_in_one_tensor(sizes, projections, parts):
    """Unit vectors show which coordinates it has: all tensors are cut into as many pieces, of much the same length."""
    rows = torch.stack(
        [
            streamed(e.expand(2, -1), sizes=sizes, projections=projections).mean().projected
            for e in torch.eye(sum(sizes))
        ]
    )
    assert torch.equal((rows != 0).sum(1), torch.ones(sum(sizes)).long()) and (rows.abs().sum(1) == 1).all()
    numbers = rows.abs().argmax(1)
    assert torch.equal(numbers, numbers.sort().values) and rows.shape[1] == sum(parts)
    lengths = numbers.bincount().split(parts)
    assert [int(of.sum()) for of in lengths] == sizes
    assert all(of.max() - of.min() <= 1 for of in lengths)


@pytest.mark.parametrize("factor", [2.0**-12, 2.0**12])
@pytest.mark.parametrize(("gradient", "seed"), [(Scores(2), 0), (Gaussians(torch.zeros(10).double()), 3)])
def test_the_unit_of_the_gradient_has_no_part_in_shares_and_its_square_in_the_variance(gradient, seed, factor):
    """Also where the mean is lost in noise, which alone gives it a direction."""
    g = gradient.draws(60, torch.Generator().manual_seed(seed)).chunk(2)
    one, other = streamed(*g), streamed(*(factor * part for part in g))
    for statistic, unit in ((Moments.trace, factor**2), (Moments.snr, 1.0), (Moments.norm_ratio, 1.0)):
        wanted, found = statistic(one), statistic(other)
        ends = [unit * value for value in (wanted.value, wanted.low, wanted.high)]
        assert [found.value, found.low, found.high] == pytest.approx(ends, rel=1e-9, abs=0)
        assert found.freedom == pytest.approx(wanted.freedom)
