#!/usr/bin/env python
"""Does a long run keep its memory? Resident memory on the digits after 50 epochs and after 2,000, or of many calls.

python tests/faults/memory.py
python tests/faults/memory.py --engine compiled
python tests/faults/memory.py --calls 200                      # of fit, and of log_evidence, in one process
python tests/faults/memory.py --calls 20 --engine compiled
"""

import argparse
import gc
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch.fx import GraphModule

from pyro_vae import VAE, Data, UntrustedEvidence, fit, guides, likelihoods, load, log_evidence, networks, priors

ALLOWED = 0.05  # share by which it may grow
A_CALL = 10_000  # bytes that a call may add: the parameters of its program and their optimiser take 30,000


def main() -> int:
    """Train, and return 1 if the memory grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2000)
    parser.add_argument("--engine", default="eager")
    parser.add_argument("--calls", type=int, default=0, help="call fit and log_evidence so many times instead")
    args = parser.parse_args()
    digits = load("digits")
    if args.calls:
        return max([many_calls(call, args.calls, args.engine, digits) for call in (fitted, measured)])
    return one_run(args.epochs, args.engine, digits)


def program(digits: Data) -> VAE:
    """Return a small VAE."""
    torch.manual_seed(0)
    return VAE(
        priors.StandardNormal(2),
        likelihoods.Bernoulli(networks.MLPDecoder(2, digits.shape, maps=1, hidden=(16,))),
        guides.MeanField(networks.MLPEncoder(digits.shape, hidden=(16,)), 2),
    )


def fitted(engine: str, digits: Data) -> None:
    """Train a new VAE for two steps, of which the second can be compiled."""
    few = Data("few", digits.train[:40], digits.valid[:10], digits.test[:10])
    fit(program(digits), few, epochs=1, batch_size=20, lr=1e-3, engine=engine, progress=False)


def measured(engine: str, digits: Data) -> None:
    """Measure a new VAE on four images, in four slices."""
    vae, x = program(digits), (digits.test.images[:4] > 127).float()
    log_evidence(vae, x, 100, chunk=100, engine=engine, progress=False)


def many_calls(call: Callable, count: int, engine: str, digits: Data) -> int:
    """Make so many calls; return 1 if memory, tensors or graphs are more at the end than after half of them."""
    warnings.simplefilter("ignore", UntrustedEvidence)
    found = []
    for number in range(1, count + 1):
        call(engine, digits)
        if number in (1, count // 2, count):  # the first measurement takes memory itself
            torch._dynamo.reset()  # torch's own cache, of a few entries a function
            found.append((resident(), alive(torch.Tensor), alive(GraphModule)))
    _, (early, *things), (late, *others) = found
    objects = f"tensors and graphs {things}, {others}"
    print(f"{call.__name__}, engine {engine}, {count} calls: {late - early:+,} bytes, {objects}")
    return int(late - early > A_CALL * count or others > things)


def alive(kind: type) -> int:
    """Return the number of objects of a kind that are in use."""
    gc.collect()
    return sum(issubclass(type(thing), kind) for thing in gc.get_objects())


def one_run(epochs: int, engine: str, digits: Data) -> int:
    """Train for so many epochs; return 1 if the memory grew."""
    batch, sizes = 256, {}
    steps = -(-len(digits.train) // batch)

    def schedule(optimizer: torch.optim.Optimizer, total: int) -> torch.optim.lr_scheduler.LRScheduler:
        def note(step: int) -> float:
            if step in (50 * steps, epochs * steps):
                sizes[step // steps] = resident()
            return 1.0

        return torch.optim.lr_scheduler.LambdaLR(optimizer, note)

    fit(program(digits), digits, epochs=epochs, batch_size=batch, schedule=schedule, engine=engine, progress=False)
    early, late = sizes[50], sizes[epochs]
    print(
        f"resident memory after 50 epochs {early / 1e6:.1f} MB, after {epochs} {late / 1e6:.1f} MB: "
        f"{late / early - 1:+.2%}, engine {engine}"
    )
    return 0 if late <= early * (1 + ALLOWED) else 1


def resident() -> int:
    """Return the bytes of memory that this process occupies."""
    gc.collect()
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    sys.exit(main())
