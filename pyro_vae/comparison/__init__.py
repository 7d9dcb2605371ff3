"""Gradient estimators compared: bounds, gradient variances, costs and their intervals.

compare.py    ``compare_estimators``, and the checks of its settings
results.py    its result: the numbers, and the table that ``print`` shows
best.py       ``best_estimator``, and the checks of its settings
candidates.py the estimators that it takes where none are given
racing.py     rounds of draws, in which estimators of one bound are raced
separation.py whether two of them can be told apart
ranking.py    its result, and the table that ``print`` shows
drawing.py    draws of a loss and its gradient, one by one or in blocks
vectorized.py loss and gradient as a recorded graph, compared with the program
replicates.py many draws of such a graph, computed together
measuring.py  many draws of an estimator: moments of loss and gradient, seconds a draw
moments.py    streaming moments of random vectors
sections.py   parts of such vectors, and sums over neighbouring draws
intervals.py  numbers with confidence intervals that allow for skewed draws
agreement.py  whether the mean gradients of two estimators agree
"""

from pyro_vae.comparison.best import best_estimator
from pyro_vae.comparison.candidates import candidates
from pyro_vae.comparison.compare import compare_estimators
from pyro_vae.comparison.intervals import Estimate
from pyro_vae.comparison.moments import Mean, Moments
from pyro_vae.comparison.ranking import Ranked, Ranking
from pyro_vae.comparison.results import (
    Agreement,
    BoundStatistics,
    Comparison,
    EstimatorStatistics,
    GradientStatistics,
)

__all__ = [
    "Agreement",
    "BoundStatistics",
    "Comparison",
    "Estimate",
    "EstimatorStatistics",
    "GradientStatistics",
    "Mean",
    "Moments",
    "Ranked",
    "Ranking",
    "best_estimator",
    "candidates",
    "compare_estimators",
]
