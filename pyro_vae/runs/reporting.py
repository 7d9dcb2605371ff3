"""What a run prints: its plan at the start, a short table at the end."""

import argparse
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyro.infer import ELBO

from pyro_vae import VAE, analysis
from pyro_vae.conditional import Conditional
from pyro_vae.data import Data
from pyro_vae.evidence.results import TRUSTED, Evidence
from pyro_vae.printing import estimate
from pyro_vae.runs.measurement import NEIGHBOURS, has_closed_kl
from pyro_vae.runs.options import OPTIMIZERS
from pyro_vae.training.history import UNUSED

NAMES, WIDTH = 21, 100  # columns of the names, and of the whole table
RICHER_GUIDES = "full-rank", "inverse-autoregressive"  # words of --guide
LISTED = 5  # latent dimensions up to which the rate of each is listed, and an unused one is a warning


def plan(args: argparse.Namespace, images: Data, vae: VAE | Conditional, estimator: ELBO, out: Path) -> str:
    """Return what the command is about to do."""
    sizes = " / ".join(f"{len(split):,}" for split in (images.train, images.valid, images.test))
    parameters = sum(parameter.numel() for parameter in vae.parameters())
    lines = [
        f"data        {images.name}, {sizes} images of {' × '.join(map(str, images.shape))}",
        f"program     {type(vae.prior).__name__} prior, {type(vae.likelihood).__name__} likelihood, "
        f"{type(vae.posterior).__name__} guide, {args.latent} latent dimensions, {parameters:,} parameters",
        f"KL          {'in closed form' if has_closed_kl(vae, images) else 'by Monte Carlo: it has no closed form'}",
        f"training    {args.epochs} epochs, batches of {args.batch}, {type(estimator).__name__}, {optimiser(args)} "
        f"{args.lr:g} ({args.schedule}), {args.precision}, seed {args.seed}, {next(vae.parameters()).device}",
        f"results     {out}",
    ]
    return "\n".join([f"NOTE: {images.note}", *lines] if images.note else lines)


def optimiser(args: argparse.Namespace) -> str:
    """Return the name of the optimiser, and what changes the objective or the weights, where something does."""
    words = {
        f"KL weight {args.beta:g}": args.beta != 1,
        f"warm-up {args.warm_up:g}": args.warm_up,
        f"weight decay {args.weight_decay:g}": args.weight_decay,
        f"average of weights {args.ema}": args.ema is not None,
        f"patience {args.patience}": args.patience is not None,
    }
    made: Any = OPTIMIZERS[args.optimizer]
    return ", ".join([*(word for word, said in words.items() if said), getattr(made, "func", made).__name__])


def report(metrics: dict[str, Any], out: Path) -> str:
    """Return the table at the end of a run, in at most 100 columns; it says in words what each number is."""
    note = [f"NOTE: {metrics['dataset']['note']}"] if metrics["dataset"]["note"] else []
    if metrics["interrupted"]:
        return "\n".join([*note, f"interrupted: what was trained so far is saved in {out}"])
    rows = list(measured_rows(metrics, out))
    rows += [("left out", f"{name}: {why}") for name, why in metrics.get("left_out", {}).items()]
    if metrics.get("stopped_early"):
        patience, epochs = metrics["settings"]["patience"], metrics["settings"]["epochs"]
        rows.append(("stopped early", f"no better epoch in {patience}, before all {epochs}"))
    if metrics.get("kept_epoch"):  # older runs have none
        rows.append(("parameters", f"of epoch {metrics['kept_epoch']}: {metrics['kept_because']}"))
    rows += [("seconds", seconds_of(metrics)), ("results", str(out))]
    return "\n".join([*note, *(wrapped(name, value) for name, value in rows)])


