"""What all evidence functions share: the two forms of a call, its options, and the state of torch during it."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, Literal, TypeVar

import torch
from tqdm import tqdm

from pyro_vae.arguments import ProgramArguments
from pyro_vae.checks import whole_number
from pyro_vae.errors import short_errors
from pyro_vae.evidence.plan import is_automatic
from pyro_vae.hardware import exact_convolutions, fast_matmul, warn_if_emulated
from pyro_vae.networks import lowered_precision
from pyro_vae.observation import observed_once
from pyro_vae.program import model_and_guide
from pyro_vae.random import measurement, seeded, set_random_state, torch_random_state
from pyro_vae.tracing.probing import evaluating, left_as_it_was, modules

Engine = Literal["auto", "eager", "compiled"]
R = TypeVar("R")

COMPILED = {"auto": None, "eager": False, "compiled": True}  # what ``Graphs`` calls wanted
# Words of earlier versions, or of other functions: the word to use, and what to write.
RENAMED = {
    "num_particles": ("particles", "particles=..."),
    "particles": ("chains", "chains=..."),
    "compiled": ("engine", 'engine="compiled" for compiled=True, engine="eager" for compiled=False'),
}


def takes_program(options: type) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Decorate a measurement of (model, guide, x, ...) so that it also takes (program, x, ...).

    x may be a split of a data set: the program then observes it once, by a fixed seed (``observation.fixed_x``).

    It computes as ``random.measurement`` says. Its keywords are those in its signature and the fields of ``options``, a
    TypedDict. Raises TypeError for any other keyword.

    >>> @takes_program(dict)
    ... def names(model, guide, x):
    ...     return model.__name__, guide.__name__, x
    >>> names(abs, max, 3), names(abs, guide=max, x=3)
    (('abs', 'max', 3), ('abs', 'max', 3))
    """

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        measured, known = measurement(function), _keywords(function, options)

        @wraps(function)
        def call(*args: Any, **keywords: Any) -> R:
            _check_keywords(function.__name__, keywords, known)
            others = sorted(keywords.keys() & {"model", "guide"})
            if "program" in keywords and others:
                name = function.__name__
                raise TypeError(
                    f"{name}: wanted a program, or a model and a guide; got program and {' and '.join(others)}; write "
                    f"{name}(program=..., x=...) or {name}(model=..., guide=..., x=...)"
                )
            first = [keywords.pop(name) for name in ("program", "model") if name in keywords]
            positional = [*first, *args]
            if "guide" in keywords:
                positional.insert(1, keywords.pop("guide"))
            positional, keywords = observed_once(positional, keywords)
            model, guide, rest = model_and_guide(*positional or [None])
            return measured(model, guide, *rest, **keywords)

        return call

    return decorate


def whether_compiled(engine: Engine) -> bool | None:
    """Return True for "compiled", False for "eager", None for "auto"; raise ValueError for any other engine.

    >>> whether_compiled("eager")
    False
    """
    if engine not in COMPILED:
        raise ValueError(f'engine: wanted "auto", "eager" or "compiled", got {engine!r}; leave it out for "auto"')
    return COMPILED[engine]


def chunk_size(chunk: int | None, device: torch.device) -> int:
    """Return the number of z decoded at once: by default 500 on a CPU, whose cache holds them, and 20,000 on a GPU."""
    return whole_number("chunk", (500 if device.type == "cpu" else 20_000) if chunk is None else chunk)


def progress_bar(total: int, unit: str, progress: bool) -> tqdm:
    """Return a progress bar, which is shown on a terminal only, and only if ``progress``."""
    return tqdm(total=total, unit=unit, unit_scale=True, disable=None if progress else True)


@contextmanager
def measuring(
    model: Callable,
    guide: Callable | None,
    given: ProgramArguments,
    seed: int | None,
    precision: torch.dtype | None = None,
) -> Iterator[None]:
    """Context manager in which a program can be measured.

    Its modules are in evaluation mode and compute in ``precision``. With a seed, random numbers come from a generator
    of their own. An automatic guide that first runs in the context is new again afterwards.
    """
    warn_if_emulated(precision, given.device)
    with ExitStack() as stack:
        stack.enter_context(short_errors(given.args, given.kwargs))
        if guide is not None and is_automatic(guide):
            stack.enter_context(_left_new(guide, given.device))
        stack.enter_context(evaluating(model, guide))
        for module in modules(model, guide).values():
            stack.enter_context(lowered_precision(module, precision))
        stack.enter_context(fast_matmul(given.device))
        stack.enter_context(exact_convolutions())
        if seed is not None:
            stack.enter_context(seeded(seed, given.device))
        yield


@contextmanager
def _left_new(guide: Callable, device: torch.device) -> Iterator[None]:
    """Context manager after which an automatic guide is as before: it may then be trained on other rows.

    The random numbers drawn in the context count as drawn.
    """
    with left_as_it_was(guide):
        yield
        drawn = torch_random_state(device)
    set_random_state(drawn, device)


def _keywords(function: Callable, options: type) -> set[str]:
    """Return the keywords that a function under ``takes_program`` takes."""
    parameters = inspect.signature(function).parameters.values()
    named = {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}
    return {"program", *named, *getattr(options, "__annotations__", {})}


def _check_keywords(name: str, given: Mapping[str, Any], known: set[str]) -> None:
    for word in given:
        if word not in known:
            new, cure = RENAMED.get(word, (None, None))
            advice = f"write {cure}" if new in known else "leave it out, or write one of these"
            raise TypeError(f"{name}: wanted keywords among {', '.join(sorted(known))}; got {word}; {advice}")
