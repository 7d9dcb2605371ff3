"""The runs: one algorithm in one panel of the paper, from the choice of its step to its numbers."""

import argparse
import math
import time
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor

from experiments.aevb import algorithms
from experiments.aevb.marginal import marginal_likelihood
from pyro_vae import VAE, annealed_evidence, load
from pyro_vae.config import BINARIZE, build_estimator
from pyro_vae.data import Data
from pyro_vae.random import seeded
from pyro_vae.runs import provenance, write_json
from pyro_vae.training import NonFiniteLoss, evaluate, fixed_x
from pyro_vae.training.engines import fast_matmul

STEPS = (0.01, 0.02, 0.1)  # of Adagrad, from which the paper chooses
AEVB, WAKE_SLEEP, MCEM = "aevb", "wake-sleep", "mcem"
LITERAL = "literal"
TRAIN_IMAGES = 10_000  # the first training images, on which the training bound is measured
EVIDENCE_IMAGES = 1000  # of either split for the marginal likelihood, as in the paper
ANNEALED_IMAGES = 50  # of the test set, on which annealing checks the last marginal likelihood
ANNEALING = {"num_temperatures": 200, "chains": 8, "leapfrog": 5}
TURNS = 5  # of Monte Carlo EM that try a step, if those are more


@dataclass(frozen=True)
class Panel:
    """What a panel of the paper shows: data set, D, hidden units, and the number of training images (None: all)."""

    dataset: str
    latent: int
    hidden: int
    algorithms: tuple[str, ...] = (AEVB, WAKE_SLEEP)
    images: int | None = None
    evidence: bool = False


LIKELIHOOD = Panel("mnist", 3, 100, (AEVB, WAKE_SLEEP, MCEM), evidence=True)
PANELS = {
    **{f"mnist-{latent}": Panel("mnist", latent, 500) for latent in (3, 5, 10, 20, 200)},
    **{f"frey-{latent}": Panel("frey", latent, 200) for latent in (2, 5, 10, 20)},
    "likelihood-1000": replace(LIKELIHOOD, images=1000),
    "likelihood-50000": replace(LIKELIHOOD, images=50_000),
    "mnist-2": Panel("mnist", 2, 500, (AEVB,)),
}


@dataclass(frozen=True)
class PanelRun:
    """One algorithm in one panel, with the settings that its numbers depend on."""

    panel: str
    algorithm: str
    samples: int
    seed: int
    estimator: str
    binarize: str
    choice: int
    draws: int
    digits: bool = False

    @property
    def name(self) -> str:
        """The name of the run's files."""
        return "-".join([self.panel, self.algorithm, *([self.binarize] if self.binarize != "dynamic" else [])])

    @property
    def dataset(self) -> str:
        """The data set that the run is trained on."""
        return "digits" if self.digits else PANELS[self.panel].dataset


def finish(run: PanelRun, args: argparse.Namespace) -> str:
    """Do a run from its start to its files; return its line."""
    started = time.perf_counter()
    panel, images = PANELS[run.panel], images_of(run, args.data_dir)
    with fast_matmul("cpu"):
        choice = choose_step(run, images, args.engine)
        step = max(choice, key=lambda entry: -math.inf if entry["train"] is None else entry["train"])["step"]
        points, vae = train(run, images, step, run.samples, points_of(run), measurement(run), args.engine)
    result = {
        "settings": vars(run),
        "panel": vars(panel),
        "step": step,
        "choice_of_step": choice,
        "points": points,
        "engine": args.engine,
        "shape": images.shape,
        "train_images": len(images.train),
        "versions": provenance(),
        "seconds": time.perf_counter() - started,
    }
    torch.save(vae.state_dict(), args.out / f"{run.name}.pt")
    write_json(args.out / f"{run.name}.json", result)
    last = ", ".join(f"{split} {points[-1][split]:.1f}" for split in ("train", "test"))
    return f"{last} nats per image, step {step}"


def images_of(run: PanelRun, data_dir: Path | None) -> Data:
    """Return the data of a run, with the training images of its panel."""
    images = load(run.dataset, root=data_dir)
    return replace(images, train=images.train[: PANELS[run.panel].images])


def build(run: PanelRun, images: Data) -> VAE:
    """Return the untrained program of a run."""
    panel = PANELS[run.panel]
    binarize = BINARIZE[run.binarize]
    return algorithms.program(images.shape, panel.latent, panel.hidden, panel.dataset == "frey", binarize, run.seed)


