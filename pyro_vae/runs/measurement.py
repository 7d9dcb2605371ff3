"""What a run measures on its test images: the entries of metrics.json."""

import argparse
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vae import VAE, analysis
from pyro_vae.arguments import ProgramArguments
from pyro_vae.data import Data
from pyro_vae.data.mapped import parts
from pyro_vae.distributions.divergences import has_closed_form_kl
from pyro_vae.evidence import Evidence, UntrustedEvidence, log_evidence
from pyro_vae.hardware import widest_float
from pyro_vae.likelihoods import bits_per_dim
from pyro_vae.observation import Arguments, fixed_arguments
from pyro_vae.program import Program
from pyro_vae.random import mode, seeded
from pyro_vae.runs.commands import attempted
from pyro_vae.runs.effort import REPEATS
from pyro_vae.tracing.traces import ProgramRuns, log_weights, per_image, sample_sites
from pyro_vae.training import evaluate, ranks
from pyro_vae.training.evaluation import own_part

SHOWN = 1000  # test images whose codes are drawn, or whose scales are counted
NEIGHBOURS = 15  # nearest training images; the majority of their labels is compared with a test image's label
AT_ONCE = 1000  # z decoded at once


def measure(vae: Program, images: Data, args: argparse.Namespace, number: int) -> dict[str, Callable[[], Any]]:
    """Return the functions that measure each entry of metrics.json on the test images.

    ``number``: that of the test images on which log p(x) and the repeated bounds are measured, which take longest.
    """
    if args.measure == "none":
        return {}
    x = cache(lambda: fixed_arguments(vae, images.test))
    some = cache(lambda: spread(x(), number))
    closed = cache(lambda: has_closed_kl(vae, images))
    works: dict[str, Callable[[], Any]] = {"test": lambda: tested(vae, x(), args.seed)}
    if args.evidence:  # early, as the other ranks wait
        works["evidence"] = lambda: scored(vae, shared_evidence(vae, images, args, number), some())
    works |= {
        "kl_in_closed_form": closed,
        "estimators": lambda: repeated_bounds(vae, some(), closed(), REPEATS),
    }
    if isinstance(vae, VAE):
        works |= measure_codes(vae, images, cache(lambda: x()[0]), closed)
    return {name: lambda work=work: strict(work()) for name, work in works.items()}


def spread(x: Arguments, number: int) -> Arguments:
    """Return so many rows of the arguments, evenly spread; the first ones of a sorted file would be of one kind.

    >>> spread((torch.arange(10), torch.arange(10)), 4)[0]
    tensor([0, 2, 5, 7])
    """
    rows = len(x[0])
    index = torch.arange(number, device=x[0].device) * rows // number
    return x if number == rows else tuple(argument[index] for argument in x)


def measure_codes(
    vae: VAE, images: Data, x: Callable[[], Tensor], closed: Callable[[], bool]
) -> dict[str, Callable[[], Any]]:
    """Return the functions that measure the entries about the codes of the test images."""
    codes = cache(lambda: analysis.codes(vae, x()))
    works: dict[str, Callable[[], Any]] = {}
    if images.train.labels is not None or images.test.labels is not None:
        works["knn_accuracy"] = lambda: nearest(vae, images, codes())
    share_at_bound = getattr(vae.likelihood, "share_at_bound", None)
    if share_at_bound is not None:
        works["share_of_scales_at_bound"] = lambda: share_at_bound(codes()[:SHOWN].to(x().device))
    return works | {
        "active_units": lambda: int(analysis.active_units(codes()).sum()),
        "rate_per_dimension": lambda: analysis.rate_per_dimension(vae, x()).tolist() if closed() else None,
    }


def strict(value: Any) -> Any:
    """Return the value; ValueError if it holds NaN or infinity, which metrics.json does not."""
    json.dumps(value, allow_nan=False)
    return value


def tested(vae: Program, x: Arguments, seed: int) -> dict[str, Any]:
    """Return bound, rate and distortion of the test images, in nats per image."""
    test = evaluate(vae, x, seed=seed)
    summary = test.summary()
    error = summary["standard_error"] if len(x[0]) > 1 else None
    return {**summary, "standard_error": error, **grey_scale(vae, test.bound, x[0]), "particles": 1, "seed": seed}


def scored(vae: Program, evidence: Evidence, x: Arguments) -> dict[str, Any]:
    """Return the summary of log p(x) of the test images."""
    return {**evidence.to_dict(), **grey_scale(vae, evidence.log_px, x[0])}


