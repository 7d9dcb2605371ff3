"""Shapes of every network for any image side and any leading batch dimensions."""

import pytest
import torch
from torch import nn

from pyro_vae.networks import ROWS, ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder, lowered_precision

SHAPES = [(1, 28, 28), (1, 28, 20), (1, 8, 8), (3, 9, 15), (2, 13, 8)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", [(), (4,), (3, 4), (2, 1, 3), (0,)])
@pytest.mark.parametrize("hidden", [(), (7, 5)])
def test_conv_shapes(shape, batch, hidden):
    encoder = ConvEncoder(shape, channels=(2, 4), hidden=hidden)
    decoder = ConvDecoder(3, shape, maps=5, channels=(4, 2), hidden=hidden)
    assert encoder(torch.rand(*batch, *shape)).shape == (*batch, encoder.out_features)
    assert decoder(torch.randn(*batch, 3)).shape == (*batch, 5, *shape[1:])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", [(), (4,), (3, 4)])
def test_mlp_shapes(shape, batch):
    encoder, decoder = MLPEncoder(shape, hidden=(6, 5)), MLPDecoder(3, shape, maps=5, hidden=(6,), activation=nn.Tanh)
    assert encoder(torch.rand(*batch, *shape)).shape == (*batch, 5)
    assert decoder(torch.randn(*batch, 3)).shape == (*batch, 5, *shape[1:])


def test_leading_dimensions_change_no_value():
    encoder, x = ConvEncoder((1, 8, 8), channels=(2, 4)).double(), torch.rand(3, 4, 1, 8, 8, dtype=torch.float64)
    assert torch.allclose(encoder(x)[1, 2], encoder(x[1, 2]))


def test_a_large_batch_is_seen_in_parts_with_the_same_values():
    decoder = ConvDecoder(3, (1, 8, 8), maps=1, channels=(4, 2)).double()
    z = torch.randn(2 * ROWS + 3, 3, dtype=torch.float64)
    assert torch.allclose(decoder(z), decoder.layers(z))


def test_lowered_precision_is_near_comes_back_in_float32_and_ends_with_the_block():
    torch.manual_seed(0)
    module, x = nn.ModuleList([ConvEncoder((1, 8, 8), channels=(8, 16))]), torch.rand(5, 1, 8, 8)
    exact = module[0](x)
    with lowered_precision(module, torch.bfloat16):
        near = module[0](x)
    assert near.dtype == torch.float32 and not torch.equal(near, exact)
    assert (near - exact).norm() < 0.01 * exact.norm()
    assert torch.equal(module[0](x), exact)


def test_bad_shapes():
    with pytest.raises(ValueError, match=r"wants \(..., 1, 8, 8\), got \(2, 1, 9, 8\)"):
        ConvEncoder((1, 8, 8))(torch.zeros(2, 1, 9, 8))
    with pytest.raises(ValueError, match=r"wants \(..., 3\)"):
        MLPDecoder(3, (1, 8, 8), maps=1)(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="4 convolutions of stride 2"):
        ConvEncoder((1, 8, 8), channels=(2, 2, 2, 2))
    with pytest.raises(ValueError, match="latent: wanted positive"):
        ConvDecoder(0, (1, 8, 8), maps=1)
    with pytest.raises(ValueError, match=r"\(C, H, W\)"):
        MLPEncoder((28, 28))
