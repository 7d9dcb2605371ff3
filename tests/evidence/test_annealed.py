"""Annealed log p(x), and bounds from both sides, against closed forms, for latents of any continuous support."""

import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from evidence_programs import (
    COUNTS,
    EAGER,
    PROGRAMS,
    RECORDED,
    P,
    hierarchical,
    hierarchical_evidence,
    images,
    oracle,
    program,
    rough,
    shared_rate,
    shared_rate_guide,
    truth,
)
from monte_carlo import assert_estimate_is, assert_evidence_is, assert_mean_is
from programs import DIGITS, small_vae
from scipy import integrate, stats

from pyro_vae import guides
from pyro_vae.evidence import (
    StuckChains,
    UntrustedEvidence,
    annealed_evidence,
    bidirectional,
    linear,
    log_evidence,
    sigmoid,
)
from pyro_vae.linear_gaussian import LinearGaussian

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::pyro_vae.evidence.UntrustedEvidence")]

SETTING = {"num_temperatures": 60, "leapfrog": 3, "chains": 40, "seed": 0, **EAGER}


@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize("from_guide", [False, True])
def test_annealing_comes_within_a_twentieth_of_a_nat(from_guide):
    program = rough(narrower=0.5)
    x = images(program, 20)
    evidence = annealed_evidence(
        program.model, program.guide if from_guide else None, x, num_temperatures=500, leapfrog=3, seed=0, **RECORDED
    )
    error = evidence.log_px - truth(program, x)
    assert error.mean().abs() < 0.05
    assert_evidence_is(evidence, truth(program, x), sees=1.0)
    assert 0.8 < evidence.acceptance.mean() < 0.95
    assert evidence.num_particles == 16 and evidence.num_temperatures == 500


@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize("from_guide", [False, True])
def test_bidirectional_bounds_bracket_the_truth(from_guide):
    program = rough(narrower=0.5)
    template = torch.zeros(30, P, dtype=torch.float64)
    guide = program.guide if from_guide else None
    close = bidirectional(program.model, guide, template, num_temperatures=500, leapfrog=3, seed=0, **RECORDED)
    exact = truth(program, close.x)
    assert close.x.shape == template.shape
    assert abs(close.gap.mean()) < 0.05
    for bound, sign in (
        (close.lower, 1),
        (close.upper, -1),
    ):  # each on its side of the truth
        error = sign * (bound - exact)
        assert_estimate_is(error.mean().clamp(min=0), 0.0, error.std() / 30**0.5, sees=0.1, draws=30)
    assert json.loads(json.dumps(close.to_dict(), allow_nan=False))["gap"] == pytest.approx(close.gap.mean().item())


def test_few_temperatures_leave_a_gap_that_holds_the_truth():
    program = oracle(scale=0.4)
    bounds = bidirectional(
        program.model, None, torch.zeros(300, P).double(), num_temperatures=10, leapfrog=2, chains=2, seed=0, chunk=9999
    )
    exact = truth(program, bounds.x)
    assert (bounds.lower - exact).mean() < -5 * (bounds.lower - exact).std() / math.sqrt(300)
    assert (bounds.upper - exact).mean() > 5 * (bounds.upper - exact).std() / math.sqrt(300)
    assert "simulated images, gap" in str(bounds)
    options = {"num_temperatures": 2, "leapfrog": 1, "chains": 2, "seed": 0, "chunk": 40, "step_size": 0.05}
    few, more = (bidirectional(program.model, None, bounds.x[:30], **options | {"num_temperatures": T}) for T in (2, 3))
    assert torch.equal(few.x, more.x)  # so that numbers of temperatures can be compared


@pytest.mark.parametrize("schedule", [linear, sigmoid])
def test_annealed_weights_are_unbiased_both_ways(schedule):
    """E w = p(x) forwards and E 1/w = 1/p(x) backwards, at so few temperatures that the bounds themselves are loose."""
    program = oracle(scale=1.0)
    bounds = bidirectional(
        program.model, None, torch.zeros(4000, P).double(), num_temperatures=8, leapfrog=2, chains=4, seed=1,
        schedule=schedule, chunk=32_000,
    )  # fmt: skip
    exact = truth(program, bounds.x)
    for log_ratio in (bounds.lower - exact, exact - bounds.upper):
        ratio = log_ratio.exp()
        assert log_ratio.mean() < -0.02
        assert_mean_is(ratio, 1.0, sees=0.35)


