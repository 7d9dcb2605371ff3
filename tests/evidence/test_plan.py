"""Which rows have weights of their own, and how many run at once, for programs of any structure."""

import functools
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from evidence_programs import EAGER, OneBatchDimension, X, check, exact, images, oracle, proposed, scaled
from monte_carlo import assert_evidence_is
from pyro.contrib.easyguide import EasyGuide
from pyro.infer import SVI, Trace_ELBO
from pyro.infer import autoguide as auto
from pyro.infer.autoguide import AutoNormalMessenger

from pyro_vae.compiling import Untraceable
from pyro_vae.evidence import annealed_evidence, log_evidence
from pyro_vae.evidence.plan import is_automatic

pytestmark = pytest.mark.filterwarnings("ignore::pyro_vae.evidence.UntrustedEvidence")


def shared(x):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(m, 1.0), obs=x)


def log_shared(x):
    n = len(x)
    return dist.MultivariateNormal(torch.zeros(n), torch.eye(n) + 1).log_prob(x).double().reshape(1)


@pytest.mark.slow
def test_one_weight_of_all_rows_where_they_share_a_latent():
    guide = lambda x: pyro.sample("m", dist.Normal(x.mean(), 0.5))  # noqa: E731
    for x in (X, torch.randn(300, generator=torch.Generator().manual_seed(0)) / 5):  # more than a batch
        evidence = log_evidence(shared, guide, x, 3000, seed=0)
        check(evidence, log_shared(x))
        assert evidence.joint and evidence.to_dict()["joint"] and "of all images together" in str(evidence)
    with pytest.raises(ValueError, match=r"wanted all 7 rows at once, got 3: latent sites outside their plate"):
        log_evidence(shared, guide, X, 10, batch_size=3)
    assert not log_evidence(scaled, proposed, X, 5).joint


@pytest.mark.slow
def test_shared_and_local_latents_together():
    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(m, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        m = pyro.sample("m", dist.Normal(x.mean(), 0.7))
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal((x + m) / 2, 0.75))

    wanted = dist.MultivariateNormal(torch.zeros(7), 2 * torch.eye(7) + 1).log_prob(X).double().reshape(1)
    check(log_evidence(model, guide, X, 5000, seed=0), wanted)
    settings = {"num_temperatures": 50, "leapfrog": 3, "chains": 50, "seed": 0, "engine": "eager"}
    check(annealed_evidence(model, guide, X, **settings), wanted)


