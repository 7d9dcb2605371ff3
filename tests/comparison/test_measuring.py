"""Numbers of an estimator against closed forms, stored gradients and exact gradients."""

import math

import numpy as np
import pyro
import pytest
import torch
from comparing import compare, oracle
from monte_carlo import assert_estimate_is
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from pyro_vae.comparison.measuring import seconds_per_draw, times_of_draws
from pyro_vae.estimators import (
    ScoreFunction,
    StickingTheLanding,
)
from pyro_vae.linear_gaussian import (
    maximum_likelihood,
    mean_field_elbo_variance,
    mean_field_guide,
    path_variance,
    trace_elbo_variance,
)


@pytest.mark.slow
def test_measured_variances_are_the_closed_forms():
    torch.manual_seed(0)
    program = maximum_likelihood(torch.randn(200, 4, dtype=torch.float64) @ torch.randn(4, 4).double(), latent=2)
    program.posterior = mean_field_guide(program)
    x = program.simulate(5)
    forms = {"L^A": trace_elbo_variance, "L^B": mean_field_elbo_variance, "STL": path_variance}
    estimators = {"L^A": Trace_ELBO(), "L^B": TraceMeanField_ELBO(), "STL": StickingTheLanding()}
    result = compare(program.model, program.guide, x, draws=1500, estimators=estimators)
    for name, form in forms.items():
        exact = form(program, x)
        of_guide = sum(variance.sum().item() for key, variance in exact.items() if key.startswith("posterior."))
        of_model = sum(variance.sum().item() for key, variance in exact.items() if not key.startswith("posterior."))
        measured = result.estimators[name]
        assert measured.model.variance.value == pytest.approx(of_model, rel=0.05)
        assert measured.guide.variance.value == pytest.approx(of_guide, rel=0.05, abs=1e-20)
    assert not result.disagreements()


@pytest.mark.slow
def test_statistics_are_those_of_the_stored_gradients_and_losses():
    program, x = oracle(offset=0.3)
    result = compare(
        program.model, program.guide, x, draws=60, seed=7, estimators={"L^A": Trace_ELBO()}, engine="eager"
    )
    recorded, losses = [], []

    class Recorder(Trace_ELBO):
        def differentiable_loss(self, *args):
            loss = super().differentiable_loss(*args)
            names = ["loc_weight", "loc_bias", "scale_tril"]
            leaves = [getattr(program.posterior, name) for name in names]
            recorded.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, leaves, retain_graph=True)]))
            losses.append(loss.item())
            return loss

    again = compare(program.model, program.guide, x, draws=60, seed=7, estimators={"L^A": Recorder()}, engine="eager")
    g, bound = torch.stack(recorded[-60:]).numpy(), -np.array(losses[-60:]) / 6
    measured = result.estimators["L^A"]
    assert measured.guide == again.estimators["L^A"].guide
    sd = g.std(0, ddof=1)
    varying = sd > 0  # the upper triangle of scale_tril has no gradient
    assert measured.guide.varying == varying.sum() == 15
    assert measured.guide.variance.value == pytest.approx((sd**2).sum())
    assert measured.guide.snr.value == pytest.approx((abs(g.mean(0)) / np.where(varying, sd, 1)).sum() / 15)
    square = (g.mean(0) ** 2).sum() - (sd**2).sum() / 60
    assert measured.guide.norm_ratio.value == pytest.approx(math.sqrt(max(square, 0) / (sd**2).sum()))
    assert measured.bound.mean == pytest.approx(bound.mean())
    assert measured.bound.variance == pytest.approx(bound.var(ddof=1))
    assert measured.bound.standard_error == pytest.approx(bound.std(ddof=1) / math.sqrt(60))


@pytest.mark.slow
def test_bound_lies_about_the_exact_one():
    program, x = oracle(offset=0.3)
    estimators = {"L^A": Trace_ELBO(), "score": ScoreFunction(2, "leave-one-out")}
    result = compare(program.model, program.guide, x, draws=400, estimators=estimators)
    for measured in result.estimators.values():
        exact = program.elbo(x).mean().item()
        assert_estimate_is(measured.bound.mean, exact, measured.bound.standard_error, sees=1.0)
    assert result.images == 6


@pytest.mark.slow
def test_minibatch_noise_is_that_of_the_exact_gradient():
    program, _ = oracle(offset=0.5)
    batches = [(program.simulate(4),) for _ in range(12)]
    result = compare(program.model, program.guide, batches=batches, draws=60, estimators={"STL": StickingTheLanding()})
    exact = torch.stack(
        [
            torch.cat(
                [g.flatten() for g in torch.autograd.grad(program.elbo(x).sum(), [*program.posterior.parameters()])]
            )
            for (x,) in batches
        ]
    )
    assert result.estimators["STL"].guide.minibatch_variance == pytest.approx(exact.var(0).sum().item(), rel=0.05)
    bounds, measured = torch.stack([program.elbo(x).mean() for (x,) in batches]), result.estimators["STL"].bound
    noise = math.sqrt(4 * bounds.var().item() * measured.variance / 60 / 12)  # of the variance between batches
    assert_estimate_is(measured.minibatch_variance, bounds.var(), noise, sees=bounds.var())
    assert_estimate_is(measured.mean, bounds.mean(), measured.standard_error, sees=1.0)
    assert "between batches" in str(result)
    assert result.estimators["STL"].model.minibatch_variance > 0


def test_a_loss_that_is_nan():
    program, x = oracle()
    program.bias.data[0] = math.nan
    with pyro.validation_enabled(False), pytest.raises(ValueError, match=r"L\^A, draw 1 of 100: the loss is nan"):
        compare(program.model, program.guide, x, estimators={"L^A": Trace_ELBO()})


def test_a_gradient_that_is_not_finite():
    program, x = oracle()

    class Root(Trace_ELBO):
        calls = 0

        def differentiable_loss(self, *args):
            Root.calls += 1
            zero = 0 * program.bias.sum() if Root.calls == 24 else 1 + 0 * program.bias.sum()  # 21 for the time
            return super().differentiable_loss(*args) + zero.sqrt()

    with pytest.raises(ValueError, match="root, draw 3 of 100: a gradient is not finite"):
        compare(program.model, program.guide, x, estimators={"root": Root()}, engine="eager")


def test_estimators_take_turns_and_their_first_draws_are_not_timed():
    class Clock:
        """Says that the n-th draw of ``a`` takes n seconds, and that of ``b`` ten times as many."""

        batches, order = [()], []

        def draw(self, name, elbo, args, number, draws):
            self.order.append(name)
            return 0.0, number * {"a": 1.0, "b": 10.0}[name]

    kinds, clock = {"a": Trace_ELBO(), "b": Trace_ELBO()}, Clock()
    assert times_of_draws(clock, kinds, 3) == {"a": [2.0, 3.0, 4.0], "b": [20.0, 30.0, 40.0]}
    assert clock.order == ["a", "b"] * 4
    assert seconds_per_draw(clock, kinds, 3) == {"a": 3.0, "b": 30.0}


def test_two_draws_are_enough_for_a_p_value():
    """Of Welch's test of one projection; two of them would leave no degree of freedom."""
    program, x = oracle(offset=0.3)
    found = compare(program, x, draws=2, estimators={"L^A": Trace_ELBO(), "score": ScoreFunction(2)})
    assert len(found.agreements) == 2 and all(0 < pair.p_value <= 1 for pair in found.agreements)
