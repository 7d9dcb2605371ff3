"""How a program is measured: what a row is, how many rows are taken at once, and what of it can be compiled."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.indep_messenger import CondIndepStackFrame

from pyro_vae.compiling.export import Graphs, Untraceable, owners
from pyro_vae.evidence.arguments import Arguments
from pyro_vae.tracing.probing import left_as_it_was
from pyro_vae.tracing.traces import Layout, Runs, Traces, paired_traces, particle_trace, shared_plates, the_one


@dataclass(frozen=True)
class Plan:
    """How a program is measured on given arguments.

    Attributes:
        given: all arguments.
        size: rows that are taken at once.
        joint: whether all rows have one weight together, since latent sites lie outside the plate over rows.
        layout: how its particles are drawn.
        runs: what is known of its plates.
    """

    given: Arguments
    size: int
    joint: bool
    layout: Layout
    runs: Runs

    @classmethod
    def of(cls, model: Callable, guide: Callable | None, given: Arguments, asked: int | None, most: int) -> "Plan":
        """Found by running the program on the first batch; only what it makes when it first runs is left.

        ``asked`` rows are taken at once, or, where none are asked for, ``most``; all rows where they have one weight
        together, where the guide is one of Pyro's automatic ones, and where the program does not run on fewer. Raises
        ValueError where fewer are asked for then.
        """
        size = most if asked is None else asked
        if is_automatic(guide):
            size = _all_rows(given, size, asked, "Pyro's automatic guides keep parameters for each row")
        runs, source = Runs(), model if guide is None else guide
        try:
            plate, layout = _tried(runs, model, source, next(given.batches(size)))
        except Exception as error:
            if given.rows is None or size >= given.rows:
                raise
            plate, layout = _tried(runs, model, source, given)  # raises what is not the batch's fault
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            size = _all_rows(given, size, asked, f"the program does not run on fewer ({reason})")
        if plate is None:
            size = _all_rows(given, size, asked, "latent sites outside their plate leave them one weight together")
        elif given.rows is None:
            return cls.of(model, guide, given._replace(rows=plate.size), asked, most)
        return cls(given, size, plate is None, layout, runs)

    @property
    def weights(self) -> int:
        """Number of rows that have a weight of their own; 1 where it is one of all."""
        return 1 if self.joint else self.given.rows

    def batches(self) -> Iterator[Arguments]:
        return self.given.batches(self.size)

    def plate(self, model: Callable, guide: Callable, batch: Arguments, traces: Traces) -> CondIndepStackFrame | None:
        """The plate over the rows of a batch; None where they have one weight together."""
        return None if self.joint else _row_plate(self.runs, model, guide, batch, traces)

    def trace(
        self, program: Callable, batch: Arguments, particles: int, replayed: poutine.Trace | None = None
    ) -> poutine.Trace:
        """The scored trace of one function on a batch, of so many particles, whose values may be those of another."""
        nesting, vectorized = self.layout
        return particle_trace(
            program, batch.args, particles, nesting, kwargs=batch.kwargs, replayed=replayed, vectorized=vectorized
        )

    def graphs(self, wanted: bool | None, calls: int) -> Graphs:
        """What is compiled: nothing where particles run one by one, or where lists, constants of a graph, are cut."""
        obstacle = None
        if not self.layout.vectorized:
            obstacle = "the program takes no plate of particles, which run one after the other"
        elif len(list(self.batches())) > 1 and not self.given.only_tensors:
            obstacle = f"a list or array of the arguments has an entry for each of the {self.given.rows} rows"
        if wanted and obstacle:
            raise Untraceable(f"compiled: {obstacle}; write compiled=False")
        return Graphs(False if obstacle else wanted, calls, self.given.device)


def is_automatic(guide: Callable | None) -> bool:
    """Whether a guide is one of Pyro's that is made from the model when it first runs."""
    return any(isinstance(owner, AutoGuide | EasyGuide | GuideMessenger) for owner in (*owners(guide), guide))


def _tried(runs: Runs, model: Callable, guide: Callable, batch: Arguments) -> tuple[CondIndepStackFrame | None, Layout]:
    """The plate over the rows, None where some site lies outside all plates, and how particles are drawn."""
    layout = runs.layout(model, guide, batch.args, batch.kwargs)
    with left_as_it_was(model, guide):
        traces = paired_traces(model, guide, batch.args, batch.kwargs)
    try:
        shared_plates(*traces)
    except ValueError:  # none
        return None, layout
    return _row_plate(runs, model, guide, batch, traces), layout


def _row_plate(runs: Runs, model: Callable, guide: Callable, batch: Arguments, traces: Traces) -> CondIndepStackFrame:
    """The plate over the rows of a batch; ValueError where it takes some of them at random."""
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


def _all_rows(given: Arguments, size: int, asked: int | None, why: str) -> int:
    """The number of all rows; ValueError where fewer are asked for."""
    rows = given.rows or size
    if asked is not None and asked < rows:
        raise ValueError(f"batch_size: wanted all {rows} rows at once, got {asked}: {why}; leave batch_size out")
    return rows
