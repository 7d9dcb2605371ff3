"""Priors p(z): modules whose call returns a distribution over codes, batch (), event (D,)."""

import pyro.distributions as dist
import torch
from torch import nn


class StandardNormal(nn.Module):
    """p(z) = N(0, I).

    >>> prior = StandardNormal(latent=2)
    >>> prior().batch_shape, prior().event_shape
    (torch.Size([]), torch.Size([2]))
    """

    def __init__(self, latent: int):
        super().__init__()
        check_count("latent", latent)
        self.register_buffer("loc", torch.zeros(latent))
        self.register_buffer("scale", torch.ones(latent))

    def forward(self) -> dist.Independent:
        return dist.Normal(self.loc, self.scale).to_event(1)


def check_count(name: str, value: int) -> None:
    """Raises ValueError unless the value is a whole number of at least one.

    >>> check_count("components", 0)
    Traceback (most recent call last):
        ...
    ValueError: components must be a whole number of at least 1, got 0
    """
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
