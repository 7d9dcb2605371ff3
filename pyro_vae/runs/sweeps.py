"""Experiments of many trainings: each leaves its own file, and joblib does several at a time.

A single run is a file ``<name>-seed<seed>.json`` in the folder of the experiment. A run that is there, with the same
settings, is not done again. With the same number of threads its numbers are the same whatever the number of jobs.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.config import build_estimator
from pyro_vae.data import Data
from pyro_vae.handlers import KLWeighted, LinearWarmUp
from pyro_vae.runs.commands import exit_status
from pyro_vae.runs.folders import write_json
from pyro_vae.runs.options import PRECISIONS, SCHEDULES
from pyro_vae.runs.origins import check_same_rows, provenance
from pyro_vae.runs.together import at_a_time, run_together
from pyro_vae.training import Checkpoints, History, fit


def trained(
    program: Any, images: Data, seed: int, args: argparse.Namespace, checkpoints: Checkpoints | None = None
) -> History:
    """Train a program by the options of ``add_training_options``; KeyboardInterrupt if that is interrupted.

    With ``--warm-up`` the weight of the KL grows from 0 to 1 over so many epochs. ``--precision`` is float32 for a
    command without that option. Where ``checkpoints`` are resumed, a training that has ended is read from there.
    """
    warm_up = getattr(args, "warm_up", 0.0)
    if warm_up > args.epochs:
        raise ValueError(f"--warm-up: wanted at most the {args.epochs} epochs of the training, got {warm_up:g}")
    program, by = warmed_up(program, args.lr, warm_up * len(images.train) / args.batch)
    history = fit(
        program,
        images,
        build_estimator(args, particles=1),
        epochs=args.epochs,
        batch_size=args.batch,
        seed=seed,
        schedule=SCHEDULES[args.schedule],
        precision=PRECISIONS[getattr(args, "precision", "float32")],
        engine=args.engine,
        progress=not args.quiet,
        checkpoints=checkpoints,
        **by,
    )
    if history.interrupted:
        raise KeyboardInterrupt
    return history


def warmed_up(program: Any, lr: float, steps: float) -> tuple[Any, dict[str, Any]]:
    """Return the program to be trained, and the options of ``fit`` for Adam.

    The weight of its KL grows from 0 to 1 in so many steps; without steps it is the program as it is.
    """
    if not steps:
        return program, {"lr": lr}
    weighted = KLWeighted(program)

    def annealing(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return weighted.anneal(torch.optim.Adam(parameters, lr=lr, fused=True), LinearWarmUp(steps))

    return weighted, {"optimizer": annealing}


def sweep_status(
    parse: Callable[[], argparse.Namespace],
    run: Callable[[argparse.Namespace], int],
    gather: Callable[[argparse.Namespace], str],
) -> int:
    """Do the single runs of a command, print the table of all, and return the exit status.

    ``run`` returns how many of them failed: then the status is 1. With ``--report`` nothing is run.
    """

    def work(args: argparse.Namespace) -> int:
        args.quiet = getattr(args, "quiet", False) or at_a_time(args.jobs) > 1  # the bars of several runs would mix
        failed = 0 if args.report else run(args)
        print(gather(args))
        return 1 if failed else 0

    return exit_status(parse, work, "the runs that had ended are in {out}; the same command goes on")


@dataclass(frozen=True)
class SingleRun:
    """A run that leaves one file; calling it does the run and returns a line about it.

    Attributes:
        path: the file.
        label: what the run is called in the lines that are printed.
        entries: of the file beside the results; "settings" are those that all runs of a table share.
        work: returns the results.
        summary: returns the line about the content of the file.
    """

    path: Path
    label: str
    entries: dict[str, Any]
    work: Callable[[], dict[str, Any]]
    summary: Callable[[dict[str, Any]], str]

    @property
    def is_done(self) -> bool:
        """Whether the file is there; ValueError if it has other settings, or is of other rows."""
        return is_done(self.path, self.entries["settings"], self.entries.get("dataset"))

    def __call__(self) -> str:
        """Do the run, write its file and return a line about it."""
        if self.is_done:
            return "another command has done it"
        result = {**self.entries, "versions": provenance(), **self.work()}
        write_json(self.path, result)
        return self.summary(result)


def run_missing(runs: Sequence[SingleRun], jobs: int | None = None) -> int:
    """Do the runs whose files are not there yet, and return how many of them failed; see ``run_together``.

    ValueError, before any of them, if there is a file with other settings.
    """
    return run_together({run.label: run for run in runs if not run.is_done}, jobs)


def run_once(
    path: Path,
    label: str,
    entries: dict[str, Any],
    work: Callable[[], dict[str, Any]],
    summary: Callable[[dict[str, Any]], str],
) -> None:
    """Do the ``SingleRun`` of these in this process, unless its file is there; its failure is that of the command."""
    run = SingleRun(path, label, entries, work, summary)
    if not run.is_done:
        print(label, flush=True)
        print(f"{label}: {run()}", flush=True)


def single_runs(out: Path) -> dict[Path, dict[str, Any]]:
    """Return the content of all files of single runs in the folder of an experiment.

    Raises FileNotFoundError if there is none, ValueError if they have different settings.
    """
    runs = {path: json.loads(path.read_text()) for path in sorted(out.glob("[!.]*-seed*.json"))}
    if not runs:
        raise FileNotFoundError(f"{out} holds no run to report; run without --report first")
    check_settings(runs)
    return runs


def is_done(path: Path, settings: dict[str, Any], dataset: dict[str, Any] | None = None) -> bool:
    """Return whether a single run has left its file; ValueError if it has other settings, or is of other rows."""
    if not path.exists():
        return False
    there = json.loads(path.read_text())
    check_settings({path: there, "this command": {"settings": settings}})
    if dataset:
        check_same_rows(path, there.get("dataset", {}), dataset, "give another --out")
    return True


def check_settings(runs: Mapping[Any, dict[str, Any]]) -> None:
    """Raise ValueError unless all runs have the same settings."""
    (first, reference), *others = runs.items()
    for path, run in others:
        for name, value in reference["settings"].items():
            if run["settings"].get(name) != value:
                raise ValueError(
                    f"{first} has {name} = {value}, {path} has {run['settings'].get(name)}, and one table cannot hold "
                    "both; give another --out"
                )


def mean(values: Sequence[float]) -> dict[str, Any] | None:
    """Return the mean, its standard error (None for a single value) and the values; None if there are none."""
    if not values:
        return None
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "standard_error": error, "values": list(values)}


def over_images(values: Tensor) -> dict[str, Any]:
    """Return the mean over images (n,), its standard error and n.

    >>> over_images(Tensor([1.0, 3.0]))
    {'mean': 2.0, 'standard_error': 1.0, 'n': 2}
    """
    values = values.double()
    error = (values.std() / len(values) ** 0.5).item() if len(values) > 1 else None
    return {"mean": values.mean().item(), "standard_error": error, "n": len(values)}
