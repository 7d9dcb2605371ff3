"""From grey levels to x: draws, cells, and the cure for other pixels."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from monte_carlo import assert_mean_is
from torch import nn

from pyro_vae import likelihoods as L
from pyro_vae.data import pixels

LEVELS = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)


def test_dynamic_binarisation_has_the_grey_level_as_its_mean():
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([L.dynamic(LEVELS, generator) for _ in range(4000)])
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    p = LEVELS / 255
    z = (draws.mean(0) - p) / (p * (1 - p) / 4000).sqrt().clamp_min(1e-9)
    assert z.abs().max() < 4.5
    assert draws[:, 0, 0, 0, 0].sum() == 0 and draws[:, 0, 0, -1, -1].sum() == 4000


def test_black_stays_black_and_white_white_at_the_ends_of_the_random_numbers(monkeypatch):
    ends = torch.tensor([0, 255], dtype=torch.uint8)
    for u in (0.0, 1 - 2.0**-24):
        monkeypatch.setattr(torch, "rand", lambda shape, u=u, **_: torch.full(shape, u))
        assert L.dynamic(ends).tolist() == [0.0, 1.0]


PIXELS = LEVELS.expand(2, 1, 16, 16).contiguous()
CURES = {  # the slip, and what its message says to write
    "float": (PIXELS / 255, lambda given: (255.0 * given).round().to(torch.uint8)),
    "bool": (PIXELS > 127, lambda given: (255.0 * given).round().to(torch.uint8)),
    "int64": (PIXELS.long(), lambda given: given.to(torch.uint8)),
    "(N, H, W)": (PIXELS[:, 0], lambda given: given.unsqueeze(1)),
    "(C, H, W)": (PIXELS[0], lambda given: given.unsqueeze(0)),
    "(K, N, C, H, W)": (PIXELS[None], lambda given: given.reshape(-1, 1, 16, 16)),
    "flat": (PIXELS.flatten(1), lambda given: given.reshape(-1, 1, 16, 16)),
    "float (N, H, W)": (PIXELS[:, 0] / 255, lambda given: (255.0 * given.unsqueeze(1)).round().to(torch.uint8)),
    "float array": (PIXELS.numpy() / 255, lambda given: (255.0 * np.asarray(given)).round().astype("uint8")),
    "int64 array": (PIXELS.numpy().astype(int), lambda given: np.asarray(given).astype("uint8")),
    "list": (PIXELS.tolist(), lambda given: np.asarray(given).astype("uint8")),
}


@pytest.mark.parametrize("name", CURES)
def test_the_cure_for_other_pixels_works(name):
    given, cured = CURES[name]
    likelihood = L.DiscretizedLogistic(nn.Identity())
    with pytest.raises(ValueError, match=r"wanted uint8 .* got .*write .*(uint8|squeeze|reshape\(-1, C, H, W\))"):
        likelihood.observe(given)
    x = likelihood.observe(cured(given))
    assert x.shape[1:] == (1, 16, 16)
    expected = (PIXELS > 127).float() if name == "bool" else PIXELS / 255
    assert torch.equal(x, expected[: len(x)])


def test_arrays_of_numpy_are_observed():
    array = PIXELS.numpy()
    for view in (array, array[:, :, ::-1], np.asfortranarray(array), array.transpose(0, 1, 3, 2)):
        assert np.array_equal(L.DiscretizedLogistic(nn.Identity()).observe(view) * 255, view)
    array.flags.writeable = False
    assert L.Bernoulli(nn.Identity(), L.dynamic).observe(array).shape == array.shape


def test_thresholds_intensities_and_cells_by_hand():
    levels = torch.tensor([0, 127, 128, 255], dtype=torch.uint8)
    assert pixels.threshold(levels).tolist() == [0, 0, 1, 1]
    assert pixels.intensity(levels).tolist() == pytest.approx([0, 127 / 255, 128 / 255, 1])
    for make in (pixels.dequantize, pixels.interior):
        x = torch.stack([make(levels, torch.Generator().manual_seed(seed)) for seed in range(2000)]).double()
        assert ((x * 256).floor() == levels).all()
        assert_mean_is(x, (levels + 0.5) / 256, sees=0.1 / 256)
    # at the ends of the interval a density may be infinite
    nothing = torch.zeros(100_000, dtype=torch.uint8)
    assert pixels.interior(nothing, torch.Generator().manual_seed(0), margin=1e-3).min() == pytest.approx(1e-3)
    ends = torch.stack([pixels.interior(g, torch.Generator().manual_seed(0)) for g in (nothing, nothing + 255)])
    assert ends.min() == 2.0**-17 and ends.max() == 1 - 2.0**-17


@pytest.mark.parametrize(
    ("p", "wanted"),
    [
        (dist.Laplace(0.0, 1.0), pixels.interior),
        (dist.Uniform(0.0, 1.0), pixels.interior),
        (dist.Beta(2.0, 2.0), pixels.interior),
        (dist.Bernoulli(0.5), pixels.dynamic),
        (dist.Uniform(0.0, 0.5), None),
        (dist.Poisson(1.0), None),
        (dist.Binomial(2, 0.5), None),
        (dist.Binomial(0, 0.5), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, dist.Distribution) else getattr(value, "__name__", ""),
)
def test_how_x_is_made_follows_from_the_support(p, wanted):
    p = p.expand([1, 2, 2]).to_event(3)
    if wanted is not None:
        assert pixels.observed_by(p, torch.zeros(())) is wanted
    else:
        name = type(p.base_dist).__name__
        with pytest.raises(ValueError, match=rf"it is not known how to make x in \[0, 1\] from grey levels for {name}"):
            pixels.observed_by(p, torch.zeros(()))
