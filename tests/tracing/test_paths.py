"""Path derivatives by hand: values and gradients of log q at the same draws, and what has none."""

import math

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import pytest
import torch
from pyro import poutine

from pyro_vae.tracing.particles import score
from pyro_vae.tracing.paths import (
    Detached,
    GatedPaths,
    check_observed,
    check_reparameterised,
    drawn_sites,
    leave_score_out,
    partial_derivatives,
)

pytestmark = pytest.mark.usefixtures("float64")


def parameters():
    return [torch.tensor(value, requires_grad=True) for value in (0.3, -0.7, 0.5)]


def chain(loc, slope, scale):
    """z1 ~ N(loc, 1), z2 ~ N(slope · z1, scale)."""
    z1 = pyro.sample("z1", dist.Normal(loc, 1.0))
    pyro.sample("z2", dist.Normal(slope * z1, scale))


def scored(handler, program, *args):
    trace = poutine.trace(handler(program)).get_trace(*args)
    score(trace)
    return trace


def gradients(output, inputs):
    return [slope.item() for slope in torch.autograd.grad(output, inputs, retain_graph=True)]


def test_detached_draws_keep_the_score_alone():
    given = loc, slope, scale = parameters()
    trace = scored(Detached(), chain, *given)
    z1, z2 = (trace.nodes[name]["value"] for name in ("z1", "z2"))
    assert not z1.requires_grad and not z2.requires_grad
    log_q = trace.nodes["z1"]["log_prob"] + trace.nodes["z2"]["log_prob"]
    torch.testing.assert_close(log_q, dist.Normal(loc, 1.0).log_prob(z1) + dist.Normal(slope * z1, scale).log_prob(z2))
    off = z2 - slope * z1
    by_hand = [z1 - loc, z1 * off / scale**2, (off**2 / scale**2 - 1) / scale]
    assert gradients(log_q, given) == pytest.approx([value.item() for value in by_hand])


def test_the_score_of_a_masked_draw_is_not_masked():
    loc = torch.zeros(2, 3, requires_grad=True)
    mask = torch.tensor([True, False])
    fn = dist.Normal(loc, 1.0).to_event(1).mask(mask)

    def guide():
        with pyro.plate("rows", 2):
            pyro.sample("z", fn)

    trace = scored(Detached(), guide)
    site = trace.nodes["z"]
    assert torch.equal(site["score"], fn.base_dist.log_prob(site["value"]))
    assert torch.equal(site["log_prob"], site["score"] * mask)


def test_a_mask_inside_the_event_does_not_mask_the_score():
    loc, mask = torch.zeros(2, 3, requires_grad=True), torch.tensor([True, False, True])
    fn = dist.Normal(loc, 1.0).mask(mask).to_event(1)

    def guide():
        with pyro.plate("rows", 2):
            pyro.sample("z", fn)

    site = scored(Detached(), guide).nodes["z"]
    log_q = dist.Normal(loc, 1.0).log_prob(site["value"])
    torch.testing.assert_close(site["score"], log_q.sum(-1))
    torch.testing.assert_close(site["log_prob"], (log_q * mask).sum(-1))


def test_points_and_observed_sites_are_no_draws_and_keep_their_paths():
    loc, *_ = parameters()

    def guide():
        point = pyro.sample("point", dist.Delta(2 * loc))
        pyro.sample("seen", dist.Normal(loc, 1.0), obs=torch.tensor(1.0))
        pyro.sample("drawn", dist.Normal(point, 1.0))

    trace = scored(Detached(), guide)
    assert gradients(trace.nodes["point"]["value"], [loc]) == [2.0]
    assert list(drawn_sites(trace)) == ["drawn"]