def test_annealing_from_the_exact_posterior_is_exact():
    program = oracle()
    x = images(program, 5)
    evidence = annealed_evidence(program.model, program.guide, x, num_temperatures=5, seed=0)
    torch.testing.assert_close(evidence.log_px, truth(program, x))
    assert evidence.standard_error.max() < 1e-6


def test_chains_of_some_images_that_accept_nothing():
    scale = torch.tensor([1.0, 1e-9, 1.0])  # a step of half a standard deviation of the prior is too large for one row

    def model(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), scale), obs=x)

    lone = pytest.warns(UntrustedEvidence, match="a single one of 16 chains makes up most of p.x. for 1 of 3 images")
    with lone as untrusted, pytest.warns(StuckChains, match=r"accepted nothing for 1 of 3 images \(1\)") as caught:
        evidence = annealed_evidence(model, None, torch.zeros(3), num_temperatures=4, step_size=0.5)
    assert caught[0].filename == untrusted[0].filename == __file__ and evidence.lone.tolist() == [False, True, False]
    assert evidence.acceptance[1] < 1e-6 < 0.1 < evidence.acceptance[[0, 2]].min()


def test_chains_that_accept_nothing():
    program = oracle(scale=0.01)
    x = images(program, 3)
    with pytest.raises(ValueError, match=r"accepted nothing for 3 of 3 .*step sizes down to .*smaller step_size"):
        annealed_evidence(program.model, None, x, num_temperatures=4, step_size=1e6, seed=0)
    with pytest.raises(ValueError, match="accepted nothing"):
        bidirectional(program.model, None, x, num_temperatures=4, step_size=1e6, seed=0)


@pytest.mark.usefixtures("quick_compiler")
def test_two_sites_and_a_plate_within_the_images():
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    guide = lambda x: hierarchical(x, guide=True, scale=1.2)  # noqa: E731
    evidence = log_evidence(hierarchical, guide, x, 20_000, seed=0)
    assert_evidence_is(evidence, hierarchical_evidence(x), sees=0.15)
    for start in (None, guide):
        settings = {"num_temperatures": 200, "leapfrog": 4, "chains": 100, "seed": 0, **RECORDED}
        annealed = annealed_evidence(hierarchical, start, x, **settings)
        assert_evidence_is(annealed, hierarchical_evidence(x), sees=0.5)
        assert annealed.standard_error.max() < 0.1
    bounds = bidirectional(hierarchical, None, x, num_temperatures=200, leapfrog=4, seed=0, **RECORDED)
    assert bounds.x.shape == x.shape and abs(bounds.gap.mean()) < 0.2


@pytest.mark.parametrize("parts", PROGRAMS.values(), ids=PROGRAMS)
def test_constrained_latents_against_closed_forms(parts):
    latent, likelihood, proposal, x, log_px = parts
    model, guide = program(latent, likelihood, proposal)
    exact = log_px(x).double()
    for start in (None, guide):
        evidence = annealed_evidence(model, start, x, **SETTING)
        assert evidence.log_px.shape == exact.shape
        assert_evidence_is(evidence, exact, sees=1.0, rounding=0.01)
        assert evidence.standard_error.max() < 0.2 and evidence.acceptance.min() > 0.3


def test_bounds_of_simulated_data_bracket_the_evidence():
    latent, likelihood, _, x, log_px = PROGRAMS["positive"]
    model, _ = program(latent, likelihood, lambda x: dist.LogNormal(torch.zeros(len(x)), 1.0))
    bounds = bidirectional(model, None, x.repeat(50), **SETTING | {"chains": 8, "num_temperatures": 100, "chunk": 4000})
    exact = log_px(bounds.x)
    assert abs(bounds.gap.mean()) < 0.1
    for error in (bounds.lower - exact, bounds.upper - exact):
        assert_estimate_is(error.mean(), 0.0, error.std() / 200**0.5, sees=0.2, draws=200, rounding=0.05)


