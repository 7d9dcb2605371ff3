"""Runs of a program: how its K particles are drawn, and which of its dimensions is the rows.

A program was not written for a plate of particles, and nothing in it names the plate over its rows. Both are found out
by trials, which leave the program as it was.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from types import MethodType
from typing import Any
from weakref import ref

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor, nn

from pyro_vae.tracing.matching import PARTICLES, check_order, check_sites, is_tracing, sample_sites
from pyro_vae.tracing.particles import (
    Layout,
    Replay,
    Traces,
    check_messenger,
    log_prob,
    nesting_of,
    of_particle,
    particle,
    particle_trace,
    run,
    run_particles,
    score,
    scored,
    sliced,
    stacked,
    trace_of,
)
from pyro_vae.tracing.probing import left_as_it_was, map_tensors, modules, tensors
from pyro_vae.tracing.rows import (
    common_scale,
    count_rows,
    image_plate,
    log_weights,
    per_image,
    proposal_sites,
    shared_plates,
    spread,
    the_one,
)

__all__ = [
    "PARTICLES",
    "Layout",
    "Replay",
    "Runs",
    "Traces",
    "check_messenger",
    "check_order",
    "check_rows",
    "check_sites",
    "common_scale",
    "count_rows",
    "image_plate",
    "log_prob",
    "log_weights",
    "paired_traces",
    "particle",
    "particle_trace",
    "per_image",
    "plate_nesting",
    "proposal_sites",
    "run",
    "sample_sites",
    "score",
    "shared_plates",
    "sliced",
    "spread",
    "stacked",
    "trace_of",
]

TRIED = 3  # particles of a trial whether they can be drawn together, and draws of one whether rows are independent
ALONE = "keep the rows apart: sum and normalise over event dimensions alone, and squeeze none of a batch"
FEW_SHAPES = 8  # shapes of arguments for which that is tried; what holds for them is taken to hold for all


def plate_nesting(model: Callable, guide: Callable, args: Sequence = (), kwargs: Mapping | None = None) -> int:
    """Number of dimensions that the plates of a program take, found by running it once.

    The state of the random number generators, buffers and modes are left as they were; parameters that the program
    makes when it first runs are kept, so that no particle has any of its own.

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
    """Runs the guide once, then the model against it: (model's trace, guide's trace), log-probabilities computed.

    K > 1 particles are drawn in a plate of their own to the left of the program's plates, so that what depends on x
    alone (the encoder) runs once; or one after the other, in traces of the same shapes, where ``vectorize`` is False,
    or is None and a trial shows that the program takes no such plate (``Runs``). There is no trial where ``nesting``,
    the program's ``plate_nesting``, is given. ``handler`` is an effect handler around the guide and its particles; a
    site that it has scored itself, in ``"unscaled_log_prob"``, is not scored again.

    A ``GuideMessenger`` runs the model as well: the sites that it observes are the model's, and left out.

    Raises ValueError where the latent sites of model and guide differ (``check_sites``), and, while Pyro's validation
    is on, where the shape of a log-probability is not that of its plates.

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
    if particles == 1:
        return scored(run(model, guide if handler is None else handler(guide), args, kwargs))
    known = None if nesting is None else Layout(nesting, vectorize is not False)
    layout = known or Runs(particles, vectorize).layout(model, guide, args, kwargs)
    return run_particles(model, guide, args, kwargs, particles, layout, handler)


class Runs:
    """Runs of one program, batch after batch, whose K particles are drawn together or one after the other.

    What is found out about a program is kept until another one comes, and keeps no program alive: for each mode of its
    modules and each shape of its arguments how its particles are drawn; and which of its plates is the rows.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program, runs = LinearGaussian(torch.ones(3, 1)), Runs(particles=5)
    >>> x = program.simulate(2)
    >>> traces = runs(program.model, program.guide, (x,))
    >>> plate = runs.plate(program.model, program.guide, (x,), {}, traces)
    >>> plate.name, log_weights(*traces, plate=plate).shape
    ('images', torch.Size([5, 2]))
    """

    def __init__(self, particles: int = 1, vectorize: bool | None = None):
        """``vectorize``: whether particles are drawn together; None: where a trial shows that this changes nothing."""
        self.particles, self.vectorize = particles, vectorize
        self._forget(())

    def __call__(
        self,
        model: Callable,
        guide: Callable,
        args: Sequence = (),
        kwargs: Mapping | None = None,
        handler: Callable[[Callable], Callable] | None = None,
    ) -> Traces:
        """``paired_traces`` of this batch."""
        kwargs = kwargs or {}
        if self.particles == 1:
            return paired_traces(model, guide, args, kwargs, handler=handler)
        return run_particles(
            model, guide, args, kwargs, self.particles, self.layout(model, guide, args, kwargs), handler
        )

    def layout(self, model: Callable, guide: Callable, args: Sequence = (), kwargs: Mapping | None = None) -> Layout:
        """How the particles of this program are drawn for such arguments.

        One particle is scored alone, with its values of the latent sites, and in a plate of particles; where the two
        differ by more than rounding, or the second fails, particles run one after the other.
        """
        kwargs = kwargs or {}
        self._meet(model, guide)
        modes = tuple(module.training for weak in self._modules if (module := weak()) is not None)
        key = modes, tuple(tensor.shape for tensor in tensors((args, kwargs)))
        if key in self._layouts:
            return self._layouts[key]
        known = [layout for (other, _), layout in self._layouts.items() if other == modes]
        if len(known) >= FEW_SHAPES or (known and is_tracing()):
            return Layout(known[-1].nesting, all(layout.vectorized for layout in known))
        if is_tracing():  # nothing can be tried; an eager run has found it out, or the caller knows
            with torch.random.fork_rng([]), torch.no_grad(), poutine.block():
                return Layout(nesting_of(*run(model, guide, args, kwargs)), self.vectorize is not False)
        with left_as_it_was(model, guide, keep_new=True), torch.no_grad(), poutine.block():
            alone = scored(run(model, guide, args, kwargs))
        layout = Layout(nesting_of(*alone), self.vectorize is not False)
        if self.vectorize is None:
            layout = layout._replace(vectorized=_vectorizes(model, guide, args, kwargs, self.particles, layout.nesting))
        self._layouts[key] = layout
        return layout

    def plate(
        self,
        model: Callable,
        guide: Callable,
        args: Sequence,
        kwargs: Mapping,
        traces: Traces,
        images: int | None = None,
    ) -> CondIndepStackFrame:
        """The plate over the rows of this batch: ``image_plate``, which where two plates fit is asked of other batches.

        Rows are ``images``, or those of the first tensor among the arguments. Where two plates have so many, it is the
        one that an earlier batch of other rows showed to be theirs, or that has half as many on half of the rows.

        Raises ValueError where that does not settle it either.
        """
        self._meet(model, guide)
        rows = count_rows(args, kwargs) if images is None else images
        shared = shared_plates(*traces)
        fitting = [plate for plate in shared if rows in (plate.size, plate.full_size)]
        if len(shared) == 1 and (fitting or images is None):
            return shared[0]
        if len(fitting) == 1:
            self._rows = fitting[0].name
        names = [plate.name for plate in fitting]
        if len(names) > 1 and self._rows not in names and not is_tracing():
            self._rows = _halved(model, guide, args, kwargs, rows, names)
        known = [plate for plate in fitting if plate.name == self._rows]
        return known[0] if known else the_one(shared, rows)

    def _meet(self, model: Callable, guide: Callable) -> None:
        """Forgets what it knows, unless of this very program."""
        parts = (*_parts(model), *_parts(guide))
        same = len(parts) == len(self._program) and all(weak() is part for weak, part in zip(self._program, parts))
        if not same:
            self._forget(parts)
            self._modules = tuple(map(ref, modules(model, guide).values()))

    def _forget(self, parts: tuple) -> None:
        self._program: tuple[Callable[[], Any], ...] = tuple(map(_weak, parts))
        self._modules: tuple[Callable[[], nn.Module | None], ...] = ()
        self._layouts: dict[tuple, Layout] = {}
        self._rows: str | None = None

    def __reduce__(self) -> tuple:
        return Runs, (self.particles, self.vectorize)


def check_rows(model: Callable, guide: Callable, args: Sequence = (), kwargs: Mapping | None = None) -> None:
    """Raises ValueError where the log-probability of a row depends on the other rows of its batch, at fixed z.

    Then no row has a bound of its own. Two rows are scored together and each of them alone, in the modes that the
    program's modules are in; of programs whose sites do not share a plate over the rows, or that are made for a number
    of rows, nothing is asked.

    >>> import pyro.distributions as dist
    >>> def guide(x):
    ...     with pyro.plate("images", len(x)):
    ...         pyro.sample("z", dist.Normal(0.0, 1.0))
    >>> def model(x):
    ...     with pyro.plate("images", len(x)):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(z - z.mean(), 1.0), obs=x)
    >>> check_rows(model, guide, (torch.zeros(5),))
    Traceback (most recent call last):
        ...
    ValueError: site 'x' of the model: the log-probability of a row depends on the other rows of its batch...
    """
    kwargs, rows = kwargs or {}, count_rows(args, kwargs)
    if rows is None or rows < 2:
        return
    with left_as_it_was(model, guide), torch.no_grad(), poutine.block(), pyro.validation_enabled(False):
        for _ in range(TRIED):  # one draw may hide it, where the latent values of the two rows lie close together
            together = _two_rows(model, guide, *_cut(rows, 0, 2, args, kwargs))
            for i in range(2 if together else 0):
                _check_alone(model, guide, _cut(rows, i, i + 1, args, kwargs), together, i)


def _check_alone(
    model: Callable, guide: Callable, arguments: tuple[Sequence, Mapping], together: tuple, i: int
) -> None:
    """Raises ValueError where row i of two has another log-probability without the other one."""
    plate, values, sites = together
    try:
        alone = _replayed(model, guide, *arguments, _of_row(values, plate, i))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"the program runs on two rows and fails on one ({reason}); {ALONE}") from error
    for of, name in alone:
        row, expected = (per_image(each[of, name], plate)[0] for each in (alone, sites))
        if not _equal(row, expected[i : i + 1]):
            raise ValueError(
                f"site {name!r} of the {of}: the log-probability of a row depends on the other rows of its "
                f"batch, at fixed z, so that no row has a bound of its own; {ALONE}"
            )


def _two_rows(model: Callable, guide: Callable, args: Sequence, kwargs: Mapping) -> tuple | None:
    """The plate over two rows, the values of their latent sites, and their scored sites.

    None where two rows cannot be told apart: without such a plate, or where the program draws more than its sites.
    """
    try:
        traces = scored(run(model, guide, args, kwargs))
        plate = Runs().plate(model, guide, args, kwargs, traces)
        values = particle(traces[1], 0, points=False)
        first, second = (_replayed(model, guide, args, kwargs, values) for _ in range(2))
    except Exception:  # a program that is made for another number of rows
        return None
    known = plate.size == 2 == (plate.full_size or 2) and first.keys() == second.keys()
    same = known and all(_equal(first[name]["log_prob"], second[name]["log_prob"]) for name in first)
    return (plate, values, first) if same else None


def _of_row(values: poutine.Trace, plate: CondIndepStackFrame, i: int) -> poutine.Trace:
    """The values of row i alone."""
    of_row = poutine.Trace()
    for name, site in sample_sites(values).items():
        value, dim = site["value"], plate.dim - site["fn"].event_dim
        of_row.nodes[name] = {**site, "value": value.narrow(dim, i, 1) if value.dim() >= -dim else value}
    return of_row


def _vectorizes(
    model: Callable, guide: Callable, args: Sequence, kwargs: Mapping, particles: int, nesting: int
) -> bool:
    """Whether particles in one plate have the log-probabilities that each of them has alone.

    What drops out in training drops out anew in each run, and is left in for the trial.
    """
    particles = max(2, min(particles, TRIED))
    trial = left_as_it_was(model, guide), torch.no_grad(), poutine.block(), pyro.validation_enabled(True)
    with ExitStack() as stack:
        for block in (*trial, warnings.catch_warnings()):
            stack.enter_context(block)
        warnings.simplefilter("ignore")
        for module in modules(model, guide).values():
            for part in module.modules():
                if isinstance(part, nn.modules.dropout._DropoutNd):
                    part.eval()
        try:
            together = run_particles(model, guide, args, kwargs, particles, Layout(nesting), None)
            return all(_as_alone(model, guide, args, kwargs, together, k) for k in range(particles))
        except Exception:  # whatever a program does that was not written for a plate of particles; alone it ran
            return False


def _as_alone(model: Callable, guide: Callable, args: Sequence, kwargs: Mapping, together: Traces, k: int) -> bool:
    """Whether particle k has, with its values replayed, the same log-probabilities without the others."""
    alone = _replayed(model, guide, args, kwargs, particle(together[1], k, points=False))
    sites = _by_function(*together)
    return all(key in sites and _equal(of_particle(sites[key], "log_prob", k), alone[key]["log_prob"]) for key in alone)


def _replayed(
    model: Callable, guide: Callable, args: Sequence, kwargs: Mapping, values: poutine.Trace
) -> dict[tuple[str, str], dict[str, Any]]:
    """The sites of model and guide, scored at given values of what the guide draws.

    Without those of a flow that has no inverse, and can score its own draws alone.
    """
    model_trace, guide_trace = run(model, Replay(values)(guide), args, kwargs)
    score(model_trace)
    for site in sample_sites(guide_trace).values():
        with suppress(KeyError, NotImplementedError):
            site["log_prob"] = scale_and_mask(site["fn"].log_prob(site["value"]), site["scale"], site["mask"])
    return {key: site for key, site in _by_function(model_trace, guide_trace).items() if "log_prob" in site}


def _by_function(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> dict[tuple[str, str], dict[str, Any]]:
    both = ("model", model_trace), ("guide", guide_trace)
    return {(of, name): site for of, trace in both for name, site in sample_sites(trace).items()}


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of log-probabilities differ by no more than rounding."""
    if one.numel() != other.numel():
        return False
    tolerance = 4 * torch.finfo(one.dtype).eps ** 0.5
    return torch.allclose(one.reshape(other.shape), other, rtol=tolerance, atol=tolerance, equal_nan=True)


