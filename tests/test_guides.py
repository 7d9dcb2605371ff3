"""Guides against scipy, numerical integration and autograd, at any output of their networks and at any z."""

import copy
import functools
import gc
import weakref

import numpy as np
import pyro
import pytest
import torch
from monte_carlo import assert_mean_is
from pyro.infer import TraceMeanField_ELBO
from scipy import stats
from torch import nn

from pyro_vae import guides, networks, priors
from pyro_vae.linear_gaussian import LinearGaussian
from pyro_vae.training.loop import warm_cosine

SHAPE = (1, 2, 2)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 6)
        self.out_features = 6

    def forward(self, x):
        return torch.tanh(self.linear(x.flatten(-3)))


class Constant(nn.Module):
    """The same features for every image, so that the head's bias is its output."""

    out_features = 1

    def forward(self, x):
        return x.new_zeros(*x.shape[:-3], 1)


MAKERS = {
    "MeanField": guides.MeanField,
    "FullRank": guides.FullRank,
    "LowRank": lambda network, latent: guides.LowRank(network, latent, rank=1),
    "Flow autoregressive": lambda network, latent: guides.Flow(network, latent, width=8),
    "Flow planar": lambda network, latent: guides.Flow(network, latent, guides.planar, depth=3, width=8),
}
every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
flow = pytest.mark.parametrize("steps", [guides.inverse_autoregressive, guides.planar])


def build(make, latent, jiggle=0.3):
    """Return a guide in float64 whose parameters differ from their start values."""
    torch.manual_seed(0)
    guide = make(Network(), latent).double()
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(jiggle * torch.randn_like(parameter))
    return guide


def build_flow(steps, latent=3):
    return build(lambda network, latent: guides.Flow(network, latent, steps, depth=2, width=8), latent)


def images(*batch):
    return torch.rand(*batch, *SHAPE).double()


def draw(q, noise):
    for transform in q.transforms:
        noise = transform(noise)
    return noise


@every
@pytest.mark.parametrize("batch", [(), (5,), (2, 5)])
def test_shapes(make, batch):
    guide, x = build(make, 3), images(*batch)
    q = guide(x)
    assert (q.batch_shape, q.event_shape) == (batch, (3,))
    z = q.rsample((7,))
    assert z.shape == (7, *batch, 3)
    assert q.log_prob(z).shape == (7, *batch)


@every
def test_leading_dimensions_are_independent(make):
    guide, x = build(make, 3), images(2, 5)
    z = torch.randn(2, 5, 3).double()
    torch.testing.assert_close(guide(x).log_prob(z)[1, 3], guide(x[1, 3]).log_prob(z[1, 3]))


@pytest.mark.slow
@every
@pytest.mark.parametrize("latent", [1, 2])
def test_density_integrates_to_one(make, latent):
    q = build(make, latent)(images())
    grid = torch.linspace(-20.0, 20.0, 801).double()
    z = torch.cartesian_prod(*[grid] * latent).reshape(-1, latent)
    with torch.no_grad():
        mass = q.log_prob(z).exp().sum() * (grid[1] - grid[0]) ** latent
    assert mass.item() == pytest.approx(1.0, abs=2e-4)


@every
def test_samples_follow_the_density(make):
    """E_q[exp(−z²/2)] by samples and by integration."""
    q = build(make, 1)(images())
    grid = torch.linspace(-12.0, 12.0, 4801).double().unsqueeze(-1)
    kernel = lambda z: (-0.5 * z.pow(2).sum(-1)).exp()  # noqa: E731
    with torch.no_grad():
        wanted = (q.log_prob(grid).exp() * kernel(grid)).sum() * (grid[1] - grid[0]).item()
        draws = kernel(q.sample((20_000,)))
    assert_mean_is(draws, wanted, sees=0.03)


@every
def test_a_fresh_distribution_scores_a_draw_as_its_own(make):
    guide, x = build(make, 3), images(5)
    q = guide(x)
    z = q.rsample((2,))
    own = q.log_prob(z)
    torch.testing.assert_close(guide(x).log_prob(z), own)
    torch.testing.assert_close(guide(x).log_prob(z.detach().clone()), own)


