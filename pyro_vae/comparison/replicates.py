"""Many draws of a recorded function of random numbers, computed together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node, map_arg

from pyro_vae.compiling.compiler import quiet_torch
from pyro_vae.compiling.joint import Recorded
from pyro_vae.compiling.noise import is_random, name_of
from pyro_vae.compiling.private import in_place_changes, operators, without_vmap_warnings
from pyro_vae.compiling.untraceable import Untraceable

SMALL = 1 << 25  # numbers in all tensors of the draws that are computed together, at most ``MOST`` of them
LARGEST = 1 << 28  # the same where only ``FEW`` are
FEW, MOST = 6, 64
PRODUCT, TURNED = {*operators("mm.default")}, {*operators("t.default")}
SAME = {*operators("alias.default")}


@dataclass(frozen=True)
class Product:
    """Matrices (draws, m, n) that are products of left, (draws, m, k) or (m, k), and right, (draws, k, n) or (k, n).

    The gradient of a layer's weights is one. It is computed where it is used, some columns at a time, since it takes
    longer to write it into memory and to read it than to compute it.

    >>> product = Product(torch.ones(2, 3, 1), torch.tensor([[5.0, 6.0]]))
    >>> product.columns(1, 4), torch.equal(product.whole().flatten(1)[:, 1:4], product.columns(1, 4))
    (tensor([[6., 5., 6.],
            [6., 5., 6.]]), True)
    """

    left: Tensor
    right: Tensor

    def whole(self) -> Tensor:
        """Return the matrices."""
        return self.left @ self.right

    def columns(self, start: int, stop: int) -> Tensor:
        """Return these numbers of each matrix, of which there are m n, row by row."""
        n = self.right.shape[-1]
        first, last = start // n, -(-stop // n)
        rows = self.left[..., first:last, :] @ self.right
        return rows.flatten(-2)[:, start - first * n : stop - first * n]

    def size(self) -> int:
        """Return m n."""
        return self.left.shape[-2] * self.right.shape[-1]


def whole(result: Tensor | Product) -> Tensor:
    """Return a result as a tensor."""
    return result.whole() if isinstance(result, Product) else result


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
    >>> [tuple(whole(result).shape) for result in draws(5)]
    [(5,), (5, 2)]
    """

    def __init__(self, recorded: Recorded, args: Sequence[Tensor]):
        self.held, self.precision = recorded.held, recorded.precision
        size = max(recorded.elements, 1)
        self.together = max(min(MOST, SMALL // size), min(FEW, LARGEST // size), 1)
        values = [*recorded.values, *(arg.detach() for arg in args)]
        with torch.no_grad():
            versions = [in_place_changes(value) for value in values]
            self.noise, self.body, self.results = _apart(recorded.graph, values)
            if versions != [in_place_changes(value) for value in values]:
                raise Untraceable("the program changes buffers, draw by draw")

    def __call__(self, draws: int) -> list[Tensor | Product]:
        """Return each result of so many draws, stacked at dimension 0; matrices as products where they are."""
        with torch.no_grad(), quiet_torch(), without_vmap_warnings():
            rows = [[draw() for draw in self.noise] for _ in range(draws)]
            noise = [torch.stack(of_draws) for of_draws in zip(*rows)]
            moving = torch.vmap(self.body)(*noise) if noise else ()
            return [result(draws, moving) for result in self.results]


def _apart(graph: GraphModule, values: Sequence[Tensor]) -> tuple[list[Callable[[], Tensor]], Any, list["_Result"]]:
    """Return what draws random numbers, the graph that depends on them, and how each result is made of its results.

    ``values`` are the arguments of the graph.
    """
    given, known, rest = iter(values), {}, _Rest([node for node in graph.graph.nodes if is_random(node.target)])
    noise: list[Callable[[], Tensor]] = []
    results: Any = ()
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
    found = [_Result(node, rest.moving) for node in results]
    needed = list(dict.fromkeys(node for result in found for node in result.nodes if node in rest.moving))
    places = {node: i for i, node in enumerate(needed)}
    for result in found:
        result.sources = [places[node] if node in places else known[node] for node in result.nodes]
    return noise, rest.module(needed), found


class _Result:
    """A result of the graph: a tensor, or the product of two matrices, either of which may be random or not."""

    def __init__(self, node: Node, moving: Mapping[Node, Node]):
        self.turned, self.nodes = False, [node]
        self.sources: list[int | Tensor] = []  # places among what is random, and tensors that are not
        while node in moving and node.target in TURNED | SAME:
            self.turned ^= node.target in TURNED
            node = node.all_input_nodes[0]
        if node in moving and node.target in PRODUCT:
            self.nodes = [*node.args[:2]]  # pyright: ignore[reportAttributeAccessIssue]

    def __call__(self, draws: int, moving: Sequence[Tensor]) -> Tensor | Product:
        found = [moving[source] if isinstance(source, int) else source for source in self.sources]
        if len(found) == 2:
            left, right = (part.mT for part in reversed(found)) if self.turned else found
            return Product(left, right)
        is_random = isinstance(self.sources[0], int)
        return found[0] if is_random else found[0].expand(draws, *found[0].shape)


class _Draw:
    """Draws the random numbers of a node."""

    def __init__(self, node: Node, known: Mapping[Node, Any]):
        self.target: Any = node.target
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
