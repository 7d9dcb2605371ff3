"""Distributions of counts against SciPy, sums, and arithmetic of 60 digits."""

import math

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch
from monte_carlo import assert_mean_is

from pyro_vae.distributions import NegativeBinomialCounts, PoissonCounts, ZeroInflatedCounts
from pyro_vae.distributions.counts import _deviance

COUNTS = [0.0, 1.0, 2.0, 9.0, 10.0, 11.0, 100.0, 1e3, 1e5, 1e7]
LOG_MEANS = [-40.0, -10.0, 0.0, 0.5, 2.25, 4.625, 11.5, 16.125, 40.0]
LOG_DISPERSIONS = [-20.0, -5.0, 0.0, 2.25, 2.375, 5.0, 10.0, 18.0, 40.0]


def exact(x, eta, t=None):
    """Return log p(x): Poisson without t, else negative binomial."""
    with mpmath.workdps(60):
        x, mean = mpmath.mpf(x), mpmath.exp(eta)
        if t is None:
            return float(x * eta - mean - mpmath.loggamma(x + 1))
        theta = mpmath.exp(t)
        total = mpmath.loggamma(x + theta) - mpmath.loggamma(theta) - mpmath.loggamma(x + 1)
        return float(total + theta * mpmath.log(theta / (theta + mean)) + x * mpmath.log(mean / (theta + mean)))


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-5), (torch.float64, 1e-13)])
def test_log_probabilities_are_exact_over_the_whole_range(dtype, error):
    """Relative to the largest of |log p| and one nat."""
    eta, t, x = (torch.tensor(values, dtype=dtype) for values in (LOG_MEANS, LOG_DISPERSIONS, COUNTS))
    eta, t, x = eta[:, None, None], t[:, None], x
    grid = [(c, e, d) for e in LOG_MEANS for d in LOG_DISPERSIONS for c in COUNTS]
    wanted = torch.tensor([exact(*point) for point in grid], dtype=torch.float64)
    got = NegativeBinomialCounts(eta, t).log_prob(x).double().flatten()
    assert ((got - wanted).abs() / (1 + wanted.abs())).max() < error
    wanted = torch.tensor([[exact(c, e) for c in COUNTS] for e in LOG_MEANS], dtype=torch.float64)
    got = PoissonCounts(eta[:, 0]).log_prob(x).double()
    assert ((got - wanted).abs() / (1 + wanted.abs())).max() < error


