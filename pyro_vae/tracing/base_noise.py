"""The base noise of a draw: what a distribution turns into a value by a map that depends on its parameters."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import Distribution, TransformedDistribution

from pyro_vae.tracing.messages import Site, core

_OF_LOC_AND_SCALE = torch.distributions.Normal, torch.distributions.Laplace, torch.distributions.Cauchy
_GAUSSIAN = torch.distributions.MultivariateNormal, torch.distributions.LowRankMultivariateNormal


def redrawn(fn: Distribution, value: Tensor) -> Tensor | None:
    """Return ``value`` as the draw T(ε; θ) that ``fn`` makes of the noise ε = T⁻¹(value; θ), with the path to θ.

    None where no such map is known: it is for Gaussian, Laplace and Cauchy distributions, and for those that a map of
    each element makes of one.

    >>> import pyro.distributions as dist
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
        base: Any = value
        for transform in reversed(inside.transforms):
            base = transform.inv(base)
        drawn = redrawn(inside.base_dist, base.detach())
        return None if drawn is None else _through(inside.transforms, drawn)
    return None


def drawn_from(fn: Distribution, uniforms: Tensor) -> Tensor:
    """Return the draw of ``fn`` that is made of independent uniform numbers in (0, 1), with a path where it has one.

    ``uniforms`` have the shape of a draw. Elements are drawn by the inverse of their distribution function. Raises
    ValueError for a distribution of which no such map is known.

    >>> import pyro.distributions as dist
    >>> drawn_from(dist.Normal(1.0, 2.0), torch.tensor(0.5)), drawn_from(dist.Bernoulli(0.3), torch.tensor(0.2))
    (tensor(1.), tensor(1.))
    """
    inside: Any = core(fn)
    if isinstance(inside, torch.distributions.Bernoulli):
        return (uniforms < inside.probs).to(inside.probs.dtype)
    if isinstance(inside, torch.distributions.Categorical):
        return _category(inside.probs, uniforms)
    if isinstance(inside, torch.distributions.OneHotCategorical):
        category = _category(inside.probs, uniforms[..., 0])
        return torch.nn.functional.one_hot(category, inside.probs.shape[-1]).to(inside.probs.dtype)
    if isinstance(inside, _GAUSSIAN):
        return made_of(inside, lambda like: torch.special.ndtri(uniforms))
    if isinstance(inside, TransformedDistribution) and not all(map(_is_by_element, inside.transforms)):
        return _through(inside.transforms, drawn_from(inside.base_dist, uniforms))
    try:
        return cast(Tensor, inside.icdf(uniforms))
    except NotImplementedError:
        raise ValueError(
            f"{type(inside).__name__} has no known map from uniform numbers to its draws; take the estimator without "
            "antithetic or quasi-random draws"
        ) from None


def made_of(fn: Distribution, noise: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the draw of ``fn`` that is made of standard normal noise; ``noise`` gives it in the shape of a tensor.

    Raises ValueError unless ``fn`` is Gaussian, or a map of a Gaussian distribution.

    >>> import pyro.distributions as dist
    >>> made_of(dist.Normal(torch.ones(2), 2.0).to_event(1), torch.zeros_like)
    tensor([1., 1.])
    """
    inside: Any = core(fn)
    if isinstance(inside, torch.distributions.Normal):
        return inside.loc + inside.scale * noise(inside.loc)
    if isinstance(inside, _GAUSSIAN):
        return inside.loc + (inside.scale_tril @ noise(inside.loc).unsqueeze(-1)).squeeze(-1)
    if isinstance(inside, TransformedDistribution):
        return _through(inside.transforms, made_of(inside.base_dist, noise))
    raise ValueError(
        f"{type(inside).__name__} is no map of Gaussian noise, which this estimator expands the bound in; take "
        "StickingTheLanding, or a guide such as AutoNormal"
    )


def of_fns(site: Site, parameter: Callable[[Any], Tensor]) -> Tensor:
    """Return a parameter of the innermost distribution of a guide's or model's latent site, in the value's shape.

    The particles that ran one after the other have distributions of their own.

    >>> import pyro.distributions as dist
    >>> of_fns({"fn": dist.Normal(2.0, 1.0), "value": torch.zeros(3)}, lambda fn: fn.loc)
    tensor([2., 2., 2.])
    """
    values = site.get("values", [site["value"]])
    parts = [parameter(core(fn)).expand(value.shape) for fn, value in zip(site.get("fns", [site["fn"]]), values)]
    return parts[0] if len(parts) == 1 else torch.stack(parts).reshape(site["value"].shape)


def _through(transforms: Any, value: Any) -> Any:
    for transform in transforms:
        value = transform(value)
    return value


def _category(probs: Tensor, uniforms: Tensor) -> Tensor:
    return (probs.cumsum(-1)[..., :-1] < uniforms.unsqueeze(-1)).sum(-1)


def _is_by_element(transform: Any) -> bool:
    return transform.bijective and transform.domain.event_dim == 0
