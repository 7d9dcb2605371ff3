"""A step of Pyro's optimiser on gradients that are known, without its Python loop where the optimiser is Adam.

Pyro keeps a torch optimiser for each parameter. Their states and settings are used where they lie.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.infer.util import zero_grads
from pyro.optim import PyroOptim
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor
from torch.optim import Adam

from pyro_vae.compiling.private import foreach, functional_adam, has_step_hooks, in_place_changes

PLAIN = {"weight_decay": 0, "amsgrad": False, "maximize": False, "capturable": False, "differentiable": False}
PLAIN["centered_variance"] = False  # of ClippedAdam
Settings = dict[str, Any]
LISTS = ("clamp_max", "clamp_min", "mul_", "add_", "addcmul_", "sqrt", "add", "addcdiv_")


class Steps:
    """Steps an optimiser as ``pyro.infer.SVI`` does, and leaves gradients of zero as it does.

    Args:
        optim: the optimiser.
        trained: parameters that get a gradient.
        untrained: parameters that get none; those that had one before are moved by the optimiser's momentum.

    >>> from pyro.optim import SGD
    >>> weight = torch.ones(2, requires_grad=True)
    >>> Steps(SGD({"lr": 0.1}), [weight], [])([torch.ones(2)])
    >>> weight, weight.grad
    (tensor([0.9000, 0.9000], requires_grad=True), tensor([0., 0.]))
    """

    def __init__(self, optim: PyroOptim, trained: Sequence[Tensor], untrained: Sequence[Tensor]):
        self.optim, self.trained, self.untrained = optim, list(trained), list(untrained)
        self.zeros: list[tuple[Tensor, int]] | None = None  # the gradients that were left, and their versions

    def __call__(self, gradients: Sequence[Tensor]) -> None:
        """Take a step."""
        together = self._together() if self._are_zero() else None
        if together is None:
            self._one_by_one(gradients)
            return
        with torch.no_grad():
            together(self, [ordered(gradient, p) for gradient, p in zip(gradients, self.trained)])
        if self.untrained:
            self.optim(self.untrained)

    def groups(self, gradients: Sequence[Tensor]) -> list[tuple[Settings, list[Any], list[Any], list[Any]]]:
        """Return settings, parameters, gradients and states, of all parameters with the same settings together."""
        found: dict[tuple, tuple[Settings, list[Any], list[Any], list[Any]]] = {}
        for parameter, gradient in zip(self.trained, gradients):
            optimizer = self.optim.optim_objs[parameter]
            settings = optimizer.param_groups[0]
            key = settings["lr"], settings["betas"], settings["eps"], settings.get("clip_norm")
            group = found.setdefault(key, (settings, [], [], []))
            for part, value in zip(group[1:], (parameter.detach(), gradient, optimizer.state[parameter])):
                part.append(value)
        return list(found.values())

    def _one_by_one(self, gradients: Sequence[Tensor]) -> None:
        for parameter, gradient in zip(self.trained, gradients):
            before = parameter.grad
            parameter.grad = torch.zeros_like(parameter).copy_(gradient) if before is None else before + gradient
        self.optim([*self.trained, *self.untrained])
        zero_grads([*self.trained, *self.untrained])
        self.zeros = [(p.grad, in_place_changes(p.grad)) for p in self.trained if p.grad is not None]

    def _are_zero(self) -> bool:
        """Return whether the gradients are still those that the last step left."""
        if self.zeros is None:
            return False
        return all(p.grad is zero and in_place_changes(zero) == n for p, (zero, n) in zip(self.trained, self.zeros))

    def _together(self) -> Callable[..., None] | None:
        """Return the function that steps all trained parameters; None if there is none for their optimisers."""
        if not all(parameter in self.optim.optim_objs for parameter in self.trained):
            return None
        optimizers: list[Any] = [self.optim.optim_objs[parameter] for parameter in self.trained]
        kinds = {type(optimizer) for optimizer in optimizers}
        if len(kinds) != 1 or type(self.optim) is not PyroOptim or any(map(self.optim.grad_clip.get, self.trained)):
            return None
        for optimizer, parameter in zip(optimizers, self.trained):
            group = optimizer.param_groups[0]
            plain = all(group.get(name, value) == value for name, value in PLAIN.items())
            if (
                not plain
                or not optimizer.state[parameter]
                or parameter.device.type != "cpu"
                or has_step_hooks(optimizer)
            ):
                return None
        return _together().get(kinds.pop())


def plain_adam(
    settings: Settings,
    values: Sequence[Tensor],
    gradients: Sequence[Tensor],
    states: Sequence[Settings],
    left_out: Tensor | None = None,
) -> None:
    """Take a step of plain Adam by torch's fused kernel (``functional_adam``), in the memory of values and states.

    Args:
        settings: those of the parameters' group.
        values: the parameters, without gradients.
        gradients: theirs, which lie in memory as they do (``ordered``).
        states: theirs, as ``Adam`` makes them.
        left_out: 1.0 where no value is to change; None: all do.
    """
    adam = functional_adam()
    assert adam is not None  # callers have asked
    means, squares, counts = ([state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "step"))
    betas = {"beta1": settings["betas"][0], "beta2": settings["betas"][1]}
    flags = {"fused": True, "weight_decay": 0.0, "amsgrad": False, "maximize": False, "found_inf": left_out}
    with torch.no_grad():
        adam(values, gradients, means, squares, [], counts, lr=settings["lr"], eps=settings["eps"], **betas, **flags)


def _adam(steps: Steps, gradients: Sequence[Tensor]) -> None:
    for group, parameters, of_group, states in steps.groups(gradients):
        plain_adam(group, parameters, of_group, states)


def _clipped_adam(steps: Steps, gradients: Sequence[Tensor]) -> None:
    """Do what ``ClippedAdam.step`` does, to the last bit."""
    at_most, at_least, mul_, add_, addcmul_, sqrt, add, addcdiv_ = foreach(*LISTS)
    for parameter in steps.trained:
        group = steps.optim.optim_objs[parameter].param_groups[0]
        group["lr"] *= group["lrd"]
    for group, parameters, of_group, states in steps.groups(gradients):
        (beta1, beta2), largest = group["betas"], group["clip_norm"]
        means, squares = ([state[key] for state in states] for key in ("exp_avg", "exp_avg_sq"))
        clipped = at_most(at_least(of_group, -largest), largest)
        mul_(means, beta1)
        add_(means, clipped, alpha=1 - beta1)
        mul_(squares, beta2)
        addcmul_(squares, clipped, clipped, 1 - beta2)
        for state in states:
            state["step"] += 1
        sizes = [-group["lr"] * math.sqrt(1 - beta2 ** s["step"]) / (1 - beta1 ** s["step"]) for s in states]
        addcdiv_(parameters, means, add(sqrt(squares), group["eps"]), sizes)


def _together() -> dict[type, Callable[[Steps, Sequence[Tensor]], None]]:
    """Return how to step all parameters at once, by the class of their optimisers."""
    known: dict[type, Callable[[Steps, Sequence[Tensor]], None]] = {}
    if functional_adam() is not None:
        known[Adam] = _adam
    if foreach(*LISTS):
        known[ClippedAdam] = _clipped_adam
    return known


def ordered(gradient: Tensor, parameter: Tensor) -> Tensor:
    """Return a gradient that lies in memory as its parameter does: fused optimisers read memory in order."""
    return gradient if gradient.stride() == parameter.stride() else torch.empty_like(parameter).copy_(gradient)
