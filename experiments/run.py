#!/usr/bin/env python
"""Train one VAE and measure it: pictures, metrics and parameters in one folder.

    python experiments/run.py --lik bernoulli
    python experiments/run.py --lik categorical --bins 32 --latent 32 --epochs 20
    python experiments/run.py --recipe fast

The data lie in --data-dir, in $PYRO_VAE_DATA or in the user's cache folder; else they are downloaded.

Several processes, or machines, train one VAE together, each on its share of every batch:

    torchrun --nproc-per-node=2 experiments/run.py --lik bernoulli

A run that was stopped, by Ctrl-C, a signal or a loss of power, goes on where it stood with the same command and
--resume.
"""

import argparse
import csv
import io
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from parts import ESTIMATORS, PRECISIONS, SCHEDULES, add_part_options, build_estimator
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from results import METRICS, provenance
from torch import Tensor

from pyro_vae import VAE, analysis, data, distributed, evaluate, fit, load, log_evidence, plots
from pyro_vae.checkpoint import CheckpointError, Checkpoints, check_same, locked, write_whole
from pyro_vae.data import Data
from pyro_vae.divergences import has_closed_form_kl
from pyro_vae.engines import ENGINES
from pyro_vae.evidence import Evidence
from pyro_vae.likelihoods import DiscretizedLogistic, Normal, bits_per_dim
from pyro_vae.mapped import parts
from pyro_vae.parts import PARAMETERS, build_vae, describe_model, hidden, read_metrics
from pyro_vae.state import interrupt, seeded
from pyro_vae.training import History, NonFiniteLoss, fixed_x

HISTORY, EVIDENCE = "history.csv", "evidence"
PICTURES = ("latent_plane", "reconstructions", "samples", "aggregate_posterior", "interpolation", "learning_curves",
            "manifold")
WRITTEN = (METRICS, PARAMETERS, HISTORY, *(f"{name}.png" for name in PICTURES))  # all that a run leaves in its folder
SMALL = 5000  # training images up to which ten epochs are too few steps
SHOWN = 1000  # test images whose codes are drawn in the latent plane
REPEATS = 10  # draws of each estimator on the test set
RECIPES = {  # options in a word; what the command line says beside it holds
    "fast": {"latent": 32, "prior": "autoregressive", "flow_width": 128, "channels": [16, 32], "hidden": [256],
             "activation": "silu", "epochs": 14, "batch": 128, "lr": 5e-3, "precision": "bfloat16",
             "engine": "compiled"},
}
# Options that may differ where a run is resumed.
FREE = ("out", "data_dir", "quiet", "overwrite", "resume", "checkpoint_every", "skip_non_finite", "evidence",
        "engine", "recipe")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=RECIPES, default=None,
                        help="other defaults; fast: a high log p(x) after two minutes on a CPU, by " + words_of("fast"))
    add_part_options(parser)
    group = parser.add_argument_group("training")
    group.add_argument("--estimator", choices=ESTIMATORS, default="trace", help="of the ELBO and its gradient")
    group.add_argument("--particles", type=int, default=1, metavar="K", help="draws of z per image")
    group.add_argument("--epochs", type=int, default=None, help="10; 100 on the small sets digits and frey")
    group.add_argument("--batch", type=int, default=256)
    group.add_argument("--lr", type=float, default=5e-3, help="largest step of Adam")
    group.add_argument("--schedule", choices=SCHEDULES, default="warm-cosine",
                       help="the step grows over a tenth of the training and falls to zero as a cosine, or is constant")
    group.add_argument("--precision", choices=PRECISIONS, default="float32", help="of the networks in training")
    group.add_argument("--engine", choices=ENGINES, default="auto",
                       help="auto compiles the training step where the training is long enough to earn it back")
    group.add_argument("--clip", type=float, default=None, metavar="NORM",
                       help="cut the gradient to this norm, that of all parameters together")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    group.add_argument("--skip-non-finite", type=int, default=0, metavar="N",
                       help="leave out up to N steps whose loss or gradient is not finite; metrics.json counts them")
    group = parser.add_argument_group("measurement")
    group.add_argument("--evidence", type=int, default=50, metavar="K",
                       help="particles of the importance sampling of log p(x) on all test images; 0: none")
    group = parser.add_argument_group("data and results")
    group.add_argument("--dataset", default="auto", metavar="NAME",
                       help=f"of: {', '.join(data.NAMES)}; or a folder with train.npy, valid.npy and test.npy, uint8 "
                            "(N, C, H, W), which are mapped from disk; auto: MNIST where it is found or can be "
                            "downloaded, else the bundled digits")
    group.add_argument("--data-dir", type=Path, default=None, help="folder in which the data lie")
    group.add_argument("--out", type=Path, default=None,
                       help="folder of the results (default: figures/<dataset>-<lik>-z<latent>-seed<seed>)")
    group.add_argument("--overwrite", action="store_true", help="replace the results of another run in --out")
    group.add_argument("--resume", action="store_true",
                       help="go on with the run that was stopped in --out, to the same result; if there is none, begin")
    group.add_argument("--checkpoint-every", type=interval, default="60s", metavar="STEPS",
                       help="save the run every so many steps, or, as in 30s, seconds (default: 60s)")
    group.add_argument("--quiet", action="store_true", help="no plan and no progress bar")
    parser.set_defaults(**RECIPES.get(parser.parse_args(argv).recipe, {}))
    return parser.parse_args(argv)


