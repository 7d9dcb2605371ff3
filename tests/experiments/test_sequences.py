"""The deep Markov model where it is linear, against Kalman filters; padding; and the experiment from end to end."""

import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from monte_carlo import assert_estimate_is, assert_evidence_is
from programs import needs_compiler
from pyro import poutine
from pyro.infer import Trace_ELBO

from experiments import sequences
from experiments.markov import balls
from experiments.markov.programs import (
    BackwardGRU,
    BernoulliOf,
    DeepMarkov,
    ExactGuide,
    Linear,
    NormalOf,
    reversed_steps,
    steps,
)
from pyro_vae import evaluate, fit, log_evidence
from pyro_vae.compiling import Untraceable, compiled
from pyro_vae.data import Data, Split
from pyro_vae.estimators import ImportanceWeighted, StickingTheLanding
from pyro_vae.training import fixed_x

T, L, D = 6, 2, 3
pytestmark = pytest.mark.usefixtures("float64")
A = [[0.9, 0.4], [-0.4, 0.8]]


def linear(widened=1.0, rows=6, kind=DeepMarkov):
    """A linear program with its exact guide, and sequences of unequal length drawn from it; NaN is their padding.

    There are as many rows as steps, so that no plate may be told by its size.
    """
    torch.manual_seed(0)
    transition, emission = (
        Linear(torch.tensor(A), torch.tensor([0.5, 0.7])),
        Linear(torch.randn(D, L), torch.rand(D) + 0.3),
    )
    parts = torch.tensor([0.5, -1.0]), transition, emission, ExactGuide(transition, emission, widened)
    lengths = torch.arange(rows) % T + 1
    with torch.no_grad():
        x = DeepMarkov(*parts).model(torch.zeros(rows, T, D), lengths, forecast=True)
    return kind(*parts), Split(sequences=torch.where(steps(x, lengths).unsqueeze(-1), x, torch.nan), lengths=lengths)


@torch.no_grad()
def by_covariance(program, split):
    """log p(x) of each sequence from the covariance of all its numbers, written out."""
    of_states, of_steps = program.transition, program.emission
    covariances, P, found = [], torch.zeros(L, L), []
    for _ in range(T):
        P = of_states.weight @ P @ of_states.weight.T + torch.diag(of_states.scale**2)
        covariances.append(P)
    powers = [torch.linalg.matrix_power(of_states.weight, n) for n in range(T + 1)]
    for x, n in zip(split.sequences, split.lengths.tolist()):
        W = of_steps.weight
        blocks = [
            [
                W @ powers[t - u] @ covariances[u] @ W.T if t >= u else W @ covariances[t] @ powers[u - t].T @ W.T
                for u in range(n)
            ]
            for t in range(n)
        ]
        covariance = torch.cat([torch.cat(row, 1) for row in blocks]) + torch.diag(of_steps.scale.repeat(n) ** 2)
        mean = torch.cat([W @ powers[t + 1] @ program.start for t in range(n)])
        found.append(dist.MultivariateNormal(mean, covariance).log_prob(x[:n].flatten()))
    return torch.stack(found)


def recurrent(kind=DeepMarkov):
    torch.manual_seed(0)
    return kind(torch.zeros(L), NormalOf(L, 8, L, residual=True), BernoulliOf(L, 8, 4), BackwardGRU(4, 8, L))


def binary(rows=6, length=T):
    torch.manual_seed(1)
    return Split(sequences=torch.bernoulli(torch.full((rows, length, 4), 0.4)), lengths=torch.arange(rows) % length + 1)


def test_the_kalman_filter_is_the_density_of_all_numbers_together():
    program, split = linear()
    torch.testing.assert_close(sequences.kalman(program, split), by_covariance(program, split), rtol=1e-8, atol=1e-8)


def test_with_the_exact_guide_the_bound_and_every_weight_are_log_px():
    program, split = linear()
    exact = by_covariance(program, split)
    torch.testing.assert_close(evaluate(program, split).bound, exact)
    evidence = log_evidence(program, split, 5)
    torch.testing.assert_close(evidence.log_px, exact)
    assert evidence.standard_error.max() < 1e-6


