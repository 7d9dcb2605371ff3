"""Checks that the guide proposes what the model leaves latent: the one place where the two traces are compared."""

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from pyro import distributions as dist
from pyro.poutine import Trace
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import (
    ComposeTransform,
    Distribution,
    LKJCholesky,
    MixtureSameFamily,
    Transform,
    TransformedDistribution,
    VonMises,
    biject_to,
)
from torch.distributions import constraints as torch_constraints
from torch.distributions.constraints import Constraint

from pyro_vae.hardware import widest_float

PARTICLES = "pyro_vae: particles"  # the plate of particles; no program has a plate of this name
Site = Any  # a message of Pyro, whose TypedDict declares every entry optional
ONE_TURN = torch_constraints.interval(-math.pi, math.pi)
WHY = "so that no mean of log p(x, z) − log q(z | x) is a bound"


def sample_sites(trace: Trace, observed: bool | None = None) -> dict[str, Site]:
    """Return the sample sites of a trace by name: all of them, only the observed, or only the latent ones.

    ``pyro.deterministic`` records a value and a plate its indices; neither has a density, so both are left out.

    >>> import pyro
    >>> def model():
    ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...     pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(2.0))
    >>> list(sample_sites(pyro.poutine.trace(model).get_trace(), observed=False))
    ['z']
    """
    nodes = cast(Mapping[str, Site], trace.nodes)
    return {
        name: site
        for name, site in nodes.items()
        if site["type"] == "sample"
        and observed in (None, site["is_observed"])
        and not site["infer"].get("_deterministic")
        and not site_is_subsample(site)
    }


def changed(site: Site, **entries: Any) -> Site:
    """Return a copy of a site with some entries replaced."""
    return {**site, **entries}


def dim_of(plate: CondIndepStackFrame) -> int:
    """Return the dimension of a vectorised plate."""
    return cast(int, plate.dim)


def check_sites(model_trace: Trace, guide_trace: Trace, scales: bool = True, enumerated: bool = False) -> None:
    """Raise ValueError unless the guide proposes exactly the sites that the model leaves latent.

    The latent sites must have the same name in both, one shape, one mask, the same plates, supports that differ by
    single points at most, and, unless ``scales`` is False, one scale. A guide may draw points (``Delta``), and further
    sites that are marked auxiliary, of which these points are, as in an ``AutoNormal``, or whose density is masked. If
    sites are ``enumerated``, it may leave out those that are marked for it.

    >>> import pyro
    >>> run = lambda name: pyro.poutine.trace(lambda: pyro.sample(name, dist.Normal(0.0, 1.0))).get_trace()
    >>> check_sites(run("z"), run("Z"))
    Traceback (most recent call last):
        ...
    ValueError: the latent sites of model and guide differ: only in the model: ['z'], only in the guide: ['Z']; ...
    """
    latent, drawn = (sample_sites(trace, observed=False) for trace in (model_trace, guide_trace))
    proposed = {name for name, site in drawn.items() if not site["infer"].get("is_auxiliary")}
    latent = {n: s for n, s in latent.items() if not enumerated or n in proposed or not s["infer"].get("enumerate")}
    if latent.keys() != proposed:
        raise ValueError(_other_names(latent, proposed))
    if not latent and not sample_sites(model_trace):
        raise ValueError("the model has no sample site, so there is nothing to bound; write pyro.sample(..., obs=x)")
    _check_auxiliary(latent, drawn)
    check_draws(drawn)
    for name, site in latent.items():
        problem = _difference(site, drawn[name]) or (scales and _other_scale(site, drawn[name]))
        if problem:
            raise ValueError(f"site {name!r}: {problem}")


