"""How fast evaluation, log p(x), annealing and the comparison of estimators are."""

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

from pyro.infer import Trace_ELBO
from torch import Tensor

from experiments.benchmarks.rows import Row, row
from experiments.benchmarks.ways import NAMES, build, in_turns
from pyro_vae import VAE, annealed_evidence, compare_estimators, evaluate, log_evidence
from pyro_vae.data import Data
from pyro_vae.estimators import StickingTheLanding
from pyro_vae.training import fixed_x

OPTIONS = ("nets", "rounds")
IMAGES = {"evaluate": 2000, "few": 200, "many": 1000, "annealed": 50, "compared": 100}
PARTICLES = {"few": 100, "many": 500}
TEMPERATURES, CHAINS, LEAPFROG = 20, 4, 5
DRAWS = 50
MANY_DRAWS = 100  # of which recording the gradient is a part


def rows(images: Data, args: argparse.Namespace) -> list[Row]:
    """Return what each does in a second, for each net."""
    return [row for net in args.nets for row in rates(images, net, args.rounds)]


def rates(images: Data, net: str, rounds: int) -> list[Row]:
    """Return the rates of one net, in turns."""
    vae = build(net)
    x = fixed_x(vae, images.test[: max(IMAGES.values())])
    work = works(vae, x[0] if isinstance(x, tuple) else x)
    seconds = in_turns({name: timed(do) for name, (_, _, do) in work.items()}, rounds, f"{net}, measuring")
    return [
        row(f"{NAMES[net]}: {name}", [amount / second for second in seconds[name]], unit)
        for name, (amount, unit, _) in work.items()
    ]


def works(vae: VAE, x: Tensor) -> dict[str, tuple[float, str, Callable[[], Any]]]:
    """Return each measurement by name: how much it does, of what a second, and the call."""
    few, many, annealed, compared = (x[: IMAGES[name]] for name in ("few", "many", "annealed", "compared"))
    estimators = {"L^A": Trace_ELBO(), "sticking the landing": StickingTheLanding()}
    return {
        "evaluate": (len(x[: IMAGES["evaluate"]]), "images/s", lambda: evaluate(vae, x[: IMAGES["evaluate"]])),
        "log_evidence, eager": (
            len(few) * PARTICLES["few"],
            "z/s",
            lambda: log_evidence(vae, few, PARTICLES["few"], engine="eager", progress=False),
        ),
        "log_evidence, compiling included": (
            len(many) * PARTICLES["many"],
            "z/s",
            lambda: log_evidence(vae, many, PARTICLES["many"], progress=False),
        ),
        "annealed_evidence, eager": (
            len(annealed) * CHAINS * TEMPERATURES * LEAPFROG,
            "leapfrog steps/s",
            lambda: annealed_evidence(
                vae,
                annealed,
                num_temperatures=TEMPERATURES,
                chains=CHAINS,
                leapfrog=LEAPFROG,
                engine="eager",
                progress=False,
            ),
        ),
        "compare_estimators": (
            len(estimators) * DRAWS,
            "draws/s",
            lambda: compare_estimators(vae, compared, estimators=estimators, draws=DRAWS, progress=False),
        ),
        "compare_estimators, vectorised, recording included": (
            len(estimators) * MANY_DRAWS,
            "draws/s",
            lambda: compare_estimators(
                vae, compared, estimators=estimators, draws=MANY_DRAWS, engine="vectorized", progress=False
            ),
        ),
    }


def timed(do: Callable[[], Any]) -> Callable[[], float]:
    """Return a function to the seconds of a call, whose warnings, of a VAE that is not trained, are of no interest."""

    def run() -> float:
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            do()
        return time.perf_counter() - start

    return run
