"""Many draws of a recorded function of random numbers, computed together."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node, map_arg

from pyro_vae.compiling.joint import Recorded
from pyro_vae.compiling.noise import is_random, name_of
from pyro_vae.compiling.private import in_place_changes
from pyro_vae.compiling.untraceable import Untraceable

LARGEST = 1 << 25  # numbers in all tensors of the draws that are computed together
MOST = 32  # draws that are computed together


class Replicates:
    """Draws of a loss and gradients from a recorded graph, each as the function itself draws them.

    What depends on no random number, such as the output of an encoder, is computed once. The random numbers of each
    draw come from torch's generator in the order of the program, and the operations on them are vectorised over draws.

    Args:
        recorded: the graph of the function.
        args: the arguments that all draws share.

    Raises ``Untraceable`` where the distribution of a random number depends on another one, as for a gamma variable
    whose shape is drawn, and where the function changes what it reads.

    >>> from pyro_vae.compiling.constants import WatchedConstants
    >>> from pyro_vae.compiling.joint import record
    >>> def function(x):
    ...     return x.exp().sum() + torch.randn(()), x * torch.rand(2)
    >>> draws = Replicates(record(function, [torch.zeros(2)], WatchedConstants({})), [torch.zeros(2)])
    >>> [tuple(result.shape) for result in draws(5)]
    [(5,), (5, 2)]
    """

    def __init__(self, recorded: Recorded, args: Sequence[Tensor]):
        self.held, self.precision = recorded.held, recorded.precision
        self.together = max(1, min(MOST, LARGEST // max(recorded.elements, 1)))
        values = [*recorded.values, *args]
        with torch.no_grad():
            versions = [in_place_changes(value) for value in values]
            self.noise, self.body, self.results = _apart(recorded.graph, values)
            if versions != [in_place_changes(value) for value in values]:
                raise Untraceable("the program changes buffers, draw by draw")

    def __call__(self, draws: int) -> list[Tensor]:
        """Return each result of so many draws, stacked at dimension 0."""
        with torch.no_grad():
            rows = [[draw() for draw in self.noise] for _ in range(draws)]
            noise = [torch.stack(of_draws) for of_draws in zip(*rows)]
            moving = iter(torch.vmap(self.body)(*noise) if noise else ())
            return [next(moving) if fixed is None else fixed.expand(draws, *fixed.shape) for fixed in self.results]


def _apart(graph: GraphModule, values: Sequence[Tensor]) -> tuple[list[Callable[[], Tensor]], Any, list[Tensor | None]]:
    """Return what draws random numbers, the graph that depends on them, and the results that do not, None for others.

    ``values`` are the arguments of the graph.
    """
    given, known, rest = iter(values), {}, _Rest([node for node in graph.graph.nodes if is_random(node.target)])
    noise: list[Callable[[], Tensor]] = []
    for node in graph.graph.nodes:
        if node.op == "output":
            results = node.args[0]
        elif is_random(node.target):
            if any(source in rest.moving for source in node.all_input_nodes):
                raise Untraceable(f"the distribution of {name_of(node.target)} depends on other random numbers")
            noise.append(_Draw(node, known))
        elif node.op == "call_function" and any(source in rest.moving for source in node.all_input_nodes):
            rest.add(node, known)
        else:
            known[node] = _value(node, graph, given, known)
    body = rest.module([node for node in results if node in rest.moving])
    return noise, body, [known.get(node) for node in results]


class _Draw:
    """Draws the random numbers of a node."""

    def __init__(self, node: Node, known: Mapping[Node, Any]):
        self.target = node.target
        self.args, self.kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
        self.written = bool(_written(node))

    def __call__(self) -> Tensor:
        args = [a.clone() if self.written and isinstance(a, Tensor) else a for a in self.args]
        return self.target(*args, **self.kwargs)


class _Rest:
    """The part of a graph that depends on random numbers, which are its arguments; other tensors are attributes."""

    def __init__(self, drawing: Sequence[Node]):
        self.graph, self.held = Graph(), {}
        self.moving = {node: self.graph.placeholder(f"noise{i}") for i, node in enumerate(drawing)}
        self.fixed: dict[Node, Node] = {}

    def add(self, node: Node, known: Mapping[Node, Any]) -> None:
        if any(source not in self.moving for source in _written(node)):
            raise Untraceable(f"{name_of(node.target)} writes random numbers into a tensor that all draws share")
        for source in node.all_input_nodes:
            if source not in self.moving and source not in self.fixed:
                name = f"held{len(self.held)}"
                self.held[name], self.fixed[source] = known[source], self.graph.get_attr(name)
        copies = self.moving | self.fixed
        self.moving[node] = self.graph.node_copy(node, copies.__getitem__)
        self.moving[node].meta = {}

    def module(self, results: Sequence[Node]) -> GraphModule:
        self.graph.output(tuple(self.moving[node] for node in results))
        self.graph.eliminate_dead_code()
        return GraphModule(self.held, self.graph)


def _value(node: Node, graph: GraphModule, given: Any, known: Mapping[Node, Any]) -> Any:
    """Return the value of a node that depends on no random number."""
    if node.op == "placeholder":
        return next(given)
    if node.op == "get_attr":
        return getattr(graph, str(node.target))
    function: Any = node.target
    args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
    return function(*args, **kwargs)


def _written(node: Node) -> list[Any]:
    """Return the arguments that the operator of a node changes in place."""
    schema = getattr(node.target, "_schema", None)
    changed = [(i, a.name) for i, a in enumerate(schema.arguments if schema else ()) if _is_written(a)]
    found = [node.args[i] if i < len(node.args) else node.kwargs.get(name) for i, name in changed]
    return [argument for argument in found if argument is not None]


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write
