"""Functions of tensors that are compiled once for each shape of their arguments, if that is worth its time."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule

from pyro_vae.compiling.artifacts import compiled_graph, layout
from pyro_vae.compiling.compiler import missing_compiler
from pyro_vae.compiling.constants import WatchedConstants
from pyro_vae.compiling.joint import by_torch, record, tried
from pyro_vae.compiling.noise import is_random
from pyro_vae.compiling.untraceable import Untraceable, first_line
from pyro_vae.parallel import cores, each

WORTH_CALLS = 500  # calls of a graph of some milliseconds that make up for the seconds of compiling it
TOGETHER = 8  # calls of each core between two times that all cores wait for each other

Function = Callable[..., Sequence[Tensor]]


class Graph(NamedTuple):
    """A compiled function of tensors, and whether several threads may call it at the same time with the same result."""

    function: Function
    apart: bool


class Graphs:
    """The compiled forms of one function, looked up by the layouts of its arguments.

    On a CPU a graph computes on one core, and the calls of ``of_each`` on all of them at once. So no bit depends on the
    number of cores.

    Args:
        wanted: True: a function that cannot be traced is an error; False: nothing is compiled; None: compile on a CPU
            with a compiler if at least ``WORTH_CALLS`` calls are expected, and run eagerly what cannot be traced.
        calls: the expected number of calls with tensors of one shape.
        device: where the tensors are.
        roots: what the function refers to, by name; its numbers and flags become constants.

    >>> graphs = Graphs(wanted=None, calls=3, device="cpu")
    >>> graphs.of_each(lambda x: (x.sin(),), [(torch.zeros(2),)]) is None
    True
    """

    def __init__(
        self,
        wanted: bool | None,
        calls: int,
        device: torch.device | str,
        roots: Mapping[str, Any] = MappingProxyType({}),
    ):
        earned = calls >= WORTH_CALLS and torch.device(device).type == "cpu"
        self.strict = bool(wanted)
        self.wanted = earned and not missing_compiler() if wanted is None else wanted
        self.roots = roots
        self._graphs: dict[tuple, Graph | None] = {}

    def of_each(self, function: Function, calls: Sequence[tuple[Tensor, ...]]) -> Iterator[Sequence[Tensor]] | None:
        """Return the results of calls with tensors of one layout, in their order; None: run eagerly.

        ``function``, from tensors to several tensors, may be another one at each call, with the same operations.
        """
        graph = self._of(function, calls[0]) if self.wanted else None
        return None if graph is None else _results(graph, calls)

    def _of(self, function: Function, example: tuple[Tensor, ...]) -> Graph | None:
        key = tuple(layout(example))
        if key not in self._graphs:
            self._graphs[key] = self._made(function, example)
        return self._graphs[key]

    def _made(self, function: Function, example: tuple[Tensor, ...]) -> Graph | None:
        try:
            missing = missing_compiler()
            if self.strict and missing:
                raise Untraceable(missing)
            return _compiled(function, example, WatchedConstants(self.roots))
        except Exception as error:  # of the program, of torch's compiler, or of the C++ compiler
            if self.strict:
                raise
            logging.getLogger(__name__).warning("not compiled, which is only slower: %s", first_line(error))
            return None


def _compiled(function: Function, example: tuple[Tensor, ...], watched: WatchedConstants) -> Graph:
    on_cpu = all(tensor.device.type == "cpu" for tensor in example)
    graph = record(function, example, watched, by_one_thread if on_cpu else by_torch)
    tried(graph, example)
    draws = any(is_random(node.target) for node in graph.graph.graph.nodes if node.op == "call_function")
    return Graph(lambda *tensors: graph(tensors), apart=on_cpu and not draws)


def by_one_thread(graph: GraphModule, args: Sequence[Tensor]) -> Function:
    """Return a graph compiled to machine code that computes on one core."""
    return compiled_graph(graph, args, threads=1)


def _results(graph: Graph, calls: Sequence[tuple[Tensor, ...]]) -> Iterator[Sequence[Tensor]]:
    """Yield the results of calls; random numbers of a graph itself are drawn in the order of the calls."""
    workers = cores() if graph.apart else 1
    for start in range(0, len(calls), TOGETHER * workers):
        yield from each(graph.function, calls[start : start + TOGETHER * workers], workers)
