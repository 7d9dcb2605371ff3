#!/usr/bin/env python
"""An image completed from one, two or three of its quadrants, as in Sohn et al. (2015): is z worth having?

    python experiments/conditional_quadrants.py
    python experiments/conditional_quadrants.py --binarize dynamic --out figures/conditional_quadrants_dynamic
    python experiments/conditional_quadrants.py --quick

Seen are the bottom left quadrant, then the top left, then the top right; the others are hidden. The baseline is a
network from the seen pixels to the probabilities of the hidden ones. The program is ``Completion`` below: p(z | seen),
p(hidden | z, seen) and q(z | hidden, seen), built on the baseline's prediction. Both have two hidden layers in each
network, and are trained by ``fit``, which chooses the epoch on validation images.

The table has −log p(hidden | seen) of all test images in nats per image, beside that of Pyro's tutorial on conditional
VAEs. As there, pixels are grey levels read as probabilities, so that these are cross-entropies; with ``--binarize
dynamic`` they are likelihoods of binary images. The tutorial's value is minus the bound, and its epoch was chosen on
the test images; ours is −L_K, and minus the bound beside it. Results: <out>.json, and the picture <out>.png.

Each number of quadrants leaves its own file in --out, and its training is saved as it goes on: the same command
continues one that was interrupted.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pyro
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Generator, Tensor, nn

from pyro_vae import Checkpoints, UntrustedEvidence, guides, likelihoods, log_evidence, networks, plots
from pyro_vae.checks import whole_number
from pyro_vae.data import Data, Split
from pyro_vae.random import mode, seeded
from pyro_vae.runs import (
    beside,
    describe,
    estimate,
    exit_status,
    load_data,
    make_folder,
    over_images,
    run_once,
    save_figure,
    single_runs,
    trained,
    write_json,
)
from pyro_vae.runs.options import add_data_options, add_quick, add_training_options, parsed
from pyro_vae.runs.parser import Parser
from pyro_vae.training import evaluate, fixed_x

PUBLISHED = {1: (100.4, 71.8), 2: (61.9, 51.0), 3: (25.4, 24.2)}  # baseline and CVAE of Pyro's tutorial, in nats
BINARIZE = {"intensity": likelihoods.intensity, "dynamic": likelihoods.dynamic, "threshold": likelihoods.threshold}
COMMON = (
    "binarize",
    "latent",
    "width",
    "epochs",
    "warm_up",
    "baseline_epochs",
    "estimator",
    "batch",
    "lr",
    "schedule",
    "particles",
    "images",
)
QUICK = {
    "dataset": "digits",
    "latent": 8,
    "width": 64,
    "epochs": 60,
    "warm_up": 30.0,
    "baseline_epochs": 20,
    "particles": 20,
    "out": Path("figures/conditional_quadrants_quick"),
}
SHOWN, SAMPLES = 6, 4  # test images in the picture, and completions of each


class Cut(nn.Module):
    """Makes x from pixels (B, C, H, W), and cuts it into the hidden values (B, h) and the seen ones (B, s)."""

    hidden: Tensor
    seen: Tensor

    def __init__(self, shape: tuple[int, int, int], quadrants: int, binarize: str = "intensity"):
        super().__init__()
        self.shape, self.binarize = shape, binarize
        mask = torch.zeros(shape, dtype=torch.bool)
        top, left = shape[1] // 2, shape[2] // 2
        for part in (mask[:, top:, :left], mask[:, :top, :left], mask[:, :top, left:])[:quadrants]:
            part[:] = True
        self.register_buffer("hidden", (~mask).flatten().nonzero().flatten(), persistent=False)
        self.register_buffer("seen", mask.flatten().nonzero().flatten(), persistent=False)

    def forward(self, batch: Split, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return the hidden values and the seen ones of a batch."""
        x = BINARIZE[self.binarize](batch.images, generator).flatten(1)
        return x[:, self.hidden], x[:, self.seen]

    def joined(self, hidden: Tensor, seen: Tensor) -> Tensor:
        """Return the images (B, C, H, W) that hidden and seen values are the parts of."""
        x = seen.new_empty(len(seen), len(self.hidden) + len(self.seen))
        return x.index_copy(1, self.hidden, hidden).index_copy(1, self.seen, seen).unflatten(1, self.shape)

    def distribution(self, logits: Tensor) -> TorchDistribution:
        """Return the distribution of the hidden values: batch (...), event (h,)."""
        return likelihoods.Bernoulli(nn.Identity(), BINARIZE[self.binarize]).pixel_distribution(logits).to_event(1)


