"""What would fail in the middle of a training is tried before it; errors that show no page of numbers."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from pyro_vae.training import ranks

OF_CALL = re.compile(r"\(\) (missing \d+ required|takes .* argument)")  # and what Python says of a call

X_ALONE = (
    "fit and evaluate call model and guide with x alone; have observe(pixels) return one tensor x that holds the rest "
    "as well, such as a label in one more channel of the images, and model and guide take it apart; log_evidence and "
    "compare_estimators take any arguments"
)


@contextmanager
def given_x_alone() -> Iterator[None]:
    """A block in which a program that wants more arguments than x is told by a ValueError that it gets no others.

    >>> import torch
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


def last_batch(loss: Callable[[Tensor], Any], x: Tensor, images: int, batch_size: int) -> None:
    """Raises ValueError where the last batch of an epoch, smaller than the others, cannot be trained on.

    As with BatchNorm, which in training mode wants more than one image. ``x`` is a batch of full size.

    >>> import torch
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
        loss(x[: last // world_size])
    except Exception as error:
        loss(x[: batch_size // world_size])  # whose own error goes first, if it has one
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        others = [size for size in range(batch_size - 1, 1, -1) if not images % size or images % size > last]
        cure = f"such as batch_size={others[0]}" if others else f"or {last} images fewer"
        raise ValueError(
            f"batch_size: of {images} images in batches of {batch_size} the last batch of an epoch has "
            f"{last}, on which the program cannot be trained ({reason}); take another one, {cure}"
        ) from error