def test_log_px_of_whole_sequences_is_that_of_the_kalman_filter():
    program, split = linear(widened=1.2, rows=60)
    evidence = log_evidence(program, split, 100)
    exact = by_covariance(program, split)
    assert_evidence_is(evidence, exact, sees=1.0)
    z = (evidence.log_px - exact) / evidence.standard_error
    assert_estimate_is(z.mean(), 0.0, 60**-0.5, sees=1.2)
    assert 0.6 < z.std() < 1.4  # of 60 normal numbers, each end in 1e-5


class OneSite(DeepMarkov):
    """The same with one site of noise for all steps: z_t = loc(z_{t−1}) + scale(z_{t−1}) e_t, e ~ N(0, I)."""

    def model(self, x, lengths):
        seen = steps(x, lengths)
        with pyro.plate("rows", len(x)):
            e = pyro.sample("e", dist.Normal(0.0, torch.ones(x.shape[1], L)).mask(seen.unsqueeze(-1)).to_event(2))
            z, states = self.start.expand(*e.shape[:-2], L), []
            for t in range(x.shape[1]):
                base = self.transition(z).base_dist
                z = base.loc + base.scale * e[..., t, :]
                states.append(z)
            pyro.sample("x", self.emission(torch.stack(states, -2)).mask(seen).to_event(1), obs=x)

    def guide(self, x, lengths):
        with pyro.plate("rows", len(x)):
            q = dist.Normal(0.1, torch.full((len(x), x.shape[1], L), 0.9))
            pyro.sample("e", q.mask(steps(x, lengths).unsqueeze(-1)).to_event(2))


class TwoPlates(OneSite):
    """The same with the noise in a plate over the steps: then every site is in both plates."""

    def model(self, x, lengths):
        seen = steps(x, lengths)
        with pyro.plate("rows", len(x), dim=-2), pyro.plate("steps", x.shape[1], dim=-1), poutine.mask(mask=seen):
            e = pyro.sample("e", dist.Normal(torch.zeros(L), 1.0).to_event(1))
            z, states = self.start.expand(*e.shape[:-2], L), []
            for t in range(x.shape[1]):
                base = self.transition(z).base_dist
                z = base.loc + base.scale * e[..., t, :]
                states.append(z)
            pyro.sample("x", self.emission(torch.stack(states, -2)), obs=x)

    def guide(self, x, lengths):
        plates = pyro.plate("rows", len(x), dim=-2), pyro.plate("steps", x.shape[1], dim=-1)
        with plates[0], plates[1], poutine.mask(mask=steps(x, lengths)):
            pyro.sample("e", dist.Normal(torch.full((L,), 0.1), 0.9).to_event(1))


@pytest.mark.parametrize("kind", [OneSite, TwoPlates])
def test_other_forms_of_the_program_have_the_same_log_px(kind):
    """Six rows of six steps: the plate over the rows is found although both have one size."""
    program, split = linear(kind=kind)
    torch.nn.init.constant_(program.emission.scale, 5.0)  # so that a guide that sees nothing has good weights
    evidence = log_evidence(program, split, 4000, chunk=100_000)
    assert evidence.log_px.shape == (6,)
    assert_evidence_is(evidence, by_covariance(program, split), sees=1.0)
    assert evaluate(program, split).bound.shape == (6,)


def test_padding_changes_nothing():
    """NaN, other numbers and more of it: bound and gradients have the same bits, also with a recurrent guide."""
    program, split = recurrent(), binary()
    seen = steps(split.sequences, split.lengths).unsqueeze(-1)
    longer = torch.full((6, T + 2, 4), 7.0)
    longer[:, :T] = torch.where(seen, split.sequences, -1e30)
    found = []
    for x in (torch.where(seen, split.sequences, 0.0), torch.where(seen, split.sequences, torch.nan), longer):
        x = fixed_x(program, Split(sequences=x, lengths=split.lengths))
        torch.manual_seed(2)
        program.zero_grad()
        loss = Trace_ELBO().differentiable_loss(program.model, program.guide, *x)
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in program.parameters())])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-12, atol=1e-12)
    assert all(part.isfinite().all() for part in found[0])


