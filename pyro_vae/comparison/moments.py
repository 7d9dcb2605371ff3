"""Moments of random vectors, streamed: a few vectors are kept, whatever the number of draws.

``Moments`` takes draws of g (P,) one by one; ``largest_z`` and ``equal_means_p_value`` compare the means of two.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import f, norm
from scipy.stats import t as student
from torch import Generator, Tensor
from torch.nn.functional import normalize, one_hot

SECTIONS = 128  # sums over neighbouring draws that the intervals are made from, at most
SAMPLE = 1024  # coordinates of g that they follow
SEGMENTS = 1024  # signed sums of g that they follow
PROJECTIONS = 24  # of the test of equal means, at most
LEVEL = 0.95  # of the intervals
TAIL = 1.5  # the skewness of variances and means is this many times what is measured: samples miss heavy tails
FEW = 5  # degrees of freedom below which a few draws make the width of an interval


@dataclass(frozen=True)
class Estimate:
    """A number and its interval of 95 %, NaN where there are fewer than three draws a batch.

    ``freedom`` is the degrees of freedom that the interval's width rests on. Below five the width comes from a few
    draws: the tails of the gradient may be too heavy for any interval, and ``str`` puts a question mark behind it.

    >>> print(Estimate(0.5, 0.45, 0.56), Estimate(0.5, 0.2, 1.4, freedom=3.1))
    0.5 [0.45, 0.56] 0.5 [0.2, 1.4]?
    """

    value: float
    low: float
    high: float
    freedom: float = math.inf

    @property
    def doubtful(self) -> bool:
        """Whether a few draws make the interval's width."""
        return self.freedom < FEW

    def __str__(self) -> str:
        return f"{short(self.value)} [{short(self.low)}, {short(self.high)}]{'?' * self.doubtful}"


@dataclass(frozen=True)
class Mean:
    """The mean of a number of draws, coordinate by coordinate and in a few fixed random projections.

    ``mean`` and its standard ``error`` (kept in 16 bits) have shape (P,), ``projected`` (k,), ``covariance`` of
    ``projected`` (k, k). ``freedom`` is the number of draws less that of batches. ``sections`` (m, k) is what each of m
    runs of neighbouring draws adds to ``projected``.
    """

    mean: Tensor
    error: Tensor
    projected: Tensor
    covariance: Tensor
    freedom: int
    sections: Tensor


