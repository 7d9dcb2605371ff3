"""How a program is measured: which plate is over its rows, how many rows run at once, and what can be compiled."""

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.indep_messenger import CondIndepStackFrame

from pyro_vae.arguments import ProgramArguments
from pyro_vae.compiling import Graphs, Untraceable, owners
from pyro_vae.tracing.probing import left_as_it_was
from pyro_vae.tracing.traces import (
    ParticleLayout,
    ProgramRuns,
    Traces,
    paired_traces,
    particle_trace,
    shared_plates,
    the_one,
)

PIXELS = 784  # numbers of a row that is decoded in about the memory of an image
EASY = "pyro.contrib.easyguide"  # it comes with all of pyro.contrib: looked up where a program has loaded it


@dataclass(frozen=True)
class MeasurementPlan:
    """How a program is measured on given arguments.

    Attributes:
        given: all arguments.
        size: rows that run at once.
        joint: whether all rows have one weight together, because a latent site lies outside the plate over rows.
        layout: how its particles are drawn.
        runs: what is known of its plates.
        functions: model and guide, by these names.
    """

    given: ProgramArguments
    size: int
    joint: bool
    layout: ParticleLayout
    runs: ProgramRuns
    functions: Mapping[str, Callable | None]

    @classmethod
    def of(
        cls, model: Callable, guide: Callable | None, given: ProgramArguments, asked: int | None, most: int
    ) -> "MeasurementPlan":
        """Find the plan by running the program on the first batch, which leaves only what a first run creates.

        ``asked`` is the number of rows at once that the user asked for. If it is None, ``most`` rows run at once. All
        rows run at once if they have one weight together, if the guide is an automatic one of Pyro's, or if the program
        does not run on fewer. Raises ValueError if all rows must run at once and fewer were asked for.
        """
        size = most if asked is None else asked
        if is_automatic(guide):
            size = _all_rows(given, size, asked, "Pyro's automatic guides keep parameters for each row")
        runs, source = ProgramRuns(), model if guide is None else guide
        try:
            plate, layout = _tried(runs, model, source, next(given.batches(size)))
        except Exception as error:
            if given.rows is None or size >= given.rows:
                raise
            plate, layout = _tried(runs, model, source, given)  # raises errors that the batch did not cause
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            size = _all_rows(given, size, asked, f"the program does not run on fewer ({reason})")
        if plate is None:
            size = _all_rows(given, size, asked, "latent sites outside their plate give them one weight together")
        elif given.rows is None:
            return cls.of(model, guide, given._replace(rows=plate.size), asked, most)
        return cls(given, size, plate is None, layout, runs, {"model": model, "guide": guide})

    @property
    def weights(self) -> int:
        """The number of rows with a weight of their own; 1 if all have one weight together."""
        return 1 if self.joint or self.given.rows is None else self.given.rows

    def draws_at_once(self, batch: ProgramArguments, chunk: int) -> int:
        """Return how many draws for a batch run at once where ``chunk`` z are decoded at once.

        Rows that share a latent variable all run in each draw, and may be single numbers: they count as the images of
        784 pixels that hold as many numbers, and at least as a 64th of their number.
        """
        rows = batch.rows or 1
        if self.joint and batch.tensors:
            numbers = max(tensor.numel() for tensor in batch.tensors)
            rows = min(rows, max(math.ceil(numbers / PIXELS), math.ceil(rows / 64)))
        return max(1, chunk // rows)

    def batches(self) -> Iterator[ProgramArguments]:
        """Yield the arguments in batches of ``size`` rows."""
        return self.given.batches(self.size)

    def plate(
        self, model: Callable, guide: Callable, batch: ProgramArguments, traces: Traces
    ) -> CondIndepStackFrame | None:
        """Return the plate over the rows of a batch; None if they have one weight together."""
        return None if self.joint else _row_plate(self.runs, model, guide, batch, traces)

    def trace(
        self, program: Callable, batch: ProgramArguments, particles: int, replayed: poutine.Trace | None = None
    ) -> poutine.Trace:
        """Return the scored trace of a model or guide on a batch, with values from ``replayed`` if it is given."""
        nesting, vectorized = self.layout
        return particle_trace(
            program, batch.args, particles, nesting, kwargs=batch.kwargs, replayed=replayed, vectorized=vectorized
        )

    def graphs(self, wanted: bool | None, calls: int) -> Graphs:
        """Return the compiled functions of the program, for ``calls`` expected calls.

        Nothing is compiled if particles run one after the other, or if lists or arrays are cut, which are constants of
        a graph. Raises Untraceable if that is so and ``wanted`` is True.
        """
        obstacle = None
        if not self.layout.vectorized:
            obstacle = "the program takes no plate of particles, which run one after the other"
        elif len(list(self.batches())) > 1 and not self.given.only_tensors:
            obstacle = f"a list or array of the arguments has an entry for each of the {self.given.rows} rows"
        if wanted and obstacle:
            raise Untraceable(f'engine="compiled": {obstacle}; write engine="eager"')
        return Graphs(False if obstacle else wanted, calls, self.given.device, self.functions)


def is_automatic(guide: Callable | None) -> bool:
    """Return whether a guide is one of Pyro's that is built from the model at its first run."""
    easy = getattr(sys.modules.get(EASY), "EasyGuide", GuideMessenger)
    return any(isinstance(owner, (AutoGuide, easy, GuideMessenger)) for owner in (*owners(guide), guide))


def _tried(
    runs: ProgramRuns, model: Callable, guide: Callable, batch: ProgramArguments
) -> tuple[CondIndepStackFrame | None, ParticleLayout]:
    """Return the plate over the rows, None if some site lies outside all plates, and how particles are drawn."""
    layout = runs.layout(model, guide, batch.args, batch.kwargs)
    with left_as_it_was(model, guide):
        traces = paired_traces(model, guide, batch.args, batch.kwargs)
    try:
        shared_plates(*traces)
    except ValueError:  # none
        return None, layout
    return _row_plate(runs, model, guide, batch, traces), layout


def _row_plate(
    runs: ProgramRuns, model: Callable, guide: Callable, batch: ProgramArguments, traces: Traces
) -> CondIndepStackFrame:
    """Return the plate over the rows of a batch; raise ValueError if it subsamples them."""
    if batch.rows is None:
        plate = the_one(shared_plates(*traces), None)
        rows = plate.full_size or plate.size
    else:
        plate = runs.plate(model, guide, batch.args, batch.kwargs, traces, batch.rows)
        rows = batch.rows
    if plate.size != rows:
        raise ValueError(
            f"the plate {plate.name!r} takes {plate.size} of {rows} rows at random, so that these have no weights of "
            "their own; give the rows that are to be measured, and a plate of len(x)"
        )
    return plate


def _all_rows(given: ProgramArguments, size: int, asked: int | None, why: str) -> int:
    """Return the number of all rows; raise ValueError if fewer were asked for."""
    rows = given.rows or size
    if asked is not None and asked < rows:
        raise ValueError(f"batch_size: wanted all {rows} rows at once, got {asked}: {why}; leave batch_size out")
    return rows
