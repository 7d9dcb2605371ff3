"""Batch and match: normal distributions that are fitted to gradients of a log density (Cai et al. 2024)."""

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_vae.parallel import cores, each

Normals = MultivariateNormal  # one for each row: loc (B, D), scale_tril (B, D, D)


def drawn(loc: Tensor, scale_tril: Tensor, noise: Tensor) -> Tensor:
    """Return the draws μ + L ε, (C, B, D), from noise ε (C, B, D), with loc μ (B, D) and scale_tril L (B, D, D)."""
    return loc + (scale_tril @ columns(noise)).permute(2, 0, 1)


def matched_by_shares(normals: Normals, u: Tensor, gradient: Tensor, rate: float) -> Normals:
    """Match normal distributions as ``matched`` does, a share of the rows on each core."""
    shares = torch.arange(u.shape[1]).chunk(cores())
    of = [MultivariateNormal(normals.loc[rows], scale_tril=normals.scale_tril[rows]) for rows in shares]
    calls = [(part, u[:, rows], gradient[:, rows], rate) for part, rows in zip(of, shares)]
    found = each(matched, calls, len(calls))
    loc, scale_tril = (torch.cat([getattr(part, name) for part in found]) for name in ("loc", "scale_tril"))
    return MultivariateNormal(loc, scale_tril=scale_tril)


def matched(normals: Normals, u: Tensor, gradient: Tensor, rate: float) -> Normals:
    """Match normal distributions to gradients g of log densities at draws u, both (C, B, D), of them.

    The result minimises, over N(μ, Σ), the score-based divergence of the draws and a Kullback-Leibler divergence,

        rate / 2C Σ_c ‖g_c − ∇ log N(u_c; μ, Σ)‖²_Σ + KL(normals ‖ N(μ, Σ)),

    in closed form (Cai et al. 2024). A row of which a gradient is not finite keeps its distribution.

    Args:
        normals: the present distributions, loc (B, D).
        u, gradient: (C, B, D).
        rate: how much the draws count, above 0.

    >>> target = MultivariateNormal(torch.tensor([[3.0, -1.0]]), torch.tensor([[2.0, 0.5], [0.5, 1.0]]))
    >>> u = MultivariateNormal(torch.zeros(1, 2), torch.eye(2)).sample((10,))
    >>> gradient = -torch.linalg.solve(target.covariance_matrix, (u - target.loc).mT).mT
    >>> found = matched(MultivariateNormal(torch.zeros(1, 2), torch.eye(2)), u, gradient, rate=1e6)
    >>> torch.allclose(found.loc, target.loc, atol=1e-2)
    True
    """
    finite = gradient.isfinite().all(-1).all(0)
    gradient = torch.where(finite[:, None], gradient, 0)
    mean_u, mean_g, share = u.mean(0), gradient.mean(0), rate / (1 + rate)
    each, mean = (rate / len(u)) ** 0.5, share**0.5
    # V = root rootᵀ and U = scores scoresᵀ, in the paper's letters
    root = lower(normals.scale_tril, each * columns(u - mean_u), mean * (normals.loc - mean_u).unsqueeze(-1))
    scores = torch.cat([each * columns(gradient - mean_g), mean * mean_g.unsqueeze(-1)], -1)
    turned = root.mT @ scores
    square, axes = torch.linalg.eigh(turned @ turned.mT)
    shrunk = (2 / (1 + (1 + 4 * square.clamp(min=0)).sqrt())).sqrt()
    scale_tril = lower(root @ axes * shrunk.unsqueeze(-2))
    step = (scale_tril @ (scale_tril.mT @ mean_g.unsqueeze(-1))).squeeze(-1)
    loc = (1 - share) * normals.loc + share * (mean_u + step)
    loc = torch.where(finite[:, None], loc, normals.loc)
    return MultivariateNormal(loc, scale_tril=torch.where(finite[:, None, None], scale_tril, normals.scale_tril))


def columns(values: Tensor) -> Tensor:
    """Return the vectors (C, B, D) as the columns of matrices (B, D, C)."""
    return values.permute(1, 2, 0)


def lower(*parts: Tensor) -> Tensor:
    """Return the lower triangular L (B, D, D) with a positive diagonal and L Lᵀ = Σ A Aᵀ, of parts A (B, D, ·).

    Unlike a Cholesky decomposition of the sum, it does not fail where that is nearly singular.

    >>> lower(torch.tensor([[[3.0]]]), torch.tensor([[[4.0]]]))
    tensor([[[5.]]])
    """
    factor = torch.linalg.qr(torch.cat(parts, -1).mT, mode="r").R.mT
    return factor * factor.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
