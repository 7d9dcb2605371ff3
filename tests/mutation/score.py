#!/usr/bin/env python
"""Mutation score: the share of small faults in a module that the module's own tests catch.

    pip install cosmic-ray
    python tests/mutation/score.py estimators.py evidence          # 20 faults in each of these modules
    python tests/mutation/score.py --mutants 60 --seed 1 priors.py
    python tests/mutation/score.py --again estimators.py           # those that survived, after a test was added
    python tests/mutation/score.py --fast compiling                # by the tests that are not marked slow

The tests of pyro_vae/a/b.py are tests/a/test_b.py and the examples of its docstrings. Each fault is written into a copy
of the repository; the tests run quick ones first, up to the first that fails, for three times at most what all of them
take on the module as it is. Results are written after each fault, and the same command goes on where it stopped. A
module whose tests fail without a fault is left out and named in the end. The file
equivalent.json beside this one lists the faults that change nothing that is promised, with the reason.
"""

import argparse
import json
import os
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from mutation.mutants import Mutant, drawn
from mutation.trials import Copy
from test_mirror import PACKAGE, own_files

ROOT = PACKAGE.parent
EQUIVALENT = Path(__file__).with_name("equivalent.json")


def main() -> int:
    """Run the command; return 1 after a fault that survived and is not equivalent, or tests that fail without one."""
    args = _parser().parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch, which reads it, is imported with the copy
    results = Results(args.out)
    modules = list(_modules(args.modules))
    end = time.monotonic() + args.seconds
    failing = {}
    with Copy.made(args.fast) as copy:
        for module in modules:
            try:
                _try(copy, module, args, results, end)
            except RuntimeError as error:
                failing[str(module)] = error
                print(f"{module}: left out, as its tests fail", flush=True)
    names = [str(module) for module in modules]
    print(f"{results.table(names)}\n\n{results.rooms(names)}")
    for error in failing.values():
        print(f"\n{error}")
    return int(bool(failing) or any(results.survivors(str(module)) for module in modules))


class Results:
    """For each module and mutant, the test that failed, or None; written after each change."""

    def __init__(self, path: Path):
        self._path = path
        self.known = json.loads(EQUIVALENT.read_text())
        self.found = json.loads(path.read_text()) if path.is_file() else {}

    def add(self, module: str, mutant: Mutant, test: str | None) -> None:
        """Write a result."""
        self.found.setdefault(module, {})[mutant.words] = test
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self.found, indent=1, ensure_ascii=False))

    def open(self, module: str, mutant: Mutant, again: bool) -> bool:
        """Return whether a mutant is still to be tried."""
        found = self.found.get(module, {})
        return mutant.words not in self.known.get(module, {}) and (
            mutant.words not in found or (again and found[mutant.words] is None)
        )

    def survivors(self, module: str) -> list[str]:
        """Return the mutants that no test caught and that are no equivalents."""
        known = self.known.get(module, {})
        return [words for words, test in self.found.get(module, {}).items() if test is None and words not in known]

    def table(self, modules: list[str]) -> str:
        """Return how many mutants of each module were tried, caught and equivalent, and those that survived."""
        lines = [f"{'module':40} {'tried':>5} {'caught':>6} {'equivalent':>10}"]
        for module in modules:
            found, known = self.found.get(module, {}), self.known.get(module, {})
            caught = sum(test is not None for test in found.values())
            lines.append(f"{module:40} {len(found):5} {caught:6} {len(known):10}")
            lines.extend(f"    survived: {words}" for words in self.survivors(module))
        return "\n".join(lines)

    def rooms(self, modules: list[str]) -> str:
        """Return a Markdown table of the rooms: how many modules and faults were tried, and what share was caught."""
        rooms = defaultdict(list)
        for module in filter(self.found.get, modules):
            rooms[module.split("/")[0]].append(module)
        lines = ["| room | modules | faults | caught |", "| --- | ---: | ---: | ---: |"]
        for room, names in rooms.items():
            tests = [
                test
                for name in names
                for words, test in self.found[name].items()
                if words not in self.known.get(name, {})
            ]
            caught = sum(test is not None for test in tests)
            lines.append(f"| {room} | {len(names)} | {len(tests)} | {caught / max(1, len(tests)):.0%} |")
        return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="+", help="files and folders in pyro_vae/")
    parser.add_argument("--mutants", type=int, default=20, help="of each module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no trial after this time")
    parser.add_argument("--again", action="store_true", help="try again those that survived")
    parser.add_argument("--fast", action="store_true", help="leave out the tests that are marked slow")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "mutation.json")
    return parser


def _modules(words: list[str]) -> Iterator[Path]:
    """Return the modules that have tests, relative to the package."""
    for word in words:
        path = PACKAGE / word
        if not path.exists():
            raise SystemExit(f"wanted files and folders in {PACKAGE}, got {word}")
        found = (part.relative_to(PACKAGE) for part in (sorted(path.rglob("*.py")) if path.is_dir() else [path]))
        yield from (module for module in found if own_files(module))


def _try(copy: Copy, module: Path, args: argparse.Namespace, results: Results, end: float) -> None:
    """Run a module's tests on each of its mutants that is still to be tried."""
    if time.monotonic() > end:
        return
    name = str(module)
    mutants = drawn((PACKAGE / module).read_text(), args.mutants, random.Random(f"{args.seed} {name}"))
    mutants = [mutant for mutant in mutants if results.open(name, mutant, args.again)]
    if not mutants:
        return
    tests = [str(path.relative_to(ROOT)) for path in own_files(module)] + [f"pyro_vae/{name}"]
    timeout = 15 + 2 * copy.seconds(tests)
    for mutant in mutants:
        if time.monotonic() > end:
            return
        start = time.monotonic()
        test = copy.caught_by(Path("pyro_vae") / module, mutant.source, tests, timeout)
        results.add(name, mutant, test)
        print(
            f"{name}:{mutant.line}: {mutant.words}: {test or 'SURVIVED'} ({time.monotonic() - start:.1f} s)", flush=True
        )


if __name__ == "__main__":
    sys.exit(main())
