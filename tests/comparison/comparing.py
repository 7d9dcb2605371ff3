"""A small comparison without a bar, and the programs that its tests compare on."""

import math

import torch
from programs import SHAPE

from pyro_vae.comparison import compare_estimators
from pyro_vae.comparison.intervals import Estimate
from pyro_vae.comparison.results import (
    Agreement,
    BoundStatistics,
    Comparison,
    EstimatorStatistics,
    GradientStatistics,
)
from pyro_vae.linear_gaussian import LinearGaussian


def compare(*program_and_args, draws=100, **options):
    return compare_estimators(*program_and_args, draws=draws, progress=False, **options)


def oracle(offset=0.0):
    torch.manual_seed(0)
    program = LinearGaussian(torch.randn(5, 2, dtype=torch.float64), scale=0.7)
    program.posterior.loc_bias.data += offset
    return program, program.simulate(6)


def pictures(n=4):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(3)).round()


def estimate(value, freedom=math.inf):
    return Estimate(value, 0.9 * value, 1.2 * value, freedom)


def statistics(bound, variance, seconds, **changes):
    """An estimator with a gradient of two parameters of the guide, and none of the model."""
    guide = GradientStatistics(2, 2, estimate(variance), estimate(0.5), estimate(0.25), None)
    of_bound = BoundStatistics(bound, 0.125, 4.0, None)
    return EstimatorStatistics(**{
        "kind": "Trace_ELBO", "particles": 1, "estimates": "ELBO", "is_bound": True, "bound": of_bound, "guide": guide,
        "model": None, "seconds": seconds, **changes,
    })  # fmt: skip


def made(estimators, agreements=(), **changes):
    """A result that was not measured, its reference the first estimator."""
    settings = {"draws": 50, "batches": 1, "images": 8, "seed": 3, "shared": (), **changes}
    return Comparison(estimators, tuple(agreements), next(iter(estimators)), **settings)


def pair(first, second, p_value, expected=True, group="guide"):
    return Agreement(first, second, group, 3.5, 1.2, "posterior.loc", p_value, expected)
