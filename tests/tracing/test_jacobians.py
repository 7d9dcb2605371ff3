"""Every step of a flow backwards, against the Jacobian that autograd writes out."""

import pyro.distributions.transforms as transforms
import pytest
import torch
from pyro.nn import AutoRegressiveNN, DenseNN
from torch import nn
from torch.distributions import transforms as plain

from pyro_vae import guides
from pyro_vae.distributions import transforms as ours
from pyro_vae.tracing import jacobians
from pyro_vae.tracing.jacobians import stepped

pytestmark = pytest.mark.usefixtures("float64")
D = 5


def strong(module):
    """Give a network weights of order one, so that J is far from diagonal."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.7)
    return module


def conditional():
    return strong(transforms.conditional_affine_autoregressive(D, 3, [9])).condition(torch.randn(2, 3))


def of_guide():
    return strong(guides.InverseAutoregressiveStep(D, 3, 8, reverse=True))(torch.randn(2, 3))


def composed():
    parts = [transforms.permute(D), strong(transforms.affine_autoregressive(D)), plain.ExpTransform()]
    return plain.ComposeTransform(parts)


def stable():
    return transforms.AffineAutoregressive(strong(AutoRegressiveNN(D, [8])), stable=True)


def skipping():
    return transforms.AffineAutoregressive(strong(AutoRegressiveNN(D, [8], skip_connections=True)))


KNOWN = {
    "autoregressive": lambda: strong(transforms.affine_autoregressive(D, [11, 7])),
    "conditional": conditional,
    "of a guide": of_guide,
    "planar": lambda: strong(transforms.planar(D)),
    "planar of a guide": lambda: guides.PlanarStep(D, 3)(torch.randn(2, 3)),
    "coupling": lambda: transforms.AffineCoupling(2, strong(DenseNN(2, [8], [D - 2, D - 2]))),
    "permutation": lambda: transforms.permute(D),
    "affine": lambda: plain.AffineTransform(torch.randn(D), torch.rand(D) + 0.5, event_dim=1),
    "elementwise": plain.SigmoidTransform,
    "independent": lambda: plain.IndependentTransform(plain.ExpTransform(), 1),
    "composed": composed,
}
OTHERS = {
    "stable": stable,
    "with skip connections": skipping,
    "spline": lambda: transforms.spline_autoregressive(D, [8]),
    "cholesky": lambda: transforms.LowerCholeskyAffine(torch.zeros(D), torch.randn(D, D).tril() + 2 * torch.eye(D)),
    "of our own": lambda: ours.Backward(of_guide()),
}


def check(transform, shape=(2, D)):
    x = torch.randn(shape).requires_grad_()
    y, back = stepped(transform, x)
    slope = torch.randn(shape)
    g = back(slope)
    assert g.shape == y.shape
    torch.testing.assert_close(torch.autograd.grad(y, x, g)[0], slope)  # Jᵀ g


@pytest.mark.parametrize("name", KNOWN)
def test_known_steps_are_exact_and_write_no_jacobian_out(name, monkeypatch):
    def refuse(jacobian, slope):
        raise AssertionError("a Jacobian is solved")

    monkeypatch.setattr(jacobians, "_solved", refuse)
    check(KNOWN[name]())


@pytest.mark.parametrize("name", OTHERS)
def test_other_steps_are_exact(name):
    check(OTHERS[name]())


@pytest.mark.parametrize(("name", "shape"), [("of a guide", (3, 2, D)), ("autoregressive", (D,)), ("composed", (D,))])
def test_particles_and_rows_are_apart_and_there_need_be_none(name, shape):
    check(KNOWN[name](), shape)


def test_an_element_that_nothing_depends_on_has_no_derivative():
    x = torch.randn(2, 3).requires_grad_()
    step = plain.StickBreakingTransform()
    y, back = stepped(step, x)
    g = back(torch.ones(2, 3))
    torch.testing.assert_close(torch.autograd.grad(y, x, g)[0], torch.ones(2, 3))
    assert g.sum(-1).abs().max() < 1e-12  # along the simplex
