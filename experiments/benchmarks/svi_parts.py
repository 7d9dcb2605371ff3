"""What the programs of SVI have in common: cases, networks, data."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import (
    ELBO,
)
from pyro.optim import PyroOptim
from torch import Tensor, nn


class Case(NamedTuple):
    """A program, the arguments of its steps, its ELBO and its optimiser."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple
    elbo: ELBO
    optim: PyroOptim


Adam: Any = pyro.optim.Adam  # pyright: ignore[reportAttributeAccessIssue]


def adam() -> PyroOptim:
    """Return Adam as in Pyro's tutorials."""
    return Adam({"lr": 1e-3})


def net(*sizes: int) -> nn.Sequential:
    """Return a network of linear layers with softplus between them."""
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.Softplus())]
    return nn.Sequential(*layers[:-1])


def normal(out: Tensor) -> Any:
    """Return independent normals whose means and log scales are the two halves of an output."""
    loc, log_scale = out.chunk(2, -1)
    return dist.Normal(loc, log_scale.clamp(-7, 7).exp()).to_event(1)


def beside(*parts: Tensor) -> Tensor:
    """Return tensors one after the other in the last dimension, the others broadcast."""
    shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(shape + part.shape[-1:]) for part in parts], -1)


def binary(n: int, d: int) -> Tensor:
    """Return random bits (n, d)."""
    return torch.bernoulli(torch.full((n, d), 0.3))
