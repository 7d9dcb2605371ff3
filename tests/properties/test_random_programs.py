"""Any program of 1 to 3 latent sites: each estimator has the value and gradient of its bound, or refuses it.

Bounds are known by enumeration and quadrature (``random_programs``). One run has thousands of independent rows: a mean
may miss the exact one by six of its standard errors, which has a probability of 2e-9, about 5e-6 for all comparisons of
this file. An error of 12 % of the spread of one row's gradient, or more, is found.
"""

import math
import warnings
from functools import partial

import pyro
import pytest
import torch
from hypothesis import example, given, settings
from random_programs import Latent, Program, Spec, quadratures, specs

from pyro_vae import log_evidence
from pyro_vae.estimators import (
    DoublyReparameterized,
    GeneralizedDReG,
    ImportanceWeighted,
    ScoreFunction,
    StickingTheLanding,
)
from pyro_vae.evidence import UntrustedEvidence
from pyro_vae.handlers import FreeBits

pytestmark = pytest.mark.usefixtures("float64")
REPLICAS, SIGMAS = 5000, 6
AVERAGES = {  # of K draws; their bound is the ELBO
    "StickingTheLanding": StickingTheLanding,
    "ScoreFunction": ScoreFunction,
    "ScoreFunction, leave-one-out": partial(ScoreFunction, baseline="leave-one-out"),
    "FreeBits": lambda K, **options: FreeBits(0.0, K, **options),
    "ImportanceWeighted": lambda K, **options: ImportanceWeighted(1, M=K, **options),
}
WEIGHTED = {
    "ImportanceWeighted": ImportanceWeighted,
    "DoublyReparameterized": DoublyReparameterized,
    "GeneralizedDReG": GeneralizedDReG,
}  # L_K
OF_WEIGHTS = {*WEIGHTED}
NO_PLATE, NO_RSAMPLE = "do not share a plate over images", "is not reparameterised"


def reasons(spec, name):
    """Return the errors of which an estimator must raise one, as a regular expression; empty where it must not."""
    found = []
    if name in OF_WEIGHTS:
        found += [NO_PLATE] * spec.shared + ["are scaled differently"] * spec.scales_differ
    if name == "FreeBits":
        found += ["is scaled or masked"] * (spec.scales_differ or spec.masked or spec.weighted)
    if not name.startswith("ScoreFunction"):
        found += [NO_RSAMPLE] * spec.discrete
    return "|".join(found)


def gradient(estimator, program):
    pyro.set_rng_seed(0)
    loss = estimator.differentiable_loss(program.model, program.guide, program.x)
    values = torch.autograd.grad(-loss, list(program.parameters.values()), allow_unused=True)
    zeros = map(torch.zeros_like, program.parameters.values())
    return -loss.detach(), {
        name: zero if value is None else value for name, value, zero in zip(program.parameters, values, zeros)
    }


def exact(bound, leaves):
    values = torch.autograd.grad(bound, list(leaves.values()), allow_unused=True, retain_graph=True)
    return {name: 0.0 * leaves[name] if value is None else value for name, value in zip(leaves, values)}


def check_rows(found, wanted):
    """Check the mean gradient of each kind of rows."""
    for name, value in found.items():
        rows = value.reshape(2, REPLICAS)
        error = SIGMAS * rows.std(1) / math.sqrt(REPLICAS) + 1e-6
        assert ((rows.mean(1) - wanted[name]).abs() <= error).all(), (name, rows.mean(1), wanted[name], error)


def check(name, kind, K, spec, moments, vectorize):
    """Check value and gradient of an estimator against the mean and variance of its bound, for each kind of rows."""
    estimator, program = kind(K, vectorize=vectorize), Program(spec, REPLICAS)
    refusal = reasons(spec, name)
    if refusal:
        with pytest.raises(ValueError, match=refusal):
            gradient(estimator, program)
        return
    value, found = gradient(estimator, program)
    leaves, (means, variances) = moments
    if name != "FreeBits":  # whose KL has no variance
        error = SIGMAS * (REPLICAS * sum(variances)).sqrt() + 1e-6
        assert (value - REPLICAS * sum(means)).abs() <= error, (value / REPLICAS, means, error / REPLICAS)
    check_rows(found, exact(sum(means), leaves))


@given(specs())
def test_averages_have_the_value_and_gradient_of_the_elbo(spec):
    leaves, (first, second) = quadratures(spec)
    means, variances = [], []
    for rows in (first, second):
        mean = rows.mean(rows.own)
        means.append(mean)
        variances.append(rows.mean((rows.own - mean).square()).detach() / 2)
    for name, kind in AVERAGES.items():
        vectorize = [None, True, False][spec.seed % 3]
        check(name, kind, 2, spec, (leaves, (means, variances)), vectorize)


@example(Spec((Latent("normal", True, 1.0),), 0))
@given(specs().filter(lambda spec: spec.dimensions <= 2 and not spec.discrete))
def test_weighted_bounds_have_the_value_and_gradient_of_the_weights(spec):
    leaves, both = quadratures(spec)
    for K in (1, 2):
        means, variances = zip(*(rows.bound(K) for rows in both))
        for name, kind in WEIGHTED.items():
            check(name, kind, K, spec, (leaves, (means, variances)), None)


@settings(max_examples=settings.default.max_examples // 2)
@given(specs(shared=True))
def test_a_latent_of_all_rows_has_the_gradient_of_the_elbo_or_is_refused(spec):
    leaves, (first, second) = quadratures(spec)
    wanted = exact(first.mean(first.shared) + first.mean(first.own) + second.mean(second.own), leaves)
    own, runs = ("p0", "q0", "raw0"), 25  # with 24 degrees of freedom, 8 standard errors have a probability of 3e-8
    for name, kind in {**AVERAGES, **WEIGHTED}.items():
        program, refusal = Program(spec), reasons(spec, name)
        if refusal:
            with pytest.raises(ValueError, match=refusal):
                gradient(kind(2), program)
            continue
        estimator, draws = kind(200), []
        for seed in range(runs):
            pyro.set_rng_seed(seed)
            loss = estimator.differentiable_loss(program.model, program.guide, program.x)
            found = torch.autograd.grad(-loss, list(program.parameters.values()), allow_unused=True)
            draws.append([torch.zeros(2) if value is None else value.flatten() for value in found])
        for at, parameter in enumerate(program.parameters):
            values = torch.stack([draw[at] for draw in draws])
            expected = wanted[parameter].sum() if parameter in own else wanted[parameter]
            error = 8 * values.std(0) / math.sqrt(runs) + 1e-6
            assert ((values.mean(0) - expected).abs() <= error).all(), (name, parameter, values.mean(0), expected)


@given(specs().filter(lambda spec: not spec.scales_differ))
def test_the_mean_of_the_weights_is_the_evidence_with_and_without_enumeration(spec):
    _, both = quadratures(spec)
    wanted = torch.stack([rows.mean(rows.log_w.exp()) for rows in both]).detach()
    for mark in {False, spec.discrete}:
        program = Program(spec, 1000, mark)
        measure = partial(
            log_evidence, program.model, program.guide, program.x, 20, batch_size=2000, engine="eager", progress=False
        )
        if spec.uses_masked and not mark:
            with pytest.raises(ValueError, match="that are masked, and have no density of their own"):
                measure()
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UntrustedEvidence)
            found = measure()
        px = found.log_px.exp().reshape(2, 1000)
        error = SIGMAS * px.std(1) / math.sqrt(1000) + 1e-6
        assert ((px.mean(1) - wanted).abs() <= error).all(), (mark, px.mean(1), wanted, error)
