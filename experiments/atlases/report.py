"""The numbers of the guide's gradient in an atlas, as a table for a page.

    python -m experiments.atlases.report figures/atlas.json --into docs/estimators.md

The page has a line ``<!-- atlas -->``, named as the file, and a line ``<!-- end -->`` after it; and the same for
``<!-- atlas-gains -->``, the trainings for equal seconds, where there are any.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence

from experiments.atlases.answers import (
    GAINS,
    PLAIN,
    REFERENCE,
    Cell,
    cheapest,
    curve,
    measured,
    minibatch_share,
    of,
    places,
    ratio,
    spread,
    value,
)
from experiments.benchmarks.report import filled
from pyro_vae.files import write_whole
from pyro_vae.runs import exit_status
from pyro_vae.runs.options import home_path
from pyro_vae.runs.parser import Parser

HEADINGS = (
    "program, moment",
    "variance, L^A = 1: L^B",
    "STL",
    "SNR: L^A",
    "STL",
    "IWAE",
    "DReG",
    "share of the images in L^A's variance",
    "least variance × seconds, guide and model, L^A = 1",
)

BOUNDS = (("valid", "bound"), ("evidence", "log_px"))


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = Parser(prog="report", description=__doc__)
    parser.add_argument("results", type=home_path, help="the JSON that atlas.py wrote")
    parser.add_argument("--into", type=home_path, required=True, metavar="PAGE", help="write the table into this page")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(lambda: parse_arguments(argv), report, "nothing is written")


def report(args: argparse.Namespace) -> int:
    """Write the table."""
    cells, name = json.loads(args.results.read_text())["cells"], args.results.stem
    page = filled(args.into.read_text(encoding="utf-8"), name, markdown(cells))
    if trained := [cell for cell in cells if cell["moment"] == GAINS]:
        page = filled(page, f"{name}-{GAINS}", markdown_of_gains(trained))
    write_whole(args.into, page.encode())
    return 0


def markdown(cells: Sequence[Cell]) -> str:
    """Return a row for each program and moment; numbers are means over seeds, with their least and largest."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + " --- |" * len(HEADINGS)]
    for place in places(measured(cells)):
        lines.append(f"| {', '.join(place)} | " + " | ".join(_numbers(of(cells, place))) + " |")
    return "\n".join(lines)


def markdown_of_gains(cells: Sequence[Cell]) -> str:
    """Return a row for each program and estimator; numbers are means over seeds, with their least and largest."""
    lines = ["| program, trained by | steps | ELBO | L_64 |", "| --- | --- | --- | --- |"]
    for program, name in dict.fromkeys((cell["program"], name) for cell in cells for name in cell["trained"]):
        runs = [cell["trained"][name] for cell in cells if cell["program"] == program]
        steps = spread([run["steps"] for run in runs], 6)
        bounds = [spread([run[kind][key] for run in runs], 5) for kind, key in BOUNDS]
        lines.append(f"| {program}, {name} | {steps} | {' | '.join(bounds)} |")
    return "\n".join(lines)


def _numbers(cells: Sequence[Cell]) -> Iterator[str]:
    for name in ("L^B", PLAIN):
        yield spread([ratio(cell, name, "guide") for cell in cells])
    for name in (REFERENCE, PLAIN):
        yield spread([value(cell, name, "guide", "snr") for cell in cells])
    for kind in ("IWAE", "DReG"):
        yield ", ".join(f"{snr:.2g} (K = {K})" for K, snr in curve(cells, kind)) or "–"
    yield spread([minibatch_share(cell, REFERENCE, "guide") for cell in cells])
    yield "; ".join(f"{name}: {cost:.2g}" for name, cost in map(cheapest, cells))


if __name__ == "__main__":
    sys.exit(main())
