"""One table of many runs: ``pyro-vae table runs/*``; only runs whose numbers compare stand in one order."""

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_vae._lazy import LazyModule
from pyro_vae.files import CheckpointError, write_whole
from pyro_vae.runs.columns import COLUMNS, GREY, MEASURED, Cell, Run, differing
from pyro_vae.runs.commands import exit_status
from pyro_vae.runs.options import home_path
from pyro_vae.runs.parser import Parser, suggestion

if TYPE_CHECKING:
    from pyro_vae.runs import sweeps
else:
    sweeps = LazyModule("pyro_vae.runs.sweeps")

DESCRIPTION = """\
Print one table of runs that pyro-vae train or pyro-vae sweep has left: the settings that differ, and what was measured
on the test images, in nats per image, ± its standard error over the images.

    pyro-vae table runs/*
    pyro-vae table runs/* --by lik latent --csv runs.csv --latex runs.tex

Only numbers of the same images and the same kind of observation compare. So the runs stand in blocks, each in an order
of its own: by the bound, the highest first, or, of grey levels, by bits/dim, the lowest first.
"""


@dataclass(frozen=True)
class Block:
    """Runs whose numbers compare: what they are of, and a row of cells each, by the names of the columns."""

    title: str
    rows: list[dict[str, Cell]]


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(lambda: parse_arguments(argv), report, "nothing is written")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = Parser(prog="pyro-vae table", description=DESCRIPTION)
    parser.add_argument("runs", type=home_path, nargs="+", metavar="FOLDER", help="folders of runs")
    parser.add_argument(
        "--by",
        nargs="+",
        default=[],
        metavar="SETTING",
        help="one row for each value of these: the mean over its runs, such as seeds, ± its standard error",
    )
    parser.add_argument(
        "--columns",
        nargs="+",
        default=None,
        metavar="COLUMN",
        help=f"settings, such as lr, and of {', '.join(COLUMNS)} (default: the settings that differ, "
        f"{', '.join(MEASURED)})",
    )
    parser.add_argument("--csv", type=home_path, default=None, metavar="FILE", help="write all digits as CSV, too")
    parser.add_argument("--latex", type=home_path, default=None, metavar="FILE", help="write LaTeX (booktabs), too")
    return parser.parse_args(argv)


def report(args: argparse.Namespace) -> None:
    """Print the table, and write the files that were asked for."""
    runs, unread = read(args.runs)
    for folder, why in unread.items():
        print(f"not in the table: {folder}: {why}", file=sys.stderr)
    if not runs:
        raise ValueError("no folder holds a run that has ended; give those of pyro-vae train --out or pyro-vae sweep")
    if args.by:
        runs, copies = without_copies(runs)
        for copy, first in copies.items():
            print(f"not in the table: {copy}: settings and seed are those of {first}", file=sys.stderr)
    blocks, columns = blocks_of(runs, args.by, args.columns)
    print("\n".join([*lines(blocks, columns), *notes(runs, args.by)]))
    for path, text in ((args.csv, as_csv), (args.latex, as_latex)):
        if path is not None:
            write_whole(path, text(blocks, columns).encode())


def read(folders: Sequence[Path]) -> tuple[list[Run], dict[Path, str]]:
    """Return the finished runs in these folders, and for the other folders why there is none."""
    runs, unread = [], {}
    for folder in {folder.resolve(): folder for folder in folders}.values():  # each once
        try:
            runs.append(Run.read(folder))
        except CheckpointError as error:
            unread[folder] = str(error)
    return runs, unread


def without_copies(runs: Sequence[Run]) -> tuple[list[Run], dict[Path, Path]]:
    """Return the runs but for copies of others, and the folders of copies with those of the first.

    Two runs of the same settings and seed, of the same images, are one draw; as two they would make a standard error
    too small.
    """
    first: dict[tuple[str, str], Run] = {}
    for run in runs:
        first.setdefault((run.block, run.training), run)
    kept = list(first.values())
    copies = {run.folder: first[run.block, run.training].folder for run in runs}
    return kept, {folder: of for folder, of in copies.items() if folder != of}


