"""log p(x) by a budget: coverage against known values, what is saved, and what is refused."""

import math
from functools import partial

import evidence_programs
import pyro
import pyro.distributions as dist
import pytest
import torch
from evidence_programs import (
    EAGER,
    PROGRAMS,
    calibrated,
    hierarchical,
    hierarchical_evidence,
    images,
    rough,
    shared_rate,
    shared_rate_guide,
    truth,
)
from monte_carlo import assert_evidence_is
from pyro.infer.autoguide import AutoNormal

from pyro_vae.evidence import BudgetedEvidence, EvidenceInterrupted, LocalProposal, log_evidence, spending
from pyro_vae.evidence.budget import Draws
from pyro_vae.files import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore::pyro_vae.evidence.UntrustedEvidence")

QUIET = {"progress": False, "chunk": 20_000, **EAGER}
A = torch.tensor([2.3, -0.4, -3.2, 0.8, -1.6, -2.0, 0.6, 1.2]).double()  # of a logistic regression on z


def logistic(x):
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
        pyro.sample("x", dist.Bernoulli(logits=z.unsqueeze(-1) * A).to_event(1), obs=x)


def logistic_guide(x):
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(0.2 * (x - 0.5) @ A, 0.5))


def by_quadrature(x):
    """log p(x) of the logistic regression, by the trapezoidal rule: exact to 10⁻¹², since the integrand is smooth."""
    z = torch.linspace(-10, 10, 801).double()
    joint = dist.Normal(0.0, 1.0).log_prob(z)[:, None]
    joint = joint + dist.Bernoulli(logits=z[:, None, None] * A).log_prob(x).sum(-1)
    return joint.logsumexp(0) + math.log(20 / 800)


@pytest.mark.slow
def test_logistic_regression_against_quadrature():
    torch.manual_seed(0)
    x = torch.bernoulli(torch.sigmoid(torch.randn(400, 1).double() * A))
    evidence = log_evidence(logistic, logistic_guide, x, target=0.05, **QUIET)
    assert isinstance(evidence, BudgetedEvidence) and evidence.reached > 0.8
    calibrated(evidence, by_quadrature(x))


@pytest.mark.slow
@pytest.mark.parametrize("narrower", [0.6, 0.45])  # tails of shape 0.64 and 0.8
def test_a_guide_that_is_too_narrow(narrower):
    program = rough(narrower=narrower)
    x = images(program, 400)
    evidence = log_evidence(program, x, target=0.1, **QUIET)
    assert set(evidence.method) == {"local"}  # none is settled by draws of the guide
    calibrated(evidence, truth(program, x))


@pytest.mark.slow
def test_annealing_alone_is_calibrated(monkeypatch):
    monkeypatch.setattr("pyro_vae.evidence.methods.MOST_DIMENSIONS", 0)
    program = rough(narrower=0.6)
    x = images(program, 80)
    evidence = log_evidence(program, x, target=0.1, **QUIET)
    assert set(evidence.method) <= {"annealed-100", "annealed-400"}
    calibrated(evidence, truth(program, x))


def walk(x, lengths, guide=False):
    """Sequences of different lengths in one plate: z_t ~ N(0.9 z_{t−1}, 1), x_t ~ N(z_t, ½)."""
    z = x.new_zeros(len(x))
    with pyro.plate("rows", len(x)):
        for t in range(x.shape[1]):
            with pyro.poutine.mask(mask=t < lengths):
                loc, scale = ((0.9 * z + 2 * x[:, t]) / 3, 0.5) if guide else (0.9 * z, 1.0)
                z = pyro.sample(f"z_{t}", dist.Normal(loc, scale))
                if not guide:
                    pyro.sample(f"x_{t}", dist.Normal(z, 0.5**0.5), obs=x[:, t])


def of_walk(x, lengths):
    """log p(x) of ``walk``, from the covariance of x_1 … x_n."""
    steps = torch.arange(x.shape[1])
    transfer = torch.where(steps[:, None] >= steps, 0.9 ** (steps[:, None] - steps).double(), 0.0)
    covariance = transfer @ transfer.T + 0.5 * torch.eye(len(steps))
    of = [dist.MultivariateNormal(torch.zeros(n).double(), covariance[:n, :n]) for n in lengths.tolist()]
    return torch.stack([q.log_prob(row[:n]) for q, row, n in zip(of, x, lengths.tolist())])


@pytest.mark.slow
def test_programs_that_are_no_autoencoder():
    """Counts whose marginal is negative binomial, two layers in nested plates, and sequences of several lengths."""
    torch.manual_seed(0)
    latent, likelihood, proposal, _, of_counts = PROGRAMS["positive"]
    counts, layers, walks = torch.arange(20.0), torch.randn(20, 3), 2 * torch.randn(20, 4).double()
    lengths = torch.randint(1, 5, (20,))
    for model, guide, args, exact in (
        (*evidence_programs.program(latent, likelihood, proposal), (counts,), of_counts(counts)),
        (hierarchical, lambda x: hierarchical(x, guide=True, scale=1.2), (layers,), hierarchical_evidence(layers)),
        (walk, partial(walk, guide=True), (walks, lengths), of_walk(walks, lengths)),
    ):
        evidence = log_evidence(model, guide, args, target=0.1, **QUIET)
        assert evidence.trusted.double().mean() > 0.85
        assert_evidence_is(evidence, exact, sees=1.0)


