"""The command ``pyro-vae export``: a part of a trained program as a file for onnxruntime or torch."""

import argparse
from pathlib import Path

import pyro_vae
from pyro_vae.runs.commands import exit_status
from pyro_vae.runs.parser import Parser
from pyro_vae.words import EXPORTABLE


def main(argv: list[str] | None = None) -> int:
    """Export a part of the program in a folder, and say what was written; return the exit status of the command."""
    parser = Parser(
        prog="pyro-vae export",
        description="Write the decoder, the encoder or both of a trained VAE to a file that runs without this package. "
        "It is checked against torch before it is written.",
    )
    parser.add_argument("folder", type=Path, help="of a run, or of pyro_vae.save_vae")
    parser.add_argument("path", type=Path, help="of the file: FILE.onnx for onnxruntime, FILE.pt2 for torch")
    parser.add_argument("--part", choices=EXPORTABLE, default="decoder", help="what is exported")

    def work(args: argparse.Namespace) -> None:
        pyro_vae.export(pyro_vae.load_vae(args.folder), args.path, args.part)
        print(f"{args.path} holds the {args.part} of {args.folder}, and agrees with torch")

    return exit_status(lambda: parser.parse_args(argv), work, "nothing was written")
