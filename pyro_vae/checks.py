"""Numbers that a user gives: each is checked, and refused in the same words, by one function."""

import math
from numbers import Integral, Real
from typing import Any


def is_whole(value: Any) -> bool:
    """Whether it is a whole number of Python or NumPy; True, False and 2.0 are none.

    >>> [is_whole(value) for value in (3, True, 2.0, "3", None)]
    [True, False, False, False, False]
    """
    return isinstance(value, Integral) and not isinstance(value, bool)


def whole_number(name: str, value: Any, least: int | None = 1) -> int:
    """The value as an int; ValueError unless it is a whole number of at least ``least`` (None: any).

    >>> whole_number("epochs", 2.5)
    Traceback (most recent call last):
        ...
    ValueError: epochs: wanted a whole number of at least 1, got 2.5
    """
    if not is_whole(value) or (least is not None and value < least):
        range_ = "" if least is None else f" of at least {least}"
        raise ValueError(f"{name}: wanted a whole number{range_}, got {value!r}")
    return int(value)


def positive_number(name: str, value: Any) -> float:
    """The value as a float; ValueError unless it is a number greater than zero, and finite.

    >>> positive_number("lr", float("nan"))
    Traceback (most recent call last):
        ...
    ValueError: lr: wanted a positive number, got nan
    """
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ValueError(f"{name}: wanted a positive number, got {value!r}")
    return float(value)
