"""Schedules of the learning rate."""

import math

import torch
from torch.optim.lr_scheduler import LRScheduler


def warm_cosine(optimizer: torch.optim.Optimizer, steps: int, warm_up: float = 0.1) -> LRScheduler:
    """Return a schedule in which the learning rate grows linearly over a share of the steps, then falls to zero.

    It falls as a cosine (Loshchilov & Hutter 2017).

    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> schedule = warm_cosine(optimizer, steps=4, warm_up=0.5)
    >>> [round(schedule.lr_lambdas[0](step), 2) for step in range(5)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    warm = max(1, round(warm_up * steps))

    def factor(step: int) -> float:
        fallen = min(1.0, (step - warm) / max(1, steps - warm))
        return (step + 1) / warm if step < warm else 0.5 + 0.5 * math.cos(math.pi * fallen)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
