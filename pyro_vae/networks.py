"""Encoders and decoders: plain torch modules that do not depend on Pyro and take any leading batch dimensions.

An encoder maps x (..., C, H, W) to features (..., F), where F is its attribute ``out_features``; the guide owns the
layers from the features to its parameters. A decoder maps z (..., D) to parameter maps (..., maps, H, W), where
``maps`` is ``C × parameters_per_pixel`` of the likelihood. Dense networks take rows x (..., D) as well, of shape (D,);
their decoders return (..., maps), with ``maps`` = ``D × parameters_per_pixel``. Networks from elsewhere, which take a
single batch dimension, are called by ``applied``.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn

from pyro_vae.checks import whole_number
from pyro_vae.compiling.convolutions import Conv2d, ConvTranspose2d
from pyro_vae.construction import Constructed

Shape = tuple[int, int, int]
Activation = Callable[[], nn.Module]
Layer = TypeVar("Layer", bound=nn.Module)
HALF = (torch.bfloat16, torch.float16)
ROWS = 256  # rows of a batch that a network computes at once on a CPU


class Network(Constructed):
    """Abstract class of networks of inputs (..., *event), whose ``layers`` take a single batch dimension.

    With ``dtype=None`` the layers compute in the dtype of their parameters. With ``torch.bfloat16`` they compute in it
    by autocast and return the input's dtype, so that distributions and sums stay in float32. ``lowered_precision`` sets
    it for the length of a ``with`` block.
    """

    def __init__(self, event: Sequence[int], *layers: nn.Module):
        super().__init__()
        self.event = tuple(event)
        self.layers = nn.Sequential(*layers)
        self.layers.apply(_start)
        self.dtype: torch.dtype | None = None

    def forward(self, value: Tensor) -> Tensor:
        """Apply the layers to a value (..., *event)."""
        split = value.dim() - len(self.event)
        if value.shape[split:] != self.event:
            raise ValueError(f"network: wanted (..., {', '.join(map(str, self.event))}), got {tuple(value.shape)}")
        return _by_rows(self._rows, value, split)

    def _rows(self, rows: Tensor) -> Tensor:
        with nullcontext() if self.dtype is None else torch.autocast(rows.device.type, self.dtype):
            # Large tensors are allocated anew in each use: in parts 6400 images take half the time on a CPU.
            in_parts = rows.device.type == "cpu" and _is_settled(rows.shape[0]) and rows.shape[0] > ROWS
            return torch.cat([self.layers(part) for part in rows.split(ROWS)]) if in_parts else self.layers(rows)


def _is_settled(rows: int | torch.SymInt) -> bool:
    """Return whether a number of rows may be read; reading one that an export leaves open would fix it."""
    return isinstance(rows, int) and not torch.compiler.is_dynamo_compiling()


def applied(network: nn.Module, value: Tensor, event_dim: int) -> Tensor:
    """Apply any network to values (*batch, *event), with ``event_dim`` event dimensions; return (*batch, *out).

    A network that is no ``Network`` of this package gets one batch dimension, as ``nn.Conv2d`` and ``nn.BatchNorm1d``
    need it: all values as rows (rows, *event). The result is in float32 at least; where autocast lowers the precision
    of a network, its result has the dtype of the value.

    Raises ValueError if the network does not return one tensor with a row for each value, or has another dtype.

    >>> decoder = nn.Sequential(nn.Linear(2, 64), nn.Unflatten(1, (1, 8, 8)))
    >>> applied(decoder, torch.zeros(7, 5, 2), event_dim=1).shape
    torch.Size([7, 5, 1, 8, 8])
    """
    try:
        return network(value) if isinstance(network, Network) else _by_rows(network, value, value.dim() - event_dim)
    except RuntimeError as error:
        dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), value.dtype)
        if dtype == value.dtype or torch.is_autocast_enabled(value.device.type):
            raise
        cure = f", or x.to({dtype})" if dtype not in HALF else ""
        raise ValueError(
            f"{type(network).__name__}: wanted one dtype, got parameters of {dtype} and values of {value.dtype}; write "
            f"vae.to({value.dtype}){cure}"
        ) from error


def _by_rows(network: Callable[[Tensor], Tensor], value: Tensor, split: int) -> Tensor:
    """Apply a network of one batch dimension to a value with ``split`` batch dimensions."""
    rows = value if split == 1 else value.reshape(-1, *value.shape[split:])
    out = network(rows)
    if not isinstance(out, Tensor) or (split != 1 and out.shape[:1] != rows.shape[:1]):
        raise ValueError(
            f"{type(network).__name__}: wanted a tensor with one row for each of {tuple(rows.shape)}, got "
            f"{tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__}; return a single tensor, and keep "
            "its first dimension as that of the input, as in out.flatten(1)"
        )
    out = out if split == 1 else out.reshape(*value.shape[:split], *out.shape[1:])
    return out.to(torch.float32 if value.dtype in HALF else value.dtype) if out.dtype in HALF else out


@contextmanager
def lowered_precision(module: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """Context manager in which the package's networks within a module compute in ``dtype``; None changes nothing.

    >>> encoder = MLPEncoder((1, 8, 8))
    >>> with lowered_precision(encoder, torch.bfloat16):
    ...     encoder(torch.zeros(2, 1, 8, 8)).dtype
    torch.float32
    """
    networks = {network: network.dtype for network in module.modules() if isinstance(network, Network)}
    for network in networks if dtype is not None else ():
        network.dtype = dtype
    try:
        yield
    finally:
        for network, before in networks.items():
            network.dtype = before


@torch.no_grad()
def _start(layer: nn.Module) -> None:
    """Draw weights from N(0, 2 / fan-in) and set biases to zero (He et al. 2015).

    A ReLU network then keeps the scale of its signal at any depth. torch's default halves the signal in every layer, so
    that a decoder hardly depends on z at first.
    """
    if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        fan_in = layer.weight[0].numel()
        if isinstance(layer, nn.ConvTranspose2d):
            fan_in = layer.in_channels * math.prod(layer.kernel_size) // math.prod(layer.stride)
        layer.weight.normal_(0, math.sqrt(2 / fan_in))
        if layer.bias is not None:
            layer.bias.zero_()


def start_near_zero(layer: Layer) -> Layer:
    """Multiply the weights of a layer by 0.1, set its bias to zero, and return the layer.

    As the last layer of a decoder it makes every likelihood begin with parameters near zero and a moderate loss.

    >>> start_near_zero(nn.Linear(3, 2)).bias.detach()
    tensor([0., 0.])
    """
    with torch.no_grad():
        layer.get_parameter("weight").mul_(0.1)
        layer.get_parameter("bias").zero_()
    return layer


class ConvEncoder(Network):
    """4 × 4 convolutions of stride 2, then dense layers of the widths ``hidden``, each followed by the activation.

    >>> ConvEncoder((1, 28, 28), hidden=(256,))(torch.zeros(5, 2, 1, 28, 28)).shape
    torch.Size([5, 2, 256])
    """

    def __init__(
        self,
        shape: Shape,
        channels: Sequence[int] = (32, 64),
        hidden: Sequence[int] = (),
        activation: Activation = nn.ReLU,
    ):
        sides = _sides(_checked_shape(shape), len(channels))
        pairs = itertools.pairwise([shape[0], *_whole_numbers("channels", channels)])
        convolutions = [layer for a, b in pairs for layer in (Conv2d(a, b, 4, 2, 1), activation())]
        widths = [channels[-1] * sides[-1][0] * sides[-1][1], *hidden]
        super().__init__(shape, *convolutions, nn.Flatten(), *_dense(widths, activation))
        self.out_features = widths[-1]


class MLPEncoder(Network):
    """Dense layers of the given widths, each followed by the activation, for pictures (C, H, W) or rows (D,).

    ``scaling`` is a module that x goes through first, such as ``Log1p`` for counts.

    >>> MLPEncoder((1, 28, 28), hidden=(400,))(torch.zeros(5, 1, 28, 28)).shape
    torch.Size([5, 400])
    >>> MLPEncoder((7,), hidden=(16,), scaling=Log1p())(torch.full((5, 2, 7), 1e6)).shape
    torch.Size([5, 2, 16])
    """

    def __init__(
        self,
        shape: Sequence[int],
        hidden: Sequence[int] = (400,),
        activation: Activation = nn.ReLU,
        scaling: nn.Module | None = None,
    ):
        widths = [torch.Size(_checked_event(shape)).numel(), *hidden]
        first = [] if scaling is None else [scaling]
        super().__init__(shape, *first, nn.Flatten(), *_dense(widths, activation))
        self.out_features = widths[-1]


class ConvDecoder(Network):
    """The mirror image of ``ConvEncoder``: dense layers, then 4 × 4 transposed convolutions of stride 2.

    >>> ConvDecoder(2, (1, 28, 20), maps=2)(torch.zeros(7, 5, 2)).shape
    torch.Size([7, 5, 2, 28, 20])
    """

    def __init__(
        self,
        latent: int,
        shape: Shape,
        maps: int,
        channels: Sequence[int] = (64, 32),
        hidden: Sequence[int] = (),
        activation: Activation = nn.ReLU,
    ):
        sides = _sides(_checked_shape(shape), len(channels))[::-1]
        widths = [whole_number("latent", latent), *hidden]
        start = (channels[0], *sides[0])
        steps = zip(itertools.pairwise([*_whole_numbers("channels", channels), maps]), itertools.pairwise(sides))
        convolutions = [
            layer
            for (a, b), ((h, w), (to_h, to_w)) in steps
            for layer in (activation(), ConvTranspose2d(a, b, 4, 2, 1, output_padding=(to_h - 2 * h, to_w - 2 * w)))
        ]
        first = nn.Linear(widths[-1], torch.Size(start).numel())
        super().__init__((latent,), *_dense(widths, activation), first, nn.Unflatten(-1, start), *convolutions)
        start_near_zero(convolutions[-1])


class MLPDecoder(Network):
    """Dense layers of the given widths, each followed by the activation, then a dense layer to the maps.

    >>> MLPDecoder(2, (1, 28, 28), maps=1)(torch.zeros(5, 2)).shape
    torch.Size([5, 1, 28, 28])
    >>> MLPDecoder(2, (7,), maps=7 * 2)(torch.zeros(5, 2)).shape
    torch.Size([5, 14])
    """

    def __init__(
        self,
        latent: int,
        shape: Sequence[int],
        maps: int,
        hidden: Sequence[int] = (400,),
        activation: Activation = nn.ReLU,
    ):
        out = (whole_number("maps", maps), *_checked_event(shape)[1:])
        widths = [whole_number("latent", latent), *hidden]
        last = nn.Linear(widths[-1], torch.Size(out).numel())
        super().__init__((latent,), *_dense(widths, activation), last, nn.Unflatten(-1, out))
        start_near_zero(last)


class Log1p(Constructed):
    """ln(1 + x), which brings counts of any size to one scale; it has no parameters.

    >>> Log1p()(torch.tensor([0.0, 1e6]))
    tensor([ 0.0000, 13.8155])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return ln(1 + x)."""
        return torch.log1p(x)


def _dense(widths: Sequence[int], activation: Activation) -> list[nn.Module]:
    pairs = itertools.pairwise(_whole_numbers("hidden", widths))
    return [layer for a, b in pairs for layer in (nn.Linear(a, b), activation())]


def _sides(shape: Shape, layers: int) -> list[tuple[int, int]]:
    """Return the image's sides before the first convolution of stride 2 and after each (halved, rounded down)."""
    sides = [(shape[1] >> i, shape[2] >> i) for i in range(layers + 1)]
    if not layers or min(sides[-1]) < 1:
        raise ValueError(
            f"channels: wanted convolutions of stride 2 for images of {shape[1]} × {shape[2]} pixels, got {layers}; "
            "give at least one, and no more than the image can be halved"
        )
    return sides


def _checked_shape(shape: Shape) -> Shape:
    if len(shape) != 3:
        raise ValueError(f"shape: wanted (C, H, W), got {tuple(shape)}; write e.g. (1, 28, 28)")
    channels, height, width = _whole_numbers("shape", shape)
    return channels, height, width


def _checked_event(shape: Sequence[int]) -> list[int]:
    if len(shape) not in (1, 3):
        raise ValueError(
            f"shape: wanted (C, H, W) of pictures or (D,) of rows, got {tuple(shape)}; write e.g. (1, 28, 28)"
        )
    return _whole_numbers("shape", shape)


def _whole_numbers(name: str, sizes: Sequence[int]) -> list[int]:
    return [whole_number(name, size) for size in sizes]