def words_of(recipe: str) -> str:
    """The options that a recipe stands for, as one would write them."""
    options = {name: value if isinstance(value, list) else [value] for name, value in RECIPES[recipe].items()}
    return " ".join(f"--{name.replace('_', '-')} {' '.join(map(str, values))}" for name, values in options.items())


def interval(text: str) -> dict[str, Any]:
    """Settings of ``Checkpoints`` for 500 (steps) or 30s (seconds)."""
    if text.endswith("s"):
        return {"seconds": float(text[:-1]), "steps": None}
    return {"seconds": None, "steps": int(text)}


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    words = [word for word in (sys.argv[1:] if argv is None else argv) if word not in ("--overwrite", "--resume")]
    ranks = os.environ.get("LOCAL_WORLD_SIZE")
    launcher = ["torchrun", f"--nproc-per-node={ranks}"] if ranks else [Path(sys.executable).name]
    again = shlex.join([*launcher, sys.argv[0] if argv is None else __file__, *words, "--resume"])
    try:
        with terminable(), distributed.processes():
            return run(args, again)
    except KeyboardInterrupt as interruption:
        print(f"interrupted; go on with: {again}", file=sys.stderr)
        return 128 + int(interruption.args[0] if interruption.args else signal.SIGINT)
    except (ValueError, OSError, FloatingPointError, NonFiniteLoss, CheckpointError, data.DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if "WORLD_SIZE" not in os.environ:
            raise
        reason = str(error).splitlines()[0]
        print(f"error: rank {os.environ['RANK']}: another one has ended, or this one failed: {reason}", file=sys.stderr)
        return 1


@contextmanager
def terminable() -> Iterator[None]:
    """A block in which SIGTERM does what Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run(args: argparse.Namespace, again: str = "") -> int:
    started = time.perf_counter()
    if args.evidence < 0:
        raise ValueError(f"--evidence: wanted a number of particles, or 0 for no log p(x), got {args.evidence}")
    device = choose_device(args.device)
    images = load(args.dataset, root=args.data_dir).to(device)
    distributed.check_held_out(len(images.test), "data.test")
    if args.epochs is None:
        args.epochs = 10 if len(images.train) > SMALL else 100
    args.hidden = list(hidden(args))
    torch.manual_seed(args.seed)
    vae, estimator = build_vae(args, images.train.images.cpu()).to(device), build_estimator(args)
    out = args.out or Path("figures") / f"{images.name}-{args.lik}-z{args.latent}-seed{args.seed}"
    same = {name: value for name, value in json.loads(json.dumps(vars(args), default=str)).items() if name not in FREE}
    settings = {"epochs": args.epochs, "batch_size": args.batch, "lr": args.lr, "seed": args.seed,
                "schedule": SCHEDULES[args.schedule], "precision": PRECISIONS[args.precision], "engine": args.engine,
                "clip": args.clip, "skip_non_finite": args.skip_non_finite}
    if distributed.rank() > 0:
        if distributed.from_first(None):  # rank 0 has a run to train, and the folder for it
            history = fit(vae, images, estimator, **settings, progress=False)
            if args.evidence and not history.interrupted:
                shared_evidence(vae, images, args)
        return 0
    with run_folder(out):
        checkpoints = Checkpoints(out, **args.checkpoint_every, resume=args.resume, settings=same)
        finished = claim(out, checkpoints, args)
        distributed.from_first(not finished)
        if finished:
            print(again_reported(finished, same, out))
            return 0
        if not args.quiet:
            print(plan(args, images, vae, out), flush=True)
        elif images.note:
            print(f"NOTE: {images.note}", flush=True)
        history = fit(vae, images, estimator, **settings, checkpoints=checkpoints, progress=not args.quiet)
        model, parameters = describe_model(vae, args, images.shape)
        metrics = {**model, "settings": vars(args), "dataset": describe(images), "versions": provenance(),
                   "interrupted": history.interrupted, "best_epoch": history.best_epoch,
                   "skipped_steps": history.skipped, "engine": history.engine}
        files = {PARAMETERS: parameters}
        if history.rows:
            files[HISTORY] = table(history)
        if not history.interrupted:
            metrics |= measure(vae, images, args)
            files |= {f"{name}.png": drawn(figure) for name, figure in pictures(vae, images, history).items()}
        metrics["seconds"] = {"training": history.rows[-1]["seconds"] if history.rows else 0.0,
                              "whole_command": time.perf_counter() - started}
        publish(out, files, metrics, checkpoints)
        if not history.interrupted:
            checkpoints.remove()
    print(report(metrics, out))
    if history.interrupted:
        print(f"go on with: {again}")
    return 128 + history.signal if history.interrupted else 0


@contextmanager
def run_folder(out: Path) -> Iterator[None]:
    """A block in which the folder is there and no other run has it; it is removed again if it stays empty."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except FileExistsError as error:
        raise FileExistsError(f"{out} is not a run's results but a file; give another --out") from error
    except OSError as error:
        raise OSError(f"{out} cannot be written ({error.strerror}); give another --out") from error
    with locked(out):
        try:
            yield
        finally:
            with suppress(OSError):
                out.rmdir()


def claim(out: Path, checkpoints: Checkpoints, args: argparse.Namespace) -> dict[str, Any] | None:
    """Refuses a folder that is not to be written; the metrics of the run, where it is to be resumed and has ended."""
    for path in (*checkpoints.paths, *(out / name for name in WRITTEN)):  # what a run that was killed was writing
        path.with_name(f"{path.name}.new").unlink(missing_ok=True)
    if checkpoints.exist():
        if args.resume:
            print(f"resuming the run in {out}", flush=True)
        elif not args.overwrite:
            raise FileExistsError(f"{out} holds a run that was stopped; go on with it by --resume, or give another "
                                  "--out, or --overwrite")
    elif any(out.iterdir()):
        if not (out / METRICS).is_file():
            raise FileExistsError(f"{out} holds files that are not a run's results; give another --out")
        if args.resume:
            metrics = read_metrics(out / METRICS)
            if not metrics.get("interrupted"):
                return metrics
            print(f"NOTE: the run in {out} was stopped before it was saved; it begins anew", flush=True)
        elif not args.overwrite:
            raise FileExistsError(f"{out} holds another run's results; give another --out, or --overwrite")
    elif args.resume:
        print(f"NOTE: there is nothing to resume in {out}; this run begins", flush=True)
    return None


def again_reported(metrics: dict[str, Any], same: dict[str, Any], out: Path) -> str:
    """The table of a run that has ended, if it had these settings."""
    try:
        check_same({name: value for name, value in metrics["settings"].items() if name not in FREE}, same)
        return report(metrics, out)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{out / METRICS} is not what a run writes ({error!r}); give another --out") from error


def publish(out: Path, files: dict[str, bytes], metrics: dict[str, Any], checkpoints: Checkpoints) -> None:
    """Puts the results in the place of another run's; metrics.json, the last, says that they are whole.

    Until then the checkpoint is there, from which they can be made again.
    """
    for name in WRITTEN:
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / EVIDENCE, ignore_errors=True)  # of the model that was there
    for name, content in files.items():
        write_whole(out / name, content)
    text = json.dumps(metrics, indent=2, allow_nan=False, default=str) + "\n"
    write_whole(out / METRICS, text.encode())


