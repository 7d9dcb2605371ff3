"""What users may change in a program while it is trained, and what not."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from pyro_vae.training.held import trained_and_missing

Kinds = Mapping[str, tuple[torch.dtype, torch.device]]  # of parameters, by their names


def kinds_of(program: Any) -> Kinds:
    """Return dtype and device of each parameter.

    >>> from torch import nn
    >>> kinds_of(nn.Linear(2, 1, bias=False))
    {'weight': (torch.float32, device(type='cpu'))}
    """
    return {name: (parameter.dtype, parameter.device) for name, parameter in program.named_parameters()}


def check_still_trained(program: Any, optimizer: Optimizer, kinds: Kinds) -> None:
    """Raise ValueError where the user has changed the program, within the loop, so that it cannot be trained on.

    ``kinds`` are those (``kinds_of``) with which the training began.

    >>> from torch import nn
    >>> layer = nn.Linear(2, 1)
    >>> optimizer = torch.optim.Adam(layer.parameters())
    >>> layer.weight = nn.Parameter(torch.zeros(1, 2))
    >>> check_still_trained(layer, optimizer, kinds_of(layer))
    Traceback (most recent call last):
        ...
    ValueError: program: the optimiser does not hold weight (1 of 2 parameters), which would stay as they are; ...
    """
    trained, missing = trained_and_missing(program, optimizer)
    if missing:
        raise ValueError(
            f"program: the optimiser does not hold {', '.join(missing[:3])} ({len(missing)} of {len(trained)} "
            "parameters), which would stay as they are; freeze what is to be unfrozen later only after the Training "
            'is made, or write training.optimizer.add_param_group({"params": list(part.parameters())})'
        )
    if not trained:
        raise ValueError("program: all its parameters are frozen; leave the loop by break, or unfreeze a part")
    for name, parameter in program.named_parameters():
        was = dtype, device = kinds.get(name, (parameter.dtype, parameter.device))
        if was != (parameter.dtype, parameter.device):
            raise ValueError(
                f"program: wanted its parameters as when the training was made, got {name} in {parameter.dtype} on "
                f"{parameter.device}, then in {dtype} on {device}; move a copy, copy.deepcopy(program), or move it and "
                "make another Training"
            )
