"""Checks that the guide proposes what the model leaves latent: the one place where the two traces are compared."""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from pyro.poutine import Trace
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor
from torch.distributions import LKJCholesky

from pyro_vae.tracing.messages import PARTICLES, Site, is_masked, is_point, masks, sample_sites
from pyro_vae.tracing.numbers import is_tracing, number, same_numbers
from pyro_vae.tracing.supports import free_numbers, is_misdeclared, known_support, same_supports

WHY = "so that no mean of log p(x, z) − log q(z | x) is a bound"


def check_sites(model_trace: Trace, guide_trace: Trace, scales: bool = True, enumerated: bool = False) -> None:
    """Raise ValueError unless the guide proposes exactly the sites that the model leaves latent.

    The latent sites must have the same name in both, one shape, one mask, the same plates, supports that differ by
    single points at most, and, unless ``scales`` is False, one scale. A guide may draw points (``Delta``), and further
    sites that are marked auxiliary, of which these points are, as in an ``AutoNormal``, or whose density is masked. If
    sites are ``enumerated``, it may leave out those that are marked for it.

    >>> import pyro
    >>> import pyro.distributions as dist
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


def check_order(model_trace: Trace, guide_trace: Trace) -> None:
    """Raise ValueError unless model and guide draw their sites in one order, in which KLs of single sites add up.

    >>> import pyro
    >>> import pyro.distributions as dist
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


def check_draws(sites: Mapping[str, Site]) -> None:
    """Raise ValueError for sites whose draws are known not to have the density by which they are scored.

    torch's LKJCholesky is one: for row i = 3, 4, … of a factor it draws a Beta(i − 3/2, ·), and Beta((i − 1) / 2, ·) is
    right (Lewandowski, Kurowicka and Joe 2009).

    >>> import pyro
    >>> import pyro.distributions as dist
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
    if not same_supports(model["fn"], guide["fn"]):
        return (
            f"its support is {known_support(model['fn'])} in the model and {known_support(guide['fn'])} in the guide, "
            f"{WHY} on all of p(x); draw it over the model's, as dist.TransformedDistribution(dist.Normal(loc, scale), "
            "[torch.distributions.biject_to(support)]) does"
        )
    return None


def _other_scale(model: Site, guide: Site) -> str | None:
    if same_numbers(model["scale"], guide["scale"]):
        return None
    sizes = [
        {frame.name: frame.full_size or frame.size for frame in site["cond_indep_stack"]} for site in (model, guide)
    ]
    for name, size in sizes[0].items():
        if (other := sizes[1].get(name, size)) != size:
            return (
                f"its plate {name!r} is of {size} rows in the model and of {other} in the guide, {WHY}; give it one "
                "size in both. An automatic guide keeps the rows of its first call: make one for these rows"
            )
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
