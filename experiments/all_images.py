#!/usr/bin/env python
"""What is log p(x) of all test images, in which time, and how far is it from long annealing?

    pyro-vae train --recipe fast --dataset mnist --out figures/fast
    python experiments/all_images.py --run figures/fast --out figures/all_images.json

All images are measured by local proposals, which are fitted to the posterior of each image. The first of them are
measured by annealing as well, with many temperatures, and the differences are averaged. The measurement of all images
is saved beside --out while it runs; the same command continues it.
"""

import argparse
import math
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from pyro_vae.checks import whole_number
from pyro_vae.evidence import Evidence, LocalProposal, UntrustedEvidence, annealed_evidence, log_evidence
from pyro_vae.observation import fixed_arguments
from pyro_vae.runs import over_images, write_json
from pyro_vae.runs.bounds import load_run
from pyro_vae.runs.commands import choose_device, exit_status
from pyro_vae.runs.options import DATA_DIR, DEVICE, SEED, add_options, add_quick, home_path
from pyro_vae.runs.origins import provenance
from pyro_vae.runs.parser import Parser

QUICK = {"images": 200, "annealed": 4, "temperatures": 100}


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=home_path, required=True, metavar="FOLDER", help="of a trained model")
    parser.add_argument("--out", type=home_path, required=True, metavar="FILE", help="of the numbers, as JSON")
    parser.add_argument("--images", type=int, default=None, metavar="N", help="from the first on (default: all)")
    parser.add_argument("--particles", type=int, default=500, metavar="K", help="weights of an image")
    parser.add_argument("--annealed", type=int, default=200, metavar="N", help="images that are annealed, too; 0: none")
    parser.add_argument("--temperatures", type=int, default=1000, metavar="T", help="of annealing")
    parser.add_argument("--chains", type=int, default=16, metavar="N", help="of an image")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_options(parser, [SEED, DEVICE, DATA_DIR])
    add_quick(parser, argv, QUICK, "few images and temperatures")
    args = parser.parse_args(argv)
    for name in ("particles", "temperatures", "chains"):
        whole_number(f"--{name}", getattr(args, name))
    return args


def timed(measure: Callable[..., Evidence], *args: Any, **options: Any) -> tuple[Evidence, dict[str, Any]]:
    """Return the evidence, and its summary with the seconds of the clock and of all processors."""
    clock, processors = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrustedEvidence)  # the summary has their share
        evidence = measure(*args, **options)
    seconds = {"seconds": time.perf_counter() - clock, "processor_seconds": time.process_time() - processors}
    return evidence, {**evidence.to_dict(), **seconds, "threads": torch.get_num_threads()}


def run(args: argparse.Namespace) -> int:
    """Measure, print and save."""
    program, rows, trained = load_run(args.run, choose_device(args.device), args.data_dir)
    x, saved = fixed_arguments(program, rows[: args.images]), args.out.with_suffix(".pt")
    common = {"seed": args.seed, "progress": not args.quiet}
    results: dict[str, Any] = {"settings": vars(args), "trained": trained, "versions": provenance()}
    results["resumed"] = saved.exists()  # the seconds are then those of the last part
    local, results["local"] = timed(
        log_evidence, program, x, args.particles, proposal=LocalProposal(), checkpoint=saved, **common
    )
    show("local proposals", results["local"])
    write_json(args.out, results)
    if args.annealed:
        first = tuple(part[: args.annealed] for part in x)
        setting = {"num_temperatures": args.temperatures, "chains": args.chains}
        annealed, results["annealed"] = timed(annealed_evidence, program, first, **setting, **common)
        show("annealing", results["annealed"])
        found = results["difference"] = over_images(local.log_px[: len(annealed.log_px)] - annealed.log_px)
        error = math.nan if found["standard_error"] is None else found["standard_error"]
        print(f"local - annealed, nats per image: {found['mean']:+.4f} ± {error:.4f}")
        write_json(args.out, results)
    return 0


def show(name: str, row: dict[str, Any]) -> None:
    """Print a summary on a line."""
    print(
        f"{name}: log p(x) ≥ {row['log_px']:.3f} ± {row['standard_error'] or 0:.3f} nats per image, Monte Carlo error "
        f"{row['monte_carlo_error']:.4f}, n = {row['images']}, k̂ > 0.7 for {row['share_pareto_k_above_0.7'] or 0:.2%}, "
        f"{row['seconds']:.0f} seconds, {row['processor_seconds']:.0f} of processors",
        flush=True,
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(lambda: parse_arguments(argv), run, "what was measured is kept beside {out}")


if __name__ == "__main__":
    sys.exit(main())
