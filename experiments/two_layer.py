#!/usr/bin/env python
"""A change of structure: a VAE with two stochastic layers is another program, not another setting of the first.

    python experiments/two_layer.py
    python experiments/two_layer.py --latent 100 --top 50 --net mlp --hidden 200 200 --warm-up 10

The program is ``TwoLayers`` below. The same ``fit`` trains it and the same ``log_evidence`` scores it as the VAE with
one layer, which has the same networks between z1 and x, estimator, epochs and seed. The results, as JSON, are
the bound, L_K and the rate of each layer in nats per image.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Generator, Tensor, nn

from pyro_vae import VAE, UntrustedEvidence, analysis, guides, log_evidence, priors
from pyro_vae.checks import whole_number
from pyro_vae.config import build_encoder, build_likelihood
from pyro_vae.data import Data
from pyro_vae.random import mode, seeded
from pyro_vae.runs import (
    describe,
    estimate,
    exit_status,
    load_data,
    provenance,
    results_folder,
    trained,
    write_json,
)
from pyro_vae.runs.options import add_data_options, add_network_options, add_training_options, parsed
from pyro_vae.runs.parser import Parser
from pyro_vae.saved import METRICS
from pyro_vae.sites import parameter_sites
from pyro_vae.tracing.traces import image_plate, paired_traces, per_image
from pyro_vae.training import evaluate, fixed_x

LAYERS = {"one layer": ("z",), "two layers": ("z1", "z2")}
BATCH = 250  # images measured at once


class TwoLayers(nn.Module):
    """p(z2) p(z1 | z2) p(x | z1), with the guide q(z1 | x) q(z2 | z1) (Rezende et al. 2014; Burda et al. 2016).

    Each part is a module whose call returns a distribution: ``top()``, ``middle(z2)``, ``likelihood(z1)``,
    ``first(x)``, ``second(z1)``.
    """

    def __init__(self, top: nn.Module, middle: nn.Module, likelihood: nn.Module, first: nn.Module, second: nn.Module):
        super().__init__()
        self.top, self.middle, self.likelihood, self.first, self.second = top, middle, likelihood, first, second

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """Sample z2, z1 and x; x is observed if it is given."""
        for part in (self.top, self.middle, self.likelihood):
            parameter_sites(part)
        with pyro.plate("images", n if x is None else len(x)):
            z2 = pyro.sample("z2", self.top())
            z1 = pyro.sample("z1", self.middle(z2))
            return pyro.sample("x", self.likelihood(z1), obs=x)

    def guide(self, x: Tensor) -> Tensor:
        """Sample z1 and z2 given x."""
        for part in (self.first, self.second):
            parameter_sites(part)
        with pyro.plate("images", len(x)):
            z1 = pyro.sample("z1", self.first(x))
            return pyro.sample("z2", self.second(z1))

    def observe(self, pixels: Tensor, generator: Generator | None = None) -> Tensor:
        """Return x, as the likelihood scores it, from pixels."""
        return self.likelihood.observe(pixels, generator)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = Parser(description=__doc__)
    add_network_options(parser, latent=50)
    parser.set_defaults(net="mlp", lik="bernoulli", binarize="dynamic")
    parser.add_argument("--top", type=int, default=25, metavar="D", help="dimensions of z2; those of z1: --latent")
    parser.add_argument(
        "--between",
        type=int,
        default=200,
        metavar="UNITS",
        help="width of the two hidden layers between z1 and z2, in both directions",
    )
    group = add_training_options(parser, epochs=20, lr=3e-3)
    group.add_argument(
        "--warm-up", type=float, default=0.0, metavar="EPOCHS", help="epochs in which the KL weight grows from 0 to 1"
    )
    group.add_argument("--seed", type=int, default=0)
    group = parser.add_argument_group("measurement, on test images")
    group.add_argument("--particles", type=int, default=1000, metavar="K", help="particles of L_K")
    group.add_argument("--images", type=int, default=1000, help="test images for L_K; the bound is that of all")
    group = add_data_options(parser, None, "folder of the results (default: figures/<dataset>-two-layers-seed<seed>)")
    group.add_argument("--overwrite", action="store_true", help="replace the results of another run in --out")
    return parsed(parser, argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(lambda: parse_arguments(argv), run, "nothing is saved")


def run(args: argparse.Namespace) -> int:
    """Train and measure both programs and write the results."""
    images = load_data(args)
    if not 1 <= args.images <= len(images.test):
        raise ValueError(f"--images: wanted 1 to {len(images.test)} (the test images), got {args.images}")
    for name in ("latent", "top", "between"):
        whole_number(f"--{name}", getattr(args, name))
    out = args.out or Path("figures") / f"{images.name}-two-layers-seed{args.seed}"
    with results_folder(out, args.overwrite) as folder:
        programs = {}
        for name in LAYERS:
            programs[name] = train_and_measure(name, images, args)
            print(report(name, programs[name]), flush=True)
        write_json(
            folder / METRICS,
            {"settings": vars(args), "dataset": describe(images), "versions": provenance(), "programs": programs},
        )
    print(f"results in {out}")
    return 0


def train_and_measure(name: str, images: Data, args: argparse.Namespace) -> dict[str, Any]:
    """Return the numbers of one program."""
    torch.manual_seed(args.seed)
    program = build(name, images.shape, args).to(images.train.images.device)
    history = trained(program, images, args.seed, args)
    started = time.perf_counter()
    x = fixed_x(program, images.test.images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrustedEvidence)  # the results hold the share of these images
        evidence = log_evidence(program.model, program.guide, x[: args.images], args.particles, seed=args.seed)
    return {
        "test": evaluate(program, x, seed=args.seed).summary(),
        "evidence": evidence.to_dict(),
        "layers": layers(program, LAYERS[name], x[: args.images], args.seed),
        "parameters": sum(parameter.numel() for parameter in program.parameters()),
        "best_epoch": history.best_epoch,
        "engine": history.engine,
        "history": history.rows,
        "seconds": {"training": history.rows[-1]["seconds"], "measurement": time.perf_counter() - started},
    }


def build(name: str, shape: tuple[int, int, int], args: argparse.Namespace) -> nn.Module:
    """Return the program with one layer or two; at one seed both start from the same networks between z1 and x."""
    likelihood = build_likelihood(args, shape)
    first = guides.MeanField(build_encoder(args, shape), args.latent)
    if name == "one layer":
        return VAE(priors.StandardNormal(args.latent), likelihood, first)
    middle, second = normal(args.top, args.between, args.latent), normal(args.latent, args.between, args.top)
    return TwoLayers(priors.StandardNormal(args.top), middle, likelihood, first, second)


def normal(inputs: int, width: int, outputs: int) -> nn.Module:
    """Return N(loc(z), diag(scale(z)²)): ``MeanField`` on a network of z, instead of images."""
    network = nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
    return guides.MeanField(network, outputs, features=width)


@torch.no_grad()
def layers(program: nn.Module, sites: tuple[str, ...], x: Tensor, seed: int, draws: int = 256) -> dict[str, Any]:
    """Return for each layer its part of the rate, E_q[log q − log p] of its own site, and its active units."""
    rates: dict[str, list[Tensor]] = {site: [] for site in sites}
    codes: dict[str, list[Tensor]] = {site: [] for site in sites}
    with seeded(seed, x.device), mode(program, training=False):
        for batch in x.split(BATCH):
            model_trace, guide_trace = paired_traces(program.model, program.guide, (batch,), particles=2)
            plate = image_plate(model_trace, guide_trace)
            for site in sites:
                log_q, log_p = (per_image(trace.nodes[site], plate) for trace in (guide_trace, model_trace))
                rates[site].append((log_q - log_p).mean(0))
            with pyro.plate("draws", draws, dim=-2):
                trace = poutine.trace(program.guide).get_trace(batch)
            for site in sites:
                codes[site].append(trace.nodes[site]["value"].mean(0))
    return {
        site: {
            "rate": torch.cat(rates[site]).mean().item(),
            "active_units": int(analysis.active_units(torch.cat(codes[site])).sum()),
            "units": codes[site][0].shape[-1],
        }
        for site in sites
    }


def report(name: str, result: dict[str, Any]) -> str:
    """Return the numbers of one program as a few lines."""
    test, evidence, seconds = result["test"], result["evidence"], result["seconds"]["training"]
    share = evidence["share_pareto_k_above_0.7"]
    trust = "" if share is None else f", k̂ > 0.7 for {share:.1%} of them"
    layers = [
        f"  {site}: rate {layer['rate']:.2f}, {layer['active_units']} of {layer['units']} units active"
        for site, layer in result["layers"].items()
    ]
    return "\n".join(
        [
            f"{name}, {result['parameters']:,} parameters, {seconds:.0f} seconds of training",
            f"  test bound {estimate(test['bound'], test['standard_error'])} nats per image ({test['images']} images)",
            f"  L_{evidence['num_particles']} {estimate(evidence['log_px'], evidence['standard_error'])} "
            f"({evidence['images']} images{trust})",
            *layers,
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