def wrapped(name: str, value: str) -> str:
    """Return a row of the table, broken into lines between words.

    >>> print(wrapped("rate", "a " + 50 * "word "))
    rate                 a word word word word word word word word word word word word word word word
                         word word word word word word word word word word word word word word word
                         word word word word word word word word word word word word word word word
                         word word word word word
    """
    indent = " " * NAMES
    return textwrap.fill(
        f"{name:<{NAMES - 1}} {value}", WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def seconds_of(metrics: dict[str, Any]) -> str:
    """Return how long training, measuring and the whole command took."""
    seconds = metrics["seconds"]
    measuring = f"{seconds['measuring']:.0f} measuring, " if "measuring" in seconds else ""  # older runs have none
    return f"{seconds['training']:.0f} training ({metrics['engine']}), {measuring}{seconds['whole_command']:.0f} in all"


def measured_rows(metrics: dict[str, Any], out: Path) -> Iterator[tuple[str, str]]:
    """Yield name and text of everything that was measured."""
    test = metrics.get("test")
    if test:
        yield from bound_rows(test)
    if metrics.get("evidence"):
        yield from evidence_rows(metrics, out)
    yield from repeated_rows(metrics)
    if "active_units" in metrics:
        yield from unit_rows(metrics)
    if test and "bits_per_dim" in test:
        bits = estimate(test["bits_per_dim"], test["bits_per_dim_standard_error"], 3)
        yield (
            "bits/dim",
            f"{bits}: minus the test bound, in bits for each of the C × H × W numbers of an image, on 256 levels; "
            "comparable between the likelihoods of levels, lower is better",
        )
    if "knn_accuracy" in metrics:
        yield (
            f"{NEIGHBOURS}-NN accuracy",
            f"{metrics['knn_accuracy']:.3f} of the labelled test images have the label of most of their {NEIGHBOURS} "
            "nearest labelled training images in latent space",
        )


def bound_rows(test: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the bound on the test images and its two terms."""
    yield (
        "test bound",
        f"{estimate(test['bound'], test['standard_error'])} nats per image, {test['images']} images, one draw of z for "
        "each: log p(x), the log-probability of an image, is at least this on average; higher is better. A nat is the "
        "unit of natural logarithms, and ± the standard error over images",
    )
    yield "rate", f"{test['rate']:.2f} nats per image: what the code z says about its image, KL(q(z | x) ‖ p(z))"
    yield (
        "distortion",
        f"{test['distortion']:.2f} nats per image: what z leaves open, the mean of -log p(x | z). The test bound is "
        "-rate - distortion",
    )


def evidence_rows(metrics: dict[str, Any], out: Path) -> Iterator[tuple[str, str]]:
    """Yield log p(x), and a warning if it cannot be trusted."""
    evidence, every = metrics["evidence"], metrics.get("test", {}).get("images", 0)
    some = f" of {every}, evenly spread" if evidence["images"] < every else ""
    repeated = metrics.get("estimators", {}).get("Trace_ELBO", {})
    gap = evidence["log_px"] - repeated["bound"] if repeated.get("images") == evidence["images"] else None
    yield (
        "log p(x)",
        f"at least {estimate(evidence['log_px'], evidence['standard_error'])} nats per image, {evidence['images']} "
        f"images{some}, {evidence['num_particles']} draws of z (particles) for each: a tighter bound, the logarithm of "
        "the mean weight p(x, z) / q(z | x) by importance sampling, where the test bound is the mean logarithm"
        + ("" if gap is None else f"; {gap:.2f} above Trace_ELBO on the same images"),
    )
    share = evidence["share_pareto_k_above_0.7"]
    if share:
        yield "WARNING", untrusted(share, metrics["settings"], out)


def untrusted(share: float, settings: dict[str, Any], out: Path) -> str:
    """Return what a share of images with k̂ > 0.7 means, and what helps, in Python and by commands."""
    guides = " or ".join(f"--guide {word}" for word in RICHER_GUIDES if word != settings.get("guide"))
    anneal = "" if settings.get("conditional") else f", or, of this run, pyro-vae evidence --run {out}"
    return (
        f"Pareto k̂ > {TRUSTED} for {share:.1%} of the images: k̂ measures how heavy the tail of an image's weights is, "
        f"and above {TRUSTED} neither its log p(x) nor its standard error can be trusted; {Evidence.ADVICE}. By "
        f"commands: another training with {guides}{anneal}"
    )


def repeated_rows(metrics: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the repeated estimates of the test bound, and what makes them differ."""
    for name, value in metrics.get("estimators", {}).items():
        images = f" of {value['images']} images" if "images" in value else ""  # older runs have none
        how = (
            "the same bound by the same draws, but the rate by its formula, so that only the distortion varies"
            if name == "TraceMeanField_ELBO"
            else f"the test bound again, drawn {value['draws']} times{images}; rate and distortion vary with z"
        )
        yield (
            name,
            f"{value['bound']:.3f}, standard deviation over {value['draws']} draws {value['sd_over_draws']:.4f} nats "
            f"per image: {how}",
        )


def unit_rows(metrics: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield active units by the published threshold, the rate of each unit, and a warning if the codes collapsed."""
    latent, rates = metrics["settings"]["latent"], metrics.get("rate_per_dimension")
    text = (
        f"{metrics['active_units']} of {latent} latent dimensions are used: their codes differ between images "
        f"(variance above {analysis.ACTIVE})"
    )
    if rates is None:  # they have no closed form
        unused = latent * (metrics.get("test", {}).get("rate", UNUSED) < UNUSED)
    else:
        unused = sum(rate < UNUSED for rate in rates)
        ordered = [f"{rate:.2f}" for rate in sorted(rates, reverse=True)]
        listed = ", ".join(ordered) if latent <= LISTED else f"{ordered[0]} to {ordered[-1]}"
        text += f"; rate of each {listed} nats" + (f", {unused} below {UNUSED}" if unused else "")
    yield "active units", text
    if unused == latent or (unused and latent <= LISTED):
        smooth = "" if metrics["settings"]["activation"] == "silu" else "--activation silu, "
        yield (
            "WARNING",
            f"collapsed: {unused} of {latent} latent dimensions say nothing of x, by a rate below {UNUSED} nats; train "
            f"again with {smooth}a smaller --lr and --batch, or more --epochs",
        )
