"""Moments of random vectors, streamed: a few vectors are kept, whatever the number of draws.

``Moments`` takes draws of g (P,) one by one; ``largest_z`` and ``equal_means_p_value`` compare the means of two.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from scipy.stats import f, norm
from torch import Generator, Tensor

REPLICATES = 200  # of the bootstrap
SAMPLE = 1024  # coordinates of g that it follows
SEGMENTS = 1024  # signed sums of g that it follows
PROJECTIONS = 24  # of the test of equal means, at most
CHUNK = 32  # draws that are put by before they are summed
LEVEL = 0.95  # of the intervals


@dataclass(frozen=True)
class Estimate:
    """A number and its bootstrap interval of 95 %.

    >>> print(Estimate(0.5, 0.45, 0.56))
    0.5 [0.45, 0.56]
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{short(self.value)} [{short(self.low)}, {short(self.high)}]"


@dataclass(frozen=True)
class Mean:
    """The mean of a number of draws, coordinate by coordinate and in a few fixed random projections.

    ``mean`` and its standard ``error`` (kept in 16 bits) have shape (P,), ``projected`` (k,), ``covariance`` of
    ``projected`` (k, k). ``freedom`` is the number of draws less that of batches.
    """

    mean: Tensor
    error: Tensor
    projected: Tensor
    covariance: Tensor
    freedom: int


