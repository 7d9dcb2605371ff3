"""The console command ``pyro-vae``: its first word names a command, whose module is imported when it is called."""

import sys
from importlib import import_module

from pyro_vae import __version__
from pyro_vae.printing import spell_out
from pyro_vae.runs.parser import suggestion

INTERRUPTED = 130  # exit status after Ctrl-C, as in a shell
# Name: a module with ``main(argv) -> int``, and its line in ``pyro-vae --help``.
COMMANDS = {
    "train": ("pyro_vae.runs.train", "train one VAE and measure it"),
    "evidence": ("pyro_vae.runs.evidence", "measure how tight the bounds on a trained model's log p(x) are"),
    "compare": ("pyro_vae.runs.compare", "compare the variance of gradient estimators"),
    "sweep": ("pyro_vae.runs.sweep", "train with several seeds and parts, one by one or at once"),
    "table": ("pyro_vae.runs.table", "print one table of many runs"),
    "export": ("pyro_vae.runs.export", "write a trained decoder or encoder as ONNX"),
    "data": ("pyro_vae.runs.data", "list the data sets, and what a folder of your own holds"),
}
HELP, VERSION = ("-h", "--help", "help"), ("-V", "--version")


def main(argv: list[str] | None = None) -> int:
    """Run the command that the first word names; return its exit status.

    >>> main(["--version"])
    pyro-vae ...
    0
    """
    spell_out()
    first, *others = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if first in HELP or first in VERSION:
        print(page() if first in HELP else f"pyro-vae {__version__}")
        return 0
    if first not in COMMANDS:
        near = suggestion(first, COMMANDS) or f"wanted one of {', '.join(COMMANDS)}"
        print(f"usage: pyro-vae COMMAND [options]\nerror: {first}: no such command; {near}", file=sys.stderr)
        return 2
    try:
        return import_module(COMMANDS[first][0]).main(others)
    except KeyboardInterrupt:  # while the module was imported: the commands have their own words
        return INTERRUPTED


def page() -> str:
    """Return the page of ``pyro-vae --help``."""
    rows = [f"  {name:<10}{line}" for name, (_, line) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: pyro-vae COMMAND [options]",
            "",
            "Variational autoencoders as Pyro programs.",
            "",
            "commands:",
            *rows,
            "",
            "pyro-vae COMMAND --help lists the options of a command. To begin:",
            "",
            "  pyro-vae train --dataset digits",
        ]
    )
