"""The outcome of a run of a loss, eager or compiled, and whether two runs differ by more than rounding."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from pyro_vae.compiling.private import in_place_changes
from pyro_vae.random import forked_rng
from pyro_vae.tracing.probing import tensors

# Usual relative differences between two orders of summation, of a loss and of a gradient.
USUAL = {
    torch.float64: (1e-10, 1e-7),
    torch.float32: (1e-5, 1e-3),
    torch.bfloat16: (1e-2, 0.1),
    torch.float16: (1e-2, 0.1),
}
FLOOR = 0.1  # a gradient counts as at least this share of the norm of all gradients together
NUDGE = 4.0  # units in the last place by which parameters are moved, to see the effect of rounding
ROUNDING = 10.0  # times that effect, above which a difference is more than rounding


@dataclass(frozen=True)
class Outcome:
    """A loss, its gradients by name of the parameter, and the buffers that the run changed, by name."""

    loss: Tensor
    gradients: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]

    def values(self) -> dict[str, Tensor]:
        """Return all tensors, by their names in a message."""
        return {
            "the loss": self.loss,
            **{f"the gradient of {name}": gradient for name, gradient in self.gradients.items()},
            **{f"the buffer {name}": buffer for name, buffer in self.buffers.items()},
        }

    def norm(self) -> Tensor:
        """Return the norm of all gradients together."""
        return nn.utils.get_total_norm(list(self.gradients.values())) if self.gradients else torch.zeros(())

    def is_finite(self) -> bool:
        """Return whether the loss and all gradients are finite."""
        return bool((self.loss + 0 * self.norm()).isfinite())


def outcome(
    loss: Callable[..., Tensor],
    args: tuple[Tensor, ...],
    parameters: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
) -> Outcome:
    """Run a loss and return the outcome, without parameters that get no gradient; buffers keep what the run wrote.

    >>> layer = nn.Linear(1, 1)
    >>> outcome(layer, (torch.tensor([3.0]),), dict(layer.named_parameters()), {}).gradients
    {'weight': tensor([[3.]]), 'bias': tensor([1.])}
    """
    before = {name: (in_place_changes(buffer), buffer.clone()) for name, buffer in buffers.items()}
    value = loss(*args)
    trained = list(parameters.values()) if value.requires_grad else []
    gradients = torch.autograd.grad(value, trained, allow_unused=True) if trained else ()
    changed = {
        name: buffer.detach().clone()
        for name, buffer in buffers.items()
        if in_place_changes(buffer) != before[name][0] or not torch.equal(buffer, before[name][1])
    }
    arrived = {name: gradient for name, gradient in zip(parameters, gradients) if gradient is not None}
    return Outcome(value.detach(), arrived, changed)


@contextmanager
def contents_kept(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Context manager that restores the contents of tensors at its end.

    >>> layer = nn.BatchNorm1d(2)
    >>> with contents_kept(layer.buffers()):
    ...     out = layer(torch.ones(3, 2))
    >>> layer.running_mean
    tensor([0., 0.])
    """
    kept = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in kept:
                if not torch.equal(tensor, value):
                    tensor.copy_(value)


def lowest_precision(graph: nn.Module) -> torch.dtype:
    """Return the lowest precision of the floating point numbers in a traced graph."""
    found = {tensor.dtype for tensor in _computed(graph)}
    return max(found & USUAL.keys(), key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)


def elements(graph: nn.Module) -> int:
    """Return the number of elements of all tensors in a traced graph."""
    return sum(tensor.numel() for tensor in _computed(graph))


def _computed(graph: nn.Module) -> Iterator[Tensor]:
    for part in graph.modules():
        for node in part.graph.nodes if isinstance(part, GraphModule) else ():
            yield from tensors(node.meta.get("val"))


def difference(
    module: nn.Module, precision: torch.dtype, size: int, eager: Callable[[], Outcome], compiled: Callable[[], Outcome]
) -> str | None:
    """Describe how a compiled run differs from the eager one on the same random numbers; None if they agree.

    If they differ by more than usual, both run again on other random numbers. The difference is then compared with the
    effect of rounding, measured by an eager run whose parameters are moved in their last place. This effect may be
    large: draws by rejection may change, and a small gradient may be the difference of large terms. A difference
    between two eager runs is returned, too. Parameters, buffers and random numbers are left unchanged.

    Args:
        module: holds the parameters and buffers.
        precision: the lowest precision of the computation.
        size: the number of terms of the loss, each of which may be about a nat.
        eager: runs the loss eagerly.
        compiled: runs the compiled loss.
    """
    devices = {torch.device("cpu"), *(parameter.device for parameter in module.parameters())}

    def run(how: Callable[[], Outcome], nudge: float = 0.0) -> Outcome:
        with forked_rng(*devices), contents_kept([*module.parameters(), *module.buffers()]):
            with forked_rng(*devices), torch.no_grad():  # the run itself draws the same numbers with and without it
                for parameter in module.parameters() if nudge else ():
                    parameter.mul_(1 + nudge * (2 * torch.rand_like(parameter) - 1))
            return how()

    wanted, got = run(eager), run(compiled)
    if not _beyond(wanted, got, _usual(wanted, precision, size)):
        return None
    with forked_rng(*devices):
        for device in devices:
            torch.rand((), device=device)  # so that the runs below draw other numbers than those above
        wanted, again, got = run(eager), run(eager), run(compiled)
        nudged = run(eager, NUDGE * torch.finfo(precision).eps)
        usual, by_rounding = _usual(wanted, precision, size), _distances(wanted, nudged)
        limits = {name: limit + ROUNDING * by_rounding.get(name, 0.0) for name, limit in usual.items()}
        return _beyond(wanted, again, usual) or _beyond(wanted, got, limits)


def _usual(outcome: Outcome, precision: torch.dtype, size: int) -> dict[str, float]:
    """Return the difference that rounding may make, for each value."""
    of_loss, of_gradients = USUAL[precision]
    floor = FLOOR * float(outcome.norm())
    limits = {name: of_gradients * (_norm(value) + floor) for name, value in outcome.values().items()}
    return {**limits, "the loss": of_loss * (_norm(outcome.loss) + size)}


def _beyond(one: Outcome, other: Outcome, limits: Mapping[str, float]) -> str | None:
    """Describe the value that exceeds its limit by the largest factor; None if all are within their limits."""
    if not one.is_finite() and not other.is_finite():
        return None
    distances = _distances(one, other)
    least = min(limits.values())
    ratios = {name: distance / max(limits.get(name, least), 1e-300) for name, distance in distances.items()}
    beyond = {name: ratio for name, ratio in ratios.items() if not ratio <= 1}
    if not beyond:
        return None
    if "the loss" in beyond:
        return f"its loss is {float(other.loss):.7g}, that of the program {float(one.loss):.7g}"
    name = max(beyond, key=lambda name: beyond[name])
    return f"{name} differs by {distances[name]:.3g}, where it is {_norm(one.values().get(name)):.3g} in size"


def _distances(one: Outcome, other: Outcome) -> dict[str, float]:
    """Return the norm of the difference of each value; a value that one of the two lacks counts as zero."""
    mine, theirs = one.values(), other.values()
    return {name: _norm(mine.get(name, 0) - theirs.get(name, 0)) for name in {**mine, **theirs}}


def _norm(value: Tensor | float | None) -> float:
    return float(value.double().norm()) if isinstance(value, Tensor) else 0.0
