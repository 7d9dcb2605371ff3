"""The engine that takes compiled steps, and follows what changes in the program."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_vae.compiling.captured import NotCaptured
from pyro_vae.compiling.compiler import quiet_torch
from pyro_vae.compiling.constants import Changes, Patience, WatchedConstants, in_words
from pyro_vae.compiling.outcomes import Outcome, contents_kept, difference, outcome
from pyro_vae.compiling.private import gradient_hooks, tensors_only
from pyro_vae.compiling.untraceable import IN_PLACE, NOT_THE_SAME, OR_EAGERLY, Untraceable, first_line
from pyro_vae.errors import warn
from pyro_vae.program import Program
from pyro_vae.random import forked_rng
from pyro_vae.training.adam import is_plain_adam
from pyro_vae.training.eager import EagerEngine, chunks, total
from pyro_vae.training.gradients import StepGradients
from pyro_vae.training.graphed import SEVERAL, Gradients, Replays, take_step
from pyro_vae.training.held import held_parameters
from pyro_vae.training.shards import Shards


class EngineWarning(UserWarning):
    """Steps are not compiled as was asked, or some may have been wrong; the message says why and names the cure."""


class CompiledEngine:
    """Computes x, the loss and its gradient from raw rows by one compiled graph, then takes the optimiser's step.

    The graph is recorded while Python and autograd compute them, whatever derivatives an estimator takes itself. Plain
    Adam calls torch's fused kernel directly. Inside the graph it would be no faster, and take half as long again
    to compile. On a GPU all that a step computes is a CUDA graph (``graphed.Replays``). The first step is eager, as
    torch's optimiser makes its own state; so is a batch of another size than the first, such as the last of an epoch.

    A trace turns numbers and flags of the program into constants. If one of them changes, or a parameter is frozen or
    unfrozen, the step is eager and the next one is traced again. If they change from step to step, training goes on
    eagerly, with a warning that names them. At the first step of a trace, and at the end of each epoch, loss, gradients
    and buffers are compared with the eager ones on the same random numbers. If they differ by more than rounding, the
    program is traced again, once.

    Args:
        program, estimator, optimizer, scheduler, clip, accumulate, fields: as for ``EagerEngine``.
        strict: whether the second step raises ``Untraceable`` if the program cannot be traced; otherwise training goes
            on eagerly, with a warning that says why.
        rows: the number of rows of a resumed run's batches, or of their parts; its first step is then compiled.
    """

    name = "compiled"
    compiles = True

    def __init__(
        self,
        program: Program,
        estimator: Any,
        optimizer: Optimizer,
        scheduler: LRScheduler | None = None,
        clip: float | None = None,
        strict: bool = True,
        rows: int | None = None,
        accumulate: int = 1,
        fields: Sequence[str] = ("images",),
    ):
        self.eager = EagerEngine(program, estimator, optimizer, scheduler, clip, accumulate, fields)
        self.strict, self.rows = strict, rows
        self.watched: WatchedConstants | None = None  # from the first trace on
        self.patience, self.doubted = Patience(), False
        self.graph: StepGradients | None = None
        self.replays = Replays(self.eager)  # on a GPU
        self.batch: Sequence[Tensor] | None = None  # the last compiled one of this epoch, or its first part

    def __call__(self, *raw: Tensor) -> Tensor:
        """Take a step on a batch, a tensor for each field; return its loss, in nats."""
        parts = chunks(raw, self.eager.accumulate)
        graph = self._graph_for(parts[0])
        if graph is None:
            return self.eager(*raw)
        try:
            return self._taken(graph, parts)
        except NotCaptured as error:
            self._go_on_eagerly(first_line(error))
            return self.eager(*raw)

    def several(self, fields: Sequence[Tensor], index: Tensor) -> Tensor | None:
        """Take the steps on the rows (steps, rows) of the fields; return their losses, (steps,).

        Return None, and take no step, if they are not to be one CUDA graph: at first, for other sizes of batches, and
        where more than Adam and its learning rate belongs to a step.
        """
        graph, rows = self.graph, index[0]
        if graph is None or len(index) != SEVERAL or len(rows) != self.rows or self.eager.accumulate > 1:
            return None
        if not (self._replays([index]) and self.replays.whole and self._is_as_traced()):
            return None
        try:
            losses = self.replays.several(graph, fields, index)
        except NotCaptured as error:
            self._go_on_eagerly(first_line(error))
            return None
        self.batch = [field[rows] for field in fields]
        return losses

    def end_epoch(self) -> None:
        """Compare a compiled step with the eager one; both are undone."""
        batch, self.batch = self.batch, None
        if self.graph is None or batch is None or not self._is_as_traced():
            return
        found = self._difference(self.graph, batch)
        if found and self.doubted:
            self._go_on_eagerly(NOT_THE_SAME.format(found))
        elif found:
            self.graph, self.doubted = None, True
            warn(
                f"{NOT_THE_SAME.format(found)}. It is traced anew; some steps of this epoch may have used "
                f"an old value. To be sure, {IN_PLACE}",
                EngineWarning,
            )

    def _graph_for(self, raw: Sequence[Tensor]) -> StepGradients | None:
        """Return the graph for these rows, which is made if it is missing; None if the step is to be eager."""
        if self.rows is None:
            self.rows = len(raw[0])
            return None
        if self.name == "eager" or len(raw[0]) != self.rows:
            return None
        if is_plain_adam(self.eager.optimizer) and not self.eager.optimizer.state:
            return None  # an eager step makes that state; it is missing if all steps so far were left out
        if not self._is_as_traced():
            return None
        self.graph = self.graph or self._trace(raw)
        return self.graph

    def _is_as_traced(self) -> bool:
        """Return whether the program still holds the constants of the trace; if not, discard the trace."""
        changes = self._changes()
        if not changes:
            self.patience.used()
            return True
        self.graph = None
        if self.patience.ends():
            self._go_on_eagerly(
                f"{in_words(changes)}: it changes from step to step, and would be traced anew each time; {IN_PLACE}"
            )
        return False

    def _changes(self) -> Changes:
        changes = self.watched.changes() if self.watched else {}
        return changes or (self.graph.changes() if self.graph else {})

    def _trace(self, raw: Sequence[Tensor]) -> StepGradients | None:
        """Return a new graph; None if the next step must be eager."""
        first = self.watched is None
        try:
            self.watched = self.watched or WatchedConstants(self.eager.loss.roots)
            return self._compiled(raw, self.watched)
        except (Untraceable, RuntimeError) as error:
            reason = first_line(error)
            if self.strict and first and isinstance(error, Untraceable):
                raise
            if self.strict and first:
                raise Untraceable(f'torch cannot compile this step ({reason}); train by engine="eager"') from error
            self._go_on_eagerly(reason)
            return None

    def _compiled(self, raw: Sequence[Tensor], watched: WatchedConstants) -> StepGradients | None:
        """Return a new graph; None if the optimiser has no state yet of a parameter that it trains."""
        optimizer = self.eager.optimizer
        shards = Shards.of(self.eager.loss, raw) if self.compiles else None
        compiled = (shards and self._shared(shards, raw, watched)) or self._recorded(raw, watched)
        if is_plain_adam(optimizer) and not all(optimizer.state.get(parameter) for parameter in compiled.trained):
            return None
        optimizer.zero_grad()
        with quiet_torch():
            found = self._difference(compiled, raw)
        if found:
            raise Untraceable(f"{NOT_THE_SAME.format(found)}; {OR_EAGERLY}")
        return compiled

    def _recorded(self, raw: Sequence[Tensor], watched: WatchedConstants) -> StepGradients:
        """Return the graph for these rows, all of them on one core or on the threads of torch's operators."""
        known = self._parameters(), self._buffers(), partial(self._expected, raw)
        return StepGradients(self.eager.loss, raw, watched, *known, compiled=self.compiles)

    def _shared(self, shards: Shards, raw: Sequence[Tensor], watched: WatchedConstants) -> StepGradients | None:
        """Return a graph by which each core computes its share of the rows; None if the loss is no sum over rows."""
        compiled = self._recorded(shards.rows, watched)
        try:
            if compiled.buffers:
                raise Untraceable("it changes buffers")
            shards.watch_draws(self.eager.loss)
            compiled.share(shards)
            found = self._difference(compiled, raw, compiled.uncompiled)
            if found:
                raise Untraceable(found)
        except Untraceable as error:
            logger = logging.getLogger(__name__)
            logger.info("the rows of a batch are not shared out among the cores: %s", first_line(error))
            return None
        return compiled

    def _expected(self, raw: Sequence[Tensor]) -> Outcome:
        loss = self.eager.loss
        with forked_rng(raw[0].device), contents_kept([*loss.parameters(), *loss.buffers()]), tensors_only():
            return self._outcome(raw)

    def _difference(
        self, graph: StepGradients, raw: Sequence[Tensor], how: Callable[..., Outcome] | None = None
    ) -> str | None:
        hooked = [name for name, parameter in self._trained().items() if any(gradient_hooks(parameter))]
        if hooked:
            return f"the gradient of {hooked[0]} has a hook, which would not be called"
        with tensors_only():
            return difference(
                self.eager.loss,
                graph.precision,
                sum(tensor.numel() for tensor in raw),
                lambda: self._outcome(raw),
                lambda: (how or graph.outcome)(*raw),
            )

    def _outcome(self, raw: Sequence[Tensor]) -> Outcome:
        return outcome(self.eager.loss, tuple(raw), self._trained(), self._buffers())

    def _parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters of the optimiser, by their names in the program."""
        return held_parameters(self.eager.module, self.eager.optimizer)

    def _trained(self) -> dict[str, nn.Parameter]:
        """Return the parameters of the optimiser that are not frozen."""
        return {name: parameter for name, parameter in self._parameters().items() if parameter.requires_grad}

    def _buffers(self) -> dict[str, Tensor]:
        return dict(self.eager.module.named_buffers())

    def _taken(self, graph: StepGradients, parts: Sequence[Sequence[Tensor]]) -> Tensor:
        """Take the step on a batch in these parts; return its loss."""
        self.batch = parts[0]
        if len(parts) == 1:
            return self._step(graph, parts[0])
        self.eager.optimizer.zero_grad()
        return self.eager.update(total([self._add_gradient(graph, part) for part in parts]))

    def _step(self, graph: StepGradients, raw: Sequence[Tensor]) -> Tensor:
        """Step the optimiser and the schedule; return the loss, which is NaN if a gradient is not finite."""
        optimizer = self.eager.optimizer
        if not is_plain_adam(optimizer):
            loss, gradients, _ = self._gradients(graph, raw)
            optimizer.zero_grad()
            for parameter, gradient in zip(graph.trained, gradients):
                parameter.grad = gradient
            return self.eager.update(loss)
        if self._replays(raw) and self.replays.whole:
            loss = self.replays.step(graph, raw)
        else:
            loss = take_step(graph, self._gradients(graph, raw), optimizer, self.eager.clip)
        if self.eager.scheduler is not None:
            self.eager.scheduler.step()
        return loss

    def _gradients(self, graph: StepGradients, raw: Sequence[Tensor]) -> Gradients:
        return self.replays.gradients(graph, raw) if self._replays(raw) else graph(*raw)

    def _replays(self, raw: Sequence[Tensor]) -> bool:
        return raw[0].is_cuda or not self.compiles

    def _add_gradient(self, graph: StepGradients, raw: Sequence[Tensor]) -> Tensor:
        """Do by the graph what ``EagerEngine.add_gradient`` does."""
        if len(raw[0]) != self.rows:
            return self.eager.add_gradient(*raw)
        loss, gradients, _ = self._gradients(graph, raw)
        for parameter, gradient in zip(graph.trained, gradients):
            parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad.add_(gradient)
        return loss

    def _go_on_eagerly(self, reason: str) -> None:
        self.name, self.graph, self.watched = "eager", None, None
        self.replays.captured.clear()
        warn(f"training eagerly: {reason}", EngineWarning)


class CapturedEngine(CompiledEngine):
    """Takes steps on a GPU by a CUDA graph of what an eager step computes: traced, but not compiled.

    It is ready in a second or two, and a step of small networks takes a small part of an eager one's time, which is
    Python's. On a CPU the traced operations are called one by one. Arguments and errors: see ``CompiledEngine``.
    """

    name = "captured"
    compiles = False
