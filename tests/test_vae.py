"""The program under SVI and under a torch optimiser, once and many times in a process, forward and with particles."""

import copy
import gc
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from monte_carlo import assert_estimate_is, assert_mean_is
from programs import SHAPE, NormalizedDecoder, conv_vae, with_rate
from pyro import poutine
from pyro.contrib.autoname import scope
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.distributions import kl_divergence

from pyro_vae import guides, likelihoods, log_evidence, networks, priors
from pyro_vae.data import Split
from pyro_vae.tracing.traces import log_weights, paired_traces
from pyro_vae.vae import VAE

PIXELS = torch.randint(256, (6, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


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


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [Trace_ELBO, TraceMeanField_ELBO])
def test_svi_and_torch_give_the_same_parameters_for_the_first_and_the_tenth_vae(estimator):
    with pyro.validation_enabled(False):
        reference = conv_vae()
        losses = torch_steps(reference, 20, estimator())
        for repeat in range(10):
            vae = conv_vae()
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
    vae = conv_vae()
    svi_steps(vae, 1, Trace_ELBO())
    clone, before = copy.deepcopy(vae), copy.deepcopy(vae.state_dict())
    svi_steps(clone, 2, Trace_ELBO())
    assert all(torch.equal(value, before[name]) for name, value in vae.named_parameters())
    assert not any(torch.equal(value, before[name]) for name, value in clone.named_parameters())


def test_two_programs_in_one_both_train():
    first, second = conv_vae(seed=1), conv_vae(seed=2)
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


@pytest.mark.slow
def test_nothing_is_kept_alive():
    vae = conv_vae()
    svi_steps(vae, 1, Trace_ELBO())
    gone = [weakref.ref(vae), *map(weakref.ref, vae.parameters())]
    del vae
    gc.collect()
    assert all(reference() is None for reference in gone)


def test_frozen_parameters_are_left_alone_by_svi():
    vae = conv_vae()
    vae.posterior.requires_grad_(False)
    before = copy.deepcopy(vae.state_dict())
    svi_steps(vae, 2, Trace_ELBO())
    for name, value in vae.named_parameters():
        assert torch.equal(value, before[name]) == name.startswith("posterior"), name


def test_sites_and_shapes():
    vae = conv_vae()
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
    vae, seen = conv_vae(), []
    vae.posterior.network.register_forward_hook(lambda module, args, out: seen.append(("encoder", args[0].shape[:-3])))
    vae.likelihood.network.register_forward_hook(lambda module, args, out: seen.append(("decoder", args[0].shape[:-1])))
    elbo = Trace_ELBO(num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    elbo.differentiable_loss(vae.model, vae.guide, images(vae))
    assert seen == [("encoder", (6,)), ("decoder", (5, 6))]


@pytest.mark.parametrize("n", [0, -1, 2.5, True])
def test_a_number_of_rows_that_is_none_is_refused(n):
    with pytest.raises(ValueError, match=f"n: wanted a whole number of at least 1, got {n}"):
        conv_vae().model(n=n)


def test_forward_draws_images():
    vae = conv_vae()
    with torch.no_grad():
        for parameter in vae.likelihood.parameters():
            parameter.mul_(4)  # so that images depend on z
    torch.manual_seed(0)
    x = vae.model(n=4000)
    assert x.shape == (4000, *SHAPE) and set(x.unique().tolist()) == {0.0, 1.0}
    p = vae.likelihood(torch.randn(4000, 2)).mean.flatten(1).detach()
    first, second = x.flatten(1)[:, ::7], x.flatten(1)[:, 1::7]
    assert_mean_is(first, p[:, ::7].mean(0), error=p[:, ::7].std(0) / 4000**0.5, sees=0.1)
    both = p[:, ::7][:, : second.shape[1]] * p[:, 1::7]  # of two pixels of one image: their z is the same
    apart = p[:, ::7].mean(0)[: second.shape[1]] * p[:, 1::7].mean(0)
    assert (both.mean(0) - apart).abs().max() > 0.08
    together = first[:, : second.shape[1]] * second
    assert_mean_is(together, both.mean(0), error=both.std(0) / 4000**0.5, sees=0.08)


@pytest.mark.slow
def test_bound_in_closed_form_and_by_sampling_agree_in_mean():
    vae = with_rate(conv_vae())
    x, draws = images(vae), 400
    torch.manual_seed(0)
    with torch.no_grad():
        rate = kl_divergence(vae.posterior(x), vae.prior().expand([len(x)])).sum()
        trace, mean_field = (
            torch.tensor([elbo.loss(vae.model, vae.guide, x) for _ in range(draws)])
            for elbo in (Trace_ELBO(), TraceMeanField_ELBO())
        )
    assert_mean_is(trace, mean_field.mean(), error=mean_field.std() / draws**0.5, sees=rate / 2)


class Returns(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, *args):
        return self.value


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"prior": priors.StandardNormal}, r"prior: wanted an nn.Module, got the class StandardNormal; write Stand"),
        (
            {"prior": dist.Normal(torch.zeros(2), 1.0)},
            "prior: .* got a Normal; write a class of nn.Module whose forward",
        ),
        ({"posterior": lambda x: None}, "posterior: wanted an nn.Module, got a function"),
        (
            {"likelihood": conv_vae().posterior, "posterior": conv_vae().likelihood},
            r"wanted VAE\(prior, likelihood, posterior\), got StandardNormal, MeanField, Bernoulli; change their order",
        ),
    ],
)
def test_parts_that_cannot_be_one_are_refused_at_once(parts, message):
    vae = conv_vae()
    given = {"prior": vae.prior, "likelihood": vae.likelihood, "posterior": vae.posterior, **parts}
    with pytest.raises(ValueError, match=message):
        VAE(**given)


