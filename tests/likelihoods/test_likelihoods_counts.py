"""Likelihoods of counts: means by sizes, dispersions, extreme outputs, programs against quadrature, bad input."""

import math

import numpy as np
import pyro
import pytest
import scipy.stats
import torch
from monte_carlo import assert_evidence_is
from torch import nn

from pyro_vae import VAE, guides, log_evidence, networks, priors
from pyro_vae import likelihoods as L

FAMILIES = {
    "poisson": L.Poisson,
    "negative_binomial": L.NegativeBinomial,
    "negative_binomial_shared": lambda network: L.NegativeBinomial(
        network, nn.Parameter(torch.tensor([0.3, -0.5, 2.0]))
    ),
    "negative_binomial_fixed": lambda network: L.NegativeBinomial(network, 0.3),
    "zero_inflated": L.ZeroInflatedNegativeBinomial,
    "zero_inflated_shared": lambda network: L.ZeroInflatedNegativeBinomial(network, nn.Parameter(torch.zeros(3))),
}
families = pytest.mark.parametrize("name", FAMILIES)


def outputs(likelihood, rows=5, *, scale=1.0):
    """Return the output of a network for three values a row."""
    torch.manual_seed(0)
    return scale * torch.randn(rows, 3 * likelihood.parameters_per_pixel, dtype=torch.float64)


@families
def test_the_mean_is_size_times_exp_or_softmax(name):
    likelihood = FAMILIES[name](nn.Identity()).double()
    out, size = outputs(likelihood), torch.tensor([1.0, 2.0, 50.0, 1e3, 1e6], dtype=torch.float64)
    value = out.unflatten(-1, (-1, 3))
    seen = 1 - value[:, 1].sigmoid() if "zero" in name else 1.0
    torch.testing.assert_close(likelihood(out).mean, seen * value[:, 0].exp())
    torch.testing.assert_close(likelihood(out, size).mean, seen * size[:, None] * value[:, 0].exp())
    likelihood.softmax = True
    torch.testing.assert_close(likelihood(out, size).mean, seen * size[:, None] * value[:, 0].softmax(-1))
    particles = likelihood(out.expand(4, -1, -1), size)
    assert particles.batch_shape == (4, 5)
    torch.testing.assert_close(particles.mean[2], likelihood(out, size).mean)


@families
def test_scipy_agrees(name):
    likelihood = FAMILIES[name](nn.Identity()).double()
    out, x = outputs(likelihood), torch.tensor([[0.0, 1.0, 30.0]] * 5, dtype=torch.float64)
    maps = out.unflatten(-1, (-1, 3))
    mean = maps[:, 0].exp().numpy()
    if name == "poisson":
        wanted = scipy.stats.poisson.logpmf(x, mean)
    else:
        t = likelihood.log_dispersion
        t = (maps[:, -1] if t is None else t.detach() * torch.ones(5, 3)).numpy()
        wanted = scipy.stats.nbinom.logpmf(x, np.exp(t), 1 / (1 + mean / np.exp(t)))
    if "zero" in name:
        gate = maps[:, 1].sigmoid().numpy()
        wanted = np.log((1 - gate) * np.exp(wanted) + gate * (x.numpy() == 0))
    assert np.allclose(likelihood(out).log_prob(x).detach(), wanted.sum(-1), atol=1e-8)


@families
@pytest.mark.parametrize("output", [-1e4, -50.0, -1.0, 0.0, 1.0, 50.0, 1e4])
def test_finite_for_any_network_output_and_count(name, output):
    likelihood = FAMILIES[name](nn.Identity())
    x = torch.tensor([[0.0] * 3, [1.0] * 3, [9.0] * 3, [1e4] * 3, [1e9] * 3])
    out = torch.full((len(x), 3 * likelihood.parameters_per_pixel), output)
    out[:, ::2] *= -1
    out = torch.cat([out, out.flip(-1)]).requires_grad_()
    parameters = (out, *likelihood.parameters())
    for size in (None, torch.full((len(out),), 1e-6), torch.full((len(out),), 1e9)):
        log_prob = likelihood(out, size).log_prob(x.repeat(2, 1))
        gradients = torch.autograd.grad(log_prob.sum(), parameters, allow_unused=True)
        assert log_prob.isfinite().all()
        assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)


@families
def test_draws_are_counts_in_the_support(name):
    p = FAMILIES[name](nn.Identity()).double()(outputs(FAMILIES[name](nn.Identity()), scale=3.0))
    x = p.sample((50,))
    assert x.shape == (50, 5, 3) and p.support.check(x).all()
    for wrong in (x - 1e6, x + 0.5, x * math.nan, x / 0):
        assert not p.support.check(wrong).any()


def test_the_dispersion_has_its_bounds():
    t = torch.tensor([[-1e6, 0.0, 1e6]])
    p = L.NegativeBinomial(nn.Identity())(torch.cat([torch.zeros(1, 3), t], -1))
    assert p.base_dist.log_dispersion.tolist() == [[-20.0, 0.0, 40.0]]


