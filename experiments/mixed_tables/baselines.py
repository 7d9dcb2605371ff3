"""Densities of tables that are known by other means: independent columns, a normal, mixtures of normals.

Each is fitted to the training rows by maximum likelihood and returns log p(x) of each row in the table's own units.
Numbers are modelled as the likelihood does: x (real) or ln x (positive) in standard deviations, with the same floor of
the scale, so that no model gains by a narrower density on a value that many rows share.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import optimize, stats
from sklearn.mixture import GaussianMixture

from pyro_vae.likelihoods.columns import SMALLEST_LOG_SCALE
from pyro_vae.tables import Column, Schema

FLOOR = np.exp(SMALLEST_LOG_SCALE)  # of scales, in standard deviations
COMPONENTS = (1, 2, 4, 8, 16, 32)

Score = Callable[[np.ndarray], np.ndarray]


def baselines(schema: Schema, train: np.ndarray, valid: np.ndarray, seed: int) -> dict[str, Score]:
    """Return the log densities of rows, (rows, D) -> (rows,), by name; rows without missing cells."""
    numbers = [i for i, column in enumerate(schema.columns) if column.kind in ("real", "positive")]
    others = [i for i in range(len(schema)) if i not in numbers]
    single = {i: column_density(schema.columns[i], train[:, i]) for i in range(len(schema))}

    def independent(columns: list[int]) -> Score:
        return lambda x: sum((single[i](x[:, i]) for i in columns), np.zeros(len(x)))

    found = {"independent columns": independent([*range(len(schema))])}
    if len(numbers) > 1:
        rest = independent(others)
        mixtures = {k: jointly(schema, numbers, train, k, seed) for k in COMPONENTS if k * 5 < len(train)}
        best = max(mixtures, key=lambda k: mixtures[k](valid).mean())
        found["one normal for all numbers"] = plus(mixtures[1], rest)
        found["a mixture of normals for all numbers"] = plus(mixtures[best], rest)
    return found


def plus(first: Score, second: Score) -> Score:
    """Return the sum of two log densities."""
    return lambda x: first(x) + second(x)


def column_density(column: Column, values: np.ndarray) -> Score:
    """Return the log density of one column by maximum likelihood."""
    if column.levels:
        levels, log_shares = np.array(column.levels), np.log(column.shares)
        return lambda x: log_shares[np.abs(x[:, None] - levels).argmin(1)]
    if column.kind == "count":
        return negative_binomial(values)
    return lambda x: stats.norm.logpdf(of_normal(column, x), column.loc, column.scale) + log_jacobian(column, x)


def negative_binomial(values: np.ndarray) -> Score:
    """Return the log mass of the negative binomial distribution of the largest likelihood; its mean is the sample's."""
    mean = values.mean()

    def score(x: np.ndarray, log_theta: float) -> np.ndarray:
        theta = np.exp(log_theta)
        return stats.nbinom.logpmf(x, theta, theta / (theta + mean))

    best: Any = optimize.minimize_scalar(lambda t: -score(values, t).sum(), bounds=(-8, 12), method="bounded")
    return lambda x: score(x, best.x)


def jointly(schema: Schema, numbers: list[int], train: np.ndarray, components: int, seed: int) -> Score:
    """Return the log density of the numeric columns under a mixture of normals with full covariances."""
    columns = [schema.columns[i] for i in numbers]

    def standard(x: np.ndarray) -> np.ndarray:
        return np.stack([(of_normal(c, x[:, i]) - c.loc) / c.scale for c, i in zip(columns, numbers)], 1)

    fitted: Any = GaussianMixture(components, reg_covar=FLOOR**2, random_state=seed, max_iter=500).fit(standard(train))

    def score(x: np.ndarray) -> np.ndarray:
        units = sum((log_jacobian(c, x[:, i]) - np.log(c.scale) for c, i in zip(columns, numbers)), np.zeros(len(x)))
        return fitted.score_samples(standard(x)) + units

    return score


def of_normal(column: Column, x: np.ndarray) -> np.ndarray:
    """Return what is normal: x of a real column, ln x of a positive one."""
    return np.log(x) if column.kind == "positive" else x


def log_jacobian(column: Column, x: np.ndarray) -> np.ndarray:
    """Return ln |du / dx| of that."""
    return -np.log(x) if column.kind == "positive" else np.zeros_like(x)
