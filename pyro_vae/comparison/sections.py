"""Parts of gradients that are added one after another, and sums over neighbouring draws."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pyro_vae.comparison.replicates import Product

SECTIONS = 128  # the most sums over neighbouring draws; the intervals are computed from them


class Cut(NamedTuple):
    """A part of g: where it is in its piece and in g, which segments it is part of, which of it is in the sample."""

    piece: int
    start: int
    stop: int
    part: slice
    segments: slice
    lengths: Tensor
    chosen: Tensor

    @classmethod
    def of(cls, piece: int, start: int, stop: int, offset: int, ends: Tensor, chosen: Tensor) -> "Cut":
        """Return the part from start to stop of a piece that begins at an offset in g."""
        first, last = offset + start, offset + stop
        low, high = (int(torch.searchsorted(ends, value, right=True)) for value in (first, last - 1))
        inner = [first, *ends[low:high].tolist(), last]
        lengths = torch.tensor(inner, device=chosen.device).diff()
        within = chosen[(chosen >= first) & (chosen < last)] - first
        return cls(piece, start, stop, slice(first, last), slice(low, high + 1), lengths, within)


def sums(rows: Tensor, lengths: Tensor) -> Tensor:
    """Return the sums over segments of these lengths, (n, segments), of rows (n, m)."""
    if rows.is_cuda:
        return torch.segment_reduce(rows, "sum", lengths=lengths.expand(len(rows), -1).contiguous(), axis=1)
    starts = lengths.cumsum(0) - lengths
    return torch.from_numpy(np.add.reduceat(rows.numpy(), starts.numpy(), axis=1))  # several times as fast


def columns(piece: Tensor | Product, start: int, stop: int) -> Tensor:
    """Return these numbers of each draw of a piece."""
    return piece.columns(start, stop) if isinstance(piece, Product) else piece[:, start:stop]


def size_of(piece: Tensor | Product) -> int:
    """Return how many numbers each draw has in a piece."""
    return piece.size() if isinstance(piece, Product) else piece.shape[1]


def draws_of(piece: Tensor | Product) -> int:
    """Return the number of draws."""
    return len(piece.columns(0, 1)) if isinstance(piece, Product) else len(piece)


class Sections:
    """Sums over sections, which are neighbouring draws, of [sample, its squares, segments, t], about their means.

    Each of the first ``SECTIONS`` draws is a section; if there are more, neighbours are joined.
    """

    def __init__(self, sample: int, segments: int, like: Tensor):
        self.split = (sample, sample, segments, 1)
        self.origin = like.new_zeros(sample + segments)
        self.rows, self.length, self.count = like.new_zeros(SECTIONS, sum(self.split)), 1, 0
        self.finished = self.rows[:0]

    def add(self, sample: Tensor, segments: Tensor, t: Tensor) -> None:
        """Add draws: (n, sample), (n, segments) and (n,)."""
        both = torch.cat([sample, segments], 1)
        if not self.count:
            self.origin = both[0]  # near the mean, so that sums of squares lose no digits
        sample, segments = (both - self.origin).split([sample.shape[1], segments.shape[1]], 1)
        rows = torch.cat([sample, sample.square(), segments, t[:, None]], 1)
        while len(rows):
            if self.count == SECTIONS * self.length:
                self.rows = torch.cat([_joined(self.rows), torch.zeros_like(self.rows[: SECTIONS // 2])])
                self.length *= 2
            fitting, rows = rows[: SECTIONS * self.length - self.count], rows[SECTIONS * self.length - self.count :]
            numbers = torch.arange(self.count, self.count + len(fitting), device=rows.device) // self.length
            self.rows.index_add_(0, numbers, fitting)
            self.count += len(fitting)

    def end_batch(self) -> None:
        """End a batch: its sections become deviations from its mean."""
        used = math.ceil(self.count / self.length)
        rows, counts = self.rows[:used], self.rows.new_full((used, 1), self.length)
        counts[-1] = self.count - (used - 1) * self.length
        rows[0, -1] += rows[:, -1].sum() / (self.count - 1)  # the first draw has no t: it is given the mean
        first, squares, *_ = rows.split(self.split, 1)
        mean = first.sum(0) / self.count
        squares += counts * mean.square() - 2 * mean * first  # now about the mean of the batch
        rows -= counts * (rows.sum(0) / self.count)  # now deviations from what a section adds on average
        if self.count < 3:
            rows.fill_(math.nan)  # the spread of a single squared deviation is unknown
        self.finished = torch.cat([self.finished, rows])
        while len(self.finished) > SECTIONS:
            self.finished = _joined(self.finished)
        self.rows.zero_()
        self.length, self.count = 1, 0

    def deviations(self, freedom: int) -> Sequence[Tensor]:
        """Return the sums over sections (sections, …), in float64, divided by the degrees of freedom."""
        return (self.finished.cpu().double() / freedom).split(self.split, 1)


class Projected:
    """Means over batches of projections (k,), which are sums of segments, and their squares within batches (k, k)."""

    def __init__(self, projection: Tensor):
        self.fold, self.count = one_hot(projection).double(), 0
        self.mean, self.means = torch.zeros_like(self.fold[0]), torch.zeros_like(self.fold[0])
        self.squares = torch.outer(self.mean, self.mean)

    def add(self, segments: Tensor) -> None:
        """Add draws (n, segments)."""
        delta = segments.double() @ self.fold - self.mean
        self.count += len(delta)
        total = delta.sum(0)
        self.mean += total / self.count
        self.squares += delta.T @ delta - torch.outer(total, total) / self.count

    def end_batch(self) -> None:
        """End a batch."""
        self.means += self.mean  # their sum
        self.mean.zero_()
        self.count = 0


def _joined(rows: Tensor) -> Tensor:
    """Return sums of neighbouring rows; a last one without a neighbour stays."""
    return torch.cat([rows[:-1:2] + rows[1::2], rows[len(rows) // 2 * 2 :]])
