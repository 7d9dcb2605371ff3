"""Which classes a description may name."""

import inspect

import pytest
import torch
from torch import nn

from pyro_vae import config, guides, likelihoods, networks, priors
from pyro_vae.construction import Constructed
from pyro_vae.saved.names import LAYERS, NAMED, ROOMS, arguments_of_layer, name_of
from pyro_vae.structure import difference, structure

EXAMPLES = {
    "AdaptiveAvgPool2d": {"output_size": 2},
    "AvgPool2d": {"kernel_size": 2},
    "BatchNorm1d": {"num_features": 3, "momentum": 0.2, "affine": False},
    "Conv1d": {"in_channels": 2, "out_channels": 4, "kernel_size": 3, "groups": 2, "padding": "same"},
    "Conv2d": {"in_channels": 2, "out_channels": 4, "kernel_size": 3, "bias": False, "padding_mode": "circular"},
    "ConvTranspose1d": {"in_channels": 2, "out_channels": 4, "kernel_size": 3, "output_padding": 1, "stride": 2},
    "ConvTranspose2d": {"in_channels": 2, "out_channels": 4, "kernel_size": (3, 2)},
    "Dropout": {"p": 0.25},
    "GroupNorm": {"num_groups": 2, "num_channels": 4},
    "InstanceNorm2d": {"num_features": 3, "track_running_stats": True},
    "LayerNorm": {"normalized_shape": (3,), "bias": False},
    "LeakyReLU": {"negative_slope": 0.3},
    "Linear": {"in_features": 2, "out_features": 3, "bias": False},
    "MaxPool2d": {"kernel_size": 2, "stride": 1},
    "PReLU": {"num_parameters": 3},
    "PixelShuffle": {"upscale_factor": 2},
    "PixelUnshuffle": {"downscale_factor": 2},
    "Softplus": {"beta": 2.0},
    "Unflatten": {"dim": 1, "unflattened_size": (1, 2)},
    "Upsample": {"scale_factor": 2.0, "mode": "bilinear", "align_corners": True},
}
EXAMPLES |= {"BatchNorm2d": EXAMPLES["BatchNorm1d"], "InstanceNorm1d": EXAMPLES["InstanceNorm2d"]}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_made_from_its_attributes_is_the_same(name):
    layer = getattr(nn, name)(**EXAMPLES.get(name, {}))
    arguments = arguments_of_layer(layer)
    again = nn.Sequential(*arguments["args"]) if name == "Sequential" else type(layer)(**arguments)
    assert difference(structure(layer), structure(again)) is None
    shapes = [tuple(value.shape) for value in layer.state_dict().values()]
    assert [tuple(value.shape) for value in again.state_dict().values()] == shapes


def test_parts_of_the_library_are_named():
    named = set(NAMED.values())
    for room in (priors, guides, networks, likelihoods, likelihoods.columns):
        for name, value in vars(room).items():
            if isinstance(value, type) and issubclass(value, Constructed) and not name.startswith("_"):
                assert value in named or value is Constructed or value.__module__ != room.__name__, name
    for word, part in (config.LIKELIHOODS | config.PRIORS).items():
        assert part, word


def test_nothing_else_is_named():
    assert all(
        value.__module__.startswith(("pyro_vae.", "torch.nn.modules.")) and callable(value) for value in NAMED.values()
    )
    assert name_of(torch.load) is None and name_of(inspect) is None and name_of(nn.Module) is None
    assert not {"files", "saved", "training"} & {name.partition(".")[0] for name in NAMED}


def test_a_name_is_that_of_the_room_that_defines_or_exports_it():
    for name, value in NAMED.items():
        room, _, own = name.partition(".")
        if room != "nn":
            assert value.__module__ == ROOMS[room].__name__ or own in ROOMS[room].__all__, name
            assert getattr(ROOMS[room], own) is value and not own.startswith("_")


def test_functions_and_classes_have_names_and_other_values_none():
    functions = {name: value for name, value in NAMED.items() if inspect.isfunction(value)}
    assert {"likelihoods.dynamic", "likelihoods.threshold"} <= set(functions)
    for value in functions.values():
        assert NAMED[name_of(value)] is value
    assert name_of([]) is None and name_of(nn.ReLU()) is None and name_of("nn.ReLU") is None
