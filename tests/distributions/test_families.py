"""Densities in float32 against the same in 50 digits, SciPy and torch's own in float64."""

import math
from decimal import Decimal, getcontext

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from monte_carlo import assert_mean_is
from torch.distributions import kl_divergence

from pyro_vae import likelihoods as L
from pyro_vae.distributions.families import Beta, ContinuousBernoulli, polynomial, stirling_remainder

getcontext().prec = 50
NEAR_ZERO = [1e-9, 1e-5, 1e-3, 0.0039, 0.0041, 0.005, 0.01, 0.02, 0.1, 0.5, 0.999, 1.0, 1.001]
LOGITS = [sign * value for value in [*NEAR_ZERO, 2.0, 9.2, 18.4, 60.0, 500.0] for sign in (1, -1)]
TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-11}
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE)


def exact(logit):
    """Return log C of C e^(l x), its mean and its variance."""
    logit = Decimal(logit)
    sinh = ((logit / 2).exp() - (-logit / 2).exp()) / 2
    mean = 1 / (1 - (-logit).exp()) - 1 / logit
    return (logit / (logit.exp() - 1)).ln(), mean, 1 / logit**2 - 1 / (4 * sinh**2)


@each_dtype
@pytest.mark.parametrize("logit", LOGITS)
def test_continuous_bernoulli_in_fifty_digits(logit, dtype):
    logits = torch.tensor(logit, dtype=dtype, requires_grad=True)
    log_c, mean, variance = exact(logits.item())
    p, x = ContinuousBernoulli(logits=logits), torch.tensor([0.0, 0.001, 0.3, 0.5, 0.999, 1.0], dtype=dtype)
    log_p = p.log_prob(x)
    wanted = [float(log_c + Decimal(logits.item()) * Decimal(value)) for value in x.tolist()]
    close = {"rel": TOLERANCE[dtype], "abs": TOLERANCE[dtype]}
    assert log_p.tolist() == pytest.approx(wanted, **close)
    for value, wanted_x in zip(log_p, x.tolist()):
        (gradient,) = torch.autograd.grad(value, logits, retain_graph=True)
        assert gradient.item() == pytest.approx(float(Decimal(wanted_x) - mean), **close)
    assert p.mean.item() == pytest.approx(float(mean), **close)
    assert p.variance.item() == pytest.approx(float(variance), rel=TOLERANCE[dtype])
    entropy = -log_c - Decimal(logits.item()) * mean  # a difference of numbers of the size of the logit
    assert p.entropy().item() == pytest.approx(float(entropy), abs=TOLERANCE[dtype] * max(1, abs(logit)))


@each_dtype
def test_continuous_bernoulli_at_zero_is_uniform(dtype):
    logits = torch.zeros(3, dtype=dtype, requires_grad=True)
    p, x = ContinuousBernoulli(logits=logits), torch.tensor([0.0, 0.25, 1.0], dtype=dtype)
    assert torch.equal(p.log_prob(x), torch.zeros_like(x)) and torch.equal(p.mean, torch.full_like(x, 0.5))
    torch.testing.assert_close(p.variance, torch.full_like(x, 1 / 12))
    torch.testing.assert_close(torch.autograd.grad(p.log_prob(x).sum(), logits)[0], x - 0.5)
    torch.testing.assert_close(torch.autograd.grad(p.icdf(x).sum(), logits)[0], x * (1 - x) / 2)


@pytest.mark.parametrize("logit", [0.0, *LOGITS])
def test_moments_of_a_continuous_bernoulli_are_derivatives_of_those_before(logit):
    """As in every exponential family; at zero the third central moment vanishes."""
    logits = torch.tensor(logit, dtype=torch.float64, requires_grad=True)
    p = ContinuousBernoulli(logits=logits)
    (slope,) = torch.autograd.grad(p.mean, logits)
    torch.testing.assert_close(slope, p.variance.detach(), rtol=1e-8, atol=1e-12)
    (third,) = torch.autograd.grad(p.variance, logits)
    assert third.isfinite() and third * logit <= 0 and (logit != 0 or third == 0)


@each_dtype
def test_continuous_bernoulli_quantiles(dtype):
    logits = torch.tensor([value for value in LOGITS if abs(value) < 100], dtype=dtype).unsqueeze(-1)
    p, u = ContinuousBernoulli(logits=logits), torch.linspace(0.001, 0.999, 37, dtype=dtype)
    wanted = torch.expm1(logits.double() * p.icdf(u).double()) / torch.expm1(logits.double())
    assert (wanted - u).abs().max() < 3 * TOLERANCE[dtype] and (p.cdf(p.icdf(u)) - u).abs().max() < 3 * TOLERANCE[dtype]
    ends = torch.tensor([0.0, 1.0], dtype=dtype)
    assert torch.equal(p.cdf(ends), ends.expand(len(logits), 2)) and p.icdf(ends).isfinite().all()


@pytest.mark.parametrize("logit", [0.0041, -0.3, 18.4])
def test_continuous_bernoulli_draws_have_its_moments(logit):
    torch.manual_seed(0)
    p = ContinuousBernoulli(logits=torch.tensor(logit))
    draws = p.rsample((100_000,)).double()
    assert_mean_is(draws, p.mean, sees=0.05 * p.stddev)
    assert draws.var().item() == pytest.approx(p.variance.item(), rel=0.05)


