"""From the raw rows of a batch to the arguments of a program, by its ``observe``."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Generator, Tensor

from pyro_vae.arguments import as_arguments
from pyro_vae.checks import whole_number
from pyro_vae.data.fields import check_unmasked
from pyro_vae.data.splits import Split, in_memory
from pyro_vae.program import Program, check_has, dtype_of
from pyro_vae.random import mode

Arguments = tuple[Tensor, ...]
RETURN = "return x, or a tuple of all arguments of model and guide, such as (x, batch.labels)"


def observed(program: Program, batch: Split | Tensor | np.ndarray, generator: Generator | None = None) -> Any:
    """Return what ``program.observe`` makes of a batch: x, or a tuple of all arguments of model and guide.

    Floating tensors have the dtype of the program's parameters. Images alone, a uint8 tensor or array, stand for a
    batch of them. A program whose ``observe`` calls its first parameter ``pixels`` is given the images of the batch. An
    ``observe`` that draws random numbers takes a generator, its second parameter.
    Raises ValueError unless the result is a tensor with a row for each row of the batch, or a tuple that begins so, and
    where a program that is given the images alone would not follow their mask.

    >>> program = torch.nn.Linear(2, 1).double()
    >>> program.observe = lambda batch: (batch.table / 10, batch.labels)
    >>> x, labels = observed(program, Split(table=torch.ones(3, 2), labels=[0, 1, 1]))
    >>> x.dtype, labels
    (torch.float64, tensor([0, 1, 1]))
    """
    given = batch
    if takes_pixels(program):
        given = batch.images if isinstance(batch, Split) else batch
        if given is None:
            raise ValueError(
                f"observe: its first parameter is called pixels, and this batch has no images, but {batch}; call the "
                "parameter batch, and take what it needs from it, such as batch.table"
            )
        if isinstance(batch, Split):
            check_unmasked(batch.fields, "images")
    elif isinstance(batch, Tensor | np.ndarray) and str(batch.dtype).endswith("uint8") and batch.ndim == 4:
        given = Split.of_fields({"images": batch}) if isinstance(batch, Tensor) else Split(batch)
    random = generator is not None and _takes_generator(program.observe)
    value = program.observe(given, generator) if random else program.observe(given)
    made = as_arguments(value)
    _check_made(made, value, len(batch))
    dtype = dtype_of(program)
    cast = tuple(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in made)
    return cast if isinstance(value, tuple) else cast[0]


def arguments(program: Program, batch: Split | Tensor | np.ndarray, generator: Generator | None = None) -> Arguments:
    """Return the arguments that ``observed`` makes of a batch, as a tuple also where there is only x."""
    return as_arguments(observed(program, batch, generator))


def fixed_x(program: Program, rows: Split | Tensor | np.ndarray, seed: int = 0) -> Any:
    """Return what the program's ``observe`` makes of validation or test rows, drawn by a seed of its own.

    The program is in evaluation mode. ``rows`` is a split, or images alone, uint8 (N, C, H, W). They go to the device
    of the program's parameters, and so does the result; another device draws other numbers.

    >>> from pyro_vae.likelihoods import Bernoulli
    >>> likelihood, pixels = Bernoulli(torch.nn.Identity()), torch.full((1, 1, 8, 8), 100, dtype=torch.uint8)
    >>> torch.equal(fixed_x(likelihood, pixels), fixed_x(likelihood, pixels))
    True
    """
    check_has(program, "observe")
    if not isinstance(rows, Split | Tensor | np.ndarray):
        raise ValueError(
            f"rows: wanted a Split, a tensor or a NumPy array, got {_kind(rows)}; of a frame write "
            "Split(table=schema.encode(frame)), of images Split(images)"
        )
    place = next((parameter.device for parameter in program.parameters()), None)
    if place is not None and not isinstance(rows, np.ndarray):
        rows = in_memory(rows, place) if isinstance(rows, Split) else rows.to(place)
    fields = rows.fields.values() if isinstance(rows, Split) else [rows]
    device = next((field.device for field in fields if torch.is_tensor(field)), torch.device("cpu"))
    generator = Generator(device).manual_seed(whole_number("seed", seed, least=None))
    with mode(program, training=False):
        return observed(program, rows, generator)


def fixed_arguments(program: Program, split: Split) -> Arguments:
    """Return the arguments that ``fixed_x`` makes of a split, as a tuple also where there is only x."""
    return as_arguments(fixed_x(program, split))


def observed_once(values: Sequence[Any], keywords: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments of a call in which each split is replaced by ``fixed_x`` of the program, its first value.

    Raises ValueError where there is a split, and no program that could observe it.
    """

    def made(value: Any) -> Any:
        if not isinstance(value, Split):
            return value
        if not callable(getattr(values[0], "observe", None)):
            raise ValueError(
                f"x: got {value} after a model and a guide, which cannot observe it; give the program in their place, "
                "or x = fixed_x(program, split)"
            )
        return fixed_x(values[0], value)

    return [made(value) for value in values], {name: made(value) for name, value in keywords.items()}


def fields_of(program: Program, split: Split) -> tuple[str, ...]:
    """Return the names of the fields that the program's ``observe`` is given.

    >>> program = torch.nn.Module()
    >>> program.observe = lambda pixels: pixels / 255
    >>> fields_of(program, Split(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), labels=[0]))
    ('images',)
    """
    return ("images",) if takes_pixels(program) and split.images is not None else tuple(split.fields)


def from_fields(program: Program, fields: Sequence[str], *raw: Tensor) -> Arguments:
    """Return the arguments of the program from the raw tensors of these fields."""
    return arguments(program, Split.of_fields(dict(zip(fields, raw))))


def takes_pixels(program: Any) -> bool:
    """Return whether ``observe`` calls its first parameter ``pixels``, and is therefore given the images alone."""
    method = getattr(program.observe, "__func__", None)
    if method is None:
        return _first_is_pixels(program.observe)
    if method not in _TAKES_PIXELS:  # every step asks, and reading a signature takes half as long as ``observe``
        _TAKES_PIXELS[method] = _first_is_pixels(program.observe)
    return _TAKES_PIXELS[method]


_TAKES_PIXELS: WeakKeyDictionary[Callable, bool] = WeakKeyDictionary()


def _first_is_pixels(function: Callable) -> bool:
    return next(iter(_parameters(function)), None) == "pixels"


def _takes_generator(function: Callable) -> bool:
    """Return whether ``observe`` has a second parameter; one that draws nothing needs none."""
    found = list(_parameters(function).values())
    return len(found) != 1 or found[0].kind is inspect.Parameter.VAR_POSITIONAL


def _parameters(function: Callable) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # some functions of C have no signature
        return {}


def _check_made(made: tuple, value: Any, rows: int) -> None:
    """Raise ValueError unless ``observe`` returned tensors, of which the first has this many rows."""
    if not made or not all(isinstance(tensor, Tensor) for tensor in made):
        got = f"a tuple of {', '.join(type(part).__name__ for part in made)}" if made and made[0] is not value else None
        raise ValueError(f"observe: wanted a tensor x, or a tuple of tensors, got {got or _kind(value)}; {RETURN}")
    if not made[0].dim() or len(made[0]) != rows:
        raise ValueError(
            f"observe: wanted an x of {rows} rows, as many as the batch has, got shape {tuple(made[0].shape)}; {RETURN}"
        )


def _kind(value: Any) -> str:
    return "an empty tuple" if isinstance(value, tuple) and not value else f"a {type(value).__name__}"