def test_closed_paths_give_partial_derivatives_and_open_ones_the_total():
    given = loc, slope, scale = parameters()
    paths = GatedPaths()
    trace = scored(paths, chain, *given)
    z1, z2 = (trace.nodes[name]["value"] for name in ("z1", "z2"))
    log_q = trace.nodes["z1"]["log_prob"] + trace.nodes["z2"]["log_prob"]
    off = z2 - slope * z1
    pull = (off / scale**2).item()
    found = partial_derivatives(log_q, trace)
    assert found["z1"].item() == pytest.approx((loc - z1).item() + slope.item() * pull)
    assert found["z2"].item() == pytest.approx(-pull)
    score = [(z1 - loc).item(), z1.item() * pull, ((off**2 / scale**2 - 1) / scale).item()]
    assert gradients(log_q, given) == pytest.approx(score)
    paths.open()
    # Of the draws log q is −ε₁²/2 − ε₂²/2 − log(scale) up to constants, whatever loc and slope are.
    assert gradients(log_q, given) == pytest.approx([0.0, 0.0, -1 / scale.item()], abs=1e-12)


def test_without_the_score_the_path_is_left():
    given = loc, slope, scale = parameters()
    paths = GatedPaths()
    trace = scored(paths, chain, *given)
    before = [site["log_prob"].item() for site in drawn_sites(trace).values()]
    leave_score_out(trace)
    paths.open()
    sites = drawn_sites(trace)
    assert [site["log_prob"].item() for site in sites.values()] == before
    z1, z2 = (site["value"] for site in sites.values())
    off = z2 - slope * z1
    pull = off / scale**2
    # dz1/d(loc) = 1, dz2/d(loc) = slope, dz2/d(slope) = z1, dz2/d(scale) = ε₂
    by_hand = [loc - z1 + slope * pull - slope * pull, -pull * z1, -pull * off / scale]
    total = sum(site["log_prob"] for site in sites.values())
    assert gradients(total, given) == pytest.approx([value.item() for value in by_hand])


def test_a_value_that_nothing_depends_on_has_no_derivative():
    trace = scored(GatedPaths(), chain, *parameters())
    assert list(partial_derivatives(trace.nodes["z1"]["log_prob"], trace)) == ["z1"]
    with torch.no_grad():
        assert partial_derivatives(trace.nodes["z1"]["log_prob"], trace) == {}


@pytest.mark.parametrize("cache_size", [0, 1])
def test_a_flow_is_scored_from_the_pass_that_made_its_draw(cache_size):
    """An affine map of a Gaussian is a Gaussian, whose density and derivatives are known."""
    loc, tril = torch.randn(2).requires_grad_(), torch.tensor([[0.6, 0.0], [-0.4, 1.3]], requires_grad=True)
    steps = [transforms.LowerCholeskyAffine(loc, tril, cache_size=cache_size)]
    flow = dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), steps)
    trace = scored(GatedPaths(), lambda: pyro.sample("z", flow.expand([3]).to_event(1)))
    z = trace.nodes["z"]["value"]
    exact = dist.MultivariateNormal(loc, scale_tril=tril)
    log_q = trace.nodes["z"]["log_prob"].sum()
    torch.testing.assert_close(log_q, exact.log_prob(z).sum())
    wanted = torch.autograd.grad(exact.log_prob(z).sum(), [z, loc, tril], retain_graph=True)
    found = torch.autograd.grad(log_q, [z, loc, tril])
    torch.testing.assert_close(found[:2], wanted[:2])
    torch.testing.assert_close(found[2].tril(), wanted[2].tril())


