"""Measurements that need a process of their own: a module of this folder prints one number."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from pyro_vae.data import Data, Split


def measured_by(words: list[str], environment: dict[str, str]) -> float:
    """Return the number that ``python -m`` with these words prints, with these environment variables added."""
    done = subprocess.run(
        [sys.executable, "-m", *words],
        check=True,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        env=os.environ | environment,
    )
    return json.loads(done.stdout)


def random_images(number: int) -> Data:
    """Return images of MNIST's size, for a training of which only the seconds count."""
    pixels = torch.randint(256, (number, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Data("random", *(Split(pixels[:n], None) for n in (number, 10, 10)))