def choose_step(run: PanelRun, images: Data, engine: str) -> list[dict[str, Any]]:
    """Return the training bound after a short run with each step, in nats per image; None if it diverged.

    For Monte Carlo EM, which has no bound, it is the marginal likelihood of a few training images, after a few turns.
    """
    samples = run.choice
    if run.algorithm == MCEM:
        samples = max(samples, TURNS * (algorithms.LEAPFROG + algorithms.UPDATES) * len(images.train))

    def measure(vae: VAE, images: Data, seen: int) -> dict[str, float]:
        if run.algorithm == MCEM:
            return {"train": marginal_likelihood(vae, fixed_x(vae, images.train.images[:100]), run.draws).mean}
        return {"train": evaluate(vae, fixed_x(vae, images.train.images[:1000])).summary()["bound"]}

    rows = []
    for step in STEPS:
        try:
            points, _ = train(run, images, step, samples, [samples], measure, engine)
            rows.append({"step": step, "samples": samples, "train": points[-1]["train"]})
        except (NonFiniteLoss, FloatingPointError):
            rows.append({"step": step, "samples": samples, "train": None})
    return rows


def train(
    run: PanelRun,
    images: Data,
    step: float,
    samples: int,
    at: list[int],
    measure: Callable[[VAE, Data, int], dict],
    engine: str = "auto",
) -> tuple[list[dict[str, Any]], VAE]:
    """Train a program; return what was measured at the points, and the program at the last of them.

    Raises KeyboardInterrupt on Ctrl-C.
    """
    vae, points, due, state = build(run, images), [], sorted(at), {}

    def after(seen: int) -> None:
        if due and seen >= due[0]:
            points.append({"samples": seen, **measure(vae, images, seen)})
            due[:] = [point for point in due if point > seen]
            state.update(deepcopy(vae.state_dict()) if not due else {})

    if run.algorithm == MCEM or (run.algorithm == AEVB and engine == LITERAL):
        with seeded(run.seed):
            for seen in by_hand(run, vae, images, step, samples):
                after(seen)
                if not due:
                    break
    else:
        options = {"step": step, "samples": samples, "after": after, "seed": run.seed, "engine": engine}
        history = algorithms.trained(vae, images, estimator(run), **options)
        if history.interrupted:
            raise KeyboardInterrupt
        points[-1]["engine"] = history.engine
    vae.load_state_dict(state)
    return points, vae


def by_hand(run: PanelRun, vae: VAE, images: Data, step: float, samples: int) -> Iterator[int]:
    """Return the algorithm, written out, which yields the number of samples seen after each update."""
    if run.algorithm == MCEM:
        return algorithms.mcem(vae, images.train, step)
    bound = {"trace": algorithms.bound_a, "meanfield": algorithms.bound_b}[run.estimator]
    epochs = math.ceil(samples / len(images.train))
    return algorithms.aevb(vae, images.train.images, bound, algorithms.adagrad(step), epochs)


def estimator(run: PanelRun) -> ELBO:
    """Return the estimator of a run."""
    word = WAKE_SLEEP if run.algorithm == WAKE_SLEEP else run.estimator
    return build_estimator(argparse.Namespace(estimator=word), particles=1)


def points_of(run: PanelRun) -> list[int]:
    """Return the numbers of samples at which a run is measured: for bounds the paper's grid, eight in each decade."""
    if PANELS[run.panel].evidence:
        coarse = sorted({lead * 10**power for power in range(3, 9) for lead in (1, 2, 5)} | {40_000_000, 60_000_000})
        return [n for n in coarse if run.samples / 20 <= n < run.samples] + [run.samples]
    grid = [round(10 ** (k / 8)) for k in range(24, 80)]
    return [n for n in grid if min(run.samples / 32, 10**5.5) <= n < run.samples] + [run.samples]


def measurement(run: PanelRun) -> Callable[[VAE, Data, int], dict[str, Any]]:
    """Return the function that measures a point: log p(x) in figure 3, else the bound; nats per image, both splits."""
    panel = PANELS[run.panel]

    def measure(vae: VAE, images: Data, seen: int) -> dict[str, Any]:
        first = EVIDENCE_IMAGES if panel.evidence else TRAIN_IMAGES
        pixels = {"train": images.train.images[:first], "test": images.test.images[: first if panel.evidence else None]}
        numbers: dict[str, Any] = {}
        for split, part in pixels.items():
            x = fixed_x(vae, part)
            if panel.evidence:
                details = marginal_likelihood(vae, x, run.draws * (2 if seen >= run.samples else 1), run.seed)
                numbers |= {split: details.mean, f"{split}_details": details.to_dict()}
            else:
                details = evaluate(vae, x).summary()
                numbers |= {split: details["bound"], f"{split}_details": details}
        if panel.evidence and seen >= run.samples:
            numbers["check"] = {
                "marginal": details.log_px[:ANNEALED_IMAGES].mean().item(),
                "annealed": annealed(vae, x[:ANNEALED_IMAGES], run.seed),
            }
        return numbers

    return measure


def annealed(vae: VAE, x: Tensor, seed: int) -> dict[str, Any]:
    """Return log p(x) by annealing from the prior, another estimate of what ``marginal_likelihood`` estimates."""
    with warnings.catch_warnings():
        # The row holds the acceptance, and the share of the images that these warnings are about.
        warnings.filterwarnings("ignore", message="Pareto k̂|Hamiltonian Monte Carlo accepted nothing")
        return annealed_evidence(vae.model, None, x, **ANNEALING, seed=seed).to_dict()
