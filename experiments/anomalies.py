#!/usr/bin/env python
"""Which score finds images of another kind: log p(x) of a VAE, or one that corrects it?

    python experiments/anomalies.py
    python experiments/anomalies.py --quick

A VAE with exact masses on the 256 grey levels is trained on all classes but one. Test images of these classes are set
against the class that was left out, another data set, inverted images, noise, and a black image. Scores of an image,
each the larger the stranger it is:

    -log p(x)              by importance sampling, nats
    reconstruction error   squared, between x and the mean image of the mean z
    typicality             |log p(x) - mean of log p(x) over the validation images| (Nalisnick et al. 2019)
    likelihood ratio       log p0(x) - log p(x), p0 trained on images with random pixels (Ren et al. 2019)
    complexity             -log p(x) - the length of x as a PNG file (Serra et al. 2020)

Each pair of a score and a kind gets the area under the ROC curve (AUC), with its standard error over images (DeLong et
al. 1988) and a 95 % interval (Newcombe 2006). Epochs are chosen by the validation bound; nothing is chosen by an
anomaly. Results: <out>.json and <out>.png. The trainings are saved as they go on, in --out: the same command continues.
"""

import argparse
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import interpolate

from pyro_vae import (
    VAE,
    Checkpoints,
    Scores,
    fixed_x,
    guides,
    likelihoods,
    load,
    networks,
    priors,
    score,
)
from pyro_vae.checks import whole_number
from pyro_vae.data import Data, Split
from pyro_vae.plots.style import COLOURS, DPI
from pyro_vae.runs import (
    beside,
    describe,
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
from pyro_vae.scoring import AUC

COMMON = ("left_out", "other", "mutation", "latent", "width", "epochs", "batch", "lr", "particles", "images")
QUICK = {
    "dataset": "digits",
    "other": None,
    "latent": 8,
    "width": 128,
    "epochs": 60,
    "batch": 64,
    "lr": 3e-3,
    "quiet": True,
    "out": Path("figures/anomalies_quick"),
}
SCORES = ("-log p(x)", "reconstruction error", "typicality", "likelihood ratio", "complexity")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--left-out", type=int, default=9, metavar="CLASS", help="class that is not trained on")
    parser.add_argument("--other", default="frey", metavar="NAME", help="data set whose images are anomalies, too")
    parser.add_argument("--mutation", type=float, default=0.1, help="share of random pixels in the training of p0")
    parser.add_argument("--latent", type=int, default=20, metavar="D", help="dimensions of z")
    parser.add_argument("--width", type=int, default=400, metavar="UNITS", help="of the hidden layer of a network")
    group = add_training_options(parser, epochs=8, lr=1e-3)
    group.add_argument("--seed", type=int, default=0)
    group = parser.add_argument_group("measurement")
    group.add_argument("--particles", type=int, default=50, metavar="K", help="of log p(x)")
    group.add_argument("--images", type=int, default=1000, help="at most so many of each kind")
    add_data_options(parser, Path("figures/anomalies"), "folder of the run; results have its name")
    add_quick(parser, argv, QUICK, "small networks on the digits: less than a minute")
    return parsed(parser, argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(lambda: parse_arguments(argv), run, "what was trained is in {out}; the same command goes on")


def run(args: argparse.Namespace) -> None:
    """Train both models, score all kinds of images, draw and print the results."""
    images = load_data(args)
    for name in ("latent", "width", "particles", "images"):
        whole_number(f"--{name}", getattr(args, name))
    if not 0 < args.mutation < 1:
        raise ValueError(f"--mutation: wanted a share between 0 and 1, got {args.mutation}")
    if images.train.labels is None or not all(
        (part.labels == args.left_out).any() for part in (images.train, images.test)
    ):
        raise ValueError(f"--left-out: wanted a class of labelled images, got {args.left_out}; write another one")
    kinds = anomalies(images, args)
    make_folder(args.out)
    path = args.out / f"{images.name}-seed{args.seed}.json"
    settings = {"dataset": images.name, **{name: getattr(args, name) for name in COMMON}}
    entries = {"seed": args.seed, "settings": settings, "dataset": describe(images)}
    run_once(path, f"{images.name}, seed {args.seed}", entries, lambda: measured(images, kinds, args), line)
    result = single_runs(args.out)[path]
    save_figure(beside(args.out, ".png"), picture(result))
    values = {
        name: {key: value for key, value in kind.items() if key != "log_px"} for name, kind in result["kinds"].items()
    }
    write_json(beside(args.out, ".json"), {**result, "kinds": values})
    print(report(result))


def without(images: Data, label: int) -> Data:
    """Return the data set without the images of a class."""
    parts = {name: getattr(images, name) for name in ("train", "valid", "test")}
    return replace(images, **{name: part[part.labels != label] for name, part in parts.items()}, looked_at=True)


def mutated(images: Data, share: float, seed: int) -> Data:
    """Return the data set with this share of the pixels drawn anew, uniform on the 256 grey levels."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(pixels: Tensor) -> Split:
        noise = torch.randint(256, pixels.shape, generator=generator).to(pixels)
        return Split(
            torch.where(torch.rand(pixels.shape, generator=generator).to(pixels.device) < share, noise, pixels)
        )

    train, valid, test = (drawn(part.images) for part in (images.train, images.valid, images.test))
    return Data(images.name, train, valid, test, looked_at=True)


def anomalies(images: Data, args: argparse.Namespace) -> dict[str, Tensor]:
    """Return the kinds of images, uint8 (N, C, H, W); the first kind, ``test``, is that of the training."""
    generator, label = torch.Generator().manual_seed(args.seed), args.left_out
    test = without(images, label).test.images[: args.images]
    kinds = {"test": test, f"class {label}": images.test[images.test.labels == label].images[: args.images]}
    if args.other is not None:
        other = load(args.other, root=args.data_dir).test.images[: args.images].float()
        kinds[args.other] = interpolate(other, size=images.shape[1:]).round().to(torch.uint8).to(test.device)
    noise = torch.randint(256, test.shape, generator=generator).to(test)
    return kinds | {"inverted": 255 - test, "noise": noise, "black": torch.zeros_like(test[:1])}


def model(images: Data, name: str, args: argparse.Namespace) -> VAE:
    """Return a trained VAE; a training that has ended is read from its checkpoint."""
    torch.manual_seed(args.seed)
    decoder = networks.MLPDecoder(args.latent, images.shape, maps=2 * images.shape[0], hidden=(args.width,))
    posterior = guides.MeanField(networks.MLPEncoder(images.shape, hidden=(args.width,)), args.latent)
    vae = VAE(priors.StandardNormal(args.latent), likelihoods.DiscretizedLogistic(decoder), posterior)
    vae = vae.to(images.train.images.device)
    trained(vae, images, args.seed, args, Checkpoints(args.out / f"{images.name}-{name}-seed{args.seed}", resume=True))
    return vae


def measured(images: Data, kinds: dict[str, Tensor], args: argparse.Namespace) -> dict[str, Any]:
    """Return for each kind of images log p(x) and, for each score, the AUC against the test images."""
    normal, started = without(images, args.left_out), time.perf_counter()
    vae = model(normal, "model", args)
    background = model(mutated(normal, args.mutation, args.seed), "background", args)
    trained_at = time.perf_counter()
    typical = score(vae, normal.valid.images[: args.images], args.particles, seed=args.seed)
    scored = {name: scores(vae, background, pixels, typical, args) for name, pixels in kinds.items()}
    return {
        "kinds": {
            name: {
                "mean_log_px": over_images(-found["-log p(x)"]),
                "auc": {kind: auc(scored["test"][kind], found[kind]) for kind in SCORES if name != "test"},
                "log_px": (-found["-log p(x)"]).tolist(),
            }
            for name, found in scored.items()
        },
        "share_of_test_below_black": (scored["test"]["-log p(x)"] > scored["black"]["-log p(x)"])
        .double()
        .mean()
        .item(),
        "seconds": {"training": trained_at - started, "measurement": time.perf_counter() - trained_at},
    }


@torch.no_grad()
def scores(vae: VAE, background: VAE, pixels: Tensor, typical: Scores, args: argparse.Namespace) -> dict[str, Tensor]:
    """Return the scores of images (N, C, H, W), each (N,)."""
    x, options = fixed_x(vae, pixels), {"particles": args.particles, "seed": args.seed}
    found, of_background = score(vae, pixels, normal=typical, **options), score(background, pixels, **options)
    return {
        **found.values,
        "reconstruction error": (x - vae.likelihood(vae.posterior(x).mean).mean).square().flatten(1).sum(1).cpu(),
        "likelihood ratio": found["-log p(x)"] - of_background["-log p(x)"],
    }


def auc(normal: Tensor, strange: Tensor) -> dict[str, Any]:
    """Return the AUC of scores (N,) against scores (M,), with its error and interval."""
    found = asdict(AUC.of(normal, strange))
    return {"auc": found.pop("value"), "n": found.pop("strange"), **found}


def picture(result: dict[str, Any]) -> Figure:
    """Draw log p(x) of three kinds, and the AUC of all scores."""
    kinds, figure = result["kinds"], Figure(figsize=(9, 3.6), dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    shown = [name for name in kinds if name == "test" or name.startswith("class")]
    for name, colour in zip(shown, (COLOURS[0], COLOURS[4])):
        left.hist(kinds[name]["log_px"], bins=40, density=True, alpha=0.6, color=colour, label=name)
    left.axvline(kinds["black"]["log_px"][0], color="black", label="black image")
    left.set(xlabel="log p(x), nats", ylabel="density", title="log p(x)")
    left.legend(frameon=False)
    names = [name for name in kinds if name != "test"]
    for i, (kind, colour) in enumerate(zip(SCORES, COLOURS)):
        values = [kinds[name]["auc"][kind]["auc"] for name in names]
        right.plot(values, [row + 0.12 * (2 - i) for row in range(len(names))], "o", color=colour, label=kind)
    right.axvline(0.5, color="#666666", linewidth=0.8)
    right.set(
        yticks=range(len(names)), yticklabels=names, xlabel="AUC", title="against test images", xlim=(-0.03, 1.03)
    )
    right.invert_yaxis()
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return figure


def line(result: dict[str, Any]) -> str:
    """Return the result in a line."""
    return f"{result['share_of_test_below_black']:.1%} of the test images are less likely than a black image"


def report(result: dict[str, Any]) -> str:
    """Return the AUC of all scores and kinds as a table."""
    rows = [f"{'kind':<10} {'log p(x)':>10}  " + "  ".join(f"{name:>20}" for name in SCORES)]
    for name, kind in result["kinds"].items():
        values = [f"{value['auc']:.3f} ± {value['standard_error']:.3f}" for value in kind["auc"].values()]
        rows.append(
            f"{name:<10} {kind['mean_log_px']['mean']:>10.1f}  " + "  ".join(f"{value:>20}" for value in values)
        )
    return "\n".join([*rows, line(result)])


if __name__ == "__main__":
    sys.exit(main())
