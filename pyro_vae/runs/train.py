"""``pyro-vae train``: the main job, to train one VAE and measure it."""

import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pyro_vae._lazy import LazyModule
from pyro_vae.runs.arguments import parse_arguments
from pyro_vae.runs.commands import ERRORS, begin, launched, reason, terminable

if TYPE_CHECKING:
    from pyro_vae.runs import job
    from pyro_vae.training import ranks
else:
    job, ranks = map(LazyModule, ("pyro_vae.runs.job", "pyro_vae.training.ranks"))


def main(argv: list[str] | None = None, description: str | None = None, script: str = "") -> int:
    """Train and measure the VAE that a command line describes; return the exit status of the command.

    ``script``: the file whose command this is, with its description, in the place of ``pyro-vae train``.
    """
    begin()
    words = [word for word in (sys.argv[1:] if argv is None else argv) if word not in ("--overwrite", "--resume")]
    called = script and argv is not None
    program = [Path(sys.executable).name, script] if called else launched("" if script else "train")
    again = shlex.join([*program, *words, "--resume"])
    try:
        args = parse_arguments(argv, description, script)
        with terminable(), ranks.processes():
            return job.run(args, again)
    except KeyboardInterrupt as interruption:
        print(f"interrupted; go on with: {again}", file=sys.stderr)
        return 128 + int(interruption.args[0] if interruption.args else signal.SIGINT)
    except ERRORS as error:
        print(f"error: {reason(error)}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if "WORLD_SIZE" not in os.environ:
            raise
        rank = os.environ["RANK"]
        print(f"error: rank {rank}: another one has ended, or this one failed: {reason(error)}", file=sys.stderr)
        return 1
