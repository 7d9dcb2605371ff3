#!/usr/bin/env python
"""Which likelihood is best, on the same images, in the same unit? One VAE is trained under each of them, with the
settings of run.py, and measured: bits/dim where the likelihood scores grey levels, nats where it scores black and white
pixels, and for all of them what does not depend on the likelihood: probes of the codes, error of the pictures.

    python experiments/compare_likelihoods.py
    python experiments/compare_likelihoods.py --families beta logistic --seeds 0
    python experiments/compare_likelihoods.py --report

A run is saved as soon as it ends and is not trained again, so that an interrupted command goes on where it was, and
several processes may share the work, each with its own --families or --seeds. The last step gathers all runs that are
in --out: table (likelihoods.txt), numbers (likelihoods.json), figure (likelihoods.png) and likelihood_pictures.png.
Every run is a folder that ``evidence.py --run`` takes too.
"""

import argparse
import json
import math
import statistics
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from parts import SCHEDULES, add_data_options, build_estimator
from results import METRICS, attempted, exit_status, provenance, results_folder, write_json
from run import SHOWN, choose_device, describe, fill_in
from run import parse_arguments as parse_run
from torch import Tensor

from pyro_vae import VAE, analysis, evaluate, fit, load
from pyro_vae.config import PARAMETERS, build_vae, describe_model
from pyro_vae.data.sets import Data
from pyro_vae.evidence.estimates import log_evidence
from pyro_vae.likelihoods import ContinuousBernoulli, Normal, bits_per_dim
from pyro_vae.plots import COLOURS, DPI, tiled
from pyro_vae.training.engines import ENGINES
from pyro_vae.training.loop import NonFiniteLoss, fixed_x

RUNS = "likelihood_runs"  # folder in --out
STRIP = 8  # pictures in a strip
PROBE = 10_000  # training images whose codes the probes are fitted to
NEIGHBOURS = 15
BATCH = 250  # images measured at once
# What a run's numbers depend on, beside the data; the first four and the seed differ from run to run.
FAMILY_SETTINGS = ("lik", "binarize", "bins", "scale", "seed")
SHARED_SETTINGS = (
    "prior",
    "guide",
    "net",
    "latent",
    "hidden",
    "estimator",
    "particles",
    "epochs",
    "batch",
    "lr",
    "schedule",
)
BOUND, EVIDENCE, OTHER = COLOURS[6], COLOURS[0], COLOURS[4]


@dataclass(frozen=True)
class Family:
    """A likelihood by the name that tables give it and the words that choose it in run.py."""

    label: str
    words: str


FAMILIES = {
    "normal-pixel": Family("Normal, scale per pixel", "--lik normal --scale pixel"),
    "normal-shared": Family("Normal, one shared scale", "--lik normal --scale shared"),
    "beta": Family("Beta", "--lik beta"),
    "continuous-bernoulli": Family("continuous Bernoulli", "--lik continuous-bernoulli"),
    "logistic": Family("discretised logistic", "--lik logistic"),
    **{f"categorical-{B}": Family(f"Categorical, {B} bins", f"--lik categorical --bins {B}") for B in (4, 16, 64, 256)},
    "bernoulli-dynamic": Family("Bernoulli, dynamic", "--lik bernoulli --binarize dynamic"),
    "bernoulli-threshold": Family("Bernoulli, threshold", "--lik bernoulli --binarize threshold"),
}
DEFAULT = [name for name in FAMILIES if name != "categorical-256"]  # which takes as long as five others
YARDSTICKS = ("knn_accuracy", "linear_probe_accuracy", "mse", "active_units", "training_seconds")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--families",
        nargs="+",
        choices=FAMILIES,
        default=DEFAULT,
        metavar="NAME",
        help=f"of {', '.join(FAMILIES)} (default: all but categorical-256)",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--report", action="store_true", help="train nothing, gather the runs that are there")
    group = parser.add_argument_group("training, the rest as in run.py")
    group.add_argument("--net", choices=("conv", "mlp"), default="conv")
    group.add_argument("--latent", type=int, default=20, metavar="D")
    group.add_argument(
        "--hidden", type=int, nargs="*", default=[], metavar="UNITS", help="as in run.py (default: no dense layers)"
    )
    group.add_argument("--epochs", type=int, default=5)
    group.add_argument("--engine", choices=ENGINES, default="auto", help="what takes the steps; all train alike")
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    group = parser.add_argument_group("measurement")
    group.add_argument("--evidence", type=int, default=1000, metavar="K", help="particles of the bound L_K")
    group.add_argument("--images", type=int, default=1000, help="test images for L_K, the first so many")
    group = add_data_options(
        parser, Path("figures"), "folder of the results", quiet="no progress bar and no line a run"
    )
    group.add_argument("--overwrite", action="store_true", help="train again what is there already")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    done = f"the runs that had ended are in {{out}}/{RUNS}; the same command goes on with the rest"
    return exit_status(lambda: parse_arguments(argv), train_and_report, done)