def test_a_diverging_output_is_that_at_its_bound():
    """Means up to e^40 and gates up to 40 are exact; what is beyond has the value there."""
    log_mean = torch.tensor([[39.9, 40.0, 1e4]], dtype=torch.float64)
    mean = L.Poisson(nn.Identity())(log_mean).mean
    torch.testing.assert_close(mean, torch.tensor([[39.9, 40.0, 40.0]], dtype=torch.float64).exp())
    gates = torch.tensor([[-1e4, -40.0, -39.9]], dtype=torch.float64)
    likelihood = L.ZeroInflatedNegativeBinomial(nn.Identity(), log_dispersion=0.0).double()
    for sign in (1, -1):
        p = likelihood(torch.cat([torch.zeros(1, 3, dtype=torch.float64), sign * gates], -1)).base_dist
        found = p.log_prob(torch.ones(1, 3, dtype=torch.float64))
        wanted = torch.nn.functional.logsigmoid(-sign * gates.clamp(min=-40.0)) + math.log(0.25)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def program(likelihood=L.NegativeBinomial, maps=2, values=3, latent=1):
    torch.manual_seed(0)
    encoder = networks.MLPEncoder((values,), hidden=(16,), scaling=networks.Log1p())
    decoder = networks.MLPDecoder(latent, (values,), maps=maps * values, hidden=(8,), activation=nn.Tanh)
    with torch.no_grad():
        decoder.layers[-2].weight.mul_(10)
        decoder.layers[-2].bias.uniform_(0.0, 1.0)
    return VAE(priors.StandardNormal(latent), likelihood(decoder), guides.MeanField(encoder, latent)).double()


@pytest.mark.parametrize(
    ("likelihood", "maps"), [(L.Poisson, 1), (L.NegativeBinomial, 2), (L.ZeroInflatedNegativeBinomial, 3)]
)
def test_the_evidence_is_that_of_quadrature(likelihood, maps):
    """log p(x) = log ∫ p(z) p(x | z) dz over a line."""
    vae = program(likelihood, maps)
    torch.manual_seed(1)
    x = vae.model(n=5)
    z = torch.linspace(-9, 9, 3001, dtype=torch.float64)[:, None]
    with torch.no_grad():
        joint = vae.prior().log_prob(z)[:, None] + vae.likelihood(z[:, None]).log_prob(x)
        wanted = torch.logsumexp(joint, 0) + math.log(18 / 3000)
    evidence = log_evidence(vae.model, vae.guide, x, 3000, seed=0)
    assert_evidence_is(evidence, wanted, sees=0.5)


def test_sizes_that_are_no_sizes():
    likelihood, out = L.Poisson(nn.Identity(), softmax=True), torch.zeros(5, 3)
    for size in (None, torch.ones(3), torch.ones(5, 1), 7.0):
        with pytest.raises(
            ValueError, match=r"size: wanted one positive number for each row, a tensor of shape \(5,\)"
        ):
            likelihood(out, size)
    with pyro.validation_enabled(True):
        for wrong in (0.0, -3.0, math.nan):
            with pytest.raises(ValueError, match=rf"got {wrong} in 1 of 5 rows; leave out rows without counts"):
                likelihood(out, torch.tensor([1.0, 2.0, wrong, 4.0, 5.0]))


def test_counts_that_are_no_counts():
    vae = program()
    x = vae.observe(torch.tensor([[3, 0, 1]]))
    with pyro.validation_enabled(True):
        for wrong, message in ((-1.0, "-1 to 3"), (0.5, "1 not whole"), (math.nan, "1 NaN")):
            bad = x.clone()
            bad[0, 1] = wrong
            with pytest.raises(
                ValueError, match=rf"outside the support of NegativeBinomialCounts: .*{message}.*raw counts"
            ):
                vae.model(bad)
    for raw, message in (
        (torch.zeros(3), "in a tensor or a NumPy array of 2 dimensions"),
        (torch.zeros(2, 3, 4), "in a tensor or a NumPy array of 2 dimensions"),
        (np.array([["1"]]), "one entry for each row, got <U1"),
        (torch.zeros(2, 3) > 0, r"from 0, got torch.bool; write counts.long\(\)"),
    ):
        with pytest.raises(ValueError, match=f"counts: wanted .*numbers.*{message}"):
            vae.observe(raw)
    with pytest.raises(ValueError, match=r"wanted a network whose output is \(..., D × 2\)"):
        L.NegativeBinomial(nn.Identity())(torch.zeros(5, 3))


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32, np.uint8, np.float32, np.float64])
def test_counts_of_any_dtype_get_that_of_the_parameters(dtype):
    raw = np.array([[3, 0, 200], [1, 7, 0]]).astype(dtype)
    for vae in (program(), program().float()):
        x = vae.observe(raw)
        assert x.dtype == next(vae.parameters()).dtype
        assert x.tolist() == raw.tolist()
    assert L.Poisson(nn.Linear(2, 3)).double().observe(raw).dtype == torch.float64
