"""What an estimator buys: the bound after equal seconds of training by each of them, from one start."""

import argparse
import math
import time
import warnings
from dataclasses import dataclass
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
TURN = 1.0  # seconds of a processor
BEFORE = 2  # steps that are not counted
BOUND, IMAGES = 64, 1000  # L_64, a bound nearer to log p(x) than what is trained, on so many validation images


def trainers(name: str, particles: list[int]) -> dict[str, ELBO]:
    """Return the estimators by which a program is trained."""
    K, found = max(particles), estimators(particles, max(particles))
    return {each: found[each] for each in (word.format(K=K) for word in TRAINERS[name]) if each in found}


@dataclass
class Trained:
    """A training by one estimator, the steps that it took, and their seconds of a processor.

    The first two steps are not counted: an eager one, and one that compiles.
    """

    training: Training
    steps: int = 0
    seconds: float = 0.0

    def __post_init__(self):
        self._left = self.training.steps()
        for _ in range(BEFORE):
            next(self._left, None)

    def until(self, seconds: float) -> None:
        """Take steps until they have taken so many seconds."""
        while self.seconds < seconds:
            started = time.process_time()
            if next(self._left, None) is None:
                raise KeyboardInterrupt  # steps without end: only an interruption ends them
            self.seconds += time.process_time() - started
            self.steps += 1

    def results(self, images: Data, seed: int) -> dict[str, Any]:
        """Return steps, seconds and bounds."""
        program = self.training.program
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UntrustedEvidence)  # L_64 is compared as a bound, not as log p(x)
            evidence = log_evidence(program, images.valid[:IMAGES], BOUND, seed=seed, progress=False)
        return {
            "steps": self.steps,
            "seconds": self.seconds,
            "engine": self.training.history.engine,
            "valid": evaluate(program, images.valid, seed=seed).summary(),
            "evidence": evidence.to_dict(),
        }


def gained(name: str, seed: int, images: Data, args: argparse.Namespace) -> dict[str, Any]:
    """Return the bounds on validation images after training by each estimator for ``args.seconds`` of a processor.

    They take turns of at most ``TURN`` seconds, so that other work on the machine slows all of them alike.
    """
    found = {word: begun(name, elbo, seed, images, args) for word, elbo in trainers(name, args.particles).items()}
    for turn in range(math.ceil(args.seconds / TURN)):
        for each in found.values():
            each.until(min(args.seconds, (turn + 1) * TURN))
    return {"seconds": args.seconds, "trained": {word: each.results(images, seed) for word, each in found.items()}}


def begun(name: str, elbo: ELBO, seed: int, images: Data, args: argparse.Namespace) -> Trained:
    """Return the training of a program by an estimator, begun."""
    program = built(name, seed, images, args)
    return Trained(
        Training(
            program, images, elbo, epochs=10**6, batch_size=args.batch, lr=args.lr, seed=seed, engine=args.engine,
            progress=False, keep="last",
        )
    )  # fmt: skip
