"""Likelihoods of pictures, one family for all pixels.

Each makes x from 8-bit pixels (``observe``) and says which share of one cell of x a single grey level occupies
(``level_width``). The latter puts all families that score grey levels on one scale, bits per dimension.
"""

import math
from collections.abc import Callable

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Generator, Tensor, nn

from pyro_vae.checks import whole_number
from pyro_vae.data.pixels import LEVELS, MARGIN, checked_pixels, dynamic, intensity, interior
from pyro_vae.distributions import families
from pyro_vae.distributions.pixels import BinCentres, IntensityBernoulli, InteriorBeta, LogisticLevels
from pyro_vae.likelihoods.base import LARGEST_LOG_SCALE, Likelihood, soft_minimum

# A bound that keeps log-probabilities finite where a network diverges; it changes nothing elsewhere.
LARGEST_MEAN_LOGIT = 50.0


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


class DiscretizedLogisticMixture(Likelihood):
    """Mass of each grey level under a mixture of K logistic distributions, each as in ``DiscretizedLogistic``.

    Salimans et al. (2017), but with independent channels: their channels depend on one another. Component k starts near
    the level (k + ½) / K. ``share_at_bound`` is that of all components. A pixel has 3 K parameters.

    >>> from pyro_vae.networks import MLPDecoder
    >>> p = DiscretizedLogisticMixture(MLPDecoder(2, (1, 8, 8), maps=15), components=5)(torch.zeros(4, 2))
    >>> p.log_prob(p.sample()).shape
    torch.Size([4])
    """

    level_width = 1.0

    def __init__(self, network: nn.Module, components: int = 5, min_log_scale: float = -7.0):
        super().__init__(network)
        self.components = whole_number("components", components)
        self.parameters_per_pixel = 3 * self.components
        self.min_log_scale = min_log_scale

    def pixel_distribution(self, *maps: Tensor) -> TorchDistribution:
        """Return mixtures from K maps of logits, K of locations and K of log scales."""
        K = self.components
        logits, loc, log_scale = (torch.stack(maps[i : i + K], -1) for i in (0, K, 2 * K))
        start = ((torch.arange(K, dtype=loc.dtype, device=loc.device) + 0.5) / K).logit()
        log_scale = soft_minimum(log_scale, self.min_log_scale).clamp(max=LARGEST_LOG_SCALE)
        return dist.MixtureSameFamily(
            dist.Categorical(logits=logits), LogisticLevels((loc + start).sigmoid(), log_scale)
        )

    @torch.no_grad()
    def share_at_bound(self, z: Tensor) -> float:
        """Return the share of the components of pixels whose log scale is at the lower bound, for z (..., D)."""
        log_scale = torch.stack(self.maps(z)[2 * self.components :])
        return (log_scale < self.min_log_scale).double().mean().item()

    def observe(self, pixels: Tensor, generator: Generator | None = None) -> Tensor:
        """Return x = g / 255, (N, C, H, W)."""
        return checked_pixels(pixels) / 255
