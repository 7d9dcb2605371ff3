"""Conversions of grey levels, uint8 pixels (N, C, H, W), to the observed images x in [0, 1]."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Generator, Tensor

LEVELS = 256
MARGIN = 2.0**-17  # distance of x from 0 and 1, where a density may be infinite


def checked_pixels(pixels: Tensor | np.ndarray) -> Tensor:
    """Return the pixels as a tensor; raise ValueError unless they are uint8 (N, C, H, W), in a tensor or a NumPy array.

    >>> checked_pixels(torch.zeros(3, 28, 28))
    Traceback (most recent call last):
        ...
    ValueError: pixels: wanted uint8 grey levels of shape (N, C, H, W), got torch.float32 of shape (3, 28, 28); write
    pixels.unsqueeze(1) for (N, H, W) or pixels.unsqueeze(0) for (C, H, W), then
    (255.0 * pixels).round().to(torch.uint8) for levels in [0, 1]
    """
    wanted = "pixels: wanted uint8 grey levels of shape (N, C, H, W)"
    if isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8:
        pixels = torch.from_numpy(
            pixels.copy()
        )  # a copy, because torch refuses reversed arrays and warns of read-only ones
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


def dynamic(pixels: Tensor, generator: Generator | None = None) -> Tensor:
    """Draw x ~ Bernoulli(g / 255), anew in each call (Salakhutdinov & Murray 2008; Burda et al. 2016)."""
    u = torch.rand(pixels.shape, generator=generator, device=pixels.device)
    return (u * 255 < pixels).to(u.dtype)


def threshold(pixels: Tensor, generator: Generator | None = None) -> Tensor:
    """Return x = 1 where g > 127, else 0."""
    return (pixels > 127).to(torch.get_default_dtype())


def intensity(pixels: Tensor, generator: Generator | None = None) -> Tensor:
    """Return x = g / 255, a probability that gives a cross-entropy and not a likelihood of grey images."""
    return pixels / 255


def dequantize(pixels: Tensor, generator: Generator | None = None) -> Tensor:
    """Return x = (g + u) / 256 with u ~ U[0, 1) (Theis et al. 2016)."""
    return (pixels + torch.rand(pixels.shape, generator=generator, device=pixels.device)) / LEVELS


def interior(pixels: Tensor, generator: Generator | None = None, margin: float = MARGIN) -> Tensor:
    """Return ``dequantize`` of the pixels, at least 2^−17 away from 0 and 1, where a density may be infinite."""
    return dequantize(pixels, generator).clamp(margin, 1 - margin)


def observed_by(p: TorchDistribution, like: Tensor) -> Callable[..., Tensor]:
    """Return the function that makes x from pixels for a likelihood without ``observe``, by the support of p(x | z).

    For a density on all of (0, 1) this is ``interior``; for a distribution on 0 and 1 it is ``dynamic``. Raises
    ValueError for any other support. ``like`` is a tensor with the dtype and the device of the images.

    >>> import pyro.distributions as dist
    >>> observed_by(dist.Laplace(torch.zeros(1, 8, 8), 1.0).to_event(3), torch.zeros(())).__name__
    'interior'
    """
    support: Any = p.support

    def holds(value: float) -> bool:
        return bool(support.check(like.new_full(p.shape(), value)).all())

    if not support.is_discrete and all(map(holds, (MARGIN, 0.3, 0.7, 1 - MARGIN))):
        return interior
    if holds(0.0) and holds(1.0) and not (holds(0.3) or holds(2.0)):
        return dynamic
    family = type(getattr(p, "base_dist", p)).__name__
    raise ValueError(
        f"likelihood: it is not known how to make x in [0, 1] from grey levels for {family}; give its module a method "
        "observe(pixels, generator=None) that returns x"
    )


def _cures(pixels: Tensor) -> Iterator[str]:
    if pixels.dim() != 4:
        three = "pixels.unsqueeze(1) for (N, H, W) or pixels.unsqueeze(0) for (C, H, W)"
        yield three if pixels.dim() == 3 else "pixels.reshape(-1, C, H, W)"
    if pixels.is_floating_point() or pixels.dtype == torch.bool:
        yield "(255.0 * pixels).round().to(torch.uint8) for levels in [0, 1]"
    elif pixels.dtype != torch.uint8:
        yield "pixels.to(torch.uint8) for levels from 0 to 255"
