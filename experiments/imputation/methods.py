"""Imputation by scikit-learn: column means, chained linear regressions, and chained forests as in missForest."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.ensemble import ExtraTreesRegressor, RandomForestRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401  # it makes the import below work
from sklearn.impute import IterativeImputer, SimpleImputer

Imputer = Callable[[np.ndarray, np.ndarray], np.ndarray]


def mean_imputer(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return the test rows with the means of the seen training values in place of NaN."""
    return SimpleImputer(keep_empty_features=True).fit(train).transform(test)


def iterative_imputer(seed: int, **options: Any) -> Imputer:
    """Return scikit-learn's IterativeImputer: Bayesian ridge regression of each column on others, ten rounds."""
    return _chained(IterativeImputer(random_state=seed, keep_empty_features=True, **options))


def random_forests(seed: int, trees: int, max_iter: int) -> Imputer:
    """Return chained random forests, as missForest has them (Stekhoven & Bühlmann 2012)."""
    forest = RandomForestRegressor(trees, max_features="sqrt", min_samples_leaf=5, random_state=seed)
    return _chained(IterativeImputer(forest, random_state=seed, max_iter=max_iter, keep_empty_features=True))


def extra_trees(seed: int, trees: int, max_iter: int, **options: Any) -> Imputer:
    """Return chained ExtraTrees, which are several times as fast as random forests."""
    forest = ExtraTreesRegressor(trees, min_samples_leaf=5, random_state=seed)
    imputer = IterativeImputer(forest, random_state=seed, max_iter=max_iter, keep_empty_features=True, **options)
    return _chained(imputer)


def rmse(filled: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """Return the root of the mean squared error of the values that the mask does not show.

    >>> rmse(np.array([[1.0, 5.0]]), np.array([[1.0, 2.0]]), np.array([[True, False]]))
    3.0
    """
    return float(np.sqrt(np.mean(np.square(filled - truth)[~mask])))


def _chained(imputer: IterativeImputer) -> Imputer:
    def impute(train: np.ndarray, test: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the rounds are those that others take, too
            return imputer.fit_transform(train) if train is test else imputer.fit(train).transform(test)

    return impute
