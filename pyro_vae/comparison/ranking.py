"""The result of ``best_estimator``: estimators in the order of variance × cost, bound by bound."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pyro_vae.comparison.intervals import Estimate, short
from pyro_vae.comparison.report import WIDTH
from pyro_vae.comparison.results import plain
from pyro_vae.data.frames import framed
from pyro_vae.showing import Shown, on_one_line

UNKNOWN = "no bound"  # the heading of estimators without a rank


@dataclass(frozen=True)
class Ranked:
    """An estimator's place: ``score`` is the variance of its whole gradient × ``cost``, the smaller the better.

    ``target`` names the bound whose gradient it estimates without bias; None, and no ``rank``, where it claims none.
    ``tied`` says that it could not be told apart from the first of its target. ``guide`` and ``model`` are the parts of
    ``variance``, None without such parameters. The score is that of the last round it was drawn in, by ``draws`` draws.
    """

    name: str
    target: str | None
    rank: int | None
    tied: bool
    score: Estimate
    variance: Estimate
    guide: float | None
    model: float | None
    cost: float
    draws: int

    def __repr__(self) -> str:
        place = f"{self.target} {self.rank}" if self.rank else "without a rank"
        return on_one_line(f"Ranked({self.name}: {place}, variance × cost {self.score}, {self.draws} draws)")


@dataclass(frozen=True)
class Ranking:
    """The result of ``best_estimator``: ``print`` it for a table; ``best`` names the first.

    Attributes:
        entries: of all estimators, target by target in the order of their places, those without a target last.
        left_out: why the program does not take an estimator, by its name.
        rounds: how many rounds were drawn.
        stopped: whether the time was over before all decisions were made.
        timed: whether costs are measured seconds of a draw, rather than given.
        images: that the gradient is summed over; None where that is unknown.
        seed: of the random numbers.
        no_bound: why the gradients are of no bound on log p(x), as where a KL has a weight; "" where they are.
    """

    entries: tuple[Ranked, ...]
    left_out: Mapping[str, str]
    rounds: int
    stopped: bool
    timed: bool
    images: int | None
    seed: int
    no_bound: str = ""

    @property
    def targets(self) -> tuple[str, ...]:
        """Return the bounds whose gradients are estimated."""
        return tuple(dict.fromkeys(entry.target for entry in self.entries if entry.target))

    def best(self, target: str | None = None) -> str:
        """Return the name of the first estimator of a target, by default of the first one.

        Raises ValueError where no estimator has this target.
        """
        wanted = target or next(iter(self.targets), None)
        for entry in self.entries:
            if entry.target == wanted and entry.rank == 1:
                return entry.name
        known = ", ".join(self.targets) or "none"
        raise ValueError(f"target: wanted a bound that is estimated without bias, one of: {known}; got {target!r}")

    def tied(self, target: str | None = None) -> tuple[str, ...]:
        """Return the names that could not be told apart from the best of a target, itself among them."""
        best = self.best(target)
        wanted = next(entry.target for entry in self.entries if entry.name == best)
        return tuple(entry.name for entry in self.entries if entry.target == wanted and entry.tied)

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings, lists and dictionaries, for JSON; numbers that are not finite become None."""
        return plain(asdict(self))

    def to_frame(self) -> Any:
        """Return a pandas frame with a row for each estimator. Raises ImportError without pandas."""
        rows = [_row(entry) for entry in self.entries]
        return framed({column: [row[column] for row in rows] for column in rows[0]}, "estimator")

    def __str__(self) -> str:
        return "\n\n".join(map(str, self._shown()))

    def __repr__(self) -> str:
        firsts = ", ".join(f"{target}: {self.best(target)}" for target in self.targets)
        return on_one_line(f"Ranking({len(self.entries)} estimators; {firsts or 'none has a rank'})")

    def _repr_html_(self) -> str:
        return "".join(table.html() for table in self._shown())

    def _shown(self) -> list[Shown]:
        tables = []
        for target, found in itertools.groupby(self.entries, lambda entry: entry.target):
            mark = "*" if self.no_bound else ""
            unknown = f"{UNKNOWN}: biased, or nothing is known of the gradient"
            title = f"gradient of the {target}{mark}" if target else unknown
            columns = ["", "", "variance × cost", "variance", "guide", "model", "cost", "draws"]
            tables.append(Shown(title, [_cells(entry) for entry in found], columns))
        title = f"{len(self.entries)} estimators by variance × cost of the gradient, with 95 % intervals"
        return [Shown(title), *tables, Shown("", notes=list(self._notes()))]

    def _notes(self) -> Iterator[str]:
        unit = "measured seconds of a draw" if self.timed else "as given"
        yield f"Cost: {unit}. Seed {self.seed}, {self.rounds} rounds{self._of_images()}."
        yield "= cannot be told apart from the first; of 100 rankings of equals, at most 5 tell any apart"
        if self.no_bound and self.targets:
            yield on_one_line(f"* no bound on log p(x) here: {self.no_bound}")
        if self.stopped:
            yield "The time was over before all could be told apart: give more seconds."
        if len(self.targets) > 1:
            yield "Variances of different bounds are no reason to prefer one bound to another."
        if any(entry.target is None for entry in self.entries):
            yield "Variance is not all of the error of a biased gradient: those have no rank."
        if any(entry.score.doubtful for entry in self.entries):
            yield "? a few draws make the width of the interval: such tails may be too heavy for any"
        for name, why in self.left_out.items():
            yield on_one_line(f"left out: {name}: {why}")

    def _of_images(self) -> str:
        return f", {self.images} images" if self.images else ""


def _cells(entry: Ranked) -> tuple[str, ...]:
    place = f"{entry.rank}{'=' if entry.tied and entry.rank > 1 else ' '}" if entry.rank else ""
    parts = ("" if part is None else short(part) for part in (entry.guide, entry.model))
    return (entry.name[:WIDTH], place, str(entry.score), short(entry.variance.value), *parts, short(entry.cost),
            str(entry.draws))  # fmt: skip


def _row(entry: Ranked) -> dict[str, Any]:
    ends = {f"score_{end}": getattr(entry.score, end) for end in ("low", "high")}
    numbers = {"variance": entry.variance.value, "cost": entry.cost, "draws": entry.draws}
    place = {"target": entry.target, "rank": entry.rank, "tied": entry.tied}
    return {"estimator": entry.name, **place, "score": entry.score.value, **ends, **numbers}