def test_a_positive_and_a_real_latent_by_quadrature():
    def model(x):
        with pyro.plate("rows", len(x)):
            scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    x = torch.tensor([0.3, -2.0])
    evidence = annealed_evidence(model, None, x, **SETTING)
    exact = []
    for value in x.tolist():
        density = lambda s: stats.lognorm.pdf(s, 0.5) * stats.norm.pdf(value, 0, math.hypot(1, s))  # noqa: B023, E731
        exact.append(math.log(integrate.quad(density, 0, 20)[0]))
    assert_evidence_is(evidence, exact, sees=1.0, rounding=0.01)


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
    assert_evidence_is(evidence, log_shared(COUNTS), sees=1.0)
    assert "of all images together" in str(evidence) and evidence.to_dict()["joint"]
    bounds = bidirectional(shared, None, COUNTS, **SETTING)
    exact = log_shared(bounds.x)
    assert bounds.joint and bounds.x.shape == COUNTS.shape and "of all images together" in str(bounds)
    assert bounds.lower - 0.2 < exact < bounds.upper + 0.2 and bounds.gap.abs() < 0.3


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
    assert_evidence_is(evidence, exact, sees=1.0, rounding=1e-3)


@pytest.mark.slow
def test_compiled_annealing_is_eager(quick_compiler):
    program = LinearGaussian(torch.randn(5, 2).double())
    settings = {"num_temperatures": 20, "chains": 3, "leapfrog": 3, "seed": 0}
    for evaluate, values in ((annealed_evidence, ("log_px", "acceptance")), (bidirectional, ("lower", "upper"))):
        one, other = (
            evaluate(program.model, None, torch.zeros(4, 5).double(), engine=engine, **settings)
            for engine in ("eager", "compiled")
        )
        for value in values:
            torch.testing.assert_close(getattr(other, value), getattr(one, value), rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_compiled_annealing_has_the_random_numbers_of_eager_one(quick_compiler):
    """Draws of a full-rank guide lie in memory in another order than what is computed from them."""
    vae = small_vae(guide=guides.FullRank).double()
    x, settings = torch.rand(4, *DIGITS.shape).round().double(), {"num_temperatures": 5, "chains": 2, "leapfrog": 2}
    one, other = (annealed_evidence(vae, x, engine=engine, chunk=4, **settings) for engine in ("eager", "compiled"))
    torch.testing.assert_close(other.log_px, one.log_px)


@pytest.mark.parametrize("guide", [None, shared_rate_guide], ids=["prior", "guide"])
def test_constrained_and_shared_latents_and_keywords_are_traced(guide, quick_compiler):
    x, kwargs = torch.tensor([[0.0, 2.0, 1.0], [3.0, 1.0, 0.0]]), {"offset": torch.tensor([0.1, 0.5])}
    settings = {"kwargs": kwargs, "seed": 0}
    for evaluate, options in (
        (annealed_evidence, {"num_temperatures": 4, "chains": 2, "leapfrog": 2, "guide": guide}),
        (log_evidence, {"particles": 40, "chunk": 4, "guide": guide or shared_rate_guide}),
    ):
        one, other = (evaluate(shared_rate, x=x, engine=how, **options, **settings) for how in ("eager", "compiled"))
        assert one.joint
        torch.testing.assert_close(other.log_px, one.log_px, rtol=1e-5, atol=1e-5)


def test_many_graphs_in_one_process(quick_compiler):
    for seed in range(10):  # torch allows eight of one code object
        program = LinearGaussian(torch.randn(5, 2).double())
        settings = {"num_temperatures": 3, "chains": 2, "leapfrog": 1, "seed": seed, "engine": "compiled"}
        evidence = annealed_evidence(program.model, None, torch.zeros(3, 5).double(), **settings)
        assert evidence.log_px.isfinite().all()
