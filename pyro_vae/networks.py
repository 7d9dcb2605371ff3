"""Encoders and decoders: plain torch modules that know no Pyro and take any leading batch dimensions.

An encoder maps x (..., C, H, W) to features (..., F) and says F in ``out_features``; the guide owns the layers from the
features to its parameters. A decoder maps z (..., D) to parameter maps (..., maps, H, W), ``maps`` being
``C × parameters_per_pixel`` of the likelihood.
"""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Shape = tuple[int, int, int]
ROWS = 256  # of a batch that a network sees at a time on a CPU


class ConvEncoder(nn.Module):
    """4 × 4 convolutions of stride 2, then dense layers of the widths ``hidden``, if any; each followed by a ReLU.

    >>> ConvEncoder((1, 28, 28), hidden=(256,))(torch.zeros(5, 2, 1, 28, 28)).shape
    torch.Size([5, 2, 256])
    """

    def __init__(self, shape: Shape, channels: Sequence[int] = (32, 64), hidden: Sequence[int] = ()):
        super().__init__()
        self.shape = _checked_shape(shape)
        sides = _sides(self.shape, len(channels))
        pairs = itertools.pairwise([self.shape[0], *_positive("channels", channels)])
        convolutions = [layer for a, b in pairs for layer in (nn.Conv2d(a, b, 4, 2, 1), nn.ReLU())]
        widths = [channels[-1] * sides[-1][0] * sides[-1][1], *hidden]
        self.out_features = widths[-1]
        self.layers = nn.Sequential(*convolutions, nn.Flatten(), *_dense(widths, nn.ReLU))

    def forward(self, x: Tensor) -> Tensor:
        return _flattened(self.layers, x, self.shape)


class MLPEncoder(nn.Module):
    """Dense layers of the given widths, each followed by the activation.

    >>> MLPEncoder((1, 28, 28), hidden=(400,))(torch.zeros(5, 1, 28, 28)).shape
    torch.Size([5, 400])
    """

    def __init__(
        self, shape: Shape, hidden: Sequence[int] = (400,), activation: Callable[[], nn.Module] = nn.ReLU
    ):
        super().__init__()
        self.shape = _checked_shape(shape)
        self.out_features = hidden[-1]
        self.layers = nn.Sequential(nn.Flatten(), *_dense([torch.Size(self.shape).numel(), *hidden], activation))

    def forward(self, x: Tensor) -> Tensor:
        return _flattened(self.layers, x, self.shape)


class ConvDecoder(nn.Module):
    """The mirror image of ``ConvEncoder``: dense, then 4 × 4 transposed convolutions of stride 2.

    >>> ConvDecoder(2, (1, 28, 20), maps=2)(torch.zeros(7, 5, 2)).shape
    torch.Size([7, 5, 2, 28, 20])
    """

    def __init__(
        self, latent: int, shape: Shape, maps: int, channels: Sequence[int] = (64, 32), hidden: Sequence[int] = ()
    ):
        super().__init__()
        self.latent = latent
        sides = _sides(_checked_shape(shape), len(channels))[::-1]
        widths = [*_positive("latent", [latent]), *hidden]
        start = (channels[0], *sides[0])
        steps = zip(itertools.pairwise([*_positive("channels", channels), maps]), itertools.pairwise(sides))
        convolutions = [
            layer
            for (a, b), ((h, w), (to_h, to_w)) in steps
            for layer in (nn.ReLU(), nn.ConvTranspose2d(a, b, 4, 2, 1, output_padding=(to_h - 2 * h, to_w - 2 * w)))
        ]
        first = nn.Linear(widths[-1], torch.Size(start).numel())
        self.layers = nn.Sequential(*_dense(widths, nn.ReLU), first, nn.Unflatten(-1, start), *convolutions)

    def forward(self, z: Tensor) -> Tensor:
        return _flattened(self.layers, z, (self.latent,))


class MLPDecoder(nn.Module):
    """Dense layers of the given widths, each followed by the activation, then a dense layer to the maps.

    >>> MLPDecoder(2, (1, 28, 28), maps=1)(torch.zeros(5, 2)).shape
    torch.Size([5, 1, 28, 28])
    """

    def __init__(
        self,
        latent: int,
        shape: Shape,
        maps: int,
        hidden: Sequence[int] = (400,),
        activation: Callable[[], nn.Module] = nn.ReLU,
    ):
        super().__init__()
        self.latent = latent
        out = (maps, *_checked_shape(shape)[1:])
        widths = [*_positive("latent", [latent]), *hidden]
        self.layers = nn.Sequential(
            *_dense(widths, activation), nn.Linear(widths[-1], torch.Size(out).numel()), nn.Unflatten(-1, out)
        )

    def forward(self, z: Tensor) -> Tensor:
        return _flattened(self.layers, z, (self.latent,))


def _dense(widths: Sequence[int], activation: Callable[[], nn.Module]) -> list[nn.Module]:
    pairs = itertools.pairwise(_positive("hidden", widths))
    return [layer for a, b in pairs for layer in (nn.Linear(a, b), activation())]


def _flattened(layers: nn.Module, value: Tensor, event: Sequence[int]) -> Tensor:
    """Applies layers that take one batch dimension to a value with any number of them."""
    dims = len(event)
    if value.shape[value.dim() - dims :] != tuple(event):
        raise ValueError(f"the network wants (..., {', '.join(map(str, event))}), got {tuple(value.shape)}")
    batch = value.shape[: value.dim() - dims]
    rows = value.reshape(batch.numel(), *event)
    # Tensors of many megabytes are new memory at every use: 6400 images in parts take half the time on a CPU.
    in_parts = rows.device.type == "cpu" and len(rows) > ROWS
    out = torch.cat([layers(part) for part in rows.split(ROWS)]) if in_parts else layers(rows)
    return out.reshape(*batch, *out.shape[1:])


def _sides(shape: Shape, layers: int) -> list[tuple[int, int]]:
    """Sides of the image before the first and after each convolution of stride 2 (halved, rounded down)."""
    sides = [(shape[1] >> i, shape[2] >> i) for i in range(layers + 1)]
    if not layers or min(sides[-1]) < 1:
        raise ValueError(f"channels: {layers} convolutions of stride 2 on images of {shape[1]} × {shape[2]} pixels; "
                         "give at least one, and no more than the image can be halved")
    return sides


def _checked_shape(shape: Shape) -> Shape:
    if len(shape) != 3:
        raise ValueError(f"shape: wanted (C, H, W), got {tuple(shape)}; write e.g. (1, 28, 28)")
    return tuple(_positive("shape", shape))


def _positive(name: str, sizes: Sequence[int]) -> Sequence[int]:
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(f"{name}: wanted positive whole numbers, got {list(sizes)}")
    return sizes
