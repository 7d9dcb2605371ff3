"""The program: under SVI and under a torch optimiser, once and many times in a process, forward and with particles."""

import copy
import gc
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.autoname import scope
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from pyro_vae import guides, likelihoods, networks, priors
from pyro_vae.vae import VAE

SHAPE = (1, 8, 8)
PIXELS = torch.randint(256, (6, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def small_vae(latent=2, seed=0):
    torch.manual_seed(seed)
    return VAE(
        priors.StandardNormal(latent),
        likelihoods.Bernoulli(networks.ConvDecoder(latent, SHAPE, maps=1, channels=(4, 4))),
        guides.MeanField(networks.ConvEncoder(SHAPE, channels=(4, 4)), latent),
    )


def images(vae):
    return vae.observe(PIXELS, torch.Generator().manual_seed(1))


def svi_steps(vae, steps, estimator):
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), estimator)
    torch.manual_seed(7)
    return [svi.step(images(vae)) for _ in range(steps)]


def torch_steps(vae, steps, estimator):
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3)
    loss_of, losses = estimator(vae.model, vae.guide), []
    torch.manual_seed(7)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(images(vae))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("estimator", [Trace_ELBO, TraceMeanField_ELBO])
def test_svi_and_torch_give_the_same_parameters_for_the_first_and_the_tenth_vae(estimator):
    with pyro.validation_enabled(False):
        reference = small_vae()
        losses = torch_steps(reference, 20, estimator())
        for repeat in range(10):
            vae = small_vae()
            start = copy.deepcopy(vae.state_dict())
            if repeat in (0, 9):
                assert svi_steps(vae, 20, estimator()) == pytest.approx(losses, rel=1e-6)
            else:
                svi_steps(vae, 1, estimator())
            for name, value in vae.named_parameters():
                assert not torch.equal(value, start[name]), (repeat, name)
        for (name, mine), theirs in zip(vae.named_parameters(), reference.parameters()):
            assert torch.allclose(mine, theirs, atol=1e-7), name
    assert len(pyro.get_param_store()) == 0


def test_a_copy_trains_itself_and_leaves_the_original_alone():
    vae = small_vae()
    svi_steps(vae, 1, Trace_ELBO())
    clone, before = copy.deepcopy(vae), copy.deepcopy(vae.state_dict())
    svi_steps(clone, 2, Trace_ELBO())
    assert all(torch.equal(value, before[name]) for name, value in vae.named_parameters())
    assert not any(torch.equal(value, before[name]) for name, value in clone.named_parameters())


