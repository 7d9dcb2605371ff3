"""Convolutions of few channels as matrix products: what libraries for CPUs are slow at, at the ends of a network.

The layers are torch's own, parameters and results up to rounding. Where they are traced or compiled for a CPU, their
kernel is twice the stride and the side of the network that is an image has few channels, their work is one product of a
matrix of patches and one of weights: of 32 channels to one, an image takes 1 µs where oneDNN takes 20 (float32, two
cores). An eager layer stays as it is, since it would pay for making the patches what the compiler has for nothing.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEW = 4  # channels up to which the product is the faster way


class Conv2d(nn.Conv2d):
    """``torch.nn.Conv2d``, faster in a compiled graph on a CPU where it has few input channels.

    >>> Conv2d(1, 32, 4, 2, 1)(torch.zeros(5, 1, 28, 28)).shape
    torch.Size([5, 32, 14, 14])
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.in_channels > FEW or not _as_product(self, x):
            return super().forward(x)
        return convolution(x, self.weight, self.bias, self.stride[0], self.padding[0])


class ConvTranspose2d(nn.ConvTranspose2d):
    """``torch.nn.ConvTranspose2d``, faster in a compiled graph on a CPU where it has few output channels.

    >>> ConvTranspose2d(32, 1, 4, 2, 1)(torch.zeros(5, 32, 14, 14)).shape
    torch.Size([5, 1, 28, 28])
    """

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if self.out_channels > FEW or output_size is not None or not _as_product(self, x):
            return super().forward(x, output_size)
        return transposed_convolution(x, self.weight, self.bias, self.stride[0], self.padding[0], self.output_padding)


def convolution(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    """A convolution whose kernel is twice the stride s: each patch is 2 × 2 of the image's blocks of s × s pixels.

    >>> x, weight, bias = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4), torch.zeros(1)
    >>> convolution(x, weight, bias, 2, 1)[0, 0]
    tensor([[9., 9.],
            [9., 9.]])
    """
    s, (n, c, *sides), maps = stride, x.shape, len(weight)
    h, w = ((side + 2 * padding) // s - 1 for side in sides)
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding))
    blocks = x[:, : (h + 1) * s, : (w + 1) * s].reshape(n, h + 1, s, w + 1, s, c)
    rows = torch.stack([blocks[:, i : i + h] for i in (0, 1)], 2)  # (n, h, 2, s, w + 1, s, c)
    patches = torch.stack([rows[:, :, :, :, j : j + w] for j in (0, 1)], 5)  # (n, h, 2, s, w, 2, s, c)
    patches = patches.permute(0, 1, 4, 2, 3, 5, 6, 7).reshape(n * h * w, -1)
    out = F.linear(patches, weight.permute(0, 2, 3, 1).flatten(1), bias)
    return out.view(n, h, w, maps).permute(0, 3, 1, 2)


def transposed_convolution(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int, output_padding: tuple[int, ...]
) -> Tensor:
    """A transposed convolution whose kernel is twice the stride s: each pixel adds to 2 × 2 blocks of s × s.

    >>> x, weight, bias = torch.ones(1, 1, 2, 2), torch.ones(1, 1, 4, 4), torch.zeros(1)
    >>> transposed_convolution(x, weight, bias, 2, 1, (0, 0))[0, 0, 0]
    tensor([1., 2., 2., 1.])
    """
    s, (n, c, h, w), maps = stride, x.shape, weight.shape[1]
    parts = x.permute(0, 2, 3, 1).reshape(-1, c) @ weight.permute(0, 2, 3, 1).reshape(c, -1)
    parts = parts.view(n, h, w, 2, s, 2, s, maps)
    blocks = sum(
        F.pad(parts[:, :, :, i, :, j], (0, 0, 0, 0, 0, 0, j, 1 - j, i, 1 - i)) for i in (0, 1) for j in (0, 1)
    )  # (n, h + 1, w + 1, s, s, maps)
    out = blocks.permute(0, 5, 1, 3, 2, 4).reshape(n, maps, (h + 1) * s, (w + 1) * s)
    tall, wide = (s * (side + 1) - 2 * padding + more for side, more in zip((h, w), output_padding))
    return out[:, :, padding : padding + tall, padding : padding + wide] + bias[:, None, None]


def _as_product(layer: nn.Conv2d | nn.ConvTranspose2d, x: Tensor) -> bool:
    """Whether the layer is being compiled for a CPU, and one that the functions of this file know."""
    if not torch.compiler.is_compiling() or x.device.type != "cpu" or isinstance(layer.padding, str):
        return False
    (s, t), (p, q) = layer.stride, layer.padding
    plain = layer.kernel_size == (2 * s, 2 * s) and s == t and p == q and layer.groups == 1 and layer.dilation == (1, 1)
    inside = all(more <= p for more in getattr(layer, "output_padding", (0, 0)))
    return x.dim() == 4 and plain and inside and layer.padding_mode == "zeros" and layer.bias is not None