class Moments:
    """Mean and variance of each coordinate of g (P,), streamed, with intervals of what is derived from them.

    Draws come by ``add``, in one batch or, with ``end_batch`` after each, in several of one size. Means are averages
    over batches; variances are those within batches (``trace``, ``snr``, ``norm_ratio``) or ``between`` them.

    The variance of coordinates is Welford's (1962). Each draw adds to it its squared distance from the mean before,

        t_i = (i − 1)/i ‖g_i − ḡ_(i−1)‖²,        E t_i = tr Σ,        Σ_i t_i / (n − 1) = tr Σ̂ exactly.

    Intervals come from what each draw adds to a statistic, to first order (infinitesimal jackknife, Jaeckel 1972): its
    squares give the standard error, its cubes the skewness and its fourth powers the degrees of freedom, see
    ``_interval``. For this, t_i is followed, a random sample of the coordinates, and sums of g over segments with
    random signs s, whose squared norm is that of g on average (Charikar et al. 2002); neighbouring draws are summed
    where there are more than ``SECTIONS``. So it needs no more memory than a few g; where P is at most ``SAMPLE``, all
    of g is followed, else the intervals are slightly too wide. Of the intervals from 100 draws 93 to 97 % cover, for
    Gaussian gradients as for the score function's; fewer where tails are so heavy that an estimate is ``doubtful``.

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
        self._sections = _Sections(len(self._chosen), len(segments), like)
        self._projected = _Projected(torch.tensor(projection, device=like.device))

    def add(self, g: Tensor) -> Tensor:
        """Takes one draw; returns t_i, which is finite where g is."""
        self.count += 1
        weight = (self.count - 1) / self.count
        delta = torch.sub(g, self._mean, out=self._scratch)
        t = delta.dot(delta) * weight
        self._mean.add_(delta, alpha=1 / self.count)
        self._squares.addcmul_(delta, delta, value=weight)
        segments = self._signed_sums(g)
        self._sections.add(g[self._chosen], segments, t)
        self._projected.add(segments)
        return t

    def end_batch(self) -> None:
        """Ends a batch of at least two draws."""
        self._sections.end_batch()
        self._projected.end_batch()
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
        error = (self._squares / scale).sqrt_().bfloat16()
        projected, squares = self._projected.means / self.batches, self._projected.squares
        sections = self._deviations()[2].to(projected) @ self._projected.fold
        return Mean(self._mean_of_batches, error, projected, squares / scale, self._freedom(), sections)

    def trace(self) -> Estimate:
        """(a) tr Σ, the sum over coordinates of the variance within batches."""
        *_, t = self._deviations()
        trace = self._trace()
        low, high, freedom = _interval(trace, t, TAIL)
        return Estimate(trace, max(low, 0.0), high, freedom)

    def snr(self) -> Estimate:
        """(b) The mean of |mean| / sd over the coordinates that vary by more than rounding; NaN where none does.

        n draws leave it at √(2 / π n) where the mean is zero: values near that are not told from zero. The lower end of
        the interval makes room for this bias: with z = √n mean / sd, √(10 / π) exp(−2 z²) has a mean that is above the
        bias of |z|, wherever the true mean lies.
        """
        total = sum((m.abs() / v.sqrt())[v > 0].sum(dtype=torch.float64) for m, v in self._varying())
        snr = total.item() / max(self.varying(), 1) if self.varying() else math.nan
        m, v = self._mean_of_batches[self._chosen], self._squares[self._chosen] / self._freedom()
        varies = (v > _rounding(m).square()).cpu()
        if not varies.any():
            return Estimate(snr, math.nan, math.nan)
        m, sd = m.cpu().double()[varies], v.cpu().double()[varies].sqrt()
        first, squares = (part[:, varies] for part in self._deviations()[:2])
        low, high, freedom = _interval(snr, (m.sign() / sd * first - m.abs() / (2 * sd**3) * squares).mean(1))
        bias = math.sqrt(10 / math.pi / self.draws) * (-2 * self.draws * (m / sd).square()).exp().mean().item()
        return Estimate(snr, max(low - bias, 0.0), high, freedom)

    def norm_ratio(self) -> Estimate:
        """(c) ‖μ‖ / √tr Σ, where ‖μ‖² is estimated by ‖ḡ‖² − tr Σ̂ / n, without bias, and taken as zero if negative.

        Noise along ḡ changes ‖ḡ‖ itself, noise at right angles to it changes ‖ḡ‖². Each has an interval of its own; the
        distances of their ends from the ratio are added in squares (Zou & Donner 2008).
        """
        trace, square = self._trace(), self.mean_norm_squared()
        value = _root_ratio(square, trace)
        if not trace:
            return Estimate(value, value, value)
        *_, segments, t = self._deviations()
        mean = self._signed_sums(self._mean_of_batches).cpu().double()
        along = segments @ normalize(mean, dim=0)
        gram = segments @ segments.T
        across = math.sqrt(2 * _products(gram - torch.outer(along, along)))
        along = along * _room_for_direction(along, gram, (mean.square().sum() * self.draws / trace).item())
        length = square + along.square().sum().item()  # of ḡ, squared, less the noise across it
        ratio = _root_ratio(length, trace)
        low, high, freedom = _interval(ratio, along / math.sqrt(trace) - ratio / 2 * t / trace)
        across *= _quantile(freedom)
        below, above = (_root_ratio(length + noise, trace) for noise in (-across, across))
        low, high = ratio - math.hypot(ratio - low, ratio - below), ratio + math.hypot(high - ratio, above - ratio)
        return Estimate(value, min(max(low, 0.0), value), max(high, value), freedom)

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

    def _deviations(self) -> list[Tensor]:
        """What sections add to the mean and the variance of the sample, to the mean of the signed sums, and to tr Σ̂."""
        first, squares, segments, t = self._sections.deviations(self._freedom())
        return [first, squares, segments, t[:, 0]]

    def _signed_sums(self, g: Tensor) -> Tensor:
        signed = torch.mul(g, self._signs, out=self._scratch)
        return torch.segment_reduce(signed, "sum", lengths=self._lengths)

    def _choose(self) -> Tensor:
        device = self._signs.device
        if self.size <= SAMPLE:
            return torch.arange(self.size, device=device)
        return torch.randint(self.size, (SAMPLE,), generator=self._generator, device=device).unique()


class _Sections:
    """Sums over sections, which are neighbouring draws, of [sample, its squares, segments, t], about their means.

    A section is one draw as long as ``SECTIONS`` suffice; then neighbours are joined.
    """

    def __init__(self, sample: int, segments: int, like: Tensor):
        self.split = (sample, sample, segments, 1)
        self.origin = like.new_zeros(sample + segments)
        self.rows, self.length, self.count = like.new_zeros(SECTIONS, sum(self.split)), 1, 0
        self.finished = self.rows[:0]

    def add(self, sample: Tensor, segments: Tensor, t: Tensor) -> None:
        if not self.count:
            self.origin = torch.cat([sample, segments])  # near the mean, so that sums of squares lose no digits
        if self.count == SECTIONS * self.length:
            self.rows = torch.cat([_joined(self.rows), torch.zeros_like(self.rows[: SECTIONS // 2])])
            self.length *= 2
        sample, segments = (torch.cat([sample, segments]) - self.origin).split([len(sample), len(segments)])
        self.rows[self.count // self.length] += torch.cat([sample, sample.square(), segments, t.reshape(1)])
        self.count += 1

    def end_batch(self) -> None:
        used = math.ceil(self.count / self.length)
        rows, counts = self.rows[:used], self.rows.new_full((used, 1), self.length)
        counts[-1] = self.count - (used - 1) * self.length
        rows[0, -1] += rows[:, -1].sum() / (self.count - 1)  # the first draw has no t: it is given the mean
        first, squares, *_ = rows.split(self.split, 1)
        mean = first.sum(0) / self.count
        squares += counts * mean.square() - 2 * mean * first
        rows -= counts * (rows.sum(0) / self.count)
        if self.count < 3:
            rows.fill_(math.nan)  # one squared deviation says nothing of its spread
        self.finished = torch.cat([self.finished, rows])
        while len(self.finished) > SECTIONS:
            self.finished = _joined(self.finished)
        self.rows.zero_()
        self.length, self.count = 1, 0

    def deviations(self, freedom: int) -> Sequence[Tensor]:
        """The sums over sections (sections, …), in float64, divided by the degrees of freedom."""
        return (self.finished.cpu().double() / freedom).split(self.split, 1)


class _Projected:
    """Means over batches of projections (k,), which are sums of segments, and their squares within batches (k, k)."""

    def __init__(self, projection: Tensor):
        self.fold, self.count = one_hot(projection).double(), 0
        self.mean, self.means = torch.zeros_like(self.fold[0]), torch.zeros_like(self.fold[0])
        self.squares = torch.outer(self.mean, self.mean)

    def add(self, segments: Tensor) -> None:
        self.count += 1
        delta = segments.double() @ self.fold - self.mean
        self.mean += delta / self.count
        self.squares += torch.outer(delta, delta) * ((self.count - 1) / self.count)

    def end_batch(self) -> None:
        self.means += self.mean  # their sum
        self.mean.zero_()
        self.count = 0


def largest_z(a: Mean, b: Mean) -> tuple[float, int]:
    """The largest |difference of the means| in standard errors over all coordinates, and the coordinate.

    A difference within rounding counts as none.

    >>> nothing = torch.zeros(1, 1)
    >>> mean = lambda m: Mean(torch.tensor(m), torch.tensor([0.3, 0.3]), nothing[0], nothing, 9, nothing)
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
    T is first freed of skewness along the direction in which the means differ most (Hall 1992, see ``_interval``),
    where that makes it smaller: a heavy tail on one side that the draws have missed shifts the mean.
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
    k, towards = int(kept.sum()), d @ white
    t = towards.norm().item()
    direction = white @ (towards / max(t, 1e-300))
    u = torch.cat([sign * mean.sections[:, varies] / scale @ direction for sign, mean in ((1, a), (-1, b))])
    t_squared = max(0.0, min(t, _without_skewness(t, TAIL * _skewness(u)))) ** 2  # t where the skewness is NaN
    parts = [white.T @ part @ white for part in parts]
    spread = sum((part.square().sum() + part.trace() ** 2).item() / mean.freedom for part, mean in zip(parts, (a, b)))
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


