"""Normal distributions matched to gradients: the closed form minimises what it should."""

import torch
from torch.distributions import MultivariateNormal, kl_divergence

from pyro_vae.evidence.matching import lower, matched

B, C, D, RATE = 3, 6, 4, 2.5


def normals(seed):
    torch.manual_seed(seed)
    root = torch.randn(B, D, D).double().tril()
    root.diagonal(dim1=-2, dim2=-1).abs_().add_(0.3)
    return MultivariateNormal(torch.randn(B, D).double(), scale_tril=root)


def objective(loc, scale_tril, old, u, gradient):
    """The score-based divergence and the Kullback-Leibler divergence, written out."""
    new = MultivariateNormal(loc, scale_tril=scale_tril)
    miss = gradient + torch.linalg.solve(new.covariance_matrix, (u - loc).unsqueeze(-1)).squeeze(-1)
    divergence = torch.einsum("cbi,bij,cbj->cb", miss, new.covariance_matrix, miss).mean(0)
    return (RATE / 2 * divergence + kl_divergence(old, new)).sum()


def test_the_match_is_where_the_objective_is_least():
    old = normals(0)
    u = old.sample((C,))
    gradient = -3 * u + u.sin() + torch.randn(C, B, D).double()
    found = matched(old, u, gradient, RATE)
    loc, root = found.loc.requires_grad_(), found.scale_tril.clone().requires_grad_()
    least = objective(loc, root, old, u, gradient)
    for slope in torch.autograd.grad(least, (loc, root)):
        assert slope.tril().abs().max() < 1e-8 * least
    nearby = objective(loc + 0.01 * torch.randn_like(loc), root, old, u, gradient)
    assert least < nearby


def test_many_draws_of_a_normal_give_that_normal_at_once():
    target, start = normals(1), normals(2)
    u = start.sample((3 * D,))
    gradient = torch.linalg.solve(target.covariance_matrix, (target.loc - u).unsqueeze(-1)).squeeze(-1)
    found = matched(start, u, gradient, rate=1e12)
    torch.testing.assert_close(found.loc, target.loc, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.covariance_matrix, target.covariance_matrix, rtol=1e-4, atol=1e-4)


def test_a_row_whose_gradient_is_not_finite_keeps_its_distribution():
    old = normals(3)
    u = old.sample((C,))
    gradient = -u
    gradient[2, 1, 0], gradient[0, 2, 3] = torch.nan, -torch.inf
    found = matched(old, u, gradient, RATE)
    for row, kept in enumerate((False, True, True)):
        assert torch.equal(found.loc[row], old.loc[row]) is kept
        assert torch.equal(found.scale_tril[row], old.scale_tril[row]) is kept
    assert found.loc.isfinite().all() and found.scale_tril.isfinite().all()


def test_the_root_of_a_singular_sum_has_a_diagonal_that_is_not_negative():
    part = torch.ones(1, 3, 1).double()
    root = lower(part, 1e-9 * torch.eye(3).double().unsqueeze(0))
    torch.testing.assert_close(root @ root.mT, torch.ones(1, 3, 3).double(), rtol=0, atol=1e-9)
    assert torch.equal(root, root.tril()) and (root.diagonal(dim1=-2, dim2=-1) > 0).all()
