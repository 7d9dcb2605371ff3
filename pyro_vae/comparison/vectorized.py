"""Draws of an estimator's gradient by a recorded graph, which is compared with the estimator before it is trusted."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vae.comparison.replicates import Replicates, whole
from pyro_vae.compiling.constants import WatchedConstants
from pyro_vae.compiling.joint import Recorded, differs, record
from pyro_vae.compiling.loss import surroundings
from pyro_vae.compiling.signatures import Signature, apart, interference, signature_of
from pyro_vae.compiling.untraceable import NOT_THE_SAME, Untraceable, first_line

Gradient = Callable[..., tuple[Any, Sequence[Tensor | None]]]


class RecordedGradient:
    """The loss and the gradient of an estimator, recorded at its first arguments, to be drawn many times at others.

    Args:
        gradient: from positional and keyword arguments to a loss and the gradient of each leaf, None for zero.
        leaves: what the gradient is taken of, by name.
        roots: all objects that the gradient refers to, by name.
    """

    def __init__(self, gradient: Gradient, leaves: Mapping[str, Tensor], roots: Mapping[str, Any]):
        self.gradient, self.leaves, self.roots = gradient, leaves, {**roots, **surroundings()}
        self.recorded: dict[Any, tuple[Recorded, Signature]] = {}

    def at(self, args: tuple, kwargs: Mapping[str, Any]) -> Replicates:
        """Return the draws at these arguments. Raises ``Untraceable`` where they are not those of the program."""
        around = interference()
        if around:
            raise Untraceable(f"it is called within {around}, which a graph does not see")
        signature, tensors = signature_of(args, kwargs)
        tensors = apart(tensors)
        if signature.key in self.recorded:
            return Replicates(self.recorded[signature.key][0], tensors)
        watched = WatchedConstants({**self.roots, "arguments": signature.others})
        function = self._function(signature)
        recorded = record(function, tensors, watched, compiler=None)
        replicates = Replicates(recorded, tensors)
        self._check(replicates, function, tensors)
        self.recorded[signature.key] = recorded, signature
        return replicates

    def _function(self, signature: Signature) -> Callable[..., list[Tensor]]:
        def function(*tensors: Tensor) -> list[Tensor]:
            args, kwargs = signature.rebuild(tensors)
            loss, gradients = self.gradient(*args, **kwargs)
            found = (torch.zeros_like(p) if g is None else g.detach() for g, p in zip(gradients, self.leaves.values()))
            return [torch.as_tensor(loss).detach(), *found]

        return function

    def _check(self, replicates: Replicates, function: Callable[..., list[Tensor]], tensors: Sequence[Tensor]) -> None:
        """Raise ``Untraceable`` unless two draws are those of the program on the same random numbers."""

        def one_by_one(*tensors: Tensor) -> list[Tensor]:
            losses, *gradients = (torch.stack([*pair]) for pair in zip(*(function(*tensors) for _ in range(2))))
            return [losses.sum(), *gradients]

        found = differs(_Sum(replicates), one_by_one, tensors, [*self.leaves])  # pyright: ignore[reportArgumentType]
        if found:
            raise Untraceable(NOT_THE_SAME.format(found))


class _Sum:
    """Two draws, with the sum of their losses, in the form that ``differs`` compares."""

    def __init__(self, replicates: Replicates):
        self.held, self.precision, self.replicates = replicates.held, replicates.precision, replicates

    def __call__(self, args: Sequence[Tensor]) -> list[Tensor]:
        try:
            losses, *gradients = map(whole, self.replicates(2))
        except Exception as error:  # an operator that cannot be vectorised
            raise Untraceable(first_line(error)) from error
        return [losses.sum(), *gradients]
