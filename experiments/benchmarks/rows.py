"""Rows of the summary: what was measured in each round, what is wanted, and tables of them."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Row:
    """One quantity: its values in the rounds, and the least or the most that is wanted of it.

    Attributes:
        name: what it is.
        unit: "×" of ratios, "%", "s", or of a rate, such as "images/s".
        lower: whether lower values are better.
        wanted: the least that is wanted, or the most if ``lower``; None: it is only compared with earlier ones.
        rounds: the values.
    """

    name: str
    unit: str = "×"
    lower: bool = False
    wanted: float | None = None
    rounds: Sequence[float] = ()

    @property
    def value(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.rounds)

    @property
    def verdict(self) -> str:
        """Whether it is as wanted.

        >>> Row("a", wanted=1.2, rounds=[1.0, 1.3, 1.4]).verdict, Row("a", lower=True, wanted=1.2, rounds=[1.3]).verdict
        ('reached', 'missed')
        >>> Row("a", wanted=1.2).verdict, Row("a", rounds=[1.0]).verdict
        ('not measured', '')
        """
        if not self.rounds:
            return NOT_MEASURED
        if self.wanted is None:
            return ""
        return "reached" if (self.value <= self.wanted if self.lower else self.value >= self.wanted) else "missed"

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """Name, median with the range of the rounds, what is wanted, and the verdict."""
        value = in_unit(self.value, self.unit) if self.rounds else ""
        least, most = (in_unit(end(self.rounds), self.unit) if len(self.rounds) > 1 else "" for end in (min, max))
        spread = f" ({least.split()[0]} to {most.split()[0]})" if least != most else ""
        wanted = "" if self.wanted is None else f"{'≤' if self.lower else '≥'} {in_unit(self.wanted, self.unit)}"
        return self.name, value + spread, wanted, self.verdict


TARGETS = {
    row.name: row
    for row in (
        Row("import of pyro_vae with the usual names / of torch and pyro", lower=True, wanted=1.15),
        Row("pyro-vae train --help", "s", lower=True, wanted=1.0),
        Row("run.py --help", "s", lower=True, wanted=1.0),
        Row("MLP, batch 128: first compiled step, warm cache", "s", lower=True, wanted=1.5),
        Row("MLP, batch 128: first compiled step, cold cache", "s", lower=True, wanted=8.0),
        Row("MLP, batch 128: compiled float32 / numpyro", wanted=1.2),
        Row("MLP, batch 512: compiled float32 / numpyro", wanted=1.2),
        Row("MLP, batch 128: compiled, better precision / numpyro", wanted=1.5),
        Row("MLP, batch 512: compiled, better precision / numpyro", wanted=2.0),
        Row("MLP, batch 128: compiled float32 / by hand, compiled whole", wanted=1.2),
        Row("MLP, batch 512: compiled float32 / by hand, compiled whole", wanted=1.2),
        Row("conv 32-64, batch 128: compiled bfloat16 / torch eager", wanted=2.2),
        Row("conv 32-64, batch 512: compiled bfloat16 / torch eager", wanted=2.2),
        Row("MLP, batch 128: all cores / one thread, compiled", wanted=1.6),
        Row("MLP, batch 128: all cores / one thread, compiled bfloat16", wanted=1.6),
        Row("MLP, batch 128: speed left beside a busy core, compiled", "%", wanted=45),
        Row("MLP, batch 128: speed left beside a busy core, compiled bfloat16", "%", wanted=45),
        Row("recipe fast: from a fresh shell to the trained model", "s", lower=True, wanted=60),
        Row("recipe fast: log p(x), lowest of the seeds", "nats", wanted=-86.76),
        Row("test suite", "s", lower=True, wanted=240),
    )
}


def row(name: str, rounds: Sequence[float], unit: str = "×", lower: bool = False) -> Row:
    """Return a measured row, with what is wanted of it.

    >>> row("run.py --help", [2.0]) == Row("run.py --help", "s", lower=True, wanted=1.0, rounds=[2.0])
    True
    """
    return replace(TARGETS.get(name, Row(name, unit, lower)), rounds=list(rounds))


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Return the ratio of each round.

    >>> ratios([2.0, 9.0], [1.0, 3.0])
    [2.0, 3.0]
    """
    return [a / b for a, b in zip(over, under)]


def in_unit(value: float, unit: str) -> str:
    """Return a value with its unit, as exact as a benchmark is.

    >>> in_unit(1.234, "×"), in_unit(44.6, "%"), in_unit(0.987, "s"), in_unit(138.2, "s"), in_unit(32123.4, "images/s")
    ('1.23 ×', '45 %', '0.99 s', '138 s', '32,123 images/s')
    """
    digits = 2 if unit in ("×", "nats") or (unit == "s" and value < 10) else 0
    return f"{value:,.{digits}f} {unit}".replace("-", "−")


def in_order(rows: Iterable[Row]) -> list[Row]:
    """Return the rows of which something is wanted first, also those that were not measured; then the others."""
    found = {row.name: row for row in rows}
    return [found.pop(name, target) for name, target in TARGETS.items()] + list(found.values())


def change(new: Row, old: Row) -> str:
    """Return new / old; worse or better where the ranges of the rounds do not overlap.

    >>> change(Row("a", rounds=[2.0, 2.2]), Row("a", rounds=[1.0, 1.1]))
    '2.00 × before, better'
    >>> change(Row("a", lower=True, rounds=[2.0, 2.2]), Row("a", lower=True, rounds=[1.0, 1.1]))
    '2.00 × before, worse'
    >>> change(Row("a", rounds=[1.0, 2.0]), Row("a", rounds=[1.5]))
    '1.00 × before'
    """
    said = f"{new.value / old.value:.2f} × before"
    apart = max(old.rounds) < min(new.rounds) or max(new.rounds) < min(old.rounds)
    if not apart or len(new.rounds) < 2 or len(old.rounds) < 2:
        return said
    return said + (", worse" if (new.value > old.value) == new.lower else ", better")


def table(rows: Sequence[Row], old: Iterable[Row] = ()) -> str:
    """Return the rows as text, in columns; with ``old``, also how each has changed."""
    before = {row.name: row for row in old if row.rounds}
    lines = [
        (*row.cells, change(row, before[row.name]) if row.rounds and row.name in before else "")
        for row in in_order(rows)
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def markdown(rows: Sequence[Row]) -> str:
    """Return the rows of which something is wanted as a table of Markdown.

    >>> print(markdown([row("test suite", [300.0])]).splitlines()[-1])
    | test suite | 300 s | ≤ 240 s | missed |
    """
    shown = [row.cells for row in in_order(rows) if row.wanted is not None]
    return as_markdown([("what", "median (rounds)", "wanted", ""), *shown])


def as_markdown(lines: Sequence[Sequence[object]]) -> str:
    """Return a table of Markdown, whose first line is its head.

    >>> print(as_markdown([("seed", "seconds"), (0, 60)]))
    | seed | seconds |
    | --- | --- |
    | 0 | 60 |
    """
    head, *others = lines
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in (head, ["---"] * len(head), *others))
