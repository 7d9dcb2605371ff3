"""Traces of a program: what is drawn once, what is refused, and the weight of each image against sums by hand."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_vae.traces import common_scale, image_plate, log_weights, paired_traces, plate_nesting, sample_sites, spread

B = 4


def model(x):
    with pyro.plate("images", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.deterministic("twice", 2 * z, event_dim=1)
        pyro.sample("x", dist.Normal(z.sum(-1), 0.5), obs=x)


def guide(x):
    with pyro.plate("images", len(x)):
        pyro.sample("z", dist.Normal(x.unsqueeze(-1).expand(-1, 2), 0.3).to_event(1))


def grid(x):
    """The images at dim −2; z in a plate of parts at dim −1."""
    with pyro.plate("images", B, dim=-2):
        with pyro.plate("parts", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 0.5), obs=x.unsqueeze(-1))


def grid_guide(x):
    with pyro.plate("images", B, dim=-2), pyro.plate("parts", 3, dim=-1):
        pyro.sample("z", dist.Normal(x.unsqueeze(-1), 0.3))


@pytest.mark.parametrize("K", [1, 5])
@pytest.mark.parametrize("program", [(model, guide), (grid, grid_guide)])
def test_log_weights_by_hand(program, K):
    x = torch.randn(B)
    traces = paired_traces(*program, (x,), particles=K)
    z = traces[1].nodes["z"]["value"].reshape(K, B, -1)
    log_p = dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + dist.Normal(z.sum(-1), 0.5).log_prob(x)
    log_q = dist.Normal(x.unsqueeze(-1), 0.3).log_prob(z).sum(-1)
    torch.testing.assert_close(log_weights(*traces), log_p - log_q)
    assert image_plate(*traces).name == "images"


@pytest.mark.parametrize("K", [1, 5])
@pytest.mark.parametrize("program", [(model, guide), (grid, grid_guide)])
def test_spread_reaches_the_particle_and_image_of_a_value(program, K):
    traces = paired_traces(*program, (torch.randn(B),), particles=K)
    weights, site = torch.arange(K * B).reshape(K, B), traces[1].nodes["z"]
    shape = torch.broadcast_shapes((K, B, 1), site["value"].shape)
    reached = spread(weights, site, image_plate(*traces)).expand(shape).reshape(K, B, -1)
    assert torch.equal(reached, weights.unsqueeze(-1).expand_as(reached))


def test_the_guide_runs_once_and_the_search_for_plates_draws_nothing():
    state, calls = torch.get_rng_state(), []
    assert plate_nesting(grid, grid_guide, (torch.randn(B, generator=torch.Generator()),)) == 2
    assert torch.equal(state, torch.get_rng_state())
    paired_traces(model, lambda x: [calls.append(1), guide(x)], (torch.zeros(B),), particles=7, nesting=1)
    assert len(calls) == 1


def test_a_scale_that_all_sites_share_leaves_the_weights():
    x, half = torch.randn(B), poutine.scale(scale=0.5)
    torch.manual_seed(0)
    expected = log_weights(*paired_traces(model, guide, (x,)))
    torch.manual_seed(0)
    traces = paired_traces(half(model), half(guide), (x,))
    torch.testing.assert_close(log_weights(*traces), expected)
    assert common_scale(*traces) == 0.5
    with pytest.raises(ValueError, match="not an importance weight"):
        log_weights(*paired_traces(half(model), guide, (x,)))


def test_values_without_a_density_are_no_sites():
    model_trace, _ = paired_traces(model, guide, (torch.zeros(B),))
    assert list(sample_sites(model_trace)) == ["z", "x"]


def test_shapes_are_checked_while_validation_is_on():
    def wrong(x):
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(3, len(x)), 1.0))

    with pytest.raises(ValueError, match='at site "z", invalid log_prob shape'):
        paired_traces(wrong, wrong, (torch.zeros(B),))


def test_sites_without_a_common_plate_have_no_weight_for_each_image():
    def without(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("images", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    traces = paired_traces(without, lambda x: pyro.sample("w", dist.Normal(0.0, 1.0)), (torch.zeros(B),))
    with pytest.raises(ValueError, match=r"do not share a plate over images.*'w': \[\]"):
        log_weights(*traces)
