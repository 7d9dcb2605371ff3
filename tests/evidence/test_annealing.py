"""Annealing along latent variables of any continuous support, of each row or of all, against closed forms."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats
from torch.distributions import biject_to

from pyro_vae.evidence.annealing import AnnealingPath, linear, sigmoid
from pyro_vae.evidence.estimates import annealed_evidence, bidirectional

pytestmark = pytest.mark.filterwarnings("ignore:Pareto k̂")

SETTING = {"num_temperatures": 60, "leapfrog": 3, "chains": 40, "seed": 0, "compiled": False}


def program(latent, likelihood, proposal):
    """z ~ latent, x ~ likelihood(z), and a guide z ~ proposal, in one plate over rows."""

    def model(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("x", likelihood(pyro.sample("z", latent(x))), obs=x)

    def guide(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", proposal(x))

    return model, guide


def transformed(support, dims=()):
    """A proposal over a support: what biject_to makes of a normal distribution."""
    return lambda x: dist.TransformedDistribution(
        dist.Normal(torch.zeros(*dims), 0.8).expand([len(x), *dims]).to_event(len(dims)), biject_to(support)
    )


COUNTS = torch.tensor([0.0, 1.0, 4.0, 9.0])
LOW, HIGH = torch.tensor([-1.0, 0.0, 0.5]), torch.tensor([0.5, 2.0, 3.0])
DICE = torch.tensor([[3.0, 0.0, 2.0], [1.0, 1.0, 1.0]])
CONCENTRATION = torch.tensor([0.7, 1.5, 2.0])


def binomial(x):
    """A uniform success rate makes every number of successes as likely."""
    return torch.full((4,), -math.log(11.0))


def uniform(x):
    normal = torch.distributions.Normal(x, 0.4)
    return ((normal.cdf(HIGH) - normal.cdf(LOW)) / (HIGH - LOW)).log()


PROGRAMS = {
    "positive": (
        lambda x: dist.Gamma(2.0, 0.5), dist.Poisson, lambda x: dist.LogNormal(torch.log(x + 1), 0.6), COUNTS,
        lambda x: dist.GammaPoisson(2.0, 0.5).log_prob(x),
    ),
    "unit interval": (
        lambda x: dist.Beta(1.0, 1.0), lambda z: dist.Binomial(10, z), lambda x: dist.Beta(2.0, 2.0), COUNTS, binomial,
    ),
    "bounds of each row": (
        lambda x: dist.Uniform(LOW, HIGH), lambda z: dist.Normal(z, 0.4), lambda x: dist.Uniform(LOW, HIGH),
        torch.tensor([0.0, 1.9, 1.0]), uniform,
    ),
    "simplex": (
        lambda x: dist.Dirichlet(CONCENTRATION), lambda z: dist.Multinomial(5, z, validate_args=False),
        transformed(dist.constraints.simplex, (2,)), DICE,
        lambda x: dist.DirichletMultinomial(CONCENTRATION, x.sum(-1)).log_prob(x),
    ),
    "several positive in an event": (
        lambda x: dist.Gamma(torch.tensor([1.0, 3.0]), 1.0).to_event(1), lambda z: dist.Poisson(z).to_event(1),
        transformed(dist.constraints.positive, (2,)), COUNTS.reshape(2, 2),
        lambda x: dist.GammaPoisson(torch.tensor([1.0, 3.0]), 1.0).log_prob(x).sum(-1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("parts", PROGRAMS.values(), ids=PROGRAMS)
def test_constrained_latents_against_closed_forms(parts):
    latent, likelihood, proposal, x, log_px = parts
    model, guide = program(latent, likelihood, proposal)
    exact = log_px(x).double()
    for start in (None, guide):
        evidence = annealed_evidence(model, start, x, **SETTING)
        assert evidence.log_px.shape == exact.shape
        assert ((evidence.log_px - exact).abs() < 5 * evidence.standard_error + 0.01).all()
        assert evidence.standard_error.max() < 0.2 and evidence.acceptance.min() > 0.3


def test_bounds_of_simulated_data_bracket_the_evidence():
    latent, likelihood, _, x, log_px = PROGRAMS["positive"]
    model, _ = program(latent, likelihood, lambda x: dist.LogNormal(torch.zeros(len(x)), 1.0))
    bounds = bidirectional(model, None, x.repeat(50), **SETTING | {"chains": 8, "num_temperatures": 100, "chunk": 4000})
    exact = log_px(bounds.x)
    assert abs(bounds.gap.mean()) < 0.1
    for error in (bounds.lower - exact, bounds.upper - exact):
        assert abs(error.mean()) < 0.05 + 4 * error.std() / math.sqrt(200)


def test_a_positive_and_a_real_latent_by_quadrature():
    def model(x):
        with pyro.plate("rows", len(x)):
            scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    x = torch.tensor([0.3, -2.0])
    evidence = annealed_evidence(model, None, x, **SETTING)
    for i, value in enumerate(x.tolist()):
        density = lambda s: stats.lognorm.pdf(s, 0.5) * stats.norm.pdf(value, 0, math.hypot(1, s))  # noqa: B023, E731
        exact = math.log(integrate.quad(density, 0, 20)[0])
        assert abs(evidence.log_px[i] - exact) < 5 * evidence.standard_error[i] + 0.01


def shared(x):
    """One rate of all rows, and a latent of each."""
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Poisson(rate), obs=x)


def log_shared(x):
    """Γ(2 + Σx) / (Γ(2) (1 + n)^(2 + Σx) Π x!)"""
    total, n = x.double().sum(), len(x)
    return torch.lgamma(2 + total) - (2 + total) * math.log(1 + n) - torch.lgamma(x.double() + 1).sum()


def test_one_weight_of_all_rows_where_they_share_a_latent():
    evidence = annealed_evidence(shared, None, COUNTS, **SETTING)
    assert evidence.joint and evidence.log_px.shape == (1,)
    assert abs(evidence.log_px - log_shared(COUNTS)) < 5 * evidence.standard_error
    assert "of all images together" in str(evidence) and evidence.to_dict()["joint"]
    bounds = bidirectional(shared, None, COUNTS, **SETTING)
    exact = log_shared(bounds.x)
    assert bounds.joint and bounds.x.shape == COUNTS.shape and "of all images together" in str(bounds)
    assert bounds.lower - 0.2 < exact < bounds.upper + 0.2 and bounds.gap.abs() < 0.3


def test_densities_are_those_of_the_unconstrained_variable():
    """log f_0 of u = log z is log p(z) + u, and Δ is the likelihood; gradients by autograd."""
    latent, likelihood, proposal, x, _ = PROGRAMS["positive"]
    model, guide = program(latent, likelihood, proposal)
    for start, first in ((None, latent(x)), (guide, proposal(x))):
        path = AnnealingPath(model, start, (x,))
        point = path(path.draw(5))
        u = point.z[..., 0].clone().requires_grad_()
        joint = latent(x).log_prob(u.exp()) + likelihood(u.exp()).log_prob(x) + u
        f_0 = first.log_prob(u.exp()) + u
        torch.testing.assert_close(point.log_density(0.3), (0.7 * f_0 + 0.3 * joint).detach())
        gradient = torch.autograd.grad((0.7 * f_0 + 0.3 * joint).sum(), u)[0]
        torch.testing.assert_close(point.gradient(0.3)[..., 0], gradient)


def test_bounds_that_depend_on_another_latent_are_refused():
    def model(x):
        with pyro.plate("rows", len(x)):
            high = pyro.sample("high", dist.LogNormal(0.0, 1.0))
            z = pyro.sample("z", dist.Uniform(0.0, high))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"site 'z' has the support .* depend on another latent site"):
        annealed_evidence(model, None, COUNTS, **SETTING)


@pytest.mark.parametrize("infer", [{}, {"enumerate": "parallel"}])
def test_discrete_latents_are_refused(infer):
    def model(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3), infer=infer)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    words = r"'z' has the support Boolean\(\)" + (" and is to be enumerated" if infer else "")
    with pytest.raises(ValueError, match=words + ", but Hamiltonian .* sum a discrete variable out"):
        annealed_evidence(model, None, COUNTS, **SETTING)


def test_no_latent_at_all():
    def model(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    with pytest.raises(ValueError, match="no latent site"):
        annealed_evidence(model, None, COUNTS, **SETTING)


def test_schedules_run_from_zero_to_one():
    for schedule in (linear, sigmoid):
        betas = schedule(7)
        assert betas.dtype == torch.float64 and (betas[0], betas[-1]) == (0, 1) and (betas.diff() > 0).all()
    torch.testing.assert_close(sigmoid(6), 1 - sigmoid(6).flip(0))
    t = 2 * linear(6) - 1
    torch.testing.assert_close(sigmoid(6, slope=3.0), ((3 * t).sigmoid() - (-3 * t.new_ones(())).sigmoid()) / (
        (3 * t.new_ones(())).sigmoid() - (-3 * t.new_ones(())).sigmoid()))  # fmt: skip


TWO_PARTS = [dist.Normal(torch.tensor([-2.0, 1.0]), 0.5), dist.Gamma(torch.tensor([2.0, 9.0]), 2.0)]


@pytest.mark.parametrize("part", TWO_PARTS)
def test_a_mixture_has_the_support_of_its_parts(part):
    prior = dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.3, 0.7])), part)
    model, _ = program(lambda x: prior, lambda z: dist.Normal(z, 1.0), None)
    x = torch.tensor([-1.0, 0.5, 3.0])
    z = torch.linspace(-10, 20, 30_001)[1:]
    z = z[prior.support.check(z)].unsqueeze(-1)
    exact = torch.trapezoid((prior.log_prob(z) + dist.Normal(z, 1.0).log_prob(x)).exp(), z, dim=0).log()
    evidence = annealed_evidence(model, None, x, **SETTING)
    assert ((evidence.log_px - exact).abs() < 4 * evidence.standard_error + 1e-3).all()