class Moments:
    """Mean and variance of each coordinate of g (P,), streamed, with a bootstrap of what is derived from them.

    Draws come by ``add``, in one batch or, with ``end_batch`` after each, in several of one size. Means are averages
    over batches; variances are those within batches (``trace``, ``snr``, ``norm_ratio``) or ``between`` them.

    The variance of coordinates is Welford's (1962). Each draw adds to it its squared distance from the mean before,

        t_i = (i − 1)/i ‖g_i − ḡ_(i−1)‖²,        E t_i = tr Σ,        Σ_i t_i / (n − 1) = tr Σ̂ exactly.

    The bootstrap is Rubin's (1981): replicates weight each draw by Exp(1). It follows t_i, a random sample of the
    coordinates, and sums of g over segments with random signs s, whose squared norm is that of g on average (Charikar
    et al. 2002). So it needs no more memory than a few g; where P is at most ``SAMPLE``, all of g is followed, else the
    intervals are slightly too wide.

    Args:
        sizes: lengths of the tensors that g is made of; segments and projections do not straddle tensors.
        like: a tensor of the dtype (float32 or float64) and the device of g.
        projections: number of random projections for ``equal_means_p_value``; those of one ``seed`` are comparable.

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
        self._mean, self._squares, self._scratch = (like.new_zeros(self.size) for _ in range(3))
        self._mean_of_batches: Tensor | None = None
        self._between = 0.0
        coin = torch.randint(2, (self.size,), generator=self._generator, device=like.device, dtype=torch.int8)
        self._signs = 2 * coin - 1
        self._chosen = self._choose()
        segments, projection = _segments(sizes, projections)
        self._lengths = torch.tensor(segments, device=like.device)
        self._follow = _Followed(len(self._chosen), torch.tensor(projection, device=like.device), like, self._generator)

    def add(self, g: Tensor) -> Tensor:
        """Takes one draw; returns t_i, which is finite where g is."""
        self.count += 1
        weight = (self.count - 1) / self.count
        delta = torch.sub(g, self._mean, out=self._scratch)
        t = delta.dot(delta) * weight
        self._mean.add_(delta, alpha=1 / self.count)
        self._squares.addcmul_(delta, delta, value=weight)
        signed = torch.mul(g, self._signs, out=self._scratch)
        self._follow.add(g[self._chosen], torch.segment_reduce(signed, "sum", lengths=self._lengths), t)
        return t

    def end_batch(self) -> None:
        """Ends a batch of at least two draws."""
        self._follow.end_batch()
        self.batches, self.draws, self.count = self.batches + 1, self.draws + self.count, 0
        if self._mean_of_batches is None:
            self._mean_of_batches = self._mean
            self._mean = torch.zeros_like(self._mean)
            return
        delta = torch.sub(self._mean, self._mean_of_batches, out=self._scratch)
        self._mean_of_batches.add_(delta, alpha=1 / self.batches)
        self._between += delta.dot(delta).item() * (self.batches - 1) / self.batches
        self._mean.zero_()

    def mean(self) -> Mean:
        """The average over batches with its standard errors; keep it and let go of the moments."""
        scale = self._freedom() * self.draws
        projected, squares = self._follow.projected()
        error = (self._squares / scale).sqrt_().bfloat16()
        return Mean(self._mean_of_batches, error, projected, squares / scale, self._freedom())

    def trace(self) -> Estimate:
        """(a) tr Σ, the sum over coordinates of the variance within batches."""
        trace = self._trace()
        return _centred(trace, self._follow.t())

    def snr(self) -> Estimate:
        """(b) The mean of |mean| / sd over the coordinates that vary by more than rounding; NaN where none does.

        n draws leave it at √(2 / π n) where the mean is zero: values near that are not told from zero.
        """
        total = sum((m.abs() / v.sqrt())[v > 0].sum(dtype=torch.float64) for m, v in self._varying())
        snr = total.item() / max(self.varying(), 1) if self.varying() else math.nan
        m, v = self._mean_of_batches[self._chosen], self._squares[self._chosen] / self._freedom()
        varies = v > _rounding(m).square()
        mean, variance = self._follow.sample()
        ratios = mean[:, varies].abs() / variance[:, varies].sqrt()
        return _centred(snr, ratios.mean(1)) if varies.any() else Estimate(snr, math.nan, math.nan)

    def norm_ratio(self) -> Estimate:
        """(c) ‖μ‖ / √tr Σ, where ‖μ‖² is estimated by ‖ḡ‖² − tr Σ̂ / n, without bias, and taken as zero if negative."""
        trace, square = self._trace(), self.mean_norm_squared()
        squares = self._follow.segments().square().sum(1).double()
        traces = trace + _deviations(self._follow.t())
        replicates = _root_ratio(square + _deviations(squares), traces)
        value = _root_ratio(*traces.new_tensor([square, trace])).item()
        return Estimate(value, *_interval(replicates))

    def mean_norm_squared(self) -> float:
        """‖μ‖² without bias; it may be negative."""
        mean = self._mean_of_batches
        return mean.dot(mean).item() - self._trace() / self.draws

    def between(self) -> float | None:
        """tr of the covariance of the batches' means without the share that sampling within batches has in it.

        Unbiased, so that it may be negative; None for a single batch.
        """
        if self.batches < 2:
            return None
        return self._between / (self.batches - 1) - self._trace() / (self.draws / self.batches)

    def varying(self) -> int:
        """Number of coordinates that vary by more than rounding."""
        return sum(int((v > 0).sum()) for _, v in self._varying())

    def _trace(self) -> float:
        return self._squares.sum(dtype=torch.float64).item() / self._freedom()

    def _freedom(self) -> int:
        return self.draws - self.batches

    def _varying(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Means and variances in pieces, a variance of zero where it is no more than rounding."""
        for m, squares in zip(self._mean_of_batches.split(1 << 18), self._squares.split(1 << 18)):
            v = squares / self._freedom()
            yield m, torch.where(v > _rounding(m).square(), v, 0.0)

    def _choose(self) -> Tensor:
        device = self._signs.device
        if self.size <= SAMPLE:
            return torch.arange(self.size, device=device)
        return torch.randint(self.size, (SAMPLE,), generator=self._generator, device=device).unique()


