"""Both bounds by importance sampling against closed forms: with the guide and with mixtures, poor and exact."""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from evidence_programs import EAGER, PROGRAMS, P, hierarchical, hierarchical_evidence, oracle, program, rough, truth
from tqdm import tqdm

from pyro_vae.arguments import ProgramArguments
from pyro_vae.evidence import LocalProposal, certify, log_evidence
from pyro_vae.evidence.certificate import MixtureWeights, mean_upper, slots
from pyro_vae.evidence.plan import MeasurementPlan
from pyro_vae.evidence.simulation import simulated

pytestmark = pytest.mark.filterwarnings("ignore::pyro_vae.evidence.UntrustedEvidence")
SILENT = tqdm(disable=True)


def errors(values):
    """Mean over images, in standard errors."""
    return (values.mean() / values.std() * math.sqrt(len(values))).item()


@pytest.mark.parametrize("proposal", [None, LocalProposal(rounds=1, draws=2, share=0.4)], ids=["guide", "mixture"])
def test_the_bounds_are_on_both_sides_of_the_truth(proposal):
    given = rough(narrower=0.6)
    template = torch.zeros(2000, P).double()
    few, more = (certify(given, template, K, proposal=proposal, chunk=99_999, **EAGER) for K in (2, 40))
    exact = truth(given, few.x)
    assert errors(few.lower - exact) < -4 and errors(few.upper - exact) > 4
    assert errors(more.lower - exact) < 2 and errors(more.upper - exact) > -2
    assert few.gap.mean() > 1.3 * more.gap.mean() and more.num_particles == 40


def test_an_exact_guide_leaves_no_gap():
    given = oracle()
    bounds = certify(given, torch.zeros(4, P).double(), 3, **EAGER)
    for bound in (bounds.lower, bounds.upper):
        torch.testing.assert_close(bound, truth(given, bounds.x))


@pytest.mark.parametrize("from_guide", [0, 1, 2, 3])
def test_the_bounds_are_the_truth_and_two_divergences_by_enumeration(from_guide):
    """z of three values, K = 3 draws, all 27 of them: E upper = log p + KL(R ‖ Q) and E lower = log p − KL(Q ‖ R)."""
    guide, other, log_px, K = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.1, 0.7]), -1.5, 3
    posterior = np.array([0.3, 0.5, 0.2])
    mixture = (from_guide * guide + (K - from_guide) * other) / K
    log_w = np.log(posterior / mixture) + log_px
    draws = np.array(list(itertools.product(range(3), repeat=K))).T
    Q = np.prod([(guide if k < from_guide else other)[draws[k]] for k in range(K)], 0)
    p_hat = np.exp(log_w[draws]).mean(0)
    R = Q * p_hat / math.exp(log_px)
    assert Q.sum() == pytest.approx(1) and R.sum() == pytest.approx(1)

    def upper(places):
        columns = [np.full(len(Q), value) for value in log_w]
        each = [
            mean_upper(log_w[draws], exact, np.tile(place[:, None], len(Q))) for exact, place in zip(columns, places.T)
        ]
        return sum(posterior[z] * (Q * each[z]).sum() for z in range(3))

    places = slots(torch.from_numpy(from_guide / K * guide / mixture), from_guide, K).numpy()
    assert upper(places) == pytest.approx(log_px + (R * np.log(R / Q)).sum())
    assert (Q * np.log(p_hat)).sum() == pytest.approx(log_px - (Q * np.log(Q / R)).sum())
    if 0 < from_guide < K:  # with a uniform place it is another number
        assert upper(np.full((K, 3), 1 / K)) != pytest.approx(upper(places), abs=1e-3)


@pytest.mark.parametrize("settings", [{"share": 0.4}, {"share": 0.0}, {"share": 0.98}])
def test_with_the_exact_draw_in_place_the_inverse_mean_weight_is_unbiased(settings):
    """E_R 1 / p̂ = ∫ Q / p(x) = 1 / p(x): an equality, where the bounds are inequalities."""
    given, K, n = rough(narrower=0.7), 3, 6000
    arguments = ProgramArguments.of((torch.zeros(n, P).double(),))
    torch.manual_seed(0)
    plan = MeasurementPlan.of(given.model, given.guide, arguments, None, n)
    proposal = LocalProposal(rounds=2, draws=4, **settings)
    sampler = proposal.sampler(given.model, given.guide, plan, 99_999, False)
    with torch.no_grad():
        ((batch, latent, x),) = simulated(given.model, plan)
        log_w, exact, places = MixtureWeights(sampler)(batch, latent, K, SILENT)
    torch.testing.assert_close(places.sum(0), torch.ones(n).double())
    chosen = torch.multinomial(places.T, 1).T
    replaced = log_w.scatter(0, chosen, exact.unsqueeze(0))
    ratio = (truth(given, x) + math.log(K) - replaced.logsumexp(0)).exp()
    assert ratio.std() > 0.01 and abs(errors(ratio - 1)) < 4


