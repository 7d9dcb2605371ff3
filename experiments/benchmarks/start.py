"""Time to the first compiled step, cold and with torch's cache warm.

    python -m experiments.benchmarks.start NET BATCH

prints the seconds of one start.
"""

import argparse
import json
import sys
import time
from itertools import cycle
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from experiments.benchmarks.processes import empty_caches, random_images, timed_by
from experiments.benchmarks.rows import Row, row
from experiments.benchmarks.ways import NAMES, build
from pyro_vae import fit
from pyro_vae.data import Data
from pyro_vae.plots import COLOURS

OPTIONS = ("nets", "batches", "rounds")
STATES = ("cold", "warm")


def measure(images: Data, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return seconds of a training of two compiled steps, in its own process: without any compiled code, then again."""
    return [
        {"net": net, "batch": batch, "rounds": [cold_and_warm(net, batch) for _ in range(args.rounds)]}
        for net in args.nets
        for batch in args.batches
    ]


def cold_and_warm(net: str, batch: int) -> dict[str, float]:
    """Return the seconds of both starts: of the training, and of its whole process."""
    words, found = ["experiments.benchmarks.start", net, str(batch)], {}
    with empty_caches() as environment:
        for state in STATES:
            found[state], found[f"{state}, whole process"] = timed_by(words, environment)
    return found


def rows(images: Data, args: argparse.Namespace) -> list[Row]:
    """Return the seconds of each net, in batches of the first size."""
    first = argparse.Namespace(**{**vars(args), "batches": args.batches[:1]})
    return [row for case in measure(images, first) for row in rows_of(case)]


def rows_of(case: dict[str, Any]) -> list[Row]:
    """Return the rows of one net and batch size."""
    about = f"{NAMES[case['net']]}, batch {case['batch']}: "
    names = {state: f"{about}first compiled step, {state} cache" for state in STATES}
    names |= {f"{state}, whole process": f"{about}fresh shell to two steps, {state} cache" for state in STATES}
    return [row(name, [one[key] for one in case["rounds"]], "s", lower=True) for key, name in names.items()]


def first_steps(net: str, batch: int) -> float:
    """Return seconds of two steps of ``fit``: the first is eager, the second traced and compiled."""
    vae, few = build(net), random_images(2 * batch)
    start = time.perf_counter()
    fit(vae, few, epochs=1, batch_size=batch, engine="compiled", progress=False)
    return time.perf_counter() - start


def table(cases: list[dict[str, Any]]) -> str:
    """Return the seconds as text."""
    return "\n".join(
        f"{case['net']}, batch {case['batch']}: "
        + ", ".join(
            f"{state} {min(row[state] for row in case['rounds']):.1f} to "
            f"{max(row[state] for row in case['rounds']):.1f} s"
            for state in STATES
        )
        for case in cases
    )


def figure(cases: list[dict[str, Any]]) -> Figure:
    """Draw a point for each start."""
    drawn, axes = plt.subplots(figsize=(6, 2.5), layout="constrained")
    names = [f"{case['net']}, batch {case['batch']}" for case in cases]
    for colour, state in zip(cycle(COLOURS), STATES):
        for name, case in zip(names, cases):
            axes.plot(
                [row[state] for row in case["rounds"]],
                [name] * len(case["rounds"]),
                "o",
                color=colour,
                label=state if name == names[0] else None,
            )
    axes.set(xlabel="seconds to the first compiled step", xlim=(0, None))
    axes.legend(title="torch's cache")
    return drawn


if __name__ == "__main__":
    print(json.dumps(first_steps(sys.argv[1], int(sys.argv[2]))))