def blocks_of(
    runs: list[Run], by: Sequence[str] = (), columns: Sequence[str] | None = None
) -> tuple[list[Block], list[str]]:
    """Return the blocks of a table, each in its order, and the names of the columns.

    Raises ValueError for a name in ``by`` or ``columns`` that is neither a setting nor measured.
    """
    by, settings = list(dict.fromkeys(by)), {name for run in runs for name in run.settings}
    for option, names in (("--by", by), ("--columns", columns or ())):
        known = settings if option == "--by" else settings | {*COLUMNS}
        for name in names:
            if name not in known:
                near = suggestion(name, known) or f"wanted some of {' '.join(sorted(known))}"
                raise ValueError(f"{option}: {name} is no setting of these runs; {near}")
    if columns is None:
        columns = [*(by or differing(runs)), *(name for name in MEASURED if any(measured(run, name) for run in runs))]
    elif by:
        for name in columns:
            if name not in (*COLUMNS, *by):
                raise ValueError(f"--columns: {name} is a setting; give --by {' '.join([*by, name])}, or leave it out")
        columns = [*by, *(name for name in columns if name in COLUMNS)]
    first, order = ("runs" if by else "run"), {}
    for run in runs:
        order.setdefault(run.block, []).append(run)
    blocks = [Block(title, ranked(of, rows(of, by, list(columns)))) for title, of in order.items()]
    return blocks, [*columns, first] if by else [first, *columns]


def measured(run: Run, name: str) -> bool:
    """Return whether a run has a number in this column."""
    return COLUMNS[name].of(run) is not None


def rows(runs: list[Run], by: Sequence[str], columns: list[str]) -> list[dict[str, Cell]]:
    """Return a row of cells for each run, or for each value of the settings ``by``; with what the order needs."""
    names = dict.fromkeys([*columns, "bound", "bits"])
    if not by:
        return [{"run": Cell(run.folder)} | {name: cell(run, name) for name in names} for run in runs]
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(str([run.settings.get(name) for name in by]), []).append(run)
    return [
        {name: over(group, name) if name in COLUMNS else cell(group[0], name) for name in names}
        | {"runs": Cell(len(group))}
        for group in groups.values()
    ]


def cell(run: Run, name: str) -> Cell:
    """Return the cell of a run in a column: a setting or what was measured."""
    return COLUMNS[name].cell(run) if name in COLUMNS else Cell(run.settings.get(name))


def over(runs: list[Run], name: str) -> Cell:
    """Return the mean over runs with its standard error; nothing if one of them lacks the number."""
    column = COLUMNS[name]
    found = sweeps.mean([value for value in map(column.of, runs) if value is not None])
    if found is None or len(found["values"]) < len(runs):
        return Cell(None)
    digits = column.digits + (name == "active")  # a mean of whole numbers
    return Cell(found["mean"], found["standard_error"], digits)


def ranked(runs: list[Run], table: list[dict[str, Cell]]) -> list[dict[str, Cell]]:
    """Return the rows of a block, the best first: by bits/dim if it is of grey levels, else by the bound."""
    name, sign = ("bits", 1) if runs[0].observation.endswith(GREY) else ("bound", -1)

    def place(row: dict[str, Cell]) -> tuple[bool, float]:
        value = row[name].value
        return value is None, 0.0 if value is None else sign * value

    return sorted(table, key=place)


def titles(columns: Sequence[str]) -> list[str]:
    """Return the heads of columns."""
    return [COLUMNS[name].title if name in COLUMNS else name for name in columns]


def lines(blocks: Sequence[Block], columns: Sequence[str]) -> list[str]:
    """Return the lines of the table as text, numbers on the right."""
    heads, body = titles(columns), [[str(row[name]) for name in columns] for block in blocks for row in block.rows]
    widths = [max(map(len, column)) for column in zip(heads, *body)]
    right = [name in COLUMNS or name == "runs" for name in columns]

    def line(words: Sequence[str]) -> str:
        placed = (f"{word:>{w}}" if at else f"{word:<{w}}" for word, w, at in zip(words, widths, right))
        return "  ".join(placed).rstrip()

    text = []
    for block in blocks:
        text += ["", block.title, line(heads)] + [line([str(row[name]) for name in columns]) for row in block.rows]
    return text[1:]


