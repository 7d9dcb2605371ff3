"""Convolutions in forms that are faster on a CPU, for kernels of twice the stride s: 2 × 2 blocks of s × s pixels.

The layers have the parameters of torch's own, and their results up to rounding. Traced or compiled for a CPU, a layer
with few channels on the side of the image becomes one product of a matrix of patches and a matrix of weights. From 32
channels to one, an image takes 1 µs, and 20 µs with oneDNN (float32, two cores). In lowered precision the other layers
become convolutions of kernel 2 and stride 1, whose gradients take oneDNN half the time. Eager layers use torch's own
kernels: moving the pixels costs time in eager mode, and none in a compiled graph.
"""

from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

CONVOLUTIONS = F.conv2d, F.conv_transpose2d
FEW = 4  # channels up to which the product is faster


class Conv2d(nn.Conv2d):
    """``torch.nn.Conv2d``, faster in a compiled graph on a CPU.

    It is faster with few input channels, or in lowered precision.

    >>> Conv2d(1, 32, 4, 2, 1)(torch.zeros(5, 1, 28, 28)).shape
    torch.Size([5, 32, 14, 14])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of the input, (n, channels, h, w)."""
        few, bias, padding = self.in_channels <= FEW, self.bias, self.padding
        if bias is None or isinstance(padding, str) or not _is_faster(self, input, padding, few):
            return super().forward(input)
        form = product if few else of_blocks
        return form(input, self.weight, bias, self.stride[0], padding[0])


class ConvTranspose2d(nn.ConvTranspose2d):
    """``torch.nn.ConvTranspose2d``, faster in a compiled graph on a CPU.

    It is faster with few output channels, or in lowered precision.

    >>> ConvTranspose2d(32, 1, 4, 2, 1)(torch.zeros(5, 32, 14, 14)).shape
    torch.Size([5, 1, 28, 28])
    """

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return the transposed convolution of the input, (n, channels, h, w)."""
        few, bias, padding = self.out_channels <= FEW, self.bias, self.padding
        if output_size is not None or bias is None or isinstance(padding, str):
            return super().forward(input, output_size)
        if not _is_faster(self, input, padding, few):
            return super().forward(input, output_size)
        form = transposed_product if few else transposed_of_blocks
        return form(input, self.weight, bias, self.stride[0], padding[0], self.output_padding)


class ChannelsLast(TorchFunctionMode):
    """Context manager in which convolutions of lowered precision get tensors with the channels innermost in memory.

    It is the faster way on a CPU: a compiled step takes 5 to 15 % less time in bfloat16. It would take more in float32,
    and in eager mode, where each conversion costs time.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if func in CONVOLUTIONS and torch.is_autocast_enabled("cpu") and args[0].dim() == 4:
            turned = (tensor.contiguous(memory_format=torch.channels_last) for tensor in args[:2])
            args = *turned, *args[2:]
        return func(*args, **(kwargs or {}))


