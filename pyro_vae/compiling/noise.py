"""The random numbers of a program, taken out of its graph so that they can be drawn before it runs.

Parts of a batch that run at the same time cannot draw from one generator: the order would depend on timing. So the
numbers of the whole batch are drawn first, in the order in which the eager program draws them, and handed out by rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.graph import CodeGen

from pyro_vae.compiling.private import DispatchMode
from pyro_vae.compiling.untraceable import Untraceable

EMPTY = ("empty", "empty_like", "new_empty", "empty_strided")  # tensors whose values are never read


@dataclass(frozen=True)
class Draw:
    """A random operation of a program whose distribution depends on no tensor.

    Args:
        function: torch's operator.
        args: its arguments; tensors that only give a shape are empty ones.
        kwargs: its keyword arguments.
        shape: the shape of the result.
    """

    function: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    shape: torch.Size

    def __call__(self) -> Tensor:
        """Draw from torch's generator."""
        return self.function(*(torch.empty_like(a) if isinstance(a, Tensor) else a for a in self.args), **self.kwargs)

    def dim_of_rows(self, part: torch.Size, rows: tuple[int, int]) -> int | None:
        """Return the dimension that has these numbers of rows, here and in a part; None if the shapes are equal.

        Raises ``Untraceable`` for any other shape: where a dimension holds several numbers for each row, their order
        is not known.
        """
        differing = [dim for dim, pair in enumerate(zip(self.shape, part)) if pair[0] != pair[1]]
        if len(self.shape) != len(part) or len(differing) > 1:
            raise Untraceable(f"a draw of shape {tuple(self.shape)} is no batch of draws of shape {tuple(part)}")
        if differing and (self.shape[differing[0]], part[differing[0]]) != rows:
            raise Untraceable(f"a draw of shape {tuple(self.shape)} has no dimension of {rows[0]} rows")
        return differing[0] if differing else None


class Draws(DispatchMode):
    """Records the random operations of what runs in this context manager, in ``found``.

    Raises ``Untraceable`` for one whose distribution depends on a tensor, or that has a generator of its own.

    >>> with Draws() as draws:
    ...     x = torch.randn(2) + torch.rand(3, 1)
    >>> [tuple(draw.shape) for draw in draws.found]
    [(2,), (3, 1)]
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Draw] = []
        self._empty: dict[int, Tensor] = {}  # by address; kept, so that no address is used twice

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not is_random(func):
            result = func(*args, **kwargs)
            if name_of(func) in EMPTY:
                self._empty[result.data_ptr()] = result
            return result
        given = [tensor for tensor in args if isinstance(tensor, Tensor)]
        if not gives_shape_only(func) and any(tensor.data_ptr() not in self._empty for tensor in given):
            raise Untraceable(f"the distribution of {name_of(func)} depends on tensors")
        if kwargs.get("generator") is not None:
            raise Untraceable(f"{name_of(func)} draws from a generator of its own")
        result = func(*args, **kwargs)
        shapes = tuple(torch.empty_like(a) if isinstance(a, Tensor) else a for a in args)
        self.found.append(Draw(func, shapes, dict(kwargs), result.shape))
        return result


def without_draws(graph: GraphModule) -> list[Any]:
    """Make arguments of the random operations of a graph, its last ones, in place; return their operators, in order.

    Raises ``Untraceable`` for an operation whose distribution depends on a tensor.
    """
    nodes = list(graph.graph.nodes)
    last = [node for node in nodes if node.op == "placeholder"][-1]
    drawing = [node for node in nodes if node.op == "call_function" and is_random(node.target)]
    for number, node in enumerate(drawing):
        sources = node.all_input_nodes
        with graph.graph.inserting_after(last):
            last = graph.graph.placeholder(f"noise{number}")
        node.replace_all_uses_with(last)
        graph.graph.erase_node(node)
        for source in sources:
            if name_of(source.target) in EMPTY and not source.users:
                graph.graph.erase_node(source)
            elif not gives_shape_only(node.target):
                raise Untraceable(f"the distribution of {name_of(node.target)} depends on tensors")
    graph.graph.set_codegen(CodeGen())  # the one before knows how many arguments there were
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return [node.target for node in drawing]


def is_random(target: Any) -> bool:
    """Return whether an operator draws random numbers.

    >>> is_random(torch.ops.aten.rand.default), is_random(torch.ops.aten.add.Tensor)
    (True, False)
    """
    return torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())


def name_of(target: Any) -> str:
    """Return the name of an operator, without its overload."""
    return getattr(getattr(target, "overloadpacket", target), "__name__", str(target))


def gives_shape_only(target: Any) -> bool:
    """Return whether the tensors given to a random operator only give the shape of its result."""
    return name_of(target) in ("rand_like", "randn_like", "randint_like")


def parts_of(tensor: Tensor, dim: int | None, parts: int) -> Sequence[Tensor]:
    """Return the parts of a draw, each as a tensor of its own layout; a draw that has no rows is given to each."""
    return [tensor] * parts if dim is None else [part.contiguous() for part in tensor.chunk(parts, dim)]
