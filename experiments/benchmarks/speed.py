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

from experiments.benchmarks.ways import WAYS, ByHand, build
from pyro_vae import evaluate
from pyro_vae.data import Data
from pyro_vae.plots import COLOURS, DPI, GREY
from pyro_vae.training import fixed_x
from pyro_vae.training.engines import fast_matmul

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
    steps = max(2, args.images // batch)
    pixels = images.train.images[: steps * batch].unflatten(0, (steps, batch))
    names = [name for name in args.only if (net, name) != ("default", "numpyro")]  # in which it is not written
    bar = tqdm(total=(args.rounds + 2) * len(names), desc=f"{net}, batch {batch}")
    ways = {}
    for name in names:
        ways[name] = WAYS[name](net)
        ways[name](pixels[:2])
        bar.update()
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(args.rounds + 1):
        for name, run in ways.items():
            rate = steps * batch / run(pixels)
            if number > 0:
                rates[name].append(rate)
            bar.update()
    bar.close()
    flops = flops_per_image(net)
    return {
        "net": net,
        "batch": batch,
        "flops_per_image": flops,
        "images_per_second": rates,
        "medians": {name: statistics.median(values) for name, values in rates.items()},
    }


def ratio(rates: dict[str, list[float]], one: str, other: str) -> float:
    """Return the median over the rounds of the ratio of two ways in one round."""
    return statistics.median(a / b for a, b in zip(rates[one], rates[other]))


def flops_per_image(net: str) -> float:
    """Return the operations of matrix products and convolutions in a step, forward and backward."""
    module = ByHand(build(net))
    with FlopCounterMode(display=False) as counter:
        module(torch.zeros(8, 1, 28, 28, dtype=torch.uint8)).backward()
    return counter.get_total_flops() / 8


def peak() -> dict[str, float]:
    """Return the operations a second of a product of 1024 × 1024 matrices on this machine, in each precision."""
    found = {}
    for name, dtype in ("float32", torch.float32), ("bfloat16", torch.bfloat16):
        a = torch.randn(1024, 1024).to(dtype)
        with fast_matmul("cpu"):
            seconds = []
            for _ in range(8):
                start = time.perf_counter()
                a @ a
                seconds.append(time.perf_counter() - start)
        found[name] = 2 * 1024**3 / min(seconds)
    return found


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
