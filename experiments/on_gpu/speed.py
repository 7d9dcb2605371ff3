"""Images a second of each way to write a training step, the share of what the device allows, and what the host reads.

One JSON is written after each way, and ways that it holds are not measured again. On a CPU all is small.
"""

import statistics
import sys
import time
import traceback
from collections.abc import Callable
from itertools import product
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmarks.ways import ByHand
from experiments.on_gpu.partial import Partial
from experiments.on_gpu.ways import COMPILING, IN_A_GRAPH, WAYS, Case, Steps
from pyro_vae import load

READS = ("_local_scalar_dense", "Memcpy DtoH", "StreamSynchronize", "DeviceSynchronize")
STATES = 6  # tensors like the parameters that Adam's step reads and writes: parameters, two moments


def main(argv: list[str] | None = None) -> int:
    """Measure every way for each network and batch size, as far as the time goes."""
    step = Partial(__doc__, argv, {"steps": {}})
    found, small = step.found, step.small
    images = load("digits" if small else "auto").train.images.to(step.device)
    found["torch"] = str(torch.__version__)
    found.setdefault("peak", peak(step.device, 64 if small else 8192))
    ways = [name for name in WAYS if not (small and name in COMPILING)]
    with pyro.validation_enabled(False):
        for batch in (16,) if small else (128, 512, 4096):
            for name, net in product(ways, ("mlp",) if small else ("mlp", "conv")):
                key = f"{net}, batch {batch}, {name}"
                if key in found["steps"] or time.monotonic() > step.end:
                    continue
                found["steps"][key] = attempted(WAYS[name], Case(net, images, batch), found["peak"], small)
                step.keep()
                print(line(key, found["steps"][key]), flush=True)
    return 0


def attempted(make: Callable[[Case], Steps], case: Case, top: dict[str, float], small: bool) -> dict[str, Any]:
    """Return what was measured of a way, or the error that it raised."""
    try:
        torch._dynamo.reset()
        torch.manual_seed(0)
        return measured(make, case, top, rounds=2 if small else 7, seconds=0.05 if small else 0.3)
    except Exception as error:  # of any kind: the other ways are still to be measured
        return {"error": f"{type(error).__name__}: {error}"[:500], "where": traceback.format_exc()[-1500:]}


def measured(
    make: Callable[[Case], Steps], case: Case, top: dict[str, float], rounds: int, seconds: float
) -> dict[str, Any]:
    """Return images a second in each round, of about so many seconds, and what belongs to them."""
    begun = time.perf_counter()
    take = make(case)
    float(take(1))
    first = time.perf_counter() - begun
    float(take(2 * IN_A_GRAPH))
    steps = IN_A_GRAPH * max(1, round(seconds / timed(take, IN_A_GRAPH, case.images)))
    rates = [steps * case.batch / timed(take, steps, case.images) for _ in range(rounds)]
    floor = floor_seconds(case, top)
    return {
        "images_per_second": rates,
        "median": statistics.median(rates),
        "seconds_to_first_step": first,
        "share_of_roofline": floor * statistics.median(rates) / case.batch,
        "host_reads_per_step": host_reads(take),
        "steps_a_round": steps,
    }


def timed(take: Steps, count: int, images: Tensor) -> float:
    """Return the seconds of some steps, to the read of the last loss."""
    if images.is_cuda:
        torch.cuda.synchronize()
    begun = time.perf_counter()
    float(take(count))
    return time.perf_counter() - begun


def host_reads(take: Steps) -> dict[str, float]:
    """Return how often a step reads from the device or waits for it, by the profiler's words.

    >>> host_reads(lambda count: [torch.ones(()).item() for _ in range(count)][0])
    {'_local_scalar_dense': 1.0}
    """
    devices = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=devices, acc_events=True) as p:
        take(IN_A_GRAPH)
    counts = dict.fromkeys(READS, 0.0)
    for event in p.key_averages():
        for word in READS:
            counts[word] += event.count / IN_A_GRAPH * (word in event.key)
    return {word: round(count, 2) for word, count in counts.items() if count}


def peak(device: str, size: int) -> dict[str, float]:
    """Return operations a second of matrix products in each precision, and bytes a second of a copy, as measured."""
    found = {}
    for name, dtype, tf32 in (
        ("float32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("bfloat16", BF16, False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a = torch.randn(size, size, device=device).to(dtype)
        found[name] = 2 * size**3 / fastest(lambda a=a: a @ a, device)
    torch.backends.cuda.matmul.allow_tf32 = False
    a = torch.randn(size * size, device=device)
    found["bytes"] = 2 * a.nbytes / fastest(a.clone, device)
    return found


def fastest(work: Callable[[], Any], device: str, times: int = 8) -> float:
    """Return the least seconds of some calls."""
    seconds = []
    for _ in range(times):
        begun = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def floor_seconds(case: Case, top: dict[str, float]) -> float:
    """Return the least seconds of a step in float32: of its operations, or of the bytes of parameters and pixels."""
    module = ByHand(case.vae())
    with FlopCounterMode(display=False) as counter:
        module(case.images[:8]).backward()
    flops = counter.get_total_flops() / 8 * case.batch
    size = sum(parameter.nbytes for parameter in module.parameters()) * STATES + case.images[: case.batch].nbytes
    return max(flops / top["float32"], size / top["bytes"])


def line(key: str, found: dict[str, Any]) -> str:
    """Return a way as a line of text."""
    if "error" in found:
        return f"{key:<50} {found['error'][:120]}"
    reads = ", ".join(f"{word} {count:g}" for word, count in found["host_reads_per_step"].items()) or "reads nothing"
    return (
        f"{key:<50} {found['median']:12,.0f} images/s, {100 * found['share_of_roofline']:5.1f} % of the roofline, "
        f"first step {found['seconds_to_first_step']:.1f} s, {reads}"
    )


BF16 = torch.bfloat16

if __name__ == "__main__":
    sys.exit(main())
