"""What is measured of a VAE that was trained under one likelihood."""

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from pyro_vae import VAE, analysis
from pyro_vae.data import Data
from pyro_vae.evidence import UntrustedEvidence, log_evidence
from pyro_vae.likelihoods import ContinuousBernoulli, Normal, bits_per_dim
from pyro_vae.runs.measurement import NEIGHBOURS, SHOWN
from pyro_vae.training import evaluate, fixed_x

STRIP = 8  # pictures in a strip
PROBE = 10_000  # training images whose codes the probes are fitted to
BATCH = 250  # images measured at once


def measure(vae: VAE, images: Data, particles: int, number: int) -> dict[str, Any]:
    """Return all numbers of one trained VAE on the test images; L_K on the first ``number`` of them."""
    x = fixed_x(vae, images.test.images)
    test = evaluate(vae, x, batch_size=BATCH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrustedEvidence)  # the record holds the share of these images
        evidence = log_evidence(vae.model, vae.guide, x[:number], particles, seed=0)
    bounds = {"bound": test.bound.cpu(), "log_px": evidence.log_px}
    codes = analysis.codes(vae, x, batch_size=BATCH)
    return {
        "nats": {name: mean_and_error(values) for name, values in bounds.items()},
        "bits_per_dim": grey_scale(vae, bounds, x),
        "rate": test.rate.mean().item(),
        "distortion": test.distortion.mean().item(),
        "bound_on_images_of_log_px": bounds["bound"][:number].mean().item(),
        "evidence": evidence.to_dict(),
        **probes(vae, images, codes),
        "mse": squared_error(vae, codes, images.test.images),
        "active_units": int(analysis.active_units(codes).sum()),
        **family_facts(vae, codes),
    }


def mean_and_error(values: Tensor) -> dict[str, float | None]:
    """Return the mean over images and its standard error."""
    error = values.double().std().item() / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": values.double().mean().item(), "standard_error": error, "images": len(values)}


def grey_scale(vae: VAE, bounds: dict[str, Tensor], x: Tensor) -> dict[str, Any] | None:
    """Return the bounds in bits/dim, and the least value that the family can reach; None if x is black and white.

    A mass on B bins is at most 1, so that B bins cost at least log2(256 / B) bits/dim; densities have no such limit.
    """
    width = vae.likelihood.level_width
    if width is None:
        return None
    with torch.no_grad():
        mass = vae.likelihood(vae.prior().sample((1,))).support.is_discrete
    bits = {name: mean_and_error(bits_per_dim(values, x[0].numel(), width)) for name, values in bounds.items()}
    return {**bits, "least": math.log2(1 / width) if mass else None}


def probes(vae: VAE, images: Data, codes: Tensor) -> dict[str, Any]:
    """Return the accuracy on the test images of probes fitted to codes of PROBE training images, or None."""
    if images.test.labels is None:
        return {"knn_accuracy": None, "linear_probe_accuracy": None}
    train = images.train[:PROBE]
    fitted = analysis.codes(vae, fixed_x(vae, train.images), batch_size=BATCH)
    labelled = (fitted, train.labels, codes, images.test.labels)
    return {
        "knn_accuracy": analysis.knn_accuracy(*labelled, neighbours=NEIGHBOURS),
        "linear_probe_accuracy": analysis.linear_probe_accuracy(*labelled),
        "probe_images": len(train),
    }


def squared_error(vae: VAE, codes: Tensor, pixels: Tensor) -> float:
    """Return the mean over images and pixels of (mean of p(x | code) − g / 255)², the same target for every family."""
    parts = zip(codes.split(BATCH), pixels.split(BATCH))
    total = sum((analysis.decode(vae, z) - g.cpu() / 255).square().double().sum().item() for z, g in parts)
    return total / pixels.numel()


def family_facts(vae: VAE, codes: Tensor) -> dict[str, float]:
    """Return numbers that only this family has."""
    if isinstance(vae.likelihood, Normal):
        share = vae.likelihood.share_at_bound(codes[:SHOWN].to(next(vae.parameters()).device))
        return {"min_log_scale": vae.likelihood.min_log_scale, "share_of_scales_at_bound": share}
    return {"clip": vae.likelihood.clip} if isinstance(vae.likelihood, ContinuousBernoulli) else {}


def strips(vae: VAE, images: Data) -> dict[str, Tensor]:
    """Return the first test images, their reconstructions, and as many samples of the prior: each (STRIP, C, H, W)."""
    pixels = images.test.images[:STRIP]
    return {
        "images": pixels.cpu() / 255,
        "reconstructions": analysis.reconstruct(vae, fixed_x(vae, pixels)),
        "samples": analysis.sample_prior(vae, STRIP),
    }
