"""Loss, gradients and buffers of a training step as one compiled graph."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from pyro_vae.compiling.compiler import unguarded
from pyro_vae.compiling.constants import Changes, WatchedConstants
from pyro_vae.compiling.joint import record
from pyro_vae.compiling.loss import ProgramLoss
from pyro_vae.compiling.outcomes import Outcome, lowest_precision
from pyro_vae.compiling.steps import ordered
from pyro_vae.training.shards import ShardedStep, Shards


class StepGradients(ABC):
    """Abstract: loss, gradients and their norm from raw rows, computed on the memory of the parameters.

    It trains the parameters with a gradient in the eager ``outcome``, and updates the buffers that changed there.

    Args:
        parameters: the parameters of the optimiser, by name, frozen ones included.
        buffers: the buffers of the program, by name.
        outcome: the outcome of an eager run.
    """

    precision: torch.dtype  # the lowest one of the computation

    def __init__(self, parameters: Mapping[str, nn.Parameter], buffers: Mapping[str, Tensor], outcome: Outcome):
        self.names, self.moving = list(outcome.gradients), list(outcome.buffers)
        self.trained = [parameters[name] for name in self.names]
        self.values = [parameter.detach() for parameter in self.trained]
        self.buffers = [buffers[name] for name in self.moving]
        self._known = [(f"{name}.requires_grad", p, p.requires_grad) for name, p in parameters.items()]

    @abstractmethod
    def run(self, raw: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor], Tensor | None]:
        """Return loss, gradients, new buffers, and the norm of the gradients, None where it is not computed."""

    def __call__(self, *raw: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return loss, gradients and their norm; the buffers are moved."""
        loss, gradients, moved, norm = self.run(raw)
        for buffer, value in zip(self.buffers, moved):
            buffer.copy_(value)
        return (
            loss,
            [*map(ordered, gradients, self.values)],
            nn.utils.get_total_norm(gradients) if norm is None else norm,
        )

    def outcome(self, *raw: Tensor) -> Outcome:
        """Return the outcome, to be compared with that of an eager run."""
        return self._outcome(*self.run(raw))

    def _outcome(self, loss: Tensor, gradients: Sequence[Tensor], moved: Sequence[Tensor], _: Any) -> Outcome:
        gradients, moved = ([tensor.clone() for tensor in group] for group in (gradients, moved))
        return Outcome(loss.clone(), dict(zip(self.names, gradients)), dict(zip(self.moving, moved)))

    def changes(self) -> Changes:
        """Return what has changed since the graph was made: parameters that were frozen or unfrozen."""
        return {name: (flag, not flag) for name, parameter, flag in self._known if parameter.requires_grad != flag}


class GradientGraph(StepGradients):
    """The gradients of a traced loss, as one compiled graph.

    Args:
        graph: the traced loss.
        parameters, buffers, outcome: as for ``StepGradients``.
        shards: how the rows are shared out among the cores; ``graph`` is then that of one share.
        compiled: whether the graph is compiled, or its operations are called as they are.
    """

    def __init__(
        self,
        graph: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        buffers: Mapping[str, Tensor],
        outcome: Outcome,
        shards: Shards | None = None,
        compiled: bool = True,
    ):
        super().__init__(parameters, buffers, outcome)
        self.shards, self.precision = shards, lowest_precision(graph)
        step = _step_of(graph, self.trained, self.buffers)
        if shards is not None:
            self._compiled = shards.take(step, self.values)
        else:
            self._compiled = unguarded(step) if compiled else step

    def run(self, raw: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor], Tensor | None]:
        """Return loss, gradients, new buffers, and the norm of the gradients; no buffer is moved."""
        return self._compiled(self.values, tuple(raw))

    def uncompiled(self, *raw: Tensor) -> Outcome:
        """Return the outcome of shared rows by operations that are not compiled yet."""
        assert isinstance(self._compiled, ShardedStep)
        return self._outcome(*self._compiled.eagerly(self.values, raw))


class RecordedGradients(StepGradients):
    """The gradients of a loss that takes derivatives itself, recorded with it: ``torch.export`` cannot trace one.

    Args:
        loss: from raw rows to the loss.
        raw: the raw rows of a batch.
        watched: the numbers and flags of the program, which become constants.
        parameters, buffers, outcome: as for ``StepGradients``.

    Raises ``Untraceable``.
    """

    def __init__(
        self,
        loss: ProgramLoss,
        raw: Sequence[Tensor],
        watched: WatchedConstants,
        parameters: Mapping[str, nn.Parameter],
        buffers: Mapping[str, Tensor],
        outcome: Outcome,
    ):
        super().__init__(parameters, buffers, outcome)

        def function(*raw: Tensor) -> tuple[Tensor, ...]:
            value = loss(*raw)
            return value.detach(), *torch.autograd.grad(value, self.trained)

        self.recorded = record(function, raw, watched)
        self.precision = self.recorded.precision

    def run(self, raw: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor], Tensor | None]:
        """Return loss, gradients and the buffers, which the graph moves itself."""
        loss, *gradients = self.recorded(raw)
        return loss, gradients, [buffer.clone() for buffer in self.buffers], None

    def changes(self) -> Changes:
        """Return the changes, those of tensors from which numbers were read among them."""
        stale = {"a tensor that numbers are read from": ("its values", "others")} if self.recorded.is_stale() else {}
        return super().changes() | stale


def _step_of(graph: nn.Module, trained: Sequence[Tensor], buffers: Sequence[Tensor]) -> Callable[..., Any]:
    """Return the function from values of parameters and raw rows to loss, gradients, new buffers and the norm."""
    places = {id(tensor): name for name, tensor in (*graph.named_parameters(), *graph.named_buffers())}
    inputs, others = ([places[id(tensor)] for tensor in group] for group in (trained, buffers))
    rest = {name: p.detach() for name, p in graph.named_parameters() if name not in inputs}

    def value(values: Sequence[Tensor], raw: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
        moved = [buffer.clone() for buffer in buffers]  # torch.func lets no other memory be changed in place
        return functional_call(graph, rest | dict(zip([*inputs, *others], [*values, *moved])), raw), moved

    def step(values: Sequence[Tensor], raw: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor], list[Tensor], Any]:
        gradients, (loss, moved) = grad_and_value(value, has_aux=True)(values, raw)
        if gradients[0].is_cuda:  # where one kernel outside the graph takes less time than one for each gradient
            return loss, gradients, moved, None
        norm = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]).norm()
        return loss, gradients, moved, norm

    return step
