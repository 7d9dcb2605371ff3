"""Where the values of a distribution lie, up to single points, also where torch and Pyro declare more than that."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor
from torch.distributions import (
    ComposeTransform,
    Distribution,
    MixtureSameFamily,
    Transform,
    TransformedDistribution,
    VonMises,
    biject_to,
)
from torch.distributions import constraints as torch_constraints
from torch.distributions.constraints import Constraint

from pyro_vae.tracing.messages import Site, core, is_point
from pyro_vae.tracing.numbers import is_tracing, same_numbers

ONE_TURN = torch_constraints.interval(-math.pi, math.pi)
# The support of a distribution, up to single points: an interval, a range of whole numbers, or a set by its kind.
_INTERVALS = (
    type(torch_constraints.real),
    torch_constraints.greater_than,
    torch_constraints.greater_than_eq,
    torch_constraints.less_than,
    torch_constraints.interval,
    torch_constraints.half_open_interval,
)
_ANGLES = VonMises, dist.SineBivariateVonMises
_WHOLE_NUMBERS = (
    torch_constraints.integer_interval,
    type(torch_constraints.nonnegative_integer),
    type(torch_constraints.boolean),
    type(dist.constraints.integer),
)


def known_support(fn: Distribution) -> Constraint | None:
    """Return the support of an element or event; None if it is unknown, as after some transforms of torch or Pyro."""
    fn = core(fn)
    if isinstance(fn, _ANGLES):  # torch and Pyro call their support real
        return ONE_TURN
    if isinstance(fn, MixtureSameFamily):
        return _of_all(known_support(fn.component_distribution), -1 - len(fn.event_shape))
    try:
        if not isinstance(fn, TransformedDistribution) or type(fn).support is not TransformedDistribution.support:
            return _bare(fn.support)
        support = known_support(fn.base_dist)
        for transform in _single(fn.transforms):
            if support is None:
                return None
            whole = _same_sets(support, _bare(transform.domain))
            support = _bare(transform.codomain) if whole else _image(transform, support)
        return support
    except (NotImplementedError, AttributeError):
        return None


def same_supports(model: Distribution, guide: Distribution) -> bool:
    """Return whether two supports differ by single points at most, as far as known; a point proposes its own value."""
    if is_point(guide) or is_point(model):
        return True
    one, other = known_support(model), known_support(guide)
    return one is None or other is None or _same_sets(one, other)


def moves_freely(fn: Distribution) -> bool:
    """Return whether a draw can move in every direction: its support is known not to be a surface, such as a simplex.

    >>> moves_freely(dist.Normal(torch.zeros(3), 1.0)), moves_freely(dist.Dirichlet(torch.ones(3)))
    (True, False)
    """
    return isinstance(known_support(fn), _INTERVALS)


def is_misdeclared(fn: Distribution) -> bool:
    """Return whether the values of a distribution lie in less than the support that it declares, or may.

    The declared support of a transformed distribution is the codomain of its last transform, that of an angle is real.

    >>> is_misdeclared(dist.VonMises(0.0, 1.0)), is_misdeclared(dist.LogNormal(0.0, 1.0))
    (True, False)
    """
    fn = core(fn)
    known, declared = known_support(fn), None
    if isinstance(fn, TransformedDistribution | MixtureSameFamily) or known is ONE_TURN:
        declared = _bare(fn.support)
    return declared is not None and (known is None or not _same_sets(known, declared))


def free_numbers(site: Site) -> int:
    """Return how many real numbers the value of a site has without its bounds, as far as these are known.

    >>> import pyro
    >>> free_numbers(pyro.poutine.trace(lambda: pyro.sample("z", dist.Dirichlet(torch.ones(3)))).get_trace().nodes["z"])
    2
    """
    shape = site["value"].shape
    try:
        return math.prod(biject_to(site["fn"].support).inverse_shape(shape))
    except NotImplementedError:
        return math.prod(shape)


class PartOf(Constraint):
    """Less than a set: what a bijective transform makes of a base that is less than its domain."""

    def __init__(self, whole: Constraint | None):
        self.whole = whole

    def __repr__(self) -> str:
        return f"a part of {self.whole}"


def _image(transform: Transform, support: Constraint) -> Constraint | None:
    """Return what a transform makes of an interval that is less than its domain; None where that is unknown."""
    if not (isinstance(support, _INTERVALS) and transform.bijective):
        return None
    if transform.domain.event_dim:
        return PartOf(_bare(transform.codomain))
    uncached: Any = transform.with_cache(0)  # a call would replace the last value, of which the Jacobian is asked
    ends = [uncached(torch.as_tensor(end)) for end in _bounds(support)]
    return _interval(torch.minimum(*ends), torch.maximum(*ends))


def _of_all(support: Constraint | None, dim: int) -> Constraint | None:
    """Return the interval around those of the parts of a mixture, which lie in a dimension."""
    ends = [torch.as_tensor(end) for end in _bounds(support)] if isinstance(support, _INTERVALS) else []
    if not any(end.dim() >= -dim for end in ends):
        return support
    low, high = torch.broadcast_tensors(*ends)
    return _interval(low.amin(dim), high.amax(dim))


def _interval(low: Tensor, high: Tensor) -> Constraint:
    """Return an interval, by that of torch's kinds for which there is a transform if it has no end."""
    if not is_tracing() and any(bool(end.isinf().any() and end.isfinite().any()) for end in (low, high)):
        return PartOf(torch_constraints.real)
    endless = [not is_tracing() and bool(end.isinf().all()) for end in (low, high)]
    if all(endless):
        return torch_constraints.real
    if endless[0]:
        return torch_constraints.less_than(high)
    return torch_constraints.greater_than(low) if endless[1] else torch_constraints.interval(low, high)


def _single(transforms: list) -> Iterator[Any]:
    """Yield transforms one by one, including the parts of composed ones."""
    for transform in transforms:
        yield from _single(transform.parts) if isinstance(transform, ComposeTransform) else (transform,)


def _bare(support: Any) -> Any:
    """Return the support of a single element, for independent elements and mixtures."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    unknown = isinstance(support, torch_constraints.cat | torch_constraints.stack)
    return None if unknown or torch_constraints.is_dependent(support) else support


def _same_sets(one: Constraint, other: Constraint) -> bool:
    """Return whether two supports of elements are equal up to single points; True if that is unknown."""
    for part, whole in ((one, other), (other, one)):
        if isinstance(part, PartOf) and part.whole is not None and not isinstance(whole, PartOf):
            return not _same_sets(part.whole, whole)
    for kinds in (_INTERVALS, _WHOLE_NUMBERS):
        if isinstance(one, kinds) and isinstance(other, kinds):
            return one is other or all(map(same_numbers, _bounds(one), _bounds(other)))
    known = all(type(support).__module__.startswith(("torch.", "pyro.")) for support in (one, other))
    return isinstance(one, type(other)) or isinstance(other, type(one)) or not known


def _bounds(support: Constraint) -> tuple[Any, Any]:
    if support is torch_constraints.boolean:
        return 0, 1
    return getattr(support, "lower_bound", -math.inf), getattr(support, "upper_bound", math.inf)
