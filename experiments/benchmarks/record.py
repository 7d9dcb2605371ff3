"""The file of results of a question."""

import argparse
import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyro_vae.runs import provenance, write_json


def write(name: str, args: argparse.Namespace, found: Any) -> None:
    """Write what was measured on the data set of that name, with settings and versions."""
    content = {"settings": vars(args), "dataset": name, "versions": provenance(), args.question: found}
    write_json(args.out.with_suffix(".json"), content)


def question(path: Path, known: Iterable[str]) -> str:
    """Return which of these questions a file answers; raise ValueError if none."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text())
        if isinstance(found, dict) and (answered := [name for name in known if name in found]):
            return answered[0]
    raise ValueError(f"{path}: wanted results of benchmark.py {' or '.join(f'--{name}' for name in known)}, found none")


def read(path: Path, question: str) -> Any:
    """Return what was measured; raise ValueError for a file that holds no results of this question.

    >>> read(Path("nowhere.json"), "summary")
    Traceback (most recent call last):
        ...
    ValueError: nowhere.json: wanted results of benchmark.py --summary, found none
    """
    try:
        return json.loads(path.read_text())[question]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: wanted results of benchmark.py --{question}, found none") from error
