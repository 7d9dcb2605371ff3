"""Graphs follow the numbers of a program, and there is an end of new ones."""

from types import SimpleNamespace

import pytest

from pyro_vae.compiling import Untraceable
from pyro_vae.compiling.followed import FollowedGraphs
from pyro_vae.compiling.untraceable import OR_EAGERLY, StaleGraph


class Graph:
    def __init__(self, stale=False):
        self.is_stale = lambda: stale


def test_graphs_are_kept_for_each_value():
    program = SimpleNamespace(rate=0.1)
    graphs, found = FollowedGraphs({"program": program}, 2, "go on eagerly"), []
    for rate in (0.1, 0.2, 0.1):
        program.rate = rate
        graphs.follow()
        found.append(graphs.get("key", Graph))
        graphs.follow()
    assert found[0] is found[2] is not found[1]


def test_too_many_keys_and_graphs_that_are_always_stale_are_errors():
    graphs = FollowedGraphs({}, 2, "go on eagerly")
    first = graphs.get(1, lambda: Graph(stale=True))
    assert graphs.get(1, lambda: Graph(stale=True)) is not first
    with pytest.raises(Untraceable, match="changes from call to call"):
        graphs.get(1, Graph)
    graphs.get(2, Graph)
    graphs.get(3, Graph) if len(graphs.state.graphs) < 2 else None
    with pytest.raises(Untraceable, match=r"2 graphs were compiled.*go on eagerly"):
        graphs.get(4, Graph)


def test_what_cannot_be_traced_gets_the_advice_of_the_caller():
    def made():
        raise Untraceable(f"take that line away, {OR_EAGERLY}")

    with pytest.raises(Untraceable, match=r"^take that line away, or train by pyro\.infer\.SVI$"):
        FollowedGraphs({}, 2, "train by pyro.infer.SVI").get(1, made)


def test_graphs_that_are_no_longer_the_programs_are_discarded_once_and_then_an_error():
    graphs = FollowedGraphs({"program": SimpleNamespace(rates=iter([0.1]))}, 2, "go on eagerly")
    first = graphs.get("key", Graph)
    with pytest.warns(StaleGraph, match=r"its loss is 2, .* within program\.rates.*compiled anew"):
        graphs.doubt("its loss is 2, that of the program 6")
    assert graphs.get("key", Graph) is not first
    with pytest.raises(Untraceable, match="second time, it is not compiled again; go on eagerly"):
        graphs.doubt("its loss is 3, that of the program 6")


def test_what_an_eager_step_changes_belongs_to_a_state_without_graphs():
    program = SimpleNamespace(rate=0.1)
    graphs = FollowedGraphs({"program": program}, 2, "go on eagerly")
    state, program.rate = graphs.state, 0.2
    graphs.settle()
    graphs.follow()
    assert graphs.state is state
    graphs.get("key", Graph)
    program.rate = 0.3
    graphs.settle()
    graphs.follow()
    assert graphs.state is not state and not graphs.state.graphs