def choose_device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no CUDA device on this machine; take --device cpu")
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else "cpu" if name == "auto" else name)


def describe(images: Data) -> dict[str, Any]:
    splits = {split: len(getattr(images, split).images) for split in ("train", "valid", "test")}
    return {"name": images.name, "shape": list(images.shape), "note": images.note, **splits}


def plan(args: argparse.Namespace, images: Data, vae: VAE, out: Path) -> str:
    """What the command is about to do."""
    sizes = describe(images)
    parameters = sum(parameter.numel() for parameter in vae.parameters())
    lines = [
        f"data        {sizes['name']}, {sizes['train']:,} / {sizes['valid']:,} / {sizes['test']:,} images "
        f"of {' × '.join(map(str, sizes['shape']))}",
        f"program     {type(vae.prior).__name__} prior, {type(vae.likelihood).__name__} likelihood, "
        f"{type(vae.posterior).__name__} guide, {args.latent} latent dimensions, {parameters:,} parameters",
        f"KL          {'in closed form' if has_closed_kl(vae, images) else 'by Monte Carlo: it has no closed form'}",
        f"training    {args.epochs} epochs, batches of {args.batch}, {type(build_estimator(args)).__name__}, Adam "
        f"{args.lr:g} ({args.schedule}), {args.precision}, seed {args.seed}, {next(vae.parameters()).device}",
        f"results     {out}",
    ]
    return "\n".join([f"NOTE: {images.note}", *lines] if images.note else lines)


