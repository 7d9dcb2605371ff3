"""Time to quality: seconds, from a cold start, until log p(x) of the test images is as published, and far beyond."""

import argparse
import csv
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.benchmarks.processes import empty_caches
from experiments.benchmarks.rows import Row, as_markdown, in_unit, row
from pyro_vae.data import Data
from pyro_vae.evidence import LocalProposal, UntrustedEvidence, log_evidence
from pyro_vae.plots import COLOURS, DPI, GREY
from pyro_vae.runs import beside, write_json
from pyro_vae.runs.arguments import RECIPES
from pyro_vae.runs.resume import HISTORY
from pyro_vae.saved import METRICS, load_vae, read_metrics
from pyro_vae.training import fixed_x

OPTIONS = ("seeds", "evidence", "recipes")
RUN = Path(__file__).parents[1] / "run.py"
TARGET = -86.76  # nats: a VAE after 3,280 epochs, dynamically binarised MNIST (Burda et al. 2015, table 1)
FAST = "fast"
GUIDE, LOCAL = "the guide", "local proposals"  # from which log p(x) is drawn
MINUTES = (1, 2, 5, 10, 30, 60)


def measure(images: Data, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the numbers of a run for each recipe and seed."""
    for recipe in args.recipes:
        of_recipe(recipe)  # an error comes before the first run
    where = ["--dataset", images.name, *(["--data-dir", str(args.data_dir)] if args.data_dir else [])]
    return [
        trained(images, recipe, seed, args.evidence, args.out, where) for recipe in args.recipes for seed in args.seeds
    ]


def rows(images: Data, args: argparse.Namespace) -> list[Row]:
    """Return seconds and log p(x) of the fast recipe."""
    folder = args.out.with_name(f"{args.out.name}_quality")
    fast = argparse.Namespace(**{**vars(args), "recipes": [FAST], "out": folder})
    return rows_of(measure(images, fast))


def rows_of(runs: list[dict[str, Any]]) -> list[Row]:
    """Return the rows of the runs of the fast recipe; those that were resumed have no seconds from a fresh shell."""
    shell = [run["seconds_from_shell"] for run in runs if run["seconds_from_shell"] is not None]
    return [
        row("recipe fast: from a fresh shell to the trained model", shell),
        row("recipe fast: log p(x), lowest of the seeds", [min(run["evidence"]["log_px"] for run in runs)]),
        row("recipe fast: seconds of training", [run["seconds"] for run in runs], "s", lower=True),
        row("recipe fast: log p(x)", [run["evidence"]["log_px"] for run in runs], "nats"),
    ]


def trained(images: Data, recipe: str, seed: int, particles: int, out: Path, words: list[str]) -> dict[str, Any]:
    """Return the numbers of ``run.py --recipe``, run in its own process, with no compiled code of an earlier run.

    A run that is already in its folder of ``out`` is not repeated, and one that was interrupted goes on; log p(x) of
    all test images is measured once, by local proposals. Raises CalledProcessError if the command fails, ValueError if
    log p(x) of that run was measured with another number of particles, or ``particles`` is not positive.
    """
    if particles < 1:
        raise ValueError(f"--evidence: wanted at least 1 particle, got {particles}")
    folder = out / f"{recipe.replace(':', '_')}_seed{seed}"
    command = [*of_recipe(recipe), "--seed", str(seed), "--evidence", "0", "--out", str(folder), *words]
    shell = timed_run(command, folder)
    metrics, evidence = read_metrics(folder / METRICS), evidence_of(folder, images, particles)
    with (folder / HISTORY).open() as file:
        history = [{name: float(row[name]) for name in ("seconds", "valid_bound")} for row in csv.DictReader(file)]
    return {
        "recipe": recipe,
        "seed": seed,
        "seconds": metrics["seconds"]["training"],
        "seconds_from_shell": shell,
        **{name: metrics[name] for name in ("settings", "dataset", "test")},
        "evidence": evidence,
        "drawn_from": LOCAL,
        "history": history,
    }


def evidence_of(folder: Path, images: Data, particles: int) -> dict[str, Any]:
    """Return log p(x) of the test images by the program of a run; a file beside the folder keeps it."""
    kept = beside(folder, "_evidence.json")
    if not kept.is_file():
        vae = load_vae(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UntrustedEvidence)  # the results hold the share of these images
            found = log_evidence(vae, fixed_x(vae, images.test), particles, proposal=LocalProposal())
        write_json(kept, found.to_dict())
    evidence = json.loads(kept.read_text())
    if evidence["num_particles"] != particles:
        raise ValueError(
            f"{kept} holds log p(x) by {evidence['num_particles']} particles, wanted {particles}; give another --out"
        )
    return evidence


def of_recipe(recipe: str) -> list[str]:
    """Return the options of a recipe, with a colon and the number of epochs if it is to train longer.

    >>> of_recipe("fast:100")
    ['--recipe', 'fast', '--epochs', '100']
    """
    name, _, epochs = recipe.partition(":")
    if name not in RECIPES or (epochs and not epochs.isdecimal()):
        raise ValueError(f"--recipes: wanted one of {', '.join(RECIPES)}, or such as fast:100 epochs, got {recipe}")
    return ["--recipe", name, *(["--epochs", epochs] if epochs else [])]


def timed_run(command: list[str], folder: Path) -> float | None:
    """Run ``run.py``; return the seconds from its start to the trained model, None if it was ever interrupted.

    They are those of the whole process without those of the measurement. A file beside the folder keeps them.
    """
    new, kept = not folder.exists(), beside(folder, "_shell.json")
    with empty_caches() as caches:
        start = time.perf_counter()
        subprocess.run([sys.executable, str(RUN), *command, "--quiet", "--resume"], check=True, env=os.environ | caches)
        seconds = time.perf_counter() - start
    if new:
        write_json(kept, {"seconds": seconds - read_metrics(folder / METRICS)["seconds"]["measuring"]})
    return json.loads(kept.read_text())["seconds"] if kept.is_file() else None


def reached(runs: list[dict[str, Any]], minutes: float) -> dict[str, Any] | None:
    """Return the best validation bound within so many minutes, and the run that had ended by then; None before any.

    Of several runs it is the one with the best validation bound at its end; runs that trained on have no log p(x).
    """
    ended = [run for run in runs if run["seconds"] <= 60 * minutes]
    bounds = [row["valid_bound"] for run in runs for row in run["history"] if row["seconds"] <= 60 * minutes]
    if not bounds:
        return None
    best = max(ended, key=lambda run: run["history"][-1]["valid_bound"], default=None)
    said = best and {"recipe": best["recipe"], "seed": best["seed"], "log_px": best["evidence"]["log_px"]}
    return {"minutes": minutes, "valid_bound": max(bounds), **(said or {})}


def table(runs: list[dict[str, Any]]) -> str:
    """Return the runs as text, and what was reached by when."""
    runs = complete(runs)
    lines = [
        f"{'recipe':<10} {'seed':<5} {'training':>9} {'from shell':>11} {'log p(x), nats':>16} {'k̂ > 0.7':>9}   "
        f"published: {TARGET}"
    ]
    for run in runs:
        evidence, shell = run["evidence"], run["seconds_from_shell"]
        share = evidence["share_pareto_k_above_0.7"]
        verdict = "reached" if evidence["log_px"] >= TARGET else f"missed by {TARGET - evidence['log_px']:.2f}"
        value = f"{evidence['log_px']:.2f} ± {evidence['standard_error']:.2f}"
        whole = "" if shell is None else f"{shell:.0f} s"
        lines.append(
            f"{run['recipe']:<10} {run['seed']:<5} {run['seconds']:>7.0f} s {whole:>11} {value:>16} "
            f"{'' if share is None else format(share, '.1%'):>9}   {verdict}"
        )
    lines.append(f"log p(x): at least, {drawn_by(runs)}")
    return "\n".join([*lines, *map(milestone, milestones(runs))])


def milestones(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what was reached by each minute, up to the first by which all runs had ended."""
    longest = max(run["seconds"] for run in runs) / 60
    needed = [minutes for before, minutes in zip((0, *MINUTES), MINUTES) if before < longest]
    return list(filter(None, (reached(runs, minutes) for minutes in needed)))


def milestone(found: dict[str, Any]) -> str:
    """Return what was reached by a minute as a line.

    >>> milestone({"minutes": 5, "valid_bound": -85.4, "recipe": "fast", "seed": 1, "log_px": -83.3})
    'within  5 min: validation bound −85.40 nats; trained to the end: log p(x) −83.30 nats (fast, seed 1)'
    """
    bound = in_unit(found["valid_bound"], "nats")
    return f"within {found['minutes']:>2} min: validation bound {bound}; trained to the end: {ended(found)}"


def ended(found: dict[str, Any]) -> str:
    """Return the run that had ended, of what ``reached`` found."""
    if "log_px" not in found:
        return "none yet"
    return f"log p(x) {in_unit(found['log_px'], 'nats')} ({found['recipe']}, seed {found['seed']})"


def markdown(runs: list[dict[str, Any]]) -> str:
    """Return the runs, and what was reached by when, as tables of Markdown."""
    runs = complete(runs)
    log_px = f"log p(x) ≥, {drawn_by(runs)}"
    lines: list[Sequence[object]] = [("recipe", "seed", "seconds of training", "from a fresh shell", "bound", log_px)]
    for run in runs:
        shell = "" if run["seconds_from_shell"] is None else f"{run['seconds_from_shell']:.0f}"
        means = [f"{in_unit(part[name], 'nats')} ± {part['standard_error']:.2f}" for part, name in measured(run)]
        lines.append((run["recipe"], run["seed"], f"{run['seconds']:.0f}", shell, *means))
    by_when: list[Sequence[object]] = [("within minutes", "validation bound", "log p(x) of what had ended by then")]
    for found in milestones(runs):
        by_when.append((found["minutes"], in_unit(found["valid_bound"], "nats"), ended(found)))
    return f"{as_markdown(lines)}\n\n{as_markdown(by_when)}"


def complete(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the runs with what earlier results lack."""
    return [{"recipe": FAST, "seconds_from_shell": None, "drawn_from": GUIDE} | run for run in runs]


def drawn_by(runs: list[dict[str, Any]]) -> str:
    """Return how log p(x) was measured."""
    first = runs[0]["evidence"]
    return f"{first['images']:,} test images, {first['num_particles']:,} draws from {runs[0]['drawn_from']}"


def measured(run: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Return the measurements of a run, and the names of their means."""
    return [(run["test"], "bound"), (run["evidence"], "log_px")]


def figure(runs: list[dict[str, Any]]) -> Figure:
    """Draw the bound against seconds, with log p(x) at the end."""
    drawn = Figure(figsize=(6.5, 3.6), dpi=DPI, layout="constrained")
    axes = drawn.subplots()
    for colour, run in zip(cycle(COLOURS), runs):
        seconds, bounds = ([row[name] for row in run["history"]] for name in ("seconds", "valid_bound"))
        axes.plot(seconds, bounds, color=colour, label=f"validation bound, {run['recipe']}, seed {run['seed']}")
        axes.plot(run["seconds"], run["evidence"]["log_px"], "*", ms=11, color=colour)
    axes.plot([], [], "k*", label="log p(x) of the test images")
    axes.axhline(TARGET, color=GREY, linestyle="--", label=f"published after 3,280 epochs: {TARGET}")
    axes.set(
        xlabel="seconds of training, compiling included",
        ylabel="nats per image",
        xlim=(0, None),
        ylim=(TARGET - 25, TARGET + 4),
    )
    axes.legend(fontsize="small", loc="lower right")
    axes.grid(alpha=0.3)
    return drawn
