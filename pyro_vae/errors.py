"""Short error messages, without pages of numbers, and warnings that show the user's line."""

import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pyro_vae._lazy import LazyModule
from pyro_vae.printing import listed

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

PAGES = re.compile(r"(?<=but found invalid values):|\nTrace Shapes:")  # torch or Pyro print a whole tensor after it
OF_VALUES = re.compile("NaN|not finite|invalid values")  # in messages of errors that numbers may have caused
INSIDE = ("pyro_vae", "torch", "pyro", "contextlib")  # packages between the user's line and the cause of a warning


class DataError(RuntimeError):
    """A data set that is missing or cannot be read; the message names the file and the cure."""


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient became NaN or infinite; the program has the last good parameters again."""


class NoBound(UserWarning):
    """Minus a loss is called a bound, and bounds no log p(x): the guide has single points without a density."""


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the line of the user's code that called this package, however deep in the package the cause is."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in INSIDE:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


@contextmanager
def short_errors(args: Sequence, kwargs: Mapping[str, Any] | None = None) -> Iterator[None]:
    r"""Context manager that shortens ValueErrors with a whole tensor, and names arguments that are not finite.

    >>> with short_errors([torch.tensor([[0.5], [torch.nan]])]):
    ...     raise ValueError("the value is not real, but found invalid values:\ntensor([[0.5], [nan]])")
    Traceback (most recent call last):
        ...
    ValueError: x: 1 of its values are NaN or infinite, in the rows 1; take these rows out, or score what was seen
    by pyro_vae.Masked(program); where the model masks such values, put any number in their place, as in
    x.nan_to_num(0, 0, 0) (the program said: ...
    """
    try:
        yield
    except ValueError as error:
        words = PAGES.split(str(error))[0]
        bad = _not_finite(args, kwargs or {}) if OF_VALUES.search(words) else ""
        if bad:
            words = (
                f"{bad}; take these rows out, or score what was seen by pyro_vae.Masked(program); where the model "
                "masks such values, put any number in their place, as in x.nan_to_num(0, 0, 0) (the program said: "
                f"{words.splitlines()[0][:100]})"
            )
        if type(error) is not ValueError or words == str(error):
            raise
        raise ValueError(words) from None


def _not_finite(args: Sequence, kwargs: Mapping[str, Any]) -> str:
    """Name the arguments and rows that hold values that are not finite."""
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