def test_each_row_of_a_flow_has_its_own_derivatives():
    """Rows with weights of their own: a derivative that were summed over rows, or mixed them, would show."""
    loc, tril = torch.randn(3, 2).requires_grad_(), torch.tensor([[0.6, 0.0], [-0.4, 1.3]], requires_grad=True)
    steps = [transforms.LowerCholeskyAffine(loc, tril, cache_size=1)]
    flow = dist.TransformedDistribution(dist.Normal(torch.zeros(3, 2), 1.0).to_event(1), steps)
    assert flow.batch_shape == (3,)

    def guide():
        with pyro.plate("rows", 3):
            pyro.sample("z", flow)

    site = scored(GatedPaths(), guide).nodes["z"]
    exact, weights = dist.MultivariateNormal(loc, scale_tril=tril), torch.tensor([1.0, -2.0, 5.0])
    assert site["log_prob"].shape == (3,)
    found = torch.autograd.grad(weights @ site["log_prob"], [site["value"], loc])
    wanted = torch.autograd.grad(weights @ exact.log_prob(site["value"]), [site["value"], loc])
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("nested", [False, True])
def test_a_flow_without_an_inverse_is_scored_from_its_pass(nested):
    """With open paths the derivative is the total one: that of log N(ε) − log |det ∂T/∂ε| at the same ε."""
    torch.manual_seed(3)
    step, base = transforms.planar(2), dist.Normal(torch.zeros(4, 2), 1.0).to_event(1)
    flow = dist.TransformedDistribution(base, [step])
    if nested:
        flow = dist.TransformedDistribution(
            flow, [dist.transforms.AffineTransform(0.0, 2.0, event_dim=1, cache_size=1)]
        )
    given = list(step.parameters())

    def guide():
        with pyro.plate("rows", 4):
            pyro.sample("z", flow)

    paths = GatedPaths()
    torch.manual_seed(5)
    site = scored(paths, guide).nodes["z"]
    torch.manual_seed(5)
    noise = base.rsample()
    log_q = base.log_prob(noise) - step.log_abs_det_jacobian(noise, step(noise)) - nested * 2 * math.log(2)
    torch.testing.assert_close(site["value"], step(noise) * (1 + nested))
    torch.testing.assert_close(site["log_prob"], log_q)
    paths.open()
    weights = torch.tensor([1.0, -2.0, 3.0, 0.5])
    wanted = torch.autograd.grad(weights @ log_q, given)
    torch.testing.assert_close(torch.autograd.grad(weights @ site["log_prob"], given), wanted)


def test_on_a_simplex_the_derivative_is_that_along_its_surface():
    """Three numbers that sum to one are a map of two: Jᵀ g is the derivative in these."""
    step = torch.distributions.StickBreakingTransform(cache_size=1)
    flow = dist.TransformedDistribution(dist.Normal(torch.zeros(2).requires_grad_(), 1.0).to_event(1), step)
    trace = scored(GatedPaths(), lambda: pyro.sample("z", flow))
    z = trace.nodes["z"]["value"]
    (slope,) = partial_derivatives(trace.nodes["z"]["log_prob"], trace).values()
    fresh = torch.distributions.StickBreakingTransform()
    noise = fresh.inv(z.detach()).requires_grad_()
    log_q = flow.base_dist.log_prob(noise) - fresh.log_abs_det_jacobian(noise, fresh(noise))
    jacobian = torch.autograd.functional.jacobian(fresh, noise.detach())
    torch.testing.assert_close(jacobian.T @ slope, torch.autograd.grad(log_q, noise)[0])


def test_what_has_no_path_is_named():
    def site(fn, **options):
        return poutine.trace(lambda: pyro.sample("a", fn, **options)).get_trace().nodes["a"]

    with pytest.raises(ValueError, match=r"site 'a' of the guide is not reparameterised \(Categorical has no rsample"):
        check_reparameterised(site(dist.Categorical(torch.ones(2))))
    with pytest.raises(ValueError, match="site 'a' of the guide is not reparameterised"):
        GatedPaths()(lambda: pyro.sample("a", dist.Poisson(1.0)))()
    check_reparameterised(site(dist.Normal(0.0, 1.0)))

    def factor(**options):
        return poutine.trace(lambda: pyro.factor("f", torch.ones(()), **options)).get_trace().nodes["f"]

    with pytest.raises(ValueError, match="the factor 'f' of the guide does not say what its gradient is"):
        check_observed(factor())
    with pytest.raises(ValueError, match="the factor 'f' of the guide has has_rsample=False"):
        check_observed(factor(has_rsample=False), rsample=True)
    with pytest.raises(ValueError, match="site 'a' is observed by the guide, and Poisson has no rsample"):
        check_observed(site(dist.Poisson(1.0), obs=torch.tensor(1.0)))
    for fine in (factor(has_rsample=True), site(dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))):
        check_observed(fine, rsample=True)
    check_observed(factor(has_rsample=False))
