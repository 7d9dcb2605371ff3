"""All bounds on log p(x) of a trained model: by importance sampling, annealed, and on simulated images."""

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from pyro_vae.checks import positive_number, whole_number
from pyro_vae.data import Data, Split, load
from pyro_vae.evidence import (
    Evidence,
    LocalProposal,
    Sandwich,
    UntrustedEvidence,
    annealed_evidence,
    bidirectional,
    certify,
    log_evidence,
    refit_guide,
)
from pyro_vae.observation import Arguments, fixed_arguments
from pyro_vae.program import Program
from pyro_vae.runs.arguments import size_of
from pyro_vae.runs.commands import attempted, choose_device
from pyro_vae.runs.evidence_report import LOCAL, OWN, REFITTED, STARTS, Rows, picture, report
from pyro_vae.runs.folders import results_folder, save_figure, write_json
from pyro_vae.runs.origins import check_same_rows, describe, provenance
from pyro_vae.runs.resume import EVIDENCE
from pyro_vae.saved import METRICS, load_vae, read_metrics

try:
    import resource
except ImportError:  # Windows
    resource = None

Result = TypeVar("Result", Evidence, Sandwich)
IMAGES = 200  # that are annealed, unless --images says otherwise


def run(args: argparse.Namespace) -> int:
    """Measure all bounds of a trained model and write the results."""
    started = time.perf_counter()
    program, rows, trained = load_run(args.run, choose_device(args.device), args.data_dir, args.dataset)
    check_numbers(args, len(rows))
    out = args.out or args.run / EVIDENCE
    with results_folder(out, args.overwrite) as folder:
        left_out: dict[str, str] = {}
        x = fixed_arguments(program, rows)
        budget = args.target is not None or args.seconds is not None
        results, shown = (
            by_budget(program, x, args) if budget else all_bounds(program, x, args, trained, folder, left_out)
        )
        print(shown, flush=True)  # before it is written, which a full disk may prevent
        metrics = {
            "settings": vars(args),
            "trained": trained,
            "versions": provenance(),
            **results,
            "left_out": left_out,
            "seconds": time.perf_counter() - started,
        }
        write_json(folder / METRICS, metrics)
    print(f"results in {out}", *(f"left out: {name}: {why}" for name, why in left_out.items()), sep="\n")
    return 0


def by_budget(program: Program, x: Arguments, args: argparse.Namespace) -> tuple[Rows, str]:
    """Return log p(x) by a standard error or by seconds, as a row, and as text."""
    measured = x if args.all else tuple(part[: args.images] for part in x)
    budget = {"target": args.target, "seconds": args.seconds}
    evidence = log_evidence(program, measured, **budget, seed=args.seed, progress=not args.quiet)
    return {"budget": [evidence.to_dict()]}, str(evidence)


def all_bounds(
    program: Program,
    x: Arguments,
    args: argparse.Namespace,
    trained: dict[str, Any],
    folder: Path,
    left_out: dict[str, str],
) -> tuple[Rows, str]:
    """Return all bounds, as rows and as text, and draw them."""
    refitted = refit(program, load_data(args.run, trained, args.data_dir, args.dataset), args) if args.refit else []
    results = measure(program, x, args, left_out, refitted)
    attempted({"evidence.png": lambda: save_figure(folder / "evidence.png", picture(results))}, left_out)
    return results, report(results)


def check_numbers(args: argparse.Namespace, images: int) -> None:
    """Raise ValueError for numbers that cannot be, before any work; give ``--images`` its default."""
    args.images = min(IMAGES, images) if args.images is None else args.images
    if not 2 <= args.images <= images or args.simulated < 2 or min(args.temperatures) < 2:
        raise ValueError(
            f"--images: wanted 2 to {images} (the test images), --simulated and --temperatures: at "
            f"least 2; got {args.images}, {args.simulated} and {min(args.temperatures)}"
        )
    for name, number in (("particles", min(args.particles)), ("chains", args.chains), ("leapfrog", args.leapfrog)):
        whole_number(f"--{name}", number)
    whole_number("--refit", args.refit, least=0)
    for name in ("target", "seconds"):
        if getattr(args, name) is not None:
            positive_number(f"--{name}", getattr(args, name))