def test_divergences_of_torch_take_the_normaliser():
    logits = torch.tensor([-3.0, 0.02, 0.5, 2.0], dtype=torch.float64)
    ours, theirs = (family(logits=logits) for family in (ContinuousBernoulli, torch.distributions.ContinuousBernoulli))
    torch.testing.assert_close(kl_divergence(ours, ours.expand((3, 4))), torch.zeros(3, 4).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(kl_divergence(ours, theirs), torch.zeros(4).double(), atol=1e-4, rtol=0)
    normal = torch.distributions.Normal(logits, 1.0)
    torch.testing.assert_close(kl_divergence(ours, normal), kl_divergence(theirs, normal), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("clip", [1e-4, 1e-8, 1e-30, 1e-300])
def test_the_mass_of_a_clipped_continuous_bernoulli_is_one_in_float32(clip):
    p = L.ContinuousBernoulli(torch.nn.Identity(), clip=clip)(torch.tensor([1e4, -1e4, 0.3]).reshape(3, 1, 1, 1))
    steps = 2_000_000
    x = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps  # cells much narrower than 1 / logit
    density = p.base_dist.expand((3, 1, 1, 1)).log_prob(x.float()).double().exp()
    assert density.mean(-1).flatten().tolist() == pytest.approx([1, 1, 1], abs=1e-3)


CONCENTRATIONS = [0.02, 0.5, 2.0, 9.9, 10.1, 300.0, 3000.0, math.exp(9)]


@pytest.mark.slow
@pytest.mark.parametrize("concentration", CONCENTRATIONS)
@pytest.mark.parametrize("mean", [1e-12, 1e-3, 0.1, 0.5, 0.99])
@pytest.mark.parametrize(("dtype", "nats"), [(torch.float32, 2e-5), (torch.float64, 2e-11)])
def test_beta_density_and_gradient(concentration, mean, dtype, nats):
    a, b = (torch.tensor(share * concentration, dtype=dtype, requires_grad=True) for share in (mean, 1 - mean))
    A, B = a.item(), b.item()
    m, sd = A / (A + B), (A * B / (A + B + 1)) ** 0.5 / (A + B)
    wished = np.array([m - 3 * sd, m - sd, m, m + sd / 10, m + 3 * sd, 2.0**-17, 0.3, 0.5, 1 - 2.0**-17])
    for x in torch.tensor(wished[(wished >= 2.0**-17) & (wished <= 1 - 2.0**-17)], dtype=dtype):
        log_p, wanted = Beta(a, b).log_prob(x), scipy.stats.beta.logpdf(x.item(), A, B)
        assert log_p.item() == pytest.approx(wanted, abs=nats, rel=nats / 10)
        gradients = torch.autograd.grad(log_p, (a, b))
        for gradient, parameter, logarithm in zip(gradients, (A, B), (np.log(x.item()), np.log1p(-x.item()))):
            value = logarithm - scipy.special.digamma(parameter) + scipy.special.digamma(A + B)
            assert parameter * gradient.item() == pytest.approx(parameter * value, rel=50 * nats, abs=50 * nats)


def test_beta_of_a_network_is_exact_to_a_hundred_thousandth_nat_a_pixel():
    """It holds at the largest concentration, where differences of ln Γ in float32 lose 0.005 nats."""
    torch.manual_seed(0)
    likelihood = L.Beta(torch.nn.Identity())
    maps = torch.stack([2 * torch.randn(1, 28, 28), torch.full((1, 28, 28), 40.0)], 1).reshape(2, 28, 28)
    exact = likelihood(maps.double())
    x = exact.sample().float().clamp(likelihood.margin, 1 - likelihood.margin)
    gap = likelihood(maps).base_dist.log_prob(x).double() - exact.base_dist.log_prob(x.double())
    assert gap.abs().max() < 5e-5 and gap.abs().mean() < 1e-5


def test_stirlings_remainder_is_that_of_the_log_gamma_function():
    a = torch.logspace(-10, 6, 65, dtype=torch.float64)
    stirling = (a - 0.5) * a.log() - a + 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(stirling_remainder(a), a.lgamma() - stirling, rtol=1e-9, atol=2e-9)
    assert stirling_remainder(torch.tensor(1e6).double()).item() == pytest.approx(1 / 12e6, rel=1e-12)


@pytest.mark.parametrize("a", [9.5, 10.0, 10.5])
def test_stirlings_remainder_has_its_derivative_where_the_formulas_meet(a):
    a = torch.tensor(a, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(stirling_remainder(a), a)
    assert slope.item() == pytest.approx((a.digamma() - a.log() + 0.5 / a).item(), rel=1e-9)


def test_polynomial_is_that_of_numpy():
    x = torch.linspace(-2, 2, 7, dtype=torch.float64)
    assert np.allclose(polynomial([3.0, -1.0, 0.5], x), np.polynomial.Polynomial([3.0, -1.0, 0.5])(x.numpy()))
