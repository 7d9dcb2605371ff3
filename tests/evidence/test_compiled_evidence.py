"""Importance weights and annealing by compiled programs: those of the eager ones, for every structure."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae.compiling import export as compiling
from pyro_vae.compiling.export import Untraceable
from pyro_vae.evidence.annealing import AnnealingPath
from pyro_vae.evidence.estimates import annealed_evidence, bidirectional, log_evidence
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
    yield two_layers, lambda *args: two_layers(*args, guide=True), (torch.randn(7, 3), torch.arange(7))


@pytest.mark.parametrize("model, guide, x", list(programs()), ids=["conv", "two layers"])
def test_compiled_is_eager(model, guide, x):
    # Batches of three images and of one, in slices of four particles, the last of two.
    eager, compiled = (
        log_evidence(model, guide, x, 30, chunk=12, batch_size=3, compiled=compiled, seed=0)
        for compiled in (False, True)
    )
    torch.testing.assert_close(compiled.log_px, eager.log_px, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(compiled.ess, eager.ess, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "model, guide, x, from_guide",
    [(*program, i == 0) for i, program in enumerate(programs())],
    ids=["conv, from the guide", "two layers, from the prior"],
)
def test_compiled_densities_and_gradients_are_the_eager_ones(model, guide, x, from_guide):
    args = x if isinstance(x, tuple) else (x,)
    graphs = compiling.Graphs(True, 0, "cpu")
    with torch.no_grad():
        for batch in (args, tuple(arg.flip(0) for arg in args)):  # one graph, other arguments
            eager, compiled = (
                AnnealingPath(model, guide if from_guide else None, batch, graphs=of) for of in (None, graphs)
            )
            z = eager.draw(4)
            for one, other in zip(eager(z), compiled(z)):
                torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-5)
    assert len(graphs._graphs) == 1


def test_compiled_annealing_is_eager():
    program = LinearGaussian(torch.randn(5, 2).double())
    settings = {"num_temperatures": 20, "chains": 3, "leapfrog": 3, "seed": 0}
    for evaluate, values in ((annealed_evidence, ("log_px", "acceptance")), (bidirectional, ("lower", "upper"))):
        one, other = (
            evaluate(program.model, None, torch.zeros(4, 5).double(), compiled=compiled, **settings)
            for compiled in (False, True)
        )
        for value in values:
            torch.testing.assert_close(getattr(other, value), getattr(one, value), rtol=1e-6, atol=1e-6)


def shared_rate(x, *, offset):
    """A positive latent that all rows share, and one of each row on a simplex."""
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("images", len(x)):
        share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
        pyro.sample("x", dist.Poisson(rate.unsqueeze(-1) * share + offset.unsqueeze(-1)).to_event(1), obs=x)


def shared_rate_guide(x, *, offset):
    pyro.sample("rate", dist.Gamma(1.5, 1.0))
    with pyro.plate("images", len(x)):
        pyro.sample("share", dist.Dirichlet(1 + x / 4))


@pytest.mark.parametrize("guide", [None, shared_rate_guide], ids=["prior", "guide"])
def test_constrained_and_shared_latents_and_keywords_are_traced(guide, monkeypatch):
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **_: compile(function, backend="eager", fullgraph=True))
    x, kwargs = torch.tensor([[0.0, 2.0, 1.0], [3.0, 1.0, 0.0]]), {"offset": torch.tensor([0.1, 0.5])}
    settings = {"kwargs": kwargs, "seed": 0}
    for evaluate, options in (
        (annealed_evidence, {"num_temperatures": 4, "chains": 2, "leapfrog": 2, "guide": guide}),
        (log_evidence, {"num_particles": 40, "chunk": 4, "guide": guide or shared_rate_guide}),
    ):
        one, other = (evaluate(shared_rate, x=x, compiled=how, **options, **settings) for how in (False, True))
        assert one.joint
        torch.testing.assert_close(other.log_px, one.log_px, rtol=1e-5, atol=1e-5)


def test_a_model_is_compiled_where_that_is_earned_back(monkeypatch):
    program, made = vae(), []
    make = compiling.Graphs._made
    monkeypatch.setattr(compiling.Graphs, "_made", lambda *args: made.append(args) or make(*args))
    x = program.observe(torch.randint(256, (6, 1, 8, 8), dtype=torch.uint8))
    log_evidence(program.model, program.guide, x, 20, chunk=6, batch_size=3, seed=0)
    assert not made
    monkeypatch.setattr(compiling, "WORTH_CALLS", 20)
    log_evidence(program.model, program.guide, x, 20, chunk=6, batch_size=3, seed=0)
    assert len(made) == 1  # for both batches
    monkeypatch.setattr(compiling, "missing_compiler", lambda: "none here")
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

    monkeypatch.setattr(compiling, "WORTH_CALLS", 1)
    x = torch.randn(3)
    auto, eager = (log_evidence(model, guide, x, 30, chunk=9, compiled=how, seed=0) for how in (None, False))
    assert torch.equal(auto.log_px, eager.log_px)
    with pytest.raises(Untraceable, match="float"):
        log_evidence(model, guide, x, 30, chunk=9, compiled=True, seed=0)


def test_lowered_precision_of_the_networks_moves_the_estimate_a_little():
    program = vae()
    x = program.observe(torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8))
    full, lowered = (
        log_evidence(program.model, program.guide, x, 40, chunk=16, precision=dtype, seed=0)
        for dtype in (None, torch.bfloat16)
    )
    difference = (full.log_px - lowered.log_px).abs()
    assert 0 < difference.max() < 0.5
    assert program.likelihood.network.dtype is None


def test_many_graphs_in_one_process(monkeypatch):
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **_: compile(function, backend="eager", fullgraph=True))
    for seed in range(10):  # torch allows eight of one code object
        program = LinearGaussian(torch.randn(5, 2).double())
        settings = {"num_temperatures": 3, "chains": 2, "leapfrog": 1, "seed": seed, "compiled": True}
        evidence = annealed_evidence(program.model, None, torch.zeros(3, 5).double(), **settings)
        assert evidence.log_px.isfinite().all()


def test_a_compiler_that_fails_is_said_and_only_slower(monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise RuntimeError("g++ ran out of memory")

    monkeypatch.setattr(torch, "compile", broken)
    graphs = compiling.Graphs(None, compiling.WORTH_CALLS, "cpu")
    assert graphs.get(lambda: torch.sin, (torch.zeros(2),)) is None
    assert "not compiled, which is only slower: g++ ran out of memory" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="out of memory"):
        compiling.Graphs(True, 0, "cpu").get(lambda: torch.sin, (torch.zeros(2),))
