"""Closed forms of the program against SciPy, scikit-learn, joint conditioning, Bayes' rule and sampling."""

import numpy as np
import pyro
import pytest
import torch
from monte_carlo import assert_mean_is
from programs import as_full
from pyro.infer import SVI, TraceMeanField_ELBO
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA
from torch.distributions import kl_divergence

from pyro_vae.linear_gaussian import (
    LinearGaussian,
    LinearPosterior,
    exact_guide,
    maximum_likelihood,
    mean_field_guide,
    trace_elbo_variance,
)

B, P, D = 3, 5, 2


def covariance(program):
    weight = program.weight.detach()
    return weight @ weight.T + program.log_scale.detach().exp() ** 2 * torch.eye(P, dtype=torch.float64)


def test_evidence_is_that_of_scipy(program, x):
    expected = multivariate_normal(program.bias.detach().numpy(), covariance(program).numpy()).logpdf(x.numpy())
    np.testing.assert_allclose(program.log_px(x).detach().numpy(), expected, rtol=1e-12)


def test_posterior_is_the_joint_conditioned_on_x(program, x):
    gain = torch.linalg.solve(covariance(program), program.weight.detach()).T  # Wᵀ (W Wᵀ + s² I)⁻¹
    posterior = program.exact_posterior(x)
    torch.testing.assert_close(posterior.mean, (x - program.bias) @ gain.T)
    expected = torch.eye(D, dtype=torch.float64) - gain @ program.weight
    torch.testing.assert_close(posterior.covariance_matrix, expected.expand(B, D, D))


@pytest.mark.parametrize("full", [False, True])
def test_elbo_is_the_evidence_less_the_kl_to_the_posterior(program, x, full):
    tril = torch.randn(D, D, dtype=torch.float64).tril(-1) + 0.5 * torch.eye(D, dtype=torch.float64)
    scale = {"scale_tril": tril} if full else {"log_scale": torch.randn(D, dtype=torch.float64)}
    program.posterior = LinearPosterior(torch.randn(D, P).double(), torch.randn(D).double(), **scale)
    expected = program.log_px(x) - kl_divergence(as_full(program.posterior(x)), program.exact_posterior(x))
    torch.testing.assert_close(program.elbo(x), expected, rtol=1e-11, atol=0)
    assert (program.elbo(x) < program.log_px(x)).all()


def test_where_the_guide_is_exact_the_elbo_has_the_gradient_of_the_evidence(program, x):
    parameters = [program.weight, program.bias, program.log_scale]
    torch.testing.assert_close(program.elbo(x), program.log_px(x), rtol=1e-12, atol=0)
    of_elbo = torch.autograd.grad(program.elbo(x).sum(), [*parameters, *program.posterior.parameters()])
    of_evidence = torch.autograd.grad(program.log_px(x).sum(), parameters)
    for ours, expected in zip(of_elbo, of_evidence):
        torch.testing.assert_close(ours, expected)
    for ours in of_elbo[len(parameters) :]:
        torch.testing.assert_close(ours, torch.zeros_like(ours), atol=1e-11, rtol=0)


def test_no_factorised_guide_is_better_than_the_mean_field_guide(program, x):
    program.posterior = mean_field_guide(program)
    gradients = torch.autograd.grad(program.elbo(x).sum(), list(program.posterior.parameters()))
    assert max(g.abs().max() for g in gradients) < 1e-11
    assert (program.elbo(x) < program.log_px(x)).all()


@pytest.mark.slow
def test_maximum_likelihood_is_a_stationary_point_and_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(200, P)) @ rng.normal(size=(P, P)) + rng.normal(size=P)
    x = torch.from_numpy(images)
    program = maximum_likelihood(x, D)
    for gradient in torch.autograd.grad(program.log_px(x).sum(), [program.weight, program.bias, program.log_scale]):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-9, rtol=0)
    pca = PCA(D).fit(images)  # which divides by n − 1
    variance = (2 * program.log_scale).exp().item() * 200 / 199
    assert variance == pytest.approx(pca.noise_variance_, rel=1e-10)
    learned = covariance(program).numpy() * 200 / 199
    np.testing.assert_allclose(learned, pca.get_covariance(), rtol=1e-9, atol=1e-10)
    assert torch.allclose(mean_field_guide(program)(x).variance, exact_guide(program)(x).variance)


