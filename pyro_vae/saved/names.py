"""The classes and functions that the description of a program may name, and nothing else may be."""

import inspect
from collections import OrderedDict
from types import ModuleType
from typing import Any

from torch import nn

from pyro_vae import conditional, guides, likelihoods, linear_gaussian, missing, networks, priors, tables, vae
from pyro_vae.construction import signature_of
from pyro_vae.likelihoods import columns

ROOMS = {
    "columns": columns,
    "conditional": conditional,
    "guides": guides,
    "likelihoods": likelihoods,
    "linear_gaussian": linear_gaussian,
    "missing": missing,
    "networks": networks,
    "priors": priors,
    "tables": tables,
    "vae": vae,
}
# Layers of torch whose constructor takes numbers and words, each of which is an attribute of the layer.
LAYERS = (
    *("AdaptiveAvgPool2d", "AvgPool2d", "BatchNorm1d", "BatchNorm2d", "CELU", "Conv1d", "Conv2d", "ConvTranspose1d"),
    *("ConvTranspose2d", "Dropout", "Dropout1d", "Dropout2d", "ELU", "Flatten", "GELU", "GLU", "GroupNorm"),
    *("Hardsigmoid", "Hardswish", "Hardtanh", "Identity", "InstanceNorm1d", "InstanceNorm2d", "LayerNorm", "LeakyReLU"),
    *("Linear", "LogSigmoid", "MaxPool2d", "Mish", "PReLU", "PixelShuffle", "PixelUnshuffle", "ReLU", "ReLU6"),
    *("SELU", "Sequential", "SiLU", "Sigmoid", "Softmax", "Softplus", "Softsign", "Tanh", "Unflatten", "Upsample"),
)


def _public(room: ModuleType) -> dict[str, Any]:
    """Return the parts and functions of a room that its ``__all__`` names, or else that it defines."""
    own = [name for name, value in vars(room).items() if getattr(value, "__module__", "") == room.__name__]
    named = {name: getattr(room, name) for name in getattr(room, "__all__", own) if not name.startswith("_")}
    return {
        name: value
        for name, value in named.items()
        if inspect.isfunction(value) or (isinstance(value, type) and issubclass(value, nn.Module | tables.Schema))
    }


NAMED: dict[str, Any] = {f"nn.{name}": getattr(nn, name) for name in LAYERS} | {
    f"{word}.{name}": value for word, room in ROOMS.items() for name, value in _public(room).items()
}
_NAMES = {value: name for name, value in NAMED.items()}


def name_of(value: Any) -> str | None:
    """Return the name of a class or function in descriptions, None if it has none.

    >>> name_of(priors.StandardNormal), name_of(nn.ReLU), name_of(print)
    ('priors.StandardNormal', 'nn.ReLU', None)
    """
    return _NAMES.get(value) if inspect.isfunction(value) or isinstance(value, type) else None


def arguments_of_layer(layer: nn.Module) -> dict[str, Any]:
    """Return the arguments from which a layer of torch is made, as its attributes have them.

    >>> arguments_of_layer(nn.Linear(3, 2, bias=False))
    {'in_features': 3, 'out_features': 2, 'bias': False}
    """
    if isinstance(layer, nn.Sequential):
        return {"args": (OrderedDict(layer._modules),)}  # which has a layer twice that is there twice
    names = [name for name in signature_of(type(layer)).parameters if hasattr(layer, name)]
    return {name: _attribute(layer, name) for name in names}


def _attribute(layer: nn.Module, name: str) -> Any:
    value = getattr(layer, name)
    return value is not None if name == "bias" and not isinstance(value, bool) else value
