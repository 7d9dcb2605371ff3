"""The training loop, which users can enter, and ``fit``, which runs it to its end."""

import inspect
import math
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import torch
from pyro.infer import ELBO, Trace_ELBO
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from pyro_vae.data.splits import Data, in_memory
from pyro_vae.errors import warn
from pyro_vae.handlers import KLWeighted
from pyro_vae.hardware import keep_freed_memory
from pyro_vae.observation import fields_of, fixed_arguments, fixed_x
from pyro_vae.program import Program, check_program
from pyro_vae.random import RandomStream, default_dtype, deferred_interrupt, mode, without_autocast
from pyro_vae.training import ranks, settings
from pyro_vae.training.changes import check_still_trained, kinds_of
from pyro_vae.training.checkpoint import Checkpoints
from pyro_vae.training.epochs import Epochs, Step
from pyro_vae.training.evaluation import Evaluation, evaluate
from pyro_vae.training.history import ROW, History, TrainingWarning
from pyro_vae.training.nonfinite import NonFiniteLoss
from pyro_vae.training.progress import Progress
from pyro_vae.training.rehearsal import tried
from pyro_vae.training.saving import Saver
from pyro_vae.training.schedules import warm_cosine
from pyro_vae.training.settings import Settings
from pyro_vae.training.state import TrainingState

__all__ = [
    "ROW",
    "Evaluation",
    "History",
    "NonFiniteLoss",
    "Step",
    "Training",
    "check_program",
    "evaluate",
    "fit",
    "fixed_x",
    "warm_cosine",
]

T = TypeVar("T")


