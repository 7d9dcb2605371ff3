"""Checks of numbers that users pass; all functions that take such a number share them."""

import math
from numbers import Integral, Real
from typing import Any


def is_whole(value: Any) -> bool:
    """Return whether a value is a whole number of Python or NumPy; True, False and 2.0 are not.

    >>> [is_whole(value) for value in (3, True, 2.0, "3", None)]
    [True, False, False, False, False]
    """
    return isinstance(value, Integral) and not isinstance(value, bool)


def whole_number(name: str, value: Any, least: int | None = 1, most: int | None = None) -> int:
    """Return the value as an int; raise ValueError unless it is a whole number from ``least`` to ``most``.

    ``least=None`` allows any number up to ``most``, ``most=None`` any number from ``least``.

    >>> whole_number("epochs", 2.5)
    Traceback (most recent call last):
        ...
    ValueError: epochs: wanted a whole number of at least 1, got 2.5
    >>> whole_number("bins", 1, least=2, most=256)
    Traceback (most recent call last):
        ...
    ValueError: bins: wanted a whole number from 2 to 256, got 1
    """
    if not is_whole(value) or (least is not None and value < least) or (most is not None and value > most):
        if least is None:
            allowed = "" if most is None else f" of at most {most}"
        else:
            allowed = f" of at least {least}" if most is None else f" from {least} to {most}"
        raise ValueError(f"{name}: wanted a whole number{allowed}, got {value!r}")
    return int(value)


def positive_number(name: str, value: Any) -> float:
    """Return the value as a float; raise ValueError unless it is a finite number greater than zero.

    >>> positive_number("lr", float("nan"))
    Traceback (most recent call last):
        ...
    ValueError: lr: wanted a positive number, got nan
    """
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 < float(value) < math.inf:
        raise ValueError(f"{name}: wanted a positive number, got {value!r}")
    return float(value)
