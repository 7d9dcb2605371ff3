#!/usr/bin/env python
"""Train one VAE and measure it: pictures, metrics and parameters in one folder.

    python experiments/run.py --lik bernoulli
    python experiments/run.py --lik categorical --bins 32 --latent 32 --epochs 20
    python experiments/run.py --recipe fast

The data lie in --data-dir, in $PYRO_VAE_DATA or in the user's cache folder; else they are downloaded.

Several processes, or machines, train one VAE together, each on its share of every batch:

    torchrun --nproc-per-node=2 experiments/run.py --lik bernoulli

A run that was stopped, by Ctrl-C, a signal or a loss of power, goes on where it stood with the same command and
--resume. So does one that has ended, with --resume and more --epochs.
"""

import argparse
import csv
import filecmp
import io
import json
import os
import shlex
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from parts import ESTIMATORS, PRECISIONS, SCHEDULES, add_part_options, build_estimator, given, home_path, parsed
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from results import ERRORS, METRICS, attempted, make_folder, provenance, reason
from torch import Tensor

from pyro_vae import VAE, analysis, evaluate, fit, load, log_evidence, plots
from pyro_vae.config import PARAMETERS, TAKEN_BY, build_vae, describe_model, hidden, read_metrics
from pyro_vae.data import sets as data
from pyro_vae.data.folders import LAYOUTS
from pyro_vae.data.mapped import parts
from pyro_vae.data.sets import Data
from pyro_vae.distributions.divergences import has_closed_form_kl
from pyro_vae.evidence.estimates import Evidence
from pyro_vae.files import CheckpointError, locked, write_whole
from pyro_vae.likelihoods import DiscretizedLogistic, Normal, bits_per_dim
from pyro_vae.printing import spell_out
from pyro_vae.random import interrupt, seeded
from pyro_vae.training import ranks
from pyro_vae.training.checkpoint import Checkpoints, check_same
from pyro_vae.training.engines import ENGINES
from pyro_vae.training.loop import History, fixed_x

