"""A loss and its gradients as one graph, recorded while Python and autograd compute them.

The gradient is part of what is recorded: an ELBO may take derivatives itself, call ``backward``, or keep its parameters
anywhere.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from pyro_vae.compiling.compiler import quiet_torch, unguarded, warm_up
from pyro_vae.compiling.constants import Changes, WatchedConstants
from pyro_vae.compiling.convolutions import ChannelsLast
from pyro_vae.compiling.outcomes import Outcome, contents_kept, difference, elements, lowest_precision
from pyro_vae.compiling.private import as_if_compiling, in_place_changes, tensors_only
from pyro_vae.compiling.recorder import recorded
from pyro_vae.compiling.trial import LARGEST, check_not_read, restored_if_untraceable, run_alone
from pyro_vae.compiling.untraceable import NOT_THE_SAME, Untraceable, explanation, first_line
from pyro_vae.compiling.values import ValuesUnread
from pyro_vae.random import forked_rng

COPIED = 1 << 16  # elements of the largest tensor whose values are compared if a number was read from it
FRESH = "lift_fresh"  # in the name of the operator that makes a tensor of Python's numbers

Compiler = Callable[[GraphModule, Sequence[Tensor]], Callable[..., Sequence[Tensor]]]


def by_torch(graph: GraphModule, args: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """Return a graph compiled by ``torch.compile`` at its first call."""
    return unguarded(lambda *tensors: graph(*tensors))


class Reached(nn.Module):
    """A function of a program as a module that holds all modules among what the program refers to."""

    def __init__(self, function: Callable[..., Any], watched: WatchedConstants):
        super().__init__()
        self.function = function
        self.reached = nn.ModuleList(p.value for p in watched.places if isinstance(p.value, nn.Module))

    def forward(self, *args: Tensor) -> Any:
        """Return what the function returns."""
        return self.function(*args)


class Recorded:
    """A compiled function of tensors that reads parameters, buffers and other tensors where they lie.

    Args:
        graph: the recorded function; tensors that it refers to become its arguments.
        read: tensors from which numbers were read that are constants of the graph.
        compiler: from the graph and its first arguments to the function; None: its operations are called as they are.
    """

    def __init__(self, graph: GraphModule, read: Sequence[Tensor] = (), compiler: Compiler | None = None):
        self.graph, self.held = graph, _with_inputs(graph)
        self.read = [(tensor, _mark(tensor)) for tensor in read]
        self.precision, self.elements = lowest_precision(graph), elements(graph)
        self.values = [tensor.detach() for tensor in self.held]
        self.compiler, self._function = compiler, None

    def __call__(self, args: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the results for tensors of the shapes and strides that were recorded."""
        given = [*self.values, *args]
        if self._function is None:
            self._function = self.compiler(self.graph, given) if self.compiler else self.graph
        with torch.no_grad():
            return self._function(*given)

    def is_stale(self) -> bool:
        """Return whether a tensor was changed from which a number was read."""
        return any(_has_changed(tensor, mark) for tensor, mark in self.read)


def record(
    function: Callable[..., Sequence[Tensor]],
    args: Sequence[Tensor],
    watched: WatchedConstants,
    compiler: Compiler | None = by_torch,
) -> Recorded:
    """Return a function from tensors to tensors as one compiled graph, all gradients that it takes included.

    ``watched`` holds the numbers and flags of the program, which become constants. The program, gradients and random
    number generators are left as they were. ``compiler`` is that of ``Recorded``. Raises ``Untraceable``.

    >>> weight = torch.ones(2, requires_grad=True)
    >>> def gradient(x):
    ...     return torch.autograd.grad((weight**2 * x).sum(), [weight])
    >>> graph = record(gradient, [torch.ones(2)], WatchedConstants({"function": gradient}))
    >>> [tensor is weight for tensor in graph.held]
    [True]
    """
    if compiler is by_torch and all(arg.device.type == "cpu" for arg in args):
        warm_up(False)
    quiet = quiet_torch(), pyro.validation_enabled(False), tensors_only()
    with forked_rng(*(arg.device for arg in args)), quiet[0], quiet[1], quiet[2], restored_if_untraceable(watched):
        return _recorded(function, args, watched, compiler)


def check_same(
    graph: Recorded,
    function: Callable[..., Sequence[Tensor]],
    args: Sequence[Tensor],
    names: Sequence[str],
    instead: str,
) -> None:
    """Compile a graph, and raise ``Untraceable`` unless it does what the function does on the same random numbers.

    Args:
        graph: the graph of the function.
        function: from tensors to a loss and gradients.
        args: tensors like those that were recorded.
        names: what the results after the loss are gradients of.
        instead: what to do instead, for messages.
    """
    tried(graph, args)
    found = differs(graph, function, args, names)
    if found:
        raise Untraceable(f"{NOT_THE_SAME.format(found)}; {instead}")


def differs(
    graph: Recorded, function: Callable[..., Sequence[Tensor]], args: Sequence[Tensor], names: Sequence[str]
) -> str | None:
    """Say how a compiled graph and the function differ on the same random numbers; None if they do not.

    The arguments are those of ``check_same``.
    """
    buffers = {f"of shape {tuple(b.shape)} ({i})": b for i, b in enumerate(graph.held) if not b.requires_grad}

    def run(how: Callable[[], Sequence[Tensor]]) -> Outcome:
        before = {name: buffer.clone() for name, buffer in buffers.items()}
        loss, *gradients = (result.clone() for result in how())
        moved = {name: buffer.clone() for name, buffer in buffers.items() if not torch.equal(buffer, before[name])}
        new = [f"a new parameter ({i})" for i in range(len(names), len(gradients))]
        return Outcome(loss, dict(zip([*names, *new], gradients)), moved)

    size = max([1, *(arg.numel() for arg in args)])
    with quiet_torch(), tensors_only(), pyro.validation_enabled(False):
        return difference(
            _Held(graph.held),
            graph.precision,
            size,
            lambda: run(lambda: function(*args)),
            lambda: run(lambda: graph(args)),
        )


