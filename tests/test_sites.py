"""Param sites of modules, as Pyro's own tools see them."""

import copy
import gc
from weakref import WeakKeyDictionary

import pyro
import pyro.distributions as dist
import pytest
import torch
from monte_carlo import assert_mean_is
from programs import SHAPE
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, JitTrace_ELBO, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.inspect import generate_graph_specification, get_dependencies, get_model_relations
from torch import nn

from pyro_vae import guides, likelihoods, networks, priors
from pyro_vae.handlers import frozen
from pyro_vae.linear_gaussian import LinearGaussian
from pyro_vae.sites import ParameterStoreWarning, parameter_sites
from pyro_vae.vae import VAE

NETWORKS = {
    "conv": (networks.ConvEncoder(SHAPE, (4, 4)), networks.ConvDecoder(2, SHAPE, 1, (4, 4))),
    "mlp": (networks.MLPEncoder(SHAPE, (4,)), networks.MLPDecoder(2, SHAPE, 1, (4,))),
    "own": (
        nn.Sequential(nn.Conv2d(1, 2, 4, 4), nn.Flatten()),
        nn.Sequential(nn.Linear(2, 64), nn.Unflatten(1, SHAPE)),
    ),
}


def test_what_is_no_module_is_refused_and_leaves_later_programs_as_they_are():
    """A class registered in the place of a module would fail every later step of any optimiser of Pyro."""
    message = r"prior: wanted an nn.Module, got the class StandardNormal; write StandardNormal\(\.\.\.\)"
    with pytest.raises(ValueError, match=message), poutine.trace():
        parameter_sites(priors.StandardNormal, name="prior")
    vae, x = build(), torch.rand(3, *SHAPE).round()
    assert SVI(vae.model, vae.guide, pyro.optim.Adam({}), Trace_ELBO()).step(x) > 0


def build(kind="mlp", prior=priors.StandardNormal):
    torch.manual_seed(0)
    encoder, decoder = copy.deepcopy(NETWORKS[kind])
    features = 8 if kind == "own" else None
    return VAE(prior(2), likelihoods.Bernoulli(decoder), guides.MeanField(encoder, 2, features))


X = (torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0)) < 0.5).float()


def svi(vae, optimizer=None):
    return SVI(vae.model, vae.guide, optimizer or pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())


def steps(inference, count=3):
    torch.manual_seed(7)
    return [inference.step(X) for _ in range(count)]


@pytest.mark.parametrize("prior", [priors.StandardNormal, lambda latent: priors.Mixture(latent, 3), priors.Flow])
@pytest.mark.parametrize("kind", NETWORKS)
def test_relations_and_dependencies(kind, prior):
    vae = build(kind, prior)
    relations = get_model_relations(vae.model, (X,))
    assert relations["sample_sample"] == {"z": [], "x": ["z"]}
    assert relations["observed"] == ["x"] and relations["plate_sample"] == {"images": ["z", "x"]}
    assert len(relations["param_constraint"]) == len([*vae.prior.parameters(), *vae.likelihood.parameters()])
    assert get_model_relations(vae.guide, (X,))["sample_sample"] == {"z": []}
    assert get_dependencies(vae.model, (X,))["posterior_dependencies"] == {"z": {"z": set(), "x": set()}}
    drawing = generate_graph_specification(relations, render_params=True)  # what pyro.render_model draws
    assert drawing["edge_list"] == [("z", "x")]


@pytest.mark.slow
def test_predictive_draws_from_the_guide():
    vae = build()
    torch.manual_seed(0)
    for parallel in (False, True):
        predictive = Predictive(vae.model, guide=vae.guide, num_samples=400, parallel=parallel, return_sites=("z", "x"))
        draws = predictive(X)
        assert draws["z"].shape == (400, 6, 2) and draws["x"].shape == (400, 6, *SHAPE)
        q = vae.posterior(X)
        assert_mean_is(draws["z"], q.mean, sees=1.0)
    assert Predictive(vae.model, num_samples=5, return_sites=("x",))()["x"].shape == (5, 1, *SHAPE)


@pytest.mark.slow
def test_nuts_and_autoguides_find_the_exact_posterior():
    torch.manual_seed(0)
    program = LinearGaussian(torch.randn(5, 1).double())
    x = program.simulate(2)
    exact = program.exact_posterior(x)
    mcmc = MCMC(NUTS(program.model), num_samples=80, warmup_steps=40, disable_progbar=True)
    mcmc.run(x)
    z = mcmc.get_samples()["z"]
    # 6 of their errors: a false alarm in 1e-4 even if only half of the draws are independent
    assert ((z.mean(0) - exact.mean).abs() < 6 * exact.variance.sqrt() / 80**0.5).all()
    guide, elbo = AutoNormal(program.model), Trace_ELBO(10, vectorize_particles=True, max_plate_nesting=1)
    inference = SVI(program.model, guide, pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.97}), elbo)
    with frozen(program):
        for _ in range(100):
            inference.step(x)
    assert ((guide.median()["z"] - exact.mean).abs() < 0.1).all()


