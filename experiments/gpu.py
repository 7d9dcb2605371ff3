#!/usr/bin/env python
"""Everything that is to be known of a GPU, by one command: does all work on it, and how fast?

    python experiments/gpu.py --minutes 8 --out results
    python experiments/gpu.py --device cpu --minutes 1 --out trial    # the same on a CPU, each step small

Most important first, each step in a process of its own and within its share of the time; a step that fails or runs out
of time does not stop the next. ``results.json`` in --out is written after each step; a step that is done is not
repeated there, one that was cut off goes on.

    tests      the tests marked ``gpu``
    speed      images a second of a training step: SVI, eager, compiled, torch by hand, CUDA graphs, numpyro
    quality    log p(x) of all test images after longer and longer runs of run.py --recipe fast
    evidence   the seconds of L_5000 of all test images, and of annealing for some
    iwae       log p(x) after short trainings with k = 1, 5 and 50 (Burda et al. 2016, table 1)

It needs torch and what this package imports. A machine without network gets what it lacks as wheels in a folder, which
``--wheels FOLDER`` installs into --work, and which this makes on a machine with network:

    python -m pip download --no-deps --only-binary=:all: --dest wheels pyro-ppl pyro-api

MNIST is taken from $PYRO_VAE_DATA, --data-dir or ../shared/data; without it the bundled digits stand for it.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # also where the package is not installed

from experiments.on_gpu.running import taken
from experiments.on_gpu.steps import ROOT, limits, steps
from pyro_vae.files import write_whole  # like the options, it needs neither torch nor pyro
from pyro_vae.runs.options import home_path
from pyro_vae.runs.origins import git_commit

RESULTS = "results.json"


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="for all steps together (default: 8)")
    parser.add_argument("--out", type=home_path, required=True, metavar="FOLDER", help="of results.json")
    parser.add_argument(
        "--work", type=home_path, metavar="FOLDER", help="of logs, runs, wheels (default: work in --out)"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="steps to take (default: all)")
    parser.add_argument("--wheels", type=home_path, metavar="FOLDER", help="wheels of packages that are missing here")
    parser.add_argument("--data-dir", type=home_path, metavar="FOLDER", help="in which MNIST lies")
    args = parser.parse_args(argv)
    names = [step.name for step in steps(args.device, Path())]
    if set(args.only or []) - set(names):
        parser.error(f"--only: wanted steps of {', '.join(names)}, got {', '.join(args.only)}")
    if not args.minutes > 0:
        parser.error(f"--minutes: wanted a positive number, got {args.minutes}")
    return args


def main(argv: list[str] | None = None) -> int:
    """Take the steps that are not done; return 0 if all are, else 1."""
    begun = time.monotonic()
    args = parse_arguments(argv)
    work = (args.work or args.out / "work").resolve()
    for folder in (args.out, work):
        folder.mkdir(parents=True, exist_ok=True)
    environment = surroundings(args, work)
    file = args.out / RESULTS
    content: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {"steps": {}}
    content |= {"machine": machine(), "commit": git_commit()}
    chosen = [step for step in steps(args.device, work) if not args.only or step.name in args.only]
    todo = [step for step in chosen if content["steps"].get(step.name, {}).get("status") != "done"]
    for number, step in enumerate(todo):
        left = 60 * args.minutes - (time.monotonic() - begun)
        seconds = limits([later.share for later in todo[number:]], left)
        print(f"{step.name}: at most {seconds:.0f} s", flush=True)
        content["steps"][step.name] = taken(step, seconds, environment, work)
        write_whole(file, json.dumps(content, indent=1).encode())
        print(summary(step.name, content["steps"][step.name]), flush=True)
    return int(any(content["steps"][step.name]["status"] != "done" for step in chosen))


def surroundings(args: argparse.Namespace, work: Path) -> dict[str, str]:
    """Return the environment variables of the steps: where packages and data lie. Install the wheels.

    Raises CalledProcessError if pip cannot install the wheels.
    """
    site = work / "site"
    if args.wheels and not site.is_dir():
        wheels = sorted(map(str, args.wheels.glob("*.whl")))
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(site)]
        subprocess.run([*command, *wheels], check=True)
    paths = [str(ROOT), *([str(site)] if site.is_dir() else []), os.environ.get("PYTHONPATH", "")]
    folders = [args.data_dir, os.environ.get("PYRO_VAE_DATA"), ROOT.parent / "shared" / "data"]
    data = [str(Path(folder).resolve()) for folder in folders if folder and Path(folder).is_dir()]
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # without it some matrix products on a GPU differ from run to run
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # jax would take three quarters of the memory
        **({"PYRO_VAE_DATA": data[0]} if data else {}),
    }


def machine() -> str:
    """Return the GPU's name, memory and driver, as nvidia-smi says."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=60).stdout.strip() or "no GPU"
    except (OSError, subprocess.TimeoutExpired):
        return "no GPU"


def summary(name: str, result: dict[str, Any]) -> str:
    """Return how a step ended, with the end of its log where it is not done."""
    log = result["log"].strip().splitlines()
    shown = log[-1:] if result["status"] == "done" else log[-15:]
    return "\n".join(
        [f"{name}: {result['status']} after {result['seconds']:.0f} s", *(f"    {line}" for line in shown)]
    )


if __name__ == "__main__":
    sys.exit(main())
