"""What estimators say of themselves, what is known of Pyro's, and what a subclass does not inherit."""

import inspect
from dataclasses import replace

import pyro.infer
import pytest
import torch
from estimator_programs import known_programs
from pyro.infer import (
    ELBO,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)

from pyro_vae import estimators, handlers
from pyro_vae.estimation.description import OF_PYRO, Description, describe
from pyro_vae.estimators import (
    CIWAE,
    PIWAE,
    Antithetic,
    DisARM,
    DoublyReparameterized,
    Estimator,
    GeneralizedDReG,
    ImportanceWeighted,
    QuasiMonteCarlo,
    ReinMax,
    RenyiBound,
    ScoreFunction,
    StickingTheLanding,
    WakeSleep,
)


class Silent(StickingTheLanding):
    """Another gradient, of which nothing is said."""


class Same(StickingTheLanding):
    description = StickingTheLanding.description


class Own(Estimator):
    description = Description.unbiased("L_5")

    def objective(self, model, guide, args, kwargs):
        raise NotImplementedError


class NotElbo(TraceMeanField_ELBO):
    is_bound = False


@pytest.mark.parametrize(
    ("estimator", "guide", "model"),
    [
        (Trace_ELBO(), "ELBO", "ELBO"),
        (JitTrace_ELBO(), "ELBO", "ELBO"),
        (TraceGraph_ELBO(), "ELBO", "ELBO"),
        (TraceMeanField_ELBO(), "ELBO", "ELBO"),
        (StickingTheLanding(5), "ELBO", "ELBO"),
        (ScoreFunction(5), "ELBO", "ELBO"),
        (ImportanceWeighted(1, M=5), "ELBO", "ELBO"),
        (ImportanceWeighted(5, M=2), "L_5", "L_5"),
        (DoublyReparameterized(1), "ELBO", "ELBO"),
        (DoublyReparameterized(5), "L_5", "L_5"),
        (DisARM(), "ELBO", "ELBO"),
        (ReinMax(), None, "ELBO"),
        (Antithetic(StickingTheLanding(4)), "ELBO", "ELBO"),
        (QuasiMonteCarlo(ImportanceWeighted(4)), "L_4, quasi-random draws", "L_4, quasi-random draws"),
        (GeneralizedDReG(5), "L_5", "L_5"),
        (RenyiBound(0, 5), "L_5", "L_5"),
        (RenyiBound(0.5, 1), "ELBO", "ELBO"),
        (RenyiELBO(num_particles=5), "L_5", "L_5"),
        (WakeSleep(), None, "ELBO"),
        (ReweightedWakeSleep(5), None, None),
        (handlers.FreeBits(0.5), None, None),
        (Silent(), None, None),
        (Same(), "ELBO", "ELBO"),
        (Own(), "L_5", "L_5"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_of_which_bound_the_gradient_is(estimator, guide, model):
    described = describe(estimator)
    assert (described.guide_gradient, described.model_gradient) == (guide, model)


def test_bounds_of_other_orders_are_others():
    half = RenyiELBO(alpha=0.5, num_particles=2)
    assert describe(half) == describe(RenyiELBO(alpha=0.5, num_particles=2, vectorize_particles=True))
    for other in (RenyiELBO(alpha=0.25, num_particles=2), RenyiELBO(alpha=0.5, num_particles=3), Trace_ELBO()):
        assert not describe(half).agrees_with(describe(other), "guide")
    assert describe(half).is_bound and not describe(RenyiELBO(alpha=-0.5)).is_bound


def test_a_renyi_bound_of_order_zero_is_that_of_its_particles():
    assert describe(RenyiELBO(alpha=0, num_particles=1)) == Description.unbiased("ELBO")
    assert describe(RenyiELBO(alpha=0, num_particles=7)) == Description.unbiased("L_7")
    assert describe(RenyiELBO(alpha=0.5, num_particles=7)).estimates.endswith("K = 7")


@pytest.mark.parametrize("kind", [Trace_ELBO, TraceGraph_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, JitTrace_ELBO])
def test_plain_estimators_are_those_whose_loss_is_the_bound_of_one_draw(kind):
    described = describe(kind())
    assert described.plain == (kind in (Trace_ELBO, TraceGraph_ELBO, TraceEnum_ELBO))
    assert described.closed_form_kl == (kind is TraceMeanField_ELBO) and described.is_bound
    assert described.enumerates == (kind is TraceEnum_ELBO)


@pytest.mark.parametrize(
    "estimator",
    [
        CIWAE(1),
        DoublyReparameterized(1),
        GeneralizedDReG(1),
        ImportanceWeighted(1),
        PIWAE(1, M=1),
        RenyiBound(0.5, 1),
        ScoreFunction(1),
        StickingTheLanding(1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_of_one_particle_a_plain_loss_is_that_of_trace_elbo(estimator):
    program, x = known_programs()[0]
    assert describe(estimator).plain
    losses = []
    for each in (estimator, Trace_ELBO()):
        torch.manual_seed(0)
        losses.append(each.loss(program.model, program.guide, x))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("kind", [JitTrace_ELBO, JitTraceGraph_ELBO, JitTraceMeanField_ELBO, JitTraceEnum_ELBO])
def test_traced_by_jit_they_estimate_and_need_the_same(kind):
    assert describe(kind()) == replace(describe(kind.__mro__[1]()), plain=False)


def test_losses_of_pyro_that_bound_nothing_are_no_bounds():
    """Reweighted wake-sleep and the tail-adaptive loss have other values, the MMD is a distance of moments."""
    said = {kind.__name__ for kind, known in OF_PYRO.items() if isinstance(known, Description) and not known.is_bound}
    assert said == {"ReweightedWakeSleep", "Trace_MMD", "TraceTailAdaptive_ELBO"}


def test_every_class_of_pyro_and_of_ours_is_described():
    of_pyro = {kind for _, kind in inspect.getmembers(pyro.infer, inspect.isclass) if issubclass(kind, ELBO)}
    assert set(OF_PYRO) == of_pyro - {ELBO}
    ours = {kind for room in (estimators, handlers) for kind in vars(room).values() if inspect.isclass(kind)}
    silent = [kind for kind in ours if issubclass(kind, Estimator) and "description" not in vars(kind)]
    assert not silent


def test_a_subclass_inherits_needs_and_no_claims():
    class Field(TraceMeanField_ELBO):
        pass

    class Enumerated(TraceEnum_ELBO):
        pass

    assert describe(Field()) == Description(closed_form_kl=True)
    assert describe(Enumerated()) == Description(enumerates=True)
    assert describe(Silent()) == Description()
    assert not describe(Silent()).plain and describe(Same()).plain


def test_nothing_agrees_with_what_claims_nothing():
    nothing = Description()
    assert not nothing.agrees_with(nothing, "guide")
    assert not describe(WakeSleep()).agrees_with(describe(WakeSleep()), "guide")
    assert describe(WakeSleep()).agrees_with(describe(Trace_ELBO()), "model")


def test_a_description_may_deny_the_bound():
    class Upper(ImportanceWeighted):
        description = Description("an upper bound", is_bound=False)

    assert not describe(Upper(2)).is_bound and describe(Upper(2)).estimates == "an upper bound"


def test_an_attribute_is_bound_counts():
    class NoBound(ImportanceWeighted):
        is_bound = False

    assert not describe(NoBound(2)).is_bound and not describe(NotElbo()).is_bound and not describe(WakeSleep()).is_bound
    assert describe(NotElbo()).closed_form_kl and describe(ImportanceWeighted(2)).is_bound


def test_a_description_that_is_none():
    class Wrong(Trace_ELBO):
        description = "the ELBO"

    with pytest.raises(ValueError, match=r"description of Wrong: wanted a pyro_vae.estimators.Description") as error:
        describe(Wrong())
    names = {"Description": estimators.Description}
    for cure in str(error.value).split("description = ")[1:]:
        assert isinstance(eval(cure.split(" where")[0], names), Description)
