"""What objects refer to is found wherever a value may lie."""

import array
import collections
import configparser
import contextvars
import ctypes
import functools
import os
import sys
import threading
import types
import weakref

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from pyro_vae.compiling import CompiledSVI
from pyro_vae.compiling.constants import WatchedConstants
from pyro_vae.compiling.loss import surroundings
from pyro_vae.compiling.parts import LONGEST, WIDEST, is_opaque, is_plain, is_watched_inside

SETTINGS = types.ModuleType("rates_of_a_user")
VARIABLE, CONTEXT, HELD = "beta", contextvars.ContextVar("beta"), type("Held", (), {})()
LOCAL, MAPPING, CHAIN, PARSED = threading.local(), {}, collections.ChainMap({}), configparser.ConfigParser()
PROXY, REFERENCE, NUMBERS, BYTES = (
    types.MappingProxyType(MAPPING),
    weakref.ref(HELD),
    array.array("d", [0]),
    bytearray(1),
)
MANY, WIDE, ROWS = [0.0] * (LONGEST + 1), dict.fromkeys(range(LONGEST + 1), 0.0), np.zeros(5000)
OPTIMIZER = torch.optim.SGD([torch.zeros(1)], lr=0.1)


class Described:
    """A number behind a descriptor of a user's class."""

    class Rate:
        def __get__(self, owner, kind):
            return self.rate

        def __set__(self, owner, value):
            self.rate = value

    beta = Rate()

    def method(self):
        return 0.0


class Computed:
    """A number behind a property that reads a global."""

    @property
    def beta(self):
        return HELD.beta

    @functools.cached_property
    def kept(self):
        return SETTINGS.beta


DESCRIBED, COMPUTED, BOUND = Described(), Computed(), CONTEXT.get
PARSED["rates"] = {}


def by_import():
    import rates_of_a_user as rates

    return rates.beta


def by_import_from():
    from rates_of_a_user import beta

    return beta


@functools.lru_cache
def kept():
    return SETTINGS.beta


def code(value):
    by_code.__code__ = (lambda: 0.1).__code__ if value == 0.1 else (lambda: 0.2).__code__


def by_code():
    return 0.0


def environment(value):
    os.environ["PYRO_VAE_BETA"] = str(value)


def set_beta(holder):
    return lambda value: setattr(holder, "beta", value)


def set_item(holder, key=0):
    return lambda value: holder.__setitem__(key, value)


FOLLOWED = {
    "import": (by_import, set_beta(SETTINGS)),
    "import from": (by_import_from, set_beta(SETTINGS)),
    "getattr": (lambda: getattr(SETTINGS, "beta"), set_beta(SETTINGS)),  # noqa: B009
    "getattr with a variable": (lambda: getattr(SETTINGS, VARIABLE), set_beta(SETTINGS)),
    "sys.modules": (lambda: sys.modules["rates_of_a_user"].beta, set_beta(SETTINGS)),
    "vars": (lambda: vars(SETTINGS)["beta"], set_beta(SETTINGS)),
    "eval": (lambda: eval("HELD.beta"), set_beta(HELD)),
    "globals": (lambda: globals()["HELD"].beta, set_beta(HELD)),
    "cache": (lambda: kept(), set_beta(SETTINGS)),
    "os.environ": (lambda: os.environ["PYRO_VAE_BETA"], environment),
    "os.getenv": (lambda: os.getenv("PYRO_VAE_BETA"), environment),
    "context variable": (lambda: CONTEXT.get(), CONTEXT.set),
    "bound method": (lambda: BOUND(), CONTEXT.set),
    "threading.local": (lambda: LOCAL.beta, set_beta(LOCAL)),
    "mapping proxy": (lambda: PROXY["beta"], set_item(MAPPING, "beta")),
    "chain map": (lambda: CHAIN["beta"], set_item(CHAIN, "beta")),
    "config parser": (lambda: PARSED["rates"]["beta"], lambda value: PARSED.set("rates", "beta", str(value))),
    "weak reference": (lambda: REFERENCE().beta, set_beta(HELD)),
    "array": (lambda: NUMBERS[0], set_item(NUMBERS)),
    "bytearray": (lambda: BYTES[0], lambda value: set_item(BYTES)(int(10 * value))),
    "long list": (lambda: MANY[500], set_item(MANY, 500)),
    "long dictionary": (lambda: WIDE[500], set_item(WIDE, 500)),
    "long array": (lambda: ROWS[500], set_item(ROWS, 500)),
    "optimiser": (lambda: OPTIMIZER.param_groups[0]["lr"], set_item(OPTIMIZER.param_groups[0], "lr")),
    "descriptor": (lambda: DESCRIBED.beta, set_beta(DESCRIBED)),
    "property": (lambda: COMPUTED.beta, set_beta(HELD)),
    "cached property": (lambda: Computed().kept, set_beta(SETTINGS)),
    "method": (lambda: DESCRIBED.method(), lambda value: setattr(Described, "method", lambda self: value)),
    "code": (lambda: by_code(), code),
    "setting of Pyro": (lambda: 0, lambda value: pyro.settings.set(cholesky_relative_jitter=40 * value)),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_a_value_is_followed_and_put_back(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "rates_of_a_user", SETTINGS)
    read, put = FOLLOWED[name]
    put(0.1)
    watched = WatchedConstants({"read": read, **surroundings()})
    before = read()
    assert not watched.changes()
    put(0.2)
    changed = read()
    watched.put_back()
    assert read() == before and not watched.changes()
    put(0.2)
    assert watched.changes() and read() == changed and not watched.changes()
    put(0.1)


@pytest.mark.slow
def test_of_svi_only_its_parts_are_watched():
    held = types.SimpleNamespace(rate=0.1)
    svi = CompiledSVI(lambda: held.rate, lambda: 0.0, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    assert isinstance(svi, SVI)
    watched = WatchedConstants({"svi": svi})
    svi.ended = True
    assert not watched.changes()
    svi.optim.pt_optim_args["lr"] = 0.2
    assert [*watched.changes()] == ["svi.optim.pt_optim_args['lr']"]
    held.rate = 0.2
    assert [*watched.changes().values()] == [(0.1, 0.2)]


def test_what_is_not_watched_is_named():
    held = types.SimpleNamespace(
        number=ctypes.c_double(1.0), numbers=[[0]] * (WIDEST + 1), rate=0.1, layer=torch.ones(1)
    )
    assert WatchedConstants({"held": held}).unwatched() == ["held.number", "held.numbers"]
    assert is_opaque(np.zeros(1 << 17)) and not is_opaque(np.zeros(2)) and not is_opaque([])


@pytest.mark.parametrize(
    ("value", "plain", "inside"),
    [
        (1.5, True, False),
        ((1, ("a", None)), True, True),
        ((1, [2]), False, True),
        ([0] * LONGEST, False, True),
        ([0] * (LONGEST + 1), False, False),
        (torch.ones(1), False, False),
        (abs, False, False),
    ],
    ids=str,
)
def test_what_is_watched_by_its_value_and_what_inside(value, plain, inside):
    assert is_plain(value) is plain and is_watched_inside(value) is inside
