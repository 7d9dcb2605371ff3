"""Programs with few discrete units against sums over all their values, and the experiment from end to end."""

import itertools
import json

import pyro
import pyro.distributions as dist
import pytest
import torch
from monte_carlo import assert_estimate_is, assert_mean_is
from programs import needs_compiler
from torch import nn
from torch.nn.functional import logsigmoid

from experiments import discrete
from pyro_vae import annealed_evidence, compare_estimators, evaluate, fit, log_evidence
from pyro_vae.data import Data, Split
from pyro_vae.estimators import ImportanceWeighted, ScoreFunction

SHAPE, B = (1, 2, 3), 4  # as many rows as binary units: no plate may be told by its size
KINDS = ("binary", "categorical", "binary in a plate")
pytestmark = pytest.mark.usefixtures("float64")


class UnitsInAPlate(discrete.SigmoidBeliefNetwork):
    """The same with the units in a plate at dim −1, which Pyro's users often write, and the rows at dim −2."""

    def model(self, x):
        with pyro.plate("images", len(x), dim=-2):
            with pyro.plate("units", len(self.logits), dim=-1):
                z = pyro.sample("z", dist.Bernoulli(logits=self.logits))
            pyro.sample("x", self.likelihood(z.unsqueeze(-2)), obs=x.unsqueeze(1))

    def guide(self, x):
        with pyro.plate("images", len(x), dim=-2), pyro.plate("units", len(self.logits), dim=-1):
            pyro.sample("z", dist.Bernoulli(logits=self.encoder(x)))


def made(kind):
    """A program with 16 or 9 values of z, whose parameters are far from zero, and x."""
    torch.manual_seed(0)
    if kind == "categorical":
        program = discrete.CategoricalVAE(SHAPE, units=2, values=3, hidden=5)
    else:
        program = (discrete.SigmoidBeliefNetwork if kind == "binary" else UnitsInAPlate)(SHAPE, units=4)
    for parameter in program.parameters():
        nn.init.normal_(parameter, std=0.5)
    return program, torch.bernoulli(torch.full((B, *SHAPE), 0.5))


def dense(layers, value):
    """Dense layers with ReLU between them, from their weights and biases."""
    *hidden, (weight, bias) = zip(*[iter(layers.parameters())] * 2)
    for one, other in hidden:
        value = (value @ one.T + other).relu()
    return value @ weight.T + bias


def bernoulli(x, logits):
    return (x * logsigmoid(logits) + (1 - x) * logsigmoid(-logits)).sum(-1)


def summed(program, x):
    """log p(x, z) and log q(z | x) of all values of z, each (values, B), written out."""
    x = x.flatten(1)
    given = dense(program.encoder, x)
    if isinstance(program, discrete.CategoricalVAE):
        z = torch.tensor([[*one, *other] for one, other in itertools.product(torch.eye(3).tolist(), repeat=2)])
        log_p = (z.unflatten(-1, (2, 3)) * program.logits.log_softmax(-1)).sum((-2, -1))
        log_q = (z.unflatten(-1, (2, 3)).unsqueeze(1) * given.unflatten(-1, (2, 3)).log_softmax(-1)).sum((-2, -1))
    else:
        z = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)))
        log_p, log_q = bernoulli(z, program.logits), bernoulli(z.unsqueeze(1), given)
    likelihood = bernoulli(x, dense(program.likelihood, z).unsqueeze(1))
    return log_p.unsqueeze(-1) + likelihood, log_q


def elbo(program, x):
    log_joint, log_q = summed(program, x)
    return (log_q.exp() * (log_joint - log_q)).sum(0)


def log_px(program, x):
    return summed(program, x)[0].logsumexp(0).detach()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pyro_vae.evidence.UntrustedEvidence")  # of few images, by chance