class Training:
    """A training whose loop is the user's: each iteration takes the steps of an epoch and gives its history row.

        training = pv.Training(program, data, epochs=20)
        for row in training:
            print(row["epoch"], row["valid_bound"])

    Each step follows the gradient of minus the bound of a shuffled minibatch. After every epoch the bound, rate and
    distortion are measured with one particle, on all validation images and on the same number of training images. Each
    step makes x anew from its pixels; these measurements use one fixed x.

    Epochs are compared by the objective that is trained: the estimator's, on the validation images, with its particles
    and the weights of the sites in training, such as a KL weight (``selection.Objective``). If a weight changes by more
    than a thousandth, the comparison starts again with that epoch: no epoch with a smaller KL weight is kept.
    ``History.kept_epoch`` and ``reason`` say which epoch is kept and why.

    Between epochs, or steps, the program has its present parameters. Random numbers (of torch, NumPy and Python), modes
    and settings are then the user's: what runs there cannot change the random numbers of the training. Changes to the
    program, to ``training.optimizer``, to a KL weight or to ``requires_grad`` hold from the next step on. If the
    optimiser does not hold a parameter that is then trainable, because a part was replaced or was still frozen when the
    training was made, the next step raises ValueError: call ``training.optimizer.add_param_group`` first.

    When the loop has run to its end, the program has the parameters of the epoch to be kept. A loop that was left by
    ``break`` or an error can be entered again: it goes on after the last step, to the same bits. ``finish`` saves the
    run and restores the parameters to be kept. With checkpoints a loop that is left is saved at once.

    Args:
        program: an ``nn.Module`` such as ``VAE``; it is trained in place, on the device of its parameters.
        data: ``data.train`` is trained on, ``data.valid`` chooses the epoch.
        estimator: any ``pyro.infer.ELBO``; ``Trace_ELBO()`` if not given.
        epochs: the number of passes over the training images.
        batch_size: the number of images in a step; None: 256, or all training images if they are fewer.
        accumulate: the number of parts in which the gradient of a batch is computed, one after the other, and summed,
            so that a large batch fits into memory. Not for engine="svi".
        lr: step of Adam, 1e-3 if not given; an ``optimizer`` has its own.
        optimizer: a function from a list of parameters to a torch optimiser of these; Adam if not given.
        schedule: a function from the optimiser and the number of all steps to a scheduler that is stepped after each
            step, such as ``warm_cosine``; the learning rate is constant if not given. ``ReduceLROnPlateau`` with
            ``threshold_mode="abs"`` is stepped with the objective after each epoch in which no weight changed; in its
            mode "min", with minus the objective.
        precision: ``torch.bfloat16`` has the networks of ``pyro_vae.networks`` compute in it, in training steps only;
            distributions, sums, parameters and every evaluation keep the dtype of the parameters.
        clip: the largest norm of all gradients together; larger ones are scaled down to it. None: no clipping.
        skip_non_finite: how many steps may be left out because their loss or gradient is not finite; one more is an
            error. ``History.skipped`` counts them.
        checkpoints: where the run is saved, and whether it is resumed from there: on a CPU with the same number of
            threads and one process to the same bits as a run that was never stopped. More epochs than before are
            allowed; the schedule is then made for the new number, with a warning if this changes the learning rate.
            ``history.csv`` in the same folder gets a row after each epoch.
        keep: "best", the epoch with the highest objective, or "last".
        seed: the seed of minibatches and noise. The same seed on the same machine gives the same result.
        progress: whether to show a progress bar; where standard error is no terminal, a line an epoch is printed on
            standard output instead.
        engine: "eager"; "compiled", loss and gradient as one graph; "svi", ``pyro.infer.SVI.step``, the reference;
            "auto" compiles long trainings, and is "svi" for estimators that no other engine trains by, such as
            ``RenyiELBO``. All train alike, up to rounding.

    Raises:
        ValueError: for invalid settings, before anything is trained. Among them are ``TraceMeanField_ELBO`` for a KL
            without a closed form, a last batch too small for BatchNorm, a program whose bound cannot be measured, and
            settings that differ from those of the resumed run.
        NonFiniteLoss: in the loop; it names epoch, step, estimator and the first site with a non-finite
            log-probability. The program then has the last good parameters.
        CheckpointError: if the run cannot be saved or resumed, or would replace another one.

    Ctrl-C within an epoch ends the loop early, after a whole step: the run is saved, the parameters of the epoch to be
    kept are restored, and ``History.interrupted`` is set. SIGTERM does the same where its handler is
    ``random.interrupt``.

    On a CPU the process keeps freed memory from then on, up to 1 GiB (``hardware.keep_freed_memory``).

    Under ``torchrun``, in a block of ``ranks.processes``, every rank runs the same loop with the same arguments, only
    rank 0 with checkpoints. The ``batch_size`` images of a step, and those of an evaluation, are shared out.

    >>> from pyro_vae import VAE, guides, likelihoods, load, networks, priors
    >>> digits = load("digits")
    >>> vae = VAE(
    ...     priors.StandardNormal(2),
    ...     likelihoods.Bernoulli(networks.MLPDecoder(2, digits.shape, maps=1, hidden=(16,))),
    ...     guides.MeanField(networks.MLPEncoder(digits.shape, hidden=(16,)), 2),
    ... )
    >>> training = Training(vae, digits, epochs=20, lr=1e-2, progress=False)
    >>> for row in training:
    ...     if row["valid_bound"] > -30:
    ...         break
    >>> history = training.finish()
    >>> history.rows[-1]["epoch"] < 20, history.rows[-1]["valid_bound"] > -30
    (True, True)
    """

    def __init__(
        self,
        program: Program,
        data: Data,
        estimator: ELBO | None = None,
        *,
        epochs: int = 10,
        batch_size: int | None = None,
        accumulate: int = 1,
        lr: float | None = None,
        optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
        schedule: Callable[[torch.optim.Optimizer, int], LRScheduler] | None = None,
        precision: torch.dtype | None = None,
        clip: float | None = None,
        skip_non_finite: int = 0,
        checkpoints: Checkpoints | None = None,
        keep: Literal["best", "last"] = "best",
        seed: int = 0,
        progress: bool = True,
        engine: str = "auto",
    ):
        estimator = Trace_ELBO() if estimator is None else estimator
        settings.check_program_and_data(program, data)
        settings.check_estimator(estimator)
        settings.check_checkpoints(checkpoints)
        batch_size = settings.checked_batch_size(batch_size, len(data.train))
        given = Settings(
            epochs, batch_size, accumulate, lr, seed, precision, engine, clip, skip_non_finite, keep
        ).checked(program, estimator)
        ranks.check_batches(len(data.train), given.batch_size)
        ranks.check_held_out(len(data.valid))
        self._program, self._optimizer = program, settings.made_optimizer(optimizer, program, given.lr)
        steps = math.ceil(len(data.train) / given.batch_size)
        scheduler = settings.made_scheduler(schedule, self.optimizer, given.epochs * steps)
        KLWeighted.check_annealing(self.optimizer, given.epochs * steps)
        self._run = TrainingState(program, self.optimizer, scheduler, steps)
        self._saver = Saver(self._run, checkpoints)
        self._progress = Progress(progress and ranks.rank() == 0, len(data.train), given.epochs)
        self._kinds = kinds_of(program)
        self._loops, self._begun = 0, False  # loops that were entered; whether a step may have been taken
        self._left: dict[str, Tensor] | None = None  # the present parameters, while the program has those to be kept
        self._prepare(data.to(self._run.device), estimator, given)

    @property
    def program(self) -> Program:
        """The program that is trained."""
        return self._program

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser, whose settings may be changed between steps."""
        return self._optimizer

    @property
    def history(self) -> History:
        """The epochs that have ended, and which of them is kept."""
        return self._run.history

    def __iter__(self) -> Iterator[dict[str, float]]:
        """Yield the history row of each epoch that is left, once it is measured."""
        return self._yielded(self._epochs.take_epoch)

    def steps(self) -> Iterator[Step]:
        """Yield each step that is left, once it is taken.

        At the last step of an epoch the epoch is measured as in the loop over epochs, before the step is yielded, and
        ``Step.row`` is its row. The loss of every step is read, for which the host waits for an accelerator.
        """
        return self._yielded(self._epochs.take_step)

    def finish(self) -> History:
        """Save the run, where checkpoints are given, and restore the parameters of the epoch to be kept.

        If no epoch has ended, the parameters of the last step are kept. The loop can be entered again: it then goes on
        with the parameters that the program had before. Returns the history.
        """
        if self._left is None:
            try:
                if self._begun:
                    self._save(anew=True)
            finally:
                self._keep(or_present=True)
        return self.history

    def _prepare(self, data: Data, estimator: ELBO, given: Settings) -> None:
        """Try the program, resume the run that was saved, if any, and make what takes the steps."""
        run, rows, program = self._run, data.train, self.program
        if run.device.type == "cpu":
            keep_freed_memory()
        seen = in_memory(rows[: len(data.valid)], run.device)
        held_out = {"train": fixed_arguments(program, seen), "valid": fixed_arguments(program, data.valid)}
        self._default_dtype = torch.get_default_dtype()
        self._numbers = RandomStream(ranks.own_seed(given.seed), run.device)
        with self._surroundings():
            objective = tried(run, rows, held_out["valid"], estimator, given)
            run.history.keep, run.history.objective = given.keep, objective.name
            self._saver.resume(given.to_be_the_same(estimator), rows, data.valid, fields_of(program, rows))
            self._follow_first(given.seed)
            self._epochs = Epochs(run, rows, held_out, objective, given, self._saver, self._progress)

    def _follow_first(self, seed: int) -> None:
        """Give every rank the state of rank 0, which may have resumed a run; the others get noise of their own."""
        if ranks.world_size() > 1:
            state = ranks.broadcast(self._run.state_dict() if ranks.rank() == 0 else None)
            if ranks.rank() > 0:
                self._run.load_state_dict(state)
                torch.manual_seed(ranks.own_seed(seed) + 17 * self._run.step)

    @contextmanager
    def _surroundings(self) -> Iterator[None]:
        """Context manager with the training's own random numbers and modes, apart from the user's."""
        with (
            self._numbers.current(),
            mode(self.program, training=True),
            torch.inference_mode(False),
            torch.enable_grad(),
            without_autocast(),
            default_dtype(self._default_dtype),
        ):
            yield

    @contextmanager
    def _training(self) -> Iterator[Callable[..., None]]:
        """Context manager in which the training goes on; it yields a function that raises an error after Ctrl-C.

        After an interrupt, or any other error, the program has the parameters of the epoch to be kept.
        """
        if self._left is not None:
            self._run.put(self._left)
            self._left, self.history.signal = None, None
        try:
            with self._surroundings(), deferred_interrupt() as raise_if_asked:
                yield raise_if_asked
        except KeyboardInterrupt as interrupt:
            self.history.signal = int(interrupt.args[0]) if interrupt.args else signal.SIGINT
            self._keep(or_present=True)
        except BaseException:
            self._keep()
            raise

    def _yielded(self, take: Callable[[Callable[..., None]], T | None]) -> Iterator[T]:
        """Yield what ``take`` returns, an epoch's row or a step, until the training ends or is interrupted."""
        self._loops += 1
        loop, earlier = self._loops, None
        if not self._begun:
            self._saver.begin()
            self._begun = True
        try:
            while earlier or not self._epochs.over:
                result, earlier = self._next(take, earlier)
                if result is None:
                    break
                yield result
        except GeneratorExit:  # by break, or an error of the user's code
            if loop == self._loops and self._left is None and not sys.is_finalizing():
                self._save(anew=True)
                self._progress.close()
            raise
        if self._left is None:
            try:
                self._save()
            finally:
                self._keep()
            self._warn_of_changing_weights()

    def _next(
        self, take: Callable[[Callable[..., None]], T | None], earlier: Callable[..., None] | None
    ) -> tuple[T | None, Callable[..., None] | None]:
        """Return what ``take`` returns, None at the end or after Ctrl-C, and what raises KeyboardInterrupt next time.

        The user's code ran before: a checkpoint that is due, or that Ctrl-C asked for (``earlier``), holds its changes.
        """
        result = None
        if not self._epochs.over:
            check_still_trained(self.program, self.optimizer, self._kinds)
        with self._training() as raise_if_asked:
            if earlier:
                self._saver.between_steps(earlier)
            if not self._epochs.over:
                result = take(raise_if_asked)
        return result, raise_if_asked

    def _save(self, anew: bool = False) -> None:
        with self._surroundings():
            self._saver.save(anew)

    def _keep(self, or_present: bool = False) -> None:
        """Restore the parameters to be kept; if no epoch has ended, the initial or the present ones."""
        self._left = self._run.parameters()
        if or_present and not self.history.rows:
            self._run.best = self._left
        self._run.put(self._run.best)
        self._progress.close()

    def _warn_of_changing_weights(self) -> None:
        if self._run.changed and not hasattr(self.optimizer, "annealing"):
            warn(
                "the weights of the sites, such as a KL weight, still changed in the last epoch, so the program "
                "may not be trained for their final values; train for more epochs, or let the weights "
                "reach their end in fewer steps",
                TrainingWarning,
            )