def _check_auxiliary(latent: Mapping[str, Site], drawn: Mapping[str, Site]) -> None:
    """Raise ValueError for auxiliary sites whose density counts, with no density of the model, or Jacobian, against it.

    Where z ~ q(z | u), p(x, z) / q(z | u) has the mean p(x) for each u; p(x, z) / (q(u) q(z | u)) has none.
    """
    counted = counted_auxiliary(drawn)
    if not counted:
        return
    points = [name for name in latent if is_point(drawn[name]["fn"])]
    misled = [name for name in points if is_misdeclared(latent[name]["fn"])]
    if misled and not any(is_misdeclared(drawn[name]["fn"]) for name in counted):
        supports = [known_support(latent[name]["fn"]) for name in misled]
        raise ValueError(
            f"the guide makes {misled} of draws {counted}, by the support that torch declares; the model's values lie "
            f"in {supports}, {WHY}; draw them in a guide of your own from a distribution over these values, such as a "
            "VonMises for an angle"
        )
    if sum(drawn[name]["value"].numel() for name in counted) > sum(free_numbers(latent[name]) for name in points):
        made = f"points of fewer numbers ({points})" if points else "no point (Delta)"
        raise ValueError(
            f"the guide draws {counted}, marked auxiliary, whose density counts, and makes {made} of it, unlike an "
            "AutoNormal: nothing stands against this density, so that the loss bounds nothing; leave it out by `with "
            "pyro.poutine.mask(mask=False):` around its pyro.sample"
        )


def counted_auxiliary(drawn: Mapping[str, Site]) -> list[str]:
    """Return the names of the sites of a guide that are marked auxiliary, and whose density is not masked."""
    return [name for name, site in drawn.items() if site["infer"].get("is_auxiliary") and not is_masked(site)]


def is_masked(site: Site) -> bool:
    """Return whether no element of a site counts."""
    return any(bool((~mask).all()) for mask in masks(site))


def check_order(model_trace: Trace, guide_trace: Trace) -> None:
    """Raise ValueError unless model and guide draw their sites in one order, in which KLs of single sites add up.

    >>> import pyro
    >>> drawn = lambda names: [pyro.sample(name, dist.Normal(0.0, 1.0)) for name in names]
    >>> run = lambda *names: pyro.poutine.trace(drawn).get_trace(names)
    >>> check_order(run("z1", "z2"), run("z2", "z1"))
    Traceback (most recent call last):
        ...
    ValueError: the model draws ['z1', 'z2'] and the guide ['z2', 'z1']; ...
    """
    latent = sample_sites(model_trace, observed=False)
    order = [name for name in sample_sites(guide_trace, observed=False) if name in latent]
    if order != list(latent):
        raise ValueError(
            f"the model draws {list(latent)} and the guide {order}; KLs of single sites need one order: change the "
            "guide's, or use Trace_ELBO or StickingTheLanding"
        )


def masks(site: Site) -> list[Tensor]:
    """Return the masks of a site and of its distribution, in a shape that broadcasts against its value.

    >>> import pyro
    >>> half = dist.Normal(torch.zeros(2), 1.0).mask(torch.tensor([True, False])).to_event(1)
    >>> masks(pyro.poutine.trace(lambda: pyro.sample("z", half)).get_trace().nodes["z"])
    [tensor([ True, False])]
    """
    if "masks" in site:  # a slice of the particles
        return site["masks"]
    found = [(site["mask"], getattr(site["fn"], "event_dim", 0))]
    found += [(fn._mask, fn.event_dim) for fn in layers(site["fn"]) if isinstance(fn, dist.MaskedDistribution)]
    return [
        torch.tensor(mask) if isinstance(mask, bool) else mask.reshape(mask.shape + (1,) * events)
        for mask, events in found
        if mask is not None and mask is not True
    ]


def layers(fn: Distribution) -> Iterator[Distribution]:
    """Yield a distribution and those that it wraps (events, masks, expansion), down to the transformed or plain one.

    >>> [type(layer).__name__ for layer in layers(dist.Normal(torch.zeros(2), 1.0).mask(False).to_event(1))]
    ['Independent', 'MaskedDistribution', 'Normal']
    """
    layer: Any = fn
    yield layer
    while hasattr(layer, "base_dist") and not isinstance(layer, TransformedDistribution):
        layer = layer.base_dist
        yield layer


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


def core(fn: Distribution) -> Distribution:
    """Return the innermost of the ``layers``.

    >>> core(dist.Delta(torch.zeros(2)).to_event(1))
    Delta(v: torch.Size([2]), log_density: torch.Size([2]))
    """
    *_, last = layers(fn)
    return last