class _Followed:
    """What the bootstrap and the projections keep: sums over draws of [sample, segments, t, t counts, 1]."""

    def __init__(self, sample: int, projection: Tensor, like: Tensor, generator: Generator):
        self.split = (sample, len(projection))
        self.width = sum(self.split) + 3
        self.generator = generator
        self.rows, self.filled, self.seen, self.batches = like.new_zeros(CHUNK, self.width), 0, 0, 0
        self.origin = like.new_zeros(sample)
        self.first, self.second = like.new_zeros(REPLICATES, self.width), like.new_zeros(REPLICATES, sample)
        self.totals: tuple[Tensor, Tensor] | None = None
        self.fold = torch.nn.functional.one_hot(projection).double()
        self.mean, self.means = torch.zeros_like(self.fold[0]), torch.zeros_like(self.fold[0])
        self.squares = torch.outer(self.mean, self.mean)

    def add(self, sample: Tensor, segments: Tensor, t: Tensor) -> None:
        if self.seen + self.filled == 0:
            self.origin = sample  # near the mean, so that sums of squares lose no digits
        counts = t.new_tensor([float(self.seen + self.filled > 0), 1.0])
        torch.cat([sample - self.origin, segments, t.reshape(1), counts], out=self.rows[self.filled])
        self.filled += 1
        if self.filled == CHUNK:
            self.flush()

    def flush(self) -> None:
        rows = self.rows[: self.filled]
        weights = rows.new_empty(REPLICATES, len(rows)).exponential_(generator=self.generator)
        self.first.addmm_(weights, rows)
        self.second.addmm_(weights, rows[:, : self.split[0]].square())
        self._project(rows[:, self.split[0] : sum(self.split)].double() @ self.fold)
        self.seen, self.filled = self.seen + self.filled, 0

    def end_batch(self) -> None:
        if self.filled:
            self.flush()
        n = sum(self.split)
        self.first[:, :n] /= self.first[:, -1:]
        self.second = (self.second / self.first[:, -1:] - self.first[:, : self.split[0]].square()).clamp_(min=0)
        self.first[:, : self.split[0]] += self.origin
        if self.totals is None:
            self.totals = self.first, self.second
            self.first, self.second = torch.zeros_like(self.first), torch.zeros_like(self.second)
        else:
            for total, part in zip(self.totals, (self.first, self.second)):
                total += part
            self.first.zero_()
            self.second.zero_()
        self.means += self.mean
        self.mean.zero_()
        self.seen, self.batches = 0, self.batches + 1

    def sample(self) -> tuple[Tensor, Tensor]:
        """Replicates of mean and variance of the sampled coordinates, each (replicates, sample)."""
        return self.totals[0][:, : self.split[0]] / self.batches, self.totals[1] / self.batches

    def segments(self) -> Tensor:
        """Replicates of the mean of the signed sums, (replicates, segments)."""
        return self.totals[0][:, self.split[0] : sum(self.split)] / self.batches

    def t(self) -> Tensor:
        """Replicates of tr Σ, (replicates,)."""
        return (self.totals[0][:, -3] / self.totals[0][:, -2]).double()

    def projected(self) -> tuple[Tensor, Tensor]:
        """Mean (k,) and sum of squared deviations within batches (k, k) of the projections."""
        return self.means / self.batches, self.squares

    def _project(self, y: Tensor) -> None:
        """Mean and squares of a chunk joined to those before (Chan et al. 1983)."""
        mean, n = y.mean(0), len(y)
        delta = mean - self.mean
        self.squares += (y - mean).T @ (y - mean) + torch.outer(delta, delta) * (n * self.seen / (n + self.seen))
        self.mean += delta * (n / (n + self.seen))


def largest_z(a: Mean, b: Mean) -> tuple[float, int]:
    """The largest |difference of the means| in standard errors over all coordinates, and the coordinate.

    A difference within rounding counts as none.

    >>> mean = lambda m: Mean(torch.tensor(m), torch.tensor([0.3, 0.3]), torch.zeros(1), torch.zeros(1, 1), 9)
    >>> z, coordinate = largest_z(mean([0.0, 1.0]), mean([0.0, 2.0]))
    >>> round(z, 1), coordinate
    (2.4, 1)
    """
    best, where = 0.0, 0
    step = 1 << 18
    for start in range(0, len(a.mean), step):
        (mean_a, mean_b), (error_a, error_b) = (
            [getattr(mean, name)[start : start + step].to(a.mean) for mean in (a, b)] for name in ("mean", "error")
        )
        error = (error_a.square() + error_b.square() + _rounding(mean_a).square() + _rounding(mean_b).square()).sqrt()
        z = ((mean_a - mean_b).abs() / error).nan_to_num(0.0)
        top = z.max(0)
        if top.values > best:
            best, where = top.values.item(), start + top.indices.item()
    return best, where


