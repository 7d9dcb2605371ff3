"""Codes, images and probes against the linear Gaussian program, scikit-learn and integrals by hand."""

import inspect
from functools import partial

import many_programs
import pytest
import scipy.stats
import torch
from monte_carlo import assert_estimate_is, assert_mean_is
from sklearn.neighbors import KNeighborsClassifier
from torch.distributions import kl_divergence

from pyro_vae import VAE, analysis, guides, likelihoods, load, networks, priors, tables
from pyro_vae.linear_gaussian import LinearGaussian
from pyro_vae.random import seeded

SHAPE = (1, 4, 4)


@pytest.fixture
def program():
    torch.manual_seed(0)
    return LinearGaussian(torch.randn(16, 2), bias=torch.rand(16), scale=0.5, shape=SHAPE).double()


@pytest.fixture
def flow():
    torch.manual_seed(0)
    guide = guides.Flow(networks.MLPEncoder((1, 8, 8), hidden=(8,)), latent=2)
    decoder = networks.MLPDecoder(2, (1, 8, 8), maps=1, hidden=(8,))
    return VAE(priors.StandardNormal(2), likelihoods.Bernoulli(decoder), guide)


def images(count=7):
    return torch.rand(count, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_codes_are_the_exact_posterior_means_for_any_batch_size_and_leading_dimensions(program):
    x = images(6)
    expected = program.exact_posterior(x).mean
    for batch_size in (1, 4, 100):
        assert torch.allclose(analysis.codes(program, x, batch_size=batch_size), expected)
    assert torch.allclose(analysis.codes(program, x.reshape(2, 3, *SHAPE)), expected.reshape(2, 3, 2))


@pytest.mark.parametrize(
    ("function", "sizes"),
    [
        (lambda vae, x: analysis.codes(vae, x), [256, 256, 8]),
        (lambda vae, x: analysis.draw_posterior(vae, x), [256, 256, 8]),
        (lambda vae, x: analysis.reconstruct(vae, x, batch_size=300), [300, 220]),
        (lambda vae, x: analysis.rate_per_dimension(vae, x), [256, 256, 8]),
        (lambda vae, x: analysis.rate_per_dimension(vae, x, batch_size=520), [520]),
        (lambda vae, x: analysis.pseudo_gibbs(vae, x[:3], x[:3] > 0.5, batch_size=2), [2] * 100 + [1] * 100),
        (lambda vae, x: analysis.interpolate(vae, x, x, batch_size=400), [400, 120] * 2),
    ],
)
def test_the_guide_sees_batches_of_the_given_size(program, function, sizes):
    """The default is 256 images at once; pseudo-Gibbs sampling calls the guide once a step, 100 times by default."""
    seen = []
    program.posterior.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    with torch.no_grad():
        function(program, images(520))
    assert seen == sizes


@pytest.mark.parametrize(
    ("function", "sizes"),
    [
        (lambda vae: analysis.decode(vae, torch.zeros(300, 2)), [256, 44]),
        (lambda vae: analysis.sample_prior(vae, 20, batch_size=15), [15, 5]),
        (lambda vae: analysis.manifold(vae), [256, 144]),  # 20 × 20 images
        (lambda vae: analysis.manifold(vae, side=3, batch_size=5), [5, 4]),
        (lambda vae: analysis.interpolate(vae, *images(2)), [1, 1, 10]),  # a row is decoded for the shape of an event
    ],
)
def test_the_decoder_sees_batches_of_the_given_size(program, monkeypatch, function, sizes):
    seen, likelihood = [], program.likelihood
    monkeypatch.setattr(program, "likelihood", lambda z: seen.append(len(z)) or likelihood(z))
    function(program)
    assert seen == sizes


@pytest.mark.slow
def test_a_mean_without_closed_form_is_that_of_256_draws(flow):
    x = torch.rand(2, 1, 8, 8)
    for samples, options in ((256, {}), (3, {"samples": 3})):
        with seeded(5), torch.no_grad():
            q = flow.posterior(x)
            wanted = torch.stack([q.sample() for _ in range(samples)]).mean(0)
        torch.testing.assert_close(analysis.codes(flow, x, seed=5, **options), wanted)
        torch.testing.assert_close(
            analysis.reconstruct(flow, x, seed=5, **options), flow.likelihood(wanted).mean.detach()
        )


@pytest.mark.slow
def test_codes_of_a_flow_are_averages_of_draws(flow):
    x = torch.rand(4, 1, 8, 8)
    draws = flow.posterior(x).sample((20_000,))
    error = draws.std(0) * (1 / 4096 + 1 / 20_000) ** 0.5
    assert_estimate_is(analysis.codes(flow, x, samples=4096), draws.mean(0), error, sees=0.2)


def test_pictures_are_means_of_the_likelihood_at_the_codes(program):
    x = images()
    mean = program.likelihood(program.exact_posterior(x).mean).mean
    assert torch.allclose(analysis.reconstruct(program, x), mean)
    walk = analysis.interpolate(program, x[0], x[1], steps=5)
    assert torch.allclose(walk[[0, -1]], mean[:2])
    assert torch.allclose(walk[2], (mean[0] + mean[1]) / 2)  # this decoder is linear


def test_manifold_is_the_decoder_on_a_grid_of_equal_mass(program):
    grid = analysis.manifold(program, side=4)
    z = scipy.stats.norm.ppf([0.125, 0.375, 0.625, 0.875])
    upper_left = program.likelihood(torch.tensor([z[0], z[3]])).mean
    lower_right = program.likelihood(torch.tensor([z[3], z[0]])).mean
    assert grid.shape == (4, 4, *SHAPE)
    assert torch.allclose(grid[0, 0], upper_left) and torch.allclose(grid[-1, -1], lower_right)


@pytest.mark.slow
def test_what_is_random_comes_from_the_seed_and_leaves_the_callers_numbers_alone(flow):
    x, state = torch.rand(3, 1, 8, 8), torch.get_rng_state()
    flow.posterior.eval()
    for draw in (
        lambda seed: analysis.sample_prior(flow, 5, seed=seed),
        lambda seed: analysis.draw_posterior(flow, x, seed=seed),
        lambda seed: analysis.codes(flow, x, seed=seed),
        lambda seed: analysis.pseudo_gibbs(flow, x, torch.zeros(1, 8, 8, dtype=torch.bool), steps=2, seed=seed),
    ):
        assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    assert torch.equal(state, torch.get_rng_state())
    assert flow.training and not flow.posterior.training
    assert all(parameter.grad is None for parameter in flow.parameters())


def test_aggregate_posterior_has_the_moments_of_its_parts(program):
    x = program.simulate(20_000)
    z = analysis.draw_posterior(program, x)
    assert torch.allclose(z.mean(0), torch.zeros(2).double(), atol=0.03)  # E_x q(z | x) = p(z) where q is exact
    assert torch.allclose(z.T.cov(), torch.eye(2).double(), atol=0.04)


@pytest.mark.slow
def test_pseudo_gibbs_keeps_what_is_seen_and_fills_in_the_conditional_mean(program):
    x, mask = program.simulate(1), torch.ones(SHAPE, dtype=torch.bool)
    mask[..., :2] = False
    many = torch.where(mask, x, torch.nan).expand(20_000, *SHAPE)
    filled = analysis.pseudo_gibbs(program, many, mask, steps=30)
    assert torch.equal(filled[..., 2:], many[..., 2:])
    weight, seen = program.weight.detach(), mask.flatten()
    covariance = weight @ weight.T + 0.25 * torch.eye(16)
    residual = (x.flatten() - program.bias.detach())[seen]
    gain = covariance[~seen][:, seen] @ torch.linalg.inv(covariance[seen][:, seen])
    expected = program.bias.detach()[~seen] + gain @ residual
    assert_mean_is(filled.flatten(1)[:, ~seen], expected, sees=0.1)


@pytest.mark.slow
def test_probes_on_the_pixels_of_the_digits():
    digits = load("digits")
    train, test = (split.images.flatten(1).float() for split in (digits.train, digits.test))
    labels = digits.train.labels, digits.test.labels
    expected = KNeighborsClassifier(15).fit(train.numpy(), labels[0].numpy()).score(test.numpy(), labels[1].numpy())
    assert analysis.knn_accuracy(train, labels[0], test, labels[1]) == expected > 0.95
    assert analysis.linear_probe_accuracy(train, labels[0], test, labels[1]) > 0.9


def test_labels_are_classes_however_many_there_are():
    codes = torch.arange(100.0)[:, None]
    assert analysis.knn_accuracy(codes, torch.arange(100), codes, torch.arange(100), neighbours=1) == 1


@pytest.mark.parametrize("probe", [partial(analysis.knn_accuracy, neighbours=1), analysis.linear_probe_accuracy])
def test_codes_of_an_unknown_class_count_nowhere(probe):
    """Half of each split; as a class of its own −1 would be that of most neighbours."""
    codes = torch.tensor([0.0, 0.1, 0.2, 1.0, 1.1, 1.2]).repeat_interleave(2)[:, None]
    labels = torch.tensor([0, -1, 1, -1, 0, -1, 1, -1, 1, -1, 1, -1])
    known = labels >= 0
    wanted = probe(codes[known], labels[known], codes[known], labels[known])
    assert probe(codes, labels, codes, labels) == wanted >= 0.5
    with pytest.raises(ValueError, match="test: wanted codes whose class is known, got 12 of the label −1, unknown"):
        probe(codes, labels, codes, torch.full((12,), -1))


def test_active_units_are_those_that_vary_with_x():
    z = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.2, 0.05])
    assert analysis.active_units(z).tolist() == [True, True, False]
    assert analysis.active_units(z, threshold=0.1).tolist() == [True, False, False]
    z[:2, 1] = torch.nan
    with pytest.raises(ValueError, match="codes: 2 of 1000 hold NaN"):
        analysis.active_units(z)


