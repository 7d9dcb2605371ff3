"""Values outside objects are read, and set again."""

import os
from contextvars import ContextVar

import pyro
import pytest

from pyro_vae.compiling.outside import ContextValue, EnvironmentVariable, pyro_settings


def test_an_environment_variable_that_is_set_and_gone(monkeypatch):
    monkeypatch.setenv("PYRO_VAE_RATE", "0.1")
    variable = EnvironmentVariable("PYRO_VAE_RATE")
    assert variable.value == "0.1"
    variable.value = None
    assert variable.value is None and "PYRO_VAE_RATE" not in os.environ
    variable.value = "0.2"
    assert os.environ["PYRO_VAE_RATE"] == "0.2"


def test_a_context_variable_without_a_value_has_none():
    variable = ContextVar("rate")
    held = ContextValue(variable)
    assert held.value is None
    held.value = 3
    assert variable.get() == held.value == 3


def test_settings_of_pyro_are_all_but_those_of_its_validation():
    settings = pyro_settings()
    assert settings.keys() == {name for name in pyro.settings.get() if not name.startswith("validate")}
    with pyro.settings.context(cholesky_relative_jitter=2.0):
        assert settings["cholesky_relative_jitter"].value == 2.0
    settings["cholesky_relative_jitter"].value = 4.0
    with pytest.raises(AssertionError):
        settings["cholesky_relative_jitter"].value = "high"