@pytest.mark.slow
def test_interrupted_and_continued(tmp_path, monkeypatch):
    program = rough()
    x, path = images(program, 60), tmp_path / "evidence.pt"
    whole = log_evidence(program, x, target=0.02, **QUIET)
    drawn, batches = Draws._batch, []

    def stopped(self, method, part, purpose):
        if purpose.startswith("count"):
            batches.append(purpose)
            if len(batches) == 4:
                raise KeyboardInterrupt
        return drawn(self, method, part, purpose)

    monkeypatch.setattr(Draws, "_batch", stopped)
    with pytest.raises(EvidenceInterrupted, match="the same call continues") as caught:
        log_evidence(program, x, target=0.02, checkpoint=path, **QUIET)
    part, done = caught.value.evidence, caught.value.images
    assert 0 < len(done) < 60 and torch.equal(part.log_px, whole.log_px[done])
    batches.extend("never again")
    with pytest.raises(CheckpointError, match="another measurement"):
        log_evidence(program, x, target=0.03, checkpoint=path, **QUIET)
    rest = log_evidence(program, x, target=0.02, checkpoint=path, **QUIET)
    assert torch.equal(rest.log_px, whole.log_px) and torch.equal(rest.pareto_k, whole.pareto_k)
    assert batches.count("count importance 0") == 1  # what was done is not done again
    again = log_evidence(program, x, target=0.02, checkpoint=path, **QUIET)
    assert torch.equal(again.log_px, whole.log_px)


@pytest.mark.slow
def test_seconds_can_be_repeated_by_the_plan():
    program = rough()
    x = images(program, 20)
    evidence = log_evidence(program, x, seconds=1.0, seed=3, **QUIET)
    again = log_evidence(program, x, plan=evidence.plan, seed=3, **QUIET)
    assert torch.equal(again.log_px, evidence.log_px) and torch.equal(again.standard_error, evidence.standard_error)
    assert not again.pilots and evidence.pilots["importance"] == 20_000
    with pytest.raises(ValueError, match="plan: wanted one of 10 images"):
        log_evidence(program, x[:10], plan=evidence.plan, **QUIET)


def test_discrete_latents_have_importance_sampling_alone():
    def model(x):
        with pyro.plate("rows", len(x)):
            y = pyro.sample("y", dist.Bernoulli(x.new_full((len(x),), 0.3)))
            pyro.sample("x", dist.Normal(2 * y, 1.0), obs=x)

    def guide(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Bernoulli(torch.sigmoid(x - 1)))

    x = torch.linspace(-2, 3, 6)
    evidence = log_evidence(model, guide, x, target=0.01, **QUIET)
    log_p = torch.stack([math.log(0.7) + dist.Normal(0, 1).log_prob(x), math.log(0.3) + dist.Normal(2, 1).log_prob(x)])
    assert evidence.plan.methods == ("importance",) and evidence.trusted.all()
    with pytest.raises(ValueError, match="site 'y' is discrete"):
        log_evidence(model, guide, x, target=0.01, proposal=LocalProposal(), **QUIET)
    assert_evidence_is(evidence, log_p.logsumexp(0), sees=0.1)


def test_a_proposal_takes_the_place_of_the_guide():
    program = rough()
    x, proposal = images(program, 5), LocalProposal(rounds=16)
    evidence = log_evidence(program.model, None, x, target=0.1, proposal=proposal, **QUIET)
    assert evidence.plan.methods[0] == "local" and evidence.trusted.all()
    assert_evidence_is(evidence, truth(program, x), sees=0.5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "wanted either particles"),
        ({"particles": 10, "target": 0.1}, "got particles, target"),
        ({"target": -1.0}, "target: wanted a positive number"),
        ({"seconds": math.nan}, "seconds: wanted a positive number"),
        ({"target": 0.1, "checkpoint": "file", "seed": None}, "checkpoint: wanted a seed"),
    ],
)
def test_options_that_cannot_be(options, message):
    program = rough()
    with pytest.raises(ValueError, match=message):
        log_evidence(program, images(program, 2), **options, **QUIET)


def test_rows_that_need_each_other_are_refused():
    x, offset = torch.ones(4, 3), torch.ones(4)
    with pytest.raises(ValueError, match="rows can be measured apart"):
        log_evidence(shared_rate, shared_rate_guide, x, target=0.1, kwargs={"offset": offset}, **QUIET)
    with pytest.raises(ValueError, match="rows can be measured apart"):
        log_evidence(logistic, AutoNormal(logistic), torch.ones(4, 8).double(), target=0.1, **QUIET)


def test_a_saved_measurement_is_of_one_precision_and_proposal():
    budget = spending.Budget(target=0.1)
    before = spending.options_of(budget, [])
    for other in (budget._replace(precision=torch.bfloat16), budget._replace(proposal=LocalProposal(rounds=2))):
        assert spending.options_of(other, []) != before
