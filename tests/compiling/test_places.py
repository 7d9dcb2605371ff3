"""Places of values: found, named, read and put back."""

import collections
import copy
import importlib
import random
import types

import numpy as np
import pandas as pd
import pytest
import torch
import watched_programs
from watched_programs import PLACES, Program

from pyro_vae.compiling.constants import WatchedConstants, in_words
from pyro_vae.compiling.parts import LONGEST
from pyro_vae.compiling.places import generator_access, readers, survey


@pytest.mark.parametrize("place", PLACES)
def test_every_place_is_watched_and_named(place):
    program = PLACES[place]()
    watched = WatchedConstants({"model": program.model, "guide": program.guide})
    assert not watched.changes()
    program.set(0.9)
    changes = in_words(watched.changes())
    assert changes.startswith(place) and "," not in changes and not watched.changes()
    if "Tensor" not in place:
        program.set(float(f"{0.9}"))
        assert not watched.changes()
    watched.look()
    program.set(0.4)
    watched.put_back()
    assert not watched.changes()


def test_a_global_that_is_only_called_like_an_attribute_is_not_watched(monkeypatch):
    watched = WatchedConstants({"model": Program().model})
    monkeypatch.setattr(watched_programs, "decoder", 3, raising=False)
    assert not watched.changes()


def test_changes_in_words_are_the_first_three_and_how_many_more():
    changes = {name: (0, number) for number, name in enumerate("abcd", 1)}
    assert in_words(changes) == "a (0 -> 1), b (0 -> 2), c (0 -> 3) and 1 more"
    del changes["d"]
    assert in_words(changes) == "a (0 -> 1), b (0 -> 2), c (0 -> 3)"


def test_values_are_put_back_where_they_were():
    held_by = types.SimpleNamespace(numbers=[1, 2], names={"a": 1}, kinds={1}, array=np.arange(2), last=None)
    watched = WatchedConstants({"self": held_by})
    array = held_by.array
    held_by.numbers.append(3)
    held_by.names.update(a=2, b=3)
    held_by.kinds.add(2)
    array += 1
    held_by.last, held_by.new = torch.ones(1), 1
    watched.put_back()
    assert vars(held_by) | {"array": None} == {
        "numbers": [1, 2],
        "names": {"a": 1},
        "kinds": {1},
        "array": None,
        "last": None,
    }
    assert held_by.array is array and array.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("many", "key"),
    [(list(range(LONGEST + 1)), 7), ({f"{i}": i for i in range(LONGEST + 1)}, "7")],
    ids=["list", "dict"],
)
def test_many_values_are_put_back_together(many, key):
    watched, before = WatchedConstants({"self": types.SimpleNamespace(many=many)}), copy.copy(many)
    many[key] = -1
    watched.put_back()
    assert many == before


@pytest.mark.parametrize("length, counts", [(LONGEST, False), (LONGEST + 1, True)])
@pytest.mark.parametrize("kind", [list, lambda items: dict.fromkeys(items, 0.1), collections.deque])
def test_another_list_of_equal_items_counts_where_the_items_are_too_many_to_be_watched(kind, length, counts):
    holder = types.SimpleNamespace(items=kind(range(length)))
    watched = WatchedConstants({"self": holder})
    holder.items = kind(range(length))
    assert [*watched.changes()] == (["self.items"] if counts else [])
    assert not watched.changes()


def test_the_keys_of_a_dictionary_may_be_functions():
    def key(value):
        raise AssertionError("a key is not called")

    holder = types.SimpleNamespace(kernels={key: 1, "rate": 2})
    watched = WatchedConstants({"self": holder})
    assert not watched.changes()
    holder.kernels[key] = 3
    assert [*watched.changes().values()] == [(1, 3)]


def test_the_nearest_places_come_first_and_each_has_a_name_of_its_own():
    inner = types.SimpleNamespace(rate=0.5)
    names = [place.name for place in survey({"held": types.SimpleNamespace(one=inner, other=inner), "held.one": 3})]
    assert names[:4] == ["held", "held.one", "held.one #2", "held.other"] and len(set(names)) == len(names)
    assert "held.one #2.rate" in names and "held.other.rate" not in names  # one object is looked into once
    pair = (1, [2])
    names = [place.name for place in survey({"one": pair, "other": pair})]
    assert "one[1][0]" in names and "other[0]" not in names


def imported(folder, name, monkeypatch):
    """Return a new module whose function refers to many numbers by its globals."""
    folder.mkdir()
    (folder / f"{name}.py").write_text(
        "near = 1.0\nmany = {i: [i] for i in range(500)}\ndef rate():\n    return near, many\n"
    )
    monkeypatch.syspath_prepend(folder)
    return importlib.import_module(name)


def test_what_installed_packages_refer_to_comes_last_and_is_not_all(tmp_path, monkeypatch):
    monkeypatch.setattr("pyro_vae.compiling.places.OF_PACKAGES", 50)
    installed = imported(tmp_path / "site-packages", "package_in_site_packages", monkeypatch)
    in_place = imported(tmp_path / "source", "package_in_source", monkeypatch)
    deep = types.SimpleNamespace(a=types.SimpleNamespace(b=types.SimpleNamespace(beta=0.5)))

    def found(module):
        return [place.name for place in survey({"held": types.SimpleNamespace(rate=module.rate, own=deep)})]

    of_user = found(in_place)
    assert of_user.index("package_in_source.near") < of_user.index("held.own.a.b.beta")
    assert "package_in_source.many[499][0]" in of_user
    of_both = found(installed)
    last = of_both.index("held.own.a.b.beta")
    assert last < of_both.index("package_in_site_packages.near") < last + 50 and len(of_both) < last + 100
    assert "package_in_site_packages.many[499][0]" not in of_both
    # The program itself may be of an installed package.
    assert "package_in_site_packages.many[499][0]" in [place.name for place in survey({"model": installed.rate})]


def test_a_table_of_pandas_hides_no_number_of_the_program():
    held = types.SimpleNamespace(table=pd.DataFrame({"x": [1.0], "y": ["a"]}), settings={"beta": [0.5]})
    names = [place.name for place in survey({"held": held})]
    assert "held.settings['beta'][0]" in names and len(names) < 100


def test_values_are_read_as_they_are_now():
    holder = types.SimpleNamespace(names={"x": 2, "y": 3}, numbers=[4, 5])
    places = [place for place in survey({"held": holder}) if place.holder is not None and place.key is not len]
    read = readers(places)
    holder.names["y"] = 7
    holder.numbers[0] = 6
    found = [get(held) for get, held in read]
    assert (6, 5) in found and any(values[:2] == (2, 7) for values in found)


@pytest.mark.parametrize(
    ("make", "draw"),
    [
        (lambda: random.Random(0), lambda made: made.random()),
        (lambda: np.random.default_rng(0), lambda made: made.random()),
        (lambda: np.random.RandomState(0), lambda made: made.rand()),
        (lambda: torch.Generator().manual_seed(0), lambda made: torch.rand((), generator=made).item()),
    ],
)
def test_the_state_of_a_generator_is_read_and_set(make, draw):
    generator = make()
    get, put = generator_access(generator)
    state = get()
    first = [draw(generator) for _ in range(3)]
    assert draw(generator) not in first
    put(state)
    assert [draw(generator) for _ in range(3)] == first
