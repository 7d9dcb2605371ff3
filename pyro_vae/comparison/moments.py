"""Streaming moments of random vectors, in the memory of a few vectors for any number of draws."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

from pyro_vae.comparison.intervals import TAIL, Estimate, interval, quantile
from pyro_vae.comparison.replicates import Product
from pyro_vae.comparison.sections import Cut, Projected, Sections, columns, draws_of, size_of, sums

SAMPLE = 1024  # coordinates of g that the intervals follow
AT_ONCE = 1 << 18  # numbers of all draws that are added at once, which stay in the cache of a core
SEGMENTS = 1024  # signed sums of g that the intervals follow
PROJECTIONS = 24  # of the test of equal means, at most


@dataclass(frozen=True)
class Mean:
    """The mean of a number of draws, coordinate by coordinate and in a few fixed random projections.

    ``mean`` and its standard ``error`` (kept in 16 bits) have shape (P,), ``projected`` (k,), ``covariance`` of
    ``projected`` (k, k). ``freedom`` is the number of draws minus the number of batches. ``sections`` (m, k) is what
    each of m runs of neighbouring draws adds to ``projected``.
    """

    mean: Tensor
    error: Tensor
    projected: Tensor
    covariance: Tensor
    freedom: int
    sections: Tensor


class Moments:
    """Streaming mean and variance of each coordinate of g (P,), and derived statistics with intervals.

    Call ``add`` for each draw, or ``extend`` for some of them, and ``end_batch`` after each batch; all batches have one
    size. Means are averages over batches. ``trace``, ``snr`` and ``norm_ratio`` use the variances within batches,
    ``between`` is the variance between them.

    Variances are computed by the method of Welford (1962). Each draw adds its squared distance from the mean of the
    draws before it,

        t_i = (i − 1)/i ‖g_i − ḡ_(i−1)‖²,        E t_i = tr Σ,        Σ_i t_i / (n − 1) = tr Σ̂ exactly.

    Intervals are computed from what each draw adds to a statistic, to first order (infinitesimal jackknife, Jaeckel
    1972). Its squares give the standard error, the cubes the skewness and the fourth powers the degrees of freedom
    (``intervals.interval``). Three quantities are recorded for this: t_i; a random sample of the coordinates; and sums
    of g over segments, with random signs. The squared norm of these sums is on average that of g (Charikar et al.
    2002). If there are more than ``SECTIONS`` draws, neighbouring ones are summed, so that memory is bounded. If P is
    at most ``SAMPLE``, all of g is recorded; otherwise the intervals are slightly too wide.

    From 100 draws 93 to 97 % of the intervals cover the true value, for Gaussian gradients and for the score
    function's. Fewer do if tails are so heavy that an estimate is ``doubtful``.

    Args:
        sizes: lengths of the tensors that make up g; segments and projections do not straddle tensors.
        like: a tensor of the dtype (float32 or float64) and the device of g.
        projections: number of random projections for ``equal_means_p_value``; those of one ``seed`` are comparable.
        seed: of the random signs, the sample of coordinates and the projections.

    >>> moments = Moments([2, 1], torch.zeros(1))
    >>> for g in torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]):
    ...     t = moments.add(g)
    >>> moments.end_batch()
    >>> moments.trace().value, moments.varying()
    (4.0, 2)
    """

    def __init__(self, sizes: Sequence[int], like: Tensor, projections: int = PROJECTIONS, seed: int = 0):
        self.size, self.count, self.draws, self.batches = sum(sizes), 0, 0, 0
        self._generator = Generator(like.device).manual_seed(seed)
        self._mean, self._squares = (like.new_zeros(self.size) for _ in range(2))
        self._mean_of_batches = self._mean
        self._between = 0.0
        coin = torch.randint(2, (self.size,), generator=self._generator, device=like.device, dtype=torch.int8)
        self._signs = 2 * coin - 1
        self._chosen = self._choose()
        segments, projection = _segments(sizes, projections)
        self._lengths = torch.tensor(segments, device=like.device)
        self._cuts: dict[tuple, list[Cut]] = {}  # by the sizes of pieces, and the width of a cut
        self._sections = Sections(len(self._chosen), len(segments), like)
        self._projected = Projected(torch.tensor(projection, device=like.device))

    def add(self, g: Tensor) -> Tensor:
        """Add one draw; return t_i, which is finite where g is."""
        return self.extend([g[None]])[0]

    def extend(self, pieces: Sequence[Tensor | Product]) -> Tensor:
        """Add draws, one after another; return their t_i (n,).

        ``pieces`` are (n, P₁), (n, P₂), …, or products of matrices of as many numbers, which together make up g.
        """
        draws = draws_of(pieces[0])
        sizes, width = tuple(map(size_of, pieces)), max(1, AT_ONCE // draws)
        if (sizes, width) not in self._cuts:
            self._cuts[sizes, width] = self._cut(sizes, width)
        gram = self._signs.new_zeros(draws, draws, dtype=self._mean.dtype)
        segments = gram.new_zeros(draws, len(self._lengths))
        samples = []
        for cut in self._cuts[sizes, width]:
            rows = columns(pieces[cut.piece], cut.start, cut.stop)
            gram += self._of_part(rows, cut.part)
            segments[:, cut.segments] += sums(rows * self._signs[cut.part], cut.lengths)
            samples.append(rows[:, cut.chosen])
        t = _new_distances(gram, self.count)
        self.count += draws
        self._sections.add(torch.cat(samples, 1), segments, t)
        self._projected.add(segments)
        return t

    def _of_part(self, rows: Tensor, part: slice) -> Tensor:
        """Add draws of a part of g (n, m); return the products of their distances from the mean of those before."""
        mean, after = self._mean[part], self.count + len(rows)
        if not self.count:
            mean.copy_(rows[0])  # so that the sums below lose no digits
        delta = rows - mean
        total = delta.sum(0)
        mean.add_(total, alpha=1 / after)
        self._squares[part].add_(delta.square().sum(0).addcmul_(total, total, value=-1 / after).clamp_(min=0.0))
        return delta @ delta.T

    def _cut(self, sizes: Sequence[int], width: int) -> list["Cut"]:
        """Return the parts of g that are added one after another."""
        ends, offset, cuts = self._lengths.cpu().cumsum(0), 0, []
        for number, size in enumerate(sizes):
            for start in range(0, size, width):
                stop = min(start + width, size)
                cuts.append(Cut.of(number, start, stop, offset, ends, self._chosen))
            offset += size
        return cuts

    def end_batch(self) -> None:
        """End a batch of at least two draws."""
        self._sections.end_batch()
        self._projected.end_batch()
        self.batches, self.draws, self.count = self.batches + 1, self.draws + self.count, 0
        if self.batches == 1:
            self._mean_of_batches = self._mean
            self._mean = torch.zeros_like(self._mean)
            return
        delta = self._mean - self._mean_of_batches
        self._mean_of_batches.add_(delta, alpha=1 / self.batches)
        self._between += delta.dot(delta).item() * (self.batches - 1) / self.batches
        self._mean.zero_()

    def mean(self) -> Mean:
        """Return the average over batches with its standard errors."""
        scale = self._freedom() * self.draws
        error = (self._squares / scale).sqrt_().bfloat16()
        projected, squares = self._projected.means / self.batches, self._projected.squares
        sections = self._deviations()[2].to(projected) @ self._projected.fold
        return Mean(self._mean_of_batches, error, projected, squares / scale, self._freedom(), sections)

    def trace(self) -> Estimate:
        """Return (a) tr Σ, the sum over coordinates of the variance within batches."""
        trace = self._trace()
        low, high, freedom = interval(trace, self.sections_of_trace(), TAIL)
        return Estimate(trace, max(low, 0.0), high, freedom)

    def sections_of_trace(self) -> Tensor:
        """Return what each section adds to (a); it sums with that of another vector of the same draws."""
        return self._deviations()[-1]

    def snr(self) -> Estimate:
        """Return (b) the mean of |mean| / sd over the coordinates that vary by more than rounding; NaN without any.

        If the mean is zero, n draws give √(2 / π n) on average, so that values near it cannot be told from zero. The
        lower end of the interval allows for this bias: for any true mean, the bias of |z| is less than the mean of
        √(10 / π) exp(−2 z²), with z = √n mean / sd.
        """
        total = sum(float((m.abs() / v.sqrt())[v > 0].sum(dtype=torch.float64)) for m, v in self._varying())
        snr = total / max(self.varying(), 1) if self.varying() else math.nan
        m, v = self._mean_of_batches[self._chosen], self._squares[self._chosen] / self._freedom()
        varies = (v > rounding(m).square()).cpu()
        if not varies.any():
            return Estimate(snr, math.nan, math.nan)
        m, sd = m.cpu().double()[varies], v.cpu().double()[varies].sqrt()
        first, squares = (part[:, varies] for part in self._deviations()[:2])
        low, high, freedom = interval(snr, (m.sign() / sd * first - m.abs() / (2 * sd**3) * squares).mean(1))
        bias = math.sqrt(10 / math.pi / self.draws) * (-2 * self.draws * (m / sd).square()).exp().mean().item()
        return Estimate(snr, max(low - bias, 0.0), high, freedom)

    def norm_ratio(self) -> Estimate:
        """Return (c) ‖μ‖ / √tr Σ; ‖μ‖² is estimated by ‖ḡ‖² − tr Σ̂ / n, without bias, and set to zero if negative.

        Noise along ḡ changes ‖ḡ‖ itself, noise at right angles to it changes ‖ḡ‖². Each has an interval of its own; the
        distances of their ends from the ratio are added in squares (Zou & Donner 2008).
        """
        trace, square = self._trace(), self.mean_norm_squared()
        value = _root_ratio(square, trace)
        if not trace:
            return Estimate(value, value, value)
        along, across = self._noise_of_mean(trace)
        length = square + along.square().sum().item()  # squared norm of ḡ without the noise across it
        ratio = _root_ratio(length, trace)
        *_, t = self._deviations()
        low, high, freedom = interval(ratio, along / math.sqrt(trace) - ratio / 2 * t / trace)
        width = across * quantile(freedom)
        below, above = _root_ratio(length - width, trace), _root_ratio(length + width, trace)
        low, high = ratio - math.hypot(ratio - low, ratio - below), ratio + math.hypot(high - ratio, above - ratio)
        return Estimate(value, min(max(low, 0.0), value), max(high, value), freedom)

    def _noise_of_mean(self, trace: float) -> tuple[Tensor, float]:
        """Return the noise in ‖ḡ‖ along ḡ, by section, and the standard error of ‖ḡ‖² by noise at right angles to ḡ."""
        *_, segments, _ = self._deviations()
        mean = self._signed_sums(self._mean_of_batches[None])[0].cpu().double()
        along, gram = segments @ normalize(mean, dim=0), segments @ segments.T
        across = math.sqrt(2 * _products(gram - torch.outer(along, along)))
        signal = (mean.square().sum() * self.draws / trace).item()
        return along * _room_for_direction(along, gram, signal), across

    def mean_norm_squared(self) -> float:
        """Return ‖μ‖² without bias; it may be negative."""
        mean = self._mean_of_batches
        return mean.dot(mean).item() - self._trace() / self.draws

    def between(self) -> float | None:
        """Return the trace of the covariance of the batches' means without the share of sampling within batches.

        Unbiased, so that it may be negative; None for a single batch.
        """
        if self.batches < 2:
            return None
        return self._between / (self.batches - 1) - self._trace() / (self.draws / self.batches)

    def varying(self) -> int:
        """Return the number of coordinates that vary by more than rounding."""
        return sum(int((v > 0).sum()) for _, v in self._varying())

    def _trace(self) -> float:
        return self._squares.sum(dtype=torch.float64).item() / self._freedom()

    def _freedom(self) -> int:
        return self.draws - self.batches

    def _varying(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield means and variances in pieces, a variance of zero where it is no more than rounding."""
        for m, squares in zip(self._mean_of_batches.split(1 << 18), self._squares.split(1 << 18)):
            v = squares / self._freedom()
            yield m, torch.where(v > rounding(m).square(), v, 0.0)

    def _deviations(self) -> list[Tensor]:
        """Return what sections add to the sample's mean and variance, the mean signed sums, and tr Σ̂."""
        first, squares, segments, t = self._sections.deviations(self._freedom())
        return [first, squares, segments, t[:, 0]]

    def _signed_sums(self, rows: Tensor) -> Tensor:
        """Return the signed sums (n, segments) of rows (n, P)."""
        return sums(rows * self._signs, self._lengths)

    def _choose(self) -> Tensor:
        device = self._signs.device
        if self.size <= SAMPLE:
            return torch.arange(self.size, device=device)
        return torch.randint(self.size, (SAMPLE,), generator=self._generator, device=device).unique()


