"""Closed forms of KL divergences against torch's, and programs that have none."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from pyro_vae.estimation.closed_form import check_analytic_kl, kl_of_dimensions
from pyro_vae.linear_gaussian import LinearGaussian, exact_guide, mean_field_guide
from pyro_vae.tracing.traces import paired_traces


@pytest.fixture
def program():
    torch.manual_seed(0)
    program = LinearGaussian(torch.randn(5, 2), scale=0.7)
    program.posterior = mean_field_guide(program)
    return program


def sites(program, x):
    model_trace, guide_trace = paired_traces(program.model, program.guide, (x,))
    return guide_trace.nodes["z"], model_trace.nodes["z"]


def test_a_factorised_site_has_a_kl_for_each_dimension(program):
    x = program.simulate(3)
    q, p = program.posterior(x).base_dist, dist.Normal(torch.zeros(3, 2), 1.0)
    found = kl_of_dimensions("z", *sites(program, x))
    torch.testing.assert_close(found, kl_divergence(q, p).sum(0))


def test_a_site_that_is_not_factorised_has_one_kl(program):
    program.posterior = exact_guide(program)
    x = program.simulate(3)
    q = program.posterior(x)
    p = dist.MultivariateNormal(torch.zeros(2), torch.eye(2)).expand((3,))
    full = {"fn": p, "scale": 1.0, "mask": None, "name": "z"}
    site, _ = sites(program, x)
    torch.testing.assert_close(kl_of_dimensions("z", site, full), kl_divergence(q, p).sum())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 2.0}, "scaled or masked"),
        ({"fn": dist.Delta(torch.zeros(3, 2)).to_event(1)}, "is a point"),
        ({"fn": dist.StudentT(3.0).expand((3, 2)).to_event(1)}, "no closed form"),
    ],
)
def test_sites_without_a_kl_that_counts(program, change, message):
    site, prior = sites(program, program.simulate(3))
    with pytest.raises(ValueError, match=message):
        kl_of_dimensions("z", {**site, **change}, prior)
    with pytest.raises(ValueError, match="no closed form"):
        kl_of_dimensions("z", site, {})


@pytest.mark.parametrize("change", [{"scale": 0.5}, {"mask": torch.tensor([True, False, True])}])
def test_a_prior_that_is_scaled_or_masked_counts_no_nats_of_images(program, change):
    site, prior = sites(program, program.simulate(3))
    for pair in (({**site, **change}, prior), (site, {**prior, **change})):
        with pytest.raises(ValueError, match="scaled or masked"):
            kl_of_dimensions("z", *pair)


def test_a_gradient_of_a_kl_needs_a_path(program):
    site, prior = sites(program, program.simulate(3))
    q = site["fn"].base_dist
    blind = {**site, "fn": dist.Normal(q.loc, q.scale).has_rsample_(False).to_event(1)}
    with pytest.raises(ValueError, match="not reparameterised"):
        kl_of_dimensions("z", blind, prior)
    with torch.no_grad():
        assert kl_of_dimensions("z", blind, prior).shape == (2,)


def test_programs_whose_every_kl_has_a_closed_form(program):
    state = torch.get_rng_state()
    check_analytic_kl(program.model, program.guide, torch.zeros(2, 5))
    assert torch.equal(state, torch.get_rng_state())


def test_a_kl_that_pyro_would_sample():
    def model(x):
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.StudentT(3.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    with pytest.raises(ValueError, match=r"site 'z': no closed form is registered for KL\(Normal.* ‖ StudentT"):
        check_analytic_kl(model, guide, torch.zeros(3))


def test_parameters_that_a_guide_makes_in_the_check_are_kept():
    def model(x):
        with pyro.plate("images", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def guide(x):
        loc = pyro.param("check_loc", torch.randn(3))
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    check_analytic_kl(model, guide, torch.zeros(3))
    made = pyro.get_param_store()["check_loc"].clone()
    guide(torch.zeros(3))
    assert torch.equal(pyro.get_param_store()["check_loc"], made)


@pytest.mark.parametrize("full", ["guide", "prior", "both"])
def test_a_pair_of_which_one_is_not_factorised_has_one_kl(program, full):
    x = program.simulate(3)
    site, prior = sites(program, x)
    pair = {"guide": site["fn"], "prior": prior["fn"]}
    for name in ("guide", "prior") if full == "both" else (full,):
        pair[name] = dist.MultivariateNormal(pair[name].mean, torch.diag_embed(pair[name].variance))
    found = kl_of_dimensions("z", {**site, "fn": pair["guide"]}, {**prior, "fn": pair["prior"]})
    torch.testing.assert_close(found, kl_of_dimensions("z", site, prior).sum())