@pytest.mark.parametrize(
    ("slot", "value", "message"),
    [
        ("prior", torch.zeros(2), "prior: wanted a module whose call returns a distribution"),
        ("prior", dist.Normal(torch.zeros(2), 1.0), r"prior: wanted batch shape \(\) and 1 event"),
        ("prior", dist.Normal(torch.zeros(3), 1.0).to_event(1), "its z has 3 dimensions, the posterior's 2"),
        ("posterior", torch.zeros(6, 2), "posterior: wanted a module whose call returns a distribution .* got Tensor"),
        ("likelihood", torch.zeros(6, *SHAPE), "likelihood: wanted a module .* got Tensor"),
        ("posterior", dist.Normal(torch.zeros(6, 1, 2), 1.0).to_event(2), r"1 event .* event shape \(1, 2\)"),
        (
            "posterior",
            torch.distributions.Normal(torch.zeros(6, 2), 1.0),
            r"got torch.distributions.Normal; write import pyro.distributions as dist, and dist.Normal\(...\)",
        ),
        ("posterior", dist.Normal(torch.zeros(6, 2), 1.0), r"got batch shape \(6, 2\) and .*\(\); .*\.to_event\(1\)"),
        ("likelihood", dist.Normal(torch.zeros(6, *SHAPE), 1.0), r"got batch shape \(6, 1, 8, 8\) .*\.to_event\(3\)"),
        ("likelihood", dist.Normal(torch.zeros(2, *SHAPE), 1.0).to_event(3), r"got batch .*\(2,\).* networks\.applied"),
        ("prior", dist.Normal(torch.zeros(6, 2), 1.0).to_event(1), r"got batch shape \(6,\) .* without a batch"),
        ("likelihood", dist.Bernoulli(torch.full((6, 64), 0.5)).to_event(1), "likelihood: wanted batch shape"),
        ("likelihood", dist.Bernoulli(torch.full((6, 2, 8, 8), 0.5)).to_event(3), r"images are \(2, 8, 8\), x holds"),
    ],
)
def test_a_slot_that_returns_something_else_is_named(slot, value, message):
    vae = conv_vae()
    x = images(vae)
    setattr(vae, slot, Returns(value))
    with pytest.raises(ValueError, match=message):
        Trace_ELBO().loss(vae.model, vae.guide, x)


def test_bad_x():
    vae = conv_vae()
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
    plain = conv_vae()
    vae = VAE(plain.prior, likelihood(networks.MLPDecoder(2, SHAPE, maps=maps)), plain.posterior)
    x = vae.observe(PIXELS)
    vae.model(x)
    x[0, 0, 3, 3] = value
    with pytest.raises(ValueError, match="outside the support"):
        vae.model(x)


