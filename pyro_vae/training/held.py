"""Which parameters of a program an optimiser holds."""

from typing import Any

from torch import nn
from torch.optim import Optimizer


def held_ids(optimizer: Optimizer) -> set[int]:
    """Return the ids of all parameters of an optimiser."""
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def held_parameters(program: Any, optimizer: Optimizer) -> dict[str, nn.Parameter]:
    """Return the parameters of a program that an optimiser holds, frozen ones included, by their names.

    >>> import torch
    >>> layer = nn.Linear(2, 1)
    >>> list(held_parameters(layer, torch.optim.Adam([layer.bias])))
    ['bias']
    """
    held = held_ids(optimizer)
    return {name: parameter for name, parameter in program.named_parameters() if id(parameter) in held}


def trained_and_missing(program: Any, optimizer: Optimizer) -> tuple[list[str], list[str]]:
    """Return the names of a program's parameters that are not frozen, and of those that an optimiser does not hold.

    >>> import torch
    >>> layer = nn.Linear(2, 1)
    >>> trained_and_missing(layer, torch.optim.Adam([layer.bias]))
    (['weight', 'bias'], ['weight'])
    """
    held = held_ids(optimizer)
    trained = {name: id(parameter) for name, parameter in program.named_parameters() if parameter.requires_grad}
    return list(trained), [name for name, key in trained.items() if key not in held]
