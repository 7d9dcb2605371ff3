"""What every likelihood owes: the contract of the slot, over all of them; how outputs become parameters."""

import inspect
import math

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_vae import VAE, data, guides, networks, priors
from pyro_vae import likelihoods as L

MEMBERS = {
    "Bernoulli": L.Bernoulli,
    "ContinuousBernoulli": L.ContinuousBernoulli,
    "Normal": L.Normal,
    "Beta": L.Beta,
    "Categorical": lambda network: L.Categorical(network, bins=4),
    "DiscretizedLogistic": L.DiscretizedLogistic,
    "DiscretizedLogisticMixture": lambda network: L.DiscretizedLogisticMixture(network, components=2),
    "RealNormal": L.RealNormal,
    "Poisson": L.Poisson,
    "NegativeBinomial": L.NegativeBinomial,
    "ZeroInflatedNegativeBinomial": L.ZeroInflatedNegativeBinomial,
}
members = pytest.mark.parametrize("name", MEMBERS)


def build(name, latent=2):
    """Return a program whose x is a picture of 1 × 3 × 1 pixels or a row of three values."""
    torch.manual_seed(0)
    family = MEMBERS[name]
    blank = family(nn.Identity())
    event = (1, 3, 1) if blank.event_dim == 3 else (3,)
    maps = event[0] * blank.parameters_per_pixel
    likelihood = family(networks.MLPDecoder(latent, event, maps=maps, hidden=(8,)))
    posterior = guides.MeanField(networks.MLPEncoder(event, hidden=(8,)), latent)
    return VAE(priors.StandardNormal(latent), likelihood, posterior), event


def rows(vae, event, count=6):
    """Return raw rows of the likelihood's field."""
    torch.manual_seed(1)
    raw = torch.randint(256, (count, *event))
    return {"images": raw.to(torch.uint8), "counts": raw, "table": raw / 7.0}[vae.likelihood.field]


def test_every_likelihood_is_a_member():
    defined = {
        name
        for name, value in inspect.getmembers(L, inspect.isclass)
        if issubclass(value, L.Likelihood) and not inspect.isabstract(value)
    }
    assert set(MEMBERS) == defined


@members
def test_shapes_for_any_leading_dimensions(name):
    vae, event = build(name)
    for batch in ((), (5,), (4, 5)):
        p = vae.likelihood(torch.randn(*batch, 2))
        assert p.batch_shape == batch and p.event_shape == event
        assert p.mean.shape == p.sample().shape == (*batch, *event)
        assert p.log_prob(p.sample()).shape == batch
        assert p.expand((7, *batch)).log_prob(p.sample()).shape == (7, *batch)
    z = torch.randn(4, 5, 2)
    x = vae.likelihood(z).sample()
    torch.testing.assert_close(vae.likelihood(z).log_prob(x)[2, 3], vae.likelihood(z[2, 3]).log_prob(x[2, 3]))


@members
def test_a_finite_gradient_at_every_parameter(name):
    vae, event = build(name)
    x = vae.observe(rows(vae, event))
    with pyro.validation_enabled(True):
        loss = Trace_ELBO().differentiable_loss(vae.model, vae.guide, x)
    loss.backward()
    assert loss.isfinite()
    for parameter, value in vae.named_parameters():
        assert value.grad is not None and value.grad.isfinite().all() and value.grad.any(), parameter


