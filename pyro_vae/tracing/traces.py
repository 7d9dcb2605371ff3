"""The traces of a program: of the model and the guide, of one particle or of many."""

from collections.abc import Callable, Mapping, Sequence

import torch
from pyro import poutine

from pyro_vae.tracing.independence import check_rows
from pyro_vae.tracing.matching import check_order, check_sites
from pyro_vae.tracing.messages import PARTICLES, sample_sites
from pyro_vae.tracing.particles import (
    ParticleLayout,
    Replay,
    Traces,
    check_messenger,
    log_prob,
    nesting_of,
    particle,
    particle_trace,
    run,
    run_particles,
    score,
    sliced,
    stacked,
    trace_of,
)
from pyro_vae.tracing.probing import left_as_it_was
from pyro_vae.tracing.rows import (
    common_scale,
    common_weight,
    count_rows,
    image_plate,
    log_weights,
    per_image,
    points_without_density,
    proposal_sites,
    rows_in_all,
    shared_plates,
    spread,
    the_one,
    warn_of_points,
)
from pyro_vae.tracing.runs import ProgramRuns

__all__ = [
    "PARTICLES",
    "ParticleLayout",
    "ProgramRuns",
    "Replay",
    "Traces",
    "check_messenger",
    "check_order",
    "check_rows",
    "check_sites",
    "common_scale",
    "common_weight",
    "count_rows",
    "image_plate",
    "log_prob",
    "log_weights",
    "paired_traces",
    "particle",
    "particle_trace",
    "per_image",
    "plate_nesting",
    "points_without_density",
    "proposal_sites",
    "rows_in_all",
    "run",
    "sample_sites",
    "score",
    "shared_plates",
    "sliced",
    "spread",
    "stacked",
    "the_one",
    "trace_of",
    "warn_of_points",
]


def plate_nesting(model: Callable, guide: Callable, args: Sequence = (), kwargs: Mapping | None = None) -> int:
    """Return the number of dimensions that the plates of a program take, found by running it once.

    The random number generators, buffers and modes stay unchanged. Parameters that the program makes in its first run
    are kept, so that no particle has parameters of its own.

    >>> import pyro
    >>> import pyro.distributions as dist
    >>> def program():
    ...     with pyro.plate("images", 3):
    ...         pyro.sample("z", dist.Normal(0.0, 1.0))
    >>> plate_nesting(program, program)
    1
    """
    with left_as_it_was(model, guide, keep_new=True), torch.no_grad(), poutine.block():
        return nesting_of(*run(model, guide, args, kwargs or {}))


def paired_traces(
    model: Callable,
    guide: Callable,
    args: Sequence = (),
    kwargs: Mapping | None = None,
    particles: int = 1,
    nesting: int | None = None,
    handler: Callable[[Callable], Callable] | None = None,
    vectorize: bool | None = None,
) -> Traces:
    """Run the guide once, then the model against it: return (model's trace, guide's trace) with log-probabilities.

    K > 1 particles are drawn in a plate of their own to the left of the program's plates, so that parts that depend on
    x alone (the encoder) run once. They run one after the other, in traces of the same shapes, if ``vectorize`` is
    False, or if it is None and a trial shows that the program takes no such plate (``ProgramRuns``). No trial runs if
    ``nesting``, the program's ``plate_nesting``, is given. ``handler`` is an effect handler around the guide and its
    particles; a site that it has scored itself, in ``"unscaled_log_prob"``, is not scored again.

    A ``GuideMessenger`` runs the model as well: the sites that it observes are the model's, and left out.

    Raises ValueError if the latent sites of model and guide differ (``check_sites``) and, while Pyro's validation is
    on, if the shape of a log-probability is not that of its plates.

    >>> import pyro
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
    if particles == 1 or nesting is None:
        return ProgramRuns(particles, vectorize)(model, guide, args, kwargs, handler)
    layout = ParticleLayout(nesting, vectorize is not False)
    return run_particles(model, guide, args, kwargs or {}, particles, layout, handler)
