"""The sites of a trace: which have a density, and what of their values counts."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import flat_guide, flat_model
from pyro import poutine

from pyro_vae.tracing.messages import masks, sample_sites
from pyro_vae.tracing.traces import paired_traces


def test_values_without_a_density_are_no_sites():
    model_trace, _ = paired_traces(flat_model, flat_guide, (torch.zeros(4),))
    assert list(sample_sites(model_trace)) == ["z", "x"]


ROW, COLUMN = torch.tensor([True, False, True]), torch.tensor([[True], [False]])


GRID = dist.Normal(torch.zeros(2, 3), 1.0)


@pytest.mark.parametrize(
    ("fn", "outer"),
    [
        (GRID, None),
        (GRID.mask(ROW), None),
        (GRID.mask(ROW).to_event(1), True),
        (GRID.to_event(1).mask(COLUMN.squeeze(-1)), None),
        (GRID.mask(ROW).mask(COLUMN), None),
        (GRID.mask(ROW), COLUMN),
        (GRID.mask(ROW).to_event(1), COLUMN.squeeze(-1)),
        (GRID.mask(True).to_event(2), False),
        (GRID.mask(False), True),
    ],
)
def test_masks_are_where_a_value_changes_the_log_probability(fn, outer):
    program = lambda value: pyro.sample("z", fn, obs=value)  # noqa: E731
    program = program if outer is None else poutine.mask(program, mask=outer)
    value = torch.randn(2, 3, requires_grad=True)
    trace = poutine.trace(program).get_trace(value)
    (slope,) = torch.autograd.grad(trace.log_prob_sum() + 0 * value.sum(), value)
    found = [mask.expand(2, 3) for mask in masks(trace.nodes["z"])]
    assert torch.equal(torch.stack([torch.ones(2, 3).bool(), *found]).all(0), slope != 0)