def load_run(
    folder: Path, device: torch.device, data_dir: Path | None = None, dataset: str | None = None
) -> tuple[Program, Split, dict[str, Any]]:
    """Return the model in a folder, the test rows of its data, and its metrics.

    ``dataset``: the name or folder of other data than those it was trained on, or of these, where the folder does not
    say. Raises ValueError for data that the model cannot be given.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        raise FileNotFoundError(f"{folder} holds no trained model; train one by pyro-vae train --out {folder}")
    program = load_vae(folder, device)
    metrics = read_metrics(folder / METRICS) if (folder / METRICS).is_file() else {}
    images = load_data(folder, metrics, data_dir, dataset)
    wanted, rows = metrics.get("model", {}).get("shape", list(images.shape)), images.test.to(device)
    if list(images.shape) != wanted:
        raise ValueError(f"--dataset: wanted images of {wanted}, as the model was trained on, got {list(images.shape)}")
    first: Any = rows[:1]
    try:
        log_evidence(program, first, 1, engine="eager", progress=False)
    except (RuntimeError, ValueError) as error:
        why = str(error).partition("\n")[0]  # without the shapes of all sites
        raise ValueError(f"--dataset: {images.name} does not fit the model: {why}") from error
    return program, rows, metrics


def load_data(folder: Path, metrics: dict[str, Any], data_dir: Path | None, dataset: str | None) -> Data:
    """Return the data that ``dataset`` names or, without it, those that the run was trained on."""
    settings = metrics.get("settings", {})
    asked, found = settings.get("dataset", "auto"), metrics.get("dataset", {}).get("name")
    if dataset is not None:
        settings = {}
    elif found is None:
        raise ValueError(f"{folder} does not say which data its model was trained on; give them by --dataset")
    images = load(
        dataset or (found if asked == "auto" else asked),
        root=data_dir or settings.get("data_dir"),
        layout=settings.get("layout"),
        size=size_of(argparse.Namespace(size=settings.get("size"))),
    )
    if dataset is None:
        cure = "to measure it on these, which it may have been trained on, name them by --dataset"
        check_same_rows(folder, metrics.get("dataset", {}), describe(images), cure)
    return images


def refit(program: Program, data: Data, args: argparse.Namespace) -> list[tuple[Program, dict[str, Any]]]:
    """Return the program with a guide that is refitted to the training rows, and the seconds it took."""
    started = time.perf_counter()
    refitted = refit_guide(program, data, epochs=args.refit, seed=args.seed, progress=not args.quiet)
    return [(refitted, {"refit_epochs": args.refit, "refit_seconds": time.perf_counter() - started})]


def measure(
    program: Program,
    x: Arguments,
    args: argparse.Namespace,
    left_out: dict[str, str],
    refitted: list[tuple[Program, dict[str, Any]]],
) -> Rows:
    """Return all bounds, a row each: summaries in nats per image, and seconds.

    A program that cannot be annealed, such as one with discrete latent variables, has no rows of that; ``left_out``
    says why.
    """
    common = {"seed": args.seed, "progress": not args.quiet}
    first = tuple(part[: args.images] for part in x)
    chains = {"chains": args.chains, "leapfrog": args.leapfrog, **common}
    again = torch.arange(args.simulated) % args.images
    template = tuple(part[again] for part in first)  # of images, only the shape matters; classes are kept
    starts: dict[str, Callable | None] = {"prior": None, "guide": program.guide}

    def annealed(start: str, T: int) -> dict[str, Any]:
        return timed(annealed_evidence, program.model, starts[start], first, num_temperatures=T, **chains)[1]

    def both(T: int) -> dict[str, Any]:
        return timed(bidirectional, program.model, program.guide, template, num_temperatures=T, **chains)[1]

    temperatures, asked = sorted(args.temperatures), other_proposals(program, args, refitted)
    measured = x if args.all else first
    works = {
        "annealed": lambda: [{"start": start, **annealed(start, T)} for start in STARTS for T in temperatures],
        "bidirectional": lambda: [{"start": "guide", **both(T)} for T in temperatures],
        "proposals": lambda: [
            timed(log_evidence, one.model, one.guide, measured, K, **how, **common)[1] | entry
            for one, how, entry in asked
            for K in sorted(args.particles)
        ],
        "certificates": lambda: [
            timed(certify, one.model, one.guide, template, max(args.particles), **how, **common)[1] | entry
            for one, how, entry in [(program, {}, {"proposal": OWN}), *asked]
        ],
    }
    importance = importance_rows(program, measured, args, common)
    return {"importance": importance, **{name: [] for name in works}, **attempted(works, left_out)}


def importance_rows(
    program: Program, x: Arguments, args: argparse.Namespace, common: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return a row for each K in float32 and, if asked for, one for the largest K in bfloat16, with its bias.

    Each row has the mean over all of x, the mean over the images that are annealed, and the peak memory of the process
    so far. The row in bfloat16 is measured on the annealed images only.
    """
    rows, log_px, kinds = [], torch.empty(0), [(K, None) for K in sorted(args.particles)]
    for K, precision in [*kinds, (max(args.particles), torch.bfloat16)] if args.bfloat16 else kinds:
        part = x if precision is None else tuple(tensor[: args.images] for tensor in x)
        evidence, entry = timed(log_evidence, program.model, program.guide, part, K, precision=precision, **common)
        entry |= {
            "precision": str(precision or x[0].dtype).removeprefix("torch."),
            "log_px_of_annealed_images": evidence.log_px[: args.images].mean().item(),
            "peak_memory_mb": resource and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        if precision is not None:
            difference = evidence.log_px - log_px[: args.images]
            entry |= {
                "bias": difference.mean().item(),
                "bias_standard_error": difference.std().item() / len(difference) ** 0.5,
            }
        rows.append(entry)
        log_px = evidence.log_px
    return rows


def other_proposals(
    program: Program, args: argparse.Namespace, refitted: list[tuple[Program, dict[str, Any]]]
) -> list[tuple[Program, dict[str, Any], dict[str, Any]]]:
    """Return what draws beside the guide, of what was asked for: a program, options, and entries of its rows."""
    asked: list = [(one, {}, {"proposal": REFITTED, **entry}) for one, entry in refitted]
    return asked + ([(program, {"proposal": LocalProposal()}, {"proposal": LOCAL})] if args.local else [])


def timed(evaluator: Callable[..., Result], *args: Any, **options: Any) -> tuple[Result, dict[str, Any]]:
    """Return the result of an evaluator, and its summary with the seconds it took."""
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrustedEvidence)  # the row holds the share of these images
        result = evaluator(*args, **options)
    setting = {name: options[name] for name in ("leapfrog",) if name in options}
    return result, {**result.to_dict(), **setting, "seconds": time.perf_counter() - started}
