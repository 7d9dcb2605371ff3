"""Pyro's SVI against the same steps compiled, for twenty programs as Pyro's users write them."""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import pyro
import torch
from matplotlib.figure import Figure
from pyro.infer import SVI

from experiments.benchmarks.svi_parts import Case
from experiments.benchmarks.svi_programs import PROGRAMS
from pyro_vae.compiling import CompiledSVI, Untraceable
from pyro_vae.data import Data

OPTIONS = ("rounds",)
FIRST = 5  # steps whose losses are compared
SECONDS = 0.3  # of steps in a round


def measure(images: Data, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return milliseconds a step by both ways, in turns, and how far losses and parameters are apart."""
    return [compare(name, make, args.rounds) for name, make in PROGRAMS.items()]


def compare(name: str, make: Callable[[], Case], rounds: int) -> dict[str, Any]:
    """Return the comparison of one program; only the reason if it cannot be compiled."""
    try:
        trained = [Trained(kind, make) for kind in (SVI, CompiledSVI)]
    except Untraceable as error:
        return {"program": name, "reason": str(error)}
    seconds = [[way.seconds_a_step() for way in trained] for _ in range(rounds)]
    (losses, parameters), (others, moved) = ((way.losses, way.parameters) for way in trained)
    distance = {key: (moved[key] - value).norm() for key, value in parameters.items()}
    return {
        "program": name,
        "milliseconds": [[1e3 * second for second in row] for row in seconds],
        "ratio": statistics.median(eager / compiled for eager, compiled in seconds),
        "loss": max(abs(a - b) / max(abs(a), 1) for a, b in zip(losses, others)),
        "parameters": max(float(distance[key] / (value.norm() + 1e-6)) for key, value in parameters.items()),
        "first_seconds": trained[1].first_seconds - trained[0].first_seconds,
    }


class Trained:
    """A training with a parameter store of its own, after its first steps."""

    def __init__(self, kind: type[SVI], make: Callable[[], Case]):
        torch.manual_seed(0)
        self.store: Any = {"params": {}, "constraints": {}}
        with pyro.get_param_store().scope(self.store) as self.store:
            case = make()
            svi = kind(case.model, case.guide, case.optim, case.elbo)
            self.step = lambda: svi.step(*case.args)
            start = time.perf_counter()
            self.losses: list[Any] = [self.step() for _ in range(FIRST)]
            self.first_seconds = time.perf_counter() - start
            found = pyro.get_param_store().named_parameters()
            self.parameters = {name: value.detach().clone() for name, value in found}

    def seconds_a_step(self) -> float:
        """Return the mean seconds of some steps."""
        with pyro.get_param_store().scope(self.store) as self.store:
            self.step()
            steps, start = 0, time.perf_counter()
            while time.perf_counter() < start + SECONDS:
                self.step()
                steps += 1
            return (time.perf_counter() - start) / steps


def table(cases: list[dict[str, Any]]) -> str:
    """Return the comparison as text, with the median of the ratios."""
    lines = [_line(case) for case in cases]
    ratios = [case["ratio"] for case in cases if "ratio" in case]
    return "\n".join([*lines, f"median of {len(ratios)}: {statistics.median(ratios):.1f} ×"])


def _line(case: dict[str, Any]) -> str:
    if "reason" in case:
        return f"{case['program']:<24} not compiled: {case['reason']}"
    eager, compiled = (statistics.median(column) for column in zip(*case["milliseconds"]))
    return (
        f"{case['program']:<24} SVI {eager:6.2f} ms, compiled {compiled:6.2f} ms, {case['ratio']:4.1f} ×, "
        f"{case['first_seconds']:.0f} s to compile; losses differ by {case['loss']:.0e}, parameters by "
        f"{case['parameters']:.0e}"
    )


def figure(cases: list[dict[str, Any]]) -> Figure:
    """Draw the ratios."""
    drawn, axes = plt.subplots(figsize=(6, 5), layout="constrained")
    done = sorted((case for case in cases if "ratio" in case), key=lambda case: case["ratio"])
    axes.barh([case["program"] for case in done], [case["ratio"] for case in done])
    axes.axvline(1, color="k", linewidth=0.5)
    axes.set(xlabel="seconds of a step of SVI / of CompiledSVI")
    return drawn
