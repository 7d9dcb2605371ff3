"""One run of a program, its particles drawn together in one plate or one after the other; both give the same traces."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.util import is_validation_enabled
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.poutine.util import site_is_subsample
from pyro.util import check_site_shape
from torch import Tensor
from torch.distributions import Distribution

from pyro_vae.tracing.matching import check_sites
from pyro_vae.tracing.messages import PARTICLES, Site, changed, is_point, masks, sample_sites

Traces = tuple[poutine.Trace, poutine.Trace]


class ParticleLayout(NamedTuple):
    """How the particles of a program are drawn.

    Attributes:
        nesting: number of dimensions that the program's plates take; the particles' dimension is the next to the left.
        vectorized: whether the particles are drawn together, in one plate; otherwise they run one after the other.
    """

    nesting: int
    vectorized: bool = True


def particle_trace(
    program: Callable,
    args: Sequence,
    particles: int,
    nesting: int,
    *,
    kwargs: Mapping | None = None,
    replayed: poutine.Trace | None = None,
    vectorized: bool = True,
) -> poutine.Trace:
    """Return the scored trace of one function in a plate of particles to the left of its ``nesting`` plates.

    ``replayed`` is a trace of as many particles, whose values the latent sites take. If not ``vectorized``, the
    particles run one after the other, and their traces are stacked into one of the same shapes.

    >>> import pyro.distributions as dist
    >>> trace = particle_trace(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), (), particles=5, nesting=1)
    >>> trace.nodes["z"]["log_prob"].shape
    torch.Size([5, 1])
    """
    kwargs = kwargs or {}
    if vectorized:
        program = program if replayed is None else Replay(replayed)(program)
        trace = trace_of(particle_plate(particles, nesting)(program), args, kwargs)
        score(trace)
        return trace
    traces: list[poutine.Trace] = []
    for k in range(particles):
        values = particle(replayed, k) if replayed is not None else _subsamples(traces[0]) if k else poutine.Trace()
        traces.append(trace_of(Replay(values)(program), args, kwargs))
        score(traces[-1])
    return stacked(traces, nesting)


def particle(trace: poutine.Trace, k: int, points: bool = True) -> poutine.Trace:
    """Return the values of particle k for replay, in the shapes that they have without a plate of particles.

    With ``points=False`` values that follow from the rest (``Delta``) are left out.

    >>> import pyro.distributions as dist
    >>> trace = particle_trace(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), (), particles=5, nesting=1)
    >>> particle(trace, 3).nodes["z"]["value"].shape
    torch.Size([])
    """
    values = _subsamples(trace)
    for name, site in sample_sites(trace, observed=False).items():
        if points or not is_point(site["fn"]):
            values.nodes[name] = changed(site, value=of_particle(site, "value", k))
    return values


def sliced(trace: poutine.Trace, start: int, stop: int) -> poutine.Trace:
    """Return the scored trace of the particles start … stop − 1; their dimension is the first of every drawn site.

    >>> import pyro.distributions as dist
    >>> trace = particle_trace(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), (), particles=5, nesting=1)
    >>> sliced(trace, 1, 3).nodes["z"]["value"].shape
    torch.Size([2, 1])
    """
    part = trace.copy()
    for name, site in sample_sites(trace, observed=False).items():
        part.nodes[name] = changed(
            site,
            value=site["value"][start:stop],
            log_prob=site["log_prob"][start:stop],
            masks=[m[start:stop] if m.dim() == site["value"].dim() else m for m in masks(site)],
        )
    return part


def stacked(traces: Sequence[poutine.Trace], nesting: int) -> poutine.Trace:
    """Return one scored trace of K particles that ran one after the other, in the shapes of K particles in one plate.

    A site keeps the particles' own entries: ``"values"``, and ``"fns"``, the first of which is its ``"fn"``. Raises
    ValueError if the particles do not have the same sites of the same shapes.
    """
    result, frame = traces[0].copy(), _frame(len(traces), nesting)
    for name, site in sample_sites(traces[0]).items():
        of_each: list[Site] = [trace.nodes.get(name) for trace in traces]
        if None in of_each or len({(one["value"].shape, one["log_prob"].shape) for one in of_each}) > 1:
            raise ValueError(_varying(name))
        keys = [key for key in ("value", "log_prob", "unscaled_log_prob", "score") if key in site]
        tensors = {key: _stack(of_each, key, nesting) for key in keys}
        result.nodes[name] = changed(
            site,
            **tensors,
            log_prob_sum=tensors["log_prob"].sum(),
            cond_indep_stack=(frame, *site["cond_indep_stack"]),
            values=[one["value"] for one in of_each],
            fns=[one["fn"] for one in of_each],
        )
    odd = {name for trace in traces for name in sample_sites(trace)} - set(sample_sites(traces[0]))
    if odd:
        raise ValueError(_varying(min(odd)))
    return result


def score(trace: poutine.Trace, nesting: float = math.inf) -> None:
    """Compute the log-probability of each sample site, scaled and masked; shapes are checked under validation.

    Dimensions to the left of the ``nesting`` last ones are those of enumerated sites, and may have any size.

    Raises ValueError for a distribution of 16 bits, in which a sum of log-probabilities over pixels is off by nats.

    >>> import pyro.distributions as dist
    >>> trace = poutine.trace(lambda: pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))).get_trace()
    >>> score(trace)
    Traceback (most recent call last):
        ...
    ValueError: at site "z", invalid log_prob shape...
    """
    for name, site in sample_sites(trace).items():
        if _is_of_16_bits(site["fn"]):
            raise ValueError(
                f"site {name!r}: its distribution is in 16 bits, as networks compute within torch.autocast, where "
                "log-probabilities are off by nats; give it parameters in float32, as in Normal(loc.float(), ...)"
            )
        if "unscaled_log_prob" in site and "log_prob" not in site:
            site["log_prob"] = scale_and_mask(site["unscaled_log_prob"], site["scale"], site["mask"])
            site["log_prob_sum"] = site["log_prob"].sum()
    trace.compute_log_prob(lambda name, site: not site_is_subsample(site))
    if is_validation_enabled():
        for site in sample_sites(trace).values():
            check_site_shape(site, nesting)  # pyright: ignore[reportArgumentType]  # Pyro passes it, too


def log_prob(trace: poutine.Trace) -> Tensor:
    """Return the sum of the log-probabilities of all sample sites of a scored trace, in nats.

    >>> import pyro.distributions as dist
    >>> trace = poutine.trace(lambda: pyro.sample("z", dist.Uniform(0.0, 2.0))).get_trace()
    >>> score(trace)
    >>> log_prob(trace)
    tensor(-0.6931)
    """
    total: Any = sum(site["log_prob"].sum() for site in sample_sites(trace).values())
    return total


def trace_of(program: Callable, args: Sequence = (), kwargs: Mapping | None = None) -> poutine.Trace:
    """Return the trace of a function's run, without the sites that a ``GuideMessenger`` observes.

    Those sites are the model's, which such a guide runs itself.

    >>> import pyro.distributions as dist
    >>> list(sample_sites(trace_of(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)))))
    ['z']
    """
    return _Tracer()(program).get_trace(*args, **kwargs or {})


def run(model: Callable, guide: Callable, args: Sequence = (), kwargs: Mapping | None = None) -> Traces:
    """Run the guide, then the model against it; return both traces, neither compared nor scored.

    >>> import pyro.distributions as dist
    >>> program = lambda: pyro.sample("z", dist.Normal(0.0, 1.0))
    >>> model_trace, guide_trace = run(program, program)
    >>> model_trace.nodes["z"]["value"] is guide_trace.nodes["z"]["value"]
    True
    """
    guide_trace = trace_of(guide, args, kwargs)
    return trace_of(Replay(guide_trace)(model), args, kwargs), guide_trace


def check_messenger(guide: Callable, guide_trace: poutine.Trace) -> None:
    """Raise ValueError if a guide runs the model through a ``GuideMessenger`` that Pyro's own ELBOs do not see.

    They would treat what the model observes as draws of the guide, and train it towards the prior.
    """
    if getattr(guide_trace, "runs_the_model", False) and not isinstance(poutine.unwrap(guide), GuideMessenger):
        raise ValueError(
            "the guide runs the model through a GuideMessenger that Pyro's own ELBOs do not see, so that they would "
            "count what the model observes as drawn by the guide; give the messenger itself, as in `self.guide = "
            "AutoNormalMessenger(self.model)`, or take StickingTheLanding"
        )


class Replay(Messenger):
    """Give latent sites, and plates that subsample, the values that were drawn in a trace.

    Unlike Pyro's handler, it leaves the rest to the run: observed sites, and the records of a ``GuideMessenger``.

    >>> import pyro.distributions as dist
    >>> program = lambda: pyro.sample("z", dist.Normal(0.0, 1.0))
    >>> trace = trace_of(program)
    >>> Replay(trace)(program)() is trace.nodes["z"]["value"]
    True
    """

    def __init__(self, trace: poutine.Trace):
        super().__init__()
        self.trace = trace

    def _pyro_sample(self, msg: Any) -> None:
        site: Site = self.trace.nodes.get(msg["name"])
        if site and site["type"] == "sample" and not site["is_observed"] and not msg["is_observed"]:
            msg["value"], msg["done"] = site["value"], True


class _Tracer(TraceMessenger):
    """Records a run without the sites that a ``GuideMessenger`` observes: they belong to the model that it runs."""

    runs_the_model = False

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["is_observed"] and any(isinstance(handler, GuideMessenger) for handler in _PYRO_STACK):
            self.runs_the_model = True
        else:
            super()._pyro_post_sample(msg)

    def get_trace(self) -> poutine.Trace:
        """Return the trace, and whether the guide ran the model."""
        trace: Any = super().get_trace()
        trace.runs_the_model = self.runs_the_model
        return trace


def _is_of_16_bits(fn: Distribution) -> bool:
    """Return whether a distribution, or one inside it, has a parameter of 16 bits."""
    values = vars(fn).values()
    return any(isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16) for value in values) or any(
        _is_of_16_bits(value) for value in values if isinstance(value, Distribution)
    )


def scored(traces: Traces) -> Traces:
    """Compare the traces of model and guide, compute their log-probabilities, and return them."""
    check_sites(*traces)
    for trace in traces:
        score(trace)
    return traces


def run_particles(
    model: Callable,
    guide: Callable,
    args: Sequence,
    kwargs: Mapping,
    particles: int,
    layout: ParticleLayout,
    handler: Callable[[Callable], Callable] | None,
) -> Traces:
    """Return the ``paired_traces`` of K particles in a given layout."""
    if layout.vectorized:
        plate = particle_plate(particles, layout.nesting)
        model, guide = plate(model), plate(guide)
    guide = guide if handler is None else handler(guide)
    if layout.vectorized:
        return scored(run(model, guide, args, kwargs))
    pairs: list[Traces] = []
    for _ in range(particles):
        rows = _subsamples(pairs[0][1]) if pairs else poutine.Trace()
        pairs.append(scored(run(model, Replay(rows)(guide), args, kwargs)))
    model_traces, guide_traces = zip(*pairs)
    return stacked(model_traces, layout.nesting), stacked(guide_traces, layout.nesting)


def nesting_of(*traces: poutine.Trace) -> int:
    """Return the number of dimensions that the plates of the traces take."""
    frames = (frame for trace in traces for site in sample_sites(trace).values() for frame in site["cond_indep_stack"])
    return max((-frame.dim for frame in frames if frame.vectorized), default=0)


def particle_plate(particles: int, nesting: int) -> pyro.plate:
    """Return the plate of particles of a program whose plates take ``nesting`` dimensions.

    >>> particle_plate(5, nesting=1).dim
    -2
    """
    return pyro.plate(PARTICLES, particles, dim=-nesting - 1)


def _frame(particles: int, nesting: int) -> CondIndepStackFrame:
    return CondIndepStackFrame(PARTICLES, -nesting - 1, particles, 0, particles)


def _subsamples(trace: poutine.Trace) -> poutine.Trace:
    """Return the indices that the plates of a trace have drawn, for replay."""
    indices = poutine.Trace()
    for name, site in trace.nodes.items():
        if site_is_subsample(site):
            indices.nodes[name] = site
    return indices


def of_particle(site: Site, key: str, k: int) -> Tensor:
    """Return ``site[key]`` of particle k, in the shape that it has without a plate of particles."""
    tensor, stack = site[key], [frame for frame in site["cond_indep_stack"] if frame.vectorized]
    events = site["fn"].event_dim if key == "value" else 0
    for frame in stack:
        if frame.name == PARTICLES:
            tensor = tensor.select(frame.dim - events, k)
    depth = max((-frame.dim for frame in stack if frame.name != PARTICLES), default=0)
    shape = tensor.shape[max(0, tensor.dim() - depth - events) :]
    return tensor.reshape(shape) if shape.numel() == tensor.numel() else tensor


def _stack(sites: Sequence[Site], key: str, nesting: int) -> Tensor:
    """Return ``site[key]`` of particles that ran one after the other, along a first dimension left of all plates."""
    events = sites[0]["fn"].event_dim if key == "value" else 0
    tensors = [site[key] for site in sites]
    shape = (1,) * (nesting - tensors[0].dim() + events) + tensors[0].shape
    return torch.stack([tensor.reshape(shape) for tensor in tensors])


def _varying(name: str) -> str:
    return (
        f"site {name!r} is missing in some particles, or differs in shape, so that their weights cannot be compared; "
        "write K=1, or train by Trace_ELBO(num_particles=K)"
    )