def train_and_report(args: argparse.Namespace) -> None:
    if not args.report:
        train_all(args)
    print(report(args.out))


# The runs


def train_all(args: argparse.Namespace) -> None:
    """Trains and measures what is not there yet: all families with the first seed, then with the next."""
    device = choose_device(args.device)
    images = load(args.dataset, root=args.data_dir).to(device)
    if args.evidence < 1 or not 1 <= args.images <= len(images.test):
        raise ValueError(
            f"--evidence: wanted at least 1, --images: 1 to {len(images.test)} (the test images); got "
            f"{args.evidence} and {args.images}"
        )
    for seed in args.seeds:
        for name in args.families:
            settings, folder = run_settings(args, name, seed, images), args.out / RUNS / f"{name}-seed{seed}"
            wanted = identity(settings, args, images)
            if (folder / METRICS).is_file() and not args.overwrite:
                check_same(folder, wanted)
                continue
            with results_folder(folder, args.overwrite) as temporary:
                metrics = {
                    "family": name,
                    **wanted,
                    "dataset": describe(images),
                    "versions": provenance(),
                    **run(settings, images, args, temporary),
                }
                write_json(temporary / METRICS, metrics)
            if not args.quiet:
                print(line(metrics), flush=True)


def run_settings(args: argparse.Namespace, name: str, seed: int, images: Data) -> argparse.Namespace:
    """The options of run.py that train this run."""
    settings = parse_run(
        [
            *FAMILIES[name].words.split(),
            "--net",
            args.net,
            "--latent",
            str(args.latent),
            "--hidden",
            *map(str, args.hidden),
            "--epochs",
            str(args.epochs),
            "--seed",
            str(seed),
        ]
    )
    fill_in(settings, images)
    return settings


def identity(settings: argparse.Namespace, args: argparse.Namespace, images: Data) -> dict[str, Any]:
    """What the numbers of a run follow from."""
    return {
        "settings": {name: getattr(settings, name) for name in (*FAMILY_SETTINGS, *SHARED_SETTINGS)},
        "measurement": {"particles": args.evidence, "images": args.images},
        "dataset": describe(images),
    }


def check_same(folder: Path, wanted: dict[str, Any]) -> None:
    """ValueError where the run in the folder is another one than is wanted."""
    found = json.loads((folder / METRICS).read_text())
    for part, values in wanted.items():
        for name, value in values.items():
            if name != "note" and found[part].get(name) != value:
                raise ValueError(
                    f"{folder} holds a run with {part} {name} = {found[part].get(name)}, wanted {value}; "
                    "give another --out, or --overwrite"
                )


