"""Trials: densities at given values, and results that differ by no more than rounding."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import flat_guide, flat_model
from pyro import poutine
from torch.distributions import Normal

from pyro_vae.tracing.trials import agree, by_function, cut_rows, replayed

X = torch.tensor([0.5, -1.0, 2.0])


def test_sites_are_scored_at_the_values_that_are_given():
    z = torch.arange(6.0).reshape(3, 2) / 10
    values = poutine.trace(flat_guide).get_trace(X)
    values.nodes["z"]["value"] = z
    sites = replayed(flat_model, flat_guide, (X,), {}, values)
    assert set(sites) == {("model", "z"), ("model", "x"), ("guide", "z")}
    expected = {
        ("model", "z"): Normal(0.0, 1.0).log_prob(z).sum(-1),
        ("model", "x"): Normal(z.sum(-1), 0.5).log_prob(X),
        ("guide", "z"): Normal(X[:, None], 0.3).log_prob(z).sum(-1),
    }
    for key, site in sites.items():
        torch.testing.assert_close(site["log_prob"], expected[key])


def test_scales_and_masks_count():
    def model(x):
        with pyro.plate("images", len(x)), poutine.scale(scale=3.0), poutine.mask(mask=x > 0):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide(x):
        with pyro.plate("images", len(x)), poutine.scale(scale=2.0), poutine.mask(mask=x > 0):
            pyro.sample("z", dist.Normal(x, 1.0))

    values = poutine.trace(guide).get_trace(X)
    sites, z = replayed(model, guide, (X,), {}, values), values.nodes["z"]["value"]
    torch.testing.assert_close(sites["guide", "z"]["log_prob"], 2 * (X > 0) * Normal(X, 1.0).log_prob(z))
    torch.testing.assert_close(sites["model", "z"]["log_prob"], 3 * (X > 0) * Normal(0.0, 1.0).log_prob(z))


def test_a_flow_without_an_inverse_at_the_values_of_another_run_is_left_out():
    class OneWay(dist.TransformModule):
        domain = codomain = dist.constraints.real
        bijective = True

        def _call(self, x):
            return 2 * x

        def _inverse(self, y):
            raise KeyError("only draws of its own have an inverse")

        def log_abs_det_jacobian(self, x, y):
            return torch.full_like(x, 2.0).log()

    def model(x):
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide(x):
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.TransformedDistribution(dist.Normal(torch.zeros(3), 1.0), [OneWay()]))

    assert set(replayed(model, guide, (X,), {}, poutine.trace(model).get_trace(X))) == {("model", "z")}


def test_sites_of_both_functions_by_name():
    traces = [poutine.trace(function).get_trace(X) for function in (flat_model, flat_guide)]
    sites = by_function(*traces)
    assert sites["model", "x"] is traces[0].nodes["x"] and sites["guide", "z"] is traces[1].nodes["z"]
    assert set(sites) == {("model", "z"), ("model", "x"), ("guide", "z")}


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        (torch.ones(3), torch.ones(3, 1), True),
        (torch.ones(3), torch.ones(2), False),
        (torch.ones(3), torch.ones(3) + 1e-4, True),
        (torch.ones(3), torch.ones(3) + 1e-2, False),
        (torch.ones(3).double(), torch.ones(3).double() + 1e-4, False),
        (torch.tensor([torch.nan]), torch.tensor([torch.nan]), True),
        (torch.tensor([torch.nan]), torch.tensor([0.0]), False),
    ],
)
def test_what_differs_by_more_than_rounding(one, other, alike):
    assert agree(one, other) is alike


def test_rows_are_cut_of_what_has_that_many():
    args, kwargs = cut_rows(3, 1, 3, (X, [X, torch.zeros(2)]), {"labels": torch.arange(3), "rate": 0.1, "n": X[0]})
    assert args[0].tolist() == [-1.0, 2.0] and args[1][0].tolist() == [-1.0, 2.0] and len(args[1][1]) == 2
    assert kwargs["labels"].tolist() == [1, 2] and kwargs["rate"] == 0.1 and kwargs["n"] == 0.5