def test_rate_per_dimension_adds_up_to_the_rate():
    torch.manual_seed(0)
    guide = guides.MeanField(networks.MLPEncoder((1, 8, 8), hidden=(8,)), latent=3)
    decoder = networks.MLPDecoder(3, (1, 8, 8), maps=1, hidden=(8,))
    vae, x = VAE(priors.DiagonalNormal(3), likelihoods.Bernoulli(decoder), guide), torch.rand(9, 1, 8, 8)
    rates = analysis.rate_per_dimension(vae, x, batch_size=4)
    q = vae.posterior(x)
    assert rates.shape == (3,)
    assert rates.sum().item() == pytest.approx(kl_divergence(q, vae.prior().expand([9])).mean().item(), rel=1e-5)
    vae.prior = priors.Mixture(3, 2)
    with pytest.raises(ValueError, match="prior: the rate splits into dimensions only for"):
        analysis.rate_per_dimension(vae, x)


def small_rows():
    torch.manual_seed(0)
    decoder = networks.MLPDecoder(2, (3,), maps=3, hidden=(4,))
    guide = guides.MeanField(networks.MLPEncoder((3,), hidden=(4,)), latent=2)
    return VAE(priors.StandardNormal(2), likelihoods.RealNormal(decoder, log_scale=0.0), guide)


