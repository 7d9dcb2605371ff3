#!/usr/bin/env python
"""Do the 95 % intervals of log p(x) hold it for 95 % of the images? Against programs whose log p(x) is known.

    python experiments/calibration.py
    python experiments/calibration.py --quick

Each seed draws another program and other images of it. Printed and saved for each program and method, over all seeds:
the share of the images that are trusted; of these, and of all images, the share whose ``interval`` holds the truth, and
z = (log p̂ − log p) / standard error, with its mean, standard deviation, and the p-value of a Kolmogorov-Smirnov test
against N(0, 1).
"""

import argparse
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import stats
from torch import Tensor

from pyro_vae.checks import whole_number
from pyro_vae.evidence import Evidence, LocalProposal, UntrustedEvidence, annealed_evidence, log_evidence
from pyro_vae.linear_gaussian import LinearGaussian, mean_field_guide
from pyro_vae.runs import write_json
from pyro_vae.runs.commands import exit_status
from pyro_vae.runs.options import add_quick, home_path
from pyro_vae.runs.origins import provenance
from pyro_vae.runs.parser import Parser

QUICK = {"seeds": [0, 1], "images": 50}
SETTING: dict[str, Any] = {"chunk": 20_000, "engine": "eager", "progress": False}
NODES = 60  # of Gauss-Hermite quadrature


class Known(NamedTuple):
    """A program, the arguments of its rows, and their log p(x)."""

    model: Callable
    guide: Callable
    args: tuple[Tensor, ...]
    log_px: Tensor


def linear_gaussian(narrower: float, images: int) -> Known:
    """Draw x | z ~ N(W z, 0.7² I), z ~ N(0, I), with a factorised guide that is moved, and too narrow by a factor."""
    program = LinearGaussian(torch.randn(6, 2, dtype=torch.float64), scale=0.7)
    guide = mean_field_guide(program)
    with torch.no_grad():
        guide.loc_bias += 0.1
        guide.log_scale += np.log(narrower)
    program.posterior = guide
    x = program.simulate(images)
    return Known(program.model, program.guide, (x,), program.log_px(x).detach())


def logistic(narrower: float, images: int) -> Known:
    """Five answers x of each row, of log odds z_0 + z_1 features, z ~ N(0, I), by quadrature."""
    features = 2 * torch.randn(images, 5, dtype=torch.float64)
    z = torch.randn(images, 2, dtype=torch.float64)
    x = torch.bernoulli((z[:, :1] + z[:, 1:] * features).sigmoid())

    def model(x: Tensor, features: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            odds = z[..., :1] + z[..., 1:] * features
            pyro.sample("x", dist.Bernoulli(logits=odds).to_event(1), obs=x)

    def guide(x: Tensor, features: Tensor) -> None:
        loc = 0.3 * torch.stack([(x - 0.5).sum(-1), ((x - 0.5) * features).sum(-1) / 2], -1)
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(loc, narrower * 0.75).to_event(1))

    nodes, weights = (torch.from_dlpack(a) for a in np.polynomial.hermite_e.hermegauss(NODES))
    weights = (weights / weights.sum()).log()
    slopes = nodes[:, None, None] * features
    likelihoods = [dist.Bernoulli(logits=node + slopes).log_prob(x).sum(-1) for node in nodes]
    log_px = (torch.stack(likelihoods) + weights[:, None, None] + weights[:, None]).logsumexp((0, 1))
    return Known(model, guide, (x, features), log_px)


PROGRAMS: dict[str, tuple[Callable[..., Known], float]] = {
    "linear, guide 0.9 as wide": (linear_gaussian, 0.9),
    "linear, guide 0.6 as wide": (linear_gaussian, 0.6),
    "linear, guide 0.45 as wide": (linear_gaussian, 0.45),
    "logistic": (logistic, 1.0),
    "logistic, guide 0.6 as wide": (logistic, 0.6),
}


def by_budget(known: Known, seed: int, **options: Any) -> Evidence:
    """Measure by a target of 0.05 nats."""
    return log_evidence(known.model, known.guide, known.args, target=0.05, seed=seed, **options, **SETTING)


def by_draws(known: Known, seed: int, **options: Any) -> Evidence:
    """Measure by 1,000 draws."""
    return log_evidence(known.model, known.guide, known.args, 1000, seed=seed, **options, **SETTING)


