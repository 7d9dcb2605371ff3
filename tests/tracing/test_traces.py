"""Paired traces: what is drawn once, and by whom."""

import pytest
import torch
from programs import flat_guide, flat_model, grid_guide, grid_model

from pyro_vae.tracing.paths import Detached
from pyro_vae.tracing.traces import paired_traces, plate_nesting

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
