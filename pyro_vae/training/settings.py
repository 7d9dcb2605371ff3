"""Settings of a training: each is checked, and refused with a cure, before anything is trained."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from pyro.infer import ELBO, TraceTailAdaptive_ELBO
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler, ReduceLROnPlateau

from pyro_vae.checks import is_whole, positive_number, whole_number
from pyro_vae.data.splits import Data
from pyro_vae.estimation import settings_of
from pyro_vae.networks import Network
from pyro_vae.program import Program, check_has, dtype_of
from pyro_vae.tracing.leaves import find_parameters
from pyro_vae.training.checkpoint import ESTIMATOR_SETTINGS, Checkpoints
from pyro_vae.training.held import held_ids, trained_and_missing
from pyro_vae.training.lazy_compiler import spare_compiler

BATCH_SIZE = 256  # or all training images, if they are fewer
LR = 1e-3  # of Adam, where neither lr nor an optimiser is given
ADAM = "optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-3)"
COSINE = "schedule=lambda optimizer, steps: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)"
DATA = 'Data("name", Split(train), Split(valid), Split(test)), each a uint8 tensor (N, C, H, W), or Split(table=...)'


@dataclass(frozen=True)
class Settings:
    """The settings of ``Training`` that are numbers and words, by their names there; ``checked`` must be called."""

    epochs: int
    batch_size: int
    accumulate: int
    lr: float | None
    seed: int
    precision: torch.dtype | None
    engine: str
    clip: float | None
    skip_non_finite: int
    keep: Literal["best", "last"]

    def checked(self, program: Program, estimator: ELBO) -> "Settings":
        """Return the settings as plain numbers, with an engine for the estimator. Raises ValueError for bad ones."""
        return Settings(
            epochs=whole_number("epochs", self.epochs),
            batch_size=self.batch_size,
            accumulate=whole_number("accumulate", self.accumulate),
            lr=None if self.lr is None else positive_number("lr", self.lr),
            seed=whole_number("seed", self.seed, least=None),
            precision=checked_precision(self.precision, program),
            engine=chosen_engine(self.engine, estimator),
            clip=None if self.clip is None else positive_number("clip", self.clip),
            skip_non_finite=whole_number("skip_non_finite", self.skip_non_finite, least=0),
            keep=checked_keep(self.keep),
        )

    @property
    def part_size(self) -> int:
        """The number of images of which the gradient is computed at once."""
        return math.ceil(self.batch_size / self.accumulate)

    def to_be_the_same(self, estimator: ELBO) -> dict[str, Any]:
        """Return the settings that must match on resume, as words and numbers."""
        words = f"{type(estimator).__name__}, {estimator.num_particles} particles"
        free = ("engine", "skip_non_finite")
        settings = {name: value for name, value in asdict(self).items() if name not in free}
        return settings | {
            "lr": LR if self.lr is None else self.lr,
            "precision": str(self.precision),
            "estimator": words,
            ESTIMATOR_SETTINGS: settings_of(estimator),
        }


def trained_parameters(program: nn.Module | Program) -> list[nn.Parameter]:
    """Return the parameters that a training changes."""
    return [parameter for parameter in program.parameters() if parameter.requires_grad]


def check_program_and_data(program: Any, data: Any) -> None:
    """Raise ValueError unless the program can be trained and the data is a ``Data``.

    >>> check_program_and_data(nn.Linear(2, 1), None)
    Traceback (most recent call last):
        ...
    ValueError: program: wanted an nn.Module with model, guide and observe, got Linear; ...
    """
    check_has(program, "model", "guide", "observe")
    if not trained_parameters(program):
        raise ValueError("program: it has no trainable parameter; register its networks as submodules")
    if any(parameter.is_inference() for parameter in program.parameters()):
        raise ValueError("program: it was made in torch.inference_mode, and cannot be trained; make it outside")
    dtype_of(program)
    if not isinstance(data, Data):
        raise ValueError(f"data: wanted a pyro_vae.data.Data, got {type(data).__name__}; write {DATA}")


def check_estimator(estimator: Any) -> None:
    """Raise ValueError unless it is a Pyro ELBO that gives a loss.

    >>> check_estimator("trace")
    Traceback (most recent call last):
        ...
    ValueError: estimator: wanted a pyro.infer.ELBO such as Trace_ELBO(), got 'trace'
    """
    if not isinstance(estimator, ELBO):
        raise ValueError(f"estimator: wanted a pyro.infer.ELBO such as Trace_ELBO(), got {estimator!r}")
    if isinstance(estimator, TraceTailAdaptive_ELBO):
        raise ValueError(
            "estimator: TraceTailAdaptive_ELBO gives no loss, only a gradient, so that no training can be "
            "followed; write estimator=pyro_vae.estimators.DoublyReparameterized(K=5)"
        )
    whole_number(f"estimator: num_particles of {type(estimator).__name__}", estimator.num_particles)


def chosen_engine(engine: str, estimator: ELBO) -> str:
    """Return the engine; it is "svi" for "auto" where no other engine can train by the estimator.

    Raises ValueError for an engine that cannot.

    >>> from pyro.infer import RenyiELBO
    >>> chosen_engine("auto", RenyiELBO(num_particles=2))
    'svi'
    """
    if getattr(estimator, "keeps_state", False):
        raise ValueError(
            f"estimator: {type(estimator).__name__} keeps a state from step to step, which no run saves and resumes; "
            "train by pyro.infer.SVI, or take StickingTheLanding"
        )
    if hasattr(estimator, "differentiable_loss"):
        return engine
    if engine not in ("auto", "svi"):
        raise ValueError(
            f"engine: {type(estimator).__name__} has no differentiable_loss, so that only "
            f'engine="svi" trains by it, got {engine!r}; write engine="svi"'
        )
    return "svi"


def checked_batch_size(batch_size: Any, images: int) -> int:
    """Return the batch size as an int, 256 or all of fewer images for None. Raises ValueError unless from 1 to all.

    >>> checked_batch_size(None, images=10), checked_batch_size(None, images=50_000)
    (10, 256)
    >>> checked_batch_size(11, images=10)
    Traceback (most recent call last):
        ...
    ValueError: batch_size: wanted 1 to 10 (the training images), got 11; the whole training split is 10
    """
    if batch_size is None:
        return min(BATCH_SIZE, images)
    if not is_whole(batch_size) or not 1 <= batch_size <= images:
        raise ValueError(
            f"batch_size: wanted 1 to {images} (the training images), got {batch_size!r}; "
            f"the whole training split is {images}"
        )
    return int(batch_size)


def checked_keep(keep: Any) -> Literal["best", "last"]:
    """Return "best" or "last". Raises ValueError for anything else."""
    if keep not in ("best", "last"):
        raise ValueError(f'keep: wanted "best" or "last", got {keep!r}')
    return keep


def checked_precision(precision: Any, program: Program) -> torch.dtype | None:
    """Return the lowered precision of the networks; None if it is the precision of the parameters.

    Raises ValueError for a precision other than these and bfloat16.

    >>> checked_precision("bf16", nn.Linear(2, 1))
    Traceback (most recent call last):
        ...
    ValueError: precision: wanted None or torch.bfloat16, got 'bf16'; write precision=torch.bfloat16
    """
    own = dtype_of(program)
    if precision is None or precision is own:
        return None
    if precision is not torch.bfloat16:
        raise ValueError(f"precision: wanted None or torch.bfloat16, got {precision!r}; {_cure(precision, own)}")
    if own is not torch.float32:
        raise ValueError(f"precision: torch.bfloat16 has no effect on parameters of {own}; write program.float()")
    if not any(isinstance(module, Network) for module in program.modules()):
        raise ValueError(
            "precision: torch.bfloat16 is for the networks of pyro_vae.networks, and the program has "
            "none; leave precision out"
        )
    return precision


def made_optimizer(
    make: Callable[[list[nn.Parameter]], Optimizer] | None, program: Program, lr: float | None
) -> Optimizer:
    """Return the optimiser of all trainable parameters of the program: Adam, or what ``make`` returns.

    Raises ValueError for anything but a torch optimiser of just these parameters that takes its step from one gradient,
    and for ``lr`` beside ``make``.

    >>> made_optimizer(torch.optim.LBFGS, nn.Linear(2, 1), None)
    Traceback (most recent call last):
        ...
    ValueError: optimizer: LBFGS evaluates the loss several times a step, and fit takes a step from one gradient; ...
    """
    spare_compiler()
    parameters = trained_parameters(program)
    if make is None:
        return torch.optim.Adam(parameters, lr=LR if lr is None else lr, fused=True)
    if lr is not None:
        raise ValueError(
            f"lr: got {lr} beside an optimizer, which has a step of its own; leave one of the two out, or "
            f"write optimizer=lambda parameters: torch.optim.Adam(parameters, lr={lr})"
        )
    wanted = f"optimizer: wanted a function from a list of parameters to a torch optimiser, got {{}}; write {ADAM}"
    if isinstance(make, Optimizer) or not callable(make) or _is_of_pyro(make):
        raise ValueError(wanted.format(_kind(make)))
    optimizer = _called("optimizer", make, ADAM, parameters)
    if not isinstance(optimizer, Optimizer):
        raise ValueError(wanted.format(f"one to {_kind(optimizer)}"))
    _check_one_gradient(optimizer)
    _check_all_parameters(optimizer, program)
    return optimizer


def check_all_trained(program: Program, optimizer: Optimizer, args: Sequence[Tensor]) -> None:
    """Run the program once; raise ValueError if it depends on a parameter that the optimiser does not hold.

    Such a parameter is one in Pyro's store, or one that a guide makes when it first runs.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program = LinearGaussian(torch.ones(3, 1))
    >>> check_all_trained(program, torch.optim.Adam(program.parameters()), [torch.zeros(2, 3)])
    """
    held = held_ids(optimizer)
    found, *_ = find_parameters(program.model, program.guide, args, enumerated=True)  # or check_program had raised
    others = [name for name, leaf in (found.model | found.guide).items() if id(leaf) not in held]
    if others:
        raise ValueError(
            f"program: model and guide depend on {', '.join(others[:3])} ({len(others)} in all), which "
            "were no parameters of the program when fit began, and would stay as they are; register them "
            "as nn.Parameter, and run a guide that makes its parameters at its first call once before, "
            "by program.guide(x), where x = pyro_vae.fixed_x(program, data.train[:2])"
        )


def made_scheduler(
    make: Callable[[Optimizer, int], LRScheduler] | None, optimizer: Optimizer, steps: int
) -> LRScheduler | None:
    """Return the scheduler of the optimiser for this number of steps: what ``make`` returns, or None.

    Raises ValueError for anything but one of torch's schedulers of this very optimiser.

    >>> made_scheduler("cosine", None, 100)
    Traceback (most recent call last):
        ...
    ValueError: schedule: wanted a function from the optimiser and the number of all steps to a scheduler of torch, ...
    """
    if make is None:
        return None
    wanted = (
        "schedule: wanted a function from the optimiser and the number of all steps to a scheduler of torch, got "
        f"{{}}; write {COSINE}"
    )
    if isinstance(make, LRScheduler) or not callable(make) or _is_of_pyro(make):
        raise ValueError(wanted.format(_kind(make)))
    scheduler = _called("schedule", make, COSINE, optimizer, steps)
    if not isinstance(scheduler, LRScheduler):
        raise ValueError(wanted.format(f"one to {_kind(scheduler)}"))
    if getattr(scheduler, "optimizer", optimizer) is not optimizer:
        raise ValueError(
            f"schedule: its {type(scheduler).__name__} moves the step of another optimiser than the one "
            f"that it is given; write {COSINE}"
        )
    if isinstance(scheduler, ReduceLROnPlateau) and scheduler.threshold_mode == "rel":
        raise ValueError(
            'schedule: wanted ReduceLROnPlateau with threshold_mode="abs", got "rel", by which a negative '
            "loss that stays the same counts as better; write schedule=lambda optimizer, steps: "
            'torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, threshold_mode="abs", threshold=0.01)'
        )
    most = min((getattr(each, "total_steps", steps) for each in _parts(scheduler)), default=steps)
    if most < steps:
        raise ValueError(
            f"schedule: wanted one of all {steps} steps, got a {type(scheduler).__name__} that ends with "
            f"an error after {most}; write schedule=lambda optimizer, steps: "
            "torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)"
        )
    return scheduler


def _parts(scheduler: LRScheduler) -> list[LRScheduler]:
    """Return the scheduler and those inside it that are stepped as often."""
    inner = getattr(scheduler, "_schedulers", []) if isinstance(scheduler, ChainedScheduler) else []
    return [scheduler, *inner]


def _called(name: str, make: Callable, example: str, *args: Any) -> Any:
    """Return what the user's function returns. Raises ValueError where it cannot be called with these arguments."""
    try:
        return make(*args)
    except (TypeError, AssertionError, AttributeError) as error:
        raise ValueError(f"{name}: the function that was given fails ({error}); write {example}") from error


