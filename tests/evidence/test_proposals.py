"""Local proposals: weights of E w = p(x), against closed forms and quadrature, for good and for bad fits."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from evidence_programs import (
    EAGER,
    PROGRAMS,
    X,
    calibrated,
    check,
    hierarchical,
    hierarchical_evidence,
    images,
    oracle,
    program,
    rough,
    truth,
)
from monte_carlo import assert_evidence_is, assert_mean_is

from pyro_vae.arguments import ProgramArguments
from pyro_vae.evidence import LocalProposal, log_evidence
from pyro_vae.evidence.path import AnnealingPath
from pyro_vae.evidence.plan import MeasurementPlan
from pyro_vae.evidence.proposals import StudentT

pytestmark = pytest.mark.filterwarnings("ignore::pyro_vae.evidence.UntrustedEvidence")


def fitted(given, x, **settings):
    """The normal distributions of z that are fitted to rows."""
    arguments = ProgramArguments.of((x,))
    plan = MeasurementPlan.of(given.model, given.guide, arguments, None, len(x))
    sampler = LocalProposal(**settings).sampler(given.model, given.guide, plan, 500, False)
    with torch.no_grad():
        fit = sampler.fit(AnnealingPath(given.model, given.guide, *arguments, plan=plan))
    root = fit.unit.unsqueeze(-1) * fit.normals.scale_tril
    return fit.centre + fit.unit * fit.normals.loc, root @ root.mT


@pytest.mark.slow
def test_a_normal_posterior_is_found_from_a_poor_guide():
    torch.manual_seed(0)
    given, exact = rough(narrower=0.3), oracle()
    x = images(given, 5)
    loc, covariance = fitted(given, x, rounds=30)
    posterior = exact.posterior(x)
    torch.testing.assert_close(loc, posterior.mean, rtol=0, atol=1e-3)
    torch.testing.assert_close(covariance, posterior.covariance_matrix, rtol=0, atol=1e-3)


def test_it_is_tight_where_the_guide_is_not():
    given = rough(narrower=0.2)
    x = images(given, 60)
    guided, local = (
        log_evidence(given, x, 500, proposal=proposal, chunk=20_000, **EAGER, seed=1)
        for proposal in (None, LocalProposal())
    )
    check(local, truth(given, x))
    assert guided.untrusted > 0.5 and local.untrusted == 0
    assert local.ess.min() > 250 > 100 > guided.ess.median()


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"rounds": 1, "draws": 2}, {"rounds": 2, "share": 0}, {"share": 0.5}])
def test_the_mean_weight_is_p_of_x_for_any_fit(settings):
    """Fits that stopped early, with and without draws from the guide, give unbiased estimates and fair errors."""
    given = rough(narrower=0.8)
    x = images(given, 20).repeat_interleave(60, 0)
    evidence = log_evidence(given, x, 30, proposal=LocalProposal(**settings), chunk=20_000, **EAGER, seed=2)
    ratio = (evidence.log_px - truth(given, x)).exp()
    assert ratio.std() > 0.01
    assert_mean_is(ratio, 1.0, sees=0.1)


@pytest.mark.slow
def test_the_interval_covers_the_truth():
    given = rough(narrower=0.5)
    x = images(given, 40).repeat_interleave(25, 0)
    calibrated(log_evidence(given, x, 200, proposal=LocalProposal(), chunk=20_000, **EAGER, seed=3), truth(given, x))


SLOPES, SHIFTS = torch.tensor([2.0, -1.0, 4.0, 0.5]), torch.tensor([0.0, 1.0, -2.0, 0.5])


def logistic(x):
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Bernoulli(logits=z.unsqueeze(-1) * SLOPES + SHIFTS).to_event(1), obs=x)


def narrow(x):
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(x.new_zeros(()), 0.2))


@pytest.mark.parametrize("guide", [None, narrow])
def test_a_logistic_regression_agrees_with_quadrature(guide):
    x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)
    evidence = log_evidence(logistic, guide, x, 500, proposal=LocalProposal(draws=8), **EAGER, seed=4)
    z = torch.linspace(-12, 12, 4001).double()
    logits = z[:, None, None] * SLOPES + SHIFTS
    log_p = -z.square() / 2 - math.log(2 * math.pi) / 2
    log_p = log_p[:, None] + dist.Bernoulli(logits=logits).log_prob(x.double()).sum(-1)
    exact = log_p.exp().sum(0).mul(z[1] - z[0]).log()
    assert_evidence_is(evidence, exact, sees=0.2)
    assert evidence.untrusted == 0 and evidence.ess.min() > 300
    assert abs(evidence.log_px.exp().sum() - 1) < 0.01  # over all x


@pytest.mark.parametrize("name", PROGRAMS)
def test_latent_variables_of_any_continuous_support(name):
    latent, likelihood, guide, x, exact = PROGRAMS[name]
    model, guide = program(latent, likelihood, guide)
    evidence = log_evidence(model, guide, x, 1000, proposal=LocalProposal(draws=16), **EAGER)
    check(evidence, exact(x).double())
    assert evidence.ess.min() > 300


def test_plates_within_the_plate_over_rows():
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    evidence = log_evidence(
        hierarchical, lambda x: hierarchical(x, guide=True, scale=0.7), x, 1000, proposal=LocalProposal(), **EAGER
    )
    check(evidence, hierarchical_evidence(x))
    assert evidence.ess.min() > 500


def shared(x, guide=False):
    z = pyro.sample("z", dist.Normal(x.new_zeros(()), 0.1 if guide else 1.0))
    with pyro.plate("rows", len(x)):
        return None if guide else pyro.sample("x", dist.Normal(z, 1.0), obs=x)


LENGTHS = torch.tensor([2, 1, 0, 2])


def states(x):
    """z₁ ~ N(0, 1), z₂ ~ N(z₁, 1), x_t ~ N(z_t, 0.5); those beyond the length of a row are masked."""
    z = torch.zeros(len(x))
    with pyro.plate("rows", len(x)):
        for t in range(2):
            with pyro.poutine.mask(mask=t < LENGTHS):
                z = pyro.sample(f"z{t}", dist.Normal(z, 1.0))
                pyro.sample(f"x{t}", dist.Normal(z, 0.5), obs=x[:, t])


def guided_states(x):
    with pyro.plate("rows", len(x)):
        for t in range(2):
            with pyro.poutine.mask(mask=t < LENGTHS):
                pyro.sample(f"z{t}", dist.Normal(0.7 * x[:, t], 0.6))


@pytest.mark.parametrize("guide", [guided_states, None], ids=["guide", "prior"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_masked_states_are_drawn_and_not_counted(guide, share):
    x = torch.tensor([[0.4, 1.0], [-1.0, 9.0], [5.0, 5.0], [0.1, -0.5]])
    covariance = torch.tensor([[1.25, 1.0], [1.0, 2.25]])
    both = dist.MultivariateNormal(torch.zeros(2), covariance).log_prob(x)
    first = dist.Normal(0.0, 1.25**0.5).log_prob(x[:, 0])
    exact = torch.where(LENGTHS == 2, both, torch.where(LENGTHS == 1, first, 0.0))
    found = log_evidence(states, guide, x, 2000, proposal=LocalProposal(share=share), **EAGER)
    assert (found.log_px - exact).abs().max() < 0.06
    assert found.log_px[2] == pytest.approx(0.0, abs=1e-12)


def test_the_density_of_the_coordinates_that_are_scored_is_the_marginal():
    root = torch.eye(3).double().unsqueeze(0)
    root[0, 2, 0] = 0.7
    keep, loc, u = torch.tensor([[True, False, True]]), torch.ones(1, 3).double(), torch.randn(5, 1, 3).double()
    found = StudentT(loc, root, 6.0, keep).log_prob(u)
    pair = StudentT(loc[:, [0, 2]], root[:, [0, 2]][:, :, [0, 2]], 6.0).log_prob(u[..., [0, 2]])
    torch.testing.assert_close(found, pair)


def test_rows_that_share_a_latent_variable_have_one_estimate():
    guide = lambda x: shared(x, guide=True)  # noqa: E731
    evidence = log_evidence(shared, guide, X, 1000, proposal=LocalProposal(), **EAGER)
    exact = dist.MultivariateNormal(torch.zeros(len(X)), torch.eye(len(X)) + 1).log_prob(X)
    assert evidence.joint
    check(evidence, exact.double().reshape(1))


def test_a_seed_gives_the_same_bits_and_leaves_random_numbers_alone():
    given = rough()
    x, before = images(given, 7), torch.get_rng_state()
    first, second, other = (
        log_evidence(given, x, 20, proposal=LocalProposal(rounds=2), **EAGER, seed=seed) for seed in (5, 5, 6)
    )
    assert torch.equal(first.log_px, second.log_px) and not torch.equal(first.log_px, other.log_px)
    assert torch.equal(before, torch.get_rng_state())


def test_compiled_and_eager_agree(monkeypatch, quick_compiler):
    """Slices of the draws, the last of which is filled up, and shares of the rows, on three cores."""
    for user in ("compiling.graphs", "evidence.proposals", "evidence.matching"):
        monkeypatch.setattr(f"pyro_vae.{user}.cores", lambda: 3)
    given = rough()
    x = images(given, 4)
    options = {"chunk": 64, "proposal": LocalProposal(rounds=2), "seed": 7}
    eager, compiled = (log_evidence(given, x, 70, engine=engine, **options) for engine in ("eager", "compiled"))
    torch.testing.assert_close(compiled.log_px, eager.log_px, rtol=0, atol=1e-9)
    torch.testing.assert_close(compiled.ess, eager.ess)


def test_a_density_that_is_far_from_the_guide_keeps_its_digits():
    """The guide's log density at the draws is about −5 × 10⁷, of which float32 has no digit behind the point."""
    model, guide = program(
        lambda x: dist.Normal(torch.zeros(len(x)), 1.0), lambda z: dist.Normal(z, 1.0),
        lambda x: dist.Normal(torch.full((len(x),), -10.0), 1e-3),
    )  # fmt: skip
    evidence = log_evidence(model, guide, X, 500, proposal=LocalProposal(rounds=40, share=0.02), **EAGER)
    check(evidence, dist.Normal(0.0, math.sqrt(2)).log_prob(X).double())


def coin(x):
    with pyro.plate("rows", len(x)):
        y = pyro.sample("y", dist.Bernoulli(torch.full((len(x),), 0.5)))
        pyro.sample("x", dist.Normal(y, 1.0), obs=x)


def wide(x):
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(1001), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "message"), [(coin, "site 'y' is discrete"), (wide, "at most 1000 dimensions .* got 1001")]
)
def test_what_cannot_be_fitted_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        log_evidence(model, None, X, 10, proposal=LocalProposal(), **EAGER)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": 0}, "rounds: wanted a whole number of at least 1, got 0"),
        ({"draws": 1}, "draws: wanted a whole number of at least 2, got 1"),
        ({"share": 1}, "share: wanted a number from 0 to less than 1, got 1"),
        ({"share": np.nan}, "share: wanted .* got nan"),
        ({"share": True}, "share: wanted .* got True"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        LocalProposal(**settings)
