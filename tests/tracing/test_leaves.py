"""Parameters are found where they were put."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import SHAPE, normal_model, small_vae
from pyro import poutine
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoNormal, AutoNormalMessenger
from pyro.nn import PyroModule, PyroParam
from torch import nn

from pyro_vae import priors
from pyro_vae.tracing.leaves import find_parameters


def test_parameters_of_a_vae_are_named_and_apart():
    vae = small_vae()
    found, *_ = find_parameters(vae.model, vae.guide, (torch.zeros(2, *SHAPE),))
    expected = dict(vae.named_parameters())
    assert set(found.guide) == {name for name in expected if name.startswith("posterior.")}
    assert set(found.model) == {name for name in expected if name.startswith("likelihood.")}
    assert all(leaf is expected[name] for name, leaf in (found.model | found.guide).items())
    assert found.shared == ()


def test_an_encoder_that_the_prior_calls_is_shared_and_counted_as_the_guides():
    vae = small_vae()
    vae.prior = priors.Vamp(vae.posterior, torch.rand(4, *SHAPE))
    found, *_ = find_parameters(vae.model, vae.guide, (torch.zeros(2, *SHAPE),))
    assert set(found.shared) == set(found.guide)
    assert any(name.startswith("prior.") for name in found.model)
    assert len(found.guide) == len(list(vae.posterior.parameters()))


def test_frozen_parameters_arguments_and_unused_ones_are_none():
    vae = small_vae()
    vae.posterior.head.bias.requires_grad_(False)
    vae.register_parameter("unused", nn.Parameter(torch.zeros(1)))
    x = torch.rand(2, *SHAPE).requires_grad_()
    found, *_ = find_parameters(lambda x: vae.model(x.detach().round()), vae.guide, (x,))
    assert not any(leaf is x for leaf in found.guide.values())
    assert not any(name.endswith(("unused", "head.bias")) for name in (found.guide | found.model))


def test_parameters_in_pyros_store_are_found_unconstrained():
    def model():
        normal_model(pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive))

    def guide():
        loc = pyro.param("loc", torch.zeros(3))
        with pyro.plate("images", 3):
            pyro.sample("z", dist.Normal(loc, 1.0))

    found, *_ = find_parameters(model, guide)
    store = pyro.get_param_store()
    assert found.model["scale"] is store["scale"].unconstrained()
    assert found.guide["loc"] is store["loc"].unconstrained()


def test_parameters_behind_closures_handlers_globals_and_bare_tensors():
    layer, bare = nn.Linear(1, 1), torch.zeros(3, requires_grad=True)

    def model():
        normal_model(layer(torch.ones(1)).exp())

    def guide():
        with pyro.plate("images", 3):
            pyro.sample("z", dist.Normal(bare, 1.0))

    found, *_ = find_parameters(poutine.scale(model, 2.0), poutine.block(guide, hide=["nothing"]))
    assert set(found.model) == {"layer.weight", "layer.bias"}
    assert list(found.guide.values()) == [bare]


@pytest.mark.parametrize("kind", [AutoNormal, AutoLowRankMultivariateNormal, AutoNormalMessenger])
def test_parameters_of_autoguides(kind):
    guide = kind(normal_model)
    if kind is AutoNormalMessenger:
        guide()  # it makes its parameters when it first runs
    found, *_ = find_parameters(normal_model, guide)
    sizes = {AutoNormal: [3, 3], AutoNormalMessenger: [3, 3], AutoLowRankMultivariateNormal: [3, 3, 6]}
    assert sorted(leaf.numel() for leaf in found.guide.values()) == sizes[kind]
    assert not found.model
    assert all(leaf.is_leaf and leaf.requires_grad for leaf in found.guide.values())


def test_parameters_of_a_pyro_module():
    class Program(PyroModule):
        def __init__(self):
            super().__init__()
            self.scale = PyroParam(torch.tensor(2.0), constraint=dist.constraints.positive)

        def forward(self):
            normal_model(self.scale)

    program = Program()
    guide = AutoNormal(program)
    found, *_ = find_parameters(program, guide)
    assert [name.split(".")[-1] for name in found.model] == ["scale_unconstrained"]
    assert len(found.guide) == 2


def test_two_modules_with_equal_names_keep_all_parameters():
    model_layer, guide_layer = nn.Linear(1, 3), nn.Linear(1, 3)

    class Part(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def model(self):
            normal_model(self.layer(torch.ones(1)).exp())

        def guide(self):
            with pyro.plate("images", 3):
                pyro.sample("z", dist.Normal(self.layer(torch.ones(1)), 1.0))

    found, *_ = find_parameters(Part(model_layer).model, Part(guide_layer).guide)
    assert {id(leaf) for leaf in found.model.values()} == {id(leaf) for leaf in model_layer.parameters()}
    assert {id(leaf) for leaf in found.guide.values()} == {id(leaf) for leaf in guide_layer.parameters()}


def test_sites_that_differ_are_an_error():
    def guide():
        with pyro.plate("images", 3):
            pyro.sample("Z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"only in the model: \['z'\]"):
        find_parameters(normal_model, guide)


def test_the_observations_of_a_guide_that_runs_the_model_are_not_its_own():
    guide = AutoNormalMessenger(normal_model)
    guide()
    _, model_trace, guide_trace = find_parameters(normal_model, lambda: guide())
    assert "x" in model_trace and "x" not in guide_trace
