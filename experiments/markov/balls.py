"""Simulated sequences: a ball that bounces in a row of cells, seen as black and white noise; log p(x) by quadrature.

The ball starts anywhere, with any velocity up to ``FASTEST``, and is reflected at both ends. A cell is white with
probability σ(``HIGH`` exp(−(distance / ``WIDTH``)²/2) + ``LOW``), each independently.
"""

import torch
from torch import Generator, Tensor

from pyro_vae.data import Data, Split

CELLS, FASTEST, HIGH, LOW, WIDTH = 16, 1.5, 6.0, -3.0, 1.0
GRID = 150  # points of the quadrature, in the first position and in the velocity; twice as many change 1e-4 nats


def logits(first: Tensor, velocity: Tensor, steps: int) -> Tensor:
    """Return the logits of all cells, (..., steps, CELLS), of balls by their first position and velocity, both (...).

    >>> logits(torch.tensor([0.0]), torch.tensor([1.0]), steps=20).argmax(-1)[0, 14:]
    tensor([14, 15, 14, 13, 12, 11])
    """
    way = first.unsqueeze(-1) + velocity.unsqueeze(-1) * torch.arange(steps, dtype=first.dtype)
    place = (CELLS - 1) - ((way % (2 * (CELLS - 1))) - (CELLS - 1)).abs()  # there and back
    distance = place.unsqueeze(-1) - torch.arange(CELLS, dtype=first.dtype)
    return HIGH * (-(distance / WIDTH).square() / 2).exp() + LOW


def simulated(rows: int, steps: int, generator: Generator) -> Split:
    """Return sequences (rows, steps, CELLS) of 0 and 1, and lengths from steps / 2 to steps, each as likely.

    What lies beyond the length of a row is NaN, as it is not known.
    """
    first = torch.rand(rows, generator=generator) * (CELLS - 1)
    velocity = (2 * torch.rand(rows, generator=generator) - 1) * FASTEST
    sequences = torch.bernoulli(logits(first, velocity, steps).sigmoid(), generator=generator)
    lengths = torch.randint((steps + 1) // 2, steps + 1, (rows,), generator=generator)
    sequences[torch.arange(steps) >= lengths.unsqueeze(-1)] = torch.nan
    return Split(sequences=sequences, lengths=lengths)


def balls(rows: int, held_out: int, steps: int, seed: int) -> Data:
    """Return a data set of ``rows`` training sequences and ``held_out`` of validation and of test."""
    generator = Generator().manual_seed(seed)
    return Data("balls", *(simulated(count, steps, generator) for count in (rows, held_out, held_out)))


def log_px(split: Split, grid: int = GRID) -> Tensor:
    """Return log p(x) of each sequence under the simulation, (N,), in nats: the mean of p(x | first, velocity).

    The mean is over the midpoints of a grid of first positions and velocities; float64.
    """
    middle = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid
    rows, steps = split.sequences.shape[:2]
    seen = (torch.arange(steps) < split.lengths.unsqueeze(-1)).unsqueeze(-1)
    x = torch.where(seen, split.sequences, 0.0).double().flatten(1)
    seen = seen.expand(-1, -1, CELLS).double().flatten(1)
    total = torch.full((rows,), -torch.inf, dtype=torch.float64)
    for first in middle * (CELLS - 1):  # one first position, all velocities at once
        of_cells = logits(first.expand(grid), (2 * middle - 1) * FASTEST, steps).flatten(1)
        log_p = x @ of_cells.T - seen @ torch.nn.functional.softplus(of_cells).T
        total = torch.logaddexp(total, log_p.logsumexp(-1))
    return total - 2 * torch.tensor(float(grid)).log()
