#!/usr/bin/env python
"""Sequences of unequal length: a deep Markov model, and what its log p(x) is worth.

    python experiments/sequences.py
    python experiments/sequences.py --quick

``balls``: the program is trained on simulated sequences of a bouncing ball. The log p(x) of the simulation itself,
known by quadrature, is the most that any model can reach on average. ``linear``: the same program with linear maps,
whose guide, a recurrent network, is trained; log p(x) by ``log_evidence`` is compared with that of a Kalman filter, for
each sequence, in standard errors. The programs are in ``markov/programs.py``, the ball in ``markov/balls.py``.

The results are JSON and two figures. Each part leaves a file in the folder, and the same command goes on where it was
stopped.
"""

import argparse
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro import poutine
from torch import Tensor, nn

from experiments.markov import balls
from experiments.markov.programs import BackwardGRU, BernoulliOf, DeepMarkov, Linear, NormalOf, steps
from pyro_vae import Checkpoints, UntrustedEvidence, evaluate, fit, log_evidence
from pyro_vae.data import Data, Split
from pyro_vae.evidence import Evidence
from pyro_vae.plots import image_rows
from pyro_vae.plots.style import COLOURS, DPI, GREY, TRAIN, VALID
from pyro_vae.random import mode, seeded
from pyro_vae.runs import beside, estimate, exit_status, make_folder, run_once, save_figure, single_runs, write_json
from pyro_vae.runs.options import home_path
from pyro_vae.runs.parser import Parser
from pyro_vae.training import fixed_x, warm_cosine

QUICK = {"rows": 100, "held_out": 20, "steps": 6, "latent": 2, "width": 8, "epochs": 2, "batch": 25, "particles": 50}
SETTINGS = ("rows", "held_out", "steps", "latent", "width", "epochs", "batch", "lr", "particles")
SHOWN = 8  # sequences in a row of the picture


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seed", type=int, default=0)
    group = parser.add_argument_group("sequences")
    group.add_argument("--rows", type=int, default=2000, help="training sequences")
    group.add_argument("--held-out", type=int, default=300, help="sequences of validation, and of test")
    group.add_argument("--steps", type=int, default=20, help="the longest; the shortest has half of them")
    group = parser.add_argument_group("program and training")
    group.add_argument("--latent", type=int, default=8, help="dimensions of z_t of the ball; the linear program has 2")
    group.add_argument("--width", type=int, default=64, help="of the hidden layers and of the recurrent network")
    group.add_argument("--epochs", type=int, default=100)
    group.add_argument("--batch", type=int, default=100)
    group.add_argument("--lr", type=float, default=5e-3, help="largest step of Adam")
    group.add_argument(
        "--engine", default="eager", help="what takes the steps; a graph of all steps is slow to compile"
    )
    group.add_argument("--particles", type=int, default=500, metavar="K", help="particles of log p(x)")
    group = parser.add_argument_group("results")
    group.add_argument(
        "--out", type=home_path, default=Path("figures/sequences"), help="JSON and figures have its name"
    )
    group.add_argument("--quiet", action="store_true", help="no progress bar")
    group.add_argument("--quick", action="store_true", help="few short sequences, two epochs: seconds")
    if parser.parse_args(argv).quick:
        parser.set_defaults(**QUICK, out=Path("figures/sequences-quick"))
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(lambda: parse_arguments(argv), run, "the same command goes on with what is in {out}")


def run(args: argparse.Namespace) -> None:
    """Do the parts that are not in the folder yet, and gather them."""
    make_folder(args.out)
    for name in args.parts:
        settings = {key: getattr(args, key) for key in SETTINGS}
        run_once(
            args.out / f"{name}-seed{args.seed}.json",
            name,
            {"part": name, "seed": args.seed, "settings": settings},
            partial(PARTS[name], args),
            summary,
        )
    print(gather(args.out, args.seed))


def of_balls(args: argparse.Namespace) -> dict[str, Any]:
    """Return the numbers of the deep Markov model of the ball; its picture is written beside them."""
    data = balls.balls(args.rows, args.held_out, args.steps, args.seed)
    torch.manual_seed(args.seed)
    program = DeepMarkov(
        torch.zeros(args.latent),
        NormalOf(args.latent, args.width, args.latent, residual=True),
        BernoulliOf(args.latent, args.width, balls.CELLS),
        BackwardGRU(balls.CELLS, args.width, args.latent),
    )
    history = trained("balls", program, data, args)
    known = balls.log_px(data.test)
    save_figure(args.out / f"balls-seed{args.seed}.png", picture(program, data.test, args.seed))
    return {
        **measured(program, data.test, known, args),
        "history": history.rows,
        "engine": history.engine,
        "known_of_validation": per_step(balls.log_px(data.valid), data.valid.lengths),
    }