def fit(program: Program, data: Data, estimator: ELBO | None = None, **options: Any) -> History:
    """Train a program to the end, and return the history; the arguments and errors are those of ``Training``.

    The program then has the parameters of the epoch to be kept, ``History.kept_epoch``. Ctrl-C ends the training early,
    after a whole step: ``History.interrupted`` is then set.

    >>> from pyro_vae import VAE, guides, likelihoods, load, networks, priors
    >>> digits = load("digits")
    >>> vae = VAE(
    ...     priors.StandardNormal(2),
    ...     likelihoods.Bernoulli(networks.MLPDecoder(2, digits.shape, maps=1, hidden=(16,))),
    ...     guides.MeanField(networks.MLPEncoder(digits.shape, hidden=(16,)), 2),
    ... )
    >>> history = fit(vae, digits, epochs=2, lr=1e-2, progress=False)
    >>> history.rows[1]["valid_bound"] > history.rows[0]["valid_bound"]
    True
    """
    training = Training(program, data, estimator, **options)
    with deferred_interrupt():  # so that Ctrl-C between two epochs, too, is noted
        for _ in training:
            pass
    return training.history


# ``help(fit)`` and editors then list the options of ``Training``.
setattr(fit, "__signature__", inspect.signature(Training).replace(return_annotation=History))  # noqa: B010