class Reals(nn.Module):
    """A likelihood of one's own of rows, without attributes."""

    def __init__(self):
        super().__init__()
        self.network = nn.Linear(2, 4)

    def forward(self, z):
        return dist.StudentT(3.0, self.network(z), 2.0).to_event(1)


def test_x_may_be_rows_of_any_likelihood():
    torch.manual_seed(0)
    encoder = networks.MLPEncoder((4,), hidden=(8,))
    vae = VAE(priors.StandardNormal(2), Reals(), guides.MeanField(encoder, 2))
    raw = 100 * torch.randn(6, 4)
    with pyro.validation_enabled(True):
        x = vae.observe(raw.numpy())
        assert torch.equal(x, raw) and vae.model(n=3).shape == (3, 4)
        svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
        assert torch.tensor(svi.step(x)).isfinite()
        with pytest.raises(ValueError, match=r"outside the support of StudentT: .* \(1 NaN\)"):
            vae.model(torch.where(torch.arange(4) == 2, torch.nan, x[:1]))
        with pytest.raises(ValueError, match=r"its rows are \(4,\), x holds \(3,\)"):
            vae.model(x[:, :3])
        with pytest.raises(ValueError, match=r"wanted batch shape \(6,\) and 2 event"):
            vae.model(x[:, None])
    with pytest.raises(
        ValueError, match=r"batch: wanted the field images, .* or give the likelihood the attribute field"
    ):
        vae.observe(Split(table=raw))
    vae.likelihood.field = "table"
    assert torch.equal(vae.observe(Split(table=raw)), raw)


def test_pictures_of_ones_own_stay_in_the_unit_interval_unless_they_are_another_field():
    vae, x = own_vae(DENSITIES["Laplace"]), torch.full((6, *SHAPE), 2.0)
    with pyro.validation_enabled(True):
        with pytest.raises(ValueError, match=r"outside the support of Laplace within \[0, 1\].*field = 'levels'"):
            vae.model(x)
        vae.likelihood.field = "spectra"
        vae.model(x)


def test_arrays_are_named():
    vae = conv_vae()
    for function in (vae.model, vae.guide):
        with pytest.raises(ValueError, match=r"x: wanted a float tensor .* got a ndarray; .*vae\.observe"):
            function(PIXELS.numpy() / 255)
    assert torch.equal(vae.observe(PIXELS.numpy(), torch.Generator().manual_seed(1)), images(vae))


# Networks that know one batch dimension, as they are usually written


def conv_decoder():
    up = nn.ConvTranspose2d(8, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.ConvTranspose2d(4, 1, 4, 2, 1)
    return nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Unflatten(1, (8, 2, 2)), *up)