def of_linear(args: argparse.Namespace) -> dict[str, Any]:
    """Return log p(x) of linear sequences with its standard errors, and that of a Kalman filter."""
    torch.manual_seed(args.seed)
    transition = Linear(torch.tensor([[0.9, 0.4], [-0.4, 0.9]]), torch.tensor([0.3, 0.3]))
    emission = Linear(torch.randn(4, 2), torch.full((4,), 0.5))
    program = DeepMarkov(torch.zeros(2), transition, emission, BackwardGRU(4, args.width, 2)).double()
    for part in (transition, emission):
        part.requires_grad_(False)  # only the guide is trained
    program.start.requires_grad_(False)
    counts = args.rows, args.held_out, args.held_out
    data = Data("linear", *(drawn(program, count, args.steps, args.seed + i) for i, count in enumerate(counts)))
    trained("linear", program, data, args)
    return measured(program, data.test, kalman(program, data.test), args)


@torch.no_grad()
def drawn(program: Any, rows: int, steps: int, seed: int) -> Split:
    """Return sequences drawn from the model, and lengths from steps / 2 to steps."""
    with seeded(seed, torch.device("cpu")):
        lengths = torch.randint((steps + 1) // 2, steps + 1, (rows,))
        x = torch.zeros(rows, steps, len(program.emission.weight), dtype=program.start.dtype)
        return Split(sequences=program.model(x, lengths, forecast=True), lengths=lengths)


@torch.no_grad()
def kalman(program: Any, split: Split) -> Tensor:
    """Return log p(x) of each sequence of a linear program (N,), by Pyro's Kalman filter."""
    transition, emission, mean, means = program.transition, program.emission, program.start, []
    for _ in range(split.sequences.shape[1]):
        mean = transition.weight @ mean
        means.append(emission.weight @ mean)
    centred = split.sequences - torch.stack(means)
    known = dist.Normal(torch.zeros_like(mean), 1e-7).to_event(1)  # z_0 − E z_0 is zero; Pyro wants a density
    states, noise = (dist.Normal(torch.zeros_like(s), s).to_event(1) for s in (transition.scale, emission.scale))
    matrices = transition.weight.T, states, emission.weight.T, noise
    return torch.stack(
        [
            dist.GaussianHMM(known, *matrices, duration=n).log_prob(x[:n])
            for x, n in zip(centred, split.lengths.tolist())
        ]
    )


def trained(name: str, program: nn.Module, data: Data, args: argparse.Namespace) -> Any:
    """Train a program and return its history."""
    history = fit(
        program,
        data,
        epochs=args.epochs,
        batch_size=args.batch,
        lr=args.lr,
        schedule=warm_cosine,
        clip=100.0 * args.batch,
        seed=args.seed,
        engine=args.engine,
        checkpoints=Checkpoints(args.out / f"{name}-seed{args.seed}", resume=True),
        progress=not args.quiet,
    )
    if history.interrupted:
        raise KeyboardInterrupt
    return history


def measured(program: Any, split: Split, known: Tensor, args: argparse.Namespace) -> dict[str, Any]:
    """Return bound and log p(x) of the sequences beside the known log p(x), in nats a sequence and a step."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrustedEvidence)  # the results hold the share of these sequences
        evidence = log_evidence(program, split, args.particles, seed=args.seed, progress=not args.quiet)
    bound = evaluate(program, split, particles=10, seed=args.seed)
    columns = {"bound": bound.bound, "log_px": evidence.log_px, "known": known}
    return {
        "test": bound.summary(),
        "evidence": evidence.to_dict(),
        "per_step": {name: per_step(values, split.lengths) for name, values in columns.items()},
        "errors": errors(evidence, known),
    }


def per_step(values: Tensor, lengths: Tensor) -> dict[str, float]:
    """Return Σ values / Σ lengths in nats a step, and its standard error over the sequences."""
    mean = values.sum() / lengths.sum()
    error = (values - mean * lengths).std() / lengths.double().mean() / len(values) ** 0.5
    return {"value": mean.item(), "standard_error": error.item()}


def errors(evidence: Evidence, known: Tensor) -> dict[str, Any]:
    """Return log p̂(x) − log p(x) of each sequence in standard errors; log p̂ is low by half their square on average."""
    z = (evidence.log_px - known + evidence.standard_error.square() / 2) / evidence.standard_error
    return {
        "in_standard_errors": z.tolist(),
        "mean_times_root_n": (z.mean() * len(z) ** 0.5).item(),
        "sd": z.std().item(),
        "median_standard_error": evidence.standard_error.median().item(),
    }


@torch.no_grad()
def picture(program: Any, split: Split, seed: int) -> Figure:
    """Return a figure of sequences, the means of their cells given all steps or the first quarter, and samples.

    Time goes down. Grey: steps that a sequence does not have.
    """
    x, lengths = fixed_x(program, split[:SHOWN])
    start = x.shape[1] // 4

    def drawn(lengths: Tensor, steps: int) -> dict[str, Tensor]:
        """Return the guide's draws of the first steps."""
        trace = poutine.trace(program.guide).get_trace(x, lengths)
        return {f"z_{t + 1}": trace.nodes[f"z_{t + 1}"]["value"] for t in range(steps)}

    def mean(states: dict[str, Tensor]) -> Tensor:
        """Return the mean of x given these states, the others being drawn from the model."""
        model = poutine.condition(program.model, data=states)
        return poutine.trace(model).get_trace(x, lengths, forecast=True).nodes["x"]["fn"].mean

    with seeded(seed, x.device), mode(program, training=False):
        given_all, forecast = mean(drawn(lengths, x.shape[1])), mean(drawn(lengths.clamp(max=start), start))
        sample = mean({})
    rows = {"sequence": x, "given all": given_all, f"forecast after {start}": forecast, "sample": sample}
    seen = steps(x, lengths).unsqueeze(-1)
    return image_rows({name: torch.where(seen, v, 0.5).unsqueeze(1) for name, v in rows.items()}, SHOWN)


def summary(result: dict[str, Any]) -> str:
    """Return the numbers of one part as a line."""
    parts = {name: estimate(entry["value"], entry["standard_error"], 3) for name, entry in result["per_step"].items()}
    found = result["errors"]
    text = f"nats a step: bound {parts['bound']}, log p(x) {parts['log_px']}, known {parts['known']}"
    if result["part"] == "balls":
        return text
    return (
        f"{text}; log p̂(x) − log p(x) in standard errors: mean × √n {found['mean_times_root_n']:.2f}, "
        f"sd {found['sd']:.2f}, median standard error {found['median_standard_error']:.4f} nats"
    )


def gather(out: Path, seed: int) -> str:
    """Write the parts of a seed as one JSON file, draw them, and return the table."""
    parts = {run["part"]: run for run in single_runs(out).values() if run["seed"] == seed}
    write_json(beside(out, ".json"), {"parts": parts})
    save_figure(beside(out, ".png"), figure(parts))
    return "\n".join(f"{name}: {summary(run)}" for name, run in parts.items())


def figure(parts: dict[str, Any]) -> Figure:
    """Return a figure of the ball's learning curve and of the errors of log p(x) of the linear program."""
    canvas = Figure(figsize=(4.6 * len(parts), 3.4), dpi=DPI, layout="constrained")
    for axes, (name, part) in zip(canvas.subplots(1, len(parts), squeeze=False)[0], sorted(parts.items())):
        (_curve if name == "balls" else _histogram)(axes, part)
        axes.grid(alpha=0.3)
    return canvas


def _curve(axes: Any, part: dict[str, Any]) -> None:
    rows, length = part["history"], part["test"]["bound"] / part["per_step"]["bound"]["value"]
    for split, colour in (("train", TRAIN), ("valid", VALID)):
        values = [row[f"{split}_bound"] / length for row in rows]
        axes.plot([row["epoch"] for row in rows], values, color=colour, label=f"bound, {split}")
    axes.axhline(part["per_step"]["log_px"]["value"], color=COLOURS[4], linestyle="--", label="log p(x), test")
    axes.axhline(part["per_step"]["known"]["value"], color=GREY, linestyle=":", label="the simulation itself, test")
    axes.set(title="ball", xlabel="epoch", ylabel="nats a step")
    axes.legend(frameon=False, fontsize="small")


def _histogram(axes: Any, part: dict[str, Any]) -> None:
    z = torch.linspace(-4, 4, 200)
    axes.hist(part["errors"]["in_standard_errors"], bins=40, range=(-4, 4), density=True, color=TRAIN)
    axes.plot(z, dist.Normal(0.0, 1.0).log_prob(z).exp(), color=VALID, label="N(0, 1)")
    axes.set(title="linear", xlabel="log p̂(x) − log p(x), in standard errors", ylabel="density")
    axes.legend(frameon=False, fontsize="small")


PARTS = {"balls": of_balls, "linear": of_linear}

if __name__ == "__main__":
    sys.exit(main())
