"""Pareto k̂: the shape of the tail of importance weights (Vehtari et al. 2024).

Computed by NumPy in float64, which some devices of torch lack. No weights raise an exception.
"""

import math

import numpy as np

FEWEST = 5  # different weights that a tail must have for an estimate of its shape; equal ones that end it
ALIKE = 10  # values, from which on they say how much they vary
NORMAL_95 = 1.645  # the 95 % quantile of the standard normal
LIGHT = 0.5  # the largest shape of a tail at which the variance is finite
VANISHED = math.log(1e-290)  # log ratio to the largest weight, below which differences of two weights underflow


def pareto_k(log_w: np.ndarray, rounding: float | np.ndarray = 0.0) -> np.ndarray:
    """Return k̂ (B,) of the ⌈min(K/5, 3√K)⌉ largest weights of each column of log w (K, B), float64.

    It is a number, or

    - −inf if the five largest weights are equal, as a latent variable with few values makes them: there is no tail;
    - +inf if some weights of the tail vanish beside the largest: a few weights dominate all others;
    - NaN if there are too few weights: K ≤ 20, or fewer than five that differ from the smallest of the tail.

    Weights that differ by at most ``rounding``, a relative error, (B,) or one for all, count as equal. Each image must
    have at least one weight above zero, and none that is NaN or +inf.

    >>> u = np.random.default_rng(0).random((100_000, 1))
    >>> pareto_k(-0.6 * np.log(u)).round(1)  # w = u^−k has a Pareto tail of shape k
    array([0.6])
    """
    tail = math.ceil(min(len(log_w) / 5, 3 * math.sqrt(len(log_w))))
    if tail < FEWEST:
        return np.full(log_w.shape[1], np.nan)
    top = -np.sort(np.partition(-log_w, tail, axis=0)[: tail + 1], axis=0)
    return np.array([_tail_shape(*column) for column in zip(top.T, np.broadcast_to(rounding, log_w.shape[1]))])


