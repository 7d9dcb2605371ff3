"""The protocol of programs that can be trained and measured, and their check."""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from pyro_vae.arguments import as_arguments
from pyro_vae.errors import short_errors
from pyro_vae.estimation import describe
from pyro_vae.estimators import Estimator
from pyro_vae.random import mode
from pyro_vae.tracing.enumeration import Enumeration
from pyro_vae.tracing.probing import left_as_it_was
from pyro_vae.tracing.traces import (
    ProgramRuns,
    check_messenger,
    check_rows,
    paired_traces,
    proposal_sites,
    sample_sites,
)
from pyro_vae.tracing.unscored import check_unused, rerun

OF_CALL = re.compile(r"\(\) (missing \d+ required|takes .* argument)")  # Python's message for wrong arguments of a call

ALL_ARGUMENTS = (
    "observe must return all arguments of model and guide, x first; write observe(self, batch, generator=None), which "
    "is given all fields of the data, and return a tuple such as (x, batch.labels)"
)


class Program(Protocol):
    """An ``nn.Module`` with a model and a guide, and ``observe``, which makes their arguments from a batch of rows.

    Attributes:
        model: ``model(*args)`` samples p(x, z), observed at x, the first argument.
        guide: ``guide(*args)`` samples q(z | x).
        observe: ``observe(batch, generator=None)`` returns x, or a tuple of all arguments, of a ``data.Split``; where
            its first parameter is called ``pixels``, it is given the images of the batch alone.
    """

    training: bool
    model: Callable[..., Any]
    guide: Callable[..., Any]
    observe: Callable[..., Any]

    # The rest comes from ``nn.Module``.
    modules: Callable[..., Iterator[nn.Module]]
    parameters: Callable[..., Iterator[nn.Parameter]]
    named_parameters: Callable[..., Iterator[tuple[str, nn.Parameter]]]
    named_buffers: Callable[..., Iterator[tuple[str, Tensor]]]
    state_dict: Callable[..., dict[str, Any]]
    load_state_dict: Callable[..., Any]
    train: Callable[..., Any]


def check_program(program: Program, x: Tensor | tuple, estimator: ELBO | None = None) -> None:
    """Try model and guide on x, the first of their arguments or a tuple of all, with Pyro's validation on.

    Raises ValueError if names, shapes, supports, masks or plates of the sites of model and guide differ, and if a
    log-probability is not finite, or depends on latent values that are masked. Raises ValueError if the estimator (one
    of Pyro's by default) would misread the guide, and if rows in evaluation mode have no log-probability of their own
    (``check_rows``). Parameters, buffers, modes, random numbers and Pyro's settings are left unchanged.
    """
    check_has(program, "model", "guide")
    args = as_arguments(x)
    with short_errors(args), left_as_it_was(program.model, program.guide), torch.no_grad():
        with pyro.validation_enabled(True), given_all_arguments():
            enumeration = _enumeration(program, args, estimator)
            traces = (
                paired_traces(program.model, program.guide, args)
                if enumeration is None
                else next(enumeration.traces(args))
            )
            model = program.model if enumeration is None else enumeration.held
        proposal_sites(traces[1], points_too=True)
        if not isinstance(estimator, Estimator):
            check_messenger(program.guide, traces[1])
        for trace in traces:
            for name, site in sample_sites(trace).items():
                log_prob = site["log_prob"]
                if enumeration is not None:  # some values of an enumerated site may have no mass
                    log_prob = log_prob[log_prob != -math.inf]
                if not log_prob.isfinite().all():
                    raise ValueError(
                        f"site {name!r}: its log-probability is not finite on the first batch; check the initial "
                        "parameters, and that x was made by observe(batch)"
                    )
        with mode(program, training=False):
            _check_vectorized(model, program.guide, args, estimator)
            check_rows(model, program.guide, args)
            if enumeration is None:
                check_unused(lambda values: rerun(model, values, args), traces[0])


def dtype_of(program: nn.Module | Program) -> torch.dtype:
    """Return the dtype of the program's first floating parameter; torch's default where it has none.

    Raises ValueError for 16 bits: a sum of log-probabilities over pixels would be off by whole nats.

    >>> dtype_of(nn.Linear(2, 1).double())
    torch.float64
    """
    floating = (parameter.dtype for parameter in program.parameters() if parameter.is_floating_point())
    dtype = next(floating, torch.get_default_dtype())
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"program: wanted parameters in torch.float32 or torch.float64, got {dtype}, in which a sum "
            "over pixels is off by whole nats; write program.float(), and fit(..., "
            "precision=torch.bfloat16) to have the networks compute in bfloat16"
        )
    return dtype


