"""Transforms against autograd's Jacobian and against their own inverses; they leave nothing behind."""

import gc
import weakref

import pyro.distributions as dist
import pytest
import torch

from pyro_vae import guides, priors
from pyro_vae.distributions import transforms as flows

CONTEXT = 4
MAKERS = {
    "affine": lambda latent: priors.AutoregressiveStep(latent, 8),
    "affine reversed": lambda latent: priors.AutoregressiveStep(latent, 8, reverse=True),
    "spline": lambda latent: priors.SplineStep(latent, 8),
    "affine given h": lambda latent: guides.InverseAutoregressiveStep(latent, CONTEXT, 8, reverse=True),
    "planar given h": lambda latent: guides.PlanarStep(latent, CONTEXT),
}
steps = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def transform(make, latent, batch=(5,)):
    """Return the transform of float64 values that a step with random parameters makes."""
    torch.manual_seed(0)
    step = make(latent).double()
    with torch.no_grad():
        for parameter in step.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    given = isinstance(step, guides.InverseAutoregressiveStep | guides.PlanarStep)
    return step(torch.randn(*batch, CONTEXT).double()) if given else step()


@steps
@pytest.mark.parametrize("latent", [1, 2, 5])
def test_inverse(make, latent):
    f = transform(make, latent)
    y = 2 * torch.randn(5, latent).double()
    torch.testing.assert_close(f(f._inverse(y)), y, rtol=1e-8, atol=1e-8)


@steps
@pytest.mark.parametrize("latent", [1, 3])
def test_log_determinant_is_that_of_autograd(make, latent):
    f = transform(make, latent, batch=())
    x = torch.randn(latent).double()
    jacobian = torch.autograd.functional.jacobian(f, x)
    torch.testing.assert_close(f.log_abs_det_jacobian(x, f(x)), jacobian.slogdet().logabsdet)


@steps
def test_log_determinant_at_an_inverse(make):
    f = transform(make, 3)
    y = torch.randn(5, 3).double()
    x = f._inv_call(y)
    after_inverse = f.log_abs_det_jacobian(x, y)
    torch.testing.assert_close(after_inverse, transform(make, 3).log_abs_det_jacobian(x.clone(), y))


@steps
def test_derivative_of_the_inverse_is_the_inverse_derivative(make):
    y = torch.randn(3).double()
    f = transform(make, 3, batch=())
    backward = torch.autograd.functional.jacobian(f._inverse, y)
    forward = torch.autograd.functional.jacobian(f, f._inverse(y).detach())
    torch.testing.assert_close(backward @ forward, torch.eye(3).double(), rtol=1e-7, atol=1e-7)


@steps
def test_backward_swaps_the_directions(make):
    f, g = transform(make, 3), flows.Backward(transform(make, 3))
    x = torch.randn(5, 3).double()
    y = f(x)
    torch.testing.assert_close(g(y), x)
    torch.testing.assert_close(g.log_abs_det_jacobian(y, g(y)), -f.log_abs_det_jacobian(x, y))


def test_planar_root_of_the_steepest_and_the_flattest_map():
    slope = torch.tensor([-0.999, -0.5, 0.0, 100.0]).double().requires_grad_()
    bias, target = torch.tensor(0.3).double(), torch.tensor(1.7).double()
    a = flows.planar_root(slope, bias, target)
    torch.testing.assert_close(a + slope * torch.tanh(a + bias), target.expand(4))
    (gradient,) = torch.autograd.grad(a.sum(), slope)
    t = torch.tanh(a + bias).detach()
    torch.testing.assert_close(gradient, -t / (1 + slope.detach() * (1 - t**2)))


def test_log_prob_of_a_pushforward_is_that_of_torch():
    f = transform(MAKERS["affine"], 3)
    base = dist.Normal(torch.zeros(3).double(), 1.0).to_event(1)
    z = torch.randn(5, 3).double()
    ours, theirs = flows.Pushforward(base, [f]), dist.TransformedDistribution(base, [transform(MAKERS["affine"], 3)])
    torch.testing.assert_close(ours.log_prob(z), theirs.log_prob(z))
    assert ours.log_prob(z[0]).shape == ()


def test_a_value_is_broadcast_against_the_batch():
    base = dist.Normal(torch.zeros(5, 3).double(), 1.0).to_event(1)
    z = torch.randn(2, 1, 3).double()
    for name in ("affine given h", "planar given h"):
        together = flows.Pushforward(base, [transform(MAKERS[name], 3)]).log_prob(z)
        assert together.shape == (2, 5)
        alone = flows.Pushforward(base, [transform(MAKERS[name], 3)]).log_prob(z[1].expand(5, 3))
        torch.testing.assert_close(together[1], alone)


def test_a_value_of_fewer_dimensions_has_the_batch_shape_all_the_same():
    """The network of a step joins the value to features of one row, and so needs a row."""
    base = dist.Normal(torch.zeros(1, 3).double(), 1.0).to_event(1)
    z = torch.randn(3).double()
    for name in ("affine given h", "planar given h"):
        found = flows.Pushforward(base, [transform(MAKERS[name], 3, batch=(1,))]).log_prob(z)
        alone = flows.Pushforward(base, [transform(MAKERS[name], 3, batch=(1,))]).log_prob(z.expand(1, 3))
        assert found.shape == (1,)
        torch.testing.assert_close(found, alone)


@steps
def test_the_graph_is_freed_without_the_garbage_collector(make):
    collecting = gc.isenabled()
    gc.disable()
    try:
        base = dist.Normal(torch.zeros(5, 3).double(), 1.0).to_event(1)
        q = flows.Pushforward(base, [transform(make, 3), flows.Backward(transform(make, 3))])
        z = q.rsample()
        score = q.log_prob(z) + q.log_prob(z + 1)
        kept = [weakref.ref(z), weakref.ref(q.transforms[0]), weakref.ref(q.transforms[1].transform)]
        del q, z, score
        assert [reference() for reference in kept] == [None, None, None]
    finally:
        if collecting:
            gc.enable()


def test_a_dimension_depends_on_those_before_it():
    x = torch.randn(4)
    for reverse in (False, True):
        network = flows.made(4, 16, [1, 1], reverse=reverse)
        for jacobian in torch.autograd.functional.jacobian(network, x):
            allowed = torch.ones(4, 4).triu(1) if reverse else torch.ones(4, 4).tril(-1)
            assert (jacobian[allowed == 0] == 0).all()
            assert (jacobian[allowed == 1] != 0).all()


def test_hidden_layers_narrower_than_the_code_are_refused():
    with pytest.raises(ValueError, match="width: wanted at least latent = 5, got 4"):
        flows.made(5, 4, [1, 1])