HISTORY, EVIDENCE = "history.csv", "evidence"
TRAINING = "training.pt"  # the last checkpoint of a run that has ended, from which a longer one goes on
PICTURES = (
    "latent_plane",
    "reconstructions",
    "samples",
    "aggregate_posterior",
    "interpolation",
    "learning_curves",
    "manifold",
)
# All that a run leaves in its folder.
WRITTEN = (METRICS, PARAMETERS, HISTORY, TRAINING, *(f"{name}.png" for name in PICTURES))
# Of options that the command line leaves open.
DEFAULTS = {"net": "conv", "activation": "relu", "epochs": 10, "batch": 256, "lr": 5e-3}
FEW, FEW_IMAGES = 5000, {"epochs": 100}  # training images up to which ten epochs are too few steps
SHOWN = 1000  # test images whose codes are drawn in the latent plane
NEIGHBOURS = 15  # training images of which the majority labels a test image
REPEATS = 10  # draws of each estimator on the test set
UNUSED = 0.05  # nats: a latent dimension of a smaller rate says nothing of x
LISTED = 5  # latent dimensions of which each is mentioned, and wanted
OPTIONS_TAKEN_BY = TAKEN_BY | {"particles": {"estimator": [name for name in ESTIMATORS if name != "wake-sleep"]}}
RECIPES = {  # options in a word; what the command line says beside it holds
    "fast": {
        "net": "conv",
        "latent": 32,
        "prior": "autoregressive",
        "flow_width": 128,
        "channels": [16, 32],
        "hidden": [256],
        "activation": "silu",
        "epochs": 14,
        "batch": 128,
        "lr": 5e-3,
        "precision": "bfloat16",
        "engine": "compiled",
    },
    # The conv networks halve 8 × 8 pixels to 2 × 2 and leave latent dimensions unused. Chosen on validation images.
    "small": {"net": "mlp", "hidden": [256, 256, 256], "activation": "silu", "batch": 100},
}
SMALL = 16  # pixels a side below which that recipe is the default
# Options that may differ where a run is resumed.
FREE = (
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
    "engine",
    "recipe",
)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        default=None,
        help="other defaults; fast: a high log p(x) after two minutes on a CPU, by "
        f"{words_of('fast')}; small, the default for images of fewer than {SMALL} pixels a side, "
        f"such as digits, unless --net or --channels is given: {words_of('small')}",
    )
    add_part_options(parser)
    group = parser.add_argument_group("training")
    group.add_argument("--estimator", choices=ESTIMATORS, default="trace", help="of the ELBO and its gradient")
    group.add_argument("--particles", type=int, default=1, metavar="K", help="draws of z per image")
    group.add_argument("--epochs", type=int, default=None, help=f"10; 100 for at most {FEW} training images")
    group.add_argument("--batch", type=int, default=None, help="256, or all training images where they are fewer")
    group.add_argument("--lr", type=float, default=None, help="largest step of Adam (0.005)")
    group.add_argument(
        "--schedule",
        choices=SCHEDULES,
        default="warm-cosine",
        help="the step grows over a tenth of the training and falls to zero as a cosine, or is constant",
    )
    group.add_argument("--precision", choices=PRECISIONS, default="float32", help="of the networks in training")
    group.add_argument(
        "--engine",
        choices=ENGINES,
        default="auto",
        help="auto compiles the training step where the training is long enough to earn it back",
    )
    group.add_argument(
        "--clip",
        type=float,
        default=None,
        metavar="NORM",
        help="cut the gradient to this norm, that of all parameters together",
    )
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    group.add_argument(
        "--skip-non-finite",
        type=int,
        default=0,
        metavar="N",
        help="leave out up to N steps whose loss or gradient is not finite; metrics.json counts them",
    )
    group = parser.add_argument_group("measurement")
    group.add_argument(
        "--evidence",
        type=int,
        default=50,
        metavar="K",
        help="particles of the importance sampling of log p(x) on all test images; 0: none",
    )
    group = parser.add_argument_group("data and results")
    group.add_argument(
        "--dataset",
        default="auto",
        metavar="NAME",
        help=f"of: {', '.join(data.NAMES)}; or a folder with train.npy, valid.npy and test.npy, uint8 "
        "(N, C, H, W), which are mapped from disk; auto: MNIST where it is found or can be "
        "downloaded, else the bundled digits",
    )
    group.add_argument(
        "--layout",
        choices=LAYOUTS[1:],
        default=None,
        help="of the axes in a folder's arrays, where their shape leaves open which holds the channels",
    )
    group.add_argument("--data-dir", type=home_path, default=None, help="folder in which the data lie")
    group.add_argument(
        "--out",
        type=home_path,
        default=None,
        help="folder of the results (default: figures/<dataset>-<lik>-z<latent>-seed<seed>)",
    )
    group.add_argument("--overwrite", action="store_true", help="replace the results of another run in --out")
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run that was stopped in --out, to the same result; if there is none, begin",
    )
    group.add_argument(
        "--checkpoint-every",
        type=interval,
        default="60s",
        metavar="STEPS",
        help="save the run every so many steps, or, as in 30s, seconds (default: 60s)",
    )
    group.add_argument("--quiet", action="store_true", help="no plan and no progress bar")
    if not given(parser, argv) & {"net", "channels"}:
        parser.set_defaults(net=None, activation=None)
    parser.set_defaults(**RECIPES.get(parser.parse_args(argv).recipe, {}))
    return parsed(parser, argv, OPTIONS_TAKEN_BY)


def words_of(recipe: str) -> str:
    """The options that a recipe stands for, as one would write them."""
    options = {name: value if isinstance(value, list) else [value] for name, value in RECIPES[recipe].items()}
    return " ".join(f"--{name.replace('_', '-')} {' '.join(map(str, values))}" for name, values in options.items())


def fill_in(args: argparse.Namespace, images: Data) -> None:
    """Gives the options that the command line leaves open the values that suit the images."""
    values = DEFAULTS | (FEW_IMAGES if len(images.train) <= FEW else {})
    if args.net is None and min(images.shape[1:]) < SMALL:
        values |= RECIPES["small"]
    for name, value in (values | {"batch": min(values["batch"], len(images.train))}).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.hidden = list(hidden(args))


def interval(text: str) -> dict[str, Any]:
    """Settings of ``Checkpoints`` for 500 (steps) or 30s (seconds)."""
    if text.endswith("s"):
        return {"seconds": float(text[:-1]), "steps": None}
    return {"seconds": None, "steps": int(text)}


