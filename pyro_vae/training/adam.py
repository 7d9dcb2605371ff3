"""A step of plain Adam by torch's fused kernel, without what ``Adam.step`` does in Python."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim import Adam, Optimizer

from pyro_vae.compiling.private import functional_adam, has_step_hooks
from pyro_vae.compiling.steps import plain_adam
from pyro_vae.parallel import at_once, cores, shared_out

PLAIN = {"weight_decay": 0, "amsgrad": False, "maximize": False}


def is_plain_adam(optimizer: Optimizer) -> bool:
    """Return whether ``adam_step`` does all that a step of this optimiser does.

    >>> from torch import nn
    >>> layer = nn.Linear(1, 1)
    >>> is_plain_adam(Adam(layer.parameters())), is_plain_adam(Adam(layer.parameters(), amsgrad=True))
    (True, False)
    """
    group = optimizer.param_groups[0]
    return (
        type(optimizer) is Adam
        and len(optimizer.param_groups) == 1
        and all(group[name] == value for name, value in PLAIN.items())
        and bool(group["fused"] or group["params"][0].device.type == "cpu")  # so that t lies beside the parameters
        and functional_adam() is not None
        and not has_step_hooks(optimizer)
    )


def adam_step(
    optimizer: Optimizer,
    parameters: Sequence[Tensor],
    values: list[Tensor],
    gradients: list[Tensor],
    loss: Tensor,
    lr: float | Tensor | None = None,
) -> None:
    """Take a step of plain Adam; a step whose loss is not finite is left out.

    Args:
        optimizer: the optimiser, with its state.
        parameters: the parameters that are stepped.
        values: the same parameters, detached.
        gradients: their gradients.
        loss: the loss.
        lr: the learning rate, a tensor () on the GPU where the step is part of a CUDA graph; None: the optimiser's.
    """
    (group,) = optimizer.param_groups
    group = group if lr is None else {**group, "lr": lr}
    states, left_out = [optimizer.state[parameter] for parameter in parameters], (~loss.isfinite()).float()

    def step(indices: list[int]) -> None:
        of_these: list[list[Any]] = [[tensors[i] for i in indices] for tensors in (values, gradients, states)]
        plain_adam(group, *of_these, left_out=left_out)

    groups = shared_out([value.numel() for value in values], cores() if loss.device.type == "cpu" else 1)
    at_once([partial(step, indices) for indices in groups])
