"""The operators that a function of tensors calls, recorded as a graph while they run.

``make_fx`` of torch records them as well. It needs torch's compiler, which takes two seconds to import, and is slower.
"""

from collections.abc import Callable, Mapping, Sequence
from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule
from torch.utils._pytree import tree_leaves, tree_map

from pyro_vae.compiling.private import DispatchMode
from pyro_vae.compiling.untraceable import Untraceable

ATEN, DISPATCH = torch.ops.aten, "__torch_dispatch__"


def recorded(function: Callable[..., Any], args: Sequence[Tensor]) -> GraphModule:
    """Return the operators that a function of tensors calls, derivatives included, as a graph.

    Tensors that are no arguments become attributes of the graph, the very tensors. Numbers that are read from tensors
    become constants; ``ValuesUnread`` takes note of them.

    Args:
        function: from tensors to tensors.
        args: the tensors that it is called with; the graph is of their shapes and dtypes.

    Raises ``Untraceable`` if the function draws from a generator of its own.

    >>> recorded(lambda x: x + 1, [torch.ones(2)])(torch.zeros(2))
    tensor([1., 1.])
    """
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)  # it may hold weights that were converted before
    try:
        with Recorder(args) as recorder:
            return recorder.graph_of(function(*args))
    finally:
        torch.set_autocast_cache_enabled(cached)


class Recorder(DispatchMode):
    """Context manager that records all operators that are called in it, and keeps their results.

    Args:
        args: the tensors that become arguments of the graph.
    """

    def __init__(self, args: Sequence[Tensor]):
        super().__init__()
        self._graph, self._held = Graph(), {}
        self._known: dict[int, tuple[Tensor, Any]] = {}  # by id; the tensor is kept, so that it has it alone
        for i, arg in enumerate(args):
            self._know(arg, self._graph.placeholder(f"arg{i}"))

    def graph_of(self, results: Any) -> GraphModule:
        """Return the graph that gives these results."""
        self._graph.output(self._nodes(results))
        return GraphModule(self._held, self._graph)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        if any(isinstance(leaf, Tensor) and _has_own_operators(leaf) for leaf in leaves):
            return NotImplemented  # those are recorded that it calls
        if any(isinstance(leaf, torch.Generator) for leaf in leaves):
            raise Untraceable(f"{func} draws from a generator of its own")
        if func is ATEN.lift_fresh.default:  # of Python's numbers: each call of the graph needs a copy
            func, args = ATEN.lift_fresh_copy.default, (args[0].clone(),)
        nodes = self._nodes(args)
        result = func(*args, **kwargs)
        if func is ATEN.detach.default:  # the same values, and a graph has no gradients
            self._know(result, nodes[0])
        elif any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
            if torch.Tag.inplace_view in func.tags:  # it leaves the shape of what was detached from this tensor
                nodes = self._graph.call_function(ATEN.alias.default, nodes[:1]), *nodes[1:]
            self._know(result, self._graph.call_function(func, nodes, self._nodes(kwargs)))
        return result

    def _know(self, result: Any, node: Any) -> None:
        """Take note of the node and the layout of a tensor, or of those in a sequence."""
        if isinstance(result, Tensor):
            self._known[id(result)] = result, node
            layout = result.shape, result.stride()
            node.meta["val"] = torch.empty_strided(*layout, dtype=result.dtype, device="meta")
        elif isinstance(result, (tuple, list)):
            for i, part in enumerate(result):
                if part is not None:
                    self._know(part, self._graph.call_function(getitem, (node, i)))

    def _nodes(self, values: Any) -> Any:
        """Return the values with nodes in the place of tensors."""
        return tree_map(lambda value: self._node(value) if isinstance(value, Tensor) else value, values)

    def _node(self, tensor: Tensor) -> Any:
        if id(tensor) not in self._known:
            name = f"held{len(self._held)}"
            self._held[name] = tensor
            self._know(tensor, self._graph.get_attr(name))
        return self._known[id(tensor)][1]


def _has_own_operators(tensor: Tensor) -> bool:
    return getattr(type(tensor), DISPATCH) is not getattr(Tensor, DISPATCH)
