"""What a run prints: its plan at the start, a short table at the end."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyro.infer import ELBO

from pyro_vae import VAE, analysis
from pyro_vae.conditional import Conditional
from pyro_vae.data import Data
from pyro_vae.runs.measurement import NEIGHBOURS, has_closed_kl
from pyro_vae.runs.options import OPTIMIZERS
from pyro_vae.runs.origins import describe

UNUSED = 0.05  # nats: a latent dimension with a smaller rate says nothing about x
LISTED = 5  # latent dimensions up to which the rate of each is listed, and an unused one is a warning


def plan(args: argparse.Namespace, images: Data, vae: VAE | Conditional, estimator: ELBO, out: Path) -> str:
    """Return what the command is about to do."""
    sizes = describe(images)
    parameters = sum(parameter.numel() for parameter in vae.parameters())
    lines = [
        f"data        {sizes['name']}, {sizes['train']:,} / {sizes['valid']:,} / {sizes['test']:,} images "
        f"of {' × '.join(map(str, sizes['shape']))}",
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
    """Return the short table at the end of a run."""
    note = [f"NOTE: {metrics['dataset']['note']}"] if metrics["dataset"]["note"] else []
    if metrics["interrupted"]:
        return "\n".join([*note, f"interrupted: what was trained so far is saved in {out}"])
    rows = list(measured_rows(metrics))
    rows += [("left out", f"{name}: {why}") for name, why in metrics.get("left_out", {}).items()]
    if metrics.get("stopped_early"):
        patience, epochs = metrics["settings"]["patience"], metrics["settings"]["epochs"]
        rows.append(("stopped early", f"no better epoch in {patience}, before all {epochs}"))
    if metrics.get("kept_epoch"):  # older runs have none
        rows.append(("parameters", f"of epoch {metrics['kept_epoch']}: {metrics['kept_because']}"))
    seconds = metrics["seconds"]
    rows += [
        ("seconds", f"{seconds['training']:.0f} training ({metrics['engine']}), {seconds['whole_command']:.0f} in all"),
        ("results", str(out)),
    ]
    return "\n".join([*note, *(f"{name:<20} {value}" for name, value in rows)])


def measured_rows(metrics: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield name and text of everything that was measured."""
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
            f"{value['bound']:.3f}, standard deviation over {value['draws']} draws "
            f"{value['sd_over_draws']:.4f} nats per image",
        )


def estimate(value: float, error: float | None, digits: int = 2, sign: str = "") -> str:
    """Return a mean with its standard error, if it has one; ``sign="+"`` writes a plus before a positive mean.

    >>> estimate(1.234, 0.056), estimate(1.234, None, 1, "+")
    ('1.23 ± 0.06', '+1.2')
    """
    return f"{value:{sign}.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def evidence_rows(evidence: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield log p(x), and a warning if it cannot be trusted."""
    yield (
        "log p(x)",
        f"at least {estimate(evidence['log_px'], evidence['standard_error'])} nats per image, "
        f"{evidence['num_particles']} particles",
    )
    if evidence["share_pareto_k_above_0.7"]:
        yield (
            "WARNING",
            f"Pareto k̂ > 0.7 for {evidence['share_pareto_k_above_0.7']:.1%} of the images: their "
            "log p(x) cannot be trusted; give more particles by --evidence",
        )


def unit_rows(metrics: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield active units by the published threshold, the rate of each unit, and a warning if the codes collapsed."""
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
            f"collapsed: {unused} of {latent} latent dimensions say nothing of x; train again with "
            f"{smooth}a smaller --lr and --batch, or more --epochs",
        )