def product(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    """Compute a convolution as one product: each patch is 2 × 2 of the image's blocks.

    >>> x, weight, bias = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4), torch.zeros(1)
    >>> product(x, weight, bias, 2, 1)[0, 0]
    tensor([[9., 9.],
            [9., 9.]])
    """
    blocks = _blocks(x, stride, padding)
    n, h, w, maps = x.shape[0], blocks.shape[1] - 1, blocks.shape[3] - 1, len(weight)
    rows = torch.stack([blocks[:, i : i + h] for i in (0, 1)], 2)  # (n, h, 2, s, w + 1, s, c)
    patches = torch.stack([rows[:, :, :, :, j : j + w] for j in (0, 1)], 5)  # (n, h, 2, s, w, 2, s, c)
    patches = patches.permute(0, 1, 4, 2, 3, 5, 6, 7).reshape(n * h * w, -1)
    out = F.linear(patches, weight.permute(0, 2, 3, 1).flatten(1), bias)
    return out.view(n, h, w, maps).permute(0, 3, 1, 2)


def of_blocks(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    """Compute a convolution as one of kernel 2 and stride 1, whose input channels are the pixels of a block.

    >>> x, weight, bias = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4), torch.zeros(1)
    >>> torch.equal(of_blocks(x, weight, bias, 2, 1), product(x, weight, bias, 2, 1))
    True
    """
    s, (maps, c, *_) = stride, weight.shape
    blocks = _blocks(x, stride, padding).permute(0, 1, 3, 2, 4, 5).flatten(3)  # (n, h + 1, w + 1, s s c)
    weight = weight.reshape(maps, c, 2, s, 2, s).permute(0, 3, 5, 1, 2, 4).reshape(maps, s * s * c, 2, 2)
    return F.conv2d(blocks.permute(0, 3, 1, 2), weight, bias)


def transposed_product(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int, output_padding: tuple[int, ...]
) -> Tensor:
    """Compute a transposed convolution as one product: each pixel adds to 2 × 2 blocks.

    >>> x, weight, bias = torch.ones(1, 1, 2, 2), torch.ones(1, 1, 4, 4), torch.zeros(1)
    >>> transposed_product(x, weight, bias, 2, 1, (0, 0))[0, 0, 0]
    tensor([1., 2., 2., 1.])
    """
    s, (n, c, h, w), maps = stride, x.shape, weight.shape[1]
    parts = x.permute(0, 2, 3, 1).reshape(-1, c) @ weight.permute(0, 2, 3, 1).reshape(c, -1)
    parts = parts.view(n, h, w, 2, s, 2, s, maps)
    corners = [F.pad(parts[:, :, :, i, :, j], (0, 0, 0, 0, 0, 0, j, 1 - j, i, 1 - i)) for i in (0, 1) for j in (0, 1)]
    blocks = reduce(add, corners)  # (n, h + 1, w + 1, s, s, maps)
    return _image(blocks, padding, output_padding) + bias[:, None, None]


def transposed_of_blocks(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int, output_padding: tuple[int, ...]
) -> Tensor:
    """Compute a transposed convolution as a plain one of kernel 2 and stride 1, whose maps are the pixels of a block.

    >>> x, weight, bias = torch.ones(1, 1, 2, 2), torch.ones(1, 1, 4, 4), torch.zeros(1)
    >>> transposed_of_blocks(x, weight, bias, 2, 1, (0, 0))[0, 0, 0]
    tensor([1., 2., 2., 1.])
    """
    s, (c, maps, *_) = stride, weight.shape
    weight = weight.reshape(c, maps, 2, s, 2, s).permute(3, 5, 1, 0, 2, 4).reshape(s * s * maps, c, 2, 2).flip(2, 3)
    blocks = F.conv2d(x, weight, bias.repeat(s * s), padding=1).permute(0, 2, 3, 1)
    return _image(blocks.unflatten(3, (s, s, maps)), padding, output_padding)


def _blocks(x: Tensor, s: int, padding: int) -> Tensor:
    """Return the padded image (n, c, ...) as blocks: (n, blocks down, s, blocks across, s, c)."""
    n, c, *sides = x.shape
    down, across = ((side + 2 * padding) // s for side in sides)
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding))
    return x[:, : down * s, : across * s].reshape(n, down, s, across, s, c)


def _image(blocks: Tensor, padding: int, more: tuple[int, ...]) -> Tensor:
    """Return the image of blocks (n, down, across, s, s, maps), without the padding."""
    n, down, across, s, _, maps = blocks.shape
    out = blocks.permute(0, 5, 1, 3, 2, 4).reshape(n, maps, down * s, across * s)
    tall, wide = (side - 2 * padding + extra for side, extra in zip(out.shape[2:], more))
    return out[:, :, padding : padding + tall, padding : padding + wide]


def _is_faster(layer: nn.Conv2d | nn.ConvTranspose2d, x: Tensor, padding: tuple[int, ...], few: bool) -> bool:
    """Return whether a faster form is known for this layer, and it is being compiled for a CPU."""
    if not (few or torch.is_autocast_enabled("cpu")):
        return False
    if not torch.compiler.is_compiling() or x.device.type != "cpu":
        return False
    (s, t), (p, q) = layer.stride, padding
    plain = layer.kernel_size == (2 * s, 2 * s) and s == t and p == q and layer.groups == 1 and layer.dilation == (1, 1)
    inside = all(more <= p for more in getattr(layer, "output_padding", (0, 0)))
    return x.dim() == 4 and plain and inside and layer.padding_mode == "zeros"