def test_two_programs_in_one_both_train():
    first, second = small_vae(seed=1), small_vae(seed=2)
    scoped = {name: scope(prefix=name) for name in ("first", "second")}

    def run(kind, x):
        for name, vae in (("first", first), ("second", second)):
            with scoped[name]:
                getattr(vae, kind)(x)

    before = copy.deepcopy([first.state_dict(), second.state_dict()])
    svi = SVI(lambda x: run("model", x), lambda x: run("guide", x), pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    svi.step(images(first))
    for vae, start in zip((first, second), before):
        assert not any(torch.equal(value, start[name]) for name, value in vae.named_parameters())


def test_nothing_is_kept_alive():
    vae = small_vae()
    svi_steps(vae, 1, Trace_ELBO())
    gone = [weakref.ref(vae), *map(weakref.ref, vae.parameters())]
    del vae
    gc.collect()
    assert all(reference() is None for reference in gone)


def test_frozen_parameters_are_left_alone_by_svi():
    vae = small_vae()
    vae.posterior.requires_grad_(False)
    before = copy.deepcopy(vae.state_dict())
    svi_steps(vae, 2, Trace_ELBO())
    for name, value in vae.named_parameters():
        assert torch.equal(value, before[name]) == name.startswith("posterior"), name


def test_sites_and_shapes():
    vae = small_vae()
    x = images(vae)
    guide_trace = poutine.trace(vae.guide).get_trace(x)
    model_trace = poutine.trace(poutine.replay(vae.model, guide_trace)).get_trace(x)
    assert model_trace.nodes["z"]["value"].shape == (6, 2)
    assert model_trace.nodes["x"]["is_observed"] and not model_trace.nodes["z"]["is_observed"]
    assert model_trace.nodes["images"]["value"].shape == (6,)
    assert [(frame.name, frame.dim) for frame in model_trace.nodes["x"]["cond_indep_stack"]] == [("images", -1)]
    model_trace.compute_log_prob()
    assert model_trace.nodes["z"]["log_prob"].shape == model_trace.nodes["x"]["log_prob"].shape == (6,)


def test_particles_run_the_encoder_once_on_the_batch_and_the_decoder_on_all():
    vae, seen = small_vae(), []
    vae.posterior.network.register_forward_hook(lambda module, args, out: seen.append(("encoder", args[0].shape[:-3])))
    vae.likelihood.network.register_forward_hook(lambda module, args, out: seen.append(("decoder", args[0].shape[:-1])))
    elbo = Trace_ELBO(num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    elbo.differentiable_loss(vae.model, vae.guide, images(vae))
    assert seen == [("encoder", (6,)), ("decoder", (5, 6))]


def test_forward_draws_images():
    vae = small_vae()
    torch.manual_seed(0)
    x = vae.model(n=2000)
    assert x.shape == (2000, *SHAPE) and set(x.unique().tolist()) == {0.0, 1.0}
    z = torch.randn(2000, 2)
    assert x.mean().item() == pytest.approx(vae.likelihood(z).mean.mean().item(), abs=0.01)


def test_bound_in_closed_form_and_by_sampling_agree_in_mean():
    vae = small_vae()
    x, draws = images(vae), 400
    torch.manual_seed(0)
    with torch.no_grad():
        trace, mean_field = (
            torch.tensor([elbo.loss(vae.model, vae.guide, x) for _ in range(draws)])
            for elbo in (Trace_ELBO(), TraceMeanField_ELBO())
        )
    error = ((trace.var() + mean_field.var()) / draws).sqrt()
    assert (trace.mean() - mean_field.mean()).abs() < 4 * error


class Returns(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, *args):
        return self.value


@pytest.mark.parametrize(
    ("slot", "value", "message"),
    [
        ("prior", torch.zeros(2), "prior: wanted a module whose call returns a distribution"),
        ("prior", dist.Normal(torch.zeros(2), 1.0), r"prior: wanted batch shape \(\) and 1 event"),
        ("prior", dist.Normal(torch.zeros(3), 1.0).to_event(1), "its z has 3 dimensions, the posterior's 2"),
        ("posterior", torch.zeros(6, 2), "posterior: wanted a module whose call returns a distribution .* got Tensor"),
        ("likelihood", torch.zeros(6, *SHAPE), "likelihood: wanted a module .* got Tensor"),
        ("posterior", dist.Normal(torch.zeros(6, 1, 2), 1.0).to_event(2), r"1 event .* event shape \(1, 2\)"),
        ("posterior", torch.distributions.Normal(torch.zeros(6, 2), 1.0), "posterior: wanted a module"),
        ("posterior", dist.Normal(torch.zeros(6, 2), 1.0), r"got batch shape \(6, 2\) and event shape \(\)"),
        ("likelihood", dist.Bernoulli(torch.full((6, 64), 0.5)).to_event(1), "likelihood: wanted batch shape"),
        ("likelihood", dist.Bernoulli(torch.full((6, 2, 8, 8), 0.5)).to_event(3), r"images are \(2, 8, 8\), x holds"),
    ],
)
def test_a_slot_that_returns_something_else_is_named(slot, value, message):
    vae = small_vae()
    x = images(vae)
    setattr(vae, slot, Returns(value))
    with pytest.raises(ValueError, match=message):
        Trace_ELBO().loss(vae.model, vae.guide, x)


def test_bad_x():
    vae = small_vae()
    for x in (PIXELS, images(vae)[0], images(vae)[:0]):
        with pytest.raises(ValueError, match=r"vae\.observe"):
            vae.guide(x)
    for x in (images(vae) * 2, images(vae) * torch.nan, images(vae) + 0.25):
        with pytest.raises(ValueError, match="outside the support of Bernoulli"):
            vae.model(x)
    normal = VAE(vae.prior, likelihoods.Normal(networks.MLPDecoder(2, SHAPE, maps=2)), vae.posterior)
    with pytest.raises(ValueError, match="from 0 to 255"):
        normal.model(torch.linspace(0, 255, 64).reshape(1, *SHAPE))


@pytest.mark.parametrize(
    ("likelihood", "maps", "value"),
    [
        (likelihoods.Bernoulli, 1, 0.5),
        (likelihoods.ContinuousBernoulli, 1, 1.5),
        (likelihoods.Normal, 2, -0.5),
        (likelihoods.Beta, 2, 0.0),
        (likelihoods.Beta, 2, 1.0),
        (likelihoods.Categorical, 16, 0.5),
        (likelihoods.DiscretizedLogistic, 2, 0.001),
    ],
)
def test_x_outside_the_support(likelihood, maps, value):
    plain = small_vae()
    vae = VAE(plain.prior, likelihood(networks.MLPDecoder(2, SHAPE, maps=maps)), plain.posterior)
    x = vae.observe(PIXELS)
    vae.model(x)
    x[0, 0, 3, 3] = value
    with pytest.raises(ValueError, match="outside the support"):
        vae.model(x)
