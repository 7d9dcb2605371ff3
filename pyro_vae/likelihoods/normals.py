"""Normal likelihoods, of pictures and of reals."""

from abc import abstractmethod
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyro_vae.likelihoods.base import LARGEST_LOG_SCALE, Likelihood, RowLikelihood, give_parameter, soft_minimum


class NormalLikelihood(Likelihood):
    """Abstract class of normal densities, whose scale is a map of the network, shared or fixed.

    ``log_scale=None``: a second map of the network is the log scale of each pixel. A number: the log scale is fixed. An
    ``nn.Parameter`` is learned: of shape () it is shared by all pixels, of shape (D,) each value of a row has its own.
    A learned log scale is kept above ``min_log_scale`` by a smooth bound (Rybkin et al. 2021); ``share_at_bound``
    measures how often the bound is active.
    """

    log_scale: Any

    def __init__(self, network: nn.Module, log_scale: float | nn.Parameter | None = None, min_log_scale: float = -6.0):
        super().__init__(network)
        self.parameters_per_pixel = 2 if log_scale is None else 1
        self.min_log_scale = min_log_scale
        give_parameter(self, "log_scale", log_scale)

    @abstractmethod
    def location(self, loc: Tensor) -> Tensor:
        """Return the mean from the network's first map."""

    def pixel_distribution(self, loc: Tensor, log_scale: Tensor | None = None) -> TorchDistribution:
        """Return normal distributions with mean ``location(loc)``."""
        scale = self.log_scale if log_scale is None else log_scale
        if not self.fixed:
            scale = soft_minimum(scale, self.min_log_scale).clamp(max=LARGEST_LOG_SCALE)
        return dist.Normal(self.location(loc), scale.exp())

    @property
    def fixed(self) -> bool:
        """Whether the scale is a fixed number, to which no bound applies."""
        return any(name == "log_scale" for name, _ in self.named_buffers(recurse=False))

    @torch.no_grad()
    def share_at_bound(self, z: Tensor) -> float:
        """Return the share of the pixels whose log scale is at the lower bound, for z (..., D)."""
        if self.fixed:
            return 0.0
        log_scale = self.log_scale if self.log_scale is not None else self.maps(z)[1]
        return (log_scale < self.min_log_scale).double().mean().item()


class Normal(NormalLikelihood):
    """Normal density of pictures with its mean squashed to (0, 1); the scale is per pixel, shared or fixed.

    ``log_scale`` and ``min_log_scale`` are those of ``NormalLikelihood``.

    >>> from pyro_vae.networks import MLPDecoder
    >>> shared = Normal(MLPDecoder(2, (1, 8, 8), maps=1), log_scale=nn.Parameter(torch.tensor(-1.0)))
    >>> shared(torch.zeros(5, 2)).mean.shape
    torch.Size([5, 1, 8, 8])
    """

    def location(self, loc: Tensor) -> Tensor:
        """Return sigmoid(loc)."""
        return loc.sigmoid()


class RealNormal(RowLikelihood, NormalLikelihood):
    """Normal density of rows of real numbers, (..., D), the field ``table``; their mean is any real number.

    ``log_scale`` and ``min_log_scale`` are those of ``NormalLikelihood``; the bound suits standardised columns.

    >>> from pyro_vae.networks import MLPDecoder
    >>> p = RealNormal(MLPDecoder(2, (7,), maps=7), log_scale=nn.Parameter(torch.zeros(7)))(torch.zeros(5, 2))
    >>> p.batch_shape, p.event_shape
    (torch.Size([5]), torch.Size([7]))
    """

    field = "table"

    def location(self, loc: Tensor) -> Tensor:
        """Return loc."""
        return loc
