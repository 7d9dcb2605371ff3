#!/usr/bin/env python
"""What does the Pyro program cost? ``fit``, with its data path and progress bar, against the same step written by hand.

    python experiments/benchmark.py

Both sides train the same default network by Adam on the same images in memory, in turns; the ratio of their medians is
what counts, not the images a second of one machine.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from parts import add_part_options
from results import provenance, write_json
from run import choose_device, describe
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vae import data, fit, load
from pyro_vae.data import Data, batches
from pyro_vae.parts import build_vae


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--images", type=int, default=12_800, help="that each side sees in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--dataset", choices=("auto", *data.NAMES), default="auto")
    parser.add_argument("--data-dir", type=Path, default=None, help="folder in which the data lie")
    parser.add_argument("--out", type=Path, default=Path("figures/benchmark.json"), help="file of the numbers")
    add_part_options(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    if (args.lik, args.binarize, args.prior, args.guide) != ("bernoulli", "dynamic", "standard", "meanfield"):
        print("error: the step by hand has the standard parts; leave --lik, --prior and --guide", file=sys.stderr)
        return 1
    images = load(args.dataset, root=args.data_dir).to(choose_device(args.device))
    few = Data(images.name, images.train[: args.images], images.valid[:1000], images.test)
    rates = {"fit": [], "by hand": []}
    for _ in range(args.rounds):
        rates["fit"].append(fit_rate(few, args))
        rates["by hand"].append(hand_rate(few.train.images, args))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratio = medians["fit"] / medians["by hand"]
    for name, median in medians.items():
        print(f"{name:<8} {median:8,.0f} images/s")
    print(f"ratio    {ratio:8.3f}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.out, {"settings": vars(args), "dataset": describe(few), "versions": provenance(),
                          "threads": torch.get_num_threads(), "images_per_second": rates, "medians": medians,
                          "ratio": ratio})
    return 0


def fit_rate(few: Data, args: argparse.Namespace) -> float:
    vae = build_vae(args, few.train.images.cpu()).to(few.train.images.device)
    return fit(vae, few, epochs=1, batch_size=args.batch).rows[0]["images_per_second"]


def hand_rate(pixels: Tensor, args: argparse.Namespace) -> float:
    """Images a second of one epoch of the same network without Pyro, the KL in closed form."""
    vae = build_vae(args, pixels.cpu()).to(pixels.device)
    encoder, decoder = nn.Sequential(vae.posterior.network.layers, vae.posterior.head), vae.likelihood.network.layers
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3, fused=True)
    start = time.perf_counter()
    for index in batches(len(pixels), args.batch, pixels.device):
        grey = pixels[index] / 255
        x = (torch.rand_like(grey) < grey).float()
        loc, log_scale = encoder(x).chunk(2, -1)
        z = loc + log_scale.exp() * torch.randn_like(loc)
        kl = 0.5 * (loc.square() + (2 * log_scale).exp() - 1 - 2 * log_scale).sum()
        loss = F.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum") + kl
        optimizer.zero_grad()
        loss.backward()
        loss.item()
        optimizer.step()
    return len(pixels) / (time.perf_counter() - start)


if __name__ == "__main__":
    sys.exit(main())