def _joined(rows: Tensor) -> Tensor:
    """Neighbouring rows summed; a last one without a neighbour stays."""
    return torch.cat([rows[:-1:2] + rows[1::2], rows[len(rows) // 2 * 2 :]])


def _products(gram: Tensor) -> float:
    """Σ (uᵢ · uⱼ)² over i ≠ j, from the products ``gram`` of rows u: an estimate of tr E[eeᵀ]² for the error e = Σu."""
    return (gram.square().sum() - gram.diagonal().square().sum()).clamp(min=0).item()


def _room_for_direction(along: Tensor, gram: Tensor, signal: float) -> float:
    """The factor, at least 1, for the noise ``along`` ḡ, since the direction of the true mean is known only from ḡ.

    If ḡ were noise e alone, the variance along it would be tr E[eeᵀ]² / tr E[eeᵀ] on average. The variance is the mean
    of this and of the one that was found, with weights 1 and signal = ‖ḡ‖² / E‖e‖².
    """
    found = along.square().sum().item()
    typical = _products(gram) / gram.trace().item()
    return math.sqrt(max(1.0, (signal + typical / found) / (signal + 1))) if found else 1.0


def _root_ratio(square: float, trace: float) -> float:
    """√(square / trace), zero where the square is negative; NaN or infinite where the trace is zero."""
    if trace:
        return math.sqrt(max(square, 0.0) / trace)
    return math.inf if square > 0 else math.nan


def _interval(value: float, u: Tensor, tail: float = 1.0) -> tuple[float, float, float]:
    """Ends and degrees of freedom of the interval of a value, from what each section adds to it, u (sections,).

    The standard error is s = √Σu², the skewness of the value γ = ``tail`` Σu³ / s³. Of T = (value − truth) / s, Hall's
    (1992, J. R. Stat. Soc. B 54) transformation is free of skewness to first order, monotone and inverted at once:

        x = T + γ/3 T² + γ²/27 T³ + γ/6,        T = 3/γ ((1 + γ (x − γ/6))^⅓ − 1).

    x is taken for Student's t with Satterthwaite's (1946) degrees of freedom of s²: 2 s⁴ / var s², var s² = Σu⁴ − s⁴/m
    for m sections, and at most m − 1.

    >>> low, high, freedom = _interval(1.0, torch.tensor([-0.01, -0.01, -0.01, 0.03]).double())
    >>> f"{low:.2f} {high:.2f} {freedom:.1f}"
    '0.93 1.35 3.0'
    """
    error = u.norm().item()
    if not error > 0:
        return value + error, value + error, math.inf  # NaN where u is
    spread = (u / error).pow(4).sum().item() - 1 / len(u)
    freedom = min(2 / spread, len(u) - 1.0) if spread > 0 else len(u) - 1.0
    x, skewness = _quantile(freedom), tail * _skewness(u)
    return value - error * _with_skewness(x, skewness), value - error * _with_skewness(-x, skewness), freedom


def _skewness(u: Tensor) -> float:
    """Σu³ / (Σu²)^(3/2)."""
    return (u / u.norm()).pow(3).sum().item()


def _without_skewness(t: float, skewness: float) -> float:
    """x of T; see ``_interval``."""
    return t + skewness / 3 * t**2 + skewness**2 / 27 * t**3 + skewness / 6


def _with_skewness(x: float, skewness: float) -> float:
    """T of x; see ``_interval``."""
    if abs(skewness) < 1e-6:
        return x
    return 3 / skewness * (float(np.cbrt(1 + skewness * (x - skewness / 6))) - 1)


def _quantile(freedom: float) -> float:
    """|t| that a share ``LEVEL`` of Student's t lies within."""
    return float(student.ppf((1 + LEVEL) / 2, freedom))
