"""A trial, before a training, of all that could fail in the middle of it."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_vae.arguments import ProgramArguments, as_arguments
from pyro_vae.data.splits import Split, in_memory
from pyro_vae.errors import warn
from pyro_vae.estimation import check_analytic_kl, describe
from pyro_vae.observation import Arguments, arguments
from pyro_vae.program import Program, check_program
from pyro_vae.random import random_state, set_random_state
from pyro_vae.tracing.probing import left_as_it_was
from pyro_vae.training import ranks, settings
from pyro_vae.training.evaluation import evaluate
from pyro_vae.training.history import TrainingWarning
from pyro_vae.training.selection import Objective
from pyro_vae.training.settings import Settings
from pyro_vae.training.state import TrainingState
from pyro_vae.training.sums import check_sum_over_rows


def tried(run: TrainingState, rows: Split, valid: Arguments, estimator: ELBO, given: Settings) -> Objective:
    """Return the objective by which epochs are compared, after a trial of all that a training does.

    Raises ValueError for what would fail later, and for what would not be trained.
    """
    program = run.program
    first = arguments(program, _first(rows, given.part_size, run.device))
    _check_parts(program, rows, estimator, given)
    check_program(program, first, estimator)
    _check_summed(program, first, estimator, given)
    if describe(estimator).closed_form_kl:
        check_analytic_kl(program.model, program.guide, *first)
    with left_as_it_was(program.model, program.guide):
        settings.check_all_trained(program, run.optimizer, first)
        numbers = random_state(run.device)
    set_random_state(numbers, run.device)  # the check's draws count, so that a seed trains as it did before
    objective = Objective(program, estimator, valid, first, given.part_size)
    rehearse(objective, len(rows), given)
    return objective


def rehearse(objective: Objective, images: int, given: Settings) -> None:
    """Try the last batch of an epoch, and the measurement after it. Raises ValueError where one of them fails."""
    program, first = objective.program, objective.batch
    estimator: Any = objective.estimator
    loss = _loss(estimator)
    with left_as_it_was(program.model, program.guide), pyro.validation_enabled(False):
        last_batch(
            lambda *args: loss(program.model, program.guide, *args),
            first,
            images,
            given.batch_size,
            parts=given.accumulate,
        )
        try:
            with suppress(FloatingPointError):  # the initial parameters may cause it
                evaluate(program, first_rows(objective.args, 1000))
        except ValueError as error:
            cure = ""
            if "scaled" in str(error) or "its scale" in str(error):
                cure = ". A KL weight is for training mode alone; handlers.KLWeighted(program) sees to that"
            raise ValueError(
                "after each epoch the bound of each image is measured, in evaluation mode, which this "
                f"program does not allow: {error}{cure}"
            ) from error
        weights = objective.weights()
        if not objective.is_the_bound(weights):
            objective.loss(first_rows(objective.args, objective.batch_size), weights)


def last_batch(
    loss: Callable[..., Any], args: Tensor | Arguments, images: int, batch_size: int, parts: int = 1
) -> None:
    """Raise ValueError if the last batch of an epoch is smaller than the others and cannot be trained on.

    One cause is BatchNorm, which in training mode wants more than one image. ``args`` are those of a batch; ``loss``
    takes one of its ``parts`` at a time.

    >>> layer = torch.nn.BatchNorm1d(3)
    >>> last_batch(layer, torch.zeros(4, 3), images=9, batch_size=4)
    Traceback (most recent call last):
        ...
    ValueError: batch_size: of 9 images in batches of 4 the last batch of an epoch has 1, ... such as batch_size=3
    """
    last, world_size = images % batch_size, ranks.world_size()
    if not last:
        return
    try:
        loss(*first_rows(args, _smallest_part(last // world_size, parts)))
    except Exception as error:
        loss(*first_rows(args, batch_size // world_size))  # if a full batch fails too, that error is raised
        others = [size for size in range(batch_size - 1, 1, -1) if not images % size or images % size > last]
        cure = f"such as batch_size={others[0]}" if others else f"or {last} images fewer"
        raise ValueError(
            f"batch_size: of {images} images in batches of {batch_size} the last batch of an epoch has "
            f"{last}, on which the program cannot be trained ({_reason(error)}); take another one, {cure}"
        ) from error


def _check_parts(program: Program, rows: Split, estimator: Any, given: Settings) -> None:
    """Raise ValueError where a whole batch can be trained on, but not the smallest of the parts that it is cut into."""
    if given.accumulate == 1:
        return
    share = given.batch_size // ranks.world_size()
    smallest = _smallest_part(share, given.accumulate)
    loss, device = _loss(estimator), next(program.parameters()).device
    with left_as_it_was(program.model, program.guide), pyro.validation_enabled(False):
        try:
            loss(program.model, program.guide, *arguments(program, _first(rows, smallest, device)))
        except Exception as error:
            loss(program.model, program.guide, *arguments(program, _first(rows, share, device)))  # its own error first
            raise ValueError(
                f"accumulate: the smallest of the {given.accumulate} parts of a batch of {share} has {smallest}, on "
                f"which the program cannot be trained ({_reason(error)}); give fewer parts"
            ) from error


def _check_summed(program: Program, args: Arguments, estimator: ELBO, given: Settings) -> None:
    """Raise ValueError where the loss of a batch is not the sum of those of its parts; warn where that is unknown."""
    count = ranks.world_size() * given.accumulate
    if count == 1:
        return
    ways = {f"{ranks.world_size()} ranks": ranks.world_size(), f"accumulate={given.accumulate}": given.accumulate}
    how = " and ".join(way for way, parts in ways.items() if parts > 1)
    try:
        check_sum_over_rows(estimator, program.model, program.guide, args, len(args[0]))
    except ValueError as error:
        raise ValueError(
            f"program: the losses of {count} parts of a batch are summed ({how}), and what does not grow with the rows "
            f"would count {count} times: {error}. Train in one process with accumulate=1, or have the loss be a sum "
            "over rows"
        ) from error
    claimed, name = describe(estimator), type(estimator).__name__
    if claimed.guide_gradient is None and claimed.model_gradient is None:
        warn(
            f"the losses of {count} parts of a batch are summed ({how}), and nothing says that that of {name} is a sum "
            f"over rows: what does not grow with them, such as a penalty on the weights, counts {count} times. Divide "
            f"it by {count}; where there is none, say what {name} estimates, as `description = "
            'Description.unbiased("ELBO")` in its class',
            TrainingWarning,
        )


def first_rows(args: Tensor | Arguments, count: int) -> Arguments:
    """Return the arguments of the first rows."""
    args = as_arguments(args)
    return ProgramArguments.of(args, rows=len(args[0])).part(0, count).args


def _first(rows: Split, count: int, device: torch.device) -> Split:
    return in_memory(rows[:count], device)


def _loss(estimator: Any) -> Callable[..., Any]:
    return getattr(estimator, "differentiable_loss", estimator.loss)


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _smallest_part(images: int, parts: int) -> int:
    return len(torch.arange(images).chunk(parts)[-1])
