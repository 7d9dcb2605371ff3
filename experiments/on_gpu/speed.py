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
from pyro.infer import Trace_ELBO
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmarks.ways import ByHand, build
from experiments.on_gpu.partial import Partial
from experiments.on_gpu.ways import COMPILING, IN_A_GRAPH, WAYS, Case, Steps, adam, products
from pyro_vae import fit, load
from pyro_vae.networks import lowered_precision
from pyro_vae.training.engines import EagerEngine

READS = ("_local_scalar_dense", "Memcpy DtoH", "StreamSynchronize", "DeviceSynchronize")
MAIN = 5  # ways that are measured at every size of batches
FITS = [("mlp", "captured"), ("mlp", "compiled"), ("conv", "captured"), ("conv", "compiled")]
STATES = 6  # tensors like the parameters that Adam's step reads and writes: parameters, two moments


def main(argv: list[str] | None = None) -> int:
    """Measure every way for each network and batch size, as far as the time goes."""
    step = Partial(__doc__, argv, {"steps": {}})
    found, small = step.found, step.small
    images = load("digits" if small else "auto").train.images.to(step.device)
    found["torch"] = str(torch.__version__)
    found.setdefault("peak", peak(step.device, 64 if small else 8192))
    ways = [name for name in WAYS if not (small and name in COMPILING)]
    nets, sizes = ("mlp",) if small else ("mlp", "conv"), (16,) if small else (128, 512, 4096)
    first = [*product(sizes, ways[:MAIN], nets)]
    with pyro.validation_enabled(False):
        for batch, name, net in [*first, *product(sizes[:1], ways[MAIN:], nets)]:
            key = f"{net}, batch {batch}, {name}"
            if key in found["steps"] or time.monotonic() > step.end:
                continue
            found["steps"][key] = attempted(WAYS[name], Case(net, images, batch), found["peak"], small)
            step.keep()
            print(line(key, found["steps"][key]), flush=True)
            if len(found["steps"]) == len(first):
                found["errors"] = {net: errors(Case(net, images, batch)) for net in nets}
                found["fit"] = {} if small else {f"{net}, {way}": fitted(net, way, step.device) for net, way in FITS}
    step.keep()
    return 0


def attempted(make: Callable[[Case], Steps], case: Case, top: dict[str, float], small: bool) -> dict[str, Any]:
    """Return what was measured of a way, or the error that it raised."""
    try:
        torch._dynamo.reset()
        torch.manual_seed(0)
        return measured(make, case, top, rounds=2 if small else 5, seconds=0.05 if small else 0.2)
    except Exception as error:  # of any kind: the other ways are still to be measured
        return {"error": f"{type(error).__name__}: {error}"[:500], "where": traceback.format_exc()[-1500:]}


def measured(
    make: Callable[[Case], Steps], case: Case, top: dict[str, float], rounds: int, seconds: float
) -> dict[str, Any]:
    """Return images a second in each round, of about so many seconds, and what belongs to them."""
    begun = time.perf_counter()
    take = make(case)
    float(take(3))  # the engines' first step is eager, and their second one is traced
    ready = time.perf_counter() - begun
    float(take(2 * IN_A_GRAPH))
    steps = IN_A_GRAPH * max(1, round(seconds / timed(take, IN_A_GRAPH, case.images)))
    rates = [steps * case.batch / timed(take, steps, case.images) for _ in range(rounds)]
    floor = floor_seconds(case, top)
    begun = time.perf_counter()
    last = take(steps)
    host = time.perf_counter() - begun  # the device may still compute
    float(last)
    return {
        "images_per_second": rates,
        "host_seconds_per_step": host / steps,
        "median": statistics.median(rates),
        "seconds_to_third_step": ready,
        "share_of_roofline": floor * statistics.median(rates) / case.batch,
        "host_reads_per_step": host_reads(take),
        "steps_a_round": steps,
    }


def errors(case: Case) -> dict[str, dict[str, float]]:
    """Return the relative differences of loss and gradient of lower precisions from those of float32, same draws."""

    def found(precision: torch.dtype | None, tf32: bool) -> tuple[Tensor, Tensor]:
        torch.manual_seed(1)
        vae = case.vae()
        with lowered_precision(vae, precision), products(tf32):
            loss = EagerEngine(vae, Trace_ELBO(), adam(vae)).loss(case.images[: case.batch])
            gradients = torch.autograd.grad(loss, list(vae.parameters()))
        return loss.detach(), torch.cat([gradient.flatten() for gradient in gradients])

    exact = found(None, False)
    return {
        name: {
            what: float((a - b).norm() / b.norm())
            for what, a, b in zip(("loss", "gradient"), found(precision, tf32), exact)
        }
        for name, precision, tf32 in (("TF32", None, True), ("bfloat16", BF16, False), ("again", None, False))
    }


def fitted(net: str, engine: str, device: str) -> dict[str, float]:
    """Return what ``fit`` takes with batches of 128: seconds of the first epoch, images a second of the third."""
    data = load("auto")
    vae = build(net, data.shape).to(device)
    rows = fit(vae, data, epochs=3, batch_size=128, engine=engine, progress=False).rows
    seconds = rows[2]["seconds"] - rows[1]["seconds"]
    return {"seconds of the first epoch": rows[0]["seconds"], "images_per_second": len(data.train) / seconds}


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
        f"ready in {found['seconds_to_third_step']:.1f} s, host {1e6 * found['host_seconds_per_step']:.0f} µs, {reads}"
    )


BF16 = torch.bfloat16

if __name__ == "__main__":
    sys.exit(main())
