"""Graphs follow the numbers of a program, and there is an end of new ones."""

from types import SimpleNamespace

import pytest

from pyro_vae.compiling import Untraceable
from pyro_vae.compiling.followed import FollowedGraphs


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