def _halved(
    model: Callable, guide: Callable, args: Sequence, kwargs: Mapping, rows: int, names: Sequence[str]
) -> str | None:
    """The name of the one of these plates that has half as many elements on half of the rows."""
    with left_as_it_was(model, guide), torch.no_grad(), poutine.block(), pyro.validation_enabled(False):
        try:
            shared = shared_plates(*scored(run(model, guide, *_cut(rows, 0, rows // 2, args, kwargs))))
        except Exception:  # a program that is made for so many rows
            return None
    found = [plate.name for plate in shared if plate.name in names and rows // 2 in (plate.size, plate.full_size)]
    return found[0] if len(found) == 1 else None


def _cut(rows: int, start: int, stop: int, args: Sequence, kwargs: Mapping) -> tuple[Sequence, Mapping]:
    """The arguments with rows start … stop − 1 of all tensors that have so many rows."""
    return map_tensors(
        lambda tensor: tensor[start:stop] if tensor.dim() and len(tensor) == rows else tensor,
        (tuple(args), dict(kwargs)),
    )


def _parts(function: Any) -> tuple:
    """What a program is made of: the object and the function of a method, the handlers and functions of a partial."""
    if isinstance(function, MethodType):
        return function.__self__, function.__func__
    if isinstance(function, partial):
        held = (*function.args, *function.keywords.values())
        return (*_parts(function.func), *(part for item in held for part in _parts(item)))
    return (function,)


def _weak(part: Any) -> Callable[[], Any]:
    try:
        return ref(part)
    except TypeError:  # of a kind that cannot be referred to weakly, such as a number
        return lambda: part
