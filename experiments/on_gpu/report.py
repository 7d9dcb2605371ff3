"""The speeds that ``gpu.py`` found, as a table for a page and as a figure.

    python -m experiments.on_gpu.report figures/gpu.json --into docs/speed.md --figure figures/gpu.png

The page has a line ``<!-- gpu -->``, named as the file, and a line ``<!-- end -->`` after it.
"""

import argparse
import json
import sys
from typing import Any

from experiments.benchmarks.report import filled
from pyro_vae.files import write_whole
from pyro_vae.plots.figures import new_figure, png
from pyro_vae.runs import exit_status
from pyro_vae.runs.options import home_path
from pyro_vae.runs.parser import Parser

NETS = {"mlp": "MLP 784-400-20", "conv": "conv 32-64"}
COLOURS = {"mlp": "tab:blue", "conv": "tab:orange"}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = Parser(prog="report", description=__doc__)
    parser.add_argument("results", type=home_path, help="results.json of gpu.py")
    parser.add_argument("--into", type=home_path, required=True, metavar="PAGE", help="write the table into this page")
    parser.add_argument("--figure", type=home_path, required=True, metavar="FILE", help="draw it here, a .png")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(lambda: parse_arguments(argv), report, "nothing is written")


def report(args: argparse.Namespace) -> int:
    """Write the table and draw the figure."""
    content = json.loads(args.results.read_text())
    page = filled(args.into.read_text(encoding="utf-8"), args.results.stem, markdown(content))
    draw(content, args.figure)
    write_whole(args.into, page.encode())
    return 0


def rates(content: dict[str, Any]) -> dict[tuple[int, str, str], dict[str, Any]]:
    """Return what was measured of each way, by size of batch, way and network; ways that failed are left out.

    >>> found = {"mlp, batch 128, captured, TF32": {"median": 2.0}, "mlp, batch 128, svi": {"error": "no memory"}}
    >>> rates({"steps": {"speed": {"found": {"steps": found}}}})
    {(128, 'captured, TF32', 'mlp'): {'median': 2.0}}
    """
    found = {}
    for key, measured in content["steps"]["speed"]["found"]["steps"].items():
        net, batch, way = key.split(", ", 2)
        if "median" in measured:
            found[int(batch.removeprefix("batch ")), way, net] = measured
    return found


def markdown(content: dict[str, Any]) -> str:
    """Return the table: images a second of each way, as a multiple of SVI's, and the seconds until it is ready."""
    found, speed = rates(content), content["steps"]["speed"]["found"]
    lines = ["| batch | way | " + " | ".join(f"{name}: images/s | × `SVI` | ready in" for name in NETS.values()) + " |"]
    lines += ["| --- | --- |" + " --- |" * 3 * len(NETS)]
    for batch, way in dict.fromkeys((batch, way) for batch, way, _ in found):
        cells = [cell for net in NETS for cell in _cells(found, batch, way, net)]
        lines.append(f"| {batch} | {way} | " + " | ".join(cells) + " |")
    where = f"{content['machine']}; torch {speed['torch']}; commit {content['commit'][:7]}"
    return "\n".join([*lines, "", f"*`python experiments/gpu.py --only speed`, medians of rounds. {where}.*"])


def _cells(found: dict[tuple[int, str, str], dict[str, Any]], batch: int, way: str, net: str) -> list[str]:
    measured, svi = (found.get((batch, name, net)) for name in (way, "svi"))
    if measured is None or svi is None:
        return ["", "", ""]
    ready = f"{measured['seconds_to_third_step']:.1f} s"
    return [f"{measured['median']:,.0f}", f"{measured['median'] / svi['median']:.1f}", ready]


def draw(content: dict[str, Any], file: Any) -> None:
    """Draw images a second of each way."""
    found = rates(content)
    names = list(dict.fromkeys(f"{way}, batch {batch}" for batch, way, _ in found))
    figure = new_figure(8, 0.35 * len(names) + 1.2)
    axes = figure.subplots()
    for number, (net, label) in enumerate(NETS.items()):
        bars = [(names.index(f"{way}, batch {batch}"), m["median"]) for (batch, way, n), m in found.items() if n == net]
        places, heights = zip(*bars)
        axes.barh([place + 0.38 * (number - 0.5) for place in places], heights, 0.36, color=COLOURS[net], label=label)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:,.0f}")
    axes.set_xlabel("thousands of training images a second")
    axes.set_title(content["machine"].split(",")[0])
    axes.legend(frameon=False)
    write_whole(file, png(figure))


if __name__ == "__main__":
    sys.exit(main())
