"""Everything that is wanted, in one table: imports, starts, steps, threads, a busy machine, measuring, quality."""

import argparse
from dataclasses import asdict, replace
from typing import Any

from matplotlib.figure import Figure

from experiments.benchmarks import imports, load, machine, measuring, quality, record, speed, start, suite, threads
from experiments.benchmarks.rows import Row, in_order
from experiments.benchmarks.rows import markdown as as_markdown
from experiments.benchmarks.rows import table as as_table
from pyro_vae.data import Data
from pyro_vae.plots import COLOURS, DPI, GREY
from pyro_vae.runs import provenance

GROUPS = {  # each has OPTIONS, and rows(images, args)
    "import": imports,
    "start": start,
    "step": speed,
    "threads": threads,
    "busy": load,
    "measuring": measuring,
    "quality": quality,
    "suite": suite,
}
SELDOM = ("suite",)  # measured only if named
OPTIONS = ("groups", "resume", "against", "nets", "batches", "only", "images", "rounds", "seeds", "evidence")
SAME = ("cpu", "cores", "threads")  # of two machines whose numbers can be compared


def measure(images: Data, args: argparse.Namespace) -> dict[str, Any]:
    """Return the machine and the rows of each group; results are written after each group.

    Raises ValueError, before anything is measured, if the file of --against is of another machine.
    """
    here = machine.describe()
    old = read(args.against, here) if args.against else []
    kept = kept_groups(args, here, images.name) if args.resume else {}
    found = {"machine": here, "groups": kept, "against": [asdict(row) for row in old]}
    for name in args.groups:
        if name not in kept:
            found["groups"][name] = group(GROUPS[name], images, args)
            record.write(images.name, args, found)
    return found


def group(module: Any, images: Data, args: argparse.Namespace) -> dict[str, Any]:
    """Return the rows of a group and what they depend on, or the reason of its failure."""
    outcome: dict[str, Any] = {"origin": origin(module, args, images.name), "rows": [], "failed": None}
    try:
        outcome["rows"] = [asdict(row) for row in module.rows(images, args)]
    except Exception as error:  # any failure of one group; the others go on
        outcome["failed"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        print(f"failed: {outcome['failed']}", flush=True)
    return outcome


def origin(module: Any, args: argparse.Namespace, dataset: str) -> dict[str, Any]:
    """Return what the rows of a group depend on, beside the machine."""
    settings = {name: value for name, value in vars(args).items() if name in module.OPTIONS}
    versions = {name: str(value).rstrip("+") for name, value in provenance().items()}  # results may be tracked files
    if versions.get("git_commit_at_the_end") == versions["git_commit"]:
        del versions["git_commit_at_the_end"]
    return {"dataset": dataset, "settings": settings, "versions": versions}


def kept_groups(args: argparse.Namespace, here: dict[str, Any], dataset: str) -> dict[str, Any]:
    """Return the groups in the file of results that need not be repeated."""
    path = args.out.with_suffix(".json")
    if not path.exists():
        return {}
    before = record.read(path, "summary")
    if any(before["machine"][name] != here[name] for name in SAME):
        return {}
    return {
        name: outcome
        for name, outcome in before["groups"].items()
        if name in GROUPS and not outcome["failed"] and outcome["origin"] == origin(GROUPS[name], args, dataset)
    }


def read(path: Any, here: dict[str, Any]) -> list[Row]:
    """Return the rows of a file; raise ValueError if it is of a machine other than ``here``."""
    found = record.read(path, "summary")
    for name in SAME:
        if found["machine"][name] != here[name]:
            raise ValueError(
                f"{path}: {name} {found['machine'][name]}, here {here[name]}; compare results of one machine, or leave "
                "--against out"
            )
    return rows_of(found)


def rows_of(found: dict[str, Any]) -> list[Row]:
    """Return the rows of all groups."""
    return [Row(**row) for outcome in found["groups"].values() for row in outcome["rows"]]


def table(found: dict[str, Any]) -> str:
    """Return the machine, the rows, and the groups that failed as text."""
    old = [Row(**row) for row in found["against"]]
    failed = [f"{name}: failed: {one['failed']}" for name, one in found["groups"].items() if one["failed"]]
    return "\n".join([machine.in_words(found["machine"]), "", as_table(rows_of(found), old), *failed])


def markdown(found: dict[str, Any]) -> str:
    """Return machine and rows in Markdown."""
    return f"{as_markdown(rows_of(found))}\n\n*{machine.in_words(found['machine'])}.*"


def figure(found: dict[str, Any]) -> Figure:
    """Draw how far each row is from what is wanted: at 1 it is reached, at 2 it is twice as good."""
    rows = [row for row in in_order(rows_of(found)) if row.wanted and row.rounds]
    drawn = Figure(figsize=(8, 1 + 0.25 * len(rows)), dpi=DPI, layout="constrained")
    axes = drawn.subplots()
    for row in rows:
        shares = [goodness(replace(row, rounds=[value])) for value in row.rounds]
        colour = COLOURS[0] if row.verdict == "reached" else COLOURS[4]
        axes.barh(row.name, goodness(row), color=colour)
        axes.plot(shares, [row.name] * len(shares), "k.", ms=3)
    axes.axvline(1, color=GREY, linewidth=1)
    axes.set(xlabel="measured / wanted, or wanted / measured where less is better", xlim=(0, None))
    axes.tick_params(labelsize="small")
    axes.invert_yaxis()
    return drawn


def goodness(row: Row) -> float:
    """Return the share of what is wanted that is reached.

    >>> goodness(Row("a", wanted=2.0, rounds=[3.0])), goodness(Row("a", lower=True, wanted=2.0, rounds=[4.0]))
    (1.5, 0.5)
    """
    assert row.wanted is not None
    inverse = row.lower or row.wanted < 0
    return row.wanted / row.value if inverse else row.value / row.wanted
