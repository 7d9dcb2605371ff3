"""Follows the cure of a message to the letter: the code after its last "write " is run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_vae.data.sets import DataError


def code_in(message: object) -> str:
    return str(message).rsplit("write ", 1)[1]


def follow(message: object, **names: Any) -> None:
    """Runs code that changes files."""
    exec(code_in(message), {"np": np, "Path": Path, **names})


def cured(call: Callable[[Any], Any], rows: Any, name: str, steps: int = 4) -> Any:
    """``call(rows)``, the rows being replaced by what its messages tell to write, as often as it refuses."""
    for _ in range(steps):
        try:
            return call(rows)
        except ValueError as error:
            rows = eval(code_in(error), {"np": np, "torch": torch, name: rows})
    return call(rows)


def cured_files(call: Callable[[], Any], steps: int = 4) -> Any:
    """``call()``, the files being changed as its messages tell, as often as it refuses."""
    for _ in range(steps):
        try:
            return call()
        except DataError as error:
            follow(error)
    return call()
