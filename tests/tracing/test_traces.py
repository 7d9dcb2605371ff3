"""Paired traces: what is drawn once, and by whom."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import flat_guide, flat_model, grid_guide, grid_model

from pyro_vae.tracing.paths import Detached
from pyro_vae.tracing.traces import log_weights, paired_traces, plate_nesting

B = 4


def test_the_guide_runs_once_and_the_search_for_plates_draws_nothing():
    state, calls = torch.get_rng_state(), []
    assert plate_nesting(grid_model, grid_guide, (torch.randn(B, generator=torch.Generator()),)) == 2
    assert torch.equal(state, torch.get_rng_state())
    paired_traces(flat_model, lambda x: [calls.append(1), flat_guide(x)], (torch.zeros(B),), particles=7, nesting=1)
    assert len(calls) == 1


@pytest.mark.parametrize(("K", "vectorize"), [(1, None), (3, True), (3, False)])
def test_a_handler_reaches_the_guide_alone_and_the_model_takes_its_draws(K, vectorize):
    loc = torch.zeros(B, requires_grad=True)
    arguments = (flat_model, lambda x: flat_guide(loc + x), (torch.randn(B),))
    for handler in (None, Detached()):
        model_trace, guide_trace = paired_traces(*arguments, particles=K, vectorize=vectorize, handler=handler)
        of_model, of_guide = model_trace.nodes["z"], guide_trace.nodes["z"]
        assert torch.equal(of_model["value"], of_guide["value"])
        assert of_guide["value"].requires_grad == (handler is None)
        assert ("score" in of_guide) == (handler is not None) and "score" not in of_model


@pytest.mark.parametrize(("K", "nesting"), [(1, None), (1, 1), (3, None), (3, 1)])
def test_arguments_may_have_names(K, nesting):
    x, found = torch.randn(B), []
    model, guide = (lambda *, x, of=of: of(x) for of in (flat_model, flat_guide))
    for programs, args, kwargs in (((flat_model, flat_guide), (x,), None), ((model, guide), (), {"x": x})):
        torch.manual_seed(0)
        found.append(log_weights(*paired_traces(*programs, args, kwargs, particles=K, nesting=nesting)))
    assert torch.equal(*found)
    assert plate_nesting(model, guide, (), {"x": x}) == 1


@pytest.mark.parametrize("settings", [{}, {"nesting": 1}, {"particles": 1, "nesting": 1}])
def test_a_single_particle_has_no_plate_of_its_own(settings):
    x = torch.randn(B)
    traces = paired_traces(flat_model, flat_guide, (x,), **settings)
    for trace in traces:
        assert [frame.name for frame in trace.nodes["z"]["cond_indep_stack"]] == ["images"]
        assert trace.nodes["z"]["log_prob"].shape == (B,)


def test_the_search_for_plates_keeps_the_parameters_that_it_makes():
    def program():
        pyro.sample("z", dist.Normal(pyro.param("made", torch.randn(3)), 1.0).to_event(1))

    assert plate_nesting(program, program) == 0
    made = pyro.get_param_store()["made"].clone()
    program()
    assert torch.equal(pyro.get_param_store()["made"], made)