def test_the_mean_over_places_is_that_of_single_replacements():
    generator = np.random.default_rng(0)
    log_w, exact, places = 5 * generator.normal(size=(6, 4)), generator.normal(size=4), generator.random((6, 4))
    places /= places.sum(0)
    wanted = 0
    for j in range(6):
        replaced = log_w.copy()
        replaced[j] = exact
        wanted += places[j] * np.log(np.exp(replaced).mean(0))
    np.testing.assert_allclose(mean_upper(log_w, exact, places), wanted)
    dominated = np.array([[0.0, 0.0], [-800.0, -np.inf]])  # the others are not lost beside the largest
    found = mean_upper(dominated, np.full(2, -900.0), np.array([[1.0, 1.0], [0.0, 0.0]]))
    np.testing.assert_allclose(found, np.array([-800.0, -900.0]) - math.log(2))
    np.testing.assert_allclose(mean_upper(log_w[:1], exact, np.ones((1, 4))), exact)


@pytest.mark.parametrize("name", ["positive", "simplex"])
@pytest.mark.parametrize("proposal", [None, LocalProposal(draws=8)], ids=["guide", "mixture"])
def test_latent_variables_of_other_supports(name, proposal):
    latent, likelihood, guide, x, exact = PROGRAMS[name]
    model, _ = program(latent, likelihood, guide)

    def wide(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", latent(x))

    bounds = certify(model, wide, x.repeat_interleave(50, 0), 300, proposal=proposal, chunk=99_999, **EAGER)
    for bound in (bounds.lower, bounds.upper):
        error = bound - exact(bounds.x).double()
        assert abs(error.mean()) < 0.02 + 4 * error.std() / math.sqrt(len(error))


def test_discrete_latents_and_further_arguments():
    odds = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])

    def model(x, kind):
        with pyro.plate("rows", len(x)):
            y = pyro.sample("y", dist.Categorical(odds[kind]))
            pyro.sample("x", dist.Normal(y.float(), 0.5), obs=x)

    def guide(x, kind):
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Categorical(torch.ones(len(x), 3)))

    kind = torch.arange(1000) % 2
    bounds = certify(model, guide, (torch.zeros(1000), kind), 4, **EAGER)
    exact = (odds[kind].log() + dist.Normal(torch.arange(3.0), 0.5).log_prob(bounds.x[:, None])).logsumexp(1)
    assert errors(bounds.lower - exact) < -4 and errors(bounds.upper - exact) > 4


def test_two_sites_and_a_latent_that_all_rows_share():
    x = torch.zeros(600, 3)
    guide = lambda x: hierarchical(x, guide=True, scale=0.8)  # noqa: E731
    bounds = certify(hierarchical, guide, x, 20, **EAGER)
    exact = hierarchical_evidence(bounds.x)
    assert errors(bounds.lower - exact) < -4 and errors(bounds.upper - exact) > 4

    def shared(x, scale=1.0, guide=False):
        z = pyro.sample("z", dist.Normal(0.0, scale))
        with pyro.plate("rows", len(x)):
            return None if guide else pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    wide = lambda x: shared(x, 2.0, guide=True)  # noqa: E731
    bounds = certify(shared, wide, torch.zeros(7), 5000, **EAGER)
    exact = dist.MultivariateNormal(torch.zeros(7), torch.eye(7) + 1).log_prob(bounds.x)
    assert bounds.joint and abs(bounds.lower - exact) < 0.2 > abs(bounds.upper - exact)


def test_compiled_and_eager_agree(quick_compiler):
    given, options = rough(), {"chunk": 64, "seed": 7, "progress": False}
    eager, compiled = (
        certify(given, torch.zeros(4, P).double(), 70, engine=how, **options) for how in ("eager", "compiled")
    )
    torch.testing.assert_close(compiled.upper, eager.upper, rtol=0, atol=1e-9)
    torch.testing.assert_close(compiled.lower, eager.lower, rtol=0, atol=1e-9)


def test_the_same_images_for_any_k_and_random_numbers_left_alone():
    given, before = rough(), torch.get_rng_state()
    one, other = (certify(given, torch.zeros(5, P).double(), K, **EAGER) for K in (3, 30))
    assert torch.equal(one.x, other.x) and torch.equal(before, torch.get_rng_state())


def test_what_has_no_weight_is_refused():
    given, x = oracle(), torch.zeros(3, P).double()
    with pytest.raises(ValueError, match="guide: wanted a function, got None; write certify"):
        certify(given.model, None, x, 10)
    with pytest.raises(ValueError, match="particles: wanted a whole number"):
        certify(given, x, 0)

    def auxiliary(x):
        with pyro.plate("rows", len(x)):
            e = pyro.sample("e", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(e, log_density=torch.zeros(len(x))))

    def model(x, infer=None):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    assert log_evidence(model, auxiliary, torch.zeros(3), 5, progress=False).log_px.isfinite().all()
    with pytest.raises(ValueError, match=r"the sites \['e', 'z'\], which are auxiliary or points"):
        certify(model, auxiliary, torch.zeros(3), 5)

    def summed(x):
        with pyro.plate("rows", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(y, 1.0), obs=x)

    with pytest.raises(ValueError, match="summed out"):
        certify(summed, lambda x: None, torch.zeros(3), 5)
