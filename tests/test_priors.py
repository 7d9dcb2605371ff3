"""Priors against scipy, numerical integration and autograd; the VampPrior's bond with its posterior."""

import copy

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from monte_carlo import assert_mean_is
from scipy import stats
from scipy.special import logsumexp
from torch import nn

from pyro_vae import guides, priors

SHAPE = (1, 2, 2)


def posterior(latent):
    network = nn.Sequential(nn.Flatten(-3), nn.Linear(4, 6), nn.Tanh())
    return guides.MeanField(network, latent, features=6)


MAKERS = {
    "StandardNormal": priors.StandardNormal,
    "DiagonalNormal": priors.DiagonalNormal,
    "Mixture": lambda latent: priors.Mixture(latent, components=3),
    "Vamp": lambda latent: priors.Vamp.random(posterior(latent), 3, SHAPE),
    "Flow autoregressive": lambda latent: priors.Flow(latent, width=8),
    "Flow spline": lambda latent: priors.Flow(latent, priors.spline, width=8),
}
every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
flow = pytest.mark.parametrize("steps", [priors.autoregressive, priors.spline])


def build(make, latent, jiggle=0.2):
    """Return a prior in float64 whose parameters differ from their start values."""
    torch.manual_seed(0)
    prior = make(latent).double()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(jiggle * torch.randn_like(parameter))
    return prior


def arrays(*tensors):
    return [tensor.detach().numpy() for tensor in tensors]


def mixture_log_density(z, log_weights, locs, scales):
    log_densities = [stats.norm.logpdf(z, loc, scale).sum(-1) for loc, scale in zip(locs, scales)]
    return logsumexp(np.stack(log_densities, -1) + log_weights, axis=-1)


@every
def test_shapes(make):
    p = build(make, 3)()
    assert (p.batch_shape, p.event_shape) == ((), (3,))
    for batch in [(), (5,), (2, 5)]:
        z = p.sample(batch)
        assert z.shape == (*batch, 3)
        assert p.log_prob(z).shape == batch
        assert p.expand(batch).log_prob(z).shape == batch


@pytest.mark.slow
@every
@pytest.mark.parametrize(("latent", "points"), [(1, 5601), (2, 561)])
def test_density_integrates_to_one(make, latent, points):
    p = build(make, latent)()
    grid = torch.linspace(-7.0, 7.0, points).double()
    z = torch.cartesian_prod(*[grid] * latent).reshape(-1, latent)
    with torch.no_grad():
        mass = p.log_prob(z).exp().sum() * (grid[1] - grid[0]) ** latent
    assert mass.item() == pytest.approx(1.0, abs=2e-4)


@every
def test_samples_follow_the_density(make):
    """E_p[exp(−|z|²/2)] by samples and by integration."""
    p = build(make, 1, jiggle=0.5)()
    grid = torch.linspace(-12.0, 12.0, 4801).double().unsqueeze(-1)
    kernel = lambda z: (-0.5 * z.pow(2).sum(-1)).exp()  # noqa: E731
    with torch.no_grad():
        wanted = (p.log_prob(grid).exp() * kernel(grid)).sum() * (grid[1] - grid[0]).item()
        draws = kernel(p.sample((20_000,)))
    assert_mean_is(draws, wanted, sees=0.03)


@every
def test_every_parameter_has_a_finite_gradient(make):
    prior = build(make, 3).float()
    z = torch.randn(5, 3, requires_grad=True)
    prior().log_prob(z).sum().backward()
    assert z.grad.isfinite().all()
    for name, parameter in prior.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@every
def test_state_dict_round_trip(make):
    prior = build(make, 3)
    z = prior().sample((5,))
    torch.manual_seed(1)
    other = make(3).double()
    other.load_state_dict(prior.state_dict())
    torch.testing.assert_close(other().log_prob(z), prior().log_prob(z), rtol=0, atol=0)


@every
def test_copies_are_apart_even_after_use(make):
    prior = build(make, 3)
    z = prior().sample((5,))
    before = prior().log_prob(z)
    other = copy.deepcopy(prior)
    torch.testing.assert_close(other().log_prob(z), before, rtol=0, atol=0)
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            if tensor.is_floating_point():
                tensor.add_(0.1)
    assert not torch.allclose(other().log_prob(z), before)
    torch.testing.assert_close(prior().log_prob(z), before, rtol=0, atol=0)


