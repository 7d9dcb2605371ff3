"""Follow the cure of an error message to the letter: run the code after its last "write "."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_vae.data.sets import DataError


def code_in(message: object) -> str:
    return str(message).rsplit("write ", 1)[1]


def follow(message: object, **names: Any) -> None:
    """Run the cure of a message that changes files."""
    exec(code_in(message), {"np": np, "Path": Path, **names})


def cured(call: Callable[[Any], Any], rows: Any, name: str, steps: int = 4) -> Any:
    """Return ``call(rows)``; whenever it refuses, replace the rows by what its message says to write."""
    for _ in range(steps):
        try:
            return call(rows)
        except ValueError as error:
            rows = eval(code_in(error), {"np": np, "torch": torch, name: rows})
    return call(rows)


def cured_files(call: Callable[[], Any], steps: int = 4) -> Any:
    """Return ``call()``; whenever it refuses, change the files as its message says."""
    for _ in range(steps):
        try:
            return call()
        except DataError as error:
            follow(error)
    return call()
