"""``pyro-vae data``: which data sets are there, and what a data set, a folder or a file holds."""

import argparse
from typing import TYPE_CHECKING

from pyro_vae._lazy import LazyModule
from pyro_vae.runs.commands import exit_status
from pyro_vae.runs.options import DATA_DIR, add_options
from pyro_vae.runs.parser import Parser
from pyro_vae.words import LAYOUTS

if TYPE_CHECKING:
    from pyro_vae.runs import data_report
else:
    data_report = LazyModule("pyro_vae.runs.data_report")

DESCRIPTION = """\
Which data sets are there, and what do they hold? Without a NAME all data sets are listed, with the folder of each, or
how to get it. Of a data set, a folder of yours, or a file of arrays or a table (.csv), the splits, shapes and classes
are shown.

    pyro-vae data
    pyro-vae data mnist
    pyro-vae data my/pictures --size 32
"""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = Parser(prog="pyro-vae data", description=DESCRIPTION)
    parser.add_argument("name", nargs="?", metavar="NAME", help="of a data set, a folder or a file (default: list all)")
    parser.add_argument("--download", action="store_true", help="fetch a data set that is not there")
    add_options(parser, [DATA_DIR])
    parser.add_argument(
        "--size", type=int, nargs="+", metavar="PIXELS", help="to which pictures are scaled (default: as they are)"
    )
    parser.add_argument("--layout", choices=LAYOUTS[1:], help="order of the axes of arrays, where that is not clear")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status: 1 for a data set that is not there."""
    return exit_status(lambda: parse_arguments(argv), lambda args: data_report.run(args), "nothing is changed")