@pytest.mark.parametrize("kind", KINDS)
def test_the_evidence_is_the_sum_over_all_values(kind):
    program, x = made(kind)
    for rows in (x, x.repeat(25, 1, 1, 1)):
        evidence = log_evidence(program, rows, 1000)
        z = (evidence.log_px - log_px(program, rows)) / evidence.standard_error
        assert z.abs().max() < 4 and abs(z.mean()) * len(z) ** 0.5 < 4 and evidence.untrusted < 0.1
    assert 0.8 < z.std() < 1.2


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_of_each_row_is_the_sum_over_all_values(kind):
    program, x = made(kind)
    exact = elbo(program, x).detach()
    bounds = evaluate(program, x.repeat(400, 1, 1, 1), particles=2).bound.unflatten(0, (400, B))
    assert_mean_is(bounds, exact, sees=1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_with_the_exact_posterior_as_guide_every_weight_is_the_evidence(kind):
    """All weights of a row are equal: k̂ says that there is no tail, and nothing divides by zero."""
    program, x = made(kind)
    log_joint, _ = summed(program, x)
    posterior = log_joint.detach().T

    def model(x):
        with pyro.plate("images", len(x)):
            value = pyro.sample("value", dist.Categorical(torch.ones(posterior.shape[1])))
            log_p = posterior.expand(*value.shape[:-1], -1, -1).gather(-1, value.unsqueeze(-1)).squeeze(-1)
            pyro.factor("joint", log_p + torch.tensor(float(posterior.shape[1])).log())

    def guide(x):
        with pyro.plate("images", len(x)):
            pyro.sample("value", dist.Categorical(logits=posterior))

    evidence = log_evidence(model, guide, x, 500)
    torch.testing.assert_close(evidence.log_px, log_px(program, x))
    assert evidence.standard_error.max() < 1e-8 and (evidence.pareto_k == -torch.inf).all()


@pytest.mark.parametrize("baseline", [None, "leave-one-out"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_gradient_is_that_of_the_sum(kind, baseline):
    program, x = made(kind)
    exact = torch.autograd.grad(-elbo(program, x).sum(), list(program.parameters()))
    copies, estimator, draws = 50, ScoreFunction(3, baseline), []
    many = x.repeat(copies, 1, 1, 1)
    for _ in range(20):
        loss = estimator.differentiable_loss(program.model, program.guide, many) / copies
        draws.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(program.parameters()))]))
    draws, exact = torch.stack(draws), torch.cat([g.flatten() for g in exact])
    z = (draws.mean(0) - exact) / (draws.std(0) / 20**0.5 + 1e-12)  # some units of a hidden layer are always off
    assert z.abs().max() < 5 and z.square().mean() < 2


@pytest.mark.slow
def test_the_comparison_finds_the_bound_and_what_the_baseline_is_for():
    program, x = made("categorical")
    found = compare_estimators(
        program,
        x,
        estimators={"without": ScoreFunction(4), "with": ScoreFunction(4, "leave-one-out")},
        draws=60,
        seed=0,
        progress=False,
    )
    assert not found.disagreements()
    numbers = found.to_dict()["estimators"]
    for bound in (entry["bound"] for entry in numbers.values()):
        assert_estimate_is(bound["mean"], elbo(program, x).mean().item(), bound["standard_error"], sees=0.5, draws=60)
    assert numbers["with"]["guide"]["variance"]["value"] < numbers["without"]["guide"]["variance"]["value"] / 2


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("kind", ["binary", "categorical"])
def test_compiled_is_eager(kind, quick_compiler, no_validation):
    grey = torch.randint(256, (60, *SHAPE), dtype=torch.uint8)
    data = Data("grey", Split(grey[:40]), Split(grey[40:50]), Split(grey[50:]))
    found = []
    for engine in ("eager", "compiled"):
        program, _ = made(kind)
        history = fit(
            program,
            data,
            ScoreFunction(3, "leave-one-out"),
            epochs=2,
            batch_size=10,
            lr=1e-2,
            engine=engine,
            progress=False,
        )
        assert history.engine == engine
        found.append(torch.cat([parameter.detach().flatten() for parameter in program.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_what_needs_a_path_or_real_numbers_says_so(kind):
    program, x = made(kind)
    with pytest.raises(ValueError, match=r"site 'z' is discrete, .* take log_evidence"):
        annealed_evidence(program, x, num_temperatures=5)
    with pytest.raises(ValueError, match=r"'z' of the guide is not reparameterised.*ScoreFunction"):
        ImportanceWeighted(2).differentiable_loss(program.model, program.guide, x)


@pytest.mark.parametrize("program", [discrete.SigmoidBeliefNetwork, discrete.CategoricalVAE])
def test_a_step_moves_every_parameter(program):
    torch.manual_seed(0)
    program = program((1, 8, 8))
    x = program.observe(Split(torch.randint(256, (8, 1, 8, 8), dtype=torch.uint8)))
    ScoreFunction(2, "leave-one-out")(program.model, program.guide)(x).backward()
    for name, parameter in program.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
    assert program.model(n=3).shape == (3, 1, 8, 8)


@pytest.mark.slow
def test_it_is_measured_and_written_and_not_done_again(tmp_path, capsys):
    torch.set_default_dtype(torch.float32)
    words = ["--quick", "--epochs", "2", "--draws", "10", "--ways", "categorical", "--engine", "eager", "--quiet"]
    out = tmp_path / "out"
    assert discrete.main([*words, "--out", str(out)]) == 0
    first = (tmp_path / "out.json").read_text()
    runs = json.loads(first)["runs"]
    assert list(runs) == ["categorical"]
    for run in runs.values():
        assert run["test"]["images"] == 250 and run["evidence"]["num_particles"] == 100
        assert run["history"][-1]["valid_bound"] > run["history"][0]["valid_bound"]
    assert {path.name for path in out.glob("*.png")} == {"categorical-seed0.png"}
    assert discrete.main([*words, "--out", str(out)]) == 0
    assert (tmp_path / "out.json").read_text() == first
    assert "with the baseline" in capsys.readouterr().out
    assert discrete.main([*words, "--images", "0", "--out", str(tmp_path / "other")]) == 1
    assert "--images: wanted 1 to 250" in capsys.readouterr().err