def by_chains(known: Known, seed: int, from_prior: bool = False, **options: Any) -> Evidence:
    """Measure by annealed chains."""
    guide = None if from_prior else known.guide
    return annealed_evidence(known.model, guide, known.args, num_temperatures=100, seed=seed, **options, **SETTING)


METHODS: dict[str, tuple[Callable[..., Evidence], dict[str, Any]]] = {
    "budget": (by_budget, {}),
    "importance": (by_draws, {}),
    "local": (by_draws, {"proposal": LocalProposal()}),
    "annealed": (by_chains, {}),
    "annealed-64": (by_chains, {"chains": 64}),
    "annealed from the prior": (by_chains, {"from_prior": True, "chains": 64}),
    "resampled from the prior": (by_chains, {"from_prior": True, "chains": 64, "resample": True}),
}


def row(program: str, method: str, seeds: list[int], images: int) -> dict[str, Any]:
    """Measure a program by a method on all seeds, and return what its intervals were worth."""
    (make, narrower), (function, options) = PROGRAMS[program], METHODS[method]
    started, scores, verdicts, errors, held, settled = time.perf_counter(), [], [], [], [], Counter()
    for seed in seeds:
        torch.manual_seed(seed)
        known = make(narrower, images)
        evidence = function(known, seed, **options)
        errors.append(evidence.log_px - known.log_px)
        scores.append(errors[-1] / evidence.standard_error)
        held.append((evidence.interval - known.log_px.unsqueeze(-1)).sign().sum(-1) == 0)
        verdicts.append(evidence.trusted)
        settled.update(getattr(evidence, "method", ()))
    z, trusted, inside = (torch.cat(parts).numpy() for parts in (scores, verdicts, held))
    return {
        "program": program, "method": method, "seeds": seeds, "images": images, "settled_by": dict(settled),
        "rms_error": torch.cat(errors).square().mean().sqrt().item(), "trusted": trusted.mean().item(),
        "of_trusted": calibration(z[trusted], inside[trusted]), "of_all": calibration(z, inside),
        "seconds": time.perf_counter() - started,
    }  # fmt: skip


def calibration(z: np.ndarray, inside: np.ndarray) -> dict[str, float] | None:
    """Return the share of intervals that hold, mean and deviation of z, and p of a Kolmogorov-Smirnov test."""
    if len(z) < 2:
        return None
    p = stats.kstest(z, "norm").pvalue
    return {"holds": float(inside.mean()), "mean": float(z.mean()), "sd": float(z.std()), "p": float(p)}


def line(found: dict[str, Any]) -> str:
    """Return a row as text."""
    of_trusted, of_all = (
        "-" if of is None else "{holds:.1%}, z {mean:+.3f} ± {sd:.3f}, p {p:.2g}".format(**of)
        for of in (found["of_trusted"], found["of_all"])
    )
    return (
        f"{found['program']:28} {found['method']:25} trusted {found['trusted']:6.1%} holds {of_trusted:38} of all "
        f"{of_all:38} {found['seconds']:.0f} s {found['settled_by'] or ''}"
    )


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=list(range(10)), metavar="N", help="of programs and data"
    )
    parser.add_argument("--images", type=int, default=1000, metavar="N", help="for each seed")
    parser.add_argument("--programs", nargs="+", default=[*PROGRAMS], choices=[*PROGRAMS], metavar="NAME", help="which")
    parser.add_argument("--methods", nargs="+", default=[*METHODS], choices=[*METHODS], metavar="NAME", help="which")
    parser.add_argument("--out", type=home_path, default=Path("figures/calibration.json"), metavar="FILE", help="JSON")
    add_quick(parser, argv, QUICK, "few seeds and images: a first look")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(lambda: parse_arguments(argv), run, "the rows so far are in {out}")


def run(args: argparse.Namespace) -> None:
    """Measure all programs by all methods, and write what there is after each."""
    whole_number("images", args.images)
    warnings.simplefilter("ignore", UntrustedEvidence)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for program in args.programs:
        for method in args.methods:
            rows.append(row(program, method, args.seeds, args.images))
            print(line(rows[-1]), flush=True)
            write_json(args.out, {"settings": vars(args), "versions": provenance(), "rows": rows})


if __name__ == "__main__":
    sys.exit(main())
