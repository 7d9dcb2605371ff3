"""Shapes of every network for any image side and any leading batch dimensions."""

import warnings

import pytest
import torch
from programs import NormalizedDecoder
from torch import nn

from pyro_vae.networks import ROWS, ConvDecoder, ConvEncoder, Log1p, MLPDecoder, MLPEncoder, applied, lowered_precision

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


@pytest.mark.parametrize(
    ("rows", "parts"), [(1, [1]), (ROWS, [ROWS]), (ROWS + 1, [ROWS, 1]), (2 * ROWS + 3, [ROWS, ROWS, 3])]
)
def test_the_layers_see_at_most_some_rows_at_once(rows, parts):
    decoder, seen = MLPDecoder(3, (1, 8, 8), maps=1, hidden=(4,)), []
    decoder.layers.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    decoder(torch.randn(rows, 3))
    assert seen == parts
    seen.clear()
    decoder(torch.randn(rows, 2, 3))  # leading dimensions are rows too
    assert sum(seen) == 2 * rows and max(seen) <= ROWS


def test_weights_start_with_the_variance_of_he_and_biases_at_zero():
    """N(0, 2 / fan-in), where a transposed convolution of stride 2 adds up a quarter of its inputs' products."""
    torch.manual_seed(0)
    encoder = ConvEncoder((3, 16, 16), channels=(32, 64), hidden=(300,))
    decoder = ConvDecoder(100, (3, 16, 16), maps=3, channels=(64, 32), hidden=(300,))
    layers = [layer for module in (encoder, decoder) for layer in module.modules() if hasattr(layer, "kernel_size")]
    fan_in = [3 * 16, 32 * 16, 64 * 16 / 4, 32 * 16 / 4]
    dense = [layer for module in (encoder, decoder) for layer in module.modules() if isinstance(layer, nn.Linear)]
    layers, fan_in = layers + dense, fan_in + [layer.in_features for layer in dense]
    assert len(layers) == len(fan_in) == 7
    for layer, size in zip(layers, fan_in):
        start = 0.1 if layer is decoder.layers[-1] else 1.0  # the last layer of a decoder starts near zero
        spread = layer.weight.std().item() / start * (size / 2) ** 0.5
        assert spread == pytest.approx(1.0, abs=5 / (2 * layer.weight.numel()) ** 0.5)
        assert not layer.bias.any()


def test_lowered_precision_is_near_comes_back_in_float32_and_ends_with_the_block():
    torch.manual_seed(0)
    module, x = nn.ModuleList([ConvEncoder((1, 8, 8), channels=(8, 16))]), torch.rand(5, 1, 8, 8)
    exact = module[0](x)
    with lowered_precision(module, torch.bfloat16):
        near = module[0](x)
    assert near.dtype == torch.float32 and not torch.equal(near, exact)
    assert (near - exact).norm() < 0.01 * exact.norm()
    assert torch.equal(module[0](x), exact)


@pytest.mark.parametrize("batch", [(), (4,), (3, 4)])
def test_dense_networks_take_rows(batch):
    encoder = MLPEncoder((7,), hidden=(6, 5), scaling=Log1p())
    decoder = MLPDecoder(3, (7,), maps=2 * 7, hidden=(6,))
    x = torch.rand(*batch, 7) * 1000
    assert encoder(x).shape == (*batch, 5) and decoder(torch.randn(*batch, 3)).shape == (*batch, 14)
    wanted = encoder.layers[1:](torch.log(1 + x).reshape(-1, 7)).reshape(*batch, 5)
    torch.testing.assert_close(encoder(x), wanted)


def test_bad_shapes():
    with pytest.raises(ValueError, match=r"network: wanted \(..., 1, 8, 8\), got \(2, 1, 9, 8\)"):
        ConvEncoder((1, 8, 8))(torch.zeros(2, 1, 9, 8))
    with pytest.raises(ValueError, match=r"wanted \(..., 3\)"):
        MLPDecoder(3, (1, 8, 8), maps=1)(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"channels: wanted convolutions of stride 2 .* got 4"):
        ConvEncoder((1, 8, 8), channels=(2, 2, 2, 2))
    with pytest.raises(ValueError, match="latent: wanted a whole number of at least 1"):
        ConvDecoder(0, (1, 8, 8), maps=1)
    with pytest.raises(ValueError, match=r"\(C, H, W\)"):
        MLPEncoder((28, 28))
    with pytest.raises(ValueError, match=r"\(D,\) of rows"):
        MLPDecoder(2, (28, 28), maps=1)
    with pytest.raises(ValueError, match=r"\(C, H, W\), got \(7,\)"):
        ConvEncoder((7,))


