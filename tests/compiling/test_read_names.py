"""Names in the code of functions: variables, attributes, imports and strings."""

import sys
import types

import torch

from pyro_vae.compiling.read_names import imported_modules, names_in, names_of


def outer():
    import email.message as message

    def inner():
        return scale * message.Message().size  # noqa: F821

    return inner


def test_names_of_inner_functions_count():
    names = names_of(outer.__code__)
    assert "scale" in names.read and {"size", "Message"} <= names.occurring and names.imported == {"email.message"}
    assert {module.__name__ for module in imported_modules(outer)} == {"email", "email.message"}


def test_words_in_strings_are_names_only_where_something_looks_them_up():
    def says():
        return "beta"

    def looks():
        return eval("2 * beta")

    assert "beta" not in names_of(says.__code__).read and "beta" in names_of(looks.__code__).read


def test_strings_in_variables_are_looked_up_too():
    name = "beta"

    def looks():
        return getattr(torch, name)

    assert "beta" in names_in(looks).occurring and "beta" not in names_of(looks.__code__).occurring


def test_modules_that_are_imported_by_strings_or_from_a_package(monkeypatch):
    for name in ("rates", "rates.small"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))

    def by_string():
        return sys.modules["rates"].beta

    assert imported_modules(by_string) == [sys.modules["rates"]]
    code = compile("def relative():\n    from . import small\n    from .small import beta", "rates.py", "exec")
    known = {"__package__": "rates"}
    exec(code, known)
    assert imported_modules(known["relative"]) == [sys.modules["rates"], sys.modules["rates.small"]]
    known["__package__"] = None
    assert imported_modules(known["relative"]) == []  # outside a package it would fail
