"""The base class of likelihoods: a decoder network, and the distribution that its outputs are parameters of."""

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Generator, Tensor, nn

from pyro_vae.construction import Constructed
from pyro_vae.data.pixels import LEVELS, checked_pixels, dequantize
from pyro_vae.data.raw import kind
from pyro_vae.networks import applied
from pyro_vae.random import without_autocast

# A bound that keeps log-probabilities finite where a network diverges; it changes nothing elsewhere.
LARGEST_LOG_SCALE = 40.0


def bits_per_dim(log_px: Tensor, pixels: int, level_width: float) -> Tensor:
    """Return −(log p(x) / pixels + ln level_width) / ln 2, the bits per dimension of the mass on the 256 grey levels.

    ``log_px`` in nats per image, any shape; ``pixels`` = C × H × W.

    >>> bits_per_dim(torch.zeros(1), pixels=784, level_width=1 / 256)  # the uniform density on [0, 1]
    tensor([8.])
    """
    return -(log_px / pixels + math.log(level_width)) / math.log(2)


class Likelihood(Constructed, ABC):
    """A decoder network and the family of its parameters: z (..., D) -> p(x | z), batch (...), event of x.

    The network may take a single batch dimension (see ``networks.applied``). Class attributes say what x is; unless a
    family says otherwise it is a picture, scored by a density on [0, 1], and x = (g + u) / 256, so that a grey level
    occupies 1 / 256 of it.

    Attributes:
        field: the field of a split that ``observe`` takes.
        event_dim: the dimensions of x: 3 for (C, H, W), 1 for a row (D,).
        parameters_per_pixel: maps that the network returns for each channel, or values for each one of a row. Its
            output is (..., C × parameters_per_pixel, H, W) or (..., D × parameters_per_pixel), otherwise ValueError is
            raised.
        level_width: see ``bits_per_dim``; None where x has no grey levels.
    """

    field: str = "images"
    event_dim: int = 3
    parameters_per_pixel: int
    level_width: float | None = 1 / LEVELS

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, z: Tensor) -> dist.Independent:
        """Return p(x | z) for z (..., D): batch (...), event (C, H, W) or (D,)."""
        maps = self.maps(z)
        with without_autocast():
            return self.pixel_distribution(*maps).to_event(self.event_dim)

    def maps(self, z: Tensor) -> tuple[Tensor, ...]:
        """Return the network's output, one tensor (..., *event) for each parameter."""
        out = applied(self.network, z, event_dim=1)
        wanted, dims = self.parameters_per_pixel, self.event_dim
        no_event = out.dim() < dims or (out.dim() != z.dim() + dims - 1 and out.shape != z.shape)
        if no_event or out.shape[-dims] % wanted:
            shape, size = (f"(..., C × {wanted}, H, W)", "C") if dims == 3 else (f"(..., D × {wanted})", "D")
            cure = f"maps={size} * {wanted}"
            if no_event:
                cure = (
                    f"nn.Unflatten(-1, (C * {wanted}, H, W)) as its last layer" if dims == 3 else "one row for each z"
                )
            raise ValueError(
                f"{type(self).__name__}: wanted a network whose output is {shape}, got "
                f"{tuple(out.shape)} from z of shape {tuple(z.shape)}; build the decoder with {cure}"
            )
        if wanted == 1:
            return (out,)  # the gradient of ``unbind`` would copy it
        return out.unflatten(-dims, (wanted, out.shape[-dims] // wanted)).unbind(-dims - 1)

    @abstractmethod
    def pixel_distribution(self, *maps: Any, **kwargs: Any) -> TorchDistribution:
        """Return the distribution of single pixels or values, batch (..., *event), from the parameter maps."""

    def observe(self, pixels: Any, /, generator: Generator | None = None) -> Tensor:
        """Return x from the rows of ``field``: x in [0, 1], (N, C, H, W), from uint8 pixels of that shape."""
        return dequantize(checked_pixels(pixels), generator)


class RowLikelihood(Likelihood):
    """Abstract class of likelihoods of rows x (..., D), which are not made of grey levels."""

    event_dim = 1
    level_width = None

    def observe(self, rows: Any, /, generator: Generator | None = None) -> Tensor:
        """Return the rows of ``field``, (N, D), in the dtype of the parameters."""
        floating = (parameter.dtype for parameter in self.parameters() if parameter.is_floating_point())
        return as_rows(self.field, rows).to(next(floating, torch.get_default_dtype()))


def as_rows(field: str, raw: Tensor | np.ndarray, dims: int = 2) -> Tensor:
    """Return the rows of a field as a tensor; the values are not looked at.

    Raises ValueError unless they are numbers in a tensor or a NumPy array of ``dims`` dimensions.

    >>> as_rows("counts", np.eye(2, dtype=np.int16))
    tensor([[1, 0],
            [0, 1]], dtype=torch.int16)
    """
    rows = raw
    if isinstance(rows, np.ndarray) and rows.dtype.kind in "iuf":
        rows = torch.from_numpy(np.require(rows, requirements=["C", "W"]))
    if not isinstance(rows, Tensor) or rows.dim() != dims or rows.is_complex() or rows.dtype == torch.bool:
        raise ValueError(
            f"{field}: wanted numbers in a tensor or a NumPy array of {dims} dimensions, the first of them the rows, "
            f"got {kind(raw)}; write torch.as_tensor(rows), or rows[None] for a single row"
        )
    return rows


def give_parameter(module: nn.Module, name: str, value: float | nn.Parameter | None) -> None:
    """Give a module a parameter of its family: an ``nn.Parameter`` is learned, a number is fixed, None comes with z.

    >>> module = nn.Module()
    >>> give_parameter(module, "log_scale", -1)
    >>> module.log_scale
    tensor(-1.)
    """
    if value is None or isinstance(value, nn.Parameter):
        setattr(module, name, value)
    else:
        module.register_buffer(name, torch.as_tensor(float(value)))


def soft_minimum(value: Tensor, low: float) -> Tensor:
    """Return low + softplus(value − low), a smooth lower bound (Rybkin et al. 2021, eq. 6)."""
    return low + F.softplus(value - low)
