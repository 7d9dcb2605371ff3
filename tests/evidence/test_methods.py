"""What pilot draws say of further ones, against distributions whose tails and moments are known."""

import math

import numpy as np
import pytest
import torch
from evidence_programs import images, rough, truth
from monte_carlo import assert_estimate_is
from scipy import stats

from pyro_vae.arguments import ProgramArguments
from pyro_vae.compiling import Graphs
from pyro_vae.evidence.annealing import annealing_settings
from pyro_vae.evidence.methods import (
    AnnealedDraws,
    ImportanceDraws,
    draws_for_a_normal,
    further_methods,
    relative_variance,
    skewness,
)
from pyro_vae.evidence.plan import MeasurementPlan

RNG = np.random.default_rng(0)
IMPORTANCE = ImportanceDraws(lambda batch, K, bar: None, rows=1)
ANNEALED = AnnealedDraws(None, None, None, annealing_settings(10), 1, Graphs(False, 0, "cpu"))


def lognormal(s, shape):
    return RNG.normal(-(s**2) / 2, s, shape)


def test_moments_of_a_log_normal_distribution():
    log_w, v = lognormal(0.5, (400_000, 1)), math.expm1(0.25)
    assert relative_variance(log_w) == pytest.approx(v, rel=0.02)
    assert skewness(log_w) == pytest.approx((v + 3) * math.sqrt(v), rel=0.05)
    assert ANNEALED.variance(lognormal(0.5, (16, 500))).mean() == pytest.approx(v, rel=0.3)


@pytest.mark.parametrize("s", [0.5, 1.0])
def test_so_many_draws_make_z_about_normal(s):
    v = math.expm1(s**2)
    (K,) = draws_for_a_normal(np.array([v]), np.array([(v + 3) * math.sqrt(v)]))
    w = np.exp(lognormal(s, (int(K), 4000)))
    z = np.log(w.mean(0)) / (w.std(0, ddof=1) / w.mean(0) / math.sqrt(K))
    assert -0.16 < z.mean() < 0.0
    assert 0.935 < (np.abs(z) < 1.96).mean() < 0.96


def test_importance_draws_are_trusted_by_their_tails():
    log_u = np.log(RNG.random((1000, 50)))
    assert IMPORTANCE.trusts(-0.2 * log_u).all() and not IMPORTANCE.trusts(-0.6 * log_u).any()
    assert IMPORTANCE.trusts(np.zeros((1000, 1))).all()  # no tail
    assert IMPORTANCE.trusts(-40 + 1e-14 * RNG.normal(size=(1000, 3))).all()  # nothing but rounding


def test_annealed_draws_are_trusted_by_their_spread_and_common_tail():
    assert ANNEALED.trusts(lognormal(0.5, (16, 100))).all()
    assert not ANNEALED.trusts(lognormal(1.5, (16, 100))).any()
    heavy = -0.6 * np.log(RNG.random((16, 100)))  # log w has a variance of 0.36 only
    assert not ANNEALED.trusts(heavy).any()


def ladder(program, x):
    plan = MeasurementPlan.of(program.model, program.guide, ProgramArguments.of((x,)), None, len(x))
    return plan, further_methods(program.model, program.guide, plan, compiled=False, chunk=20_000, proposal=None)


@pytest.mark.slow
@pytest.mark.parametrize("number, name, draws", [(0, "local", 1000), (1, "annealed-100", 16)])
def test_further_draws_weigh_without_bias(number, name, draws):
    program = rough(narrower=0.6)
    x = images(program, 2).repeat_interleave(100, 0)
    plan, methods = ladder(program, x)
    method = methods[number]
    assert (method.name, method.draws) == (name, draws)
    torch.manual_seed(0)
    with torch.no_grad():
        w = np.exp(method.weigh(plan.given) - truth(program, x).numpy())
    means = w.reshape(draws, 2, 100).mean((0, 2))
    assert_estimate_is(means, np.ones(2), np.full(2, w.std() / math.sqrt(100 * draws)), sees=0.2, draws=100 * draws)


def test_methods_follow_what_the_latent_variables_are(monkeypatch):
    program = rough()
    assert [method.name for method in ladder(program, images(program, 2))[1]] == [
        "local",
        "annealed-100",
        "annealed-400",
    ]
    monkeypatch.setattr("pyro_vae.evidence.methods.MOST_DIMENSIONS", 1)
    assert [method.name for method in ladder(program, images(program, 2))[1]] == ["annealed-100", "annealed-400"]


def test_pilots_are_as_many_as_the_docstrings_say():
    assert IMPORTANCE.pilots * IMPORTANCE.draws == 1000  # of log_evidence
    assert ANNEALED.draws == annealing_settings().chains and ANNEALED.name == "annealed-10"


@pytest.mark.parametrize("s, trusted", [(0.7, True), (1.3, False)])
def test_chains_are_trusted_where_their_log_weights_hardly_differ(s, trusted):
    """Of 64 chains the upper limit of a variance of 0.5 is below 1.2, that of 1.7 is above it."""
    assert ANNEALED.trusts(lognormal(s, (64, 60))).all() == trusted
    assert ANNEALED.trusts(lognormal(s, (64, 60))).any() == trusted


def test_skewness_is_that_of_scipy():
    log_w = lognormal(1.0, (500, 3))
    np.testing.assert_allclose(skewness(log_w), stats.skew(np.exp(log_w)), rtol=1e-9)