@every
def test_every_parameter_has_a_finite_gradient(make):
    guide = build(make, 3).float()
    q = guide(images(5).float())
    z = q.rsample()
    (q.log_prob(z) + z.pow(2).sum(-1)).sum().backward()
    for name, parameter in guide.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@every
def test_state_dict_round_trip(make):
    guide, x = build(make, 3), images(5)
    z = torch.randn(5, 3).double()
    torch.manual_seed(1)
    other = make(Network(), 3).double()
    other.load_state_dict(guide.state_dict())
    torch.testing.assert_close(other(x).log_prob(z), guide(x).log_prob(z), rtol=0, atol=0)


@every
def test_copies_are_apart_even_after_use(make):
    guide, x = build(make, 3), images(5)
    q = guide(x)
    q.log_prob(q.rsample())
    other, z = copy.deepcopy(guide), torch.randn(5, 3).double()
    before = guide(x).log_prob(z)
    torch.testing.assert_close(other(x).log_prob(z), before, rtol=0, atol=0)
    with torch.no_grad():
        other.head.bias.add_(0.1)
    assert not torch.allclose(other(x).log_prob(z), before)
    torch.testing.assert_close(guide(x).log_prob(z), before, rtol=0, atol=0)


@every
def test_particles_share_one_pass_of_the_network(make):
    guide, x = build(make, 3), images(5)
    passes = []
    guide.network.register_forward_hook(lambda *_: passes.append(1))

    def program():
        with pyro.plate("particles", 4, dim=-2), pyro.plate("images", 5):
            pyro.sample("z", guide(x))

    trace = pyro.poutine.trace(program).get_trace()
    trace.compute_log_prob()
    site = trace.nodes["z"]
    assert site["value"].shape == (4, 5, 3)
    assert len(passes) == 1
    torch.testing.assert_close(site["log_prob"], guide(x).log_prob(site["value"].detach()))


@every
def test_training_starts_near_the_standard_normal(make):
    torch.manual_seed(0)
    q = make(Network(), 3)(torch.rand(50, *SHAPE))
    z = q.sample((200,))
    rate = q.log_prob(z) - priors.StandardNormal(3)().log_prob(z)
    assert rate.mean() < 0.1
    assert z.abs().max() < 6


@every
@pytest.mark.parametrize("output", [50.0, -50.0])
def test_outputs_of_fifty_are_survived(make, output):
    torch.manual_seed(0)
    guide = make(Constant(), 8)
    for sign in (torch.ones_like(guide.head.bias), torch.randn_like(guide.head.bias).sign()):
        guide.zero_grad()
        with torch.no_grad():
            guide.head.bias.copy_(output * sign)
        q = guide(torch.rand(20, *SHAPE))
        z = q.rsample()
        log_q = q.log_prob(z)
        log_q.sum().backward()
        assert z.isfinite().all()
        assert log_q.isfinite().all()
        assert all(p.grad.isfinite().all() for p in guide.parameters() if p.grad is not None)


def test_the_order_of_an_autoregressive_flow_alternates_from_step_to_step():
    orders = [step.network.permutation.tolist() for step in guides.inverse_autoregressive(3, 4, 5, 8)]
    assert orders == [[0, 1, 2], [2, 1, 0]] * 2 + [[0, 1, 2]]
    assert guides.InverseAutoregressiveStep(3, 4, 8).network.permutation.tolist() == [0, 1, 2]


@pytest.mark.parametrize("latent", [1, 2, 5])
def test_a_planar_step_starts_at_the_identity_whatever_its_direction(latent):
    """Without features the step is the bias of its last layer alone, at which û is zero."""
    torch.manual_seed(0)
    step, z = guides.PlanarStep(latent, context=4).double(), torch.randn(7, latent).double()
    f = step(torch.zeros(7, 4).double())
    torch.testing.assert_close(f(z), z, rtol=0, atol=1e-6)
    torch.testing.assert_close(f.log_abs_det_jacobian(z, z), torch.zeros(7).double(), rtol=0, atol=1e-6)
    direction = step.network[-1].bias[1 + latent :]
    assert direction.norm().item() == pytest.approx(1.0)


