"""Which dimension of a program is the rows, and the weight of each row: log p(x, z) − log q(z | x)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.util import site_is_factor
from torch import Tensor

from pyro_vae.tracing.matching import PARTICLES, core, is_tracing, number, same_scales, sample_sites
from pyro_vae.tracing.probing import tensors


def count_rows(args: Sequence, kwargs: Mapping | None = None) -> int | None:
    """Rows of a batch: those of the first tensor among the arguments that has a dimension; None where there is none.

    >>> count_rows((True, [torch.zeros(3, 2)]))
    3
    """
    return next((len(tensor) for tensor in tensors((args, kwargs or {})) if tensor.dim()), None)


def shared_plates(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> list[CondIndepStackFrame]:
    """The plates that every sample site of a scored program lies in, but for that of particles; the innermost first.

    The size of a plate that was given none is that of the log-probabilities; a site that has one value for all of it
    does not lie in it.

    Raises ValueError where there is none: the weight of a single image is then not defined.
    """
    sites = {**sample_sites(guide_trace, observed=False), **sample_sites(model_trace)}
    both = [*sample_sites(guide_trace, observed=False).values(), *sample_sites(model_trace).values()]
    shared = []
    for frame in both[0]["cond_indep_stack"]:
        if frame.vectorized and frame.name != PARTICLES:
            size = frame.size if frame.size > 0 else max(_extent(site, frame.dim) for site in both)
            if all(_lies_in(site, frame, size) for site in both):
                shared.append(frame._replace(size=size))
    if not shared:
        plates = {name: [frame.name for frame in site["cond_indep_stack"]] for name, site in sites.items()}
        raise ValueError(
            f"the sample sites do not share a plate over images, so no image has a weight of its own: {plates}; "
            'put every site into one plate, as in `with pyro.plate("images", len(x)):`, or train by Trace_ELBO, '
            "StickingTheLanding or ScoreFunction under pyro.infer.SVI, and measure by log_evidence, which weighs all "
            "images together"
        )
    return sorted(shared, key=lambda frame: -frame.dim)


def image_plate(
    model_trace: poutine.Trace, guide_trace: poutine.Trace, images: int | None = None
) -> CondIndepStackFrame:
    """The plate that every sample site of the program lies in: the one over images, of which there are so many.

    Raises ValueError where there is none, or where two of them could be meant. ``Runs.plate`` asks further batches.
    """
    shared = shared_plates(model_trace, guide_trace)
    return shared[0] if len(shared) == 1 and images is None else the_one(shared, images)


def per_image(site: Mapping[str, Any], plate: CondIndepStackFrame | None) -> Tensor:
    """Log-probability of a site, summed to shape (K, B) or, where it has no particles, (1, B).

    Without a plate over images it is summed over all of them, and B is 1.
    """
    log_prob = site["log_prob"]
    particles = {frame.dim for frame in site["cond_indep_stack"] if frame.name == PARTICLES}
    kept = particles | (set() if plate is None else {plate.dim})
    rest = [dim for dim in range(-log_prob.dim(), 0) if dim not in kept]
    log_prob = log_prob.sum(rest) if rest else log_prob
    if plate is None:
        return log_prob.reshape(-1, 1)
    return log_prob if len(kept) == 2 else log_prob.unsqueeze(0)


def proposal_sites(guide_trace: poutine.Trace, points_too: bool = False) -> dict[str, dict[str, Any]]:
    """The sites of a guide whose densities make up q(z | x): those that are drawn. What it observes is none of them.

    Raises ValueError for a factor, after which log q(z | x) is no density, and, unless ``points_too``, for sites that
    are mere points, as those of AutoDelta, with which an ELBO is log p(x, z) and no draw has a weight.
    """
    factors = [name for name, site in sample_sites(guide_trace, observed=True).items() if site_is_factor(site)]
    if factors:
        raise ValueError(
            f"the factors {factors} of the guide leave no density q(z | x) to weigh its draws by; give a draw its "
            "density at its site, as dist.Delta(value, log_density=...) does, or train by StickingTheLanding"
        )
    drawn = sample_sites(guide_trace, observed=False)
    points = {name: site for name, site in drawn.items() if isinstance(core(site["fn"]), dist.Delta)}
    if points and not points_too and (len(points) == len(drawn) or any(map(_is_one_point, points.values()))):
        raise ValueError(
            f"the guide proposes single points at the sites {list(points)}, so that they have no density to weigh them "
            "by; draw them from a distribution, as AutoNormal does, or train by Trace_ELBO or StickingTheLanding"
        )
    return drawn


def log_weights(
    model_trace: poutine.Trace,
    guide_trace: poutine.Trace,
    images: int | None = None,
    plate: CondIndepStackFrame | None = None,
) -> Tensor:
    """log w = log p(x, z) − log q(z | x), shape (K, B), in nats; B = ``images`` where that is known.

    ``plate`` is the one over images where that is known; else ``image_plate`` finds it. A scale that all sites share
    (a plate that subsamples, a weight of each row) is divided out; scales that differ (a KL weight) leave no importance
    weight, and raise ValueError, as does a program whose sites share no plate, and a guide that has no density.
    """
    plate = image_plate(model_trace, guide_trace, images) if plate is None else plate
    log_p = sum(per_image(site, plate) for site in sample_sites(model_trace).values())
    log_q = sum(per_image(site, plate) for site in proposal_sites(guide_trace).values())
    return (log_p - log_q) / common_scale(model_trace, guide_trace, plate=plate)


def spread(values: Tensor, site: Mapping[str, Any], plate: CondIndepStackFrame) -> Tensor:
    """Values of shape (K, B), one a particle and image, in a shape that broadcasts against the value of a site.

    The reverse of ``per_image``: particles and images take their plates' dimensions, all others are of size one.
    """
    particles = [frame.dim for frame in site["cond_indep_stack"] if frame.name == PARTICLES]
    shape = [1] * max(-dim for dim in (plate.dim - 1, *particles))
    shape[plate.dim] = values.shape[1]
    shape[min(particles, default=-len(shape))] = values.shape[0]
    return values.reshape(shape + [1] * site["fn"].event_dim)


def common_scale(*traces: poutine.Trace, plate: CondIndepStackFrame | None = None) -> float | Tensor:
    """The scale that all sample sites share: a number, or a weight of each row, (B,); ValueError where they differ.

    ``plate`` is the one over images, wanted where the scale is a tensor of rows; if not given, ``image_plate`` of the
    model's and the guide's trace finds it.
    """
    every = [site["scale"] for trace in traces for site in sample_sites(trace).values()] or [1.0]
    of_rows = [scale for scale in every if torch.is_tensor(scale) and scale.numel() > 1]
    if not all(same_scales(scale, every[0]) for scale in every):
        scales = {name: number(site["scale"]) for trace in traces for name, site in sample_sites(trace).items()}
        raise ValueError(
            f"the sites of the program are scaled differently ({scales}), so that log p(x, z) − log q(z | x) is not an "
            "importance weight; take the KL weight or the differing plate subsampling away, or train with Trace_ELBO"
        )
    scale = _row_scale(of_rows[0], image_plate(*traces) if plate is None else plate) if of_rows else float(every[0])
    if not is_tracing() and not bool(torch.as_tensor(scale > 0).all()):
        raise ValueError("the sites are scaled by 0, so that no weight is left; leave such rows out of the batch")
    return scale


def the_one(shared: Sequence[CondIndepStackFrame], images: int | None) -> CondIndepStackFrame:
    """The one of several plates that is over so many images; ValueError where none is, or where two could be."""
    fitting = [plate for plate in shared if images in (None, plate.size, plate.full_size)]
    if not fitting:
        sizes = ", ".join(f"{frame.name!r} of {frame.size}" for frame in shared)
        raise ValueError(f"no plate that all sample sites share is one over the {images} images: {sizes}")
    if len(fitting) > 1 and {plate.size for plate in fitting} != {1}:
        names = " or ".join(f"{plate.name!r} (dim {plate.dim})" for plate in fitting)
        why = f"each is of {images}, as x has rows; "
        if images is None:
            why = "no argument tells the number of rows; give x as an argument of model and guide, or "
        raise ValueError(
            f"the rows could be the plate {names}: all sample sites share them, and {why}make the other one a "
            "dimension of each event, with .to_event(1) in the place of its plate"
        )
    return fitting[0]


def _extent(site: Mapping[str, Any], dim: int) -> int:
    log_prob = site["log_prob"]
    return log_prob.shape[dim] if log_prob.dim() >= -dim else 1


def _lies_in(site: Mapping[str, Any], plate: CondIndepStackFrame, size: int) -> bool:
    known = any((frame.name, frame.dim) == (plate.name, plate.dim) for frame in site["cond_indep_stack"])
    return known and (plate.size > 0 or _extent(site, plate.dim) == size)


def _is_one_point(site: Mapping[str, Any]) -> bool:
    """Whether all of several particles have one value."""
    value, dims = site["value"], [frame.dim for frame in site["cond_indep_stack"] if frame.name == PARTICLES]
    if not dims or is_tracing():
        return False
    (dim,) = (dim - site["fn"].event_dim for dim in dims)
    return value.shape[dim] > 1 and bool((value == value.narrow(dim, 0, 1)).all())


def _row_scale(scale: Tensor, plate: CondIndepStackFrame) -> Tensor:
    """A scale of each row, in a shape that broadcasts against a plate over images, as (B,)."""
    if scale.dim() < -plate.dim or scale.shape[plate.dim] != scale.numel():
        raise ValueError(
            f"the sites are scaled by a tensor of shape {tuple(scale.shape)}, wanted a number or one weight for each "
            f"element of the plate {plate.name!r} at dim {plate.dim}; train with Trace_ELBO or StickingTheLanding"
        )
    return scale.flatten()
