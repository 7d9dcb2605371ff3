"""Values that lie in no attribute and no item: environment variables, context variables, Pyro's settings."""

import os
from abc import ABC, abstractmethod
from contextvars import ContextVar
from typing import Any

import pyro


class Outside(ABC):
    """A holder of one value, which is read and set as its attribute ``value``."""

    @property
    @abstractmethod
    def value(self) -> Any:
        """Return the present value; None if there is none."""

    @value.setter
    @abstractmethod
    def value(self, value: Any) -> None:
        """Set the value."""


class EnvironmentVariable(Outside):
    """A variable of the environment.

    >>> variable = EnvironmentVariable("PYRO_VAE_EXAMPLE")
    >>> variable.value = "0.5"
    >>> os.environ.pop("PYRO_VAE_EXAMPLE")
    '0.5'
    >>> variable.value is None
    True
    """

    def __init__(self, name: str):
        self.name = name

    @property
    def value(self) -> str | None:
        """Return the present value; None if it is not set."""
        return os.environ.get(self.name)

    @value.setter
    def value(self, value: str | None) -> None:
        if value is None:
            os.environ.pop(self.name, None)
        else:
            os.environ[self.name] = value


class ContextValue(Outside):
    """The value of a context variable.

    >>> variable = ContextVar("rate", default=0.1)
    >>> ContextValue(variable).value = 0.2
    >>> variable.get()
    0.2
    """

    def __init__(self, variable: ContextVar):
        self.variable = variable

    @property
    def value(self) -> Any:
        """Return the present value; None if it is not set."""
        try:
            return self.variable.get()
        except LookupError:
            return None

    @value.setter
    def value(self, value: Any) -> None:
        self.variable.set(value)


class PyroSetting(Outside):
    """A setting of Pyro."""

    def __init__(self, name: str):
        self.name = name

    @property
    def value(self) -> Any:
        """Return the present value."""
        return pyro.settings.get(self.name)

    @value.setter
    def value(self, value: Any) -> None:
        pyro.settings.set(**{self.name: value})


def pyro_settings() -> dict[str, PyroSetting]:
    """Return the settings of Pyro by name; those of its validation, which changes no numbers, are left out.

    >>> pyro_settings()["cholesky_relative_jitter"].value
    4.0
    """
    return {name: PyroSetting(name) for name in pyro.settings.get() if not name.startswith("validate")}