OWN = {  # network, shape of a value, shape of its output
    "unflatten": (lambda: nn.Sequential(nn.Linear(3, 64), nn.Unflatten(1, (1, 8, 8))), (3,), (1, 8, 8)),
    "view, batch norm": (lambda: NormalizedDecoder(3), (3,), (1, 8, 8)),
    "flatten": (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 5)), (1, 8, 8), (5,)),
    "batch norm 2d": (lambda: nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(1)), (1, 8, 8), (64,)),
    "any dimensions": (lambda: nn.Sequential(nn.Flatten(-3), nn.Linear(64, 5)), (1, 8, 8), (5,)),
}


@pytest.mark.parametrize("batch", [(), (7,), (2, 64), (64, 2), (2, 1, 3), (0,)])
@pytest.mark.parametrize("name", OWN)
def test_a_network_of_one_batch_dimension_takes_any_number_of_them(name, batch):
    torch.manual_seed(0)
    make, event, out = OWN[name]
    network, value = make().eval(), torch.rand(*batch, *event)
    got = applied(network, value, len(event))
    assert got.shape == (*batch, *out)
    rows = [network(row.unsqueeze(0)) for row in value.reshape(-1, *event)]
    if rows:
        torch.testing.assert_close(got.reshape(-1, *out), torch.cat(rows))


def test_a_network_that_normalises_over_its_batch_sees_every_row_of_it():
    torch.manual_seed(0)
    network = NormalizedDecoder(3)
    z = torch.randn(64, 64, 3)  # as many images as features: (K, B, F) would pass for (N, C, L)
    torch.testing.assert_close(applied(network, z, 1).flatten(0, 1), network(z.flatten(0, 1)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [*OWN, "ours"])
def test_the_result_is_not_in_the_precision_of_autocast(name, dtype):
    torch.manual_seed(0)
    make, event, _ = (OWN | {"ours": (lambda: ConvEncoder((1, 8, 8), (2, 4)), (1, 8, 8), ())})[name]
    network, value = make().eval(), torch.rand(4, *event)
    exact = applied(network, value, len(event))
    with torch.autocast("cpu", dtype):
        lowered = applied(network, value, len(event))
    assert lowered.dtype == torch.float32
    torch.testing.assert_close(lowered, exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.Flatten(0)), r"one row for each of \(10, 3\), got \(40,\)"),
        (nn.GRU(3, 4), "wanted a tensor .* got tuple; return a single tensor"),
        (nn.Linear(3, 4).double(), r"parameters of torch.float64 and values of torch.float32; write vae.to\(.*x.to\("),
        (nn.Linear(3, 4).bfloat16(), r"parameters of torch.bfloat16 .* write vae.to\(torch.float32\)$"),
    ],
)
def test_a_network_that_gives_something_else_is_named(network, message):
    with pytest.raises(ValueError, match=f"{type(network).__name__}: .*{message}"):
        applied(network, torch.zeros(2, 5, 3), 1)


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("network", "event"),
    [
        (ConvEncoder((1, 8, 8), (2, 4)), (1, 8, 8)),
        (ConvDecoder(3, (1, 8, 8), 1, (4, 2)), (3,)),
        (MLPEncoder((1, 8, 8), (5,)), (1, 8, 8)),
        (MLPDecoder(3, (1, 8, 8), 1, (5,)), (3,)),
    ],
)
def test_an_export_leaves_the_number_of_rows_open(network, event, strict):
    rows = {0: torch.export.Dim("rows")}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch\.")
        graph = torch.export.export(network, (torch.rand(5, *event),), dynamic_shapes=(rows,), strict=strict).module()
    for count in (1, 5, ROWS + 44):
        value = torch.rand(count, *event)
        torch.testing.assert_close(graph(value), network(value))


def test_the_widths_that_are_not_given_are_those_of_saved_runs():
    """A run that was saved without widths is read with the defaults."""
    shape = (1, 8, 8)
    widths = {
        MLPEncoder(shape): 64 * 400 + 400,
        MLPDecoder(2, shape, maps=1): 2 * 400 + 400 + 400 * 64 + 64,
        ConvEncoder(shape): 16 * 32 + 32 + 16 * 32 * 64 + 64,
        ConvDecoder(2, shape, maps=1): 2 * 256 + 256 + 64 * 16 * 32 + 32 + 32 * 16 + 1,
    }
    for network, count in widths.items():
        assert sum(parameter.numel() for parameter in network.parameters()) == count, type(network).__name__


def test_networks_of_single_units():
    encoder, decoder = MLPEncoder((1,), hidden=(1, 1)), MLPDecoder(1, (1,), maps=1, hidden=(1,))
    assert encoder(torch.rand(5, 1)).shape == decoder(torch.rand(5, 1)).shape == (5, 1)
    narrow = ConvEncoder((1, 4, 4), channels=(1,)), ConvDecoder(1, (1, 4, 4), maps=1, channels=(1,))
    assert narrow[0](torch.rand(5, 1, 4, 4)).shape == (5, 4) and narrow[1](torch.rand(5, 1)).shape == (5, 1, 4, 4)