def test_nan_that_is_only_masked_is_refused():
    """A mask hides its value, and not its gradient: 0 × NaN. The first batch is checked."""

    class Masked(DeepMarkov):
        def observe(self, batch, generator=None):
            return batch.sequences, batch.lengths

    program, split = linear(kind=Masked)
    with pytest.raises(ValueError, match=r"NaN|nan"):
        fit(program, Data("d", split, split, split), epochs=1, batch_size=3, lr=1e-3, progress=False)


def test_reversed_steps_twice_are_the_steps():
    x, lengths = torch.randn(4, 5, 2), torch.tensor([5, 1, 3, 4])
    once = reversed_steps(x, lengths)
    torch.testing.assert_close(reversed_steps(once, lengths), x)
    for row, given, n in zip(once, x, lengths.tolist()):
        torch.testing.assert_close(row[:n], given[:n].flip(0))


def test_the_log_px_of_the_ball_sums_to_one():
    """Over all sequences of one step, of three cells."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(balls, "CELLS", 3)
        every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 6).reshape(64, 2, 3)
        total = balls.log_px(Split(sequences=every, lengths=torch.full((64,), 2)), grid=30).logsumexp(0)
        assert total.item() == pytest.approx(0.0, abs=1e-9)
        short = balls.log_px(Split(sequences=every, lengths=torch.ones(64, dtype=torch.long)), grid=30)
        assert short.logsumexp(0).item() == pytest.approx(math.log(8), abs=1e-9)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("loss", [Trace_ELBO(), ImportanceWeighted(3)], ids=["ELBO", "L_3"])
def test_compiled_is_eager(loss, quick_compiler, no_validation):
    program = recurrent()
    x, lengths = fixed_x(program, binary(length=2))
    graph = compiled(loss, program.model, program.guide, x, lengths)
    for rows in (lengths, lengths.flip(0)):
        found = []
        for how in (graph, lambda *args: loss.differentiable_loss(program.model, program.guide, *args)):
            torch.manual_seed(3)
            program.zero_grad()
            how(x, rows).backward()
            found.append([p.grad.clone() for p in program.parameters()])
        torch.testing.assert_close(*found)


class LoopOverLengths(DeepMarkov):
    """A loop that ends at the longest sequence of the batch, which a graph of one shape cannot do."""

    def model(self, x, lengths):
        return super().model(x[:, : int(lengths.max())], lengths)

    def guide(self, x, lengths):
        return super().guide(x[:, : int(lengths.max())], lengths)


@pytest.mark.slow
@needs_compiler
def test_a_loop_over_lengths_cannot_be_compiled_and_says_where(quick_compiler, no_validation):
    program = recurrent(LoopOverLengths)
    x = fixed_x(program, binary(length=2))
    words = r"test_sequences.*lengths.max\(\).*a number is read from a tensor.*must not depend on the values"
    with pytest.raises(Untraceable, match=words) as caught:
        compiled(Trace_ELBO(), program.model, program.guide, *x)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@needs_compiler
def test_a_derivative_through_the_guide_is_compiled(quick_compiler, no_validation):
    program, loss = recurrent(DeepMarkov), StickingTheLanding()
    x = fixed_x(program, binary(length=2))
    values = []
    for way in (compiled(loss, program.model, program.guide, *x), loss(program.model, program.guide)):
        program.zero_grad()
        torch.manual_seed(0)
        value = way(*x)
        value.backward()
        values.append([value.detach(), *(p.grad for p in program.parameters() if p.grad is not None)])
    for got, wanted in zip(*values):
        torch.testing.assert_close(got, wanted)


@pytest.mark.slow
def test_it_is_measured_and_written(tmp_path, capsys):
    torch.set_default_dtype(torch.float32)
    words = ["--quick", "--quiet", "--rows", "50", "--out", str(tmp_path / "out")]
    assert sequences.main(words) == 0
    parts = json.loads((tmp_path / "out.json").read_text())["parts"]
    assert set(parts) == {"balls", "linear"}
    for part in parts.values():
        per_step = {name: entry["value"] for name, entry in part["per_step"].items()}
        assert per_step["bound"] < per_step["log_px"] < 0
    assert parts["balls"]["history"][-1]["valid_bound"] > parts["balls"]["history"][0]["valid_bound"]
    assert (tmp_path / "out.png").exists() and (tmp_path / "out" / "balls-seed0.png").exists()
    assert sequences.main(words) == 0  # nothing is done again
    assert "known" in capsys.readouterr().out