def _new_distances(gram: Tensor, count: int) -> Tensor:
    """Return t_i of new draws d_i after ``count`` others, from the products of d_i relative to the mean of those.

    The mean of the draws before d_i is Σ_{j < i} d_j / (count + i − 1) in these terms.
    """
    if len(gram) == 1:
        return gram[0] * (count / (count + 1))
    before = count + torch.arange(len(gram), device=gram.device, dtype=torch.float64)
    shares = torch.ones_like(gram, dtype=torch.float64).tril(-1) / before.clamp(min=1)[:, None]
    away = torch.eye(len(gram), device=gram.device, dtype=torch.float64) - shares
    distances = (away @ gram.double().nan_to_num(0.0, 0.0, 0.0) * away).sum(1).clamp(min=0)
    distances = torch.where(gram.diagonal().isfinite(), distances, torch.nan)  # of the very draws that are not finite
    return (before / (before + 1) * distances).to(gram)


def _segments(sizes: Sequence[int], projections: int) -> tuple[list[int], list[int]]:
    """Return the length of each segment of g, and the number of its projection.

    Tensors are cut into equal pieces, about ``SEGMENTS`` in all. A projection is a piece of a tensor, or, where there
    are more tensors than projections, some neighbouring tensors.
    """
    total, lengths, projection, offset = sum(sizes), [], [], 0
    pieces = max(1, projections // len(sizes))
    for index, size in enumerate(sizes):
        n = min(size, max(pieces, math.ceil(SEGMENTS * size / total)))
        lengths += [size * (i + 1) // n - size * i // n for i in range(n)]
        if len(sizes) > projections:
            projection += [index * projections // len(sizes)] * n
        else:
            projection += [offset + i * min(pieces, n) // n for i in range(n)]
            offset += min(pieces, n)
    return lengths, projection


def rounding(mean: Tensor) -> Tensor:
    """Return a generous bound on differences by rounding alone, since gradients are long sums: ε^0.7 |mean|.

    >>> bool(rounding(torch.tensor(1.0)) < 1e-4)
    True
    """
    return torch.finfo(mean.dtype).eps ** 0.7 * mean.abs()


def _products(gram: Tensor) -> float:
    """Return Σ (uᵢ · uⱼ)² over i ≠ j, from the products ``gram`` of rows u.

    This estimates tr E[eeᵀ]² for the error e = Σu.
    """
    return (gram.square().sum() - gram.diagonal().square().sum()).clamp(min=0).item()


def _room_for_direction(along: Tensor, gram: Tensor, signal: float) -> float:
    """Return the factor, at least 1, for the noise ``along`` ḡ, since only ḡ tells the direction of the true mean.

    If ḡ were noise e alone, the variance along it would be tr E[eeᵀ]² / tr E[eeᵀ] on average. The variance is the mean
    of this and of the measured one, with weights 1 and signal = ‖ḡ‖² / E‖e‖².
    """
    found = along.square().sum().item()
    typical = _products(gram) / gram.trace().item()
    return math.sqrt(max(1.0, (signal + typical / found) / (signal + 1))) if found else 1.0


def _root_ratio(square: float, trace: float) -> float:
    """Return √(square / trace), zero where the square is negative; NaN or infinite where the trace is zero."""
    if trace:
        return math.sqrt(max(square, 0.0) / trace)
    return math.inf if square > 0 else math.nan
