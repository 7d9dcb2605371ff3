"""What a step has found so far, in a file that is whole at any time, and the time that is left to it."""

import argparse
import json
import os
import time
from typing import Any

from pyro_vae.files import write_whole
from pyro_vae.runs.options import home_path


class Partial:
    """The command line of a step, and its results, which a step that is ended and begun again goes on with.

    Args:
        about: what the step does, for ``--help``.
        argv: the words of the command line; None: those of the process.
        start: the results of a step that has found nothing yet.

    Attributes:
        device: where the step computes.
        small: whether this is only a trial, on a CPU.
        found: the results; ``keep`` writes them.
        file: where they are written.
        end: when the step has to end, by ``time.monotonic``.
    """

    def __init__(self, about: str | None, argv: list[str] | None, start: dict[str, Any]):
        parser = argparse.ArgumentParser(description=about)
        parser.add_argument("--device", default="cuda")
        parser.add_argument("--out", type=home_path, required=True)
        args = parser.parse_args(argv)
        self.device, self.small, self.file = args.device, args.device == "cpu", args.out
        self.end = time.monotonic() + float(os.environ.get("SECONDS_LEFT", "600"))
        self.found: dict[str, Any] = json.loads(self.file.read_text()) if self.file.is_file() else start

    def keep(self) -> None:
        """Write what is found so far."""
        write_whole(self.file, json.dumps(self.found, indent=1).encode())