class Baseline(nn.Module):
    """p(hidden | seen), of independent pixels: a program without latent variables."""

    def __init__(self, cut: Cut, width: int = 500):
        super().__init__()
        self.cut = cut
        self.network = nn.Sequential(*layers(len(cut.seen), width), nn.Linear(width, len(cut.hidden)))

    def model(self, hidden: Tensor, seen: Tensor) -> None:
        """Sample the hidden values, or observe them."""
        with pyro.plate("images", len(seen)):
            pyro.sample("x", self.cut.distribution(self.network(seen)), obs=hidden)

    def guide(self, hidden: Tensor, seen: Tensor) -> None:
        """Sample nothing."""

    def observe(self, batch: Split, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return the hidden and the seen values, the arguments of model and guide."""
        return self.cut(batch, generator)


class Completion(nn.Module):
    """p(z | seen) p(hidden | z, seen), q(z | hidden, seen); prior and decoder start from the baseline's prediction."""

    def __init__(self, baseline: Baseline, latent: int = 50, width: int = 500):
        super().__init__()
        self.baseline, self.cut = baseline.requires_grad_(False), baseline.cut
        hidden, seen = len(self.cut.hidden), len(self.cut.seen)
        self.prior, self.posterior = (
            guides.MeanField(nn.Sequential(*layers(hidden + seen, width)), latent, features=width) for _ in range(2)
        )
        self.decoder = Decoder(latent, seen, hidden, width)

    def model(self, hidden: Tensor | None, seen: Tensor) -> Tensor:
        """Sample z and the hidden values, which are observed if they are given; return their mean given z."""
        logits = self.baseline.network(seen)
        with pyro.plate("images", len(seen)):
            z = pyro.sample("z", self.prior(torch.cat([logits.sigmoid(), seen], -1)))
            p = self.cut.distribution(logits + self.decoder(z, seen))
            pyro.sample("x", p, obs=hidden)
            return p.mean

    def guide(self, hidden: Tensor, seen: Tensor) -> None:
        """Sample z given the hidden and the seen values."""
        with pyro.plate("images", len(seen)):
            pyro.sample("z", self.posterior(torch.cat([hidden, seen], -1)))

    def observe(self, batch: Split, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return the hidden and the seen values, the arguments of model and guide."""
        return self.cut(batch, generator)


class Decoder(nn.Module):
    """z (..., B, D) and the seen values (B, s) -> logits (..., B, h), to be added to the baseline's; zero at first.

    The first layer is computed once for all particles of an image, as far as it depends on the seen values.
    """

    def __init__(self, latent: int, seen: int, hidden: int, width: int):
        super().__init__()
        self.of_z, self.of_seen = nn.Linear(latent, width), nn.Linear(seen, width)
        self.second, self.last = nn.Linear(width, width), networks.start_near_zero(nn.Linear(width, hidden))

    def forward(self, z: Tensor, seen: Tensor) -> Tensor:
        """Return what is added to the baseline's logits."""
        first = F.relu(self.of_z(z) + self.of_seen(seen))
        return self.last(F.relu(self.second(first)))


def layers(inputs: int, width: int) -> list[nn.Module]:
    """Return two layers of ``width`` units."""
    return [nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--quadrants", type=int, nargs="+", default=[1, 2, 3], choices=(1, 2, 3), help="that are seen")
    parser.add_argument("--binarize", choices=BINARIZE, default="intensity", help="what makes x from grey levels")
    parser.add_argument("--latent", type=int, default=50, metavar="D", help="dimensions of z")
    parser.add_argument("--width", type=int, default=500, metavar="UNITS", help="of the hidden layers of all networks")
    group = add_training_options(parser, epochs=6, lr=1e-3)
    parser.set_defaults(estimator="meanfield", batch=128)
    group.add_argument(
        "--warm-up", type=float, default=2.0, metavar="EPOCHS", help="epochs in which the KL weight grows from 0 to 1"
    )
    group.add_argument("--baseline-epochs", type=int, default=6, metavar="EPOCHS", help="those of the baseline")
    group.add_argument("--seed", type=int, default=0)
    group = parser.add_argument_group("measurement, on test images")
    group.add_argument("--particles", type=int, default=100, metavar="K", help="particles of L_K")
    group.add_argument("--images", type=int, default=None, help="the first test images alone (default: all)")
    add_data_options(parser, Path("figures/conditional_quadrants"), "folder of the runs; results have its name")
    add_quick(parser, argv, QUICK, "small networks on the digits, few epochs: seconds")
    return parsed(parser, argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(lambda: parse_arguments(argv), run, "what was trained is in {out}; the same command goes on")


def run(args: argparse.Namespace) -> None:
    """Train and measure every number of quadrants; print the table."""
    images = load_data(args)
    for name in ("latent", "width", "particles"):
        whole_number(f"--{name}", getattr(args, name))
    args.images = whole_number("--images", args.images or len(images.test), most=len(images.test))
    make_folder(args.out)
    blocks = {}
    for quadrants in sorted(set(args.quadrants)):
        settings = {"dataset": images.name, **{name: getattr(args, name) for name in COMMON}}
        entries = {"quadrants": quadrants, "seed": args.seed, "settings": settings, "dataset": describe(images)}
        path, label = args.out / f"q{quadrants}-seed{args.seed}.json", f"quadrants seen: {quadrants}, seed {args.seed}"
        program, histories = build(quadrants, images, args)
        run_once(path, label, entries, lambda p=program, h=histories: measured(p, h, images, args), in_words)
        blocks[quadrants] = completions(program, images.test[:SHOWN], args.seed)
    results = list(single_runs(args.out).values())
    save_figure(beside(args.out, ".png"), picture(blocks))
    write_json(beside(args.out, ".json"), {"published": PUBLISHED, "runs": results})
    print("\n".join(["−log p(hidden | seen), nats per image", *map(in_words, results)]))


def build(quadrants: int, images: Data, args: argparse.Namespace) -> tuple[Completion, dict[str, Any]]:
    """Return the program, trained, and two histories; a training that has ended is read from its checkpoint."""
    torch.manual_seed(args.seed)
    device, folder = images.train.images.device, args.out / f"q{quadrants}-seed{args.seed}"
    baseline = Baseline(Cut(images.shape, quadrants, args.binarize), args.width).to(device)
    short = argparse.Namespace(**{**vars(args), "epochs": args.baseline_epochs, "warm_up": 0.0})
    histories = {"baseline": trained(baseline, images, args.seed, short, Checkpoints(folder / "baseline", resume=True))}
    program = Completion(baseline, args.latent, args.width).to(device)
    histories["program"] = trained(program, images, args.seed, args, Checkpoints(folder / "program", resume=True))
    return program, histories


def measured(program: Completion, histories: dict[str, Any], images: Data, args: argparse.Namespace) -> dict[str, Any]:
    """Return the numbers of baseline and program, and their difference image by image."""
    started = time.perf_counter()
    x = fixed_x(program, images.test[: args.images])
    baseline, bound = (evaluate(each, x, seed=args.seed).bound for each in (program.baseline, program))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrustedEvidence)  # the results hold the share of these images
        evidence = log_evidence(program, x, args.particles, seed=args.seed)
    return {
        "baseline": over_images(-baseline),
        "minus_bound": over_images(-bound),
        "minus_log_p": over_images(-evidence.log_px),
        "gain": over_images(evidence.log_px - baseline),
        "gain_of_the_bound": over_images(bound - baseline),
        "evidence": evidence.to_dict(),
        "kept_epochs": {name: history.kept_epoch for name, history in histories.items()},
        "engine": histories["program"].engine,
        "histories": {name: history.rows for name, history in histories.items()},
        "seconds": {
            **{name: history.rows[-1]["seconds"] for name, history in histories.items()},
            "measurement": time.perf_counter() - started,
        },
    }


@torch.no_grad()
def completions(program: Completion, split: Split, seed: int) -> dict[str, Tensor]:
    """Return rows of images: what is seen, the truth, the baseline's prediction, and completions at draws of z."""
    cut = program.cut
    hidden, seen = fixed_x(program, split)
    rows = {"seen": torch.full_like(hidden, 0.5), "truth": hidden, "baseline": program.baseline.network(seen).sigmoid()}
    with seeded(seed, seen.device), mode(program, training=False):
        rows |= {f"draw {number + 1}": program.model(None, seen) for number in range(SAMPLES)}
    return {name: cut.joined(values, seen) for name, values in rows.items()}


def picture(blocks: dict[int, dict[str, Tensor]]) -> Figure:
    """Draw a block of rows for each number of quadrants, side by side."""
    rows, height = len(blocks[min(blocks)]), blocks[min(blocks)]["seen"].shape[-2]
    size, layout = (0.6 + 0.55 * SHOWN * len(blocks), 0.4 + 0.55 * rows), ConstrainedLayoutEngine(wspace=0.04)
    figure = Figure(figsize=size, dpi=plots.DPI, layout=layout)
    for axes, (quadrants, block) in zip(figure.subplots(1, len(blocks), squeeze=False)[0], blocks.items()):
        axes.imshow(
            plots.tiled(torch.stack(list(block.values()))), cmap="gray", vmin=0, vmax=1, interpolation="nearest"
        )
        axes.set_title(f"{quadrants} of 4 quadrants seen", fontsize="medium")
        places = [(height + 2) * row + height / 2 for row in range(rows)]  # with two pixels between images
        axes.set_yticks(places, list(block) if quadrants == min(blocks) else rows * [""])
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


def in_words(result: dict[str, Any]) -> str:
    """Return a row of the table, beside the published one where the data are the same."""
    columns = {
        "baseline": "baseline",
        "program": "minus_log_p",
        "gain": "gain",
        "gain of the bound": "gain_of_the_bound",
    }
    ours = (f"{name} {estimate(result[key]['mean'], result[key]['standard_error'])}" for name, key in columns.items())
    row = f"{result['quadrants']} seen: {', '.join(ours)}"
    if (result["settings"]["dataset"], result["settings"]["binarize"]) != ("mnist", "intensity"):
        return row
    baseline, program = PUBLISHED[result["quadrants"]]
    return f"{row}; published: baseline {baseline}, program {program}, gain {baseline - program:.1f}"


if __name__ == "__main__":
    sys.exit(main())