@pytest.mark.parametrize("decoder", [NormalizedDecoder, conv_decoder])
@pytest.mark.parametrize("count", [6, 64])  # 64: as many images as the features that are normalised
def test_a_network_of_ones_own_is_trained_and_measured(decoder, count):
    """Each of several particles is scored as it would be alone."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(1, 4, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16))
    vae = VAE(priors.StandardNormal(2), likelihoods.Bernoulli(decoder()), guides.MeanField(encoder, 2, features=16))
    x = vae.observe(torch.randint(256, (count, *SHAPE), dtype=torch.uint8))
    svi_steps(vae, 2, Trace_ELBO())  # the statistics of batch norm are no longer those of the start
    vae.eval()
    model_trace, guide_trace = paired_traces(vae.model, vae.guide, (x,), particles=3)
    z, together = guide_trace.nodes["z"]["value"].detach(), log_weights(model_trace, guide_trace)
    alone = [vae.likelihood(k).log_prob(x) + vae.prior().log_prob(k) - vae.posterior(x).log_prob(k) for k in z]
    torch.testing.assert_close(together, torch.stack(alone))
    assert log_evidence(vae.model, vae.guide, x, 5, seed=0).log_px.isfinite().all()


# Modules of one's own in the likelihood's slot


class Own(nn.Module):
    """A likelihood without ``observe``: any family of any images."""

    def __init__(self, family):
        super().__init__()
        self.network, self.family = networks.MLPDecoder(2, SHAPE, 1, hidden=(8,)), family

    def forward(self, z):
        return self.family(self.network(z)).to_event(3)


def own_vae(family):
    return VAE(priors.StandardNormal(2), Own(family), conv_vae().posterior)


DENSITIES = {
    "Laplace": lambda out: dist.Laplace(out.sigmoid(), 0.1),
    "Beta": lambda out: dist.Beta(out.exp(), 1.0),  # infinite at 0 or 1
    "Kumaraswamy": lambda out: dist.Kumaraswamy(out.exp(), 1.0),
    "LogNormal": lambda out: dist.LogNormal(out, 1.0),
    "StudentT": lambda out: dist.StudentT(3.0, out, 0.1),
    "relaxed Bernoulli": lambda out: dist.RelaxedBernoulli(torch.tensor(0.5), logits=out),
}


@pytest.mark.parametrize("name", DENSITIES)
def test_a_density_of_ones_own_observes_dequantised_pixels(name):
    vae = own_vae(DENSITIES[name])
    pixels = torch.arange(256, dtype=torch.uint8).repeat(4).reshape(-1, *SHAPE)
    x = vae.observe(pixels, torch.Generator().manual_seed(1))
    expected = likelihoods.dequantize(pixels, torch.Generator().manual_seed(1))
    assert (x - expected).abs().max() <= 2.0**-17 and x.min() > 0 and x.max() < 1
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    assert torch.tensor(svi.step(x)).isfinite()
    assert log_evidence(vae.model, vae.guide, x, 5, seed=0).log_px.isfinite().all()
    assert vae.double().observe(pixels).dtype == torch.float64


class OwnPosterior(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc, self.raw = nn.Linear(64, 2), nn.Linear(64, 2)

    def forward(self, x):
        return dist.Normal(self.loc(x.flatten(-3)), self.raw(x.flatten(-3)).exp()).to_event(1)


def test_parts_of_ones_own_keep_their_precision_within_autocast():
    torch.manual_seed(0)
    vae = own_vae(DENSITIES["Laplace"])
    vae.likelihood.network = nn.Sequential(nn.Linear(2, 64), nn.Unflatten(-1, SHAPE))
    x = vae.observe(PIXELS)
    vae = VAE(priors.Vamp(OwnPosterior(), x[:3]), vae.likelihood, OwnPosterior())

    def scores():
        torch.manual_seed(1)
        return log_weights(*paired_traces(vae.model, vae.guide, (x,), particles=3))

    outside = scores()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(scores(), outside)


def test_a_bernoulli_of_ones_own_observes_black_and_white():
    vae = own_vae(lambda out: dist.Bernoulli(logits=out))
    draws = torch.stack([vae.observe(PIXELS) for _ in range(400)])
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    assert_estimate_is(draws.mean(0), PIXELS / 255, torch.tensor(0.5 / 400**0.5), sees=0.3)
    vae.likelihood = Own(DENSITIES["Laplace"])  # another module in the slot
    assert len(vae.observe(PIXELS).unique()) > 2


@pytest.mark.parametrize("family", [lambda out: dist.Poisson(out.exp()), lambda out: dist.Uniform(out.abs() + 2, 9.0)])
def test_a_likelihood_whose_pixels_are_not_known_is_asked_for_observe(family):
    with pytest.raises(
        ValueError, match=r"not known how to .* for (Poisson|Uniform); .* observe\(pixels, generator=None\)"
    ):
        own_vae(family).observe(PIXELS)


def test_looking_at_a_likelihood_of_ones_own_changes_nothing():
    vae = own_vae(DENSITIES["Laplace"])
    vae.likelihood.network = nn.Sequential(nn.Dropout(), nn.Linear(2, 64), nn.BatchNorm1d(64), nn.Unflatten(-1, SHAPE))
    before, state = copy.deepcopy(vae.state_dict()), torch.get_rng_state()
    vae.observe(PIXELS, torch.Generator().manual_seed(1))
    assert torch.equal(state, torch.get_rng_state()) and all(module.training for module in vae.modules())
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


def test_parameters_in_half_precision_are_refused():
    with pytest.raises(ValueError, match=r"got torch\.bfloat16; write vae\.float\(\)"):
        conv_vae().bfloat16().observe(PIXELS)