def _cure(precision: Any, own: torch.dtype) -> str:
    if precision is torch.float32:
        return f"the parameters are {own}; write program.float()"
    if precision is torch.float64:
        return f"the parameters are {own}; write program.double()"
    reason = "gradients underflow in torch.float16, as fit does not scale losses; " * (precision is torch.float16)
    return f"{reason}write precision=torch.bfloat16"


def _kind(thing: Any) -> str:
    return f"a {type(thing).__module__}.{type(thing).__qualname__}" if not isinstance(thing, str) else repr(thing)


def _is_of_pyro(thing: Any) -> bool:
    """Return whether it comes from ``pyro.optim``, whose optimisers are called with parameters, too."""
    return str(getattr(thing, "__module__", "")).startswith("pyro.optim")


def _check_one_gradient(optimizer: Optimizer) -> None:
    name, closure = type(optimizer).__name__, inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"optimizer: {name} evaluates the loss several times a step, and fit takes a step from one "
            f"gradient; write {ADAM}"
        )
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise ValueError(f"optimizer: {name} takes sparse gradients, and these are dense; write {ADAM}")


def _check_all_parameters(optimizer: Optimizer, program: Program) -> None:
    trained, missing = trained_and_missing(program, optimizer)
    if missing:
        raise ValueError(
            f"optimizer: it does not hold {', '.join(missing[:3])} ({len(missing)} of {len(trained)} "
            "parameters), which would stay as they are; switch off what is not to be trained by "
            f"part.requires_grad_(False), and write {ADAM}"
        )
    others = len(held_ids(optimizer) - {id(parameter) for parameter in program.parameters()})
    if others:
        raise ValueError(
            f"optimizer: it holds {others} parameters that are not the program's, which would be neither "
            f"kept nor saved; write {ADAM}"
        )


def check_checkpoints(checkpoints: Any) -> None:
    """Raise ValueError unless it is a ``Checkpoints`` or None."""
    if checkpoints is not None and not isinstance(checkpoints, Checkpoints):
        raise ValueError(
            f"checkpoints: wanted Checkpoints(folder), got {checkpoints!r}; write "
            'checkpoints=pyro_vae.Checkpoints("a-folder")'
        )
