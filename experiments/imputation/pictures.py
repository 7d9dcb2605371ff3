"""MIWAE on black and white pictures of which pixels are removed, and other methods on the same pixels."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.imputation.methods import extra_trees, iterative_imputer, mean_imputer, rmse
from pyro_vae import VAE, Checkpoints, Masked, fit, guides, impute, likelihoods, networks, priors, warm_cosine
from pyro_vae.data import Data, Split
from pyro_vae.estimators import ImportanceWeighted

LEARNED_FROM = 2000  # training images from which the chained regressions learn: they take minutes for so few
NEAREST = 50  # pixels, the most correlated ones, from which they predict a pixel
ROUNDS, FOREST = 5, {"trees": 10, "max_iter": 2, "n_nearest_features": 30}
PARTICLES, BATCH, LR = 5, 128, 3e-3  # of the training
SHOWN = 10  # pictures


def removed(images: Data, share: float, seed: int) -> Data:
    """Return the images with masks by which this share of the pixels is missing, each by chance."""
    generator = torch.Generator().manual_seed(seed)

    def split(rows: Split) -> Split:
        return Split(rows.images, mask=torch.rand(rows.images.shape, generator=generator) >= share)

    return Data(images.name, *(split(getattr(images, name)) for name in ("train", "valid", "test")), note=images.note)


def build(shape: tuple[int, int, int], latent: int = 30, hidden: int = 300) -> Masked:
    """Return a VAE whose encoder sees the pixels, zero where they are missing, and the mask."""
    decoder = networks.MLPDecoder(latent, shape, maps=1, hidden=(hidden,), activation=torch.nn.SiLU)
    encoder = networks.MLPEncoder((2 * shape[0], *shape[1:]), hidden=(hidden,), activation=torch.nn.SiLU)
    vae = VAE(
        priors.StandardNormal(latent),
        likelihoods.Bernoulli(decoder, binarize=likelihoods.threshold),
        guides.MeanField(encoder, latent),
    )
    return Masked(vae, mask_as_input=True)


def measure(images: Data, seed: int, out: Path, args: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Train, impute the first test images by all methods, and return the numbers and the pictures.

    The training leaves checkpoints in ``out``, from which it goes on if it was stopped.
    """
    started = time.perf_counter()
    torch.manual_seed(seed)
    data = removed(images, args.share, seed)
    program = build(data.shape)
    history = fit(
        program, data, ImportanceWeighted(PARTICLES), epochs=args.epochs, batch_size=BATCH, lr=LR,
        schedule=warm_cosine, seed=seed, checkpoints=Checkpoints(out, resume=True), progress=not args.quiet,
    )  # fmt: skip
    if history.interrupted:
        raise KeyboardInterrupt
    trained = time.perf_counter()
    test = data.test[: args.images]
    truth, mask = likelihoods.threshold(test.images).double(), test.mask
    found = impute(program, test, args.draws, seed=seed)
    filled = {"MIWAE": found.x, **others(data, test, seed)}
    deviation = (found.x - truth)[~mask].abs()
    numbers = {
        "rmse": {name: rmse(x.numpy(), truth.numpy(), mask.numpy()) for name, x in filled.items()},
        "wrong": {name: float(((x > 0.5) != truth.bool())[~mask].double().mean()) for name, x in filled.items()},
        "told_rmse": found.standard_deviation[~mask].square().mean().sqrt().item(),
        "expected_deviation": deviation.mean().item(),
        "log_px_seen": found.evidence.to_dict(),
        "share_untrusted": found.untrusted.double().mean().item(),
        "best_epoch": history.best_epoch,
        "engine": history.engine,
        "seconds": {"training": trained - started, "imputation": time.perf_counter() - trained},
    }
    rows = {"original": truth, "seen": torch.where(mask, truth, 0.5), **filled, "sd": found.standard_deviation}
    return numbers, {name: x[:SHOWN].float().clamp(0, 1) for name, x in rows.items()}


def others(data: Data, test: Split, seed: int) -> dict[str, Tensor]:
    """Return the test images as the other methods fill them in; the mean learns from all training images."""
    train, rows = gaps(data.train), gaps(test)
    few, limits = train[:LEARNED_FROM], {"min_value": 0, "max_value": 1}
    iterative = iterative_imputer(seed, max_iter=ROUNDS, n_nearest_features=NEAREST, **limits)
    forests = extra_trees(seed, **FOREST)
    filled = {"mean": mean_imputer(train, rows), "iterative": iterative(few, rows), "forests": forests(few, rows)}
    return {name: torch.from_numpy(x).reshape(test.images.shape) for name, x in filled.items()}


def gaps(split: Split) -> np.ndarray:
    """Return black and white pixels as rows, NaN where they are missing."""
    x = likelihoods.threshold(split.images)
    return torch.where(split.mask, x, torch.nan).flatten(1).numpy()