@members
def test_it_sums_or_integrates_to_one(name):
    vae, _ = build(name)
    p = vae.double().likelihood(torch.randn(2, dtype=torch.float64))
    p = p.base_dist.expand(p.event_shape)
    levels = torch.arange(256, dtype=torch.float64)
    grids = {  # x, and the width of a cell
        "Bernoulli": (levels[:2], 1),
        "Categorical": ((levels[:4] + 0.5) / 4, 1),
        "DiscretizedLogistic": (levels / 255, 1),
        "DiscretizedLogisticMixture": (levels / 255, 1),
        "Normal": (torch.linspace(-60, 60, 200_001).double(), 120 / 200_000),
        "RealNormal": (torch.linspace(-60, 60, 200_001).double(), 120 / 200_000),
    }
    if name in ("ContinuousBernoulli", "Beta"):  # x = sin², as the density may be infinite at both ends
        angle = math.pi / 2 * (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
        grids[name] = (angle.sin().square(), (math.pi / 2 * (2 * angle).sin() / 20_000)[:, None, None, None])
    grid, width = grids.get(name, (torch.arange(5000, dtype=torch.float64), 1))
    mass = p.log_prob(grid.reshape(-1, *[1] * len(p.batch_shape))).exp().mul(width).sum(0)
    assert mass.flatten().tolist() == pytest.approx([1.0] * 3, abs=1e-4)


@members
def test_state_dict_round_trip_in_float64(name):
    vae, event = build(name)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    other, _ = build(name)
    other.load_state_dict(vae.state_dict())
    x = vae.double().observe(rows(vae, event), torch.Generator().manual_seed(0))
    z = torch.randn(6, 2, dtype=torch.float64)
    log_p = vae.likelihood(z).log_prob(x)
    assert x.dtype == log_p.dtype == torch.float64
    assert torch.equal(other.double().likelihood(z).log_prob(x), log_p)


@members
def test_a_batch_gives_its_field(name):
    vae, event = build(name)
    raw = rows(vae, event)
    batch = data.Split(**{vae.likelihood.field: raw, "site": torch.zeros(6)})[:4]
    x = vae.observe(batch, torch.Generator().manual_seed(0))
    assert torch.equal(x, vae.observe(raw[:4], torch.Generator().manual_seed(0)))
    assert torch.equal(x, vae.observe(raw[:4].numpy(), torch.Generator().manual_seed(0)))
    assert x.shape == (4, *event)
    with pytest.raises(ValueError, match=rf"batch: wanted the field {vae.likelihood.field}, .* got Split\(site: 6\)"):
        vae.observe(data.Split(site=torch.zeros(6)))


@members
def test_x_has_the_dimensions_of_the_likelihood(name):
    vae, event = build(name)
    shape = r"\(B, C, H, W\)" if len(event) == 3 else r"\(B, D\)"
    for function in (vae.model, vae.guide):
        with pytest.raises(ValueError, match=rf"x: wanted a float tensor of shape {shape}"):
            function(torch.zeros(2, 3, 3))
    assert vae.model(n=4).shape == (4, *event)


@pytest.mark.parametrize("network", [nn.Linear(3, 128), nn.Sequential(nn.Linear(3, 64), nn.Unflatten(1, (8, 8)))])
def test_a_decoder_without_images_is_told_its_last_layer(network):
    z = torch.zeros(5, 3)
    for batch in ((5,), (2, 5)):
        with pytest.raises(ValueError, match=r"nn\.Unflatten\(-1, \(C \* 2, H, W\)\) as its last layer"):
            L.Normal(network)(z.expand(*batch, 3))
    assert L.Normal(nn.Sequential(nn.Linear(3, 128), nn.Unflatten(-1, (2, 8, 8))))(z).event_shape == (1, 8, 8)


def test_a_decoder_of_other_rows_is_told_its_width():
    z = torch.zeros(5, 3)
    with pytest.raises(ValueError, match=r"wanted .* \(\.\.\., D × 2\), got \(5, 7\) .* maps=D \* 2"):
        L.RealNormal(nn.Linear(3, 7))(z)
    with pytest.raises(ValueError, match="one row for each z"):
        L.RealNormal(nn.Sequential(nn.Linear(3, 8), nn.Unflatten(1, (2, 4))))(z)
    assert L.RealNormal(nn.Linear(3, 8))(z).event_shape == (4,)


def test_bits_per_dim_of_a_uniform_mass():
    assert L.bits_per_dim(torch.tensor(-10 * math.log(256)), 10, 1.0).item() == pytest.approx(8)
