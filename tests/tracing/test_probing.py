"""A trial run leaves a program as it was; the modules and tensors that it refers to."""

import functools
import random
from typing import NamedTuple

import numpy as np
import pyro
import pytest
import torch
from programs import normal_model
from pyro.infer.autoguide import AutoIAFNormal, AutoLowRankMultivariateNormal, AutoNormal, AutoNormalMessenger
from torch import nn

from pyro_vae.tracing.leaves import find_parameters
from pyro_vae.tracing.probing import evaluating, left_as_it_was, map_tensors, modules, tensors


def test_modules_are_found_through_what_a_function_refers_to():
    class Plain:
        def __init__(self):
            self.network = nn.Linear(1, 1)

        def model(self):
            return self.network(torch.ones(1))

    plain, norm = Plain(), nn.BatchNorm1d(1)
    found = modules(plain.model, lambda x: norm(x))
    assert found == {"network": plain.network, "norm": norm}


def test_modules_are_found_in_collections_partials_and_attributes_that_are_not_registered():
    class Program(nn.Module):
        def __init__(self, held):
            super().__init__()
            self.own, self.held = nn.Linear(1, 1), held

    layers = [nn.Linear(1, 1) for _ in range(6)]
    named, program = {"a": layers[0], "b": (layers[1], [layers[2]])}, Program([Program(layers[3]), layers[4]])
    found = modules(functools.partial(lambda x, layer: named["a"](layer(x)), layer=layers[5]), program.forward)
    assert {id(module) for module in found.values()} == {
        id(each) for each in (*layers[:3], *layers[4:], program, program.held[0])
    }
    with evaluating(program, lambda x: named["b"](x)):
        assert not any(module.training for module in (*layers[:5], program, program.own))
        assert layers[5].training
    assert all(module.training for module in (*layers, program, program.own))


def test_long_collections_and_objects_of_torch_are_not_looked_through():
    many, optimizer = [nn.Linear(1, 1)] * 1001, torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    optimizer.layer = nn.Linear(1, 1)
    assert modules(lambda x: many[0](optimizer)) == {}


def test_nothing_tells_that_the_program_ran():
    norm = nn.BatchNorm1d(2).train()
    kept = pyro.param("kept", torch.ones(1))
    leaf = pyro.get_param_store()["kept"].unconstrained()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)

    def model():
        norm(torch.randn(5, 2))

    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    with pytest.raises(KeyError), left_as_it_was(model, model):
        model()
        norm.eval()
        pyro.param("made", torch.ones(1))
        random.random(), np.random.rand()
        assert not torch.equal(norm.running_mean, before["running_mean"])
        raise KeyError
    assert norm.training
    assert all(torch.equal(buffer, before[name]) for name, buffer in norm.named_buffers())
    assert list(pyro.get_param_store().keys()) == ["kept"]
    assert pyro.get_param_store()["kept"].unconstrained() is leaf is kept.unconstrained()
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected


def test_a_tensor_that_is_in_the_store_by_two_names_is_taken_out():
    guide = AutoIAFNormal(normal_model)
    with left_as_it_was(normal_model, guide):
        found, *_ = find_parameters(normal_model, guide)
        assert len(pyro.get_param_store()) > len(found.guide) > 2
    assert len(pyro.get_param_store()) == 0


@pytest.mark.parametrize("kind", [AutoNormal, AutoLowRankMultivariateNormal, AutoNormalMessenger])
def test_a_guide_that_sets_itself_up_is_as_it_was_unless_that_is_to_be_kept(kind):
    guide = kind(normal_model)
    before = set(vars(guide))
    with left_as_it_was(normal_model, guide):
        guide()
        assert len(list(guide.parameters()))
    assert not list(guide.parameters()) and set(vars(guide)) == before
    with left_as_it_was(normal_model, guide, keep_new=True):
        guide()
        torch.rand(1)
    assert len(list(guide.parameters()))


def test_a_lazy_module_keeps_the_shapes_that_it_has_found():
    layer = nn.LazyLinear(2)
    with left_as_it_was(lambda: layer):
        layer(torch.ones(1, 3))
    assert layer(torch.ones(1, 3)).shape == (1, 2)


class Pair(NamedTuple):
    x: torch.Tensor
    name: str


def test_tensors_are_found_and_replaced_in_nested_arguments():
    a, b, c = (torch.tensor(float(i)) for i in range(3))
    value = (a, [b, 3, None], {"deep": Pair(c, "c")})
    assert list(tensors(value)) == [a, b, c]
    replaced = map_tensors(lambda tensor: tensor + 10, value)
    assert replaced == (a + 10, [b + 10, 3, None], {"deep": Pair(c + 10, "c")})
    assert isinstance(replaced[1], list) and isinstance(replaced[2]["deep"], Pair)


def test_modules_behind_partials_and_wrappers_have_names_of_their_own():
    first, second = nn.Linear(1, 1), nn.Linear(1, 1)

    def function(layer, x):
        return layer(x)

    def used(x):
        return second(x)

    @functools.wraps(used)
    def around(x):
        return x

    assert modules(functools.partial(function, first)) == {"": first}
    assert modules(first.forward, second.forward) == {"": first, "Linear": second}
    assert modules(around) == {"second": second}
    layer = first

    def one(x):
        return layer(x)

    def other():
        layer = second
        return lambda x: layer(x)

    assert modules(one, other()) == {"layer": first, "layer #2": second}
    assert modules(nn.Linear, torch) == {}


@pytest.mark.parametrize("keep_new", [False, True])
def test_a_program_that_fails_leaves_buffers_as_they_were_and_attributes_unless_they_are_kept(keep_new):
    module = nn.BatchNorm1d(2)
    buffer = module.running_mean
    with pytest.raises(RuntimeError), left_as_it_was(module.forward, keep_new=keep_new):
        module.running_mean = torch.ones(2)
        module.extra = 3
        raise RuntimeError
    assert module.running_mean is buffer and hasattr(module, "extra") == keep_new
