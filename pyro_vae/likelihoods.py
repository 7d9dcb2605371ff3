"""Likelihoods p(x | z): modules that own their decoder network and whose call returns a distribution over images.

Each makes x from 8-bit pixels (``observe``) and says which share of one cell of x a single grey level occupies
(``level_width``). The latter puts all families that score grey levels on one scale, bits per dimension.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Generator, Tensor, nn

from pyro_vae.checks import whole_number
from pyro_vae.data.pixels import (
    LEVELS,
    MARGIN,
    checked_pixels,
    dequantize,
    dynamic,
    intensity,
    interior,
    observed_by,
    threshold,
)
from pyro_vae.distributions import families
from pyro_vae.distributions.pixels import BinCentres, IntensityBernoulli, InteriorBeta, LogisticLevels
from pyro_vae.networks import applied
from pyro_vae.random import without_autocast

__all__ = [
    "LEVELS",
    "MARGIN",
    "Bernoulli",
    "Beta",
    "BinCentres",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "IntensityBernoulli",
    "InteriorBeta",
    "Likelihood",
    "LogisticLevels",
    "Normal",
    "bits_per_dim",
    "checked_pixels",
    "dequantize",
    "dynamic",
    "intensity",
    "interior",
    "observed_by",
    "soft_minimum",
    "threshold",
]

# Bounds that keep log-probabilities finite where a network diverges; they change nothing elsewhere.
LARGEST_LOG_SCALE = 40.0
LARGEST_MEAN_LOGIT = 50.0


def bits_per_dim(log_px: Tensor, pixels: int, level_width: float) -> Tensor:
    """Return −(log p(x) / pixels + ln level_width) / ln 2, the bits per dimension of the mass on the 256 grey levels.

    ``log_px`` in nats per image, any shape; ``pixels`` = C × H × W.

    >>> bits_per_dim(torch.zeros(1), pixels=784, level_width=1 / 256)  # the uniform density on [0, 1]
    tensor([8.])
    """
    return -(log_px / pixels + math.log(level_width)) / math.log(2)


class Likelihood(nn.Module, ABC):
    """A decoder network and the family of its parameters: z (..., D) -> p(x | z), batch (...), event (C, H, W).

    The network returns ``C × parameters_per_pixel`` maps; otherwise ValueError is raised. It may take a single batch
    dimension (see ``networks.applied``). Unless a family says otherwise it is a density on [0, 1] and x = (g + u) /
    256, so that a grey level occupies 1 / 256 of it.
    """

    parameters_per_pixel: int
    level_width: float | None = 1 / LEVELS

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, z: Tensor) -> dist.Independent:
        """Return p(x | z) for z (..., D): batch (...), event (C, H, W)."""
        maps = self.maps(z)
        with without_autocast():
            return self.pixel_distribution(*maps).to_event(3)

    def maps(self, z: Tensor) -> tuple[Tensor, ...]:
        """Return the network's output, one tensor (..., C, H, W) for each parameter."""
        out = applied(self.network, z, event_dim=1)
        wanted = self.parameters_per_pixel
        no_image = out.dim() < 3 or (out.dim() != z.dim() + 2 and out.shape != z.shape)
        if no_image or out.shape[-3] % wanted:
            cure = f"nn.Unflatten(-1, (C * {wanted}, H, W)) as its last layer" if no_image else f"maps=C * {wanted}"
            raise ValueError(
                f"{type(self).__name__}: wanted a network whose output is (..., C × {wanted}, H, W), got "
                f"{tuple(out.shape)} from z of shape {tuple(z.shape)}; build the decoder with {cure}"
            )
        return out.unflatten(-3, (wanted, out.shape[-3] // wanted)).unbind(-4)

    @abstractmethod
    def pixel_distribution(self, *maps: Any, **kwargs: Any) -> TorchDistribution:
        """Return the distribution of single pixels, batch (..., C, H, W), from the parameter maps."""

    def observe(self, pixels: Tensor, generator: Generator | None = None) -> Tensor:
        """Return x in [0, 1], (N, C, H, W), from uint8 pixels of that shape."""
        return dequantize(checked_pixels(pixels), generator)


class Bernoulli(Likelihood):
    """Black and white pixels. ``binarize`` makes x: ``dynamic``, ``threshold`` or ``intensity``.

    ``level_width`` is None, because nats of binary images cannot be compared with bits per dimension of grey ones.

    >>> from pyro_vae.networks import MLPDecoder
    >>> p = Bernoulli(MLPDecoder(2, (1, 28, 28), maps=1))(torch.zeros(5, 2))
    >>> p.batch_shape, p.event_shape
    (torch.Size([5]), torch.Size([1, 28, 28]))
    """

    parameters_per_pixel = 1
    level_width = None

    def __init__(self, network: nn.Module, binarize: Callable[..., Tensor] = dynamic):
        super().__init__(network)
        if not callable(binarize):
            raise ValueError(f"binarize: wanted likelihoods.dynamic, threshold or intensity, got {binarize!r}")
        self.binarize = binarize

    def pixel_distribution(self, logits: Tensor) -> TorchDistribution:
        """Return Bernoulli distributions with these logits."""
        family = IntensityBernoulli if self.binarize is intensity else dist.Bernoulli
        return family(logits=logits)

    def observe(self, pixels: Tensor, generator: Generator | None = None) -> Tensor:
        """Return ``binarize`` of the pixels, (N, C, H, W)."""
        return self.binarize(checked_pixels(pixels), generator)


class ContinuousBernoulli(Likelihood):
    """Density p(x) ∝ λ^x (1 − λ)^(1 − x) on [0, 1] (Loaiza-Ganem & Cunningham 2019).

    The density grows without limit as λ goes to 0 or 1. Bits per dimension therefore depend on ``clip``, which keeps λ
    in [clip, 1 − clip]: report it beside every result.
    """

    parameters_per_pixel = 1

    def __init__(self, network: nn.Module, clip: float = 1e-4):
        super().__init__(network)
        if not 0 < clip < 0.5:
            raise ValueError(f"clip: wanted a number between 0 and 0.5, got {clip}")
        self.clip = clip

    def pixel_distribution(self, logits: Tensor) -> TorchDistribution:
        """Return continuous Bernoulli distributions with these logits, clipped."""
        limit = math.log1p(-self.clip) - math.log(self.clip)
        return families.ContinuousBernoulli(logits=logits.clamp(-limit, limit))


class Normal(Likelihood):
    """Normal density with its mean squashed to (0, 1); the scale is per pixel, shared or fixed.

    ``log_scale=None``: a second map of the network is the log scale of each pixel. A number: the log scale is fixed. An
    ``nn.Parameter`` of shape (): it is shared and learned. A learned log scale is kept above ``min_log_scale`` by a
    smooth bound (Rybkin et al. 2021); ``share_at_bound`` measures how often the bound is active.

    >>> from pyro_vae.networks import MLPDecoder
    >>> shared = Normal(MLPDecoder(2, (1, 8, 8), maps=1), log_scale=nn.Parameter(torch.tensor(-1.0)))
    >>> shared(torch.zeros(5, 2)).mean.shape
    torch.Size([5, 1, 8, 8])
    """

    log_scale: Any

    def __init__(self, network: nn.Module, log_scale: float | nn.Parameter | None = None, min_log_scale: float = -6.0):
        super().__init__(network)
        self.parameters_per_pixel = 2 if log_scale is None else 1
        self.min_log_scale = min_log_scale
        if log_scale is None or isinstance(log_scale, nn.Parameter):
            self.log_scale = log_scale
        else:
            self.register_buffer("log_scale", torch.as_tensor(float(log_scale)))

    def pixel_distribution(self, loc: Tensor, log_scale: Tensor | None = None) -> TorchDistribution:
        """Return normal distributions with mean sigmoid(loc)."""
        scale = self.log_scale if log_scale is None else log_scale
        if not self.fixed:
            scale = soft_minimum(scale, self.min_log_scale).clamp(max=LARGEST_LOG_SCALE)
        return dist.Normal(loc.sigmoid(), scale.exp())

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


class Beta(Likelihood):
    """Beta density by mean m and concentration c: α = m c, β = (1 − m) c, with e^−4 ≤ c ≤ e^9.

    x stays 2^−17 away from 0 and 1, where the density may be infinite.
    """

    parameters_per_pixel = 2
    margin = MARGIN
    log_concentration_range = (-4.0, 9.0)

    def pixel_distribution(self, mean_logit: Tensor, log_concentration: Tensor) -> TorchDistribution:
        """Return beta distributions with mean sigmoid(mean_logit)."""
        low, high = self.log_concentration_range
        mean_logit = mean_logit.clamp(-LARGEST_MEAN_LOGIT, LARGEST_MEAN_LOGIT)
        c = (-soft_minimum(-soft_minimum(log_concentration, low), -high)).exp()
        return InteriorBeta(mean_logit.sigmoid() * c, (-mean_logit).sigmoid() * c)

    def observe(self, pixels: Tensor, generator: Generator | None = None) -> Tensor:
        """Return x in (0, 1), (N, C, H, W), from uint8 pixels of that shape."""
        return interior(checked_pixels(pixels), generator, self.margin)


class Categorical(Likelihood):
    """A categorical distribution over the centres of B equal bins of the grey levels, 2 ≤ B ≤ 256.

    ``level_width`` = B / 256: the mass of a bin is spread evenly over its grey levels. It is None if B does not divide
    256, since bins of unequal numbers of levels have no single width.

    >>> from pyro_vae.networks import MLPDecoder
    >>> p = Categorical(MLPDecoder(2, (1, 8, 8), maps=4), bins=4)(torch.zeros(2))
    >>> p.base_dist.enumerate_support(expand=False).flatten()
    tensor([0.1250, 0.3750, 0.6250, 0.8750])
    """

    def __init__(self, network: nn.Module, bins: int = 16):
        super().__init__(network)
        self.bins = self.parameters_per_pixel = whole_number("bins", bins, least=2, most=LEVELS)
        self.level_width = self.bins / LEVELS if LEVELS % self.bins == 0 else None

    def pixel_distribution(self, *logits: Tensor) -> TorchDistribution:
        """Return categorical distributions over the bin centres, from B maps of logits."""
        return BinCentres(logits=torch.stack(logits, -1))

    def observe(self, pixels: Tensor, generator: Generator | None = None) -> Tensor:
        """Return the centre of each pixel's bin, (N, C, H, W)."""
        bins = checked_pixels(pixels).int() * self.bins // LEVELS
        return (bins + 0.5) / self.bins


class DiscretizedLogistic(Likelihood):
    """Mass of each grey level under a logistic distribution: P(g) = F(x + ½/255) − F(x − ½/255), x = g / 255.

    The two end levels take the tails (Salimans et al. 2017). The location is squashed to (0, 1). The log scale is kept
    above ``min_log_scale`` by a smooth bound; ``share_at_bound`` measures how often the bound is active.
    """

    parameters_per_pixel = 2
    level_width = 1.0

    def __init__(self, network: nn.Module, min_log_scale: float = -7.0):
        super().__init__(network)
        self.min_log_scale = min_log_scale

    def pixel_distribution(self, loc: Tensor, log_scale: Tensor) -> TorchDistribution:
        """Return rounded logistic distributions with location sigmoid(loc)."""
        log_scale = soft_minimum(log_scale, self.min_log_scale).clamp(max=LARGEST_LOG_SCALE)
        return LogisticLevels(loc.sigmoid(), log_scale)

    @torch.no_grad()
    def share_at_bound(self, z: Tensor) -> float:
        """Return the share of the pixels whose log scale is at the lower bound, for z (..., D)."""
        return (self.maps(z)[1] < self.min_log_scale).double().mean().item()

    def observe(self, pixels: Tensor, generator: Generator | None = None) -> Tensor:
        """Return x = g / 255, (N, C, H, W)."""
        return checked_pixels(pixels) / 255


def soft_minimum(value: Tensor, low: float) -> Tensor:
    """Return low + softplus(value − low), a smooth lower bound (Rybkin et al. 2021, eq. 6)."""
    return low + F.softplus(value - low)
