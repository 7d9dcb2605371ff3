"""A program run once: the guide's trace, the model's trace against it, and their log-probabilities per image."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.util import is_validation_enabled
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_site_shape
from torch import Tensor

PARTICLES = "particles"


def sample_sites(trace: poutine.Trace, observed: bool | None = None) -> dict[str, dict[str, Any]]:
    """The sample sites of a trace by name: all of them, only the observed, or only the latent ones.

    ``pyro.deterministic`` records a value and has no density; it is not among them.

    >>> import pyro.distributions as dist
    >>> def model():
    ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...     pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(2.0))
    >>> list(sample_sites(poutine.trace(model).get_trace(), observed=False))
    ['z']
    """
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and observed in (None, site["is_observed"])
        and not site["infer"].get("_deterministic")
    }


def plate_nesting(model: Callable, guide: Callable, args: Sequence = (), kwargs: Mapping | None = None) -> int:
    """Number of dimensions that the plates of a program take, found by running it once.

    The state of the random number generator is left as it was.

    >>> import pyro.distributions as dist
    >>> def program():
    ...     with pyro.plate("images", 3):
    ...         pyro.sample("z", dist.Normal(0.0, 1.0))
    >>> plate_nesting(program, program)
    1
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices), torch.no_grad(), poutine.block():
        traces = _run(model, guide, args, kwargs or {})
    frames = (frame for trace in traces for site in sample_sites(trace).values() for frame in site["cond_indep_stack"])
    return max((-frame.dim for frame in frames if frame.vectorized), default=0)


def paired_traces(
    model: Callable,
    guide: Callable,
    args: Sequence = (),
    kwargs: Mapping | None = None,
    particles: int = 1,
    nesting: int | None = None,
    handler: Callable[[Callable], Callable] | None = None,
) -> tuple[poutine.Trace, poutine.Trace]:
    """Runs the guide once, then the model against it: (model's trace, guide's trace), log-probabilities computed.

    K > 1 particles are drawn in a plate of their own to the left of the program's plates, so that what depends on x
    alone (the encoder) runs once. ``nesting`` is the program's ``plate_nesting``; it is found by a run if not given.
    ``handler`` is an effect handler around the guide and its particles; a site that it has scored itself, in
    ``"unscaled_log_prob"``, is not scored again.

    Raises ValueError where the latent sites of model and guide differ (Pyro only warns, and the bound is wrong), and,
    while Pyro's validation is on, where the shape of a log-probability is not that of its plates.

    >>> import pyro.distributions as dist
    >>> def guide(x):
    ...     with pyro.plate("images", len(x)):
    ...         return pyro.sample("z", dist.Normal(x, 1.0))
    >>> def model(x):
    ...     with pyro.plate("images", len(x)):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> model_trace, guide_trace = paired_traces(model, guide, (torch.zeros(3),), particles=5)
    >>> log_weights(model_trace, guide_trace).shape
    torch.Size([5, 3])
    """
    kwargs = kwargs or {}
    if particles > 1:
        nesting = plate_nesting(model, guide, args, kwargs) if nesting is None else nesting
        plate = pyro.plate(PARTICLES, particles, dim=-nesting - 1)
        model, guide = plate(model), plate(guide)
    guide = guide if handler is None else handler(guide)
    model_trace, guide_trace = map(prune_subsample_sites, _run(model, guide, args, kwargs))
    check_sites(model_trace, guide_trace)
    score(model_trace)
    score(guide_trace)
    return model_trace, guide_trace


def particle_trace(program: Callable, args: Sequence, particles: int, nesting: int) -> poutine.Trace:
    """The trace of one function in a plate of particles to the left of its ``nesting`` plates, scored.

    >>> import pyro.distributions as dist
    >>> trace = particle_trace(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), (), particles=5, nesting=1)
    >>> trace.nodes["z"]["log_prob"].shape
    torch.Size([5, 1])
    """
    plate = pyro.plate(PARTICLES, particles, dim=-nesting - 1)
    trace = prune_subsample_sites(poutine.trace(plate(program)).get_trace(*args))
    score(trace)
    return trace


def score(trace: poutine.Trace) -> None:
    """Computes the log-probability of each sample site, scaled and masked; shapes are checked under validation.

    >>> import pyro.distributions as dist
    >>> trace = poutine.trace(lambda: pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))).get_trace()
    >>> score(trace)
    Traceback (most recent call last):
        ...
    ValueError: at site "z", invalid log_prob shape...
    """
    for site in sample_sites(trace).values():
        if "unscaled_log_prob" in site and "log_prob" not in site:
            site["log_prob"] = scale_and_mask(site["unscaled_log_prob"], site["scale"], site["mask"])
            site["log_prob_sum"] = site["log_prob"].sum()
    trace.compute_log_prob()
    if is_validation_enabled():
        for site in sample_sites(trace).values():
            check_site_shape(site, math.inf)