def run(settings: argparse.Namespace, images: Data, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Trains one VAE, saves parameters and pictures and gives its numbers; "failed" says why there are none."""
    started = time.perf_counter()
    torch.manual_seed(settings.seed)
    vae = build_vae(settings, images.train.images.cpu()).to(images.train.images.device)
    outcome: dict[str, Any] = {"failed": None, "results": None}
    try:
        history = fit(
            vae,
            images,
            build_estimator(settings),
            epochs=settings.epochs,
            batch_size=settings.batch,
            lr=settings.lr,
            seed=settings.seed,
            schedule=SCHEDULES[settings.schedule],
            engine=args.engine,
            progress=not args.quiet,
        )
        if history.interrupted:
            raise KeyboardInterrupt
        left_out: dict[str, str] = {}
        measured = attempted(
            {
                "results": lambda: {**measure(vae, images, args), "training_seconds": history.rows[-1]["seconds"]},
                "pictures": lambda: torch.save(strips(vae, images), folder / "pictures.pt"),
            },
            left_out,
        )
        outcome |= {
            "best_epoch": history.best_epoch,
            "engine": history.engine,
            "left_out": left_out,
            "failed": left_out.get("results"),
            "results": measured.get("results"),
        }
    except NonFiniteLoss as error:
        outcome["failed"] = str(error)
    model, parameters = describe_model(vae, settings, images.shape)
    (folder / PARAMETERS).write_bytes(parameters)
    return {**outcome, **model, "seconds": time.perf_counter() - started}


def measure(vae: VAE, images: Data, args: argparse.Namespace) -> dict[str, Any]:
    """Everything that is said of one trained VAE, on the test images."""
    x = fixed_x(vae, images.test.images)
    test = evaluate(vae, x, batch_size=BATCH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the share of images with a large k̂ is in the record
        evidence = log_evidence(vae.model, vae.guide, x[: args.images], args.evidence, seed=0)
    bounds = {"bound": test.bound.cpu(), "log_px": evidence.log_px}
    codes = analysis.codes(vae, x, batch_size=BATCH)
    return {
        "nats": {name: mean_and_error(values) for name, values in bounds.items()},
        "bits_per_dim": grey_scale(vae, bounds, x),
        "rate": test.rate.mean().item(),
        "distortion": test.distortion.mean().item(),
        "bound_on_images_of_log_px": bounds["bound"][: args.images].mean().item(),
        "evidence": evidence.to_dict(),
        **probes(vae, images, codes),
        "mse": squared_error(vae, codes, images.test.images),
        "active_units": int(analysis.active_units(codes).sum()),
        **family_facts(vae, codes),
    }


def mean_and_error(values: Tensor) -> dict[str, float | None]:
    """Mean over images and its standard error."""
    error = values.double().std().item() / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": values.double().mean().item(), "standard_error": error, "images": len(values)}


def grey_scale(vae: VAE, bounds: dict[str, Tensor], x: Tensor) -> dict[str, Any] | None:
    """The bounds in bits/dim, and the least value that the family can reach; None where x is black and white.

    A mass on B bins is at most 1, so that B bins cost at least log2(256 / B) bits/dim; densities have no such limit.
    """
    width = vae.likelihood.level_width
    if width is None:
        return None
    with torch.no_grad():
        mass = vae.likelihood(vae.prior().sample((1,))).support.is_discrete
    bits = {name: mean_and_error(bits_per_dim(values, x[0].numel(), width)) for name, values in bounds.items()}
    return {**bits, "least": math.log2(1 / width) if mass else None}


def probes(vae: VAE, images: Data, codes: Tensor) -> dict[str, Any]:
    """Accuracy on the codes of all test images, of probes fitted to those of PROBE training images; None: no labels."""
    if images.test.labels is None:
        return {"knn_accuracy": None, "linear_probe_accuracy": None}
    train = images.train[:PROBE]
    fitted = analysis.codes(vae, fixed_x(vae, train.images), batch_size=BATCH)
    labelled = (fitted, train.labels, codes, images.test.labels)
    return {
        "knn_accuracy": analysis.knn_accuracy(*labelled, neighbours=NEIGHBOURS),
        "linear_probe_accuracy": analysis.linear_probe_accuracy(*labelled),
        "probe_images": len(train),
    }


def squared_error(vae: VAE, codes: Tensor, pixels: Tensor) -> float:
    """Mean over images and pixels of (mean of p(x | code) − g / 255)²: the same target for every family."""
    parts = zip(codes.split(BATCH), pixels.split(BATCH))
    total = sum((analysis.decode(vae, z) - g.cpu() / 255).square().double().sum().item() for z, g in parts)
    return total / pixels.numel()


def family_facts(vae: VAE, codes: Tensor) -> dict[str, float]:
    """What belongs beside the numbers of a single family."""
    if isinstance(vae.likelihood, Normal):
        share = vae.likelihood.share_at_bound(codes[:SHOWN].to(next(vae.parameters()).device))
        return {"min_log_scale": vae.likelihood.min_log_scale, "share_of_scales_at_bound": share}
    return {"clip": vae.likelihood.clip} if isinstance(vae.likelihood, ContinuousBernoulli) else {}


def strips(vae: VAE, images: Data) -> dict[str, Tensor]:
    """The first test images, their reconstructions, and as many samples of the prior: each (STRIP, C, H, W)."""
    pixels = images.test.images[:STRIP]
    return {
        "images": pixels.cpu() / 255,
        "reconstructions": analysis.reconstruct(vae, fixed_x(vae, pixels)),
        "samples": analysis.sample_prior(vae, STRIP),
    }


def line(metrics: dict[str, Any]) -> str:
    """One run in one line."""
    start = f"{metrics['family']}, seed {metrics['settings']['seed']}: "
    if metrics["failed"]:
        return start + metrics["failed"]
    results, score = metrics["results"], scores(metrics["results"])
    return (
        f"{start}bound {score['bound']['mean']:.3f}, L_{metrics['measurement']['particles']} "
        f"{score['log_px']['mean']:.3f} {unit(results)}, {results['training_seconds']:.0f} seconds of training, "
        f"{metrics['seconds']:.0f} in all"
    )


# The report


def report(out: Path) -> str:
    """The table of all runs in a folder; leaves table, numbers and pictures there."""
    runs = gather(out / RUNS)
    families = {name: summary(entries) for name, entries in runs.items()}
    for rank, name in enumerate(ranking(families), start=1):
        families[name]["rank"] = rank
    first = next(iter(runs.values()))[0]
    common = {
        "settings": {name: first["settings"][name] for name in SHARED_SETTINGS},
        "measurement": first["measurement"],
        "dataset": first["dataset"],
    }
    text = table(families, common)
    (out / "likelihoods.txt").write_text(text + "\n", encoding="utf-8")
    picture(families, common).savefig(out / "likelihoods.png")
    pictures(out / RUNS, runs).savefig(out / "likelihood_pictures.png")
    write_json(
        out / "likelihoods.json",
        {
            **common,
            "versions": provenance(),
            "families": families,
            "runs": [entry for entries in runs.values() for entry in entries],
        },
    )
    return text


def gather(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """All runs by family, in the order of FAMILIES and seeds; ValueError where they are not of one experiment."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for name in FAMILIES:
        files = folder.glob(f"{name}-seed*/{METRICS}")
        entries = sorted((json.loads(file.read_text()) for file in files), key=lambda run: run["settings"]["seed"])
        if entries:
            runs[name] = entries
    if not runs:
        raise ValueError(f"{folder} holds no runs; train some, without --report")
    everything = [entry for entries in runs.values() for entry in entries]
    for entry in everything:
        for part, names in (
            ("settings", SHARED_SETTINGS),
            ("measurement", ("particles", "images")),
            ("dataset", ("name", "train", "test")),
        ):
            for name in names:
                values = [other[part][name] for other in (everything[0], entry)]
                if values[0] != values[1]:
                    raise ValueError(
                        f"{folder} holds runs with {part} {name} = {values[0]} and {values[1]}; they do "
                        "not compare, move one kind elsewhere"
                    )
    return runs


def scores(results: dict[str, Any]) -> dict[str, Any]:
    """The bounds of a run in the unit of its family."""
    return results["bits_per_dim"] or results["nats"]


def unit(results: dict[str, Any]) -> str:
    return "bits/dim" if results["bits_per_dim"] else "nats"


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One family over its seeds."""
    finished = [run["results"] for run in runs if not run["failed"]]
    known = {
        "label": FAMILIES[runs[0]["family"]].label,
        "rank": None,
        "seeds": [run["settings"]["seed"] for run in runs if not run["failed"]],
        "failed": {str(run["settings"]["seed"]): run["failed"] for run in runs if run["failed"]},
        "left_out": {
            str(run["settings"]["seed"]): run["left_out"] for run in runs if run.get("left_out") and not run["failed"]
        },
    }
    if not finished:
        return known
    if "clip" in finished[0]:
        known["label"] += f", clip {finished[0]['clip']:g}"
    facts = ("min_log_scale", "clip")
    return {
        **known,
        "unit": unit(finished[0]),
        **{bound: over_seeds([scores(run)[bound] for run in finished]) for bound in ("bound", "log_px")},
        "least": (finished[0]["bits_per_dim"] or {}).get("least"),
        **{name: spread([run[name] for run in finished]) for name in YARDSTICKS},
        **{name: finished[0][name] for name in facts if name in finished[0]},
        **(
            {"share_of_scales_at_bound": spread([run["share_of_scales_at_bound"] for run in finished])}
            if "share_of_scales_at_bound" in finished[0]
            else {}
        ),
    }


def over_seeds(estimates: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds, and the standard error over test images.

    All seeds see the same test images, so that more of them do not make this error smaller: it is their average.
    """
    errors = [estimate["standard_error"] for estimate in estimates]
    return {
        **spread([estimate["mean"] for estimate in estimates]),
        "standard_error": None if None in errors else statistics.fmean(errors),
        "images": estimates[0]["images"],
    }


def spread(values: list[float | None]) -> dict[str, Any]:
    """Mean and standard deviation over seeds; None for what is not known."""
    if None in values:
        return {"mean": None, "sd_over_seeds": None, "values": values}
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd_over_seeds": sd, "values": values}


def ranking(families: dict[str, dict[str, Any]]) -> list[str]:
    """Families that have bits/dim, the lowest L_K first. Nats of black and white pixels are never ranked."""
    grey = [name for name, family in families.items() if family.get("unit") == "bits/dim"]
    return sorted(grey, key=lambda name: families[name]["log_px"]["mean"])


def in_order(families: dict[str, dict[str, Any]]) -> list[str]:
    """The ranked families, then the others."""
    first = ranking(families)
    return first + [name for name in families if name not in first]


def table(families: dict[str, dict[str, Any]], common: dict[str, Any]) -> str:
    K = common["measurement"]["particles"]
    titles = (
        "",
        "",
        "bits/dim,",
        "bits/dim,",
        "least",
        "nats,",
        "nats,",
        "kNN",
        "linear",
        "squared",
        "active",
        "training",
        "",
    )
    heads = (
        "rank",
        "likelihood",
        "bound",
        f"L_{K}",
        "possible",
        "bound",
        f"L_{K}",
        "accuracy",
        "probe",
        "error",
        "units",
        "seconds",
        "seeds",
    )
    rows = [titles, heads, *(row(families[name]) for name in in_order(families))]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip() for cells in rows]
    return "\n".join([*lines, "", *notes(families, common)])


