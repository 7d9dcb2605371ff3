#!/usr/bin/env python
"""Does a long run keep its memory? Resident memory on the digits after 50 epochs and after 2,000.

python tests/faults/memory.py
python tests/faults/memory.py --engine compiled
"""

import argparse
import gc
import sys
from pathlib import Path

import torch

from pyro_vae import VAE, fit, guides, likelihoods, load, networks, priors

ALLOWED = 0.05  # share by which it may grow


def main() -> int:
    """Train, and return 1 if the memory grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2000)
    parser.add_argument("--engine", default="eager")
    args = parser.parse_args()
    digits, batch, sizes = load("digits"), 256, {}
    steps = -(-len(digits.train) // batch)
    torch.manual_seed(0)
    vae = VAE(
        priors.StandardNormal(2),
        likelihoods.Bernoulli(networks.MLPDecoder(2, digits.shape, maps=1, hidden=(16,))),
        guides.MeanField(networks.MLPEncoder(digits.shape, hidden=(16,)), 2),
    )

    def schedule(optimizer: torch.optim.Optimizer, total: int) -> torch.optim.lr_scheduler.LRScheduler:
        def note(step: int) -> float:
            if step in (50 * steps, args.epochs * steps):
                sizes[step // steps] = resident()
            return 1.0

        return torch.optim.lr_scheduler.LambdaLR(optimizer, note)

    fit(vae, digits, epochs=args.epochs, batch_size=batch, schedule=schedule, engine=args.engine, progress=False)
    early, late = sizes[50], sizes[args.epochs]
    print(
        f"resident memory after 50 epochs {early / 1e6:.1f} MB, after {args.epochs} {late / 1e6:.1f} MB: "
        f"{late / early - 1:+.2%}, engine {args.engine}"
    )
    return 0 if late <= early * (1 + ALLOWED) else 1


def resident() -> int:
    """Return the bytes of memory that this process occupies."""
    gc.collect()
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    sys.exit(main())