def test_a_mean_over_no_rows_is_refused():
    with pytest.raises(ValueError, match=r"x: wanted at least one row to average over, got shape \(0, 3\); give"):
        analysis.rate_per_dimension(small_rows(), torch.zeros(0, 3))


@pytest.mark.parametrize("call", [analysis.codes, analysis.draw_posterior, analysis.rate_per_dimension])
def test_rows_that_are_not_finite_are_named_with_a_cure_that_works(call):
    vae, x = small_rows(), torch.zeros(4, 3)
    x[2, 1] = torch.nan
    with pytest.raises(ValueError, match="x: 1 of its values are NaN or infinite, in the rows 2; take these rows out"):
        call(vae, x, batch_size=2)
    assert call(vae, x[:2]).isfinite().all()


@pytest.mark.parametrize("batch", [(6,), (2, 3)])
def test_it_takes_rows_of_counts(batch):
    """Each function gives for rows (..., D) what it gives for all rows in one batch."""
    torch.manual_seed(0)
    decoder = networks.MLPDecoder(2, (5,), maps=5, hidden=(8,))
    guide = guides.MeanField(networks.MLPEncoder((5,), hidden=(8,), scaling=networks.Log1p()), latent=2)
    vae = VAE(priors.StandardNormal(2), likelihoods.Poisson(decoder), guide)
    x = vae.model(n=6)
    rows = x.reshape(*batch, 5)
    assert torch.equal(analysis.codes(vae, rows, batch_size=4), guide(x).mean.detach().reshape(*batch, 2))
    filled = analysis.pseudo_gibbs(vae, rows, rows > 1, steps=2)
    assert analysis.reconstruct(vae, rows).shape == (*batch, 5) == filled.shape
    assert torch.equal(filled[rows > 1], rows[rows > 1])
    rates = analysis.rate_per_dimension(vae, rows)
    assert rates.sum().item() == pytest.approx(kl_divergence(guide(x), vae.prior().expand([6])).mean().item(), rel=1e-5)
    with pytest.raises(ValueError, match=r"wanted float x of 1 or more dimensions, got torch\.int64"):
        analysis.codes(vae, rows.long())


@pytest.mark.parametrize("shape", [(16,), (4, 4), (1, 4, 4)])
def test_the_dimensions_of_an_event_are_those_of_the_likelihood(shape):
    """Its class need not say them."""
    torch.manual_seed(0)
    weight, x = torch.randn(16, 2), torch.rand(2, 5, *shape)
    program, flat = LinearGaussian(weight, shape=shape), LinearGaussian(weight, posterior=None)
    found = analysis.codes(program, x, batch_size=3)
    torch.testing.assert_close(found, flat.posterior(x.reshape(10, 16)).mean.detach().reshape(2, 5, 2))
    assert analysis.reconstruct(program, x).shape == x.shape