@pytest.mark.parametrize(("numbers", "calls"), [(1, 1), (784, 100)])
def test_draws_of_a_latent_of_all_rows_run_together_where_rows_are_small(numbers, calls):
    """Of 500 z at once, 300 rows of one number are five, and 300 of 784 numbers as many images."""
    x, seen = torch.randn(300, numbers), []

    def model(x):
        seen.append(None)
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(m.unsqueeze(-1).expand(*m.shape, numbers), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.sample("m", dist.Normal(x.mean(), 0.05))

    found = log_evidence(model, guide, x, 100, seed=0, **EAGER)
    assert found.joint and calls <= len(seen) <= calls + 20  # some of them find out how the program is to be run
    seen.clear()
    assert log_evidence(model, guide, x, 100, seed=0, chunk=5000, **EAGER).log_px == pytest.approx(found.log_px)
    assert len(seen) < max(calls, 15)


@pytest.mark.slow
@pytest.mark.parametrize("of_all", [False, True])
def test_rows_that_a_plate_takes_at_random_have_no_weight(of_all):
    """Which rows these are nobody knows; beside a latent of all rows they have another scale."""

    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0)) if of_all else 0.0
        with pyro.plate("rows", 7, subsample_size=3) as rows:
            z = pyro.sample("z", dist.Normal(m, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    def guide(x):
        if of_all:
            pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 7, subsample_size=3):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    words = "scaled differently .* plate subsampling" if of_all else "'rows' takes 3 of 7 rows at random.* plate of len"
    for call in (lambda: log_evidence(model, guide, X, 10), lambda: annealed_evidence(model, guide, X, chains=2)):
        with pytest.raises(ValueError, match=words):
            call()


def test_a_batch_of_larger_data_has_weights():
    """Rows given as a batch of a thousand: the scale that all sites share is divided out."""

    def program(x, guide=False):
        with pyro.plate("rows", 1000, subsample_size=len(x)):
            if guide:
                pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
            else:
                pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    found = log_evidence(program, lambda x: program(x, guide=True), X, 20, batch_size=4, seed=0)
    torch.testing.assert_close(found.log_px, exact(X), atol=1e-5, rtol=0)


AUTO = ["AutoNormal", "AutoDiagonalNormal", "AutoMultivariateNormal", "AutoLowRankMultivariateNormal",
        "AutoNormalMessenger", "AutoStructured", "AutoIAFNormal"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:ConditionalAutoRegressiveNN input_dim = 1:UserWarning")
@pytest.mark.parametrize("kind", AUTO)
@pytest.mark.parametrize("model, wanted", [(shared, log_shared), (scaled, exact)], ids=["shared", "local"])
def test_trained_automatic_guides(kind, model, wanted):
    torch.manual_seed(0)
    guide = getattr(auto, kind)(model)
    elbo = Trace_ELBO(10, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), elbo)
    for _ in range(150):
        svi.step(X)
    before = {name: value.clone() for name, value in pyro.get_param_store().items()}
    found = log_evidence(model, guide, X, 500, seed=0)
    check(found, wanted(X).sum().reshape(1) if found.joint else wanted(X))
    after = pyro.get_param_store()
    assert set(before) == set(after.keys()) and all(torch.equal(after[name], value) for name, value in before.items())
    assert np.isfinite(svi.step(X))


@pytest.mark.parametrize("kind", AUTO)
def test_a_new_automatic_guide_stays_new(kind):
    """It may be trained on other rows than those that it was measured on, and on another plate than the first two."""
    torch.manual_seed(0)
    guide = getattr(auto, kind)(scaled)
    state = torch.get_rng_state()
    evidence = log_evidence(scaled, guide, X, 50, seed=0)
    assert evidence.log_px.isfinite().all() and len(pyro.get_param_store()) == 0
    assert torch.equal(torch.get_rng_state(), state)
    one, other = (log_evidence(scaled, guide, X, 50, seed=None).log_px for _ in range(2))
    assert not torch.equal(one, other)  # without a seed the caller's numbers are used, and go on
    svi = SVI(scaled, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    assert np.isfinite(svi.step(torch.zeros(12)))
    assert len(next(iter(pyro.get_param_store().values())).reshape(-1)) >= 12
    with pytest.raises(ValueError, match="wanted all 12 rows at once, got 5: Pyro's automatic guides"):
        log_evidence(scaled, guide, torch.zeros(12), 5, batch_size=5)


def test_parameters_of_each_row():
    """A guide that is not amortised runs on all rows alone; so do more rows than a batch would have."""
    x = torch.linspace(-2, 2, 300)
    loc = pyro.param("loc", x / 2)

    def guide(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc"), 0.5**0.5))

    torch.testing.assert_close(log_evidence(scaled, guide, x, 20, seed=0).log_px, exact(x), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="wanted all 300 rows at once, got 100: the program does not run on fewer"):
        log_evidence(scaled, guide, x, 20, batch_size=100)
    assert loc.shape == (300,)


@pytest.mark.slow
def test_what_a_guide_observes_is_not_drawn():
    def guide(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
            pyro.sample("label", dist.Normal(0.0, 1.0), obs=x, infer={"is_auxiliary": True})

    torch.testing.assert_close(log_evidence(scaled, guide, X, 20, seed=0).log_px, exact(X), atol=1e-5, rtol=0)
    annealed = annealed_evidence(scaled, guide, X, num_temperatures=3, seed=0)
    torch.testing.assert_close(annealed.log_px, exact(X), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_factor_in_the_guide_leaves_no_density():
    def guide(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(x / 2, 0.7))
            pyro.factor("f", -z.square(), has_rsample=True)

    for call in (lambda: log_evidence(scaled, guide, X, 20), lambda: annealed_evidence(scaled, guide, X, chains=2)):
        with pytest.raises(ValueError, match=r"the factors \['f'\] of the guide leave no density"):
            call()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["view", "norm", "index"])
def test_networks_that_take_one_batch_dimension(kind):
    torch.manual_seed(0)
    program, x = OneBatchDimension(kind), torch.randn(6, 6).double()
    weight = program.linear.weight
    covariance = torch.eye(6) / 2 + weight @ weight.T
    wanted = dist.MultivariateNormal(torch.zeros(6).double(), covariance).log_prob(x).detach()
    for batch_size in (None, 4):
        found = log_evidence(program.model, program.guide, x, 30, batch_size=batch_size, seed=0)
        torch.testing.assert_close(found.log_px, wanted)
    for start in (program.guide, None):
        settings = {"num_temperatures": 40, "leapfrog": 2, "chains": 10, "seed": 0}
        check(annealed_evidence(program.model, start, x, **settings), wanted, sees=1.5)


def test_lists_that_are_cut_are_no_constants_of_a_graph():
    call = partial(log_evidence, scaled, proposed, X, 4, kwargs={"sizes": [1.0] * 7})
    with pytest.raises(Untraceable, match=r'engine="compiled": a list or array .* 7 rows; write engine="eager"'):
        call(engine="compiled", batch_size=3)
    torch.testing.assert_close(call(engine="eager", batch_size=3).log_px, exact(X, 1.0), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_no_image_plate():
    """Rows in one event have one weight together."""

    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand(x.shape).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(x / 2, 0.8).to_event(1))

    x = torch.tensor([0.0, 1.0, -1.0])
    exact = dist.Normal(0.0, 2**0.5).log_prob(x).sum()
    for evidence in (
        log_evidence(model, guide, x, 2000, seed=0),
        annealed_evidence(model, None, x, num_temperatures=50, leapfrog=3, seed=0, **EAGER),
    ):
        assert evidence.joint and evidence.log_px.shape == (1,)
        assert_evidence_is(evidence, exact, sees=0.7)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 5])
def test_a_plate_that_is_not_over_the_images(size):
    def program(x, guide=False):
        with pyro.plate("images", size, dim=-2), pyro.plate("pixels", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(size, 3), 1.0))
            return None if guide else pyro.sample("x", dist.Normal(z, 1.0), obs=x[:size])

    guide, x = functools.partial(program, guide=True), torch.zeros(5, 3)
    if size == 5:  # the plate of the pixels is not taken for the images because it is the inner one
        assert log_evidence(program, guide, x, 10, seed=0).log_px.shape == (5,)
        return
    for call in (lambda: log_evidence(program, guide, x, 10), lambda: annealed_evidence(program, None, x)):
        with pytest.raises(ValueError, match=r"is one over the 5 images: .*'images' of 1"):
            call()


@pytest.mark.slow
def test_site_names_that_differ():
    program = oracle()
    guide = pyro.poutine.block(program.guide, hide=["z"])
    x = images(program, 2)
    for call in (lambda: log_evidence(program.model, guide, x, 5), lambda: annealed_evidence(program.model, guide, x)):
        with pytest.raises(ValueError, match="only in the model: \\['z'\\]"):
            call()


def test_guides_that_pyro_builds_from_the_model_are_automatic():
    def model(x):
        pyro.sample("z", dist.Normal(0.0, 1.0))

    class Easy(EasyGuide):
        def guide(self, x):
            """Draw nothing."""

    assert all(is_automatic(kind(model)) for kind in (auto.AutoNormal, Easy, AutoNormalMessenger))
    assert not is_automatic(None) and not is_automatic(model)