def row(family: dict[str, Any]) -> tuple[str, ...]:
    seeds = str(len(family["seeds"]))
    if not family["seeds"]:
        return ("", family["label"], *["-"] * 10, seeds)
    grey = family["unit"] == "bits/dim"
    bounds = tuple(number(family[bound], 3 if grey else 2) for bound in ("bound", "log_px"))
    least = "none" if family["least"] is None else f"{family['least']:g}"
    digits = (3, 3, 4, 1, 0)
    return (
        str(family["rank"] or ""),
        family["label"],
        *((*bounds, least, "", "") if grey else ("", "", "", *bounds)),
        *(number(family[name], places) for name, places in zip(YARDSTICKS, digits)),
        seeds,
    )


def number(value: dict[str, Any], digits: int) -> str:
    """mean ± standard error over images (standard deviation over seeds), as far as they are known."""
    if value["mean"] is None:
        return "-"
    error, sd = value.get("standard_error"), value["sd_over_seeds"]
    parts = [f"{value['mean']:.{digits}f}"]
    parts += [f"± {error:.{digits}f}"] if error is not None else []
    parts += [f"({sd:.{digits}f})"] if sd is not None else []
    return " ".join(parts)


def notes(families: dict[str, dict[str, Any]], common: dict[str, Any]) -> Iterator[str]:
    """What a reader of the table must know."""
    settings, sizes, measured = common["settings"], common["dataset"], common["measurement"]
    yield (
        f"{sizes['name']}, {settings['net']} networks, {settings['latent']} latent dimensions, {settings['epochs']} "
        f"epochs of {sizes['train']} images, batches of {settings['batch']}, Adam {settings['lr']:g} "
        f"({settings['schedule']}), the same seeds for every family."
    )
    yield (
        f"Bound: {sizes['test']} test images, one particle; L_{measured['particles']}: the first "
        f"{measured['images']} of them. ± standard error over images, (standard deviation over seeds)."
    )
    yield (
        "Bits/dim: of the mass on the 256 grey levels, lower is better; ranked by "
        f"L_{measured['particles']}. B bins spread their mass evenly over the levels in them, which costs at least "
        "log2(256 / B)."
    )
    yield "Nats per image of black and white pixels, higher is better: other data, so not to be ranked with bits/dim."
    yield (
        f"Probes: {NEIGHBOURS} neighbours and logistic regression, on the codes of {min(PROBE, sizes['train'])} "
        f"training images, tested on {sizes['test']}. Squared error: a pixel's, mean of p(x | code) to g / 255."
    )
    for family in families.values():
        share = family.get("share_of_scales_at_bound")
        if share:
            yield (
                f"{family['label']}: the lower bound {family['min_log_scale']:g} on the log scale holds up "
                f"{share['mean']:.1%} of the scales."
            )
        for seed, reason in family["failed"].items():
            yield f"{family['label']}, seed {seed}: {reason}"
        for seed, names in family["left_out"].items():
            yield from (f"{family['label']}, seed {seed}: left out: {name}: {why}" for name, why in names.items())
    if sizes["note"]:
        yield f"NOTE: {sizes['note']}"