def test_missing_levels_of_a_table_are_filled_in_by_levels():
    schema = tables.Schema.from_frame(many_programs.FRAME)
    x = schema.encode(many_programs.FRAME).float()
    seen, wanted = ~x.isnan(), schema.frame(x)
    found = schema.frame(analysis.pseudo_gibbs(many_programs.mixed(), x, seen, steps=3))  # a frame takes levels alone
    assert found.notna().all(axis=None) and not seen.all() and found.where(wanted.notna()).equals(wanted)


def test_bad_input(program, flow):
    x = images()
    with pytest.raises(ValueError, match="wanted float images"):
        analysis.codes(program, torch.zeros(2, *SHAPE, dtype=torch.uint8))
    for call in (analysis.codes, analysis.draw_posterior, analysis.reconstruct, analysis.rate_per_dimension):
        with pytest.raises(ValueError, match=r"wanted images in \[0, 1\], got values from 0 to 255; make x from uint8"):
            call(flow, torch.tensor([0.0, 255.0]).repeat(32).reshape(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"wanted a latent plane \(D = 2\), got D = 3"):
        analysis.manifold(LinearGaussian(torch.randn(16, 3), shape=SHAPE))
    with pytest.raises(ValueError, match="images of one shape"):
        analysis.interpolate(program, x[0], x[:2])
    with pytest.raises(ValueError, match="steps: wanted a whole number of at least 2, got 1"):
        analysis.interpolate(program, x[0], x[1], steps=1)
    with pytest.raises(ValueError, match="batch_size"):
        analysis.codes(program, x, batch_size=0)
    with pytest.raises(ValueError, match="mask: wanted a boolean"):
        analysis.pseudo_gibbs(program, x, torch.zeros(SHAPE))
    with pytest.raises(ValueError, match="test: wanted codes"):
        analysis.knn_accuracy(torch.zeros(20, 2), torch.zeros(20), torch.zeros(3, 2), None)
    with pytest.raises(ValueError, match="neighbours: wanted 1 to 20"):
        analysis.knn_accuracy(torch.zeros(20, 2), torch.zeros(20), torch.zeros(3, 2), torch.zeros(3), neighbours=21)


def test_the_old_name_of_a_function_whose_mask_was_the_other_way_round_says_so():
    with pytest.raises(AttributeError, match=r"now analysis.pseudo_gibbs\(vae, x, mask\), with a mask"):
        _ = analysis.impute
    with pytest.raises(AttributeError, match="no attribute 'imputed'"):
        _ = analysis.imputed


DRAWS = [analysis.codes, analysis.reconstruct, analysis.draw_posterior, analysis.draw_prior, analysis.sample_prior]


@pytest.mark.parametrize(
    "draw",
    [
        lambda vae, x, **given: analysis.codes(vae, x, samples=2, **given),
        lambda vae, x, **given: analysis.reconstruct(vae, x, samples=2, **given),
        analysis.draw_posterior,
        lambda vae, x, **given: analysis.draw_prior(vae, 3, **given),
        lambda vae, x, **given: analysis.sample_prior(vae, 3, **given),
        lambda vae, x, **given: analysis.pseudo_gibbs(vae, x, x > 0.5, steps=2, **given),
    ],
)
def test_the_seed_that_is_not_given_is_zero(flow, draw):
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(draw(flow, x), draw(flow, x, seed=0)) and not torch.equal(draw(flow, x), draw(flow, x, seed=1))


@pytest.mark.parametrize("function", [analysis.decode, *DRAWS, analysis.rate_per_dimension, analysis.manifold])
def test_settings_are_given_by_name(function):
    kinds = {name: parameter.kind for name, parameter in inspect.signature(function).parameters.items()}
    settings = {name: kind for name, kind in kinds.items() if name in ("batch_size", "samples", "seed")}
    assert settings and set(settings.values()) == {inspect.Parameter.KEYWORD_ONLY}


def test_a_likelihood_that_says_nothing_of_its_events_is_of_pictures(flow):
    silent = torch.nn.Module()
    silent.forward = lambda z: flow.likelihood(z)
    other = VAE(flow.prior, silent, flow.posterior)
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(analysis.draw_posterior(other, x), analysis.draw_posterior(flow, x))
    for wrong in (x[0, 0], x.long()):
        with pytest.raises(
            ValueError, match=r"wanted float images of shape \(..., C, H, W\), got .* from uint8 pixels by"
        ):
            analysis.draw_posterior(other, wrong)