def held_by(module: Any) -> str | None:
    """Return the attribute by which a module that wraps a program holds the one to be used; None if it wraps none.

    >>> from pyro_vae import Averaged, handlers
    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program = LinearGaussian(torch.zeros(3, 1))
    >>> held_by(handlers.KLWeighted(program)), held_by(Averaged(program, 0.9)), held_by(program)
    ('program', 'average', None)
    """
    if hasattr(type(module), "average"):
        return "average"
    return "program" if isinstance(getattr(module, "program", None), nn.Module) else None


def check_has(program: Any, *names: str) -> None:
    """Raise ValueError unless it is an ``nn.Module`` with these methods.

    >>> check_has(nn.Linear(2, 1), "model", "guide")
    Traceback (most recent call last):
        ...
    ValueError: program: wanted an nn.Module with model and guide, got Linear; ...
    """
    if isinstance(program, nn.Module) and all(callable(getattr(program, name, None)) for name in names):
        return
    wanted, got = " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names), type(program).__name__
    cure = "give the program itself, such as a VAE"
    if isinstance(getattr(program, "module", None), nn.Module):
        cure = f"write .module after this {got}, which is the program that it wraps"
    elif isinstance(getattr(program, "__self__", None), nn.Module):
        cure = f"give the program itself, not its {program.__name__}"
    raise ValueError(f"program: wanted an nn.Module with {wanted}, got {got}; {cure}")


@contextmanager
def given_all_arguments() -> Iterator[None]:
    """Context manager that raises ValueError with the cure where a program wants other arguments than it is given.

    >>> with given_all_arguments():
    ...     (lambda x, labels: None)(torch.zeros(3))
    Traceback (most recent call last):
        ...
    ValueError: program: observe must return all arguments of model and guide, x first; ... argument: 'labels')
    """
    try:
        yield
    except TypeError as error:
        if not OF_CALL.search(str(error)):
            raise
        raise ValueError(f"program: {ALL_ARGUMENTS} (the program said: {error})") from error


def model_and_guide(first: Any, *rest: Any) -> tuple[Callable, Callable | None, tuple]:
    """Split a call that begins with a program, or with a model and a guide, into model, guide and what follows.

    A guide of None stays None. A callable model that has methods ``model`` and ``guide`` of its own is taken for the
    model where a guide follows. Raises ValueError where the call begins with neither.

    >>> program = nn.Module()
    >>> program.model, program.guide = abs, max
    >>> model_and_guide(program, 3), model_and_guide(abs, max, 3)
    ((<built-in function abs>, <built-in function max>, (3,)), (<built-in function abs>, <built-in function max>, (3,)))
    """
    if isinstance(first, type):
        raise ValueError(f"program: wanted a program, got the class {first.__name__}; make one, {first.__name__}(...)")
    guided = bool(rest) and (rest[0] is None or callable(rest[0]))
    is_program = callable(getattr(first, "model", None)) and callable(getattr(first, "guide", None))
    if is_program and not (guided and _is_function(first)):
        if guided:
            raise ValueError(
                f"program: wanted its data after it, got a guide, {rest[0]!r:.80}; write f(program.model, guide, x)"
            )
        return first.model, first.guide, rest
    if callable(first) and guided:
        return first, rest[0], rest[1:]
    raise ValueError(
        f"program: wanted a program with model and guide, or a model and then a guide, got {type(first).__name__}; "
        "write f(vae, x) or f(model, guide, x)"
    )


def _is_function(thing: Any) -> bool:
    """Return whether it can be called; ``nn.Module`` without a ``forward`` only seems so."""
    forward = getattr(type(thing), "forward", None)
    return callable(thing) and not (isinstance(thing, nn.Module) and forward is nn.Module.forward)


def _enumeration(program: Program, args: tuple, estimator: ELBO | None) -> Enumeration | None:
    """Return the program with sites that the estimator sums out; None if it sums no site out."""
    if estimator is None or not describe(estimator).enumerates:
        return None
    return Enumeration.of(program.model, program.guide, args)


def _check_vectorized(model: Callable, guide: Callable, args: tuple, estimator: ELBO | None) -> None:
    """Raise ValueError where one of Pyro's ELBOs draws particles together in a program that takes no such plate."""
    if estimator is None or isinstance(estimator, Estimator) or not getattr(estimator, "vectorize_particles", False):
        return
    K = estimator.num_particles
    if K > 1 and not ProgramRuns(K).layout(model, guide, args).vectorized:
        name = type(estimator).__name__
        raise ValueError(
            f"estimator: {name} draws its particles in one plate, in which this program has other "
            "log-probabilities than for one particle, or none, as its networks or sums take dimensions by "
            f"their position; write {name}(num_particles={K}, vectorize_particles=False)"
        )
