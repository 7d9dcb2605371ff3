"""Convolutions in other forms against torch's own: values, gradients, and when they are taken."""

import pytest
import torch
from torch import nn

from pyro_vae.compiling.convolutions import (
    ChannelsLast,
    Conv2d,
    ConvTranspose2d,
    of_blocks,
    product,
    transposed_of_blocks,
    transposed_product,
)

SIDES = [(8, 8), (28, 20), (7, 9), (2, 2)]
KERNELS = [(4, 2, 1), (4, 2, 0), (2, 1, 0), (6, 3, 2)]  # twice the stride, stride, padding


def check(form, layer, x):
    """Values and gradients of all inputs agree with the layer's own."""
    inputs = (x, layer.weight, layer.bias)
    ours, theirs = form(*inputs), layer(x)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
    direction = torch.randn_like(theirs)
    for one, other in zip(*(torch.autograd.grad(out, inputs, direction) for out in (ours, theirs))):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    "sides, kernel",
    [(s, k) for s in SIDES for k in KERNELS if min(s) + 2 * k[2] >= k[0]],  # no smaller than the kernel
)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("form", [product, of_blocks])
def test_convolution_is_torchs(form, sides, kernel, channels):
    layer = nn.Conv2d(channels, 5, *kernel).double()
    x = torch.randn(3, channels, *sides, dtype=torch.float64, requires_grad=True)
    check(lambda x, weight, bias: form(x, weight, bias, *kernel[1:]), layer, x)


@pytest.mark.parametrize("form", [transposed_product, transposed_of_blocks])
@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize(
    "kernel, more",
    [(k, more) for k in KERNELS for more in [(0, 0), (1, 0), (1, 1)] if max(more) <= k[2] and max(more) < k[1]],
)
def test_transposed_convolution_is_torchs(form, sides, kernel, more):
    layer = nn.ConvTranspose2d(5, 2, *kernel, output_padding=more).double()
    x = torch.randn(3, 5, *sides, dtype=torch.float64, requires_grad=True)
    check(lambda x, w, b: form(x, w, b, *kernel[1:], layer.output_padding), layer, x)


class Lowered(nn.Sequential):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


def operations(layer, x):
    graph = torch.export.export(layer, (x,), strict=False).graph
    return {str(node.target) for node in graph.nodes if node.op == "call_function"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "layer",
    [Conv2d(1, 5, 4, 2, 1), ConvTranspose2d(5, 1, 4, 2, 1), ConvTranspose2d(5, 1, 4, 2, 1, output_padding=1)],
)
def test_products_are_taken_in_graphs_alone(layer):
    x = torch.randn(2, layer.in_channels, 8, 8)
    assert not any("conv" in operation for operation in operations(layer, x))
    graph = torch.export.export(layer, (x,), strict=False).module()
    torch.testing.assert_close(graph(x), layer(x))  # float32: eager is torch's own


@pytest.mark.slow
@pytest.mark.parametrize("layer", [Conv2d(8, 5, 4, 2, 1), ConvTranspose2d(5, 8, 4, 2, 1)])
def test_blocks_are_taken_in_graphs_of_lowered_precision(layer):
    x = torch.randn(2, layer.in_channels, 8, 8)
    graph = torch.export.export(Lowered(layer), (x,), strict=False).module()
    parts = [part for part in graph.modules() if isinstance(part, torch.fx.GraphModule)]
    (convolution,) = [node for part in parts for node in part.graph.nodes if "conv" in str(node.target)]
    assert convolution.args[1].meta["val"].shape[2:] == (2, 2)
    torch.testing.assert_close(graph(x), Lowered(layer)(x), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    "layer",
    [
        Conv2d(8, 5, 4, 2, 1),
        Conv2d(1, 5, 3, 2, 1),
        Conv2d(1, 5, 4, 2, 1, padding_mode="circular"),
        Conv2d(1, 5, 4, 2, 1, bias=False),
        ConvTranspose2d(5, 8, 4, 2, 1),
        ConvTranspose2d(5, 1, 4, 2, 0, output_padding=1),
        ConvTranspose2d(4, 2, 4, 2, 1, groups=2),
    ],
)
def test_other_convolutions_are_torchs(layer):
    x = torch.randn(2, layer.in_channels, 8, 8)
    assert any("conv" in operation for operation in operations(layer, x))
    parent = type(layer).__bases__[0]
    assert torch.equal(layer(x), parent.forward(layer, x))


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_convolutions_of_lowered_precision_work_with_the_channels_innermost_and_no_others(kind):
    layer, x = kind(8, 16, 3, padding=1), torch.rand(2, 8, 5, 5, requires_grad=True)
    with ChannelsLast():
        plain = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            turned, single = layer(x), layer(x[0])
    assert plain.is_contiguous() and turned.is_contiguous(memory_format=torch.channels_last)
    (gradient,) = torch.autograd.grad(turned.sum(), x)
    (wanted,) = torch.autograd.grad(plain.sum(), x)
    torch.testing.assert_close(turned.float(), plain, rtol=0.02, atol=0.02)
    torch.testing.assert_close(single.float(), plain[0], rtol=0.02, atol=0.02)
    torch.testing.assert_close(gradient, wanted, rtol=0.05, atol=0.05)