# Pyro's optimisers, which ask the store for the names of parameters


def names(vae):
    return {name for name, _ in vae.named_parameters()}


def test_settings_by_the_name_of_a_parameter():
    vae, seen, pairs = build(), {}, set()
    before = copy.deepcopy(vae.state_dict())

    def settings(name):
        seen[name] = {"lr": 0.0 if name.startswith("posterior.") else 1e-2}
        return seen[name]

    def clip(module, name):
        pairs.add((module, name))
        return {"clip_norm": 1.0}

    steps(svi(vae, pyro.optim.Adam(settings, clip)), 1)
    assert set(seen) == names(vae) and {".".join(pair) for pair in pairs} == names(vae)
    for name, value in vae.named_parameters():
        assert torch.equal(value, before[name]) == name.startswith("posterior."), name
    assert len(pyro.get_param_store()) == 0


def test_an_optimiser_is_saved_and_goes_on_in_another_vae(tmp_path):
    vae, fresh = build(), build()
    first = svi(vae)
    steps(first)
    first.optim.save(tmp_path / "optimiser")
    fresh.load_state_dict(vae.state_dict())
    second = svi(fresh)
    second.optim.load(tmp_path / "optimiser")
    assert len(first.optim.get_state()) == len(names(vae))
    assert steps(first) == steps(second)
    assert all(map(torch.equal, vae.parameters(), fresh.parameters()))


def test_a_shared_parameter_has_the_name_of_its_own_part():
    posterior = build().posterior
    vae = VAE(priors.Vamp(posterior, X[:3]), build().likelihood, posterior)
    inference = svi(vae)
    steps(inference, 1)
    parts = {name.split("$$$")[0] for name in inference.optim.get_state()}
    assert parts == {"prior", "likelihood", "posterior"}
    assert sum(name.startswith("prior") for name in inference.optim.get_state()) == 1


def test_a_program_of_ones_own_is_named_by_its_type():
    program = LinearGaussian(torch.ones(3, 1))
    inference = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    inference.step(program.simulate(4))
    known = set(inference.optim.get_state())
    assert {"LinearGaussian$$$weight", "LinearPosterior$$$loc_bias"} <= known and None not in known


def test_the_store_says_that_it_does_not_save_what_it_does_not_hold(tmp_path):
    vae, path = build(), tmp_path / "store"
    steps(svi(vae), 1)
    with pytest.raises(ValueError, match=r"it does not hold .*likelihood, posterior, prior.*state_dict\(\)"):
        pyro.get_param_store().save(path)
    assert not path.exists()
    pyro.param("other", torch.zeros(2))
    with pytest.warns(ParameterStoreWarning, match="param store: it does not hold"):
        pyro.get_param_store().save(path)
    pyro.clear_param_store()
    pyro.get_param_store().load(path)
    assert list(pyro.get_param_store().keys()) == ["other"]
    torch.save(vae.state_dict(), path)  # the cure
    fresh = build()
    fresh.load_state_dict(torch.load(path))
    assert all(map(torch.equal, vae.parameters(), fresh.parameters()))


@pytest.mark.slow
def test_without_a_module_that_is_alive_the_store_is_saved_as_ever(tmp_path, monkeypatch):
    monkeypatch.setattr("pyro_vae.sites._NAMES", WeakKeyDictionary())  # other tests' modules may be alive
    steps(svi(build()), 1)
    gc.collect()
    pyro.param("other", torch.ones(2))
    pyro.get_param_store().save(tmp_path / "store")
    assert pyro.get_param_store().param_name(pyro.param("other").unconstrained()) == "other"


def test_a_handler_that_replaces_parameters_is_refused():
    vae = build()
    lifted = poutine.lift(vae.model, prior=dist.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match="its module computes with its own"):
        poutine.trace(lifted).get_trace(X)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")  # of torch.jit
def test_what_looks_for_parameters_in_the_store_is_told_where_they_are():
    vae = build()
    with pytest.raises(KeyError, match=r"not in the store.*compiling\.compiled\(Trace_ELBO\(\)"):
        SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), JitTrace_ELBO()).step(X)
    with pytest.raises(KeyError, match=r"^'another'$"):
        pyro.get_param_store()["another"]


def test_sites_without_submodules():
    module = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1))
    module.own = nn.Parameter(torch.zeros(1))
    trace = poutine.trace(lambda: parameter_sites(module, recurse=False)).get_trace()
    assert [name.split(".")[-1] for name in trace.param_nodes] == ["own"]
