"""What happens in the loop: gradient steps, and the measurement of each epoch."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import pyro
import torch
from torch import Tensor

from pyro_vae.data.order import shuffled, taken
from pyro_vae.data.splits import Split
from pyro_vae.errors import warn
from pyro_vae.hardware import fast_matmul, warn_if_emulated
from pyro_vae.networks import lowered_precision
from pyro_vae.observation import Arguments, fields_of, from_fields
from pyro_vae.random import random_states_between, set_random_state, torch_random_state
from pyro_vae.training import ranks
from pyro_vae.training.eager import as_module
from pyro_vae.training.engines import SEVERAL, AutoEngine, CompiledEngine, Engine, engine
from pyro_vae.training.evaluation import shared_evaluation
from pyro_vae.training.history import TrainingWarning
from pyro_vae.training.nonfinite import NonFiniteLoss, culprit
from pyro_vae.training.progress import Progress
from pyro_vae.training.saving import Saver
from pyro_vae.training.selection import Objective, Weights
from pyro_vae.training.settings import Settings
from pyro_vae.training.state import TrainingState

UNREAD = 50  # steps on an accelerator whose losses are read together, since the host waits for each reading
KEPT = "the last good parameters are restored."
CURES = "Try a smaller lr, a larger lower bound on the likelihood's scale, or skip_non_finite"


@dataclass(frozen=True)
class Step:
    """A step of ``Training.steps()``.

    Args:
        epoch: the epoch of the step, from 1.
        number: the number of the step, from 1, counted over all epochs.
        loss: the loss of its batch before the step, divided by the images of the batch, in nats; not finite where the
            step was left out. Weights of the program count, such as that of a plate with ``subsample_size``.
        row: the row of the history at the last step of an epoch, else None.
    """

    epoch: int
    number: int
    loss: float
    row: dict[str, float] | None = None

    def __repr__(self) -> str:
        end = ", the last of its epoch" * (self.row is not None)
        return f"Step({self.number}, epoch {self.epoch}, loss {self.loss:.4g} nats{end})"


class Epochs:
    """Takes steps and measures epochs, one at a time; ``Training`` sets random numbers and modes around them.

    Args:
        run: the state of the training, which is changed.
        rows: the training rows.
        held_out: the arguments made of "train" and "valid", on which each epoch is measured.
        objective: compares epochs by the quantity that is trained.
        given: the settings.
        saver: saves between steps, and after epochs.
        progress: shows the progress.
    """

    def __init__(
        self,
        run: TrainingState,
        rows: Split,
        held_out: Mapping[str, Arguments],
        objective: Objective,
        given: Settings,
        saver: Saver,
        progress: Progress,
    ):
        self.run, self.rows, self.held_out, self.objective = run, rows, held_out, objective
        self.fields = fields_of(run.program, rows)
        self.given, self.saver, self.progress = given, saver, progress
        self.engine_before, self.engine = run.history.engine, _engine(run, objective, given, rows)

    @property
    def over(self) -> bool:
        """Whether all epochs have ended."""
        return len(self.run.history.rows) >= self.given.epochs

    def take_epoch(self, raise_if_asked: Callable[..., None]) -> dict[str, float]:
        """Take the steps that are left of an epoch, measure it, and return its row.

        Raises KeyboardInterrupt between steps where ``raise_if_asked`` does.
        """
        run, losses = self.run, []
        every = 1 if run.device.type == "cpu" else UNREAD
        with self._computing():
            while run.taken < run.epoch_steps:
                losses += self._several() or [self._step()]
                if len(losses) >= every or run.taken == run.epoch_steps:
                    self._check_finite(torch.stack(losses))
                    self._count(0, 0)  # an accelerator has ended these steps only now
                    self.saver.between_steps(raise_if_asked)
                    losses.clear()
        return self._end_epoch()

    def take_step(self, raise_if_asked: Callable[..., None]) -> Step | None:
        """Take a step, and measure the epoch if it was its last one. Return None where no step was left."""
        run = self.run
        if run.taken == run.epoch_steps:  # the run was saved between an epoch's last step and its measurement
            self._end_epoch()
            if self.over:
                return None
        with self._computing():
            loss = self._step()
            self._check_finite(loss[None])
        epoch, number, images = run.epoch, run.step, len(self._index(run.taken - 1))
        row = self._end_epoch() if run.taken == run.epoch_steps else None
        return Step(epoch, number, loss.item() / images, row)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Context manager with the settings of steps, such as precision; it draws the image order of a new epoch."""
        run, fields = self.run, [self.rows.fields[name] for name in self.fields]
        run.unread.clear()
        if run.weights is None:
            run.weights = ranks.broadcast(self.objective.weights())
        self.progress.begin(run.history, run.taken * self.given.batch_size)
        with (
            lowered_precision(as_module(run.program), self.given.precision),
            fast_matmul(run.device),
            pyro.validation_enabled(False),
        ):
            order = run.order
            if order is None:
                order = ranks.broadcast(shuffled(fields))
            self.order = run.order = order.to(fields[0].device)
            self.clock = time.perf_counter() - run.seconds
            yield

    def _index(self, number: int) -> Tensor:
        """Return the indices of the images of a step of the present epoch, counted from 0."""
        return self.order[number * self.given.batch_size : (number + 1) * self.given.batch_size]

    def _raw(self, index: Tensor) -> list[Tensor]:
        """Return the raw tensors of these rows, a tensor for each field that ``observe`` is given."""
        return [taken(self.rows.fields[name], index).to(self.run.device) for name in self.fields]

    def _step(self) -> Tensor:
        """Take a step, and return the loss of its batch, in nats."""
        run, index = self.run, self._index(self.run.taken)
        run.unread.append((index, torch_random_state(run.device)))
        loss = self.engine(*self._raw(ranks.share(index)))
        if isinstance(self.engine, AutoEngine):
            run.compiles = self.engine.compiles
        self._count(1, len(index))
        return loss

    def _several(self) -> list[Tensor]:
        """Take some steps at once, if the engine can and the rows lie on the device; return their losses."""
        run, size = self.run, self.given.batch_size
        if run.device.type == "cpu" or not isinstance(self.engine, CompiledEngine):
            return []
        index = self.order[run.taken * size : (run.taken + SEVERAL) * size]
        fields = [self.rows.fields[name] for name in self.fields]
        if len(index) < SEVERAL * size or any(field.device != run.device for field in fields):
            return []
        before = torch_random_state(run.device)
        losses = self.engine.several(fields, index.view(SEVERAL, size))
        if losses is None:
            return []
        states = random_states_between(before, torch_random_state(run.device), SEVERAL)
        run.unread += zip(index.view(SEVERAL, size), states)
        self._count(SEVERAL, len(index))
        return list(losses)

    def _count(self, steps: int, images: int) -> None:
        self.run.taken += steps
        self.run.seconds = time.perf_counter() - self.clock
        self.progress.step(images)

    def _check_finite(self, losses: Tensor) -> None:
        """Count the last steps whose loss or gradient is not finite. Raise NonFiniteLoss where they are too many."""
        run, skip, estimator = self.run, self.given.skip_non_finite, self.objective.estimator
        bad = (~losses.isfinite()).nonzero().flatten().tolist()
        unread, run.unread = run.unread, []
        self.progress.bound(run.epoch, -losses[-1].item() / len(unread[-1][0]))
        run.history.skipped += len(bad)
        if not bad or run.history.skipped <= skip:
            return
        index, numbers = unread[bad[0]]
        set_random_state(numbers, run.device)
        where = culprit(run.program, estimator, *from_fields(run.program, self.fields, *self._raw(index)))
        many = f" ({run.history.skipped} such steps, {skip} may be left out)" if skip else ""
        raise NonFiniteLoss(
            f"the loss or its gradient became {losses[bad[0]].item()} in epoch {run.epoch}, step "
            f"{run.taken - len(losses) + bad[0] + 1}, under {type(estimator).__name__}{many}: {where}; {KEPT} {CURES}"
        )

    def _end_epoch(self) -> dict[str, float]:
        """Measure the epoch, add its row to the history, and return it."""
        run = self.run
        with self._computing():
            self.engine.end_epoch()
        self._note_engine()
        weights = ranks.broadcast(self.objective.weights())
        run.end_epoch(self._summaries(weights), weights, len(self.rows))
        self.saver.end_epoch()
        self.progress.end_epoch(run.history)
        return run.history.rows[-1]

    def _note_engine(self) -> None:
        before, name = self.engine_before, self.engine.name
        if before not in ("", name):
            warn(
                f"the run was trained by {before!r} and went on by {name!r}: the same bits are not promised",
                TrainingWarning,
            )
        self.engine_before, self.run.history.engine = "", name

    def _summaries(self, weights: Weights) -> dict[str, dict[str, float]]:
        """Return bound, rate and distortion of the held-out sets, and the objective.

        Raises NonFiniteLoss if one of them is not finite.
        """
        try:
            with pyro.validation_enabled(False):  # values that are not finite raise FloatingPointError
                summaries = {
                    name: shared_evaluation(self.run.program, args).summary() for name, args in self.held_out.items()
                }
                summaries["valid"]["objective"] = self.objective.value(summaries["valid"]["bound"], weights)
                return summaries
        except FloatingPointError as error:
            name = type(self.objective.estimator).__name__
            raise NonFiniteLoss(f"after epoch {self.run.epoch} under {name}: {error}; {KEPT} {CURES}") from error


def _engine(run: TrainingState, objective: Objective, given: Settings, rows: Split) -> Engine:
    """Return the engine; the batches of a resumed run have the shape of its first one."""
    warn_if_emulated(given.precision, run.device)
    first = ranks.share(torch.arange(given.batch_size)).chunk(given.accumulate)[0]
    made = engine(
        given.engine,
        run.program,
        objective.estimator,
        run.optimizer,
        run.scheduler_of_steps,
        given.clip,
        given.epochs * run.epoch_steps,
        len(first) if run.step else None,
        given.accumulate,
        fields_of(run.program, rows),
    )
    if isinstance(made, AutoEngine) and run.compiles is not None:
        made.compiles = run.compiles
    return made
