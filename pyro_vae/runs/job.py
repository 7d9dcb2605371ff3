"""A run: train one VAE, measure it, and leave pictures, metrics and parameters in one folder."""

import argparse
import json
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO

from pyro_vae import VAE
from pyro_vae.conditional import Conditional
from pyro_vae.config import build_estimator, build_vae
from pyro_vae.data import Data, load
from pyro_vae.runs.arguments import fill_in, size_of
from pyro_vae.runs.commands import attempted, choose_device
from pyro_vae.runs.drawing import pictures
from pyro_vae.runs.effort import Effort
from pyro_vae.runs.folders import run_folder
from pyro_vae.runs.measurement import measure, shared_evidence
from pyro_vae.runs.origins import describe, provenance
from pyro_vae.runs.reporting import plan, report
from pyro_vae.runs.resume import HISTORY, claim, compared, end_training, publish
from pyro_vae.runs.training import check_training, train_by
from pyro_vae.saved import PARAMETERS, describe_model
from pyro_vae.saved.programs import parts_of
from pyro_vae.training import Checkpoints, History, ranks
from pyro_vae.training.history import csv_of


@dataclass(frozen=True)
class Job:
    """What a run trains, by which estimator, on which images, and the folder of its results."""

    args: argparse.Namespace
    images: Data
    vae: VAE | Conditional
    estimator: ELBO
    out: Path

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Job":
        """Return the job that the options describe; options that are left open get values that suit the images."""
        if (args.evidence or 0) < 0:
            raise ValueError(f"--evidence: wanted a number of particles, or 0 for no log p(x), got {args.evidence}")
        device = choose_device(args.device)
        images = load(args.dataset, root=args.data_dir, layout=args.layout, size=size_of(args)).to(device)
        ranks.check_held_out(len(images.test), "data.test")
        fill_in(args, images)
        check_training(args, len(images.train))
        torch.manual_seed(args.seed)
        vae, estimator = build_vae(args, images.train.images.cpu()).to(device), build_estimator(args)
        parts_of(vae)  # raises, before training, for a program that could not be saved
        out = args.out or Path("figures") / f"{images.name}-{args.lik}-z{args.latent}-seed{args.seed}"
        return cls(args, images, vae, estimator, out)

    @property
    def same(self) -> dict[str, Any]:
        """The options that must not differ when the run is resumed, as JSON holds them."""
        return compared(json.loads(json.dumps(vars(self.args), default=str)))

    @cached_property
    def described(self) -> dict[str, Any]:
        """The description of the images."""
        return describe(self.images)

    def fit(self, **options: Any) -> History:
        """Train the program; ``options`` are those of ``fit`` that the command line does not set."""
        return train_by(self.args, self.images, self.vae, self.estimator, **options)


def run(args: argparse.Namespace, again: str = "") -> int:
    """Train, measure and publish one run; return 0, or 128 and the number of the signal that interrupted it.

    ``again``: the command line that resumes the run, which is printed if it was interrupted.
    """
    started = time.perf_counter()
    job = Job.of(args)
    if ranks.rank() > 0:
        return follow(job)
    with run_folder(job.out):
        checkpoints = Checkpoints(
            job.out, **args.checkpoint_every, resume=args.resume, settings=job.same, overwrite=args.overwrite
        )
        finished = claim(job, checkpoints)
        ranks.broadcast(not finished)
        if finished:
            print(report(finished, job.out))
            return 0
        announce(job)
        history = job.fit(checkpoints=checkpoints, progress=not args.quiet)
        trained = time.perf_counter()
        metrics, files = results(job, history)
        metrics["seconds"] = {
            "training": history.rows[-1]["seconds"] if history.rows else 0.0,
            "measuring": time.perf_counter() - trained,
            "whole_command": time.perf_counter() - started,
        }
        publish(job.out, files, metrics)
        if not history.interrupted:
            end_training(job.out, checkpoints)
    print(report(metrics, job.out))
    if history.signal is None:
        return 0
    print(f"go on with: {again}")
    return 128 + history.signal


def follow(job: Job) -> int:
    """Train and measure beside rank 0, which has the folder and says whether there is a run to train."""
    if ranks.broadcast(None):
        history = job.fit(progress=False)
        if job.args.evidence and job.args.measure != "none" and not history.interrupted:
            number = Effort.of(job.args, job.images, len(history.rows)).images
            # Rank 0 reports a failure.
            attempted({"evidence": lambda: shared_evidence(job.vae, job.images, job.args, number)}, {})
    return 0


def announce(job: Job) -> None:
    """Print the plan, or, with --quiet, only a note about the data."""
    if not job.args.quiet:
        print(plan(job.args, job.images, job.vae, job.estimator, job.out), flush=True)
    elif job.images.note:
        print(f"NOTE: {job.images.note}", flush=True)


def results(job: Job, history: History) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the content of metrics.json, and the other files of the run by name."""
    model, parameters = describe_model(job.vae, job.args, job.images.shape)
    metrics = {
        **model,
        "settings": vars(job.args),
        "dataset": job.described,
        "versions": provenance(),
        "interrupted": history.interrupted,
        "stopped_early": not history.interrupted and len(history.rows) < job.args.epochs,
        "best_epoch": history.best_epoch,
        "kept_epoch": history.kept_epoch,
        "kept_because": history.reason,
        "skipped_steps": history.skipped,
        "engine": history.engine,
        "left_out": {},
    }
    files = {PARAMETERS: parameters}
    if history.rows:
        files[HISTORY] = csv_of(history.rows)
    if not history.interrupted:
        effort = Effort.of(job.args, job.images, len(history.rows))
        works = measure(job.vae, job.images, job.args, effort.images)
        if not job.args.quiet:
            works = effort.announced(works, history.rows[-1]["seconds"], lambda line: print(line, flush=True))
        metrics |= attempted(works, metrics["left_out"])
        files |= attempted(pictures(job.vae, job.images, history), metrics["left_out"])
    return metrics, files
