"""Gradient estimators compared: bounds, gradient variances, costs and their intervals."""

from pyro_vae.comparison.compare import (
    Agreement,
    BoundStatistics,
    Comparison,
    EstimatorStatistics,
    GradientStatistics,
    compare_estimators,
)
from pyro_vae.comparison.moments import Estimate, Mean, Moments

__all__ = [
    "Agreement",
    "BoundStatistics",
    "Comparison",
    "Estimate",
    "EstimatorStatistics",
    "GradientStatistics",
    "Mean",
    "Moments",
    "compare_estimators",
]