def test_images_are_vectors_in_another_shape(program, x):
    images = LinearGaussian(program.weight, program.bias, 0.7, shape=(1, 1, P))
    torch.testing.assert_close(images.log_px(x.reshape(B, 1, 1, P)), program.log_px(x))
    torch.testing.assert_close(images.elbo(x.reshape(B, 1, 1, P)), program.elbo(x))
    assert images.simulate(4).shape == (4, 1, 1, P)
    assert images.likelihood(torch.zeros(7, 4, D).double()).batch_shape == (7, 4)
    levels = torch.full((2, 1, 1, P), 255, dtype=torch.uint8)
    torch.testing.assert_close(images.observe(levels), torch.ones(2, 1, 1, P, dtype=torch.float64))


def test_simulated_images_have_the_moments_of_the_evidence(program):
    torch.manual_seed(1)
    images = program.simulate(100_000)
    assert_mean_is(images, program.bias, sees=0.1)
    torch.testing.assert_close(torch.cov(images.T), covariance(program), atol=0.05, rtol=0.05)


def test_svi_reaches_the_maximum_likelihood():
    """Trained together from a distant start, model and guide close 98 % of the gap to the closed-form solution."""
    torch.manual_seed(3)
    x = torch.randn(100, D, dtype=torch.float64) @ torch.randn(D, P, dtype=torch.float64) + 0.5
    x = x + 0.5 * torch.randn(100, P, dtype=torch.float64)
    best = maximum_likelihood(x, D).log_px(x).mean()
    program = LinearGaussian(0.1 * torch.randn(P, D, dtype=torch.float64))
    before = program.elbo(x).mean()
    svi = SVI(program.model, program.guide, pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.99}), TraceMeanField_ELBO())
    for _ in range(500):
        svi.step(x)
    assert program.elbo(x).mean() < program.log_px(x).mean() < best
    assert best - program.elbo(x).mean() < 0.02 * (best - before)


def test_bad_input(program, x):
    with pytest.raises(ValueError, match=r"weight: wanted .* got shape \(3,\)"):
        LinearGaussian(torch.ones(3))
    with pytest.raises(ValueError, match="scale: wanted a positive number, got 0"):
        LinearGaussian(torch.ones(3, 1), scale=0)
    with pytest.raises(ValueError, match="the rows of weight"):
        LinearGaussian(torch.ones(3, 1), shape=(2, 2))
    with pytest.raises(ValueError, match="wanted"):
        program.log_px(x[:, :3])
    with pytest.raises(ValueError, match=r"latent: wanted 1 to .* got 5"):
        maximum_likelihood(x, P)
    with pytest.raises(ValueError, match="at most 1 directions"):
        maximum_likelihood(torch.arange(12.0).reshape(3, 4), 1)
    with pytest.raises(ValueError, match="log_scale"):
        LinearPosterior(torch.ones(1, 3), torch.ones(1))
    with pytest.raises(ValueError, match="wanted a Gaussian"):
        program.elbo(x, torch.distributions.Laplace(torch.zeros(3, D), torch.ones(3, D)))


def test_closed_forms_keep_their_precision_within_autocast():
    torch.manual_seed(0)
    program = LinearGaussian(torch.randn(P, D), scale=0.7)
    x, z = program.simulate(B), torch.randn(B, D)

    def numbers():
        torch.manual_seed(1)
        posterior = program.exact_posterior(x)
        yield from (program.log_px(x), program.elbo(x), program.likelihood(z).log_prob(x), posterior.log_prob(z))
        yield from (posterior.rsample(), program.posterior(x).rsample(), exact_guide(program).loc_weight)
        yield from trace_elbo_variance(program, x).values()

    outside = list(numbers())
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, numbers(), outside))