def picture(families: dict[str, dict[str, Any]], common: dict[str, Any]) -> Figure:
    """Six panels with a line for each family and a point for each seed."""
    names = [name for name in in_order(families) if families[name]["seeds"]]
    rows = [families[name] for name in names]
    K, n = common["measurement"]["particles"], common["measurement"]["images"]
    figure = Figure(figsize=(11.5, 1.8 + 0.52 * max(len(names), 3)), dpi=DPI, layout="constrained")
    panels = figure.subplots(2, 3, sharey=True).flatten()
    both = {"bound": ("bound, all test images", BOUND), "log_px": (f"$L_{{{K}}}$, {n} test images", EVIDENCE)}
    for axes, kind, title in (
        (panels[0], "bits/dim", "grey levels: bits/dim ← better"),
        (panels[1], "nats", "black and white: nats, better →"),
    ):
        for bound, (label, colour) in both.items():
            points(axes, [row[bound] if row["unit"] == kind else None for row in rows], label, colour)
        axes.set_title(title, fontsize="medium")
    floors = [(place, row["least"]) for place, row in enumerate(rows) if row["least"] is not None]
    panels[0].plot(
        [least for _, least in floors],
        [place for place, _ in floors],
        "|",
        color=OTHER,
        markersize=9,
        label="least possible",
    )
    points(panels[2], [row["knn_accuracy"] for row in rows], f"{NEIGHBOURS} neighbours", EVIDENCE)
    points(panels[2], [row["linear_probe_accuracy"] for row in rows], "linear probe", BOUND)
    panels[2].set_title("accuracy of probes, better →", fontsize="medium")
    others = {
        "mse": "squared error of a pixel ← better",
        "active_units": "active units",
        "training_seconds": "seconds of training",
    }
    for axes, (quantity, title) in zip(panels[3:], others.items()):
        points(axes, [row[quantity] for row in rows], "", EVIDENCE)
        axes.set_title(title, fontsize="medium")
    for axes in panels:
        axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
        axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
        axes.grid(alpha=0.3)
    for axes, place in zip(panels[:3], ("best", "best", "lower center")):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="x-small", loc=place)
    return figure


