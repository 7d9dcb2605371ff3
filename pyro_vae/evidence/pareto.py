"""Pareto k̂: the shape of the tail of importance weights (Vehtari et al. 2024).

In NumPy: in float64, whatever the device of the weights has, and with no exception for any weights.
"""

import math

import numpy as np

FEWEST = 5  # different weights in a tail, below which nothing can be said of its shape
VANISHED = math.log(1e-290)  # of a weight beside the largest: so little that a difference of two is no longer a number


def pareto_k(log_w: np.ndarray, rounding: float | np.ndarray = 0.0) -> np.ndarray:
    """k̂, shape (B,), of the ⌈min(K/5, 3√K)⌉ largest weights of each column of log w (K, B), float64.

    It is a number, or

    - −inf where the largest weights are equal: there is no tail;
    - +inf where the tail holds weights that vanish beside the largest: a few weights carry all;
    - NaN where there are too few weights to say, K ≤ 20, or fewer than five different from the least of the tail.

    Weights that differ by no more than ``rounding``, a relative error, (B,) or one for all, are equal. Of every image
    one weight at least must be above zero, and none NaN or +inf.

    >>> u = np.random.default_rng(0).random((100_000, 1))
    >>> pareto_k(-0.6 * np.log(u)).round(1)  # w = u^−k has a Pareto tail of shape k
    array([0.6])
    """
    tail = math.ceil(min(len(log_w) / 5, 3 * math.sqrt(len(log_w))))
    if tail < FEWEST:
        return np.full(log_w.shape[1], np.nan)
    top = -np.sort(np.partition(-log_w, tail, axis=0)[: tail + 1], axis=0)
    return np.array([_tail_shape(*column) for column in zip(top.T, np.broadcast_to(rounding, log_w.shape[1]))])


def _tail_shape(top: np.ndarray, rounding: float) -> float:
    """k̂ of log weights in falling order, the last of which is where the tail begins."""
    if top[top > -math.inf][-1] - top[0] < VANISHED:
        return math.inf
    w = np.exp(top - top[0])
    excess = w[:-1] - w[-1]
    excess = excess[excess > rounding * w[-1]]  # without ties with the least of the tail
    if not len(excess):
        return -math.inf
    if len(excess) < FEWEST:
        return math.inf if w[-1] == 0 else math.nan
    return generalized_pareto_shape(excess)


def generalized_pareto_shape(x: np.ndarray) -> float:
    """k̂ of draws (N,) above 0 from a generalised Pareto distribution of location 0 (Zhang & Stephens 2009).

    Their mean of θ = −k/scale over the profile likelihood, and the weak prior towards k = ½ of Vehtari et al. (2024):
    ``pyro.ops.stats.fit_generalized_pareto`` where that gives a number. Its θ may be 0, where −k/θ is the mean of x.

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