def typical_largest_z(coordinates: int) -> float:
    """The median of the largest of so many independent |z|, z ~ N(0, 1).

    >>> round(typical_largest_z(1), 2), round(typical_largest_z(1_000_000), 2)
    (0.67, 4.96)
    """
    return float(-norm.ppf(-math.expm1(-math.log(2) / coordinates) / 2))


def equal_means_p_value(a: Mean, b: Mean) -> float:
    """P-value of the hypothesis that two vectors have one mean: Hotelling's T² of the projections, unequal covariances.

    T² = dᵀ (S_a/n_a + S_b/n_b)⁻¹ d is compared with ν k/(ν − k + 1) F(k, ν − k + 1), ν by Krishnamoorthy & Yu (2004).
    Projections that vary by no more than rounding must be equal to rounding, else the p-value is 0.

    >>> moments = Moments([5], torch.zeros(1)), Moments([5], torch.zeros(1))
    >>> for i in range(2):
    ...     for g in torch.randn(100, 5, generator=torch.Generator().manual_seed(i)) + i:
    ...         t = moments[i].add(g)
    ...     moments[i].end_batch()
    >>> equal_means_p_value(moments[0].mean(), moments[1].mean()) < 1e-6
    True
    """
    d, scale = a.projected - b.projected, (a.covariance + b.covariance).diagonal().sqrt()
    rounding = sum(_rounding(mean.projected.to(mean.mean)) for mean in (a, b)).double()
    varies = scale > rounding
    if (d.abs() > 10 * rounding)[~varies].any():
        return 0.0
    if not varies.any():
        return 1.0
    d, scale = d[varies] / scale[varies], scale[varies]
    parts = [mean.covariance[varies][:, varies] / torch.outer(scale, scale) for mean in (a, b)]
    values, vectors = torch.linalg.eigh(parts[0] + parts[1])
    kept = values > 1e-9 * values.max()
    white = vectors[:, kept] / values[kept].sqrt()
    k, t_squared = int(kept.sum()), (d @ white).square().sum().item()
    parts = [white.T @ part @ white for part in parts]
    spread = sum(
        (part.square().sum() + part.trace() ** 2).item() / mean.freedom for part, mean in zip(parts, (a, b))
    )
    freedom = (k + k * k) / spread
    return float(f.sf(t_squared * (freedom - k + 1) / (freedom * k), k, freedom - k + 1)) if freedom > k else math.nan


def _segments(sizes: Sequence[int], projections: int) -> tuple[list[int], list[int]]:
    """Lengths of the segments of g, and to which projection each belongs.

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


def _rounding(mean: Tensor) -> Tensor:
    """The size of differences that rounding alone makes, generously, since gradients are long sums: ε^0.7 |mean|."""
    return torch.finfo(mean.dtype).eps ** 0.7 * mean.abs()


def short(value: float) -> str:
    """Three significant digits in at most eight characters.

    >>> [short(value) for value in (0.12345, 1234.5, -1.2345e-7, float("nan"))]
    ['0.123', '1230', '-1.23e-7', 'nan']
    """
    if not math.isfinite(value) or value == 0 or 1e-3 <= abs(value) < 1e5:
        digits = f"{value:.3g}"
        return f"{float(digits):.0f}" if "e" in digits else digits
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _root_ratio(squares: Tensor, traces: Tensor) -> Tensor:
    return (squares.clamp(min=0) / traces.clamp(min=0)).sqrt()


def _deviations(replicates: Tensor) -> Tensor:
    return (replicates - replicates.mean()).double()


def _centred(value: float, replicates: Tensor) -> Estimate:
    """The interval that the replicates' spread makes about a value that cannot be negative."""
    return Estimate(value, *_interval((value + _deviations(replicates)).clamp(min=0)))


def _interval(replicates: Tensor) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2
    low, high = replicates.quantile(replicates.new_tensor([tail, 1 - tail])).tolist()
    return low, high
