"""The table of results of benchmark.py --summary or --quality, as text, or as Markdown between two markers of a page.

    python -m experiments.benchmarks.report figures/benchmark_summary.json
    python -m experiments.benchmarks.report figures/benchmark_summary.json --into docs/speed.md

The page has a line ``<!-- benchmark_summary -->``, named as the file, and a line ``<!-- end -->`` after it; what stands
between them is replaced.
"""

import argparse
import re
import sys

from experiments.benchmarks import quality, record, summary
from pyro_vae.files import write_whole
from pyro_vae.runs import exit_status
from pyro_vae.runs.options import home_path
from pyro_vae.runs.parser import Parser

QUESTIONS = {"summary": summary, "quality": quality}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = Parser(prog="report", description=__doc__)
    parser.add_argument("results", type=home_path, help="a file that benchmark.py wrote")
    parser.add_argument("--into", type=home_path, default=None, metavar="PAGE", help="write the table into a page")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(lambda: parse_arguments(argv), report, "nothing is written")


def report(args: argparse.Namespace) -> int:
    """Print or write the table."""
    question = record.question(args.results, QUESTIONS)
    found = record.read(args.results, question)
    if args.into:
        page = filled(args.into.read_text(encoding="utf-8"), args.results.stem, QUESTIONS[question].markdown(found))
        write_whole(args.into, page.encode())
    else:
        print(QUESTIONS[question].table(found))
    return 0


def filled(page: str, name: str, content: str) -> str:
    r"""Return the page with this content between its markers; raise ValueError if it has no markers of this name.

    >>> filled("a\n<!-- rows -->\nold\n<!-- end -->\nb", "rows", "new")
    'a\n<!-- rows -->\nnew\n<!-- end -->\nb'
    """
    marked = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not marked.search(page):
        raise ValueError(f"wanted a line <!-- {name} --> in the page, and <!-- end --> after it, found none")
    return marked.sub(lambda match: f"{match[1]}{content}\n{match[2]}", page)


if __name__ == "__main__":
    sys.exit(main())
