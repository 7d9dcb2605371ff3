"""Labels as inputs of networks."""

import math

import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from pyro_vae.checks import whole_number
from pyro_vae.tracing.numbers import is_tracing


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Return 1 at the place of each label and 0 elsewhere: whole numbers (...) -> floats (..., classes).

    Raises ValueError for labels outside 0 … classes − 1. A compiled graph cannot raise, and an accelerator would have
    to wait for each check: there such a label gives NaN, so that no bound is finite, and the search for its origin
    raises this error.

    >>> one_hot(torch.tensor([2, 0]), 3)
    tensor([[0., 0., 1.],
            [1., 0., 0.]])
    >>> one_hot(torch.tensor([2, -1]), 3)
    Traceback (most recent call last):
        ...
    ValueError: labels: wanted whole numbers from 0 to 2, as there are 3 classes, got -1 (1 of 2 labels); -1 is an
    unknown label: leave those rows out by split[split.labels >= 0], or sum over the classes
    """
    whole_number("classes", classes)
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        got = str(labels.dtype) if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f"labels: wanted a tensor of whole numbers, got {got}; write labels.long(), or split.labels")
    known = (labels >= 0) & (labels < classes)
    if _may_read(labels) and not known.all():
        raise ValueError(_outside(labels[~known], labels.numel(), classes))
    hot = labels.unsqueeze(-1) == torch.arange(classes, device=labels.device)
    return torch.where(known.unsqueeze(-1), hot.to(torch.get_default_dtype()), math.nan)


def _may_read(labels: Tensor) -> bool:
    """Return whether the values of labels can be read, and at no cost unless Pyro validates."""
    return not is_tracing() and (labels.device.type == "cpu" or is_validation_enabled())


def _outside(wrong: Tensor, count: int, classes: int) -> str:
    """Return what is wrong with the labels outside the classes, and the cure."""
    first, largest = int(wrong[0]), int(wrong.max())
    cure = "number the classes from 0" + (f", or build the program for {largest + 1} classes" if largest > 0 else "")
    if (wrong == -1).all():
        cure = "-1 is an unknown label: leave those rows out by split[split.labels >= 0], or sum over the classes"
    return (
        f"labels: wanted whole numbers from 0 to {classes - 1}, as there are {classes} classes, got {first} "
        f"({len(wrong)} of {count} labels); {cure}"
    )
