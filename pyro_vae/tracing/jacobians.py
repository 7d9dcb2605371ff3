"""The steps of a flow backwards: the derivative by a step's value from that by its argument, by Jacobians.

    y = f(x),    J = ∂y/∂x,    ∂h/∂x = Jᵀ ∂h/∂y for any function h of y,    so that Jᵀ g = ∂h/∂x gives g = ∂h/∂y

What is known of a step makes this cheap (Vaitl et al. 2024); of any other step J is written out.
"""

from collections.abc import Callable
from functools import partial, reduce, singledispatch
from typing import Any

import torch
from pyro.distributions import transforms
from pyro.distributions.transforms.planar import ConditionedPlanar
from torch import Tensor
from torch.distributions import AffineTransform, ComposeTransform, IndependentTransform

from pyro_vae.tracing.masked import MaskedStep, masked_network, watched

Back = Callable[[Tensor], Tensor]  # from ∂h/∂x to ∂h/∂y


@singledispatch
def stepped(transform: Any, x: Tensor) -> tuple[Tensor, Back]:
    """Return y = transform(x), in the graph of x, and a function from b to g with Jᵀ g = b.

    b has the shape of x, and g that of y. Where y has more elements than x, as for a map onto a simplex, g lies in the
    surface in which y moves.

    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> y, back = stepped(torch.distributions.ExpTransform(), x)
    >>> torch.allclose(back(y), torch.ones(2))
    True
    """
    y = transform(x)
    elementwise = transform.domain.event_dim == transform.codomain.event_dim == 0
    return y, partial(_by_elements if elementwise else _by_jacobian, transform, x, y)


def _by_elements(transform: Any, x: Tensor, y: Tensor, slope: Tensor) -> Tensor:
    return slope / _pullback(y, x, torch.ones_like(y))


def _by_jacobian(transform: Any, x: Tensor, y: Tensor, slope: Tensor) -> Tensor:
    events = transform.domain.event_dim
    outputs = y.flatten(-transform.codomain.event_dim).unbind(-1)
    jacobian = torch.stack([_pullback(output.sum(), x).flatten(-events) for output in outputs], -2)
    return _solved(jacobian, slope.flatten(-events)).reshape(y.shape)


@stepped.register(ComposeTransform)
def _(transform: Any, x: Tensor) -> tuple[Tensor, Back]:
    if transform._cache_size:  # it keeps its own pass, by which it is scored
        return stepped.dispatch(object)(transform, x)
    backs = []
    for part in transform.parts:
        x, back = stepped(part, x)
        backs.append(back)
    return x, lambda slope: reduce(lambda b, back: back(b), backs, slope)


@stepped.register(IndependentTransform)
def _(transform: Any, x: Tensor) -> tuple[Tensor, Back]:
    return stepped(transform.base_transform, x)


@stepped.register(AffineTransform)
def _(transform: Any, x: Tensor) -> tuple[Tensor, Back]:
    return transform(x), lambda slope: slope / transform.scale


@stepped.register(transforms.Permute)
def _(transform: Any, x: Tensor) -> tuple[Tensor, Back]:
    return transform(x), lambda slope: slope.index_select(transform.dim, transform.permutation)


@stepped.register(ConditionedPlanar)
def _(transform: Any, x: Tensor) -> tuple[Tensor, Back]:
    """J = I + û h wᵀ, h = 1 − tanh²(w·x + b), whose inverse is of the same form (Sherman & Morrison 1950)."""

    def back(slope: Tensor) -> Tensor:
        params: Any = transform._params() if callable(transform._params) else transform._params
        bias, u, w = params
        u_hat = transform.u_hat(u, w)
        h = 1 - torch.tanh((w * x).sum(-1, keepdim=True) + bias).square()
        return slope - w * h * (u_hat * slope).sum(-1, keepdim=True) / (1 + h * (w * u_hat).sum(-1, keepdim=True))

    return transform(x), back


@stepped.register(transforms.AffineCoupling)
def _(transform: Any, x: Tensor) -> tuple[Tensor, Back]:
    """y₁ = x₁, y₂ = μ(x₁) + σ(x₁) x₂, so that g₂ = b₂ / σ and g₁ = b₁ − ∂(g₂·y₂)/∂x₁."""
    dim, at, y = transform.dim, transform.split_dim, transform(x)

    def of_second(v: Tensor, part: int) -> Tensor:
        kept = torch.zeros_like(y.tensor_split([at], dim)[0])
        return _pullback(y, x, torch.cat([kept, v], dim)).tensor_split([at], dim)[part]

    def back(slope: Tensor) -> Tensor:
        first, second = slope.tensor_split([at], dim)
        second = second / of_second(torch.ones_like(second), 1)
        return torch.cat([first - of_second(second, 0), second], dim)

    return y, back


@stepped.register(transforms.AffineAutoregressive)
def _(transform: Any, x: Tensor) -> tuple[Tensor, Back]:
    network = masked_network(transform)
    if network is None:
        return stepped.dispatch(object)(transform, x)
    with watched(network) as passes:
        y = transform(x)
    if not passes:  # the transform had x already
        return y, partial(_by_jacobian, transform, x, y)
    bounds = (transform.log_scale_min_clip, transform.log_scale_max_clip)
    return y, lambda slope: MaskedStep(network, passes, x, bounds).by_value(slope)


def _pullback(y: Tensor, x: Tensor, v: Tensor | None = None) -> Tensor:
    return torch.autograd.grad(y, x, v, retain_graph=True, allow_unused=True, materialize_grads=True)[0]


def _solved(jacobian: Tensor, slope: Tensor) -> Tensor:
    """Return g with Jᵀ g = slope, where J is square, or has more rows than columns, as for a map onto a simplex.

    In the latter case g lies in the plane of the columns, in which alone the values move.
    """
    if jacobian.shape[-1] == jacobian.shape[-2]:
        return torch.linalg.solve(jacobian.mT, slope.unsqueeze(-1)).squeeze(-1)
    return (jacobian @ torch.linalg.solve(jacobian.mT @ jacobian, slope.unsqueeze(-1))).squeeze(-1)
