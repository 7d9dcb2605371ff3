"""Distributions of pixels against torch, SciPy and sums over all their values."""

import numpy as np
import pytest
import scipy.stats
import torch
from monte_carlo import assert_mean_is

from pyro_vae.distributions.pixels import BinCentres, IntensityBernoulli, InteriorBeta, LogisticLevels


@pytest.fixture(autouse=True)
def double(float64):
    pass


def test_bins_are_torchs_categories_at_their_centres():
    p = BinCentres(torch.randn(3, 1, 5))
    categories = torch.distributions.Categorical(logits=p.logits)
    index = torch.randint(5, (3, 4))
    torch.testing.assert_close(p.log_prob((index + 0.5) / 5), categories.log_prob(index))
    values = p.enumerate_support()
    assert values.shape == (5, 3, 1) and p.enumerate_support(expand=False).shape == (5, 1, 1)
    assert values[:, 0, 0].tolist() == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    torch.testing.assert_close(p.log_prob(values).logsumexp(0), torch.zeros(3, 1), atol=1e-12, rtol=0)
    torch.testing.assert_close(p.mean, (values * p.log_prob(values).exp()).sum(0))
    wide = p.expand((2, 3, 4))
    assert wide.batch_shape == (2, 3, 4)
    torch.testing.assert_close(wide.log_prob(values[1, :, :1]), p.log_prob(values[1]).expand(2, 3, 4))


def test_draws_of_bins_have_their_probabilities():
    p = BinCentres(torch.tensor([0.0, 1.0, -1.0]))
    draws = p.sample((20_000,))
    assert p.support.check(draws).all()
    for value in p.enumerate_support():
        share, mass = (draws == value).double().mean().item(), p.log_prob(value).exp().item()
        assert share == pytest.approx(mass, abs=5 * (mass * (1 - mass) / 20_000) ** 0.5)


@pytest.mark.parametrize(("loc", "scale"), [(0.4, 0.05), (0.98, 0.01), (-0.3, 0.5)])
def test_levels_have_the_masses_and_the_mean_of_a_rounded_logistic(loc, scale):
    edges = scipy.stats.logistic.cdf((np.arange(255) + 0.5) / 255, loc, scale)
    mass = np.diff(edges, prepend=0.0, append=1.0)  # the end levels take the tails
    p, levels = LogisticLevels(torch.tensor(loc), torch.tensor(scale).log()), torch.arange(256) / 255
    np.testing.assert_allclose(p.log_prob(levels).exp(), mass, rtol=1e-8, atol=1e-15)
    assert p.mean.item() == pytest.approx(mass @ levels.numpy())
    draws = p.sample((20_000,))
    assert p.support.check(draws).all()
    assert_mean_is(draws, p.mean, sees=0.1 * draws.std())
    assert p.expand((2, 3)).log_prob(levels[7]).tolist() == [3 * [p.log_prob(levels[7]).item()]] * 2


def test_supports():
    bins, levels = BinCentres(torch.zeros(4)).support, LogisticLevels(torch.zeros(()), torch.zeros(())).support
    assert bins.check(torch.tensor([0.125, 0.875, 0.0, 1.0, 1.125, 0.3])).tolist() == 2 * [True] + 4 * [False]
    assert levels.check(torch.tensor([0.0, 1.0, 7 / 255, 0.5, -1 / 255])).tolist() == 3 * [True] + 2 * [False]
    ends = torch.tensor([0.0, 0.5, 1.0])
    assert InteriorBeta(torch.tensor(2.0), torch.tensor(2.0)).support.check(ends).tolist() == [False, True, False]
    assert IntensityBernoulli(0.5).support.check(ends).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_support_holds_rounded_values_and_no_others(dtype):
    """A value in float32 is a few millionths of a cell off; a hundredth of a cell is no rounding."""
    levels = torch.arange(256, dtype=dtype) / 255
    centres = (torch.arange(256, dtype=dtype) + 0.5) / 256
    p, q = LogisticLevels(torch.zeros(()), torch.zeros(())), BinCentres(torch.zeros(256))
    for support, values, cell in ((p.support, levels, 1 / 255), (q.support, centres, 1 / 256)):
        assert support.check(values).all()
        for off in (-0.01, 0.01, 0.5):
            assert not support.check(values + off * cell).any()


def test_a_value_off_the_support_is_refused_in_validation_and_else_rounded():
    logits = torch.randn(4)
    bins, levels = BinCentres(logits, validate_args=True), LogisticLevels(torch.zeros(()), torch.zeros(()), True)
    for p in (bins, levels, bins.expand((2,)), levels.expand((2,))):
        assert p.support.is_discrete
        with pytest.raises(ValueError, match="within the support"):
            p.log_prob(torch.tensor(0.3))
    loose = BinCentres(logits, validate_args=False)
    torch.testing.assert_close(loose.log_prob(torch.tensor([0.3, 0.9])), logits.log_softmax(0)[[1, 3]])


def test_an_intensity_has_the_cross_entropy_of_torch():
    x, logits = torch.rand(7), torch.randn(7)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none")
    torch.testing.assert_close(IntensityBernoulli(logits=logits, validate_args=True).log_prob(x), -expected)
