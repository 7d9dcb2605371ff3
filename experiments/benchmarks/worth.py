"""Which trainings earn back the seconds of compiling: both sides measured, and fitted by what a step computes.

    python -m experiments.benchmarks.worth PROGRAM TURNS

measures one program, and prints JSON.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pyro
import torch
from matplotlib.figure import Figure
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from experiments.benchmarks.processes import empty_caches, measured_by, random_images
from experiments.benchmarks.ways import adam, build
from experiments.markov.programs import BackwardGRU, BernoulliOf, DeepMarkov, NormalOf
from experiments.tables import build as build_table
from experiments.two_layer import TwoLayers, normal
from pyro_vae import VAE, guides, likelihoods, networks, priors, tables
from pyro_vae.config import PartSettings, build_vae
from pyro_vae.data import Data
from pyro_vae.estimators import ImportanceWeighted
from pyro_vae.networks import lowered_precision
from pyro_vae.plots import GREY
from pyro_vae.runs.arguments import RECIPES
from pyro_vae.training.engines import CompiledEngine, EagerEngine, fast_matmul, keep_freed_memory
from pyro_vae.training.worth import COMPILING, SAVED, Work, work_of

OPTIONS = ("rounds",)
SHAPE = (1, 28, 28)
Case = tuple[nn.Module, dict[str, Tensor]]  # a program, and the raw fields of a batch


def images(program: nn.Module, number: int, side: int = 28) -> Case:
    """Return the program with a batch of random images."""
    return program, {"images": torch.randint(256, (number, 1, side, side), dtype=torch.uint8)}


def of_parts(number: int = 128, **words: Any) -> Case:
    """Return the VAE of these options of run.py."""
    names = vars(PartSettings())
    settings = {key: tuple(v) if isinstance(v, list) else v for key, v in words.items() if key in names}
    return images(build_vae(PartSettings(**settings), random_images(1000).train.images), number)


def digits(number: int) -> Case:
    """Return a tiny VAE of 8 × 8 pixels."""
    decoder, encoder = (
        networks.MLPDecoder(2, (1, 8, 8), maps=1, hidden=(64,)),
        networks.MLPEncoder((1, 8, 8), hidden=(64,)),
    )
    vae = VAE(priors.StandardNormal(2), likelihoods.Bernoulli(decoder), guides.MeanField(encoder, 2))
    return images(vae, number, side=8)


def two_layers() -> Case:
    """Return a program of two stochastic layers."""
    likelihood = likelihoods.Bernoulli(networks.MLPDecoder(20, SHAPE, maps=1, hidden=(200,)))
    first = guides.MeanField(networks.MLPEncoder(SHAPE, hidden=(200,)), 20)
    return images(
        TwoLayers(priors.StandardNormal(10), normal(10, 100, 20), likelihood, first, normal(20, 100, 10)), 128
    )


class Attention(nn.Module):
    """A transformer over the rows of an image, (B, 1, 28, 28) to (B, 64)."""

    def __init__(self, layers: int):
        super().__init__()
        self.first, self.places = nn.Linear(28, 64), nn.Parameter(torch.zeros(28, 64))
        layer = nn.TransformerEncoderLayer(64, nhead=4, dim_feedforward=128, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean over the rows."""
        return self.layers(self.first(x.flatten(1, 2)) + self.places).mean(1)


def transformer(layers: int) -> Case:
    """Return a VAE whose encoder is a transformer."""
    likelihood = likelihoods.Bernoulli(networks.MLPDecoder(20, SHAPE, maps=1))
    return images(VAE(priors.StandardNormal(20), likelihood, guides.MeanField(Attention(layers), 20, features=64)), 64)


def of_table(rows: int = 128) -> Case:
    """Return the VAE of a table of twelve columns of four kinds."""
    import pandas as pd  # optional

    draw = np.random.default_rng(0)
    columns = {f"real {i}": draw.normal(size=rows) for i in range(4)}
    columns |= {f"positive {i}": draw.lognormal(size=rows) for i in range(2)}
    columns |= {f"count {i}": draw.poisson(3, size=rows) for i in range(2)}
    columns |= {f"category {i}": draw.choice(list("abcde"), size=rows) for i in range(4)}
    schema = tables.Schema.from_frame(frame := pd.DataFrame(columns))
    return build_table(schema, latent=4, hidden=64), {"table": schema.encode(frame)}