def points(axes: Axes, values: list[dict[str, Any] | None], label: str, colour: str) -> None:
    """A point for each seed of each family that has a value."""
    pairs = [
        (seed, place) for place, value in enumerate(values) if value for seed in value["values"] if seed is not None
    ]
    if pairs:
        axes.plot(*zip(*pairs), "o", color=colour, label=label, markersize=4, alpha=0.8)


def pictures(folder: Path, runs: dict[str, list[dict[str, Any]]]) -> Figure:
    """For each family reconstructions of the same test images, and samples of its prior, by its first seed."""
    seeds = {
        name: [run["settings"]["seed"] for run in entries if not run["failed"] and not run.get("left_out")]
        for name, entries in runs.items()
    }
    rows = {
        name: torch.load(folder / f"{name}-seed{found[0]}" / "pictures.pt", weights_only=True)
        for name, found in seeds.items()
        if found
    }
    figure = Figure(figsize=(11, 0.3 + 0.52 * (len(rows) + 1)), dpi=DPI, layout="constrained")
    if not rows:
        return figure
    originals = next(iter(rows.values()))["images"]
    left, right = figure.subplots(1, 2)
    columns = {
        "reconstructions": [originals, *(row["reconstructions"] for row in rows.values())],
        "samples of the prior": [torch.ones_like(originals), *(row["samples"] for row in rows.values())],
    }
    for axes, (title, images) in zip((left, right), columns.items()):
        axes.imshow(tiled(torch.stack(images)), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(title, fontsize="medium")
        axes.spines[:].set_visible(False)
        axes.set_xticks([])
        axes.set_yticks([])
    height = originals.shape[-2]
    centres = [(height + 2) * place + (height - 1) / 2 for place in range(len(rows) + 1)]
    left.set_yticks(centres, ["test images", *(FAMILIES[name].label for name in rows)])
    left.tick_params(length=0)
    return figure


if __name__ == "__main__":
    sys.exit(main())
