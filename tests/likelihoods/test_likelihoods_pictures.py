"""Every likelihood against its closed form, SciPy or torch, at every grey level and far outside the usual range."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from pyro_vae import likelihoods as L

LEVELS = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
FAMILIES = {
    "bernoulli": L.Bernoulli,
    "threshold": lambda network: L.Bernoulli(network, binarize=L.threshold),
    "intensity": lambda network: L.Bernoulli(network, binarize=L.intensity),
    "continuous_bernoulli": L.ContinuousBernoulli,
    "normal": L.Normal,
    "normal_shared": lambda network: L.Normal(network, log_scale=nn.Parameter(torch.tensor(-1.0))),
    "normal_fixed": lambda network: L.Normal(network, log_scale=math.log(0.1)),
    "beta": L.Beta,
    "categorical_2": lambda network: L.Categorical(network, bins=2),
    "categorical_16": L.Categorical,
    "categorical_256": lambda network: L.Categorical(network, bins=256),
    "logistic": L.DiscretizedLogistic,
    "logistic_mixture": L.DiscretizedLogisticMixture,
}
DENSITIES = ["continuous_bernoulli", "normal", "normal_shared", "normal_fixed", "beta"]
MASSES = ["categorical_2", "categorical_16", "categorical_256", "logistic", "logistic_mixture"]


def family(name):
    return FAMILIES[name](nn.Identity()).double()


def pixel(name, *maps):
    """Return the distribution of one pixel, batch (), for these maps or for arbitrary ones; float64."""
    likelihood = family(name)
    arbitrary = [0.3, -0.7, *np.sin(np.arange(2, 256))]
    maps = maps or arbitrary[: likelihood.parameters_per_pixel]
    return likelihood.pixel_distribution(*torch.tensor(maps, dtype=torch.float64))


@pytest.mark.parametrize("output", [-50.0, -1.0, 0.0, 1.0, 50.0])
@pytest.mark.parametrize("name", FAMILIES)
def test_finite_at_every_level_and_network_output(name, output):
    likelihood = FAMILIES[name](nn.Identity())
    maps = torch.full((1, likelihood.parameters_per_pixel, 16, 16), output)
    maps[:, ::2] *= -1
    maps.requires_grad_()
    log_prob = likelihood(maps).log_prob(likelihood.observe(LEVELS)).sum()
    (gradient,) = torch.autograd.grad(log_prob, maps)
    assert log_prob.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize("name", DENSITIES)
def test_density_integrates_to_one(name):
    low, high = (-30.0, 30.0) if name.startswith("normal") else (0.0, 1.0)
    edges = torch.linspace(low, high, 1_000_001, dtype=torch.float64)
    density = pixel(name, *([0.3, 2.0] if name == "beta" else [])).log_prob((edges[1:] + edges[:-1]) / 2).exp()
    assert density.mean().item() * (high - low) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", ["bernoulli", "threshold", *MASSES])
def test_mass_sums_to_one(name):
    bins = getattr(family(name), "bins", 1)
    centres = (torch.arange(bins, dtype=torch.float64) + 0.5) / bins
    levels = LEVELS.double().flatten() / 255
    support = levels if "logistic" in name else centres if bins > 1 else torch.eye(2)[0].double()
    assert pixel(name).log_prob(support).exp().sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", DENSITIES + MASSES)
def test_mass_over_the_256_grey_levels_sums_to_one(name):
    """Σ_g p(cell of g) level_width, a density averaged over the cell by the midpoint rule."""
    likelihood = family(name)
    if name in DENSITIES:
        inner = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
        x = (torch.arange(256, dtype=torch.float64)[:, None] + inner) / 256
    else:
        x = likelihood.observe(LEVELS).double().reshape(256, 1)
    if name == "normal_shared":
        likelihood.log_scale.data.fill_(-3.0)
    arbitrary = {"beta": [0.3, 2.0], "normal": [0.3, -3.0]}.get(name, [0.3, -0.7, *np.sin(np.arange(2, 256))])
    maps = torch.tensor(arbitrary[: likelihood.parameters_per_pixel], dtype=torch.float64)
    mass = likelihood.pixel_distribution(*maps).log_prob(x).exp().mean(1) * likelihood.level_width
    assert mass.sum().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", ["bernoulli", "continuous_bernoulli", *DENSITIES[1:], *MASSES])
def test_mean_is_that_of_the_samples(name):
    torch.manual_seed(0)
    p = pixel(name)
    draws = p.sample((200_000,))
    assert p.mean.item() == pytest.approx(draws.mean().item(), abs=5 * draws.std().item() / 200_000**0.5)


def test_scipy_agrees():
    x = np.linspace(0.01, 0.99, 50)
    loc = 1 / (1 + math.exp(-0.3))
    scale = math.exp(-6 + math.log1p(math.exp(-0.7 + 6)))
    assert np.allclose(pixel("normal").log_prob(torch.tensor(x)), scipy.stats.norm.logpdf(x, loc, scale))
    concentration = -math.log1p(math.exp(-(-4 + math.log1p(math.exp(2 + 4))) + 9)) + 9
    c = math.exp(concentration)
    expected = scipy.stats.beta.logpdf(x, loc * c, (1 - loc) * c)
    assert np.allclose(pixel("beta", 0.3, 2.0).log_prob(torch.tensor(x)), expected)
    shared = math.exp(-6 + math.log1p(math.exp(-1 + 6)))
    for name, scale in (("normal_shared", shared), ("normal_fixed", 0.1)):
        log_p = pixel(name, 0.3).log_prob(torch.tensor(x)).detach()
        assert np.allclose(log_p, scipy.stats.norm.logpdf(x, loc, scale)), name


@pytest.mark.parametrize("bins", [2, 16, 256])
def test_categorical_is_torchs_over_the_bins_in_their_order(bins):
    logits = torch.sin(torch.arange(bins, dtype=torch.float64))
    centres = (torch.arange(bins) + 0.5) / bins
    expected = torch.distributions.Categorical(logits=logits).log_prob(torch.arange(bins))
    torch.testing.assert_close(pixel(f"categorical_{bins}", *logits.tolist()).log_prob(centres.double()), expected)


def test_logistic_levels_are_differences_of_the_cumulative_distribution():
    levels = np.arange(256)
    scale = math.exp(-7 + math.log1p(math.exp(-3.0 + 7)))
    edges = scipy.stats.logistic.cdf((levels + 0.5) / 255, loc=1 / (1 + math.exp(-0.3)), scale=scale)
    edges[-1] = 1
    mass = np.diff(edges, prepend=0)
    log_prob = pixel("logistic", 0.3, -3.0).log_prob(torch.tensor(levels / 255))
    assert np.allclose(log_prob.exp(), mass, rtol=1e-9)


def test_a_mixture_of_logistics_is_the_weighted_sum_of_its_components():
    """Weights, locations and scales by hand, masses by SciPy; component k starts at the level (k + ½) / K."""
    likelihood = L.DiscretizedLogisticMixture(nn.Identity(), components=3).double()
    maps = torch.tensor([0.3, -0.7, 1.1, 0.2, 0.0, -0.4, -3.0, -2.0, -6.5], dtype=torch.float64)
    levels = np.arange(256)
    weights, wanted = maps[:3].softmax(0), 0
    for k in range(3):
        logit = maps[3 + k].item() + math.log((k + 0.5) / (2.5 - k))
        scale = math.exp(-7 + math.log1p(math.exp(maps[6 + k].item() + 7)))
        edges = scipy.stats.logistic.cdf((levels + 0.5) / 255, loc=1 / (1 + math.exp(-logit)), scale=scale)
        edges[-1] = 1
        wanted = wanted + weights[k].item() * np.diff(edges, prepend=0)
    log_prob = likelihood.pixel_distribution(*maps).log_prob(torch.tensor(levels / 255))
    assert np.allclose(log_prob.exp(), wanted, rtol=1e-9)


def test_a_mixture_of_one_logistic_is_the_logistic():
    one, plain = L.DiscretizedLogisticMixture(nn.Identity(), components=1), L.DiscretizedLogistic(nn.Identity())
    maps = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    x = plain.observe(LEVELS)
    assert torch.equal(one.observe(LEVELS), x)
    torch.testing.assert_close(one(maps).log_prob(x), plain(maps[:, 1:]).log_prob(x))
    torch.testing.assert_close(one(maps).mean, plain(maps[:, 1:]).mean)


def test_a_mixture_counts_the_components_at_the_bound():
    likelihood = L.DiscretizedLogisticMixture(nn.Identity(), components=2, min_log_scale=-2.0)
    maps = torch.zeros(1, 6, 4, 4)
    maps[0, 4] = -3.0
    assert likelihood.share_at_bound(maps) == 0.5
    assert likelihood.share_at_bound(maps.abs()) == 0.0 and likelihood.share_at_bound(-maps.abs() - 9) == 1.0


def test_continuous_bernoulli_is_torchs_within_the_clip_and_constant_beyond():
    x = torch.linspace(0, 1, 11, dtype=torch.float64)
    expected = torch.distributions.ContinuousBernoulli(logits=torch.tensor(0.3, dtype=torch.float64)).log_prob(x)
    assert torch.allclose(pixel("continuous_bernoulli", 0.3).log_prob(x), expected)
    edge = math.log((1 - 1e-4) / 1e-4)
    beyond, at_edge = (pixel("continuous_bernoulli", logit).log_prob(x) for logit in (40.0, edge))
    assert torch.allclose(beyond, at_edge, rtol=1e-8)


def test_intensity_is_the_cross_entropy_of_torch():
    likelihood = FAMILIES["intensity"](nn.Identity())
    x, logits = likelihood.observe(LEVELS), torch.linspace(-3, 3, 256).reshape(1, 1, 16, 16)
    expected = -nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    assert torch.allclose(likelihood(logits).log_prob(x).sum(), expected)


@pytest.mark.parametrize("name", DENSITIES)
def test_dequantised_x_lies_in_the_cell_of_its_level(name):
    likelihood = family(name)
    for seed in range(50):
        x = likelihood.observe(LEVELS, torch.Generator().manual_seed(seed)).double()
        assert ((x >= LEVELS / 256 - 1e-7) & (x <= (LEVELS.double() + 1) / 256)).all()
        if name == "beta":
            assert x.min() > 0 and x.max() < 1


@pytest.mark.parametrize("bins", [2, 10, 16, 256])
def test_bins_hold_the_levels_that_floor_gives(bins):
    x = L.Categorical(nn.Identity(), bins=bins).observe(LEVELS).flatten()
    assert torch.allclose(x, torch.tensor([(g * bins // 256 + 0.5) / bins for g in range(256)]))


def test_bins_of_unequal_width_are_not_compared_in_bits():
    assert L.Categorical(nn.Identity(), bins=100).level_width is None
    assert L.Categorical(nn.Identity(), bins=64).level_width == 0.25


@pytest.mark.parametrize("name", DENSITIES + MASSES)
def test_a_uniform_model_scores_eight_bits(name):
    """The uniform distribution on the cells of x has log p(x) = −ln(number of cells) per pixel; densities: 0."""
    likelihood = family(name)
    cells = 256 if "logistic" in name else getattr(likelihood, "bins", 1)
    log_px = torch.tensor(-784 * math.log(cells), dtype=torch.float64)
    assert L.bits_per_dim(log_px, 784, likelihood.level_width).item() == pytest.approx(8, abs=1e-12)


def test_uniform_distributions_of_the_families_themselves_score_eight_bits():
    """Parameters for which a family is uniform: λ = ½, α = β = 1, equal logits."""
    x = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    uniform = {"continuous_bernoulli": (0.0,), "categorical_16": (0.0,) * 16}
    log_c = torch.linspace(-1, 2, 100_001, dtype=torch.float64)
    family_c = family("beta").pixel_distribution(torch.zeros(()).double(), log_c)
    uniform["beta"] = (0.0, log_c[(family_c.concentration1 - 1).abs().argmin()].item())
    for name, maps in uniform.items():
        values = family(name).observe(LEVELS).double().unique() if name == "categorical_16" else x
        bits = L.bits_per_dim(pixel(name, *maps).log_prob(values), 1, family(name).level_width)
        assert torch.allclose(bits, torch.full_like(bits, 8.0), atol=1e-3), name


def test_share_at_bound_counts_the_pixels_that_the_bound_holds_up():
    likelihood = L.Normal(nn.Identity(), min_log_scale=-2.0)
    maps = torch.zeros(1, 2, 4, 4)
    maps[0, 1, :1] = -3.0
    assert likelihood.share_at_bound(maps) == 0.25
    assert likelihood(maps).base_dist.scale.min() > math.exp(-2)
    fixed = L.Normal(nn.Identity(), log_scale=-3.0, min_log_scale=-2.0)  # as it was given: nothing holds it up
    assert fixed.share_at_bound(maps) == 0 and fixed(maps).base_dist.scale.min().log() == -3


@pytest.mark.parametrize("name", FAMILIES)
def test_pictures_and_samples_have_the_shape_of_images(name):
    likelihood = FAMILIES[name](nn.Identity())
    p = likelihood(torch.randn(3, 5, 2 * likelihood.parameters_per_pixel, 4, 6))
    assert p.batch_shape == (3, 5) and p.event_shape == (2, 4, 6)
    assert p.mean.shape == p.sample().shape == (3, 5, 2, 4, 6)
    assert p.log_prob(p.sample()).shape == (3, 5)
    assert p.expand((7, 3, 5)).log_prob(p.sample()).shape == (7, 3, 5)


@pytest.mark.parametrize("bins", [1, 300, 2.5])
def test_bins_out_of_range(bins):
    with pytest.raises(ValueError, match="from 2 to 256"):
        L.Categorical(nn.Identity(), bins=bins)


def test_bad_settings_and_pixels():
    with pytest.raises(ValueError, match=r"between 0 and 0\.5"):
        L.ContinuousBernoulli(nn.Identity(), clip=0.5)
    with pytest.raises(ValueError, match="dynamic, threshold or intensity"):
        L.Bernoulli(nn.Identity(), binarize="dynamic")
    for pixels in (torch.zeros(2, 1, 8, 8), torch.zeros(2, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            L.Beta(nn.Identity()).observe(pixels)
    with pytest.raises(ValueError, match="maps=C"):
        L.Normal(nn.Identity())(torch.zeros(5, 3, 8, 8))


@pytest.mark.parametrize("clip", [1e-4, 0.1])
def test_black_and_white_change_places_with_the_sign_of_a_logit(clip):
    """p(x; λ) = p(1 − x; 1 − λ), and λ is at least the clip and at most one minus it."""
    likelihood = L.ContinuousBernoulli(nn.Identity(), clip=clip)
    logits, x = torch.linspace(-20, 20, 81).reshape(81, 1, 1, 1).double(), torch.rand(81, 1, 1, 1).double()
    torch.testing.assert_close(likelihood(logits).log_prob(x), likelihood(-logits).log_prob(1 - x))
    p = likelihood(logits).base_dist
    torch.testing.assert_close(p.probs.squeeze(), logits.sigmoid().clamp(clip, 1 - clip).squeeze())
    assert (p.mean.diff(dim=0) >= 0).all() and p.mean[0] < 0.4 < 0.6 < p.mean[-1]