@every
def test_a_program_draws_from_it(make):
    prior = build(make, 3)

    def model():
        with pyro.plate("particles", 4, dim=-2), pyro.plate("images", 5):
            return pyro.sample("z", prior())

    trace = pyro.poutine.trace(model).get_trace()
    trace.compute_log_prob()
    site = trace.nodes["z"]
    assert site["value"].shape == (4, 5, 3)
    torch.testing.assert_close(site["log_prob"], prior().log_prob(site["value"].detach().clone()))


@every
def test_float32_scores_as_float64(make):
    prior = build(make, 3)
    z = 1.5 * torch.randn(50, 3).double()
    wanted = prior().log_prob(z)
    torch.testing.assert_close(prior.float()().log_prob(z.float()).double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["StandardNormal", "DiagonalNormal", "Flow autoregressive", "Flow spline"])
def test_starts_at_or_near_the_standard_normal(name):
    torch.manual_seed(0)
    prior = MAKERS[name](3)
    z = torch.randn(100, 3)
    gap = prior().log_prob(z) - priors.StandardNormal(3)().log_prob(z)
    assert gap.abs().max() < (0.5 if "Flow" in name else 1e-6)


def test_diagonal_normal_against_scipy():
    prior = build(priors.DiagonalNormal, 3)
    z = torch.randn(5, 3).double()
    loc, log_scale = arrays(prior.loc, prior.log_scale)
    wanted = stats.norm.logpdf(z.numpy(), loc, np.exp(log_scale)).sum(-1)
    np.testing.assert_allclose(prior().log_prob(z).detach(), wanted)


def test_mixture_against_scipy():
    prior = build(MAKERS["Mixture"], 3, jiggle=1.0)
    z = prior().sample((5,))
    logits, loc, log_scale = arrays(prior.logits, prior.loc, prior.log_scale)
    wanted = mixture_log_density(z.numpy(), logits - logsumexp(logits), loc, np.exp(log_scale))
    np.testing.assert_allclose(prior().log_prob(z).detach(), wanted)


def test_vamp_against_scipy():
    prior = build(MAKERS["Vamp"], 3, jiggle=1.0)
    z = prior().sample((5,))
    components = prior.posterior(prior.pseudo_inputs).base_dist
    wanted = mixture_log_density(z.numpy(), -np.log(3), *arrays(components.loc, components.scale))
    np.testing.assert_allclose(prior().log_prob(z).detach(), wanted)


@flow
def test_flow_against_autograd(steps):
    """log p(z) = log N(ε) − log |det ∂z/∂ε|, the Jacobian taken through the map that draws samples."""
    p = build(lambda latent: priors.Flow(latent, steps, depth=3, width=8), 3)()

    def draw(noise):
        for transform in p.transforms:
            noise = transform(noise)
        return noise

    for noise in torch.randn(3, 3).double():
        jacobian = torch.autograd.functional.jacobian(draw, noise)
        wanted = stats.norm.logpdf(noise).sum() - jacobian.slogdet().logabsdet
        torch.testing.assert_close(p.log_prob(draw(noise).detach()), wanted)


@pytest.mark.parametrize("step", [priors.AutoregressiveStep, priors.SplineStep])
def test_a_step_goes_through_the_dimensions_in_order_unless_reversed(step):
    """∂y_d / ∂z_e is zero for e > d, and for e < d in reverse."""
    torch.manual_seed(0)
    for options, triangle in (({}, torch.tril), ({"reverse": True}, torch.triu)):
        made = build(lambda latent, options=options: step(latent, width=8, **options), 3)
        jacobian = torch.autograd.functional.jacobian(made(), torch.randn(3).double())
        assert torch.equal(jacobian, triangle(jacobian)) and (triangle(torch.ones(3, 3)) == (jacobian != 0)).all()


@flow
def test_the_order_alternates_from_step_to_step(steps):
    for t, made in enumerate(steps(3, 4, 8)):
        order = made.network.permutation.tolist()
        assert order == ([2, 1, 0] if t % 2 else [0, 1, 2])