def nearest(vae: VAE, images: Data, codes: Tensor) -> float:
    """Return the accuracy on the test images of the labels of their nearest training images in latent space."""
    train, test = images.train.labels, images.test.labels
    if train is None or test is None:
        split = "train" if train is None else "test"
        raise ValueError(f"it takes labels of training and test images, and the {split} images have none")
    train_codes = codes_of_many(vae, images.train.images, images.test.images.device)
    return analysis.knn_accuracy(train_codes, train, codes, test, neighbours=NEIGHBOURS)


def codes_of_many(vae: VAE, pixels: Tensor, device: torch.device) -> Tensor:
    """Return the codes of images that may be too many to have their x in memory at once."""
    generator = torch.Generator(device).manual_seed(0)
    return torch.cat([analysis.codes(vae, vae.observe(part.to(device), generator)) for part in parts(pixels)])


def shared_evidence(vae: Program, images: Data, args: argparse.Namespace, number: int) -> Evidence:
    """Return log p(x) of so many test images, each rank measuring a share; all ranks must call it.

    It raises ValueError on all ranks or on none.
    """

    def of_share() -> Evidence:
        x = own_part(spread(fixed_arguments(vae, images.test), number))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UntrustedEvidence)  # the report holds the share of these images
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
    if ranks.all_reduce_max(len(failed)) or part is None:
        raise ValueError(failed.get("evidence", "another rank could not measure its share"))
    names = "log_px", "standard_error", "ess", "pareto_k"
    return replace(part, **{name: ranks.all_gather(getattr(part, name)) for name in names})


@torch.no_grad()
def has_closed_kl(vae: Any, images: Data) -> bool:
    """Return whether ``TraceMeanField_ELBO`` computes KL(q(z | x) ‖ p(z)) exactly."""
    q = vae.posterior if isinstance(vae, VAE) else vae.q
    return has_closed_form_kl(q(*fixed_arguments(vae, images.valid[:2])), vae.prior())


def grey_scale(vae: Any, log_px: Tensor, x: Tensor) -> dict[str, float | None]:
    """Return bits/dim and its standard error from nats per image (images,); nothing if x is black and white."""
    width: Any = vae.likelihood.level_width
    if width is None:
        return {}
    bits = bits_per_dim(log_px, x[0].numel(), width)
    error = bits.std().item() / len(bits) ** 0.5 if len(bits) > 1 else None
    return {"bits_per_dim": bits.mean().item(), "bits_per_dim_standard_error": error}


@torch.no_grad()
def repeated_bounds(vae: Program, x: Arguments, closed: bool, draws: int) -> dict[str, dict[str, Any]]:
    """Return mean and standard deviation over repeated draws of the bound on x, in nats per image, by estimator.

    The estimators share the draws, so that x is encoded once and each z decoded once.
    """
    runs, rows = ProgramRuns(draws), len(x[0])
    batches = ProgramArguments.of(x, rows=rows).batches(max(1, AT_ONCE // draws))
    with seeded(0, x[0].device), mode(vae, training=False), pyro.validation_enabled(False):
        sums = [sums_of_bounds(runs, vae, batch.args, closed) for batch in batches]
    bounds = {name: torch.stack([part[name] for part in sums]).sum(0) / rows for name in sums[0]}
    return {
        name: {"bound": bound.mean().item(), "sd_over_draws": bound.std().item(), "draws": draws, "images": rows}
        for name, bound in bounds.items()
    }


def sums_of_bounds(runs: ProgramRuns, vae: Program, x: Arguments, closed: bool) -> dict[str, Tensor]:
    """Return the bound on x by each estimator, in nats, summed over the images: (draws,), float64 where there is one.

    If KL(q ‖ p(z)) has a closed form, ``TraceMeanField_ELBO`` takes it in place of log q(z | x) − log p(z).
    """
    model_trace, guide_trace = traces = runs(vae.model, vae.guide, x)
    plate = runs.plate(vae.model, vae.guide, x, {}, traces)
    bounds: dict[str, Any] = {"Trace_ELBO": log_weights(*traces, plate=plate)}
    if closed:
        latent: dict[str, Any] = sample_sites(guide_trace, observed=False)
        prior: dict[str, Any] = sample_sites(model_trace, observed=False)
        kl = sum(kl_divergence(site["fn"], prior[name]["fn"]) for name, site in latent.items())
        log_likelihood = sum(per_image(site, plate) for site in sample_sites(model_trace, observed=True).values())
        bounds["TraceMeanField_ELBO"] = log_likelihood - kl
    return {name: bound.to(widest_float(x[0].device)).sum(-1) for name, bound in bounds.items()}
