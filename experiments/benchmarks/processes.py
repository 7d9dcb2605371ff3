"""Measurements that need a process of their own: a module of this folder prints JSON."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pyro_vae.data import Data, Split
from pyro_vae.data.known import ENVIRONMENT
from pyro_vae.files import cache_folder

ROOT = Path(__file__).parents[2]


def measured_by(words: list[str], environment: dict[str, str]) -> Any:
    """Return the value that ``python -m`` with these words prints, with these environment variables added."""
    return timed_by(words, environment)[0]


def timed_by(words: list[str], environment: dict[str, str]) -> tuple[Any, float]:
    """Return that value, and the seconds of the whole process."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", *words],
        check=True,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | environment,
    )
    return json.loads(done.stdout), time.perf_counter() - start


@contextmanager
def empty_caches() -> Iterator[dict[str, str]]:
    """Context manager with environment variables for processes that find no compiled code of earlier ones.

    torch keeps its precompiled headers in the folder of temporary files, whatever the folder of its cache. The
    processes find data sets where this process finds them.
    """
    with tempfile.TemporaryDirectory() as cache:
        data = os.environ.get(ENVIRONMENT) or str(cache_folder())
        folders = dict.fromkeys(("TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME", "PYRO_VAE_CACHE", "TMPDIR"), cache)
        yield {**folders, ENVIRONMENT: data}


def random_images(number: int) -> Data:
    """Return images of MNIST's size, for a training of which only the seconds count."""
    pixels = torch.randint(256, (number, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Data("random", *(Split(pixels[:n], None) for n in (number, 10, 10)))
