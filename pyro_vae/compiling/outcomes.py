"""What a run of a loss comes to, eager or compiled, and whether two runs differ by more than rounding."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Relative differences that are usual between two orders of summation, of a loss and of a gradient.
USUAL = {
    torch.float64: (1e-10, 1e-7),
    torch.float32: (1e-5, 1e-3),
    torch.bfloat16: (1e-2, 0.1),
    torch.float16: (1e-2, 0.1),
}
FLOOR = 0.1  # a gradient counts as at least this share of all gradients together
NUDGE = 4.0  # units in the last place by which parameters are moved, to see what rounding does
ROUNDING = 10.0  # times that, and a difference is more than rounding


@dataclass(frozen=True)
class Outcome:
    """A loss, its gradients by name of the parameter, and the buffers that the run changed, by name."""

    loss: Tensor
    gradients: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]

    def values(self) -> dict[str, Tensor]:
        """All of them, by what they are called in a message."""
        return {
            "the loss": self.loss,
            **{f"the gradient of {name}": gradient for name, gradient in self.gradients.items()},
            **{f"the buffer {name}": buffer for name, buffer in self.buffers.items()},
        }

    def norm(self) -> Tensor:
        """That of all gradients together."""
        return nn.utils.get_total_norm(self.gradients.values()) if self.gradients else torch.zeros(())

    def is_finite(self) -> bool:
        return bool((self.loss + 0 * self.norm()).isfinite())


def outcome(
    loss: nn.Module, args: tuple[Tensor, ...], parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
) -> Outcome:
    """That of a run, without the gradients that do not arrive; buffers are left as the run leaves them.

    >>> layer = nn.Linear(1, 1)
    >>> outcome(layer, (torch.tensor([3.0]),), dict(layer.named_parameters()), {}).gradients
    {'weight': tensor([[3.]]), 'bias': tensor([1.])}
    """
    before = {name: (buffer._version, buffer.clone()) for name, buffer in buffers.items()}
    value = loss(*args)
    trained = list(parameters.values()) if value.requires_grad else []
    gradients = torch.autograd.grad(value, trained, allow_unused=True) if trained else ()
    changed = {
        name: buffer.detach().clone()
        for name, buffer in buffers.items()
        if buffer._version != before[name][0] or not torch.equal(buffer, before[name][1])
    }
    arrived = {name: gradient for name, gradient in zip(parameters, gradients) if gradient is not None}
    return Outcome(value.detach(), arrived, changed)


@contextmanager
def contents_kept(tensors: Iterable[Tensor]) -> Iterator[None]:
    """A block after which tensors hold what they held before.

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


def difference(
    module: nn.Module, precision: torch.dtype, size: int, eager: Callable[[], Outcome], compiled: Callable[[], Outcome]
) -> str | None:
    """In words, what of a compiled run is not that of the eager one on the same random numbers; None: they agree.

    ``module`` holds the parameters and buffers, which are left as they were, as the random numbers are; ``precision``
    is the lowest that is computed in; ``size``: the number of terms of the loss, of which each may be a nat or so.

    Where the two differ by more than is usual, they run again, on other numbers, and the difference is held against
    that of an eager run with parameters that were moved in their last place: a draw by rejection may take another turn
    by rounding, and a gradient may be small as a difference of large terms. Where two eager runs differ, that is said.
    """
    devices = {tensor.device for tensor in module.parameters() if tensor.is_cuda}

    def run(how: Callable[[], Outcome], nudge: float = 0.0) -> Outcome:
        with torch.random.fork_rng(devices), contents_kept([*module.parameters(), *module.buffers()]):
            with torch.random.fork_rng(devices), torch.no_grad():
                for parameter in module.parameters() if nudge else ():
                    parameter.mul_(1 + nudge * (2 * torch.rand_like(parameter) - 1))
            return how()

    one, other = run(eager), run(compiled)
    if not _beyond(one, other, _usual(one, precision, size)):
        return None
    with torch.random.fork_rng(devices):
        for device in {torch.device("cpu"), *devices}:
            torch.rand((), device=device)
        one, again, other = run(eager), run(eager), run(compiled)
        usual = _usual(one, precision, size)
        moved = _distances(one, run(eager, NUDGE * torch.finfo(precision).eps))
        limits = {name: limit + ROUNDING * moved.get(name, 0.0) for name, limit in usual.items()}
        return _beyond(one, again, usual) or _beyond(one, other, limits)


def _usual(outcome: Outcome, precision: torch.dtype, size: int) -> dict[str, float]:
    """By how much each value may differ by rounding."""
    of_loss, of_gradients = USUAL[precision]
    floor = FLOOR * float(outcome.norm())
    limits = {name: of_gradients * (_norm(value) + floor) for name, value in outcome.values().items()}
    return {**limits, "the loss": of_loss * (_norm(outcome.loss) + size)}


def _beyond(one: Outcome, other: Outcome, limits: Mapping[str, float]) -> str | None:
    """In words, the value that differs most by its limit, if one does by more."""
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
    name = max(beyond, key=beyond.get)
    return f"{name} differs by {distances[name]:.3g}, where it is {_norm(one.values().get(name)):.3g} in size"


def _distances(one: Outcome, other: Outcome) -> dict[str, float]:
    """The norm of the difference of each value; what one of the two lacks counts as zero."""
    mine, theirs = one.values(), other.values()
    return {name: _norm(mine.get(name, 0) - theirs.get(name, 0)) for name in {**mine, **theirs}}


def _norm(value: Tensor | None) -> float:
    return 0.0 if value is None else float(value.double().norm())
