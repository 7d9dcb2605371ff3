"""Likelihoods p(x | z): modules that own their decoder network and whose call returns a distribution over images.

Each says how x is made from 8-bit pixels (``observe``) and which share of one cell of x a single grey level occupies
(``level_width``), which puts all families that score grey levels on one scale: bits per dimension.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import numpy as np
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Generator, Tensor, nn
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

from pyro_vae.distributions import families
from pyro_vae.networks import applied
from pyro_vae.random import without_autocast

LEVELS = 256
MARGIN = 2.0**-17  # that x keeps from 0 and 1, where a density may be infinite
# Beyond these a network has gone astray; they keep its log-probabilities finite there, and change nothing elsewhere.
LARGEST_LOG_SCALE = 40.0
LARGEST_MEAN_LOGIT = 50.0


def checked_pixels(pixels: Tensor | np.ndarray) -> Tensor:
    """The pixels as a tensor; ValueError unless they are uint8 of shape (N, C, H, W). An array of NumPy is taken, too.

    >>> checked_pixels(torch.zeros(3, 28, 28))
    Traceback (most recent call last):
        ...
    ValueError: pixels: wanted uint8 grey levels of shape (N, C, H, W), got torch.float32 of shape (3, 28, 28); write
    pixels.unsqueeze(1) for (N, H, W) or pixels.unsqueeze(0) for (C, H, W), then
    (255.0 * pixels).round().to(torch.uint8) for levels in [0, 1]
    """
    wanted = "pixels: wanted uint8 grey levels of shape (N, C, H, W)"
    if isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8:
        pixels = torch.from_numpy(pixels.copy())  # a copy, since torch wants no array that is read-only or reversed
    if not isinstance(pixels, Tensor):
        got = f"an array of {pixels.dtype}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise ValueError(
            f"{wanted}, got {got}; write numpy.asarray(pixels).astype('uint8') for levels from 0 to 255, or "
            "(255.0 * numpy.asarray(pixels)).round().astype('uint8') for levels in [0, 1]"
        )
    if pixels.dtype != torch.uint8 or pixels.dim() != 4:
        cure = ", then ".join(_cures(pixels))
        raise ValueError(f"{wanted}, got {pixels.dtype} of shape {tuple(pixels.shape)}; write {cure}")
    return pixels


def _cures(pixels: Tensor) -> Iterator[str]:
    if pixels.dim() != 4:
        three = "pixels.unsqueeze(1) for (N, H, W) or pixels.unsqueeze(0) for (C, H, W)"
        yield three if pixels.dim() == 3 else "pixels.reshape(-1, C, H, W)"
    if pixels.is_floating_point() or pixels.dtype == torch.bool:
        yield "(255.0 * pixels).round().to(torch.uint8) for levels in [0, 1]"
    elif pixels.dtype != torch.uint8:
        yield "pixels.to(torch.uint8) for levels from 0 to 255"


def dynamic(pixels: Tensor, generator: Generator | None = None) -> Tensor:
    """x ~ Bernoulli(g / 255), drawn anew at each call (Salakhutdinov & Murray 2008; Burda et al. 2016)."""
    u = torch.rand(pixels.shape, generator=generator, device=pixels.device)
    return (u * 255 < pixels).to(u.dtype)


def threshold(pixels: Tensor, generator: Generator | None = None) -> Tensor:
    """x = 1 where g > 127, else 0."""
    return (pixels > 127).to(torch.get_default_dtype())


def intensity(pixels: Tensor, generator: Generator | None = None) -> Tensor:
    """x = g / 255: the grey level read as a probability. A cross-entropy, not a likelihood of grey images."""
    return pixels / 255


def dequantize(pixels: Tensor, generator: Generator | None = None) -> Tensor:
    """x = (g + u) / 256, u ~ U[0, 1) (Theis et al. 2016)."""
    return (pixels + torch.rand(pixels.shape, generator=generator, device=pixels.device)) / LEVELS


def interior(pixels: Tensor, generator: Generator | None = None, margin: float = MARGIN) -> Tensor:
    """``dequantize``, kept 2^−17 away from 0 and 1, where a density may be infinite."""
    return dequantize(pixels, generator).clamp(margin, 1 - margin)


def observed_by(p: TorchDistribution, like: Tensor) -> Callable[..., Tensor]:
    """What makes x from pixels for a likelihood that does not say it, by the support of one of its distributions.

    For a density that takes every x in (0, 1): ``interior``; where only 0 and 1 are possible: ``dynamic``. Raises
    ValueError for any other support. ``like`` is a tensor of the dtype and on the device of the images.

    >>> observed_by(dist.Laplace(torch.zeros(1, 8, 8), 1.0).to_event(3), torch.zeros(())).__name__
    'interior'
    """

    def holds(value: float) -> bool:
        return bool(p.support.check(like.new_full(p.shape(), value)).all())

    if not p.support.is_discrete and all(map(holds, (MARGIN, 0.3, 0.7, 1 - MARGIN))):
        return interior
    if holds(0.0) and holds(1.0) and not (holds(0.3) or holds(2.0)):
        return dynamic
    family = type(getattr(p, "base_dist", p)).__name__
    raise ValueError(
        f"likelihood: how x in [0, 1] is made from grey levels is not known for {family}; give its module a method "
        "observe(pixels, generator=None) that returns x"
    )


def bits_per_dim(log_px: Tensor, pixels: int, level_width: float) -> Tensor:
    """−(log p(x) / pixels + ln level_width) / ln 2: bits per dimension of the mass on the 256 grey levels.

    ``log_px`` in nats per image, any shape; ``pixels`` = C × H × W.

    >>> bits_per_dim(torch.zeros(1), pixels=784, level_width=1 / 256)  # the uniform density on [0, 1]
    tensor([8.])
    """
    return -(log_px / pixels + math.log(level_width)) / math.log(2)


class Likelihood(nn.Module, ABC):
    """A decoder network and the family of its parameters: z (..., D) -> p(x | z), batch (...), event (C, H, W).

    The network gives ``C × parameters_per_pixel`` maps; ValueError if it does not. It may know one batch dimension
    alone (see ``networks.applied``). Unless a family says otherwise it is a density on [0, 1] and x = (g + u) / 256, so
    that a grey level occupies 1 / 256 of it.
    """

    parameters_per_pixel: int
    level_width: float | None = 1 / LEVELS

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, z: Tensor) -> dist.Independent:
        maps = self.maps(z)
        with without_autocast():
            return self.pixel_distribution(*maps).to_event(3)

    def maps(self, z: Tensor) -> tuple[Tensor, ...]:
        """The network's output, one tensor (..., C, H, W) a parameter."""
        out = applied(self.network, z, event_dim=1)
        wanted = self.parameters_per_pixel
        no_image = out.dim() < 3 or (out.dim() != z.dim() + 2 and out.shape != z.shape)
        if no_image or out.shape[-3] % wanted:
            cure = f"nn.Unflatten(-1, (C * {wanted}, H, W)) as its last layer" if no_image else f"maps=C * {wanted}"
            raise ValueError(
                f"{type(self).__name__} wants a network whose output is (..., C × {wanted}, H, W), got "
                f"{tuple(out.shape)} from z of shape {tuple(z.shape)}; build the decoder with {cure}"
            )
        return out.unflatten(-3, (wanted, out.shape[-3] // wanted)).unbind(-4)

    @abstractmethod
    def pixel_distribution(self, *maps: Tensor) -> TorchDistribution:
        """The distribution of single pixels, batch (..., C, H, W), from the parameter maps."""

    def observe(self, pixels: Tensor, generator: Generator | None = None) -> Tensor:
        """x in [0, 1], (N, C, H, W), from uint8 pixels of that shape."""
        return dequantize(checked_pixels(pixels), generator)


class Bernoulli(Likelihood):
    """Black and white pixels. ``binarize`` makes x: ``dynamic``, ``threshold`` or ``intensity``.

    ``level_width`` is None: nats of binary images are never compared with bits per dimension of grey ones.

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
        family = IntensityBernoulli if self.binarize is intensity else dist.Bernoulli
        return family(logits=logits)

    def observe(self, pixels: Tensor, generator: Generator | None = None) -> Tensor:
        return self.binarize(checked_pixels(pixels), generator)


class IntensityBernoulli(dist.Bernoulli):
    """A Bernoulli that scores probabilities x in [0, 1] by their cross-entropy."""

    support = constraints.unit_interval


class ContinuousBernoulli(Likelihood):
    """Density p(x) ∝ λ^x (1 − λ)^(1 − x) on [0, 1] (Loaiza-Ganem & Cunningham 2019).

    The density grows without limit as λ goes to 0 or 1, so every bits/dim depends on the ``clip`` that keeps λ in
    [clip, 1 − clip]; it belongs beside every result.
    """

    parameters_per_pixel = 1

    def __init__(self, network: nn.Module, clip: float = 1e-4):
        super().__init__(network)
        if not 0 < clip < 0.5:
            raise ValueError(f"clip: wanted a number between 0 and 0.5, got {clip}")
        self.clip = clip

    def pixel_distribution(self, logits: Tensor) -> TorchDistribution:
        limit = math.log1p(-self.clip) - math.log(self.clip)
        return families.ContinuousBernoulli(logits=logits.clamp(-limit, limit))


class Normal(Likelihood):
    """Normal density, its mean squashed to (0, 1); the scale per pixel, shared or fixed.

    ``log_scale`` None: one map more of the network is the log scale of each pixel; a number: fixed; an ``nn.Parameter``
    of shape (): shared and learned. What is learned is kept above ``min_log_scale`` smoothly (Rybkin et al. 2021);
    ``share_at_bound`` counts how often that binds.

    >>> from pyro_vae.networks import MLPDecoder
    >>> shared = Normal(MLPDecoder(2, (1, 8, 8), maps=1), log_scale=nn.Parameter(torch.tensor(-1.0)))
    >>> shared(torch.zeros(5, 2)).mean.shape
    torch.Size([5, 1, 8, 8])
    """

    def __init__(self, network: nn.Module, log_scale: float | nn.Parameter | None = None, min_log_scale: float = -6.0):
        super().__init__(network)
        self.parameters_per_pixel = 2 if log_scale is None else 1
        self.min_log_scale = min_log_scale
        self.log_scale = log_scale
        if not isinstance(log_scale, nn.Parameter | None):
            del self.log_scale
            self.register_buffer("log_scale", torch.as_tensor(float(log_scale)))

    def pixel_distribution(self, loc: Tensor, log_scale: Tensor | None = None) -> TorchDistribution:
        log_scale = self.log_scale if log_scale is None else log_scale
        if not self.fixed:
            log_scale = soft_minimum(log_scale, self.min_log_scale).clamp(max=LARGEST_LOG_SCALE)
        return dist.Normal(loc.sigmoid(), log_scale.exp())

    @property
    def fixed(self) -> bool:
        """Whether the scale is a given number, which no bound touches."""
        return "log_scale" in self._buffers

    @torch.no_grad()
    def share_at_bound(self, z: Tensor) -> float:
        """Share of the pixels whose log scale the lower bound holds up."""
        if self.fixed:
            return 0.0
        log_scale = self.log_scale if self.log_scale is not None else self.maps(z)[1]
        return (log_scale < self.min_log_scale).double().mean().item()


class _Interior(constraints.Constraint):
    """0 < x < 1."""

    def check(self, value: Tensor) -> Tensor:
        return (value > 0) & (value < 1)


class InteriorBeta(families.Beta):
    """A beta distribution that scores neither 0 nor 1, where its density may be zero or infinite."""

    support = _Interior()


class Beta(Likelihood):
    """Beta density by mean m and concentration c: α = m c, β = (1 − m) c, with e^−4 ≤ c ≤ e^9.

    x keeps 2^−17 away from 0 and 1, where the density may be infinite.
    """

    parameters_per_pixel = 2
    margin = MARGIN
    log_concentration_range = (-4.0, 9.0)

    def pixel_distribution(self, mean_logit: Tensor, log_concentration: Tensor) -> TorchDistribution:
        low, high = self.log_concentration_range
        mean_logit = mean_logit.clamp(-LARGEST_MEAN_LOGIT, LARGEST_MEAN_LOGIT)
        c = (-soft_minimum(-soft_minimum(log_concentration, low), -high)).exp()
        return InteriorBeta(mean_logit.sigmoid() * c, (-mean_logit).sigmoid() * c)

    def observe(self, pixels: Tensor, generator: Generator | None = None) -> Tensor:
        return interior(checked_pixels(pixels), generator, self.margin)


class Categorical(Likelihood):
    """A categorical distribution over the centres of B equal bins of the grey levels, 2 ≤ B ≤ 256.

    ``level_width`` = B / 256: a bin's mass is spread evenly over its grey levels. It is None where B does not divide
    256: bins that hold unequal numbers of levels have no one width.

    >>> from pyro_vae.networks import MLPDecoder
    >>> p = Categorical(MLPDecoder(2, (1, 8, 8), maps=4), bins=4)(torch.zeros(2))
    >>> p.base_dist.enumerate_support(expand=False).flatten()
    tensor([0.1250, 0.3750, 0.6250, 0.8750])
    """

    def __init__(self, network: nn.Module, bins: int = 16):
        super().__init__(network)
        if not 2 <= bins <= LEVELS or bins != int(bins):
            raise ValueError(f"bins: wanted a whole number from 2 to {LEVELS}, got {bins}")
        self.bins = self.parameters_per_pixel = int(bins)

    @property
    def level_width(self) -> float | None:
        return self.bins / LEVELS if LEVELS % self.bins == 0 else None

    def pixel_distribution(self, *logits: Tensor) -> TorchDistribution:
        return BinCentres(logits=torch.stack(logits, -1))

    def observe(self, pixels: Tensor, generator: Generator | None = None) -> Tensor:
        bins = checked_pixels(pixels).int() * self.bins // LEVELS
        return (bins + 0.5) / self.bins


class DiscretizedLogistic(Likelihood):
    """Mass of each grey level under a logistic distribution: P(g) = F(x + ½/255) − F(x − ½/255), x = g / 255.

    The two end levels take the tails (Salimans et al. 2017). The location is squashed to (0, 1); the log scale is kept
    above ``min_log_scale`` smoothly; ``share_at_bound`` counts how often that binds.
    """

    parameters_per_pixel = 2
    level_width = 1.0

    def __init__(self, network: nn.Module, min_log_scale: float = -7.0):
        super().__init__(network)
        self.min_log_scale = min_log_scale

    def pixel_distribution(self, loc: Tensor, log_scale: Tensor) -> TorchDistribution:
        log_scale = soft_minimum(log_scale, self.min_log_scale).clamp(max=LARGEST_LOG_SCALE)
        return LogisticLevels(loc.sigmoid(), log_scale)

    @torch.no_grad()
    def share_at_bound(self, z: Tensor) -> float:
        """Share of the pixels whose log scale the lower bound holds up."""
        return (self.maps(z)[1] < self.min_log_scale).double().mean().item()

    def observe(self, pixels: Tensor, generator: Generator | None = None) -> Tensor:
        return checked_pixels(pixels) / 255


def soft_minimum(value: Tensor, low: float) -> Tensor:
    """low + softplus(value − low): a smooth lower bound (Rybkin et al. 2021, eq. 6)."""
    return low + F.softplus(value - low)


class _Grid(constraints.Constraint):
    """Points (i + offset) / n for whole i in 0 … count − 1."""

    is_discrete = True

    def __init__(self, count: int, n: int, offset: float):
        self.count, self.n, self.offset = count, n, offset

    def check(self, value: Tensor) -> Tensor:
        index = value * self.n - self.offset
        on_grid = (index - index.round()).abs() < 1e-3
        return on_grid & (index.round() >= 0) & (index.round() < self.count)


class BinCentres(TorchDistribution):
    """Categorical distribution over (i + ½) / B, i = 0 … B − 1, from logits (..., B)."""

    arg_constraints = {"logits": constraints.real_vector}
    has_enumerate_support = True

    def __init__(self, logits: Tensor, validate_args: bool | None = None):
        self.categorical = torch.distributions.Categorical(logits=logits, validate_args=False)
        self.logits, self.bins = logits, logits.shape[-1]
        super().__init__(logits.shape[:-1], torch.Size(), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        return _Grid(self.bins, self.bins, 0.5)

    def expand(self, batch_shape, _instance=None) -> "BinCentres":
        new = self._get_checked_instance(BinCentres, _instance)
        BinCentres.__init__(new, self.logits.expand(*batch_shape, self.bins), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def centre(self, index: Tensor) -> Tensor:
        return (index.to(self.logits.dtype) + 0.5) / self.bins

    def sample(self, sample_shape=()) -> Tensor:
        return self.centre(self.categorical.sample(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        index = (value * self.bins - 0.5).round().long()
        log_p = self.categorical.logits.expand(*torch.broadcast_shapes(index.shape, self.batch_shape), self.bins)
        return log_p.gather(-1, index.expand(log_p.shape[:-1]).unsqueeze(-1)).squeeze(-1)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        centres = self.centre(torch.arange(self.bins, device=self.logits.device))
        centres = centres.reshape(-1, *[1] * len(self.batch_shape))
        return centres.expand(-1, *self.batch_shape) if expand else centres

    @property
    def mean(self) -> Tensor:
        with without_autocast():
            return self.categorical.probs @ self.centre(torch.arange(self.bins, device=self.logits.device))


class LogisticLevels(TorchDistribution):
    """Logistic distribution rounded to the levels i / 255, i = 0 … 255, the ends taking the tails; in log space.

    With a = (x + h − μ)/s and b = (x − h − μ)/s, h = ½/255:  σ(a) − σ(b) = σ(a) σ(−b) (1 − e^(b − a)).
    """

    arg_constraints = {"loc": constraints.real, "log_scale": constraints.real}
    support = _Grid(LEVELS, LEVELS - 1, 0.0)
    half = 0.5 / (LEVELS - 1)

    def __init__(self, loc: Tensor, log_scale: Tensor, validate_args: bool | None = None):
        self.loc, self.log_scale = broadcast_all(loc, log_scale)
        super().__init__(self.loc.shape, torch.Size(), validate_args=validate_args)

    def expand(self, batch_shape, _instance=None) -> "LogisticLevels":
        new = self._get_checked_instance(LogisticLevels, _instance)
        LogisticLevels.__init__(new, self.loc.expand(batch_shape), self.log_scale.expand(batch_shape), False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape=()) -> Tensor:
        with torch.no_grad():
            tiny = torch.finfo(self.loc.dtype).tiny
            u = torch.rand(self._extended_shape(torch.Size(sample_shape)), dtype=self.loc.dtype, device=self.loc.device)
            x = self.loc + self.log_scale.exp() * (u.clamp_min(tiny).log() - torch.log1p(-u))
            return (x * (LEVELS - 1)).round().clamp(0, LEVELS - 1) / (LEVELS - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        inverse = (-self.log_scale).exp()
        centred = value - self.loc
        below = F.logsigmoid((centred + self.half) * inverse)  # log F at the upper edge of the level
        above = F.logsigmoid(-(centred - self.half) * inverse)  # log (1 − F) at its lower edge
        inside = below + above + (-torch.expm1(-2 * self.half * inverse)).log()
        return torch.where(value < self.half, below, torch.where(value > 1 - self.half, above, inside))

    @property
    def mean(self) -> Tensor:
        """Σ_g P(level > g) / 255, exactly."""
        inverse = (-self.log_scale).exp()
        edges = (torch.arange(LEVELS - 1) + 0.5).div(LEVELS - 1).tolist()
        return sum(torch.sigmoid((self.loc - edge) * inverse) for edge in edges) / (LEVELS - 1)
