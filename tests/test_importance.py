"""Importance weights by a compiled model: those of the eager one, for every structure of a program."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae import importance
from pyro_vae.compiling import Untraceable
from pyro_vae.evidence import log_evidence
from pyro_vae.linear_gaussian import LinearGaussian

pytestmark = pytest.mark.filterwarnings("ignore:Pareto k̂")


def vae() -> pv.VAE:
    torch.manual_seed(0)
    shape = (1, 8, 8)
    decoder = pv.networks.ConvDecoder(2, shape, maps=1, channels=(8, 8))
    encoder = pv.networks.ConvEncoder(shape, channels=(8, 8))
    return pv.VAE(pv.priors.StandardNormal(2), pv.likelihoods.Bernoulli(decoder), pv.guides.MeanField(encoder, 2))


def two_layers(x, labels, guide=False):
    """Two latent sites, one in a plate of its own within the images, and an argument beside them."""
    with pyro.plate("images", x.shape[0], dim=-2):
        loc = labels[:, None].float()
        top = pyro.sample("top", dist.Normal(loc, 1.0))
        with pyro.plate("pixels", x.shape[1], dim=-1):
            low = pyro.sample("low", dist.Normal(top, 1.0))
            if not guide:
                pyro.sample("x", dist.Normal(low, 1.0), obs=x)


def programs():
    program = vae()
    yield program.model, program.guide, program.observe(torch.randint(256, (7, 1, 8, 8), dtype=torch.uint8))
    program = LinearGaussian(torch.randn(5, 2).double())
    yield program.model, lambda x: program.guide(x + 0.1), program.simulate(7)
    yield two_layers, lambda *args: two_layers(*args, guide=True), (torch.randn(7, 3), torch.arange(7))


@pytest.mark.parametrize("model, guide, x", list(programs()), ids=["conv", "linear", "two layers"])
def test_compiled_is_eager(model, guide, x):
    # Batches of three images and of one, in slices of four particles, the last of two.
    eager, compiled = (
        log_evidence(model, guide, x, 30, chunk=12, batch_size=3, compiled=compiled, seed=0)
        for compiled in (False, True)
    )
    torch.testing.assert_close(compiled.log_px, eager.log_px, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(compiled.ess, eager.ess, atol=1e-4, rtol=1e-4)


def test_a_model_is_compiled_where_that_is_earned_back(monkeypatch):
    program, made = vae(), []
    graph = importance.Weights._graph
    monkeypatch.setattr(importance.Weights, "_graph", lambda *args: made.append(args) or graph(*args))
    x = program.observe(torch.randint(256, (6, 1, 8, 8), dtype=torch.uint8))
    log_evidence(program.model, program.guide, x, 20, chunk=6, batch_size=3, seed=0)
    assert not made
    monkeypatch.setattr(importance, "WORTH_COMPILING", 20)
    log_evidence(program.model, program.guide, x, 20, chunk=6, batch_size=3, seed=0)
    assert len(made) == 1  # for both batches
    monkeypatch.setattr(importance, "missing_compiler", lambda: "none here")
    log_evidence(program.model, program.guide, x, 20, chunk=6, batch_size=3, seed=0)
    assert len(made) == 1


def test_a_model_that_cannot_be_traced_is_run_eagerly_unless_it_must_not(monkeypatch):
    def model(x):
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z if float(z.sum()) > 1e9 else 2 * z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(0.4 * x, 0.5))

    monkeypatch.setattr(importance, "WORTH_COMPILING", 1)
    x = torch.randn(3)
    auto, eager = (log_evidence(model, guide, x, 30, chunk=9, compiled=how, seed=0) for how in (None, False))
    assert torch.equal(auto.log_px, eager.log_px)
    with pytest.raises(Untraceable, match="float"):
        log_evidence(model, guide, x, 30, chunk=9, compiled=True, seed=0)


@pytest.mark.parametrize("compiled", [False, True])
def test_lowered_precision_of_the_networks_moves_the_estimate_a_little(compiled):
    program = vae()
    x = program.observe(torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8))
    full, lowered = (
        log_evidence(program.model, program.guide, x, 40, chunk=16, precision=dtype, compiled=compiled, seed=0)
        for dtype in (None, torch.bfloat16)
    )
    difference = (full.log_px - lowered.log_px).abs()
    assert 0 < difference.max() < 0.5
    assert program.likelihood.network.dtype is None
