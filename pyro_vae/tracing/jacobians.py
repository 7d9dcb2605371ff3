"""The steps of a flow backwards: the derivative by a step's value from that by its argument, by Jacobians.

    y = f(x),    J = ∂y/∂x,    ∂h/∂x = Jᵀ ∂h/∂y for any function h of y,    so that Jᵀ g = ∂h/∂x gives g = ∂h/∂y

What is known of a step makes this cheap (Vaitl et al. 2024); of any other step J is written out.
"""

from functools import singledispatch
from typing import Any

import torch
from pyro.distributions import transforms
from pyro.distributions.transforms.planar import ConditionedPlanar
from torch import Tensor
from torch.distributions import AffineTransform, ComposeTransform, IndependentTransform, Transform

from pyro_vae.tracing.masked import masked_step


@singledispatch
def by_value(transform: Any, x: Tensor, y: Tensor, slope: Tensor) -> Tensor:
    """Return g with Jᵀ g = slope for y = transform(x), y in the graph of x; g has the shape of y, slope that of x.

    Where y has more elements than x, as for a map onto a simplex, g lies in the surface in which y moves.

    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> exp = torch.distributions.ExpTransform()
    >>> by_value(exp, x, exp(x), torch.ones(2)) * exp(x)
    tensor([1., 1.], grad_fn=<MulBackward0>)
    """
    if transform.domain.event_dim == transform.codomain.event_dim == 0:
        return slope / _pullback(y, x, torch.ones_like(y))
    events = transform.domain.event_dim
    rows = [_pullback(row.sum(), x) for row in y.flatten(-transform.codomain.event_dim).unbind(-1)]
    jacobian = torch.stack([row.flatten(-events) for row in rows], -2)
    return _solved(jacobian, slope.flatten(-events)).reshape(y.shape)


@by_value.register
def _(transform: ComposeTransform, x: Tensor, y: Tensor, slope: Tensor) -> Tensor:
    for part in transform.parts:
        x, before = part(x), x
        slope = by_value(part, before, x, slope)
    return slope


@by_value.register
def _(transform: IndependentTransform, x: Tensor, y: Tensor, slope: Tensor) -> Tensor:
    return by_value(transform.base_transform, x, y, slope)


@by_value.register
def _(transform: AffineTransform, x: Tensor, y: Tensor, slope: Tensor) -> Tensor:
    return slope / transform.scale


@by_value.register
def _(transform: transforms.Permute, x: Tensor, y: Tensor, slope: Tensor) -> Tensor:
    return slope.index_select(transform.dim, transform.permutation)


@by_value.register
def _(transform: ConditionedPlanar, x: Tensor, y: Tensor, slope: Tensor) -> Tensor:
    """J = I + û h wᵀ, h = 1 − tanh²(w·x + b), whose inverse is of the same form (Sherman & Morrison 1950)."""
    bias, u, w = transform._params() if callable(transform._params) else transform._params
    u_hat = transform.u_hat(u, w)
    h = 1 - torch.tanh((w * x).sum(-1, keepdim=True) + bias).square()
    along = h * (u_hat * slope).sum(-1, keepdim=True) / (1 + h * (w * u_hat).sum(-1, keepdim=True))
    return slope - along * w


@by_value.register
def _(transform: transforms.AffineCoupling, x: Tensor, y: Tensor, slope: Tensor) -> Tensor:
    """y₁ = x₁, y₂ = μ(x₁) + σ(x₁) x₂, so that g₂ = slope₂ / σ, g₁ = slope₁ − ∂(g₂·y₂)/∂x₁."""
    dim, at = transform.dim, transform.split_dim
    kept, moved = slope.tensor_split([at], dim)
    of_second = torch.cat([torch.zeros_like(kept), torch.ones_like(moved)], dim)
    scale = _pullback(y, x, of_second).tensor_split([at], dim)[1]
    moved = moved / scale
    path = _pullback(y, x, torch.cat([torch.zeros_like(kept), moved], dim)).tensor_split([at], dim)[0]
    return torch.cat([kept - path, moved], dim)


@by_value.register
def _(transform: transforms.AffineAutoregressive, x: Tensor, y: Tensor, slope: Tensor) -> Tensor:
    found = masked_step(transform, x)
    if found is None:
        return by_value.dispatch(object)(transform, x, y, slope)
    step, order = found
    g = step.solved(slope.index_select(-1, order).flatten(0, -2))
    return torch.empty_like(g).index_copy(-1, order, g).reshape(slope.shape)


def _pullback(y: Tensor, x: Tensor, v: Tensor | None = None) -> Tensor:
    return torch.autograd.grad(y, x, v, retain_graph=True, allow_unused=True, materialize_grads=True)[0]


def _solved(jacobian: Tensor, slope: Tensor) -> Tensor:
    """Return g with Jᵀ g = slope, where J is square, or has more rows than columns, as for a map onto a simplex.

    In the latter case g lies in the plane of the columns, in which alone the values move.
    """
    if jacobian.shape[-1] == jacobian.shape[-2]:
        return torch.linalg.solve(jacobian.mT, slope.unsqueeze(-1)).squeeze(-1)
    return (jacobian @ torch.linalg.solve(jacobian.mT @ jacobian, slope.unsqueeze(-1))).squeeze(-1)
