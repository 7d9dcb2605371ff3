"""The base noise of a draw: what a distribution turns into a value by a map that depends on its parameters."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, TransformedDistribution

from pyro_vae.tracing.matching import core

_OF_LOC_AND_SCALE = torch.distributions.Normal, torch.distributions.Laplace, torch.distributions.Cauchy
_GAUSSIAN = torch.distributions.MultivariateNormal, torch.distributions.LowRankMultivariateNormal


def redrawn(fn: Distribution, value: Tensor) -> Tensor | None:
    """Return ``value`` as the draw T(ε; θ) that ``fn`` makes of the noise ε = T⁻¹(value; θ), with the path to θ.

    None where no such map is known: it is for Gaussian, Laplace and Cauchy distributions, and for those that a map of
    each element makes of one.

    >>> loc = torch.zeros(2, requires_grad=True)
    >>> z = redrawn(dist.Normal(loc, 1.0).to_event(1), torch.tensor([3.0, 4.0]))
    >>> z.detach(), torch.autograd.grad(z.sum(), loc)
    (tensor([3., 4.]), (tensor([1., 1.]),))
    """
    inside: Any = core(fn)
    if isinstance(inside, _OF_LOC_AND_SCALE):
        return inside.loc + inside.scale * ((value - inside.loc) / inside.scale).detach()
    if isinstance(inside, _GAUSSIAN):
        off = (value - inside.loc).unsqueeze(-1)
        noise = torch.linalg.solve_triangular(inside.scale_tril, off, upper=False).detach()
        return inside.loc + (inside.scale_tril @ noise).squeeze(-1)
    if isinstance(inside, TransformedDistribution) and all(map(_is_by_element, inside.transforms)):
        base = value
        for transform in reversed(inside.transforms):
            base = transform.inv(base)
        drawn = redrawn(inside.base_dist, base.detach())
        for transform in inside.transforms:
            drawn = None if drawn is None else transform(drawn)
        return drawn
    return None


def _is_by_element(transform: Any) -> bool:
    return transform.bijective and transform.domain.event_dim == 0
