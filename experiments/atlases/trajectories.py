"""A program in the course of its training: up to so many epochs, and until it no longer gets better."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor

from experiments.atlases.programs import LogisticRegression, built, observed
from experiments.discrete import SigmoidBeliefNetwork
from pyro_vae import CompiledSVI, Training
from pyro_vae.data import Data
from pyro_vae.estimators import ScoreFunction
from pyro_vae.random import seeded
from pyro_vae.training import Checkpoints

DRAWS = 20  # of the weights of a regression, for its bound


class Course(Protocol):
    """A training that is followed epoch by epoch."""

    program: Any

    @property
    def bounds(self) -> list[float]:
        """The bound after each epoch."""
        ...

    def to(self, epochs: int) -> None:
        """Train up to so many epochs."""
        ...

    def keep_best(self) -> None:
        """Give the program the parameters of the epoch with the highest bound."""
        ...


def course(name: str, seed: int, images: Data, args: argparse.Namespace) -> Course:
    """Return a program at its start, or where its training was stopped."""
    program = built(name, seed, images, args)
    if isinstance(program, LogisticRegression):
        kind = SVI if args.engine == "eager" else CompiledSVI
        svi = kind(program.model, program.guide, Adam({"lr": args.lr}), Trace_ELBO())
        return Regression(program, svi, observed(program, images.train), seed, args.batch)
    return Fitted(program, lambda: training(program, name, seed, images, args))


def training(program: Any, name: str, seed: int, images: Data, args: argparse.Namespace) -> Training:
    """Return the training of a program: of discrete latents by the score function, of others by ``Trace_ELBO``."""
    return Training(
        program,
        images,
        ScoreFunction(5, "leave-one-out") if isinstance(program, SigmoidBeliefNetwork) else Trace_ELBO(),
        epochs=max(1, args.longest, *args.moments),
        batch_size=args.batch,
        lr=args.lr,
        seed=seed,
        engine=args.engine,
        progress=not args.quiet,
        checkpoints=Checkpoints(args.out / "trainings" / f"{name}-seed{seed}", resume=True),
    )


def converged(run: Course, patience: int, longest: int) -> tuple[int, bool]:
    """Train until the bound has not risen for ``patience`` epochs; return the best epoch, and whether it came to that.

    The program then has the parameters of that epoch. After ``longest`` epochs the training ends all the same.
    """
    while not (done := best(run.bounds) + patience <= len(run.bounds)) and len(run.bounds) < longest:
        run.to(len(run.bounds) + 1)
    run.keep_best()
    return best(run.bounds), done


def best(bounds: list[float]) -> int:
    """Return the epoch with the highest bound, the first one of equals; 0 before any.

    >>> best([-3.0, -1.0, -2.0, -1.0]), best([])
    (2, 0)
    """
    return 1 + bounds.index(max(bounds)) if bounds else 0


@dataclass
class Fitted:
    """A program that ``fit`` trains; its bound is the objective by which an epoch is kept, on validation images."""

    program: Any
    make: Callable[[], Training]
    training: Training | None = None

    @property
    def bounds(self) -> list[float]:
        """The bound after each epoch."""
        return [row["valid_objective"] for row in self.training.history.rows] if self.training else []

    def to(self, epochs: int) -> None:
        """Train up to so many epochs. Raises ValueError if the saved training is past them."""
        if epochs:
            self.training = self.training or self.make()
        if len(self.bounds) > epochs:
            raise ValueError(f"the saved training is past epoch {epochs}, at {len(self.bounds)}: wanted one that is "
                             "not; delete the folder trainings, or take another --out")  # fmt: skip
        if self.training and len(self.bounds) < epochs:
            for row in self.training:
                if row["epoch"] == epochs:
                    break
            if self.training.history.interrupted:
                raise KeyboardInterrupt

    def keep_best(self) -> None:
        """Give the program the parameters of the epoch with the highest bound."""
        if self.training:
            self.training.finish()


@dataclass
class Regression:
    """A regression that Pyro's own ``SVI`` trains: its weights are no latents of a row.

    Its bound is that of all training rows; more of them cannot be overfitted by an approximate posterior.
    """

    program: LogisticRegression
    svi: SVI
    rows: tuple[Tensor, ...]
    seed: int
    batch: int
    bounds: list[float] = field(default_factory=list)
    kept: dict[str, Tensor] = field(default_factory=dict)

    def to(self, epochs: int) -> None:
        """Train up to so many epochs."""
        while len(self.bounds) < epochs:
            with seeded(self.seed + len(self.bounds), self.rows[0].device):
                for rows in torch.randperm(len(self.rows[0])).split(self.batch):
                    self.svi.step(*(each[rows] for each in self.rows))
                elbo = Trace_ELBO(DRAWS)
                self.bounds.append(-elbo.loss(self.program.model, self.program.guide, *self.rows) / len(self.rows[0]))
            if best(self.bounds) == len(self.bounds):
                self.kept = {name: each.clone() for name, each in self.program.state_dict().items()}

    def keep_best(self) -> None:
        """Give the program the parameters of the epoch with the highest bound."""
        self.program.load_state_dict(self.kept)
