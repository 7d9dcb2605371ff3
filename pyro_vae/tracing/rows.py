"""The dimension of a program's rows, and the weight of each row: log p(x, z) − log q(z | x)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.util import site_is_factor
from torch import Tensor

from pyro_vae.errors import NoBound, warn
from pyro_vae.tracing.matching import counted_auxiliary
from pyro_vae.tracing.messages import PARTICLES, Site, core, dim_of, is_masked, is_point, sample_sites
from pyro_vae.tracing.numbers import is_tracing, number, same_numbers
from pyro_vae.tracing.probing import tensors
from pyro_vae.tracing.supports import free_numbers


def count_rows(args: Sequence, kwargs: Mapping | None = None) -> int | None:
    """Return the rows of the first tensor among the arguments that has a dimension; None if there is none.

    >>> count_rows((True, [torch.zeros(3, 2)]))
    3
    """
    return next((len(tensor) for tensor in tensors((args, kwargs or {})) if tensor.dim()), None)


def shared_plates(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> list[CondIndepStackFrame]:
    """Return the plates that contain every sample site of a scored program, except that of particles; innermost first.

    A plate without a given size takes that of the log-probabilities; a site that has a single value for all of the
    plate is not inside it. Raises ValueError if no plate is shared: single images then have no weight.
    """
    sites = {**sample_sites(guide_trace, observed=False), **sample_sites(model_trace)}
    both = [*sample_sites(guide_trace, observed=False).values(), *sample_sites(model_trace).values()]
    shared = []
    for frame in both[0]["cond_indep_stack"]:
        if frame.vectorized and frame.name != PARTICLES:
            size = frame.size if frame.size > 0 else max(_extent(site, dim_of(frame)) for site in both)
            if all(_lies_in(site, frame, size) for site in both):
                shared.append(frame._replace(size=size))
    if not shared:
        plates = {name: [frame.name for frame in site["cond_indep_stack"]] for name, site in sites.items()}
        raise ValueError(
            f"the sample sites do not share a plate over images, so no image has a weight of its own: {plates}; "
            'put every site into one plate, as in `with pyro.plate("images", len(x)):`, or train by Trace_ELBO, '
            "StickingTheLanding or ScoreFunction under pyro.infer.SVI, with pyro_vae.parameter_sites(self) in model "
            "and guide, and measure by log_evidence, which weighs all images together"
        )
    return sorted(shared, key=dim_of, reverse=True)


def image_plate(
    model_trace: poutine.Trace, guide_trace: poutine.Trace, images: int | None = None
) -> CondIndepStackFrame:
    """Return the plate over images that contains every sample site; ``images`` is their number, if it is known.

    Raises ValueError if there is none, or if two plates are possible. ``ProgramRuns.plate`` uses further batches.
    """
    shared = shared_plates(model_trace, guide_trace)
    return shared[0] if len(shared) == 1 and images is None else the_one(shared, images)


def per_image(site: Site, plate: CondIndepStackFrame | None) -> Tensor:
    """Return the log-probability of a site, summed to shape (K, B) or, if it has no particles, (1, B).

    Without a plate over images the sum is over all of them, and B is 1.
    """
    log_prob = site["log_prob"]
    particles = {frame.dim for frame in site["cond_indep_stack"] if frame.name == PARTICLES}
    kept = particles | (set() if plate is None else {plate.dim})
    rest = [dim for dim in range(-log_prob.dim(), 0) if dim not in kept]
    log_prob = log_prob.sum(rest) if rest else log_prob
    if plate is None:
        return log_prob.reshape(-1, 1)
    return log_prob if len(kept) == 2 else log_prob.unsqueeze(0)


def proposal_sites(guide_trace: poutine.Trace, points_too: bool = False) -> dict[str, Site]:
    """Return the sites of a guide whose densities make up q(z | x): those that are drawn and not observed.

    Raises ValueError for a factor, with which log q(z | x) is no density. Unless ``points_too``, it also raises
    ValueError for sites that are points, as those of AutoDelta: their ELBO is log p(x, z), and no draw has a weight.
    """
    factors = [name for name, site in sample_sites(guide_trace, observed=True).items() if site_is_factor(site)]
    if factors:
        raise ValueError(
            f"the factors {factors} of the guide leave no density q(z | x) for the weights of its draws; give a draw "
            "its density at its site, as dist.Delta(value, log_density=...) does, or train by StickingTheLanding"
        )
    drawn = sample_sites(guide_trace, observed=False)
    points = {name: site for name, site in drawn.items() if is_point(site["fn"])}
    if points and not points_too and (len(points) == len(drawn) or any(map(_is_one_point, points.values()))):
        raise ValueError(
            f"the guide proposes single points at the sites {list(points)}, which have no density for "
            "weights; draw them from a distribution, as AutoNormal does, or train by Trace_ELBO or StickingTheLanding"
        )
    return drawn


def points_without_density(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> tuple[str, ...]:
    """Return the sites of a guide that are single points, as in an AutoDelta, where their loss bounds no log p(x).

    The ELBO of a point z is log p(x, z), which counts in units of z: it may be of any size. Two kinds of points have a
    bound: those of whole numbers, since a mass p(x, z) is at most p(x); and those that have a density, either by their
    ``log_density`` or by auxiliary draws, as many as the points have numbers, as in an AutoNormal.

    >>> import pyro
    >>> import pyro.distributions as dist
    >>> model = lambda: pyro.sample("z", dist.Normal(0.0, 1.0))
    >>> guides = [lambda d=d: pyro.sample("z", dist.Delta(torch.zeros(()), log_density=d)) for d in (0.0, 1.5)]
    >>> run = lambda program: poutine.trace(program).get_trace()
    >>> [points_without_density(run(model), run(guide)) for guide in guides]
    [('z',), ()]
    """
    if is_tracing():
        return ()
    latent, drawn = (sample_sites(trace, observed=False) for trace in (model_trace, guide_trace))
    points = {name: site for name, site in drawn.items() if is_point(site["fn"])}
    bare = [name for name, site in points.items() if _is_bare_point(site, latent.get(name))]
    numbers = {name: free_numbers(latent.get(name, site)) for name, site in points.items()}
    draws = sum(drawn[name]["value"].numel() for name in counted_auxiliary(drawn) if name not in points)
    spent = sum(numbers[name] for name, site in points.items() if _has_density(site))  # a Jacobian
    return tuple(bare) if sum(numbers[name] for name in bare) > max(0, draws - spent) else ()


def warn_of_points(names: Sequence[str]) -> None:
    """Warn that what is called a bound is none, where there are such ``points_without_density``."""
    if names:
        warn(
            f"the guide has single points without a density at the sites {list(names)}: what is called the bound is "
            "log p(x, z) at these points, which depends on the units of z, and bounds no log p(x). To train by it is "
            "MAP estimation; for a bound take a guide that draws from a density, such as AutoNormal",
            NoBound,
        )


def log_weights(
    model_trace: poutine.Trace,
    guide_trace: poutine.Trace,
    images: int | None = None,
    plate: CondIndepStackFrame | None = None,
) -> Tensor:
    """Return log w = log p(x, z) − log q(z | x), shape (K, B), in nats; ``images`` is B, if it is known.

    ``plate`` is the plate over images; by default ``image_plate`` finds it. A scale that all sites share (a plate that
    subsamples, a weight of each row) is divided out. Raises ValueError if the scales differ (a KL weight), which leaves
    no importance weight, if the sites share no plate, and if the guide has no density.
    """
    plate = image_plate(model_trace, guide_trace, images) if plate is None else plate
    log_p: Any = sum(per_image(site, plate) for site in sample_sites(model_trace).values())
    log_q: Any = sum(per_image(site, plate) for site in proposal_sites(guide_trace).values())
    return (log_p - log_q) / common_scale(model_trace, guide_trace, plate=plate)


def spread(values: Tensor, site: Site, plate: CondIndepStackFrame) -> Tensor:
    """Reshape values (K, B), one per particle and image, to broadcast against the value of a site.

    It is the reverse of ``per_image``: particles and images take their plates' dimensions, all others have size one.
    """
    particles = [frame.dim for frame in site["cond_indep_stack"] if frame.name == PARTICLES]
    rows = dim_of(plate)
    shape = [1] * max(-dim for dim in (rows - 1, *particles))
    shape[rows] = values.shape[1]
    shape[min(particles, default=-len(shape))] = values.shape[0]
    return values.reshape(shape + [1] * site["fn"].event_dim)


def common_scale(*traces: poutine.Trace, plate: CondIndepStackFrame | None = None) -> float | Tensor:
    """Return the scale that all sample sites share: a number, or a weight of each row, (B,).

    ``plate`` is the plate over images, needed if the scale is a tensor of rows; by default ``image_plate`` of the
    model's and the guide's trace finds it. Raises ValueError if the scales differ.
    """
    every = [site["scale"] for trace in traces for site in sample_sites(trace).values()] or [1.0]
    of_rows = [scale for scale in every if torch.is_tensor(scale) and scale.numel() > 1]
    if not all(same_numbers(scale, every[0]) for scale in every):
        scales = {name: number(site["scale"]) for trace in traces for name, site in sample_sites(trace).items()}
        raise ValueError(
            f"the sites of the program are scaled differently ({scales}), so that log p(x, z) − log q(z | x) is not an "
            "importance weight; remove the KL weight or the differing plate subsampling, or train with Trace_ELBO"
        )
    scale = (
        _row_scale(of_rows[0], image_plate(traces[0], traces[1]) if plate is None else plate)
        if of_rows
        else float(every[0])
    )
    if not is_tracing() and not bool(torch.as_tensor(scale > 0).all()):
        raise ValueError("the sites are scaled by 0, so that no weight is left; leave such rows out of the batch")
    return scale


def rows_in_all(plate: CondIndepStackFrame) -> int:
    """Return the number of rows that a plate stands for: if it subsamples, those of the full data.

    >>> rows_in_all(CondIndepStackFrame("rows", -1, size=16, counter=0, full_size=40))
    40
    """
    known = plate.full_size is not None and plate.full_size > 0
    return int(plate.full_size if known else plate.size)  # pyright: ignore[reportArgumentType]


def common_weight(*traces: poutine.Trace) -> float | Tensor | None:
    """Return the factor by which all sample sites are scaled beside plates that subsample; None if it differs.

    A plate scales by full size / size, so that the ELBO is on average that of the full data. A factor of all sites in
    plates alone, beside latent variables outside, is taken for that as well, given by hand. Where sites have other
    factors, such as a KL weight, minus the loss is no bound on log p(x).

    >>> import pyro
    >>> import pyro.distributions as dist
    >>> site = lambda: pyro.sample("z", dist.Normal(torch.zeros(2), 1.0))
    >>> subsampled = pyro.plate("rows", 8, subsample_size=2)(site)
    >>> [common_weight(poutine.trace(each).get_trace()) for each in (subsampled, poutine.scale(subsampled, 0.5))]
    [1.0, 0.5]
    """
    sites = [site for trace in traces for site in sample_sites(trace).values()]
    factors: dict[bool, list[float | Tensor]] = {True: [], False: []}
    for site in sites:
        in_plate = any(frame.vectorized and frame.name != PARTICLES for frame in site["cond_indep_stack"])
        factors[in_plate].append(site["scale"] / _scale_of_plates(site))
    within, outside = factors[True], factors[False]
    if within and outside and all(same_numbers(factor, 1.0) for factor in outside) and _alike(within):
        return 1.0
    return (within + outside + [1.0])[0] if _alike(within + outside) else None


def _alike(factors: Sequence[float | Tensor]) -> bool:
    return all(same_numbers(factor, factors[0]) for factor in factors)


def the_one(shared: Sequence[CondIndepStackFrame], images: int | None) -> CondIndepStackFrame:
    """Return the plate with this number of images; raise ValueError if there is none, or if two are possible."""
    fitting = [plate for plate in shared if images in (None, plate.size, plate.full_size)]
    if not fitting:
        sizes = ", ".join(f"{frame.name!r} of {frame.size}" for frame in shared)
        raise ValueError(f"no plate that all sample sites share is one over the {images} images: {sizes}")
    if len(fitting) > 1 and {plate.size for plate in fitting} != {1}:
        names = " or ".join(f"{plate.name!r} (dim {plate.dim})" for plate in fitting)
        why = f"each has {images} elements, the rows of x; "
        if images is None:
            why = "no argument tells the number of rows; give x as an argument of model and guide, or "
        raise ValueError(
            f"the rows could be the plate {names}: all sample sites share them, and {why}make the other one a "
            "dimension of each event, with .to_event(1) in place of its plate"
        )
    return fitting[0]


def _scale_of_plates(site: Site) -> float:
    subsampling = [frame for frame in site["cond_indep_stack"] if frame.size > 0]
    return math.prod(rows_in_all(frame) / float(frame.size) for frame in subsampling)


def _extent(site: Site, dim: int) -> int:
    log_prob = site["log_prob"]
    return log_prob.shape[dim] if log_prob.dim() >= -dim else 1


def _lies_in(site: Site, plate: CondIndepStackFrame, size: int) -> bool:
    known = any((frame.name, frame.dim) == (plate.name, plate.dim) for frame in site["cond_indep_stack"])
    return known and (plate.size > 0 or _extent(site, dim_of(plate)) == size)


def _is_bare_point(site: Site, latent: Site | None) -> bool:
    """Return whether a guide's point has no density; ``latent`` is the model's site of its name."""
    if is_masked(site) or _has_density(site):
        return False
    return latent is None or not (is_point(latent["fn"]) or _is_discrete(latent))


def _has_density(site: Site) -> bool:
    point: Any = core(site["fn"])
    return bool(torch.as_tensor(point.log_density).any())


def _is_discrete(site: Site) -> bool:
    try:
        return bool(getattr(core(site["fn"]).support, "is_discrete", False))
    except (NotImplementedError, AttributeError):
        return False


def _is_one_point(site: Site) -> bool:
    """Return whether all of several particles have the same value."""
    value, dims = site["value"], [frame.dim for frame in site["cond_indep_stack"] if frame.name == PARTICLES]
    if not dims or is_tracing():
        return False
    (dim,) = (dim - site["fn"].event_dim for dim in dims)
    return value.shape[dim] > 1 and bool((value == value.narrow(dim, 0, 1)).all())


def _row_scale(scale: Tensor, plate: CondIndepStackFrame) -> Tensor:
    """Return a scale of each row, in a shape that broadcasts against a plate over images, as (B,)."""
    dim = dim_of(plate)
    if scale.dim() < -dim or scale.shape[dim] != scale.numel():
        raise ValueError(
            f"the sites are scaled by a tensor of shape {tuple(scale.shape)}, wanted a number or one weight for each "
            f"element of the plate {plate.name!r} at dim {plate.dim}; train with Trace_ELBO or StickingTheLanding"
        )
    return scale.flatten()