def test_a_guide_of_full_rank_starts_where_its_mean_field_guide_is():
    mean_field = build(guides.MeanField, 3)
    state, x = torch.get_rng_state(), torch.rand(5, *SHAPE).double()
    full, q = guides.FullRank.started_at(mean_field)(x), mean_field(x)
    torch.testing.assert_close(full.mean, q.mean)
    torch.testing.assert_close(full.covariance_matrix, torch.diag_embed(q.variance))
    torch.set_rng_state(state)
    wanted = torch.rand(3)
    torch.set_rng_state(state)
    guides.FullRank.started_at(mean_field)
    assert torch.equal(torch.rand(3), wanted)  # it draws nothing of the caller's


def test_scale_is_bounded_with_a_gradient_on_either_side():
    raw = torch.tensor([-1e6, -50.0, -1e-3, 1e-3, 50.0, 1e6], requires_grad=True)
    scale = guides.bounded_scale(raw)
    assert (scale > 0).all() and scale.pow(2).isfinite().all() and (scale.diff() >= 0).all()
    torch.testing.assert_close(scale[2:4], raw[2:4].exp())
    scale.log().sum().backward()
    assert (raw.grad[1:-1] > 0).all()


def test_mean_field_against_scipy():
    guide, x = build(guides.MeanField, 3), images(5)
    loc, raw = guide.head(guide.network(x)).detach().numpy().reshape(5, 2, 3).swapaxes(0, 1)
    scale = np.exp(10 * np.tanh(raw / 10))
    z = guide(x).sample()
    np.testing.assert_allclose(guide(x).log_prob(z).detach(), stats.norm.logpdf(z, loc, scale).sum(-1))


@pytest.mark.parametrize("rank", [None, 1, 2, 3])
def test_correlated_normals_against_scipy(rank):
    """L = S (I + N) in FullRank, S (I + V Vᵀ) S in LowRank, from the head's output."""
    make = guides.FullRank if rank is None else lambda network, latent: guides.LowRank(network, latent, rank)
    guide, x = build(make, 3), images()
    output = guide.head(guide.network(x)).detach().numpy()
    loc, scale, entries = output[:3], np.diag(np.exp(10 * np.tanh(output[3:6] / 10))), output[6:]
    if rank is None:
        tril = np.array([[1, 0, 0], [entries[0], 1, 0], [entries[1], entries[2], 1]])
        covariance = scale @ tril @ tril.T @ scale
    else:
        factor = entries.reshape(3, rank)
        covariance = scale @ (np.eye(3) + factor @ factor.T) @ scale
    q = guide(x)
    z = q.sample((5,))
    np.testing.assert_allclose(q.mean.detach(), loc)
    np.testing.assert_allclose(q.covariance_matrix.detach(), covariance)
    np.testing.assert_allclose(q.log_prob(z).detach(), stats.multivariate_normal(loc, covariance).logpdf(z))


def trained_gap(make):
    """Return the gap of a trained guide to log p(x) on probabilistic PCA, and the precision of the exact posterior.

    The gap is in nats per image; the posterior has the same correlations for all images.
    """
    torch.manual_seed(0)
    program = LinearGaussian(torch.randn(4, 3).double(), scale=0.5, shape=SHAPE)
    x = program.simulate(64)
    guide = program.posterior = make(nn.Flatten(-3), latent=3, features=4).double()
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.2)
    schedule = warm_cosine(optimizer, 500)
    loss_of = TraceMeanField_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1)
    for _ in range(500):
        optimizer.zero_grad()
        loss_of.differentiable_loss(program.model, program.guide, x).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return (program.log_px(x) - program.elbo(x)).mean().item(), program.precision()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [None, 2, 3])
def test_correlated_normals_reach_the_evidence_of_the_linear_program(rank):
    """S (I + V Vᵀ) S of rank D − 1 is any covariance: S = √λ I with its least eigenvalue λ, and V the rest."""
    gap, _ = trained_gap(guides.FullRank if rank is None else functools.partial(guides.LowRank, rank=rank))
    assert -1e-9 < gap < 0.02


