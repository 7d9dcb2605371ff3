"""Imputed cells against what stood there: errors of numbers in standard deviations, of levels as a share."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.tables import Schema


def simple(schema: Schema, train: Tensor, x: Tensor) -> Tensor:
    """Return x with the mean of a column of numbers, or the most frequent level, in its missing cells."""
    filled = []
    for column, values, seen in zip(schema.columns, x.T, train.T):
        known = seen[~seen.isnan()]
        levels, counts = known.unique(return_counts=True)
        value = levels[counts.argmax()] if column.levels else known.mean()
        filled.append(torch.where(values.isnan(), value, values))
    return torch.stack(filled, 1)


def errors(schema: Schema, truth: Tensor, gaps: Tensor, filled: Tensor, spread: Tensor | None = None) -> dict[str, Any]:
    """Return the error of each column in its gaps, and the means over the columns of numbers and over those of levels.

    Numbers: root mean squared error over the standard deviation of the true values. Levels: the share that is wrong.
    With a spread also ``within_2_sd``, the share of the true numbers within two of them; and ``wrong_expected``, the
    mean probability of another level, which is the share that is wrong where the program is right.
    """
    columns, found = {}, {"numbers": [], "levels": []}
    for i, column in enumerate(schema.columns):
        at = gaps[:, i]
        if not at.any():
            continue
        difference = (filled[at, i] - truth[at, i]).numpy()
        if column.levels:
            tolerance = 0.01 * np.diff(column.levels).min()
            entry = {"wrong": float((np.abs(difference) > tolerance).mean())}
            found["levels"].append(entry["wrong"])
            if spread is not None:
                entry["wrong_expected"] = float(spread[at, i].mean())
        else:
            entry = {"rmse": float(np.sqrt((difference**2).mean()) / truth[:, i].numpy().std())}
            found["numbers"].append(entry["rmse"])
            if spread is not None:
                entry["within_2_sd"] = float((np.abs(difference) <= 2 * spread[at, i].numpy()).mean())
        columns[str(column.name)] = {"kind": column.kind, "cells": int(at.sum()), **entry}
    means = {f"mean_{name}": float(np.mean(values)) for name, values in found.items() if values}
    return {**means, "columns": columns}
