"""Functions of tensors that are compiled once for each shape of their arguments, if that is worth its time."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.compiling.artifacts import compiled_graph, layout
from pyro_vae.compiling.compiler import OPTIONS, missing_compiler, own_code, quiet_torch
from pyro_vae.compiling.noise import is_random
from pyro_vae.compiling.recorder import recorded
from pyro_vae.compiling.untraceable import Untraceable, first_line
from pyro_vae.parallel import cores, each
from pyro_vae.random import forked_rng

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

    >>> graphs = Graphs(wanted=None, calls=3, device="cpu")
    >>> graphs.of_each(lambda: lambda x: (x.sin(),), [(torch.zeros(2),)]) is None
    True
    """

    def __init__(self, wanted: bool | None, calls: int, device: torch.device | str):
        earned = calls >= WORTH_CALLS and torch.device(device).type == "cpu"
        self.strict = bool(wanted)
        self.wanted = earned and not missing_compiler() if wanted is None else wanted
        self._graphs: dict[tuple, Graph | None] = {}

    def of_each(
        self, make: Callable[[], Function], calls: Sequence[tuple[Tensor, ...]]
    ) -> Iterator[Sequence[Tensor]] | None:
        """Return the results of calls with tensors of one layout, in their order; None: run eagerly.

        ``make`` returns the function, from tensors to several tensors, if it is new.
        """
        graph = self._of(make, calls[0]) if self.wanted else None
        return None if graph is None else _results(graph, calls)

    def _of(self, make: Callable[[], Function], example: tuple[Tensor, ...]) -> Graph | None:
        key = tuple(layout(example))
        if key not in self._graphs:
            self._graphs[key] = self._made(make, example)
        return self._graphs[key]

    def _made(self, make: Callable[[], Function], example: tuple[Tensor, ...]) -> Graph | None:
        try:
            missing = missing_compiler()
            if self.strict and missing:
                raise Untraceable(missing)
            with forked_rng(*(tensor.device for tensor in example)), quiet_torch():
                return _compiled(make(), example)
        except Exception as error:  # of the program, of torch's compiler, or of the C++ compiler
            if self.strict:
                raise
            logging.getLogger(__name__).warning("not compiled, which is only slower: %s", first_line(error))
            return None


def _compiled(function: Function, example: tuple[Tensor, ...]) -> Graph:
    if any(tensor.device.type != "cpu" for tensor in example):
        graph = torch.compile(own_code(function), fullgraph=True, dynamic=False, options=OPTIONS)
        graph(*example)
        return Graph(graph, apart=False)
    record = recorded(lambda *tensors: tuple(function(*tensors)), example)
    draws = any(is_random(node.target) for node in record.graph.nodes if node.op == "call_function")
    return Graph(compiled_graph(record, example, threads=1), apart=not draws)


def _results(graph: Graph, calls: Sequence[tuple[Tensor, ...]]) -> Iterator[Sequence[Tensor]]:
    """Yield the results of calls; random numbers of a graph itself are drawn in the order of the calls."""
    workers = cores() if graph.apart else 1
    for start in range(0, len(calls), TOGETHER * workers):
        yield from each(graph.function, calls[start : start + TOGETHER * workers], workers)