@pytest.mark.slow
def test_mean_field_falls_short_of_it_by_what_theory_says():
    """KL(N(m, diag Λ_dd⁻¹) ‖ N(m, Λ⁻¹)) = ½ (Σ ln Λ_dd − ln det Λ), the least of all factorised q.

    Source: Bishop 2006, section 10.1.2.
    """
    gap, precision = trained_gap(guides.MeanField)
    wanted = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision.numpy())[1])
    assert wanted > 0.5
    assert -1e-9 < gap - wanted < 0.02


@flow
def test_flow_against_autograd(steps):
    """log q(z) = log N(z₀; loc, scale²) − log |det ∂z/∂z₀|."""
    q = build_flow(steps)(images())
    loc, scale = (tensor.detach().numpy() for tensor in (q.base_dist.base_dist.loc, q.base_dist.base_dist.scale))
    for noise in torch.randn(3, 3).double():
        jacobian = torch.autograd.functional.jacobian(lambda z: draw(q, z), noise)
        wanted = stats.norm.logpdf(noise, loc, scale).sum() - jacobian.slogdet().logabsdet
        torch.testing.assert_close(q.log_prob(draw(q, noise)), wanted)


@flow
def test_the_flow_bends(steps):
    """The map that it adds to its base is neither the identity nor affine."""
    q = build_flow(steps)(images())
    a, b = torch.randn(2, 3).double()
    middle = draw(q, (a + b) / 2)
    assert (middle - (draw(q, a) + draw(q, b)) / 2).abs().max() > 1e-2


@flow
def test_the_flow_sees_the_image_beyond_its_base(steps):
    guide = build_flow(steps)
    z = torch.randn(3).double()
    assert not torch.allclose(draw(guide(images()), z), draw(guide(images()), z))


@flow
def test_score_at_a_fixed_z_by_finite_differences(steps):
    """∂ log q(z)/∂z of a draw that is scored again: the path derivative, which goes through the inverse of the flow."""
    guide, x = build_flow(steps), images()
    z = guide(x).sample().requires_grad_()
    (gradient,) = torch.autograd.grad(guide(x).log_prob(z), z)
    with torch.no_grad():
        shifts = 1e-5 * torch.eye(3).double()
        wanted = (guide(x).log_prob(z + shifts) - guide(x).log_prob(z - shifts)) / 2e-5
    torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-6)


@flow
def test_total_derivative_does_not_depend_on_the_kept_pass(steps):
    """Scoring a draw from the pass that made it and by inverting the flow gives the same gradient."""
    guide, x = build_flow(steps), images(5)
    gradients = []
    for score in (lambda q, z: q.log_prob(z), lambda q, z: guide(x).log_prob(z)):
        torch.manual_seed(1)
        q = guide(x)
        loss = score(q, q.rsample()).sum()
        gradients.append(torch.autograd.grad(loss, list(guide.parameters())))
    for kept, anew in zip(*gradients):
        torch.testing.assert_close(kept, anew, rtol=1e-7, atol=1e-9)


@flow
def test_scores_in_any_order(steps):
    q = build_flow(steps)(images(5))
    z, other = q.rsample(), torch.randn(5, 3).double()
    first = q.log_prob(z), q.log_prob(other)
    second = q.log_prob(z), q.log_prob(other)
    torch.testing.assert_close(first, second)
    assert not torch.allclose(*first)


@flow
def test_a_draw_is_scored_anew_after_the_parameters_change(steps):
    guide, x = build_flow(steps), images(5)
    q = guide(x)
    z = q.rsample()
    before = q.log_prob(z)
    with torch.no_grad():
        for parameter in guide.steps.parameters():
            parameter.mul_(1.1)
    assert not torch.allclose(guide(x).log_prob(z), before)


