"""What a process of its own measures: one number, by a module of this folder that prints it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from pyro_vae.data.sets import Data, Split


def measured_by(words: list[str], environment: dict[str, str]) -> float:
    """The number that ``python -m`` with these words prints, under these variables beside those of this process."""
    done = subprocess.run(
        [sys.executable, "-m", *words],
        check=True,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
        env=os.environ | environment,
    )
    return json.loads(done.stdout)


def random_images(number: int) -> Data:
    """Images of MNIST's size for a training of which only the seconds count."""
    pixels = torch.randint(256, (number, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Data("random", *(Split(pixels[:n], None) for n in (number, 10, 10)))