def is_point(fn: Distribution) -> bool:
    """Return whether a distribution is a single point, as the sites of an AutoDelta are.

    >>> is_point(dist.Delta(torch.zeros(2)).to_event(1)), is_point(dist.Normal(0.0, 1.0))
    (True, False)
    """
    return isinstance(core(fn), dist.Delta)


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


def check_draws(sites: Mapping[str, Site]) -> None:
    """Raise ValueError for sites whose draws are known not to have the density by which they are scored.

    torch's LKJCholesky is one: for row i = 3, 4, … of a factor it draws a Beta(i − 3/2, ·), and Beta((i − 1) / 2, ·) is
    right (Lewandowski, Kurowicka and Joe 2009).

    >>> import pyro
    >>> check_draws(pyro.poutine.trace(lambda: pyro.sample("L", dist.LKJCholesky(3, 1.0))).get_trace().nodes)
    Traceback (most recent call last):
        ...
    ValueError: site 'L': torch draws an LKJCholesky of 3 or more rows from another distribution than it scores, ...
    """
    for name, site in sites.items():
        fn: Any = site.get("fn")
        while hasattr(fn, "base_dist"):
            fn = fn.base_dist
        if isinstance(fn, LKJCholesky) and fn.dim > 2 and _lkj_is_drawn_otherwise():
            raise ValueError(
                f"site {name!r}: torch draws an LKJCholesky of 3 or more rows from another distribution than it "
                "scores, so that weights of these draws belong to no p(x); take a guide that scores it and does not "
                "draw it, as AutoNormal"
            )


@functools.cache
def _lkj_is_drawn_otherwise() -> bool:
    return LKJCholesky(3)._beta.concentration1[2].item() != 1


def is_tracing() -> bool:
    """Return whether a graph is being traced, in which no value can be read."""
    return torch.compiler.is_compiling() or torch.compiler.is_exporting() or bool(torch._C._get_tracing_state())


def _other_names(latent: Mapping[str, Site], proposed: set[str]) -> str:
    names = [name for name in latent if name not in proposed]
    enumerated = [name for name in names if latent[name]["infer"].get("enumerate")]
    if enumerated:
        return (
            f"the latent sites of model and guide differ: {enumerated} are meant for enumeration "
            "(infer={'enumerate': ...}), and the guide does not draw them; evaluate, log_evidence and Pyro's "
            "TraceEnum_ELBO sum them out: take these, or have the guide draw them for "
            "ScoreFunction(K, 'leave-one-out')"
        )
    discrete = [name for name in names if getattr(latent[name]["fn"], "has_enumerate_support", False)]
    hint = f"; to enumerate {discrete} takes Pyro's TraceEnum_ELBO" if discrete else ""
    return (
        f"the latent sites of model and guide differ: only in the model: {sorted(names)}, only in the guide: "
        f"{sorted(proposed - latent.keys())}; give both sites one name, or observe the model's site{hint}"
    )


def _difference(model: Site, guide: Site) -> str | None:
    """Say how the model's and the guide's site of one name differ; None if they do not."""
    shapes = [_shape(site) for site in (model, guide)]
    events = [site["fn"].event_dim for site in (model, guide)]
    if events[0] != events[1]:
        return (
            f"its event has {events[0]} dimensions in the model and {events[1]} in the guide; call .to_event(n) alike "
            "in both"
        )
    if shapes[0] != shapes[1]:
        return f"its shape is {shapes[0]} in the model and {shapes[1]} in the guide; draw it in one shape in both"
    plates = [_plates(site["cond_indep_stack"]) for site in (model, guide)]
    if not _same_plates(*plates):
        words = [[f"{name!r} of {size} at dim {dim}" for name, (dim, size) in plate.items()] for plate in plates]
        return f"its plates are {words[0]} in the model and {words[1]} in the guide, {WHY}; draw it in the same plates"
    if not _same_masks(masks(model), masks(guide)):
        return (
            f"its mask in the model is not that in the guide, {WHY}; mask it alike in both, as in `with "
            "poutine.mask(mask=...)`"
        )
    if not _same_supports(model["fn"], guide["fn"]):
        return (
            f"its support is {known_support(model['fn'])} in the model and {known_support(guide['fn'])} in the guide, "
            f"{WHY} on all of p(x); draw it over the model's, as dist.TransformedDistribution(dist.Normal(loc, scale), "
            "[torch.distributions.biject_to(support)]) does"
        )
    return None