def main(argv: list[str] | None = None) -> int:
    spell_out()
    words = [word for word in (sys.argv[1:] if argv is None else argv) if word not in ("--overwrite", "--resume")]
    local = os.environ.get("LOCAL_WORLD_SIZE")
    launcher = ["torchrun", f"--nproc-per-node={local}"] if local else [Path(sys.executable).name]
    again = shlex.join([*launcher, sys.argv[0] if argv is None else __file__, *words, "--resume"])
    try:
        args = parse_arguments(argv)
        with terminable(), ranks.processes():
            return run(args, again)
    except KeyboardInterrupt as interruption:
        print(f"interrupted; go on with: {again}", file=sys.stderr)
        return 128 + int(interruption.args[0] if interruption.args else signal.SIGINT)
    except ERRORS as error:
        print(f"error: {reason(error)}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if "WORLD_SIZE" not in os.environ:
            raise
        print(
            f"error: rank {os.environ['RANK']}: another one has ended, or this one failed: {reason(error)}",
            file=sys.stderr,
        )
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
    images = load(args.dataset, root=args.data_dir, layout=args.layout).to(device)
    ranks.check_held_out(len(images.test), "data.test")
    fill_in(args, images)
    torch.manual_seed(args.seed)
    vae, estimator = build_vae(args, images.train.images.cpu()).to(device), build_estimator(args)
    out = args.out or Path("figures") / f"{images.name}-{args.lik}-z{args.latent}-seed{args.seed}"
    same = {name: value for name, value in json.loads(json.dumps(vars(args), default=str)).items() if name not in FREE}
    settings = {
        "epochs": args.epochs,
        "batch_size": args.batch,
        "lr": args.lr,
        "seed": args.seed,
        "schedule": SCHEDULES[args.schedule],
        "precision": PRECISIONS[args.precision],
        "engine": args.engine,
        "clip": args.clip,
        "skip_non_finite": args.skip_non_finite,
    }
    if ranks.rank() > 0:
        if ranks.broadcast(None):  # rank 0 has a run to train, and the folder for it
            history = fit(vae, images, estimator, **settings, progress=False)
            if args.evidence and not history.interrupted:
                attempted({"evidence": lambda: shared_evidence(vae, images, args)}, {})  # rank 0 says it if it fails
        return 0
    with run_folder(out):
        checkpoints = Checkpoints(
            out, **args.checkpoint_every, resume=args.resume, settings=same, overwrite=args.overwrite
        )
        finished = claim(out, checkpoints, args, same)
        ranks.broadcast(not finished)
        if finished:
            print(report(finished, out))
            return 0
        if not args.quiet:
            print(plan(args, images, vae, out), flush=True)
        elif images.note:
            print(f"NOTE: {images.note}", flush=True)
        history = fit(vae, images, estimator, **settings, checkpoints=checkpoints, progress=not args.quiet)
        model, parameters = describe_model(vae, args, images.shape)
        metrics = {
            **model,
            "settings": vars(args),
            "dataset": describe(images),
            "versions": provenance(),
            "interrupted": history.interrupted,
            "best_epoch": history.best_epoch,
            "kept_epoch": history.kept_epoch,
            "kept_because": history.reason,
            "skipped_steps": history.skipped,
            "engine": history.engine,
            "left_out": {},
        }
        files = {PARAMETERS: parameters}
        if history.rows:
            files[HISTORY] = table(history)
        if not history.interrupted:
            metrics |= attempted(measure(vae, images, args), metrics["left_out"])
            files |= attempted(pictures(vae, images, history), metrics["left_out"])
        metrics["seconds"] = {
            "training": history.rows[-1]["seconds"] if history.rows else 0.0,
            "whole_command": time.perf_counter() - started,
        }
        publish(out, files, metrics, checkpoints)
        if not history.interrupted:
            os.replace(checkpoints.paths[0], out / TRAINING)
            checkpoints.remove()
    print(report(metrics, out))
    if history.interrupted:
        print(f"go on with: {again}")
    return 128 + history.signal if history.interrupted else 0


@contextmanager
def run_folder(out: Path) -> Iterator[None]:
    """A block in which the folder is there and no other run has it; it is removed again if it stays empty."""
    make_folder(out)
    with locked(out):
        try:
            yield
        finally:
            with suppress(OSError):
                out.rmdir()


def claim(out: Path, checkpoints: Checkpoints, args: argparse.Namespace, same: dict[str, Any]) -> dict[str, Any] | None:
    """Refuses a folder that is not to be written; the metrics of the run, where it is to be resumed and has ended."""
    for path in (*checkpoints.paths, *(out / name for name in WRITTEN)):  # what a run that was killed was writing
        path.with_name(f"{path.name}.new").unlink(missing_ok=True)
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
    elif any(out.iterdir()):
        if not (out / METRICS).is_file():
            raise FileExistsError(f"{out} holds files that are not a run's results; give another --out")
        if args.resume:
            metrics = read_metrics(out / METRICS)
            if not metrics.get("interrupted"):
                return None if goes_on(metrics, out, checkpoints, args.epochs, same) else metrics
            print(f"NOTE: the run in {out} was stopped before it was saved; it begins anew", flush=True)
        elif not args.overwrite:
            raise FileExistsError(f"{out} holds another run's results; give another --out, or --overwrite")
    elif args.resume:
        print(f"NOTE: there is nothing to resume in {out}; this run begins", flush=True)
    return None


def goes_on(metrics: dict[str, Any], out: Path, checkpoints: Checkpoints, epochs: int, same: dict[str, Any]) -> bool:
    """Whether a run that has ended is to go on for more epochs; if so, a copy of its last checkpoint is in place."""
    try:
        check_same({name: value for name, value in metrics["settings"].items() if name not in FREE}, same)
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
    print(f"the run in {out} has ended after {before} epochs; it goes on to {epochs}", flush=True)
    return True


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


def strict(value: Any) -> Any:
    """The value; ValueError where it holds NaN or infinity, which metrics.json does not."""
    json.dumps(value, allow_nan=False)
    return value


def measure(vae: VAE, images: Data, args: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Everything that metrics.json says of the test images, each entry by what measures it."""
    x = cache(lambda: fixed_x(vae, images.test.images))
    codes = cache(lambda: analysis.codes(vae, x()))
    closed = cache(lambda: has_closed_kl(vae, images))
    elbos = cache(lambda: (Trace_ELBO(), TraceMeanField_ELBO()) if closed() else (Trace_ELBO(),))
    works: dict[str, Callable[[], Any]] = {"test": lambda: tested(vae, x(), args.seed)}
    if args.evidence:  # soon, as the other ranks wait
        works["evidence"] = lambda: scored(vae, shared_evidence(vae, images, args), x())
    if images.train.labels is not None or images.test.labels is not None:
        works["knn_accuracy"] = lambda: nearest(vae, images, codes())
    if isinstance(vae.likelihood, Normal | DiscretizedLogistic):
        works["share_of_scales_at_bound"] = lambda: vae.likelihood.share_at_bound(codes()[:SHOWN].to(x().device))
    works |= {
        "active_units": lambda: int(analysis.active_units(codes()).sum()),
        "kl_in_closed_form": closed,
        "rate_per_dimension": lambda: analysis.rate_per_dimension(vae, x()).tolist() if closed() else None,
        "estimators": lambda: {type(elbo).__name__: repeated_bound(vae, x(), elbo, REPEATS) for elbo in elbos()},
    }
    return {name: lambda work=work: strict(work()) for name, work in works.items()}


def tested(vae: VAE, x: Tensor, seed: int) -> dict[str, Any]:
    """Bound, rate and distortion of the test images."""
    test = evaluate(vae, x, seed=seed)
    summary = test.summary()
    error = summary["standard_error"] if len(x) > 1 else None
    return {**summary, "standard_error": error, **grey_scale(vae, test.bound, x), "particles": 1, "seed": seed}


def scored(vae: VAE, evidence: Evidence, x: Tensor) -> dict[str, Any]:
    """log p(x) of the test images."""
    return {**evidence.to_dict(), **grey_scale(vae, evidence.log_px, x)}


def nearest(vae: VAE, images: Data, codes: Tensor) -> float:
    """Accuracy on the test images of the labels of their nearest training images in latent space."""
    for split in ("train", "test"):
        if getattr(images, split).labels is None:
            raise ValueError(f"it takes labels of training and test images, and the {split} images have none")
    train = codes_of_many(vae, images.train.images, images.test.images.device)
    return analysis.knn_accuracy(train, images.train.labels, codes, images.test.labels, neighbours=NEIGHBOURS)


def shared_evidence(vae: VAE, images: Data, args: argparse.Namespace) -> Evidence:
    """log p(x) of the test images, of which each rank measures a share; all must call it. It fails on all or none."""

    def of_share() -> Evidence:
        x = fixed_x(vae, images.test.images).tensor_split(ranks.world_size())[ranks.rank()]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Pareto k̂")  # the table says it
            return log_evidence(
                vae.model,
                vae.guide,
                x,
                args.evidence,
                seed=ranks.own_seed(args.seed),
                progress=not args.quiet and ranks.rank() == 0,
            )

    failed: dict[str, str] = {}
    part = attempted({"evidence": of_share}, failed).get("evidence")
    if ranks.all_reduce_max(len(failed)):
        raise ValueError(failed.get("evidence", "another rank could not measure its share"))
    names = "log_px", "standard_error", "ess", "pareto_k"
    return replace(part, **{name: ranks.all_gather(getattr(part, name)) for name in names})


def codes_of_many(vae: VAE, pixels: Tensor, device: torch.device) -> Tensor:
    """The codes of images that may be too many to have their x in memory at once."""
    generator = torch.Generator(device).manual_seed(0)
    return torch.cat([analysis.codes(vae, vae.observe(part.to(device), generator)) for part in parts(pixels)])


@torch.no_grad()
def has_closed_kl(vae: VAE, images: Data) -> bool:
    """Whether KL(q(z | x) ‖ p(z)) is computed exactly by TraceMeanField_ELBO."""
    return has_closed_form_kl(vae.posterior(fixed_x(vae, images.valid.images[:2])), vae.prior())


def grey_scale(vae: VAE, log_px: Tensor, x: Tensor) -> dict[str, float | None]:
    """bits/dim and its standard error from nats of single images, where the likelihood scores grey levels."""
    width = vae.likelihood.level_width
    if width is None:
        return {}
    bits = bits_per_dim(log_px, x[0].numel(), width)
    error = bits.std().item() / len(bits) ** 0.5 if len(bits) > 1 else None
    return {"bits_per_dim": bits.mean().item(), "bits_per_dim_standard_error": error}


@torch.no_grad()
def repeated_bound(vae: VAE, x: Tensor, elbo: ELBO, repeats: int) -> dict[str, float]:
    """Mean and standard deviation over repeated draws of an estimate of the bound on all images, in nats per image."""
    with seeded(0, x.device):
        bounds = torch.tensor(
            [-sum(elbo.loss(vae.model, vae.guide, batch) for batch in x.split(1000)) / len(x) for _ in range(repeats)]
        )
    return {"bound": bounds.mean().item(), "sd_over_draws": bounds.std().item(), "draws": repeats}


def pictures(vae: VAE, images: Data, history: History) -> dict[str, Callable[[], bytes]]:
    """The picture files of a run, each by what draws it."""
    labels = None if images.test.labels is None else images.test.labels[:SHOWN]
    x = cache(lambda: fixed_x(vae, images.test.images[:SHOWN]))
    named = {"labels": labels, "legend": "digit" if images.name in ("mnist", "digits") else "label"}
    figures = {
        "latent_plane": lambda: plots.latent_plane(analysis.codes(vae, x()), **named),
        "reconstructions": lambda: plots.reconstructions(x()[:20], analysis.reconstruct(vae, x()[:20])),
        "samples": lambda: plots.samples(analysis.sample_prior(vae, 100)),
        "aggregate_posterior": lambda: plots.aggregate_posterior(
            analysis.draw_posterior(vae, x()), analysis.draw_prior(vae, SHOWN), **named
        ),
        "interpolation": lambda: plots.interpolation(analysis.interpolate(vae, *first_two(x()), steps=10)),
        "learning_curves": lambda: plots.learning_curves(history.rows),
    }
    if vae.prior().event_shape == (2,):
        figures["manifold"] = lambda: plots.manifold(analysis.manifold(vae, side=20))
    return {f"{name}.png": lambda figure=figure: drawn(figure()) for name, figure in figures.items()}


def first_two(x: Tensor) -> tuple[Tensor, Tensor]:
    if len(x) < 2:
        raise ValueError("it leads from one test image to another, and there is one")
    return x[0:1], x[1:2]


def report(metrics: dict[str, Any], out: Path) -> str:
    """The short table at the end."""
    note = [f"NOTE: {metrics['dataset']['note']}"] if metrics["dataset"]["note"] else []
    if metrics["interrupted"]:
        return "\n".join([*note, f"interrupted: what was trained so far is saved in {out}"])
    rows = list(measured_rows(metrics))
    rows += [("left out", f"{name}: {why}") for name, why in metrics.get("left_out", {}).items()]
    if metrics.get("kept_epoch"):  # runs of before have none
        rows.append(("parameters", f"of epoch {metrics['kept_epoch']}: {metrics['kept_because']}"))
    seconds = metrics["seconds"]
    rows += [
        ("seconds", f"{seconds['training']:.0f} training ({metrics['engine']}), {seconds['whole_command']:.0f} in all"),
        ("results", str(out)),
    ]
    return "\n".join([*note, *(f"{name:<20} {value}" for name, value in rows)])


def measured_rows(metrics: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What was measured, as far as it could be."""
    test = metrics.get("test")
    if test:
        yield "test bound", f"{estimate(test['bound'], test['standard_error'])} nats per image, {test['images']} images"
        yield "rate, distortion", f"{test['rate']:.2f}, {test['distortion']:.2f} nats per image"
    if metrics.get("evidence"):
        yield from evidence_rows(metrics["evidence"])
    if "active_units" in metrics:
        yield from unit_rows(metrics)
    if test and "bits_per_dim" in test:
        yield "bits/dim", estimate(test["bits_per_dim"], test["bits_per_dim_standard_error"], 3)
    if "knn_accuracy" in metrics:
        yield f"{NEIGHBOURS}-NN accuracy", f"{metrics['knn_accuracy']:.3f}"
    for name, value in metrics.get("estimators", {}).items():
        yield (
            name,
            (
                f"{value['bound']:.3f}, standard deviation over {value['draws']} draws "
                f"{value['sd_over_draws']:.4f} nats per image"
            ),
        )


def estimate(value: float, error: float | None, digits: int = 2) -> str:
    """A mean over images with its standard error, which a single image does not have."""
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def evidence_rows(evidence: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """log p(x), and a warning where it cannot be trusted."""
    yield (
        "log p(x)",
        (
            f"at least {estimate(evidence['log_px'], evidence['standard_error'])} nats per image, "
            f"{evidence['num_particles']} particles"
        ),
    )
    if evidence["share_pareto_k_above_0.7"]:
        yield (
            "WARNING",
            (
                f"Pareto k̂ > 0.7 for {evidence['share_pareto_k_above_0.7']:.1%} of the images: their "
                "log p(x) cannot be trusted; give more particles by --evidence"
            ),
        )


def unit_rows(metrics: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Active units by the published threshold, the rate of each unit, and a warning where the codes have collapsed."""
    latent, rates = metrics["settings"]["latent"], metrics.get("rate_per_dimension")
    text = f"{metrics['active_units']} of {latent} (variance of the code above {analysis.ACTIVE})"
    if rates is None:  # they have no closed form
        unused = latent * (metrics.get("test", {}).get("rate", UNUSED) < UNUSED)
    else:
        unused = sum(rate < UNUSED for rate in rates)
        ordered = [f"{rate:.2f}" for rate in sorted(rates, reverse=True)]
        listed = ", ".join(ordered) if latent <= LISTED else f"{ordered[0]} to {ordered[-1]}"
        text += f"; rate per unit {listed} nats" + (f", {unused} below {UNUSED}" if unused else "")
    yield "active units", text
    if unused == latent or (unused and latent <= LISTED):
        smooth = "" if metrics["settings"]["activation"] == "silu" else "--activation silu, "
        yield (
            "WARNING",
            (
                f"collapsed: {unused} of {latent} latent dimensions say nothing of x; train again with "
                f"{smooth}a smaller --lr and --batch, or more --epochs"
            ),
        )


if __name__ == "__main__":
    sys.exit(main())
