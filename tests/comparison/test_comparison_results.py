"""The result of a comparison: its table, its figure and its numbers for JSON."""

import json
import math

import numpy as np
import pytest
import torch
from comparing import compare, made, oracle, pair, statistics
from pyro.infer import Trace_ELBO

from pyro_vae.estimators import (
    ImportanceWeighted,
    WakeSleep,
)


@pytest.mark.slow
def test_table_fits_a_terminal_and_numbers_fit_json():
    program, x = oracle()
    estimators = {"an estimator of a very long name indeed": Trace_ELBO(), "wake-sleep": WakeSleep()}
    estimators |= {f"L_{k}": ImportanceWeighted(k) for k in range(1, 7)}
    result = compare(program.model, program.guide, batches=[(x,), (2 * x,)], draws=20, estimators=estimators)
    assert max(map(len, str(result).splitlines())) <= 110
    numbers = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert numbers["estimators"]["L_2"]["guide"]["variance"]["value"] == result.estimators["L_2"].guide.variance.value
    assert numbers["estimators"]["L_2"]["guide"]["cost"] == result.cost("L_2", "guide")
    assert result.cost(result.reference, "model") == 1.0


def test_a_frame_has_a_row_for_each_estimator_and_the_ends_of_its_intervals():
    frame = made({"A": statistics(-3.0, 2.0, 0.5), "B": statistics(-4.0, 8.0, 0.25)}).to_frame()
    row = frame.loc["A"]
    assert (row.bound, row.standard_error, row.variance, row.seconds) == (-3.0, 0.125, 4.0, 0.5)
    assert (row.guide_variance, row.guide_variance_low, row.guide_variance_high) == (2.0, 1.8, 2.4)
    assert (row.guide_snr, row.guide_norm_ratio) == (0.5, 0.25) and not any("model" in name for name in frame)


def test_a_pair_disagrees_below_its_share_of_one_per_cent():
    """Two pairs should agree, and share the chance of a false alarm."""
    pairs = [pair("A", "B", 0.006), pair("A", "C", 0.004), pair("B", "C", 1e-9, expected=False)]
    result = made({name: statistics(-3.0, 2.0, 0.5) for name in "ABC"}, pairs)
    assert result.disagreements() == (pairs[1],)


def test_costs_are_variance_times_seconds_against_those_of_the_reference():
    result = made({"A": statistics(-3.0, 2.0, 0.5), "B": statistics(-3.0, 8.0, 0.25), "C": statistics(-3.0, 0.0, 1.0)})
    assert [result.cost(name, "guide") for name in "ABC"] == [1.0, 2.0, 0.0]
    assert math.isnan(result.cost("A", "model"))  # it has no parameters
    still = made({"C": statistics(-3.0, 0.0, 1.0), "A": statistics(-3.0, 2.0, 0.5)})
    assert math.isnan(still.cost("C", "guide")) and still.cost("A", "guide") == math.inf
    assert result.to_dict()["estimators"]["B"]["guide"]["cost"] == 2.0


@pytest.mark.slow
def test_figure_shows_every_estimator_at_its_variance():
    program, x = oracle(offset=0.3)
    estimators = {"L^A": Trace_ELBO()} | {f"K = {k}": ImportanceWeighted(k) for k in (1, 4)}
    result = compare(program.model, program.guide, x, draws=20, estimators=estimators)
    guide, model, ratio = result.figure().axes
    assert [label.get_text() for label in guide.get_yticklabels()] == list(estimators)
    for axes, group in (guide, "guide"), (model, "model"):
        (points, *_), expected = axes.containers[0], [getattr(e, group) for e in result.estimators.values()]
        np.testing.assert_allclose(points.get_xdata(), [statistics.variance.value for statistics in expected])
        np.testing.assert_allclose(points.get_ydata(), [0, 1, 2])
    (points, *_) = ratio.containers[0]
    np.testing.assert_allclose(points.get_xdata(), [1, 4])
    np.testing.assert_allclose(points.get_ydata(), [result.estimators[f"K = {k}"].guide.snr.value for k in (1, 4)])


@pytest.mark.slow
def test_two_draws_make_numbers_and_a_figure_without_intervals():
    program, x = oracle(offset=0.3)
    result = compare(program.model, program.guide, x, draws=2, estimators={"L^A": Trace_ELBO()})
    variance = json.loads(json.dumps(result.to_dict(), allow_nan=False))["estimators"]["L^A"]["guide"]["variance"]
    assert variance["value"] > 0
    assert variance["low"] is variance["high"] is None
    assert len(result.figure().axes) == 2


@pytest.mark.slow
def test_intervals_that_rest_on_few_draws_are_marked_in_the_table():
    program, x = oracle(offset=0.3)

    class Heavy(Trace_ELBO):
        def differentiable_loss(self, *args):
            push = program.bias[0] * torch.distributions.Cauchy(0.0, 1e4).sample()
            return super().differentiable_loss(*args) + push - push.detach()

    light = compare(program.model, program.guide, x, estimators={"heavy": Trace_ELBO()})
    heavy = compare(program.model, program.guide, x, estimators={"heavy": Heavy()})
    assert not light.estimators["heavy"].model.variance.doubtful
    assert "?" not in str(light)
    assert heavy.estimators["heavy"].model.variance.doubtful
    assert f"{heavy.estimators['heavy'].model.variance}" in str(heavy)
    assert "? a few draws make the width" in str(heavy)
