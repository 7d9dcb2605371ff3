"""Images a second of every way to write the step, in turns, and of ``evaluate``; the share of the machine's peak."""

import argparse
import statistics
import time
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from experiments.benchmarks.machine import peak
from experiments.benchmarks.rows import Row, ratios, row
from experiments.benchmarks.ways import NAMES, WAYS, ByHand, build, in_turns, stacked
from pyro_vae import evaluate
from pyro_vae.data import Data
from pyro_vae.plots import COLOURS, DPI, GREY
from pyro_vae.training import fixed_x

RATIOS = {  # of a step's images a second
    "compiled float32 / numpyro": ("compiled", "numpyro"),
    "compiled float32 / by hand, compiled whole": ("compiled", "torch whole step"),
    "compiled float32 / svi": ("compiled", "svi"),
    "compiled float32 / torch eager": ("compiled", "torch eager"),
    "compiled bfloat16 / torch eager": ("compiled bfloat16", "torch eager"),
    "fit, eager / torch eager": ("fit", "torch eager"),
}
OPTIONS = ("nets", "batches", "only", "images", "rounds")


def measure(images: Data, args: argparse.Namespace) -> dict[str, Any]:
    """Return images a second of every way and of ``evaluate``, and the machine's peak."""
    return {
        "peak": peak(),
        "threads": torch.get_num_threads(),
        "steps": [compare(images, net, batch, args) for net in args.nets for batch in args.batches],
        "evaluation": [evaluation(images, net, args.rounds) for net in args.nets],
    }


def compare(images: Data, net: str, batch: int, args: argparse.Namespace) -> dict[str, Any]:
    """Return images a second of each way, in rounds; the first round does not count."""
    torch._dynamo.reset()
    pixels = stacked(images, batch, args.images)
    names = [name for name in args.only if (net, name) != ("default", "numpyro")]  # in which it is not written
    made = {}
    for name in tqdm(names, desc=f"{net}, batch {batch}, compiling"):
        made[name] = WAYS[name](net)
        made[name](pixels[:2])
    number = pixels.shape[0] * batch
    ways = {name: lambda run=run: number / run(pixels) for name, run in made.items()}
    rates = in_turns(ways, args.rounds, f"{net}, batch {batch}")
    return {
        "net": net,
        "batch": batch,
        "flops_per_image": flops_per_image(net),
        "images_per_second": rates,
        "medians": {name: statistics.median(values) for name, values in rates.items()},
    }


def rows(images: Data, args: argparse.Namespace) -> list[Row]:
    """Return the ratios within the rounds, shares of the peak and images a second."""
    top = peak()
    cases = [compare(images, net, batch, args) for net in args.nets for batch in args.batches]
    return [row for case in cases for row in rows_of(case, top)]


def rows_of(case: dict[str, Any], top: dict[str, float]) -> list[Row]:
    """Return the rows of one net and batch size, of those ways that were measured."""
    rates, about = case["images_per_second"], f"{NAMES[case['net']]}, batch {case['batch']}: "
    found = [
        row(about + name, ratios(rates[over], rates[under]))
        for name, (over, under) in RATIOS.items()
        if over in rates and under in rates
    ]
    if {"compiled", "compiled bfloat16", "numpyro"} <= set(rates):
        better = max("compiled", "compiled bfloat16", key=case["medians"].get)
        found.append(row(f"{about}compiled, better precision / numpyro", ratios(rates[better], rates["numpyro"])))
    for name, values in rates.items():
        share = 100 * case["flops_per_image"] / top["bfloat16" if "bfloat16" in name else "float32"]
        found.append(row(f"{about}share of the peak, {name}", [share * rate for rate in values], "%"))
        found.append(row(about + name, values, "images/s"))
    return found


def ratio(rates: dict[str, list[float]], one: str, other: str) -> float:
    """Return the median over the rounds of the ratio of two ways in one round."""
    return statistics.median(ratios(rates[one], rates[other]))


def flops_per_image(net: str) -> float:
    """Return the operations of matrix products and convolutions in a step, forward and backward."""
    module = ByHand(build(net))
    with FlopCounterMode(display=False) as counter:
        module(torch.zeros(8, 1, 28, 28, dtype=torch.uint8)).backward()
    return counter.get_total_flops() / 8


def evaluation(images: Data, net: str, rounds: int) -> dict[str, Any]:
    """Return images a second of ``evaluate``."""
    vae = build(net)
    x = fixed_x(vae, images.valid.images[:2000])
    rates = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        evaluate(vae, x)
        rates.append(len(x) / (time.perf_counter() - start))
    return {"net": net, "images_per_second": rates[1:], "median": statistics.median(rates[1:])}


def table(found: dict[str, Any]) -> str:
    """Return the rates as text."""
    lines = []
    for case in found["steps"]:
        lines.append(f"{case['net']}, batch {case['batch']}, {case['flops_per_image'] / 1e6:.1f} Mflop an image")
        for name, median in case["medians"].items():
            top = found["peak"]["bfloat16" if "bfloat16" in name else "float32"]
            others = [
                f"{ratio(case['images_per_second'], name, other):5.2f} × {other}"
                for other in ("svi", "torch eager", "torch whole step", "numpyro")
                if other in case["medians"] and other != name and not name.startswith("torch")
            ]
            share = f"{100 * median * case['flops_per_image'] / top:3.0f} % of peak"
            lines.append(f"  {name:<18} {median:9,.0f} images/s  {share}  {'  '.join(others)}")
    lines += [f"evaluate, {case['net']}: {case['median']:,.0f} images/s" for case in found["evaluation"]]
    return "\n".join(lines)


def figure(found: dict[str, Any]) -> Figure:
    """Draw a panel for each net and batch size."""
    cases = found["steps"]
    drawn, axes = plt.subplots(
        1, len(cases), figsize=(1.2 + 2.4 * len(cases), 3), sharey=True, squeeze=False, dpi=DPI, layout="constrained"
    )
    for axis, case in zip(axes[0], cases):
        for name, median in case["medians"].items():
            rates = case["images_per_second"][name]
            axis.barh(name, median, color=COLOURS[0] if "compiled" in name and "torch" not in name else GREY)
            axis.plot(rates, [name] * len(rates), "k.", ms=3)
        axis.set(title=f"{case['net']}, batch {case['batch']}", xlabel="images a second")
    axes[0][0].invert_yaxis()
    return drawn