def test_a_spline_starts_near_the_identity_with_slope_one_and_keeps_what_is_beyond_its_bound():
    torch.manual_seed(0)
    made = priors.SplineStep(2, width=8, bins=4, bound=2.0).double()
    z = torch.linspace(-1.9, 1.9, 39).double()[:, None].expand(39, 2)
    step = made()
    assert (step(z) - z).abs().max() < 0.1
    assert step.log_abs_det_jacobian(z, step(z)).abs().max() < 0.2
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    near, beyond = torch.tensor([[-1.9, 1.9]]).double(), torch.tensor([[-2.1, 3.0]]).double()
    assert not torch.isclose(made()(near), near).any() and torch.equal(made()(beyond), beyond)


@flow
def test_a_flow_is_scored_anew_after_its_parameters_change(steps):
    prior = build(lambda latent: priors.Flow(latent, steps, width=8), 3)
    z = torch.randn(5, 3).double()
    before = prior().log_prob(z)
    with torch.no_grad():
        prior.steps[0].network.layers[-1].bias.add_(0.5)
    assert not torch.allclose(prior().log_prob(z), before)


@flow
def test_nothing_of_a_call_stays_in_the_flow(steps):
    prior = build(lambda latent: priors.Flow(latent, steps, width=8), 3)
    p = prior()
    p.log_prob(p.rsample((5,)))
    held = [value for module in prior.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)]
    assert not any(tensor.requires_grad for tensor in held)
    assert not any(isinstance(module, torch.distributions.Transform) for module in prior.modules())


def test_own_steps_fit():
    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.ones(3))

        def forward(self):
            return dist.transforms.AffineTransform(self.loc, torch.ones(3), event_dim=1)

    prior = priors.Flow(3, lambda latent, depth, width: [Shift() for _ in range(depth)], depth=2)
    assert prior().log_prob(torch.full((3,), -2.0)).item() == pytest.approx(3 * stats.norm.logpdf(0.0))


# VampPrior


class Pair(nn.Module):
    def __init__(self, latent=3):
        super().__init__()
        self.posterior = posterior(latent)
        self.prior = priors.Vamp(self.posterior, torch.rand(4, *SHAPE))


def test_vamp_shares_the_posterior():
    pair = Pair()
    assert pair.prior.posterior is pair.posterior
    parameters = list(pair.parameters())
    assert len(parameters) == len(set(map(id, parameters))) == len(list(pair.posterior.parameters())) + 1
    other = copy.deepcopy(pair)
    assert other.prior.posterior is other.posterior
    assert other.posterior is not pair.posterior


def test_vamp_state_dict_loads_into_another_pair():
    torch.manual_seed(0)
    pair, other = Pair(), Pair()
    other.load_state_dict(pair.state_dict())
    assert other.prior.posterior is other.posterior
    z, x = torch.randn(5, 3), torch.rand(5, *SHAPE)
    torch.testing.assert_close(other.prior().log_prob(z), pair.prior().log_prob(z), rtol=0, atol=0)
    torch.testing.assert_close(other.posterior(x).mean, pair.posterior(x).mean, rtol=0, atol=0)


def test_vamp_trains_with_the_posterior():
    torch.manual_seed(0)
    pair = Pair()
    optimiser = torch.optim.Adam(pair.parameters(), lr=0.3)
    before = copy.deepcopy(pair.state_dict())
    z = torch.randn(20, 3) + 2
    for _ in range(50):
        optimiser.zero_grad()
        loss = -pair.prior().log_prob(z).mean()
        loss.backward()
        optimiser.step()
    for name, tensor in pair.state_dict().items():
        assert not torch.equal(tensor, before[name]), name
    assert pair.prior.pseudo_inputs.min() > 0 and pair.prior.pseudo_inputs.max() < 1


def test_vamp_starts_at_the_images_and_leaves_them_alone():
    images = torch.linspace(0, 1, 16).reshape(4, *SHAPE)
    before = images.clone()
    prior = priors.Vamp(posterior(2), images)
    torch.testing.assert_close(prior.pseudo_inputs, images.clamp(0.01, 0.99))
    with torch.no_grad():
        prior.logits.add_(1.0)
    torch.testing.assert_close(images, before, rtol=0, atol=0)


