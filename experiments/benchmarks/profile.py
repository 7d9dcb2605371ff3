"""Where a compiled step spends its time, by torch's profiler, and how long an ideal step would take."""

import argparse
import statistics
import time
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from pyro.infer import Trace_ELBO
from torch.profiler import ProfilerActivity, profile

from experiments.benchmarks.machine import peak
from experiments.benchmarks.speed import flops_per_image
from experiments.benchmarks.ways import NAMES, adam, build, in_turns, stacked
from pyro_vae.data import Data
from pyro_vae.networks import lowered_precision
from pyro_vae.plots import COLOURS
from pyro_vae.training.engines import Compiled, fast_matmul

OPTIONS = ("nets", "batches", "images", "rounds")
KERNELS, OTHER, OUTSIDE = "likelihood, KL and activations", "other operations", "Python, waiting"
PARTS = {  # by what the name of an operation contains; the first one counts
    KERNELS: ("cpp_fused",),  # the compiler's own kernels, whose names also list what was fused
    OUTSIDE: ("CompiledFxGraph", "Compiled Region", "bytecode"),
    "matrix products": ("mm", "linear", "matmul"),
    "convolutions": ("conv",),
    "Adam": ("adam",),
    "noise": ("rand", "bernoulli", "normal", "uniform"),
}
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}


def measure(images: Data, args: argparse.Namespace) -> dict[str, Any]:
    """Return the parts of a step for each net, batch size and precision, and the machine's peak."""
    cases = [(net, batch, name) for net in args.nets for batch in args.batches for name in PRECISIONS]
    return {"peak": peak(), "steps": [parts_of(images, *case, args) for case in cases]}


def parts_of(images: Data, net: str, batch: int, precision: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return milliseconds of a step, unprofiled, and the shares of its parts, the operations' own time in the profile.

    The compiler names its kernels in the profile, which it does only if asked before it compiles.
    """
    vae, pixels = build(net), stacked(images, batch, args.images)
    step = Compiled(vae, Trace_ELBO(), adam(vae))

    def run() -> float:
        start = time.perf_counter()
        for x in pixels:
            float(step(x))
        return (time.perf_counter() - start) / len(pixels)

    named = torch._inductor.config.patch({"cpp.enable_kernel_profile": True})
    with named, fast_matmul("cpu"), lowered_precision(vae, PRECISIONS[precision]):
        times = in_turns({"step": run}, args.rounds, f"{net}, batch {batch}, {precision}")["step"]
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as found:
            profiled = run()
    own = {event.key: event.self_cpu_time_total / 1e6 / len(pixels) for event in found.key_averages()}
    return {
        "net": net,
        "batch": batch,
        "precision": precision,
        "threads": torch.get_num_threads(),
        "milliseconds": 1e3 * statistics.median(times),
        "milliseconds_profiled": 1e3 * profiled,
        "flops": batch * flops_per_image(net),
        "shares": shares(own, profiled),
        "operations": dict(sorted(own.items(), key=lambda item: -item[1])[:25]),
    }


def shares(own: Mapping[str, float], whole: float) -> dict[str, float]:
    """Return the share of each part in a step of ``whole`` seconds, from the own seconds of each operation.

    >>> found = shares({"aten::addmm": 0.2, "aten::randn": 0.1, "graph_0_cpp_fused_exp_1": 0.1}, whole=1.0)
    >>> found["matrix products"], found["noise"], round(found["Python, waiting"], 3)
    (0.2, 0.1, 0.6)
    """
    found = dict.fromkeys([*PARTS, OTHER], 0.0)
    for name, seconds in own.items():
        found[part(name)] += seconds / whole
    found[OUTSIDE] += 1 - sum(found.values())
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def part(operation: str) -> str:
    """Return the part to which an operation belongs.

    >>> part("mkldnn::_linear_pointwise"), part("aten::_fused_adam_"), part("aten::copy_")
    ('matrix products', 'Adam', 'other operations')
    """
    return next((name for name, words in PARTS.items() if any(word in operation for word in words)), OTHER)


def table(found: dict[str, Any]) -> str:
    """Return the shares as text."""
    lines = []
    for case in found["steps"]:
        ideal = 1e3 * case["flops"] / found["peak"][case["precision"]]
        lines.append(
            f"{NAMES[case['net']]}, batch {case['batch']}, {case['precision']}, {case['threads']} threads: "
            f"{case['milliseconds']:.2f} ms a step, {case['milliseconds_profiled']:.2f} under the profiler; its "
            f"products alone at the machine's peak: {ideal:.2f} ms, {ideal / case['milliseconds']:.0%}"
        )
        lines += [f"  {name:<32} {share:6.1%}" for name, share in case["shares"].items() if share > 0.0005]
    return "\n".join(lines)


def figure(found: dict[str, Any]) -> Figure:
    """Draw a bar for each case, in parts."""
    cases = found["steps"]
    drawn, axes = plt.subplots(figsize=(8, 1.4 + 0.4 * len(cases)), layout="constrained")
    names = [f"{NAMES[case['net']]}, {case['batch']}, {case['precision']}" for case in cases]
    left = [0.0] * len(cases)
    for colour, name in zip(COLOURS, [*PARTS, OTHER]):
        widths = [case["shares"][name] * case["milliseconds"] for case in cases]
        axes.barh(names, widths, left=left, color=colour, label=name)
        left = [a + b for a, b in zip(left, widths)]
    axes.set(xlabel="milliseconds a step")
    axes.legend(fontsize="small", ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
    return drawn
