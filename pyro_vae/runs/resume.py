"""The folder of a run: whether it may be written, whether its run goes on, and how results take their place in it."""

import argparse
import filecmp
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_vae.config import ALPHA, FREE_BITS, TEMPERATURE
from pyro_vae.files import CheckpointError, unfinished, write_whole
from pyro_vae.records import flag
from pyro_vae.runs.drawing import PICTURES
from pyro_vae.runs.folders import write_json
from pyro_vae.runs.origins import check_same_rows
from pyro_vae.saved import METRICS, PARAMETERS, read_metrics
from pyro_vae.saved.old_runs import OLD_PARAMETERS
from pyro_vae.training import Checkpoints
from pyro_vae.training.checkpoint import check_same
from pyro_vae.training.saving import HISTORY

if TYPE_CHECKING:
    from pyro_vae.runs.job import Job

EVIDENCE = "evidence"
ANEW = "pyro-vae train --overwrite trains and measures anew"
TRAINING = "training.pt"  # the last checkpoint of a run that has ended, from which a longer one goes on
# All files of a run, earlier versions included.
WRITTEN = (METRICS, PARAMETERS, OLD_PARAMETERS, HISTORY, TRAINING, *(f"{name}.png" for name in PICTURES))
FREE = (  # options that may differ when a run is resumed
    "epochs",
    "out",
    "data_dir",
    "layout",
    "quiet",
    "overwrite",
    "resume",
    "checkpoint_every",
    "skip_non_finite",
    "evidence",
    "measure",
    "engine",
    "recipe",
)


SINCE: dict[str, Any] = {  # options that earlier versions lacked, and what these did
    "conditional": False,
    "classes": None,
    "beta": 1.0,
    "warm_up": 0.0,
    "free_bits": FREE_BITS.default,
    "alpha": ALPHA.default,
    "temperature": TEMPERATURE.default,
    "optimizer": "adam",
    "weight_decay": 0.0,
    "ema": None,
    "patience": None,
    "size": None,
    "validate": None,
    "beta2": None,
}


def compared(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that must not differ when a run is resumed, except for those that say what they always did.

    >>> compared({"lr": 0.1, "beta": 1.0, "ema": 0.9, "epochs": 3})
    {'lr': 0.1, 'ema': 0.9}
    """
    usual = {name for name, value in SINCE.items() if options.get(name) == value}
    return {name: value for name, value in options.items() if name not in FREE and name not in usual}


def claim(job: "Job", checkpoints: Checkpoints) -> dict[str, Any] | None:
    """Check that the run may write to its folder; return the metrics of a resumed run that has ended, else None."""
    out, args = job.out, job.args
    for path in (*checkpoints.paths, *(out / name for name in WRITTEN)):
        for left in unfinished(path):  # by a run that was killed
            left.unlink(missing_ok=True)
    newest, ended = checkpoints.paths[0], out / TRAINING
    if newest.is_file() and ended.is_file() and filecmp.cmp(newest, ended, shallow=False):
        checkpoints.remove()  # of a longer run that was refused before it trained
    if checkpoints.exist():
        if args.resume:
            print(f"resuming the run in {out}", flush=True)
        elif not args.overwrite:
            raise FileExistsError(
                f"{out} holds a run that was stopped; go on with it by --resume, or give another --out, or --overwrite"
            )
    elif any(path.name != HISTORY for path in out.iterdir()):  # left by a run that was killed before it was saved
        return _claim_results(job, checkpoints)
    elif args.resume:
        print(f"NOTE: there is nothing to resume in {out}; this run begins", flush=True)
    return None


def _claim_results(job: "Job", checkpoints: Checkpoints) -> dict[str, Any] | None:
    """Do ``claim`` for a folder that holds files, but no checkpoint to go on from."""
    out, args = job.out, job.args
    if not (out / METRICS).is_file():
        raise FileExistsError(f"{out} holds files that are not a run's results; give another --out")
    if args.resume:
        metrics = read_metrics(out / METRICS)
        if not metrics.get("interrupted"):
            if goes_on(metrics, out, checkpoints, args.epochs, job.same):
                return None
            check_same_rows(out, metrics.get("dataset", {}), job.described, ANEW)
            note = measured_otherwise(metrics["settings"], args, out)
            if note:
                print(f"NOTE: {note}", flush=True)
            return metrics
        print(f"NOTE: the run in {out} was stopped before it was saved; it begins anew", flush=True)
    elif not args.overwrite:
        raise FileExistsError(f"{out} holds another run's results; give another --out, or --overwrite")
    return None


def measured_otherwise(settings: dict[str, Any], args: argparse.Namespace, out: Path) -> str:
    """Return a note if a run that has ended was measured by other options than these: it is not measured again."""
    names = [name for name in ("measure", "evidence") if settings.get(name, getattr(args, name)) != getattr(args, name)]
    before = " ".join(f"{flag(name)} {settings[name]}" for name in names)
    if not names:
        return ""
    return (
        f"{out} holds a run that has ended, and was measured by {before}, as it stays; pyro-vae evidence --run {out} "
        f"measures log p(x), and {ANEW}"
    )


def goes_on(metrics: dict[str, Any], out: Path, checkpoints: Checkpoints, epochs: int, same: dict[str, Any]) -> bool:
    """Return whether a run that has ended goes on for more epochs; if so, put a copy of its last checkpoint in place.

    Raises ValueError if the run has other settings or more epochs, CheckpointError if it cannot go on.
    """
    try:
        check_same(compared(metrics["settings"]), same)
        before = metrics["settings"]["epochs"]
        if before == epochs:
            return False
        if before > epochs:
            raise ValueError(
                f"{out} holds a run of {before} epochs, got --epochs {epochs}; give more, or give another --out"
            )
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{out / METRICS} is not what a run writes ({error!r}); give another --out") from error
    if not (out / TRAINING).is_file():
        raise CheckpointError(
            f"{out} holds no {TRAINING} from which its run of {before} epochs could go on; give "
            "another --out, or begin anew by --overwrite in the place of --resume"
        )
    write_whole(checkpoints.paths[0], (out / TRAINING).read_bytes())
    if metrics.get("stopped_early"):
        print(
            f"NOTE: the run in {out} stopped before its {before} epochs, and --patience {same.get('patience')} stops "
            "it there again; for a longer one give a larger --patience and another --out, or --overwrite for --resume",
            flush=True,
        )
    else:
        print(f"the run in {out} has ended after {before} epochs; it goes on to {epochs}", flush=True)
    return True


def publish(out: Path, files: dict[str, bytes], metrics: dict[str, Any]) -> None:
    """Write the results in place of another run's; metrics.json, the last file, says that they are complete.

    Until then the checkpoint is there, from which they can be made again.
    """
    for name in WRITTEN:
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / EVIDENCE, ignore_errors=True)  # of the model that was there
    for name, content in files.items():
        write_whole(out / name, content)
    write_json(out / METRICS, metrics)


def end_training(out: Path, checkpoints: Checkpoints) -> None:
    """Keep the last checkpoint of a run that has ended, for a longer run; remove the others."""
    os.replace(checkpoints.paths[0], out / TRAINING)
    checkpoints.remove()