def test_vamp_of_the_posteriors_of_its_images_is_their_average():
    guide, images = posterior(2), torch.rand(4, *SHAPE).clamp(0.02, 0.98)
    z = torch.randn(5, 1, 2)
    wanted = guide(images).log_prob(z).exp().mean(-1).log()
    torch.testing.assert_close(priors.Vamp(guide, images)().log_prob(z.squeeze(1)), wanted)


@pytest.mark.parametrize("training", [True, False])
def test_vamp_leaves_the_mode_of_the_posterior(training):
    pair = Pair().train(training)
    pair.prior()
    assert all(module.training == training for module in pair.modules())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_vamp_takes_any_number_of_images(count):
    assert priors.Vamp(posterior(2), torch.rand(count, *SHAPE))().log_prob(torch.zeros(2)).shape == ()


def test_vamp_random_is_seeded():
    guide = posterior(2)
    make = lambda seed: priors.Vamp.random(guide, 3, SHAPE, torch.Generator().manual_seed(seed))  # noqa: E731
    assert torch.equal(make(1).logits, make(1).logits)
    assert not torch.equal(make(1).logits, make(2).logits)


@pytest.mark.parametrize(
    "make_guide",
    [
        lambda network: guides.FullRank(network, 2, features=4),
        lambda network: guides.LowRank(network, 2, 1, features=4),
        lambda network: guides.Flow(network, 2, width=4, features=4),
        lambda network: guides.Flow(network, 2, guides.planar, width=4, features=4),
    ],
)
def test_vamp_of_any_guide_is_the_average_of_its_components(make_guide):
    torch.manual_seed(0)
    guide = make_guide(nn.Flatten(-3)).double()
    prior = priors.Vamp(guide, torch.rand(3, *SHAPE).double())
    z = prior().sample((5,))
    alone = [guide(image).log_prob(z) for image in prior.pseudo_inputs]
    torch.testing.assert_close(prior().log_prob(z), torch.stack(alone).logsumexp(0) - np.log(3))


# Bad input


@pytest.mark.parametrize(
    "make",
    [
        lambda: priors.StandardNormal(0),
        lambda: priors.StandardNormal(True),
        lambda: priors.DiagonalNormal(-1),
        lambda: priors.Mixture(0, 3),
        lambda: priors.Mixture(2, 0),
        lambda: priors.Mixture(2, 2.0),
        lambda: priors.Flow(0),
        lambda: priors.Flow(2, depth=0),
        lambda: priors.Vamp.random(posterior(2), 0, SHAPE),
    ],
)
def test_counts_below_one_are_refused(make):
    with pytest.raises(ValueError, match="wanted a whole number of at least 1, got"):
        make()


def test_narrow_flow_is_refused():
    with pytest.raises(ValueError, match="width: wanted at least latent = 5, got 3"):
        priors.Flow(5, width=3)


@pytest.mark.parametrize(
    ("pseudo_inputs", "message"),
    [
        (torch.rand(3, 4), r"shape \(K, C, H, W\) .* got \(3, 4\)"),
        (torch.rand(*SHAPE), r"shape \(K, C, H, W\)"),
        (torch.rand(0, *SHAPE), "K of at least 1"),
        (torch.rand(3, 1, 3, 3), r"does not take pseudo_inputs of shape \(3, 1, 3, 3\)"),
        (torch.zeros(3, *SHAPE, dtype=torch.uint8), "likelihood.observe"),
        (torch.full((3, *SHAPE), 255.0), "from 255 to 255"),
        (torch.full((3, *SHAPE), -0.1), "floats in"),
        (torch.full((3, *SHAPE), torch.nan), "floats in"),
    ],
)
def test_pseudo_inputs_of_the_wrong_kind_are_refused(pseudo_inputs, message):
    with pytest.raises(ValueError, match=message):
        priors.Vamp(posterior(2), pseudo_inputs)


@pytest.mark.parametrize(
    "wrong",
    [lambda x: x.flatten(-3), lambda x: dist.Normal(x.flatten(-3), 1.0), lambda x: dist.Normal(x, 1.0).to_event(3)],
)
def test_a_posterior_that_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match="posterior"):
        priors.Vamp(wrong, torch.rand(3, *SHAPE))
