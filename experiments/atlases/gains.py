"""What an estimator buys: the bound after equal seconds of training by each of them, from one start."""

import argparse
import time
import warnings
from typing import Any

from pyro.infer import ELBO

from experiments.atlases.programs import built, estimators
from pyro_vae import Training, UntrustedEvidence, evaluate, log_evidence
from pyro_vae.data import Data

TRAINERS = {
    "vae": ("L^A", "L^B", "STL, K = 1", "STL, K = {K}", "IWAE, K = {K}", "DReG, K = {K}"),
    "two-layer": ("L^A", "STL, K = 1", "STL, K = {K}", "IWAE, K = {K}", "GDReG, K = {K}"),
    "sigmoid": ("score function, K = 1", "score function, K = {K}", "DisARM, K = {K}", "ReinMax"),
}  # the programs that are trained by several estimators, and these; K is the largest of --particles
BOUND, IMAGES = 64, 1000  # L_64, a bound nearer to log p(x) than what is trained, on so many validation images


def trainers(name: str, particles: list[int]) -> dict[str, ELBO]:
    """Return the estimators by which a program is trained."""
    K, found = max(particles), estimators(particles, max(particles))
    return {each: found[each] for each in (word.format(K=K) for word in TRAINERS[name]) if each in found}


def gained(name: str, seed: int, images: Data, args: argparse.Namespace) -> dict[str, Any]:
    """Return the bounds on validation images after training by each estimator for ``args.seconds`` of a processor."""
    return {"seconds": args.seconds, "trained": {
        word: trained(name, word, elbo, seed, images, args) for word, elbo in trainers(name, args.particles).items()
    }}  # fmt: skip


def trained(name: str, word: str, elbo: ELBO, seed: int, images: Data, args: argparse.Namespace) -> dict[str, Any]:
    """Return steps and bounds of one training; its first step, which compiles, is not counted."""
    program = built(name, seed, images, args)
    training = Training(
        program, images, elbo, epochs=10**6, batch_size=args.batch, lr=args.lr, seed=seed, engine=args.engine,
        progress=False, keep="last",
    )  # fmt: skip
    steps = counted(training, args.seconds)
    if training.history.interrupted:
        raise KeyboardInterrupt
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrustedEvidence)  # L_64 is compared as a bound, not as log p(x)
        evidence = log_evidence(program, images.valid[:IMAGES], BOUND, seed=seed, progress=False)
    if not args.quiet:
        print(f"{name}, {word}: {steps} steps, L_{BOUND} {evidence.mean:.2f}", flush=True)
    return {
        "steps": steps,
        "engine": training.history.engine,
        "valid": evaluate(program, images.valid, seed=seed).summary(),
        "evidence": evidence.to_dict(),
    }


def counted(training: Training, seconds: float) -> int:
    """Train for so many seconds of a processor after the first step, and return the number of further steps."""
    steps, started = -1, 0.0
    for _ in training.steps():
        steps, now = steps + 1, time.process_time()
        started = started or now
        if now - started >= seconds:
            break
    return steps