def notes(runs: list[Run], by: Sequence[str]) -> list[str]:
    """Return what one must know to compare the rows, a line each."""
    others = [name for name in differing(runs) if name not in (*by, "seed")]
    lacking = {
        f"{run.folder}: {name}: {why}" for run in runs for name, why in (run.metrics.get("left_out") or {}).items()
    }
    found = {
        f"± standard error over the {'runs of a row' if by else 'test images'}; bounds in nats per image": True,
        f"NOTE: a row is a mean over different {', '.join(others)} too; give --by {' '.join([*by, *others])}": by
        and others,
        "NOTE: blocks do not compare: their nats are of other images or observations": len({run.block for run in runs})
        > 1,
        "NOTE: in the order of bits/dim; the nats of different likelihoods of grey levels do not compare": any(
            len({run.unit for run in runs if run.block == title}) > 1
            for title in {run.block for run in runs if run.observation.endswith(GREY)}
        ),
        "NOTE: log p(x) by different numbers of particles or test images: those by fewer particles are lower": len(
            {(run.entry("evidence", "num_particles"), run.entry("evidence", "images")) for run in runs} - {(None, None)}
        )
        > 1,
        **{f"NOTE: not run: {name}": True for name in missing(runs)},
        **{f"NOTE: left out of {each}": True for each in sorted(lacking)},
    }
    shares = [run.entry("evidence", "share_pareto_k_above_0.7") or 0.0 for run in runs]
    found[f"NOTE: log p(x) cannot be trusted for up to {max(shares):.1%} of a run's images (Pareto k̂ > 0.7)"] = any(
        shares
    )
    return [note for note, holds in found.items() if holds]


def missing(runs: list[Run]) -> list[str]:
    """Return the seeds that some settings lack and other settings of their block have."""
    names = [name for name in differing(runs) if name != "seed"]
    seeds: dict[str, set[Any]] = {}
    groups: dict[tuple[str, str], set[Any]] = {}
    for run in runs:
        words = " ".join(f"{name} {Cell(run.settings.get(name))}" for name in names)
        seeds.setdefault(run.block, set()).add(run.settings.get("seed"))
        groups.setdefault((run.block, words), set()).add(run.settings.get("seed"))
    return [
        f"{words}, seed {', '.join(map(str, sorted(seeds[block] - there)))}".removeprefix(", ")
        for (block, words), there in groups.items()
        if seeds[block] - there
    ]


def as_csv(blocks: Sequence[Block], columns: Sequence[str]) -> str:
    """Return the table as CSV: all digits, standard errors in columns of their own, the block in the first one."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    heads = [[name, f"{name}_standard_error"] if name in COLUMNS else [name] for name in columns]
    writer.writerow(["compares_with", *(head for pair in heads for head in pair)])
    for block in blocks:
        for row in block.rows:
            values = [[row[name].value, row[name].error] if name in COLUMNS else [str(row[name])] for name in columns]
            writer.writerow([block.title, *(value for pair in values for value in pair)])
    return file.getvalue()


def as_latex(blocks: Sequence[Block], columns: Sequence[str]) -> str:
    """Return the table as LaTeX, with the rules of the package booktabs."""
    heads = [COLUMNS[name].latex if name in COLUMNS else escaped(name) for name in columns]
    text = [rf"\begin{{tabular}}{{{''.join('r' if name in COLUMNS else 'l' for name in columns)}}}", r"\toprule"]
    for number, block in enumerate(blocks):
        text += [r"\midrule"] * (number > 0)
        text += [rf"\multicolumn{{{len(columns)}}}{{l}}{{{escaped(block.title)}}} \\", " & ".join(heads) + r" \\"]
        text += [r"\midrule", *(" & ".join(in_latex(row[name]) for name in columns) + r" \\" for row in block.rows)]
    return "\n".join([*text, r"\bottomrule", r"\end{tabular}", ""])


def in_latex(cell: Cell) -> str:
    r"""Return a cell as LaTeX.

    >>> in_latex(Cell(-83.123, 0.052, 2)), in_latex(Cell("flow_width"))
    ('$-83.12 \\pm 0.05$', 'flow\\_width')
    """
    if cell.digits is None or cell.value is None:
        return escaped(str(cell))
    number = str(cell).replace("±", r"\pm")
    return f"${number}$"


def escaped(text: str) -> str:
    r"""Return text in which LaTeX reads every character as it is.

    >>> escaped("50% of a_b, 8 × 8")
    '50\\% of a\\_b, 8 $\\times$ 8'
    """
    words = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "×": r"$\times$"}
    words |= {character: f"\\{character}" for character in "&%$#_{}"}
    return "".join(words.get(character, character) for character in text)
