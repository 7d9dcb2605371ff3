#!/usr/bin/env python
"""How tight are the bounds on log p(x)?

For one trained model: the bound by importance sampling against the number of particles, by annealed importance sampling
against the number of temperatures, and, on images that the model drew, a lower and an upper bound on log p(x).

    python experiments/run.py --latent 20 --out figures/mnist
    python experiments/evidence.py --run figures/mnist
"""

import argparse
import resource
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae import VAE, load
from pyro_vae.evidence import Evidence, Sandwich, UntrustedEvidence, annealed_evidence, bidirectional, log_evidence
from pyro_vae.plots import COLOURS, DPI
from pyro_vae.runs import (
    attempted,
    choose_device,
    exit_status,
    provenance,
    results_folder,
    save_figure,
    write_json,
)
from pyro_vae.runs.arguments import size_of
from pyro_vae.runs.options import home_path
from pyro_vae.runs.resume import EVIDENCE
from pyro_vae.saved import METRICS, PARAMETERS, load_vae, read_metrics
from pyro_vae.training import fixed_x

IMPORTANCE, PRIOR, GUIDE, UPPER = COLOURS[9], COLOURS[1], COLOURS[0], COLOURS[4]
STARTS = {"prior": PRIOR, "guide": GUIDE}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=home_path, required=True, help="folder of a model that run.py trained")
    parser.add_argument(
        "--out", type=home_path, default=None, help="folder of the results (default: evidence, in the folder of --run)"
    )
    group = parser.add_argument_group("measurement")
    group.add_argument("--images", type=int, default=200, help="test images, from the first on")
    group.add_argument("--particles", type=int, nargs="+", default=[1, 10, 100, 1000, 5000], metavar="K")
    group.add_argument("--all", action="store_true", help="importance sampling on all test images")
    group.add_argument(
        "--bfloat16",
        action="store_true",
        help="measure the first --images again with the networks in bfloat16 and the most particles, and compare",
    )
    group.add_argument("--temperatures", type=int, nargs="+", default=[30, 100, 300], metavar="T")
    group.add_argument("--chains", type=int, default=8, help="annealed chains per image")
    group.add_argument("--leapfrog", type=int, default=8, help="steps of each Hamiltonian transition")
    group.add_argument(
        "--simulated", type=int, default=100, help="images drawn from the model for the lower and upper bound"
    )
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    group = parser.add_argument_group("data and results")
    group.add_argument("--data-dir", type=home_path, default=None, help="folder in which the data lie")
    group.add_argument("--overwrite", action="store_true", help="replace the results of another run in --out")
    group.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(lambda: parse_arguments(argv), run, "nothing is saved")


def run(args: argparse.Namespace) -> int:
    """Measure all bounds of a trained model and write the results."""
    started = time.perf_counter()
    vae, pixels, trained = load_run(args.run, choose_device(args.device), args.data_dir)
    if not 2 <= args.images <= len(pixels) or args.simulated < 2 or min(args.temperatures) < 2:
        raise ValueError(
            f"--images: wanted 2 to {len(pixels)} (the test images), --simulated and --temperatures: at "
            f"least 2; got {args.images}, {args.simulated} and {min(args.temperatures)}"
        )
    out = args.out or args.run / EVIDENCE
    with results_folder(out, args.overwrite) as folder:
        results = measure(vae, fixed_x(vae, pixels), args)
        left_out: dict[str, str] = {}
        attempted({"evidence.png": lambda: save_figure(folder / "evidence.png", picture(results))}, left_out)
        metrics = {
            "settings": vars(args),
            "trained": trained,
            "versions": provenance(),
            **results,
            "left_out": left_out,
            "seconds": time.perf_counter() - started,
        }
        write_json(folder / METRICS, metrics)
    print(report(results, out), *(f"left out: {name}: {why}" for name, why in left_out.items()), sep="\n")
    return 0


