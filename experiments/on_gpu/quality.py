"""log p(x) of all test images after longer and longer trainings by ``run.py --recipe fast``, and the seconds that took.

Each run is a process of its own. Published values for comparison, with as many stochastic layers or richer parts, are
-86.76 (Burda et al. 2016, one layer, k = 1), -84.5, -82.4 and -81. On a CPU all is small.
"""

import json
import sys
import time
from typing import Any

from experiments.on_gpu import running
from experiments.on_gpu.partial import Partial

RUNS = {14: 5000, 60: 1000, 200: 1000}  # from epochs to the particles of log p(x), which is bounded from below by them
SMALL = ["--dataset", "digits", "--net", "mlp", "--hidden", "16", "--flow-width", "8", "--latent", "2"]
SMALL += ["--engine", "eager", "--precision", "float32"]  # of the recipe, for a trial on a CPU


def main(argv: list[str] | None = None) -> int:
    """Train and measure for each number of epochs that the file does not hold yet."""
    step = Partial(__doc__, argv, {})
    for epochs, particles in ({1: 20} if step.small else RUNS).items():
        left = step.end - time.monotonic()
        if str(epochs) not in step.found and left > 0:
            words = SMALL if step.small else ["--engine", "auto"]
            step.found[str(epochs)] = found = taken(epochs, particles, words, step, left)
            step.keep()
            print(epochs, "epochs:", found, flush=True)
    return int(any("error" in found for found in step.found.values()))


def taken(epochs: int, particles: int, words: list[str], step: Partial, seconds: float) -> dict[str, Any]:
    """Return what a run took and found, or how it failed."""
    out = step.file.with_name(f"quality-{epochs}")
    command = [sys.executable, "experiments/run.py", "--recipe", "fast", "--epochs", str(epochs), "--quiet"]
    command += ["--evidence", str(particles), "--device", step.device, "--out", str(out), "--overwrite", *words]
    begun, log = time.monotonic(), out.with_suffix(".log")
    status = running.run(tuple(command), seconds, {"SECONDS_LEFT": f"{seconds:.0f}"}, log)
    if status != "done":
        return {"error": f"{status}: {log.read_text()[-2000:]}"}
    metrics = json.loads((out / "metrics.json").read_text())
    return {"command": running.plain(command), "seconds": time.monotonic() - begun, "metrics": metrics}


if __name__ == "__main__":
    sys.exit(main())
