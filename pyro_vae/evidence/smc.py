"""Resampling among the chains of an image: sequential Monte Carlo (Del Moral et al. 2006).

Chains of small weight die and chains of large weight have several heirs, each with the mean weight, so that E w = p(x)
stays. Chains are then no longer independent. Their *families*, the heirs of one starting chain, nearly are: a family's
weight is the sum over its chains, and the spread of these weights gives the standard error (Chan & Lai 2013).
"""

import numpy as np
import torch

from pyro_vae.evidence.pareto import relative_weights

THRESHOLD = 0.5  # effective sample size, as a share of the chains, below which an image is resampled


def resampled(log_w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return log weights (C, B) after resampling, and which chains were chosen, (C, B).

    It is systematic (Kitagawa 1996), with random numbers of torch. Images keep their chains while their effective
    sample size is at least half the number of chains.

    >>> resampled(np.log([[1.0], [1e-9], [1e-9]]))[1].tolist()
    [[0], [0], [0]]
    """
    C, B = log_w.shape
    w, peak = relative_weights(log_w)
    total = w.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):  # all weights zero, or NaN: reported at the end
        poor = total**2 < THRESHOLD * C * (w**2).sum(0)
        edges = np.cumsum(w / total, 0)
        mean = peak + np.log(total / C)
    points = (np.arange(C)[:, None] + torch.rand(B, dtype=torch.float64).numpy()) / C
    chosen = np.broadcast_to(np.arange(C)[:, None], log_w.shape).copy()
    for i in np.flatnonzero(poor):
        chosen[:, i] = np.searchsorted(edges[:, i], points[:, i]).clip(max=C - 1)
    return np.where(poor, mean, log_w), chosen


def family_weights(log_w: np.ndarray, family: np.ndarray) -> np.ndarray:
    """Return the log of the sum of the weights of each family, (C, B), from those of its chains; −inf if it died out.

    >>> family_weights(np.zeros((3, 1)), np.array([[0], [0], [2]])).round(2)
    array([[0.69],
           [-inf],
           [0.  ]])
    """
    sums = np.full_like(log_w, -np.inf)
    np.logaddexp.at(sums, (family, np.arange(log_w.shape[1])), log_w)
    return sums
