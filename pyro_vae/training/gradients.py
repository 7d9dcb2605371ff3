"""Loss, gradients and buffers of a training step as one recorded graph."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.compiling.artifacts import compiled_graph
from pyro_vae.compiling.constants import Changes, WatchedConstants
from pyro_vae.compiling.joint import by_torch, record
from pyro_vae.compiling.outcomes import Outcome, contents_kept
from pyro_vae.compiling.steps import ordered
from pyro_vae.training.shards import Shards, SharedStep


class StepGradients:
    """Loss, gradients and their norm from raw rows, computed on the memory of the parameters.

    It trains the parameters that have a gradient, and updates the buffers that changed in the eager ``outcome``.

    Args:
        loss: from raw rows to the loss.
        raw: the raw rows of a batch, or of a share of it.
        watched: the numbers and flags of the program, which become constants.
        parameters: the parameters of the optimiser, by name, frozen ones included.
        buffers: the buffers of the program, by name.
        outcome: runs the program eagerly.
        compiled: whether the graph is compiled, or its operations are called as they are.

    Attributes:
        shards: how the rows are shared out among the cores; None: the graph is of the whole batch.

    Raises ``Untraceable``.
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        raw: Sequence[Tensor],
        watched: WatchedConstants,
        parameters: Mapping[str, nn.Parameter],
        buffers: Mapping[str, Tensor],
        outcome: Callable[[], Outcome],
        compiled: bool = True,
    ):
        self._known = [(f"{name}.requires_grad", p, p.requires_grad) for name, p in parameters.items()]
        free = [parameter for parameter in parameters.values() if parameter.requires_grad]

        def function(*raw: Tensor) -> tuple[Tensor, ...]:
            value = loss(*raw)
            gradients = torch.autograd.grad(value, free, allow_unused=True)
            return value.detach(), *(gradient for gradient in gradients if gradient is not None)

        on_cpu = raw[0].device.type == "cpu"
        compiler = (compiled_graph if on_cpu else by_torch) if compiled else None
        self.recorded = record(function, raw, watched, compiler)
        self.precision = self.recorded.precision
        found = outcome()  # only now is it known that a run changes nothing else
        self.names, self.moving = list(found.gradients), list(found.buffers)
        self.trained = [parameters[name] for name in self.names]
        self.values = [parameter.detach() for parameter in self.trained]
        self.buffers = [buffers[name] for name in self.moving]
        self.shards: Shards | None = None

    def share(self, shards: Shards) -> None:
        """Have each core compute its share of the rows, of which the graph is. Raises ``Untraceable``."""
        self._shared = SharedStep(shards, self.recorded, [value.numel() for value in self.values])
        self.shards = shards

    def __call__(self, *raw: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return loss, gradients and their norm; the buffers are moved."""
        loss, gradients, norm = self._run(raw)
        return (
            loss,
            [*map(ordered, gradients, self.values)],
            nn.utils.get_total_norm(gradients) if norm is None else norm,
        )

    def outcome(self, *raw: Tensor) -> Outcome:
        """Return the outcome, to be compared with that of an eager run; no buffer is moved."""
        with contents_kept(self.buffers):
            return self._outcome(*self._run(raw))

    def uncompiled(self, *raw: Tensor) -> Outcome:
        """Return the outcome of shared rows by operations that are not compiled yet."""
        return self._outcome(*self._shared.eagerly(raw))

    def changes(self) -> Changes:
        """Return what has changed since the graph was made.

        That is parameters that were frozen or unfrozen, and tensors from which numbers were read.
        """
        stale = {"a tensor that numbers are read from": ("its values", "others")} if self.recorded.is_stale() else {}
        frozen = {name: (flag, not flag) for name, parameter, flag in self._known if parameter.requires_grad != flag}
        return frozen | stale

    def _run(self, raw: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor], Tensor | None]:
        """Return loss, gradients, and their norm, None where it is not computed; the buffers are moved."""
        if self.shards is not None:
            return self._shared(raw)
        loss, *gradients = self.recorded(raw)
        return loss, gradients, None

    def _outcome(self, loss: Tensor, gradients: Sequence[Tensor], _: Any) -> Outcome:
        copies = {name: tensor.clone() for name, tensor in zip(self.names, gradients)}
        return Outcome(loss.clone(), copies, {name: b.clone() for name, b in zip(self.moving, self.buffers)})