@flow
def test_nothing_of_a_batch_stays_in_the_guide(steps):
    guide = build_flow(steps)
    collecting = gc.isenabled()
    gc.disable()
    try:
        q = guide(images(5))
        z = q.rsample()
        loss = q.log_prob(z).sum()
        loss.backward()
        kept = weakref.ref(z)
        del q, z, loss
        assert kept() is None
    finally:
        if collecting:
            gc.enable()


def test_own_guide_needs_no_base_class():
    """The VampPrior accepts any module that returns a distribution."""

    class Fixed(nn.Module):
        def forward(self, x):
            return pyro.distributions.Normal(x.flatten(-3), 0.1).to_event(1)

    assert priors.Vamp(Fixed(), torch.rand(3, *SHAPE))().event_shape == (4,)


# Bad input


@every
def test_latent_below_one_is_refused(make):
    with pytest.raises(ValueError, match="latent: wanted a whole number of at least 1, got 0"):
        make(Network(), 0)


@pytest.mark.parametrize("rank", [0, -1, 1.0, True])
def test_rank_below_one_is_refused(rank):
    with pytest.raises(ValueError, match="rank: wanted a whole number of at least 1"):
        guides.LowRank(Network(), 3, rank)


def test_rank_above_the_code_is_refused():
    with pytest.raises(ValueError, match="rank: wanted at most latent = 3, got 4"):
        guides.LowRank(Network(), 3, 4)


@pytest.mark.parametrize(("network", "features"), [(nn.Conv2d(1, 2, 1), 2), (nn.Flatten(), 5), (nn.Linear(2, 4), 4)])
def test_features_of_another_shape_are_refused(network, features):
    guide = guides.MeanField(network, 2, features=features)
    for batch in ((5,), (2, 5)):
        with pytest.raises(ValueError, match=r"wanted features of .* got .* end the network with nn\.Flatten\(\)"):
            guide(images(*batch).float())
    cured = guides.MeanField(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten()), 2, features=8)
    assert cured(images(2, 5).float()).batch_shape == (2, 5)


@every
def test_a_network_of_one_batch_dimension(make):
    """Convolutions and batch norm, as they are usually written, under any number of leading dimensions."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 2), nn.Flatten(), nn.BatchNorm1d(3))
    network.out_features = 3
    guide, x, z = make(network, 3).eval(), images(3, 3).float(), torch.randn(3, 3, 3)
    log_q = guide(x).log_prob(z)
    for i, j in ((0, 1), (2, 0)):
        torch.testing.assert_close(log_q[i, j], guide(x[i, j : j + 1]).log_prob(z[i, j]).squeeze(0))


@pytest.mark.parametrize("option", ["depth", "width"])
def test_flow_of_no_size_is_refused(option):
    with pytest.raises(ValueError, match=f"{option}: wanted a whole number of at least 1, got 0"):
        guides.Flow(Network(), 3, **{option: 0})


@every
def test_a_network_of_unknown_width_is_refused(make):
    with pytest.raises(ValueError, match="features=N"):
        make(nn.Flatten(-3), 3)


def test_features_go_before_the_attribute():
    network = Network()
    network.out_features = 7
    assert guides.MeanField(network, 3, features=6)(torch.rand(5, *SHAPE)).batch_shape == (5,)


@every
def test_x_may_be_rows(make):
    """A network of the package says how many dimensions a row has; for others x has one batch dimension."""
    torch.manual_seed(0)
    own, plain = networks.MLPEncoder((5,), hidden=(6,)), nn.Sequential(nn.Linear(5, 6), nn.ReLU())
    plain.out_features = 6
    x = torch.randn(4, 3, 5)
    guide = make(own, 2)
    assert guide(x).batch_shape == (4, 3) and guide(x[0]).batch_shape == (3,)
    z = guide(x).sample()
    torch.testing.assert_close(guide(x).log_prob(z)[1], guide(x[1]).log_prob(z[1]))
    assert make(plain, 2)(x[0]).batch_shape == (3,)
    with pytest.raises(ValueError, match=r"wanted features of shape \(3, 7\) from x of \(3, 5\)"):
        guides.MeanField(own, 2, features=7)(x[0])
