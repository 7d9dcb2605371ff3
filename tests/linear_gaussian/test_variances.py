"""Variances of gradient estimators in closed form against those of draws, and against a case by hand."""

import pyro
import pytest
import torch
from programs import as_full
from torch.distributions import MultivariateNormal, Normal, kl_divergence
from torch.func import functional_call, grad, vmap

from pyro_vae.linear_gaussian import (
    LinearGaussian,
    mean_field_elbo_variance,
    mean_field_guide,
    path_variance,
    trace_elbo_variance,
)

P, D = 5, 2


def per_draw_gradients(program, x, bound, draws=100_000):
    """Return the gradients of ``bound(program, x, noise)`` by parameter name, one per draw: (draws, *shape)."""

    class Bound(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.program = program

        def forward(self, noise):
            return bound(self.program, x, noise)

    module = Bound()
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    noise = torch.randn(draws, len(x), D, dtype=torch.float64)
    gradients = vmap(grad(lambda values, e: functional_call(module, values, (e,))), in_dims=(None, 0))(
        parameters, noise
    )
    return {name.removeprefix("program."): values for name, values in gradients.items()}


def draw(q, noise):
    if isinstance(q, MultivariateNormal):
        return q.loc + noise @ q.scale_tril[0].T
    return q.mean + q.stddev * noise


def log_joint(program, x, z):
    log_likelihood = Normal(z @ program.weight.T + program.bias, program.log_scale.exp(), False).log_prob(x).sum()
    return log_likelihood, Normal(0.0, 1.0, False).log_prob(z).sum()


def log_normal(q, z):
    if isinstance(q, MultivariateNormal):
        whitened = torch.linalg.solve_triangular(q.scale_tril[0], (z - q.loc).T, upper=False)
        return -0.5 * whitened.square().sum() - len(z) * q.scale_tril[0].diagonal().log().sum()
    return Normal(q.mean, q.stddev, False).log_prob(z).sum()


def total(program, x, noise):
    """Return L^A: every term at one draw, with its total derivative."""
    q = program.posterior(x)
    z = draw(q, noise)
    return sum(log_joint(program, x, z)) - log_normal(q, z)


def analytic(program, x, noise):
    """Return L^B: the KL in closed form."""
    q = program.posterior(x)
    kl = kl_divergence(
        as_full(q), MultivariateNormal(torch.zeros(D).double(), torch.eye(D).double(), None, None, False)
    )
    return log_joint(program, x, draw(q, noise))[0] - kl.sum()


def stopped(program, x, noise):
    """Return the sticking-the-landing bound: the score of q is left out."""
    q = program.posterior(x)
    frozen = {name: value.detach() for name, value in program.posterior.named_parameters()}
    z = draw(q, noise)
    return sum(log_joint(program, x, z)) - log_normal(functional_call(program.posterior, frozen, (x,)), z)


@pytest.fixture(params=["full", "diagonal"])
def exact(request, program):
    """Return a program with an exact guide, of full covariance or, where WᵀW is diagonal, of a diagonal one."""
    if request.param == "full":
        return program
    weight = torch.linalg.qr(program.weight.detach())[0] * torch.tensor([2.0, 0.8], dtype=torch.float64)
    program = LinearGaussian(weight, program.bias, 0.7)
    program.posterior = mean_field_guide(program)
    return program


@pytest.mark.parametrize(
    ("bound", "closed_form"),
    [(total, trace_elbo_variance), (analytic, mean_field_elbo_variance), (stopped, path_variance)],
)
def test_gradient_variances_are_those_of_draws(exact, x, bound, closed_form):
    torch.manual_seed(2)
    with pyro.validation_enabled(False):
        gradients = per_draw_gradients(exact, x, bound)
    expected = closed_form(exact, x)
    assert set(expected) == set(gradients) == {name for name, _ in exact.named_parameters()}
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient.var(0), expected[name], rtol=0.05, atol=1e-20)


@pytest.mark.parametrize("closed_form", [trace_elbo_variance, mean_field_elbo_variance, path_variance])
def test_particles_divide_every_variance(program, x, closed_form):
    for name, variance in closed_form(program, x, particles=4).items():
        torch.testing.assert_close(4 * variance, closed_form(program, x)[name])


def test_one_pixel_one_dimension_by_hand():
    """p(z) = N(0, 1), p(x | z) = N(z, 1): S = 1/2, so that 1/S = 2 for L^A and S for L^B."""
    program = LinearGaussian(torch.ones(1, 1, dtype=torch.float64))
    x = torch.zeros(1, 1, dtype=torch.float64)
    assert trace_elbo_variance(program, x)["posterior.loc_bias"].item() == pytest.approx(2.0)
    assert mean_field_elbo_variance(program, x)["posterior.loc_bias"].item() == pytest.approx(0.5)


def test_a_guide_that_is_not_exact_is_refused(program, x):
    program.posterior = mean_field_guide(program)
    with pytest.raises(ValueError, match="it is not the exact one"):
        trace_elbo_variance(program, x)
