"""By what two programs are compared."""

import copy
import functools
import json

import numpy as np
import pytest
import torch
from many_programs import programs, vae
from torch import nn

from pyro_vae.structure import difference, shared_names, structure


def test_programs_equal_themselves_through_json_and_no_other():
    found = {name: structure(program) for name, (program, _) in programs().items()}
    for name, made_of in found.items():
        assert difference(json.loads(json.dumps(made_of)), made_of) is None, name
    texts = [json.dumps(made_of, sort_keys=True) for made_of in found.values()]
    assert len(set(texts)) == len(texts)


def test_values_of_parameters_and_modes_do_not_count():
    assert difference(structure(vae()), structure(vae().eval().requires_grad_(False))) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda layer: setattr(layer, "rate", float("inf")), "its Linear: rate is inf in one and missing in the other"),
        (lambda layer: setattr(layer, "table", torch.ones(3)), r"table is torch\.float32 \(3,\) .* in one and missing"),
        (lambda layer: setattr(layer, "f", functools.partial(torch.relu)), "f is .*relu.* in one and missing"),
        (lambda layer: layer.register_buffer("b", torch.ones(1), persistent=False), "the tensors that are kept apart"),
        (lambda layer: layer.add_module("more", nn.ReLU()), "its more, a ReLU, is only in one"),
        (lambda layer: setattr(layer, "out_features", 3), "out_features is 3 in one and 2 in the other"),
    ],
)
def test_what_differs_is_named(change, message):
    layer = nn.Linear(2, 2)
    change(layer)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(difference(structure(layer), structure(nn.Linear(2, 2))))
    assert difference(structure(layer), structure(layer)) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.zeros(3), np.ones(3)),
        (np.array(["a", "b"]), np.array(["a", "c"])),
        (np.float64(1), np.float64(2)),
        (np.int64(1), np.int64(2)),
        ({"a", "b"}, {"a", "c"}),
        (frozenset("ab"), frozenset("ac")),
        (1j, 2j),
        (b"a", b"b"),
        (range(3), range(4)),
    ],
)
def test_values_of_attributes_are_told_apart(one, other):
    first, same, second = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    first.value, same.value, second.value = one, copy.copy(one), other
    assert difference(json.loads(json.dumps(structure(first))), structure(same)) is None
    assert difference(structure(first), structure(second)).startswith("its Linear: value is")


def test_numbers_of_numpy_are_those_of_python():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    first.shape, second.shape = (np.int64(3), np.float64(0.5), np.True_), (3, 0.5, True)
    assert difference(structure(first), structure(second)) is None


def test_backward_hooks_count():
    layer = nn.Linear(2, 2)
    layer.register_full_backward_hook(lambda *_: None)
    assert "_backward_hooks is 1 in one" in difference(structure(layer), structure(nn.Linear(2, 2)))


def test_tensors_with_two_names():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    assert shared_names(nn.Sequential(first, second)) == [["0.weight", "1.weight"]]


def test_a_layer_without_parameters_that_is_used_twice_is_as_good_as_two():
    layer = nn.ReLU()
    once, twice = structure(nn.Sequential(layer, layer)), structure(nn.Sequential(nn.ReLU(), nn.ReLU()))
    assert difference(once, twice) is None and list(once["modules"]) == ["", "0", "1"]
    assert difference(once, structure(nn.Sequential(layer, nn.GELU()))).startswith("its 1: class is")