def check_sites(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> None:
    """Raises ValueError unless the guide samples just what the model leaves latent.

    >>> import pyro.distributions as dist
    >>> run = lambda name: poutine.trace(lambda: pyro.sample(name, dist.Normal(0.0, 1.0))).get_trace()
    >>> check_sites(run("z"), run("Z"))
    Traceback (most recent call last):
        ...
    ValueError: the latent sites of model and guide differ: only in the model: ['z'], only in the guide: ['Z']; ...
    """
    latent = set(sample_sites(model_trace, observed=False))
    drawn = sample_sites(guide_trace, observed=False)
    proposed = {name for name, site in drawn.items() if not site["infer"].get("is_auxiliary")}
    if latent != proposed:
        raise ValueError(
            f"the latent sites of model and guide differ: only in the model: {sorted(latent - proposed)}, "
            f"only in the guide: {sorted(proposed - latent)}; give both sites one name, or observe the model's site"
        )


def check_order(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> None:
    """Raises ValueError unless model and guide draw their sites in one order, in which KLs of single sites add up.

    >>> import pyro.distributions as dist
    >>> run = lambda *names: poutine.trace(lambda: [pyro.sample(n, dist.Normal(0.0, 1.0)) for n in names]).get_trace()
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


def log_prob(trace: poutine.Trace) -> Tensor:
    """The log-probabilities of all sample sites of a scored trace, summed, in nats.

    >>> import pyro.distributions as dist
    >>> trace = poutine.trace(lambda: pyro.sample("z", dist.Uniform(0.0, 2.0))).get_trace()
    >>> score(trace)
    >>> log_prob(trace)
    tensor(-0.6931)
    """
    return sum(site["log_prob"].sum() for site in sample_sites(trace).values())


def image_plate(
    model_trace: poutine.Trace, guide_trace: poutine.Trace, images: int | None = None
) -> CondIndepStackFrame:
    """The plate that every sample site of the program lies in: the one over images, of which there are so many.

    Raises ValueError where there is none: the weight of a single image is then not defined.
    """
    sites = {**sample_sites(guide_trace), **sample_sites(model_trace)}
    shared = None
    for site in (*sample_sites(guide_trace).values(), *sample_sites(model_trace).values()):
        frames = {frame for frame in site["cond_indep_stack"] if frame.vectorized and frame.name != PARTICLES}
        shared = frames if shared is None else shared & frames
    if not shared:
        plates = {name: [frame.name for frame in site["cond_indep_stack"]] for name, site in sites.items()}
        raise ValueError(
            f"the sample sites do not share a plate over images, so no image has a weight of its own: {plates}; "
            'put every site into one plate, as in `with pyro.plate("images", len(x)):`, or use Trace_ELBO, '
            "StickingTheLanding or ScoreFunction"
        )
    fitting = [frame for frame in shared if images in (None, frame.size)]
    if not fitting:
        sizes = ", ".join(f"{frame.name!r} of {frame.size}" for frame in shared)
        raise ValueError(f"no plate that all sample sites share is one over the {images} images: {sizes}")
    return max(fitting, key=lambda frame: frame.dim)


def per_image(site: Mapping[str, Any], plate: CondIndepStackFrame) -> Tensor:
    """Log-probability of a site, summed to shape (K, B) or, where it has no particles, (1, B)."""
    log_prob = site["log_prob"]
    kept = {plate.dim} | {frame.dim for frame in site["cond_indep_stack"] if frame.name == PARTICLES}
    rest = [dim for dim in range(-log_prob.dim(), 0) if dim not in kept]
    log_prob = log_prob.sum(rest) if rest else log_prob
    return log_prob if len(kept) == 2 else log_prob.unsqueeze(0)


def log_weights(model_trace: poutine.Trace, guide_trace: poutine.Trace, images: int | None = None) -> Tensor:
    """log w = log p(x, z) − log q(z | x), shape (K, B), in nats; B = ``images`` where that is known.

    A scale that all sites share (a plate that subsamples) is divided out; scales that differ (a KL weight) leave no
    importance weight, and raise ValueError, as does a program whose sites share no plate.
    """
    plate = image_plate(model_trace, guide_trace, images)
    log_p = sum(per_image(site, plate) for site in sample_sites(model_trace).values())
    log_q = sum(per_image(site, plate) for site in sample_sites(guide_trace).values())
    return (log_p - log_q) / common_scale(model_trace, guide_trace)


def spread(values: Tensor, site: Mapping[str, Any], plate: CondIndepStackFrame) -> Tensor:
    """Values of shape (K, B), one a particle and image, in a shape that broadcasts against the value of a site.

    The reverse of ``per_image``: particles and images take their plates' dimensions, all others are of size one.
    """
    particles = [frame.dim for frame in site["cond_indep_stack"] if frame.name == PARTICLES]
    shape = [1] * max(-dim for dim in (plate.dim - 1, *particles))
    shape[plate.dim] = values.shape[1]
    shape[min(particles, default=-len(shape))] = values.shape[0]
    return values.reshape(shape + [1] * site["fn"].event_dim)


def common_scale(*traces: poutine.Trace) -> float:
    """The scale that all sample sites share; ValueError where they differ."""
    scales = {name: float(site["scale"]) for trace in traces for name, site in sample_sites(trace).items()}
    every = {float(site["scale"]) for trace in traces for site in sample_sites(trace).values()}
    if any(not math.isclose(scale, next(iter(every))) for scale in every):
        raise ValueError(
            f"the sites of the program are scaled differently ({scales}), so that log p(x, z) − log q(z | x) is not an "
            "importance weight; take the KL weight or the differing plate subsampling away, or train with Trace_ELBO"
        )
    return next(iter(every), 1.0)


def _run(model: Callable, guide: Callable, args: Sequence, kwargs: Mapping) -> tuple[poutine.Trace, poutine.Trace]:
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    return model_trace, guide_trace