@pytest.mark.parametrize("t", [3.0, 10.0, 18.0, 40.0])
def test_large_counts_near_their_mean_are_exact_in_float32(t):
    """Here torch's class is off by up to 150 nats."""
    for x in (1e3, 1e5, 1e6, 1e7):
        eta = torch.tensor(math.log(x) + x**-0.5)
        p = NegativeBinomialCounts(eta, torch.tensor(t))
        assert p.log_prob(torch.tensor(x)).item() == pytest.approx(exact(x, eta.item(), t), abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_those_of_the_formula_at_the_ends_of_the_range(dtype):
    """∂/∂η = θ (x − μ) / (θ + μ); ∂/∂t = θ [ψ(x + θ) − ψ(θ) − ln(1 + μ/θ) + (μ − x) / (θ + μ)]."""
    eta, t, x = torch.meshgrid(
        *(torch.tensor(v, dtype=dtype) for v in (LOG_MEANS, LOG_DISPERSIONS, COUNTS)), indexing="ij"
    )
    eta, t = eta.clone().requires_grad_(), t.clone().requires_grad_()
    d_eta, d_t = torch.autograd.grad(NegativeBinomialCounts(eta, t).log_prob(x).sum(), (eta, t))
    assert d_eta.isfinite().all() and d_t.isfinite().all()
    mean, theta = eta.detach().double().exp(), t.detach().double().exp()
    wanted = theta * (x.double() - mean) / (theta + mean)
    scale = 1 + x.double().maximum(theta * mean / (theta + mean))
    assert ((d_eta - wanted).abs() / scale).max() < (1e-5 if dtype == torch.float32 else 1e-12)
    moderate = theta < 1e5  # beyond, the difference of ψ has no digits left
    psi = torch.digamma(x.double() + theta) - torch.digamma(theta)
    wanted = theta * (psi - torch.log1p(mean / theta) + (mean - x) / (theta + mean))
    error = (d_t - wanted).abs() / (1 + wanted.abs() + x)
    assert error[moderate].max() < (1e-5 if dtype == torch.float32 else 1e-9)
    (slope,) = torch.autograd.grad(PoissonCounts(eta).log_prob(x).sum(), eta)
    assert ((slope - (x - mean)).abs() / (1 + x + mean)).max() < 1e-5


@pytest.mark.parametrize("mean", [0.01, 3.0, 25.0])
def test_scipy_agrees(mean):
    x, eta = np.arange(60.0), torch.tensor(math.log(mean), dtype=torch.float64)
    log_p = PoissonCounts(eta).log_prob(torch.tensor(x))
    assert np.allclose(log_p, scipy.stats.poisson.logpmf(x, mean), atol=1e-11)
    for theta in (0.1, 2.0, 500.0):
        p = NegativeBinomialCounts(eta, torch.tensor(math.log(theta), dtype=torch.float64))
        wanted = scipy.stats.nbinom.logpmf(x, theta, theta / (theta + mean))
        assert np.allclose(p.log_prob(torch.tensor(x)), wanted, atol=1e-9)
        assert p.variance.item() == pytest.approx(mean + mean**2 / theta)


def test_zero_inflation_is_the_mixture_with_zero():
    x, gate = torch.arange(40.0, dtype=torch.float64), 1 / (1 + math.exp(0.4))
    eta, t = torch.tensor(1.5, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    base = NegativeBinomialCounts(eta, t)
    p = ZeroInflatedCounts(base, gate_logits=torch.tensor(-0.4, dtype=torch.float64))
    wanted = (1 - gate) * base.log_prob(x).exp() + gate * (x == 0)
    torch.testing.assert_close(p.log_prob(x).exp(), wanted)
    before = p.log_prob(x)
    assert p.mean.item() == pytest.approx((1 - gate) * math.exp(1.5))
    p.sample()
    assert torch.equal(p.log_prob(x), before)  # a look at it changes nothing


@pytest.mark.parametrize("gate", [-40.0, 40.0])
def test_a_gate_at_its_ends_leaves_numbers_finite(gate):
    gate = torch.tensor(gate, requires_grad=True)
    eta = torch.tensor([-40.0, 0.0, 40.0], requires_grad=True)
    p = ZeroInflatedCounts(PoissonCounts(eta), gate_logits=gate)
    log_p = p.log_prob(torch.tensor([[0.0], [1.0], [1e6]]))
    gradients = torch.autograd.grad(log_p.sum(), (eta, gate))
    assert log_p.isfinite().all() and all(gradient.isfinite().all() for gradient in gradients)


FAMILIES = {
    "poisson": PoissonCounts(torch.tensor(1.2, dtype=torch.float64)),
    "negative binomial": NegativeBinomialCounts(*torch.tensor([1.2, 0.3], dtype=torch.float64)),
    "zero-inflated": ZeroInflatedCounts(
        NegativeBinomialCounts(*torch.tensor([1.2, 0.3], dtype=torch.float64)),
        gate_logits=torch.tensor(-1.0, dtype=torch.float64),
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_masses_sum_to_one_and_draws_have_their_mean_and_variance(name):
    p, x = FAMILIES[name], torch.arange(2000.0, dtype=torch.float64)
    mass = p.log_prob(x).exp()
    assert mass.sum().item() == pytest.approx(1, abs=1e-12)
    assert (mass * x).sum().item() == pytest.approx(p.mean.item())
    assert (mass * x**2).sum().item() - p.mean.item() ** 2 == pytest.approx(p.variance.item())
    torch.manual_seed(0)
    draws = p.sample((100_000,))
    assert p.support.check(draws).all()
    assert_mean_is(draws, p.mean, sees=0.05 * p.variance.sqrt())
    shares = torch.bincount(draws.long(), minlength=2000) / 100_000
    assert (shares - mass).abs().max() < 5 * 0.5 / 100_000**0.5


def test_shapes_and_expansion():
    p = NegativeBinomialCounts(torch.zeros(5, 7), torch.zeros(7))
    assert p.batch_shape == (5, 7) and p.sample((2,)).shape == (2, 5, 7)
    wide = p.expand((3, 5, 7))
    assert wide.batch_shape == (3, 5, 7) == wide.mean.shape == wide.sample().shape == wide.variance.shape
    x = wide.sample()
    torch.testing.assert_close(wide.log_prob(x)[1], p.log_prob(x[1]))
    assert PoissonCounts(torch.zeros(7)).expand((3, 7)).sample((2,)).shape == (2, 3, 7)
    with pytest.raises(ValueError, match="support"):
        PoissonCounts(torch.zeros(()), validate_args=True).log_prob(torch.tensor(0.5))


def test_draws_of_extreme_parameters_are_whole_and_finite():
    torch.manual_seed(0)
    eta, t = torch.meshgrid(torch.tensor([-40.0, 0.0, 40.0]), torch.tensor([-20.0, 0.0, 40.0]), indexing="ij")
    for p in (PoissonCounts(eta), NegativeBinomialCounts(eta, t)):
        draws = p.sample((100,))
        assert p.support.check(draws).all() and draws.isfinite().all()


@pytest.mark.parametrize("share", [0.0, 1e-6, -0.01, 0.0299, -0.0299, 0.0301, 0.9])
def test_deviances_have_all_digits_of_float64(share):
    """v = (a − b) / (a + b) is the share: the series is left at 0.03."""
    a, b = 1 + share, 1 - share
    with mpmath.workdps(60):
        log_ratio, excess = mpmath.log(mpmath.mpf(a) / b), mpmath.mpf(a) - b
        wanted = float(a * log_ratio - excess)
    numbers = (torch.tensor(float(value), dtype=torch.float64) for value in (a, excess, log_ratio))
    assert _deviance(*numbers).item() == pytest.approx(wanted, rel=2e-13, abs=0)
