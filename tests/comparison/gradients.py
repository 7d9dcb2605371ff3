"""Draws of gradients whose moments are known, and the moments of stored draws as they are streamed."""

import math

import numpy as np
import torch

from pyro_vae.comparison.moments import Moments


def streamed(*batches, sizes=None, at_once=64, **options):
    """The moments of batches of draws (n, P), some ``at_once``."""
    moments = Moments(sizes or [batches[0].shape[1]], batches[0][0, :1], **options)
    for batch in batches:
        for draws in batch.split(at_once):
            moments.extend([draws])
        moments.end_batch()
    return moments


def draws(n, loc, tril, seed):
    noise = torch.randn(n, len(loc), generator=torch.Generator().manual_seed(seed), dtype=loc.dtype)
    return loc + noise @ tril.T


class Scores:
    """Gradients of minus the ELBO of p(z) = N(0, 1), p(x | z) = N(2 z, 0.7²), by the score function without baseline.

    The guide is N(a x + b, s²); g is that of a, b and log s, summed over images. Its tails are heavy: the first entries
    are polynomials of degree 3 in a normal variable, the last of degree 4.
    """

    def __init__(self, images):
        self.x = 2.1 * torch.randn(images, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def __call__(self, noise):  # (..., images) -> (..., images, 3)
        z = 0.45 * self.x + 0.3 + 0.33 * noise
        log_p = -0.5 * ((self.x - 2 * z) / 0.7).square() - math.log(0.7) - 0.5 * z.square() - math.log(2 * math.pi)
        log_w = log_p + 0.5 * noise.square() + math.log(0.33) + 0.5 * math.log(2 * math.pi)
        score = torch.stack([self.x * noise / 0.33, noise / 0.33, noise.square() - 1], -1)
        return -log_w[..., None] * score

    def moments(self):
        """The mean and the variance of each coordinate, by Gauss–Hermite quadrature, which is exact here."""
        nodes, weights = (torch.tensor(part) for part in np.polynomial.hermite_e.hermegauss(20))
        g, weights = self(nodes[:, None].expand(-1, len(self.x))), weights[:, None, None] / weights.sum()
        mean = (weights * g).sum(0)
        return mean.sum(0), (weights * (g - mean).square()).sum((0, 1))

    def draws(self, n, generator):
        return self(torch.randn(n, len(self.x), generator=generator, dtype=torch.float64)).sum(-2)


class Gaussians:
    """Draws of a normal vector with the given means and variances of one, whose coordinates correlate."""

    def __init__(self, loc, correlation=0.0):
        self.loc, self.correlation = loc, correlation

    def moments(self):
        return self.loc, torch.ones_like(self.loc)

    def draws(self, n, generator):
        shared, own = (torch.randn(n, k, generator=generator, dtype=torch.float64) for k in (1, len(self.loc)))
        return self.loc + math.sqrt(self.correlation) * shared + math.sqrt(1 - self.correlation) * own
