"""Programs as JSON: the class and the arguments of each part, in the order in which they are made.

    {"program.prior": {"class": "priors.StandardNormal", "arguments": {"latent": 2}}, ...,
     "program": {"class": "vae.VAE", "arguments": {"prior": {"part": "program.prior"}, ...}}}

Numbers, words, None and lists stand for themselves. An object of one entry stands for anything else: a part that was
made before, which may so be shared, the name of a class or function of ``names.NAMED``, a tensor of a shape.
"""

from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from pyro_vae.construction import Constructed, Partial, Placeholder, Unknown, arguments_of, signature_of
from pyro_vae.saved.names import NAMED, arguments_of_layer, name_of
from pyro_vae.saved.schemas import described_schema, schema_of
from pyro_vae.tables import Schema

ROOT = "program"
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.float64, torch.int64, torch.bool)}


class Undescribable(ValueError):
    """A part that is none of the library's, or that is made of something that cannot be written down."""


def described(program: nn.Module) -> dict[str, Any]:
    """Return the parts of a program by name, the program itself last.

    Raises ``Undescribable`` for a part of another class than those of ``names.NAMED``, and for such an argument.

    >>> from pyro_vae import guides, likelihoods, networks, priors
    >>> described(priors.Mixture(2, components=5))
    {'program': {'class': 'priors.Mixture', 'arguments': {'latent': 2, 'components': 5}}}
    """
    parts: dict[str, Any] = {}
    _Writer(parts).part(program, ROOT)
    return parts


def built(parts: Any) -> nn.Module:
    """Return the program that the parts describe; any error may be raised by what is no such description.

    >>> built({"program": {"class": "nn.Linear", "arguments": {"in_features": 2, "out_features": 1}}})
    Linear(in_features=2, out_features=1, bias=True)
    """
    if not isinstance(parts, dict) or ROOT not in parts:
        raise ValueError(f"parts: wanted an object with {ROOT!r}, got {type(parts).__name__}")
    reader = _Reader()
    for path, part in parts.items():
        reader.add(path, part)
    return reader.made[ROOT]


class _Writer:
    def __init__(self, parts: dict[str, Any]):
        self.parts = parts
        self.paths: dict[nn.Module, str] = {}

    def part(self, module: nn.Module, path: str) -> dict[str, str]:
        """Describe a part, unless that was done, and return a reference to it."""
        if module in self.paths:
            return {"part": self.paths[module]}
        name = name_of(type(module))
        if name is None:
            raise Undescribable(f"{path}: {type(module).__name__} is no part of this library")
        found = arguments_of(module) if isinstance(module, Constructed) else arguments_of_layer(module)
        arguments = {key: self.value(value, f"{path}.{key}") for key, value in found.items()}
        self.parts[path] = {"class": name, "arguments": arguments}
        self.paths[module] = path
        return {"part": path}

    def value(self, value: Any, path: str) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, nn.Module):
            return self.part(value, path)
        if isinstance(value, Placeholder):
            return {"parameter" if value.parameter else "tensor": [*value.shape], "dtype": _dtype(value, path)}
        if isinstance(value, Partial):
            parts = {"args": list(value.args), "keywords": value.keywords}
            return {"partial": self.value(value.function, path)} | {
                key: self.value(part, path) for key, part in parts.items()
            }
        if isinstance(value, Mapping):
            return {"pairs": [[self.value(k, path), self.value(v, f"{path}.{k}")] for k, v in value.items()]}
        if isinstance(value, list | tuple) and not isinstance(value, Unknown):
            return [self.value(entry, f"{path}.{i}") for i, entry in enumerate(value)]
        if isinstance(value, Schema):
            return {"schema": described_schema(value)}
        name = name_of(value)
        if name is None:
            what = value.what if isinstance(value, Unknown) else getattr(value, "__qualname__", type(value).__name__)
            raise Undescribable(f"{path}: {what} is none of this library's")
        return {"name": name}


class _Reader:
    def __init__(self) -> None:
        self.made: dict[str, nn.Module] = {}

    def add(self, path: str, part: Any) -> None:
        made_of = NAMED[part["class"]]
        if not (isinstance(made_of, type) and issubclass(made_of, nn.Module)):
            raise ValueError(f"{path}: {part['class']} is no class of parts")
        bound = signature_of(made_of).bind_partial()
        for key, value in part["arguments"].items():
            if key not in bound.signature.parameters:
                raise ValueError(f"{path}: {part['class']} takes no {key!r}; a later version wrote it")
            bound.arguments[key] = self.value(value)
        self.made[path] = made_of(*bound.args, **bound.kwargs)

    def value(self, value: Any) -> Any:
        if isinstance(value, list):
            return tuple(self.value(entry) for entry in value)
        if not isinstance(value, dict):
            return value
        if "part" in value:
            return self.made[value["part"]]
        if "pairs" in value:
            return OrderedDict((self.value(k), self.value(v)) for k, v in value["pairs"])
        if "partial" in value:
            keywords = self.value(value["keywords"])
            return partial(self.value(value["partial"]), *self.value(value["args"]), **keywords)
        if "schema" in value:
            return schema_of(value["schema"])
        if "name" in value:
            return NAMED[value["name"]]
        shape = value["parameter"] if "parameter" in value else value["tensor"]
        zeros = torch.zeros(tuple(shape), dtype=DTYPES[value["dtype"]])
        return nn.Parameter(zeros) if "parameter" in value else zeros


def _dtype(value: Placeholder, path: str) -> str:
    name = str(value.dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise Undescribable(f"{path}: wanted a tensor of {', '.join(DTYPES)}, got {name}")
    return name