def sequences(steps: int, rows: int = 50) -> Case:
    """Return a deep Markov model of so many steps."""
    program = DeepMarkov(
        torch.zeros(4), NormalOf(4, 32, 4, residual=True), BernoulliOf(4, 32, 16), BackwardGRU(16, 32, 4)
    )
    lengths = torch.randint(steps // 2, steps + 1, (rows,))
    return program, {"sequences": torch.randint(2, (rows, steps, 16)).float(), "lengths": lengths}


PROGRAMS: dict[str, Callable[[], Case]] = {
    "digits, batch 50": lambda: digits(50),
    "digits, batch 256": lambda: digits(256),
    "MLP, batch 128": lambda: images(build("mlp"), 128),
    "MLP, 5 particles": lambda: images(build("mlp"), 64),
    "conv 32-64": lambda: images(build("conv"), 128),
    "default of run.py": lambda: images(build("default"), 256),
    "recipe fast": lambda: of_parts(**RECIPES["fast"]),
    "flow guide": lambda: of_parts(net="mlp", latent=32, guide="inverse-autoregressive", flow_depth=2, flow_width=128),
    "VampPrior of 100": lambda: of_parts(net="mlp", latent=32, prior="vamp", components=100),
    "two layers": two_layers,
    "transformer of 1": lambda: transformer(1),
    "transformer of 2": lambda: transformer(2),
    "table": of_table,
    "sequences of 4": lambda: sequences(4),
    "sequences of 8": lambda: sequences(8),
}
ESTIMATORS = {"MLP, 5 particles": lambda: ImportanceWeighted(5)}  # Trace_ELBO for the others
LOWERED = {"recipe fast"}  # its networks are in bfloat16


def measure(images: Data, args: argparse.Namespace) -> dict[str, Any]:
    """Return for each program the seconds of compiling, cold and warm, and of a step; and what fits them."""
    cases = []
    for name in PROGRAMS:
        words = ["experiments.benchmarks.worth", name, str(args.rounds)]
        with empty_caches() as caches:
            cold, warm = (measured_by(words, caches) for _ in range(2))
        cases.append({"program": name, "warm": warm["compiling"], **cold})
    return {"cases": cases, "fitted": fitted(cases), "used": {"compiling": COMPILING, "saved": SAVED}}


def one(name: str, turns: int) -> dict[str, Any]:
    """Return seconds of compiling, of an eager and of a compiled step, and the work of a step."""
    keep_freed_memory()
    eager, compiled = (made(name, kind) for kind in (EagerEngine, CompiledEngine))
    steps = {"eager": computing(name, *eager), "compiled": computing(name, *compiled)}
    for step in steps.values():
        step()  # eager also by the compiled engine
    with as_in_fit(name, eager[2]):
        counted = work_of(eager[0].loss, eager[1])
    seconds: dict[str, list[float]] = {"compiling": [steps["compiled"]()], "eager": [], "compiled": []}
    for _ in range(3 * turns):
        for kind in ("eager", "compiled"):
            seconds[kind].append(steps[kind]())
    return {**{key: statistics.median(values) for key, values in seconds.items()}, **asdict(counted)}


def made(name: str, kind: type) -> tuple[Any, list[Tensor], nn.Module]:
    """Return the engine of a program, a raw batch, and the program."""
    torch.manual_seed(0)
    program, fields = PROGRAMS[name]()
    engine = kind(program, ESTIMATORS.get(name, Trace_ELBO)(), adam(program), fields=list(fields))
    return engine, list(fields.values()), program


def computing(name: str, engine: Any, raw: list[Tensor], program: nn.Module) -> Callable[[], float]:
    """Return a function that takes a step, and returns its seconds."""

    def step() -> float:
        start = time.perf_counter()
        with as_in_fit(name, program):
            float(engine(*raw))
        return time.perf_counter() - start

    return step


@contextmanager
def as_in_fit(name: str, program: nn.Module) -> Iterator[None]:
    """Context manager with the settings of ``fit``."""
    precision = torch.bfloat16 if name in LOWERED else None
    with fast_matmul("cpu"), lowered_precision(program, precision), pyro.validation_enabled(False):
        yield


def fitted(cases: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Return the constants of ``training.worth`` that fit these cases, by least squares of relative errors."""
    works = [work(case) for case in cases]
    found = {}
    for key, seconds, grows in (
        ("compiling", [case["compiling"] for case in cases], [(1, w.pairs) for w in works]),
        ("saved", [max(saved(case), 1e-4) for case in cases], [(1, w.products, w.written) for w in works]),
    ):
        shares = np.array(grows, float) / np.array(seconds)[:, None]
        found[key] = np.linalg.lstsq(shares, np.ones(len(cases)), rcond=None)[0].tolist()
    return found


def work(case: dict[str, Any]) -> Work:
    """Return what a step of the case computes."""
    return Work(case["operations"], case["products"], case["written"])


def saved(case: dict[str, Any]) -> float:
    """Return the seconds that a compiled step saved."""
    return case["eager"] - case["compiled"]


def table_line(case: dict[str, Any]) -> str:
    """Return a line of the table."""
    step = work(case)
    even = f"{case['compiling'] / saved(case):6,.0f}" if saved(case) > 0 else " never"
    return (
        f"{case['program']:<18}{step.operations:6,} operations, {step.products:3} products, "
        f"{step.written / 1e6:4.1f} MB: compiled in {case['compiling']:5.1f} s cold, {case['warm']:4.1f} s warm (rule "
        f"{step.compiling:5.1f}); a step {1e3 * case['eager']:5.1f} ms eager, {1e3 * case['compiled']:5.1f} compiled, "
        f"saved {1e3 * saved(case):4.1f} (rule {1e3 * step.saved:4.1f}); earned back in {even} steps (rule "
        f"{step.compiling / step.saved:6,.0f})"
    )


def table(found: dict[str, Any]) -> str:
    """Return both sides of each program, and the constants that fit them beside those in use."""
    lines = [table_line(case) for case in found["cases"]]
    for key, used in found["used"].items():
        fit = ", ".join(f"{value:.2g}" for value in found["fitted"][key])
        lines.append(f"{key}: {fit} fit these seconds; in use are {', '.join(f'{value:.2g}' for value in used)}")
    return "\n".join(lines)


def figure(found: dict[str, Any]) -> Figure:
    """Draw what the rule says against what was measured."""
    drawn, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    sides = {
        "seconds of compiling": [(case["compiling"], work(case).compiling) for case in found["cases"]],
        "seconds saved a step": [(saved(case), work(case).saved) for case in found["cases"]],
    }
    for axis, (title, points) in zip(axes, sides.items()):
        axis.loglog(*zip(*points), "o")
        ends = [pick(value for point in points for value in point) for pick in (min, max)]
        axis.plot(ends, ends, color=GREY)
        axis.set(title=title, xlabel="measured", ylabel="by the rule")
    return drawn


if __name__ == "__main__":
    print(json.dumps(one(sys.argv[1], int(sys.argv[2]))))