def load_run(folder: Path, device: torch.device, data_dir: Path | None = None) -> tuple[VAE, Tensor, dict[str, Any]]:
    """Return the model that run.py left in a folder, the test pixels of its data, and its metrics."""
    if not (folder / METRICS).is_file() or not (folder / PARAMETERS).is_file():
        raise FileNotFoundError(f"{folder} holds no trained model; train one by run.py --latent 20 --out {folder}")
    vae, metrics = load_vae(folder, device), read_metrics(folder / METRICS)
    if not isinstance(vae, VAE):
        raise ValueError(
            f"{folder} holds p(x | z, y), trained with --conditional; write log_evidence(load_vae({str(folder)!r}), "
            "data.test, particles=5000) for its log p(x | y), or train one without"
        )
    asked, found = metrics["settings"].get("dataset", "auto"), metrics["dataset"]["name"]
    images = load(
        found if asked == "auto" else asked,
        root=data_dir or metrics["settings"].get("data_dir"),
        layout=metrics["settings"].get("layout"),
        size=size_of(argparse.Namespace(size=metrics["settings"].get("size"))),
    )
    return vae, images.test.images.to(device), metrics


def measure(vae: VAE, x: Tensor, args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Return all bounds, a row each: summaries in nats per image, and seconds."""
    common = {"seed": args.seed, "progress": not args.quiet}
    importance = importance_rows(vae, x if args.all else x[: args.images], args, common)
    x = x[: args.images]
    chains = {"chains": args.chains, "leapfrog": args.leapfrog, **common}
    template = x[torch.arange(args.simulated) % len(x)]  # only its shape and support matter
    starts: dict[str, Callable | None] = {"prior": None, "guide": vae.guide}
    return {
        "importance": importance,
        "annealed": [
            {"start": name, **timed(annealed_evidence, vae.model, guide, x, num_temperatures=T, **chains)[1]}
            for name, guide in starts.items()
            for T in sorted(args.temperatures)
        ],
        "bidirectional": [
            {"start": "guide", **timed(bidirectional, vae.model, vae.guide, template, num_temperatures=T, **chains)[1]}
            for T in sorted(args.temperatures)
        ],
    }


def importance_rows(vae: VAE, x: Tensor, args: argparse.Namespace, common: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each K in float32 and, if asked for, one for the largest K in bfloat16, with its bias.

    Each row has the mean over all of x, the mean over the images that are annealed, and the peak memory of the process
    so far. The row in bfloat16 is measured on the annealed images only.
    """
    rows, before, kinds = [], None, [(K, None) for K in sorted(args.particles)]
    for K, precision in [*kinds, (max(args.particles), torch.bfloat16)] if args.bfloat16 else kinds:
        part = x if precision is None else x[: args.images]
        evidence, entry = timed(log_evidence, vae.model, vae.guide, part, K, precision=precision, **common)
        entry |= {
            "precision": str(precision or x.dtype).removeprefix("torch."),
            "log_px_of_annealed_images": evidence.log_px[: args.images].mean().item(),
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        if precision is not None:
            difference = evidence.log_px - before.log_px[: args.images]
            entry |= {
                "bias": difference.mean().item(),
                "bias_standard_error": difference.std().item() / len(difference) ** 0.5,
            }
        rows.append(entry)
        before = evidence
    return rows


def timed(
    evaluator: Callable[..., Evidence | Sandwich], *args: Any, **options: Any
) -> tuple[Evidence | Sandwich, dict[str, Any]]:
    """Return the result of an evaluator, and its summary with the seconds it took."""
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrustedEvidence)  # the row holds the share of these images
        result = evaluator(*args, **options)
    setting = {name: options[name] for name in ("leapfrog",) if name in options}
    return result, {**result.to_dict(), **setting, "seconds": time.perf_counter() - started}


def picture(results: dict[str, list[dict[str, Any]]]) -> Figure:
    """Draw three panels: importance sampling, annealing, both bounds."""
    figure = Figure(figsize=(11.5, 3.8), dpi=DPI, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    importance = [entry for entry in results["importance"] if "bias" not in entry]
    n, annealed = importance[0]["images"], results["annealed"][0]["images"]
    draw(left, importance, "num_particles", "log_px", "monte_carlo_error", "importance sampling", IMPORTANCE)
    for entry in importance:
        share = entry["share_pareto_k_above_0.7"]
        if share is not None:
            left.annotate(
                f"{share:.0%}",
                (entry["num_particles"], entry["log_px"]),
                (0, -14),
                textcoords="offset points",
                ha="center",
                fontsize="x-small",
            )
    left.set(xlabel="particles K", title=f"{n} test images (%: share with k̂ > 0.7)")
    for start, colour in STARTS.items():
        rows = [entry for entry in results["annealed"] if entry["start"] == start]
        draw(middle, rows, "num_temperatures", "log_px", "monte_carlo_error", f"annealed from the {start}", colour)
    best = importance[-1]
    label = f"importance, K = {best['num_particles']}"
    middle.axhline(best["log_px_of_annealed_images"], color=IMPORTANCE, linestyle="--", label=label)
    middle.set(xlabel="temperatures T", title=f"the {'first' if annealed < n else 'same'} {annealed} test images")
    for name, colour in (("upper", UPPER), ("lower", GUIDE)):
        draw(right, results["bidirectional"], "num_temperatures", name, None, f"{name} bound", colour)
    last = results["bidirectional"][-1]
    right.set(xlabel="temperatures T", title=f"{last['images']} simulated images: gap {last['gap']:.2f} nats")
    for axes in (left, middle, right):
        axes.set_title(axes.get_title(), fontsize="medium")
        axes.set_xscale("log")
        axes.set_ylabel("nats per image")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        axes.margins(y=0.15)
    return figure


def draw(axes: Axes, rows: list[dict], at: str, value: str, error: str | None, label: str, colour: str) -> None:
    """Draw a line of values, with two Monte Carlo errors if they are given."""
    bars = [2 * (entry[error] or 0) for entry in rows] if error else None
    places, values = [entry[at] for entry in rows], [entry[value] for entry in rows]
    axes.errorbar(places, values, yerr=bars, label=label, color=colour, marker="o", markersize=4, capsize=2)


def report(results: dict[str, list[dict[str, Any]]], out: Path) -> str:
    """Return the rows as a table."""
    lines = [f"{'bound':<32} {'nats per image':>15} {'± Monte Carlo':>14} {'k̂ > 0.7':>8} {'seconds':>8}"]
    named = [(f"importance, K = {r['num_particles']}" + ", bfloat16" * ("bias" in r), r) for r in results["importance"]]
    named += [(f"annealed from {r['start']}, T = {r['num_temperatures']}", r) for r in results["annealed"]]
    for name, r in named:
        error = "" if r["monte_carlo_error"] is None else f"{r['monte_carlo_error']:.3f}"
        share = r.get("share_pareto_k_above_0.7")
        lines.append(
            f"{name:<32} {r['log_px']:>15.3f} {error:>14} {'' if share is None else format(share, '.1%'):>8} "
            f"{r['seconds']:>8.0f}"
        )
    for r in results["importance"]:
        if "bias" in r:
            lines.append(
                f"bfloat16 moves it by {r['bias']:+.4f} ± {r['bias_standard_error']:.4f} nats per image, on "
                f"{r['images']} of them"
            )
    best = [r for r in results["importance"] if "bias" not in r][-1]
    lines.append(
        f"importance, K = {best['num_particles']}, on the annealed images alone: "
        f"{best['log_px_of_annealed_images']:.3f}"
    )
    for r in results["bidirectional"]:
        lines.append(
            f"{r['lower']:.3f} ≤ log p(x) ≤ {r['upper']:.3f} on {r['images']} simulated images, gap {r['gap']:.3f} ± "
            f"{r['gap_standard_error']:.3f}, T = {r['num_temperatures']}, {r['seconds']:.0f} seconds"
        )
    return "\n".join([*lines, f"results in {out}"])


if __name__ == "__main__":
    sys.exit(main())
