"""How the K particles of a program are drawn, and which of its plates is over the rows; both are found by trials.

No program is written for a plate of particles, and nothing in it names the plate over its rows. The trials leave the
program as it was.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from types import MethodType
from typing import Any
from weakref import ref

import pyro
import torch
from pyro import poutine
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import nn

from pyro_vae.tracing.numbers import is_tracing
from pyro_vae.tracing.particles import (
    ParticleLayout,
    Traces,
    nesting_of,
    of_particle,
    particle,
    run,
    run_particles,
    scored,
)
from pyro_vae.tracing.probing import left_as_it_was, modules, tensors
from pyro_vae.tracing.rows import count_rows, shared_plates, the_one
from pyro_vae.tracing.trials import TRIED, agree, by_function, cut_rows, replayed

DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
FEW_SHAPES = 8  # shapes of arguments for which layouts are tried; what holds for them is taken to hold for all


class ProgramRuns:
    """Runs of one program, batch after batch, whose K particles are drawn together or one after the other.

    It remembers how the particles are drawn, for each mode of the modules and each shape of the arguments, and which
    plate is over the rows. Another program resets it. It keeps no program alive.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> from pyro_vae.tracing.rows import log_weights
    >>> program, runs = LinearGaussian(torch.ones(3, 1)), ProgramRuns(particles=5)
    >>> x = program.simulate(2)
    >>> traces = runs(program.model, program.guide, (x,))
    >>> plate = runs.plate(program.model, program.guide, (x,), {}, traces)
    >>> plate.name, log_weights(*traces, plate=plate).shape
    ('images', torch.Size([5, 2]))
    """

    def __init__(self, particles: int = 1, vectorize: bool | None = None):
        """Choose the number of particles and how they are drawn.

        ``vectorize`` says whether they are drawn together; None: if a trial shows that this changes no result.
        """
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
        """Return the ``paired_traces`` of this batch."""
        kwargs = kwargs or {}
        if self.particles == 1:
            return scored(run(model, guide if handler is None else handler(guide), args, kwargs))
        layout = self.layout(model, guide, args, kwargs)
        return run_particles(model, guide, args, kwargs, self.particles, layout, handler)

    def layout(
        self, model: Callable, guide: Callable, args: Sequence = (), kwargs: Mapping | None = None
    ) -> ParticleLayout:
        """Return how the particles of this program are drawn for such arguments.

        One particle is scored alone, with its values of the latent sites, and in a plate of particles. If the two
        differ by more than rounding, or if the second fails, particles run one after the other.
        """
        kwargs = kwargs or {}
        self._meet(model, guide)
        modes = tuple(module.training for weak in self._modules if (module := weak()) is not None)
        key = modes, tuple(tensor.shape for tensor in tensors((args, kwargs)))
        if key in self._layouts:
            return self._layouts[key]
        known = [layout for (other, _), layout in self._layouts.items() if other == modes]
        if len(known) >= FEW_SHAPES or (known and is_tracing()):
            return ParticleLayout(known[-1].nesting, all(layout.vectorized for layout in known))
        if is_tracing():  # no trial is possible; an eager run has found it out, or the caller knows
            with torch.random.fork_rng([]), torch.no_grad(), poutine.block():
                return ParticleLayout(nesting_of(*run(model, guide, args, kwargs)), self.vectorize is not False)
        with left_as_it_was(model, guide, keep_new=True), torch.no_grad(), poutine.block():
            alone = scored(run(model, guide, args, kwargs))
        layout = ParticleLayout(nesting_of(*alone), self.vectorize is not False)
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
        """Return the plate over the rows of this batch: ``image_plate``, or a choice by further batches.

        The number of rows is ``images``, or that of the first tensor among the arguments. Of two plates with this size,
        it is the one that an earlier batch of another size showed to be over rows, or that has half the size on half of
        the rows.

        Raises ValueError if that does not decide it either.
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
        if rows is not None and len(names) > 1 and self._rows not in names and not is_tracing():
            self._rows = _halved(model, guide, args, kwargs, rows, names)
        known = [plate for plate in fitting if plate.name == self._rows]
        return known[0] if known else the_one(shared, rows)

    def _meet(self, model: Callable, guide: Callable) -> None:
        """Forget what is known, unless it is about this program."""
        parts = (*_parts(model), *_parts(guide))
        same = len(parts) == len(self._program) and all(weak() is part for weak, part in zip(self._program, parts))
        if not same:
            self._forget(parts)
            self._modules = tuple(map(ref, modules(model, guide).values()))

    def _forget(self, parts: tuple) -> None:
        self._program: tuple[Callable[[], Any], ...] = tuple(map(_weak, parts))
        self._modules: tuple[Callable[[], nn.Module | None], ...] = ()
        self._layouts: dict[tuple, ParticleLayout] = {}
        self._rows: str | None = None

    def __reduce__(self) -> tuple:
        return ProgramRuns, (self.particles, self.vectorize)


def _vectorizes(
    model: Callable, guide: Callable, args: Sequence, kwargs: Mapping, particles: int, nesting: int
) -> bool:
    """Return whether particles in one plate have the log-probabilities that each of them has alone.

    Dropout draws anew in each run, and is switched off for the trial.
    """
    particles = max(2, min(particles, TRIED))
    trial = left_as_it_was(model, guide), torch.no_grad(), poutine.block(), pyro.validation_enabled(True)
    with ExitStack() as stack:
        for block in (*trial, warnings.catch_warnings()):
            stack.enter_context(block)
        warnings.simplefilter("ignore")
        for module in modules(model, guide).values():
            for part in module.modules():
                if isinstance(part, DROPOUT):
                    part.eval()
        try:
            together = run_particles(model, guide, args, kwargs, particles, ParticleLayout(nesting), None)
            return all(_as_alone(model, guide, args, kwargs, together, k) for k in range(particles))
        except Exception:  # a program not written for a plate of particles may raise anything
            return False


def _as_alone(model: Callable, guide: Callable, args: Sequence, kwargs: Mapping, together: Traces, k: int) -> bool:
    """Return whether particle k, with its values replayed, has the same log-probabilities without the others."""
    alone = replayed(model, guide, args, kwargs, particle(together[1], k, points=False))
    sites = by_function(*together)
    return all(key in sites and agree(of_particle(sites[key], "log_prob", k), alone[key]["log_prob"]) for key in alone)


def _halved(
    model: Callable, guide: Callable, args: Sequence, kwargs: Mapping, rows: int, names: Sequence[str]
) -> str | None:
    """Return the name of the only one of these plates that has half the size on half of the rows, or None."""
    with left_as_it_was(model, guide), torch.no_grad(), poutine.block(), pyro.validation_enabled(False):
        try:
            shared = shared_plates(*scored(run(model, guide, *cut_rows(rows, 0, rows // 2, args, kwargs))))
        except Exception:  # a program for a fixed number of rows
            return None
    found = [plate.name for plate in shared if plate.name in names and rows // 2 in (plate.size, plate.full_size)]
    return found[0] if len(found) == 1 else None


def _parts(function: Any) -> tuple:
    """Return the parts of a program: object and function of a method, function and arguments of a partial."""
    if isinstance(function, MethodType):
        return function.__self__, function.__func__
    if isinstance(function, partial):
        held = (*function.args, *function.keywords.values())
        return (*_parts(function.func), *(part for item in held for part in _parts(item)))
    return (function,)


def _weak(part: Any) -> Callable[[], Any]:
    try:
        return ref(part)
    except TypeError:  # an object without weak references, such as a number
        return lambda: part
