"""What would fail in the middle of a training is tried before it; errors that show no page of numbers."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pyro_vae import distributed
from pyro_vae.printing import listed

PAGES = re.compile(r"(?<=but found invalid values):|\nTrace Shapes:")  # after which torch or Pyro print all of a tensor
OF_VALUES = re.compile("NaN|not finite|invalid values")  # what an error says that numbers may be the cause of
OF_CALL = re.compile(r"\(\) (missing \d+ required|takes .* argument)")  # and what Python says of a call

X_ALONE = (
    "fit and evaluate call model and guide with x alone; have observe(pixels) return one tensor x that holds the rest "
    "as well, such as a label in one more channel of the images, and model and guide take it apart; log_evidence and "
    "compare_estimators take any arguments"
)


@contextmanager
def short_errors(args: Sequence, kwargs: Mapping[str, Any] | None = None) -> Iterator[None]:
    """A block whose ValueErrors show no page of numbers, and say what is not finite in the arguments if that is why.

    >>> with short_errors([torch.tensor([[0.5], [torch.nan]])]):
    ...     raise ValueError("the value is not real, but found invalid values:\\ntensor([[0.5], [nan]])")
    Traceback (most recent call last):
        ...
    ValueError: x: 1 of its values are NaN or infinite, in the rows 1; take these rows out, or, where the model masks
    such values, put any number in their place, as in x.nan_to_num(0, 0, 0) (the program said: ...
    """
    try:
        yield
    except ValueError as error:
        words = PAGES.split(str(error))[0]
        bad = _not_finite(args, kwargs or {}) if OF_VALUES.search(words) else ""
        if bad:
            words = (f"{bad}; take these rows out, or, where the model masks such values, put any number in their "
                     f"place, as in x.nan_to_num(0, 0, 0) (the program said: {words.splitlines()[0][:100]})")
        if type(error) is not ValueError or words == str(error):
            raise
        raise ValueError(words) from None


@contextmanager
def given_x_alone() -> Iterator[None]:
    """A block in which a program that wants more arguments than x is told by a ValueError that it gets no others.

    >>> with given_x_alone():
    ...     (lambda x, labels: None)(torch.zeros(3))
    Traceback (most recent call last):
        ...
    ValueError: program: fit and evaluate call model and guide with x alone; ... argument: 'labels')
    """
    try:
        yield
    except TypeError as error:
        if not OF_CALL.search(str(error)):
            raise
        raise ValueError(f"program: {X_ALONE} (the program said: {error})") from error


def _not_finite(args: Sequence, kwargs: Mapping[str, Any]) -> str:
    """Which rows of which arguments hold values that are not finite, in words."""
    named = {f"argument {i}" if i else "x": value for i, value in enumerate(args)} | dict(kwargs)
    found = {
        name: ~value.isfinite()
        for name, value in named.items()
        if torch.is_tensor(value) and value.is_floating_point() and value.dim()
    }
    return "; ".join(
        f"{name}: {int(bad.sum())} of its values are NaN or infinite, in the rows "
        + listed(bad.reshape(len(bad), -1).any(1).nonzero().flatten().tolist())
        for name, bad in found.items()
        if bad.any()
    )


def last_batch(loss: Callable[[Tensor], Any], x: Tensor, images: int, batch_size: int) -> None:
    """Raises ValueError where the last batch of an epoch, smaller than the others, cannot be trained on.

    As with BatchNorm, which in training mode wants more than one image. ``x`` is a batch of full size.

    >>> layer = torch.nn.BatchNorm1d(3)
    >>> last_batch(layer, torch.zeros(4, 3), images=9, batch_size=4)
    Traceback (most recent call last):
        ...
    ValueError: batch_size: of 9 images in batches of 4 the last batch of an epoch has 1, ... such as batch_size=3
    """
    last, ranks = images % batch_size, distributed.world()
    if not last:
        return
    try:
        loss(x[: last // ranks])
    except Exception as error:
        loss(x[: batch_size // ranks])  # whose own error goes first, if it has one
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        others = [size for size in range(batch_size - 1, 1, -1) if not images % size or images % size > last]
        cure = f"such as batch_size={others[0]}" if others else f"or {last} images fewer"
        raise ValueError(f"batch_size: of {images} images in batches of {batch_size} the last batch of an epoch has "
                         f"{last}, on which the program cannot be trained ({reason}); take another one, {cure}"
                         ) from error