def table(history: History) -> bytes:
    """The rows of the history as a CSV file."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, history.rows[0].keys())
    writer.writeheader()
    writer.writerows(history.rows)
    return file.getvalue().encode()


def drawn(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def measure(vae: VAE, images: Data, args: argparse.Namespace) -> dict[str, Any]:
    """Everything that metrics.json says of the test images."""
    x = fixed_x(vae, images.test.images)
    test = evaluate(vae, x, seed=args.seed)
    summary = {**test.summary(), **grey_scale(vae, test.bound, x), "particles": 1, "seed": args.seed}
    metrics: dict[str, Any] = {"test": summary}
    if args.evidence:
        evidence = shared_evidence(vae, images, args)
        metrics["evidence"] = {**evidence.to_dict(), **grey_scale(vae, evidence.log_px, x)}
    codes = analysis.codes(vae, x)
    if images.test.labels is not None:
        train_codes = codes_of_many(vae, images.train.images, x.device)
        metrics["knn_accuracy"] = analysis.knn_accuracy(
            train_codes, images.train.labels, codes, images.test.labels, neighbours=15
        )
    if isinstance(vae.likelihood, Normal | DiscretizedLogistic):
        metrics["share_of_scales_at_bound"] = vae.likelihood.share_at_bound(codes[:SHOWN])
    metrics["active_units"] = int(analysis.active_units(codes).sum())
    metrics["rate_per_dimension"] = None
    metrics["kl_in_closed_form"] = has_closed_kl(vae, images)
    if metrics["kl_in_closed_form"]:
        metrics["rate_per_dimension"] = analysis.rate_per_dimension(vae, x).tolist()
    elbos = (Trace_ELBO(), TraceMeanField_ELBO()) if metrics["kl_in_closed_form"] else (Trace_ELBO(),)
    metrics["estimators"] = {type(elbo).__name__: repeated_bound(vae, x, elbo, REPEATS) for elbo in elbos}
    return metrics


def shared_evidence(vae: VAE, images: Data, args: argparse.Namespace) -> Evidence:
    """log p(x) of the test images, of which each rank measures a share; all must call it."""
    x = fixed_x(vae, images.test.images).tensor_split(distributed.world())[distributed.rank()]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Pareto k̂")  # the table says it
        part = log_evidence(vae.model, vae.guide, x, args.evidence, seed=distributed.own_seed(args.seed),
                            progress=not args.quiet and distributed.rank() == 0)
    names = "log_px", "standard_error", "ess", "pareto_k"
    return replace(part, **{name: distributed.joined(getattr(part, name)) for name in names})


def codes_of_many(vae: VAE, pixels: Tensor, device: torch.device) -> Tensor:
    """The codes of images that may be too many to have their x in memory at once."""
    generator = torch.Generator(device).manual_seed(0)
    return torch.cat([analysis.codes(vae, vae.observe(part.to(device), generator)) for part in parts(pixels)])


@torch.no_grad()
def has_closed_kl(vae: VAE, images: Data) -> bool:
    """Whether KL(q(z | x) ‖ p(z)) is computed exactly by TraceMeanField_ELBO."""
    return has_closed_form_kl(vae.posterior(fixed_x(vae, images.valid.images[:2])), vae.prior())


def grey_scale(vae: VAE, log_px: Tensor, x: Tensor) -> dict[str, float]:
    """bits/dim and its standard error from nats of single images, where the likelihood scores grey levels."""
    width = vae.likelihood.level_width
    if width is None:
        return {}
    bits = bits_per_dim(log_px, x[0].numel(), width)
    return {"bits_per_dim": bits.mean().item(), "bits_per_dim_standard_error": bits.std().item() / len(bits) ** 0.5}


@torch.no_grad()
def repeated_bound(vae: VAE, x: Tensor, elbo: ELBO, repeats: int) -> dict[str, float]:
    """Mean and standard deviation over repeated draws of an estimate of the bound on all images, in nats per image."""
    with seeded(0, x.device):
        bounds = torch.tensor(
            [-sum(elbo.loss(vae.model, vae.guide, batch) for batch in x.split(1000)) / len(x) for _ in range(repeats)]
        )
    return {"bound": bounds.mean().item(), "sd_over_draws": bounds.std().item(), "draws": repeats}


def pictures(vae: VAE, images: Data, history: History) -> dict[str, Figure]:
    x = fixed_x(vae, images.test.images[:SHOWN])
    labels = images.test.labels[:SHOWN] if images.test.labels is not None else None
    figures = {
        "latent_plane": plots.latent_plane(analysis.codes(vae, x), labels),
        "reconstructions": plots.reconstructions(x[:20], analysis.reconstruct(vae, x[:20])),
        "samples": plots.samples(analysis.sample_prior(vae, 100)),
        "aggregate_posterior": plots.aggregate_posterior(
            analysis.draw_posterior(vae, x), analysis.draw_prior(vae, SHOWN), labels
        ),
        "interpolation": plots.interpolation(analysis.interpolate(vae, x[0:1], x[1:2], steps=10)),
        "learning_curves": plots.learning_curves(history.rows),
    }
    if vae.prior().event_shape == (2,):
        figures["manifold"] = plots.manifold(analysis.manifold(vae, side=20))
    return figures


def report(metrics: dict[str, Any], out: Path) -> str:
    """The short table at the end."""
    note = [f"NOTE: {metrics['dataset']['note']}"] if metrics["dataset"]["note"] else []
    if metrics["interrupted"]:
        return "\n".join([*note, f"interrupted: what was trained so far is saved in {out}"])
    test, evidence = metrics["test"], metrics.get("evidence")
    rows = [
        ("test bound", f"{test['bound']:.2f} ± {test['standard_error']:.2f} nats per image, {test['images']} images"),
        ("rate, distortion", f"{test['rate']:.2f}, {test['distortion']:.2f} nats per image"),
        *(evidence_rows(evidence) if evidence else []),
        ("active units", f"{metrics['active_units']} of {metrics['settings']['latent']}"),
    ]
    if "bits_per_dim" in test:
        rows.append(("bits/dim", f"{test['bits_per_dim']:.3f} ± {test['bits_per_dim_standard_error']:.3f}"))
    if "knn_accuracy" in metrics:
        rows.append(("15-NN accuracy", f"{metrics['knn_accuracy']:.3f}"))
    for name, value in metrics["estimators"].items():
        rows.append((name, f"{value['bound']:.3f}, standard deviation over {value['draws']} draws "
                           f"{value['sd_over_draws']:.4f} nats per image"))
    seconds = metrics["seconds"]
    rows += [("seconds", f"{seconds['training']:.0f} training ({metrics['engine']}), "
                         f"{seconds['whole_command']:.0f} in all"),
             ("results", str(out))]
    return "\n".join([*note, *(f"{name:<20} {value}" for name, value in rows)])


def evidence_rows(evidence: dict[str, Any]) -> list[tuple[str, str]]:
    """log p(x), and a warning where it cannot be trusted."""
    rows = [("log p(x)", f"at least {evidence['log_px']:.2f} ± {evidence['standard_error']:.2f} nats per image, "
                         f"{evidence['num_particles']} particles")]
    if evidence["share_pareto_k_above_0.7"]:
        rows.append(("WARNING", f"Pareto k̂ > 0.7 for {evidence['share_pareto_k_above_0.7']:.1%} of the images: their "
                                "log p(x) cannot be trusted; give more particles by --evidence"))
    return rows


if __name__ == "__main__":
    sys.exit(main())