def _mark(tensor: Tensor) -> Tensor | int:
    """Return what tells whether a tensor has changed; memory that NumPy or ``.data`` changes has no other version."""
    return tensor.detach().clone() if tensor.numel() <= COPIED else in_place_changes(tensor)


def _has_changed(tensor: Tensor, mark: Tensor | int) -> bool:
    if isinstance(mark, int):
        return in_place_changes(tensor) != mark
    return not torch.equal(tensor, mark) and not bool(((tensor == mark) | ((tensor != tensor) & (mark != mark))).all())


def tried(graph: Recorded, args: Sequence[Tensor]) -> None:
    """Compile a graph and call it once, without a trace; raise ``Untraceable`` if torch's compiler fails."""
    try:
        with forked_rng(*(arg.device for arg in args)), contents_kept([*graph.values, *args]), quiet_torch():
            graph(args)
    except Exception as error:  # of torch's compiler, or of the C++ compiler
        raise Untraceable(
            f"torch's compiler fails on this program ({type(error).__name__}: {first_line(error)}). The program itself "
            "is not at fault: run it eagerly, or look for the unusual operation that the message names"
        ) from None


class _Held(nn.Module):
    """Tensors of a graph, as parameters and buffers."""

    def __init__(self, tensors: Sequence[Tensor]):
        super().__init__()
        self.tensors = tensors

    def parameters(self, recurse: bool = True) -> Iterator[Any]:
        return iter([tensor for tensor in self.tensors if tensor.requires_grad])

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        return iter([tensor for tensor in self.tensors if not tensor.requires_grad])


@contextmanager
def own_gradients(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Context manager that begins without gradients, and puts those that were there back at its end.

    >>> weight = torch.ones(1, requires_grad=True)
    >>> with own_gradients([weight]):
    ...     weight.sum().backward()
    >>> weight.grad is None
    True
    """
    before = [tensor.grad for tensor in tensors]
    for tensor in tensors:
        tensor.grad = None
    try:
        yield
    finally:
        for tensor, gradient in zip(tensors, before):
            tensor.grad = gradient


def _recorded(
    function: Callable[..., Sequence[Tensor]],
    args: Sequence[Tensor],
    watched: WatchedConstants,
    compiler: Compiler | None,
) -> Recorded:
    module = Reached(function, watched)
    kept = [*module.parameters(), *module.buffers(), *watched.tensors(LARGEST), *args]
    with contents_kept(kept):
        _, replaced = run_alone(module, tuple(args), watched)
    module = Reached(function, watched)  # the run may have made parts of the program
    with contents_kept(kept), newborn_tensors() as new:
        try:
            with ChannelsLast(), ValuesUnread(args) as values, as_if_compiling():
                graph = recorded(lambda *tensors: tuple(function(*tensors)), args)
        except Exception as error:
            raise Untraceable(explanation(error)) from None  # torch's own is hundreds of lines
        finally:
            watched.put_back()
    _check(graph, replaced, module, new)
    return Recorded(graph, values.read, compiler)


@contextmanager
def newborn_tensors() -> Iterator[set[int]]:
    """Context manager whose set has at its end the ids of the tensors made in it, those that are gone among them.

    They are the tensors in Python's youngest generation, which is empty at the beginning, and looked through before
    each collection. To compare all objects of the process, before and after, takes a tenth of a second.

    >>> before = torch.ones(2)
    >>> with newborn_tensors() as new:
    ...     after = torch.ones(2)
    >>> id(before) in new, id(after) in new
    (False, True)
    """
    new = set[int]()

    def look(phase: str = "start", info: object = None) -> None:
        if phase == "start":
            new.update(id(thing) for thing in gc.get_objects(generation=0) if issubclass(type(thing), Tensor))

    gc.collect(0)
    gc.callbacks.append(look)
    try:
        yield new
        look()
    finally:
        gc.callbacks.remove(look)


def _check(graph: GraphModule, replaced: Changes, module: nn.Module, new: set[int]) -> None:
    """Raise ``Untraceable`` if a tensor of the graph is replaced at each run, or was computed beside the record."""
    held = {node.target: getattr(graph, node.target) for node in graph.graph.nodes if _is_held(node)}
    check_not_read(replaced, module, held)
    lost = [tensor for tensor in held.values() if id(tensor) in new]
    if lost:
        raise Untraceable(
            f"{len(lost)} of the program's tensors, the first of shape {tuple(lost[0].shape)}, are computed where "
            "torch records nothing, as in a subclass of Tensor; compute them by torch's operators"
        )


def _is_held(node: Node) -> bool:
    """Return whether a node is a tensor that the graph refers to, and not made of Python's numbers."""
    return node.op == "get_attr" and not (node.users and all(FRESH in str(user.target) for user in node.users))


def _with_inputs(graph: GraphModule) -> list[Tensor]:
    """Make arguments of the tensors that a graph refers to, its first ones, and return these tensors."""
    first = next(iter(graph.graph.nodes))
    inputs: dict[str, Any] = {}
    for node in list(graph.graph.nodes):
        if _is_held(node):
            if node.target not in inputs:
                with graph.graph.inserting_before(first):
                    inputs[node.target] = graph.graph.placeholder(f"held{len(inputs)}")
            node.replace_all_uses_with(inputs[node.target])
            graph.graph.erase_node(node)
    graph.recompile()
    return [getattr(graph, name) for name in inputs]