def relative_weights(log_w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return weights divided by the largest of each column of log w (K, B), and the logarithm of that one, (B,).

    Where all are zero, they stay so.

    >>> relative_weights(np.array([[0.0, -np.inf], [-np.inf, -np.inf]]))[0]
    array([[1., 0.],
           [0., 0.]])
    """
    peak = log_w.max(0)
    return np.exp(log_w - np.where(np.isfinite(peak), peak, 0)), peak


def rounding_error(log_w: np.ndarray) -> np.ndarray:
    """Return the relative error of the largest weights of each column of log w (K, B), from their dtype, (B,).

    >>> rounding_error(np.array([[-100.0]], dtype=np.float32)).round(5)
    array([0.0001])
    """
    return 8 * np.finfo(log_w.dtype).eps * np.abs(log_w.max(0).astype(np.float64)).clip(min=1)


def pareto_limit(log_w: np.ndarray, rounding: float | np.ndarray = 0.0) -> np.ndarray:
    """Return an upper limit of the shape of the tail of each column of log w (K, B): ``shape_limit`` of its k̂.

    >>> u = np.random.default_rng(0).random((1000, 1))
    >>> pareto_k(-0.6 * np.log(u)).round(1), pareto_limit(-0.6 * np.log(u)).round(1)
    (array([0.8]), array([1.1]))
    """
    return shape_limit(pareto_k(log_w, rounding), len(log_w))


def shape_limit(k_hat: np.ndarray, K: int) -> np.ndarray:
    """Return an upper limit of the shapes of tails of K weights each, that holds for 95 % of them, from their k̂ (B,).

    k̂ of a few hundred weights is itself uncertain, by about (1 + k) / √M for a tail of M weights. A sample that has
    missed the large weights has a small k̂, a mean that is too low, and an error that is too small, all at once. So
    each k̂ is seen among the others, as ``shrunk`` does.

    >>> shape_limit(np.array([0.3, np.nan]), 1000).round(1)
    array([0.5, nan])
    """
    limit, finite = np.array(k_hat, np.float64), np.isfinite(k_hat)
    if finite.any():
        tail = math.ceil(min(K / 5, 3 * math.sqrt(K)))
        mean, spread = shrunk(limit[finite], (1 + max(limit[finite].mean(), 0)) / math.sqrt(tail))
        limit[finite] = mean + NORMAL_95 * spread
    return limit


def error_freedom(shape: np.ndarray, K: int) -> np.ndarray:
    """Return the degrees of freedom of the standard error of K weights whose tails have these shapes (B,).

    w² has a tail of shape 2k, so that the mean of K of them varies by about K^(2k − 1) of itself. An estimate of a
    variance that varies by c of itself has 2 / c² degrees of freedom (Satterthwaite 1946), here 2 K^(2 − 4k), and K − 1
    at most. Two where k is ½ or more, or unknown.

    >>> error_freedom(np.array([0.2, 0.4, 0.45, 0.7]), 1000).round()
    array([999.,  32.,   8.,   2.])
    """
    known = np.nan_to_num(shape, nan=LIGHT).clip(0, LIGHT)
    return np.minimum(K - 1, 2 * float(K) ** (2 - 4 * known))


def shrunk(values: np.ndarray, noise: float) -> tuple[np.ndarray, float]:
    """Return means and standard deviation of what lies under noisy values (B,), if it is normal (Efron & Morris 1973).

    How much it varies follows from the values themselves; fewer than ``ALIKE`` values say nothing about each other.

    >>> shrunk(np.array([0.1, 0.3] * 10), noise=0.1)[0].round(1)[:2], shrunk(np.array([0.1, 0.3]), noise=0.1)[0]
    (array([0.2, 0.2]), array([0.1, 0.3]))
    """
    if len(values) < ALIKE:
        return values, noise
    mean, between = values.mean(), max(values.var(ddof=1) - noise**2, 0.0)
    share = between / (between + noise**2)
    return mean + share * (values - mean), math.sqrt(share * noise**2 + (1 - share) * noise**2 / len(values))


def _tail_shape(top: np.ndarray, rounding: float) -> float:
    """Return k̂ of log weights in descending order; the tail begins at the last of them."""
    if top[top > -math.inf][-1] - top[0] < VANISHED:
        return math.inf
    if top[0] - top[FEWEST - 1] <= rounding:
        return -math.inf
    w = np.exp(top - top[0])
    excess = w[:-1] - w[-1]
    excess = excess[excess > rounding * w[-1]]  # without ties with the smallest of the tail
    if not len(excess):
        return -math.inf
    if len(excess) < FEWEST:
        return math.inf if w[-1] == 0 else math.nan
    return generalized_pareto_shape(excess)


def generalized_pareto_shape(x: np.ndarray) -> float:
    """Return k̂ of draws (N,) above 0 from a generalised Pareto distribution of location 0 (Zhang & Stephens 2009).

    It is their mean of θ = −k/scale over the profile likelihood, with the weak prior towards k = ½ of Vehtari et al.
    (2024). It equals ``pyro.ops.stats.fit_generalized_pareto`` wherever that returns a number. At θ = 0, where Pyro
    divides by zero, −k/θ is the mean of x.

    >>> round(generalized_pareto_shape(np.full(100, 0.5)), 1)
    -5.6
    """
    x = np.sort(x) / x.max()
    N, M = len(x), 30 + int(math.sqrt(len(x)))
    theta = 1 + (1 - np.sqrt(M / (np.arange(1, M + 1) - 0.5))) / (3 * x[int(N / 4 - 0.5)])
    k = np.log1p(-theta[:, None] * x).mean(1)
    scale = np.divide(-k, theta, out=np.full(M, x.mean()), where=theta != 0)
    log_likelihood = -N * (np.log(scale) + k + 1)
    weight = np.exp(log_likelihood - log_likelihood.max())
    k = np.log1p(-(weight @ theta / weight.sum()) * x).mean()
    return float(N * k + 5) / (N + 10)