def _other_scale(model: Site, guide: Site) -> str | None:
    if same_scales(model["scale"], guide["scale"]):
        return None
    return (
        f"its scale is {number(model['scale'])} in the model and {number(guide['scale'])} in the guide, {WHY}, and "
        "log p(x, z) − log q(z | x) is not an importance weight; scale it alike in both"
    )


def _shape(site: Site) -> tuple[int, ...]:
    """Return the shape of a particle's value, without leading dimensions of size one, which broadcasting adds."""
    fn = site["fn"]
    particles = [frame.dim for frame in site["cond_indep_stack"] if frame.name == PARTICLES]
    batch = fn.batch_shape[max(0, len(fn.batch_shape) + particles[0] + 1) :] if particles else fn.batch_shape
    first = next((i for i, size in enumerate(batch) if size != 1), len(batch))
    return (*batch[first:], *fn.event_shape)


def _plates(stack: tuple[CondIndepStackFrame, ...]) -> dict[str, tuple[int | None, int]]:
    return {frame.name: (frame.dim, frame.size) for frame in stack if frame.vectorized and frame.name != PARTICLES}


def _same_plates(one: Mapping[str, tuple[int | None, int]], other: Mapping[str, tuple[int | None, int]]) -> bool:
    if one == other:
        return True
    pairs = [(one[name], other[name]) for name in one if name in other]
    alike = [a[0] == b[0] and (a[1] == b[1] or -1 in (a[1], b[1])) for a, b in pairs]  # -1: any size
    return one.keys() == other.keys() and all(alike)


def _same_masks(one: list[Tensor], other: list[Tensor]) -> bool:
    if is_tracing() or (len(one) == len(other) and all(a is b for a, b in zip(one, other))):
        return True
    device = (one or other)[0].device
    return torch.equal(*torch.broadcast_tensors(_all(one, device), _all(other, device)))


def _all(found: list[Tensor], device: torch.device) -> Tensor:
    return functools.reduce(torch.logical_and, found, torch.tensor(True, device=device))


def same_scales(one: Tensor | float, other: Tensor | float) -> bool:
    """Return whether two scales, numbers or tensors, are equal up to rounding; traced tensors are not read."""
    if not (torch.is_tensor(one) or torch.is_tensor(other)):
        return math.isclose(one, other)
    return one is other or is_tracing() or _close(one, other)


def number(scale: Tensor | float) -> str:
    """Describe a scale in words, for messages."""
    if isinstance(scale, Tensor) and scale.numel() > 1:
        return f"a tensor of shape {tuple(scale.shape)}"
    return f"{float(scale):.4g}"


def _close(one: Tensor | float, other: Tensor | float) -> bool:
    one, other = (torch.as_tensor(value) for value in (one, other))
    one, other = (value.to(widest_float(value.device)) for value in (one, other))
    try:
        return torch.allclose(*torch.broadcast_tensors(one, other.to(one.device)))
    except RuntimeError:  # shapes that do not broadcast
        return False


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


def _same_supports(model: Distribution, guide: Distribution) -> bool:
    """Return whether two supports differ by single points at most, as far as known; a point proposes its own value."""
    if is_point(guide) or is_point(model):
        return True
    one, other = known_support(model), known_support(guide)
    return one is None or other is None or _same_sets(one, other)


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


class PartOf(Constraint):
    """Less than a set: what a bijective transform makes of a base that is less than its domain."""

    def __init__(self, whole: Constraint | None):
        self.whole = whole

    def __repr__(self) -> str:
        return f"a part of {self.whole}"


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
            return one is other or is_tracing() or all(map(_close, _bounds(one), _bounds(other)))
    known = all(type(support).__module__.startswith(("torch.", "pyro.")) for support in (one, other))
    return isinstance(one, type(other)) or isinstance(other, type(one)) or not known


def _bounds(support: Constraint) -> tuple[Any, Any]:
    if support is torch_constraints.boolean:
        return 0, 1
    return getattr(support, "lower_bound", -math.inf), getattr(support, "upper_bound", math.inf)
