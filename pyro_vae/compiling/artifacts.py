"""Graphs of tensor operations compiled to machine code, kept in the user's cache between processes."""

import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, map_arg

from pyro_vae.compiling.compiler import OPTIONS, quiet_torch, warm_up
from pyro_vae.compiling.library import compiled_library, library_runner
from pyro_vae.compiling.store import checked, keep, name_of, store
from pyro_vae.files import CheckpointError
from pyro_vae.random import forked_rng

COMPILING = Lock()  # torch's compiler changes settings of the whole process

Function = Callable[[list[Tensor]], list[Tensor]]
Layout = list[tuple[torch.Size, tuple[int, ...], torch.dtype]]


def compiled_graph(
    graph: GraphModule, example: Sequence[Tensor], threads: int | None = None
) -> Callable[..., list[Tensor]]:
    """Return a function that computes a graph by machine code, which this user's cache may already hold.

    The function takes tensors with the shapes, strides and dtypes of ``example`` and returns a list of tensors without
    gradients. It releases Python's lock: several threads can call it at the same time. Random numbers come from torch's
    own generator, and are those that the graph draws by itself. If an operator has no C function, as ``aten.poisson``,
    torch compiles the function instead: it is not stored, and holds Python's lock.

    Machine code is stored in the folder ``store()``, named by everything that it depends on: the graph, the layout of
    its arguments, torch, the C++ compiler and the CPU. It is loaded in milliseconds.

    Args:
        graph: operations of ``torch.ops.aten`` on tensors of the CPU, as ``recorded`` gives them; it returns a list or
            tuple of tensors.
        example: the arguments of a call.
        threads: the number of threads of each kernel; None: ``torch.get_num_threads()``.

    Raises ValueError for a graph of another kind, or for arguments of another layout. Errors of torch's compiler and of
    the C++ compiler pass.

    >>> from pyro_vae.compiling.recorder import recorded
    >>> graph = recorded(lambda x: (x.sin(), x.sum()), [torch.ones(3)])
    >>> function = compiled_graph(graph, [torch.ones(3)], threads=1)
    >>> function(torch.zeros(3))
    [tensor([0., 0., 0.]), tensor(0.)]
    """
    flat, constants = lifted(graph)
    values = [*constants, *(tensor.detach() for tensor in example)]
    workers = threads or torch.get_num_threads()
    run = _loaded(flat, values, workers)
    expected = layout(example)

    def call(*args: Tensor) -> list[Tensor]:
        if layout(args) != expected:
            raise ValueError(f"wanted tensors of shape, strides and dtype {expected}, got {layout(args)}")
        return run([*constants, *args])

    return call


def layout(tensors: Sequence[Tensor]) -> Layout:
    """Return shape, strides and dtype of each tensor.

    >>> layout([torch.ones(2, 3)])
    [(torch.Size([2, 3]), (3, 1), torch.float32)]
    """
    return [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors]


def lifted(graph: GraphModule) -> tuple[GraphModule, list[Tensor]]:
    """Return the graph with the tensors that it holds as its first arguments, and these tensors.

    Raises ValueError for a graph that calls modules, or that returns anything but tensors.

    >>> from pyro_vae.compiling.recorder import recorded
    >>> held = torch.ones(2)
    >>> flat, constants = lifted(recorded(lambda x: (x + held,), [torch.zeros(2)]))
    >>> constants, flat(*constants, torch.zeros(2))
    ([tensor([1., 1.])], (tensor([1., 1.]),))
    """
    flat, nodes = Graph(), list(graph.graph.nodes)
    names = list(dict.fromkeys(str(node.target) for node in nodes if node.op == "get_attr"))
    constants: list[Any] = [getattr(graph, name, None) for name in names]
    results = next(node.args[0] for node in nodes if node.op == "output")
    unfit = any(node.op in ("call_module", "call_method") for node in nodes)
    if unfit or not all(map(torch.is_tensor, constants)) or not isinstance(results, (tuple, list)):
        raise ValueError("graph: wanted operations on tensors that return a tuple, got modules in it or another result")
    if not all(isinstance(result, torch.fx.Node) for result in results):
        raise ValueError(f"graph: wanted tensors as its results, got {results}")
    held = {name: flat.placeholder(f"constant_{i}") for i, name in enumerate(names)}
    copies: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in nodes:
        if node.op == "output":
            flat.output(tuple(map_arg(results, copies.__getitem__)))
        elif node.op == "get_attr":
            copies[node] = held[str(node.target)]
        else:
            copies[node] = flat.node_copy(node, copies.__getitem__)
            copies[node].meta = {}  # tensors of the trace, which the compiler would confuse with its own
    return GraphModule({}, flat), [constant.detach() for constant in constants]


def key(graph: GraphModule, values: Sequence[Tensor], threads: int) -> str:
    """Return the name of a graph's machine code: a hash of all that it depends on."""
    devices = [str(value.device) for value in values]
    return name_of(graph.code, repr(layout(values)), repr(devices), str(threads), repr(OPTIONS))


def _loaded(graph: GraphModule, values: list[Tensor], threads: int) -> Function:
    """Return the machine code of a graph, from the store or compiled now."""
    folder, name = store(), key(graph, values, threads)
    if folder is None:
        with COMPILING:
            return _compiled(graph, values, threads, None)
    path = folder / f"{name}.so"
    run = _stored(path, _results(graph))
    if run is None:
        with COMPILING:  # another thread may have made it meanwhile
            run = _stored(path, _results(graph)) or _compiled(graph, values, threads, path)
    return run


def _stored(path: Path, results: int) -> Function | None:
    """Return a stored library; None if there is none, or if it is damaged or not the user's."""
    if not path.exists():
        return None
    try:
        checked(path)
        run = library_runner(path, results)
    except (OSError, AttributeError, CheckpointError) as error:
        logging.getLogger(__name__).warning("%s is compiled anew: %s", path, error)
        return None
    return run


def _compiled(graph: GraphModule, values: list[Tensor], threads: int, path: Path | None) -> Function:
    """Return a new library, which is stored at a path, or torch's function if a library cannot run by itself."""
    warm_up(True)
    options = OPTIONS | {"cpp.threads": threads}
    with tempfile.TemporaryDirectory(prefix="pyro_vae", ignore_cleanup_errors=True) as folder:
        library = Path(folder, "graph.so")
        with quiet_torch():
            alone = compiled_library(graph, values, library, options)
        if alone and path is not None:
            keep(library.read_bytes(), path)
        if alone:
            return library_runner(library, _results(graph))
    function = torch.compile(graph, fullgraph=True, dynamic=False, options=options)
    with quiet_torch(), forked_rng("cpu"), torch.no_grad():
        function(*(value.clone() for value in values))
    return _without_gradients(function)


def _without_gradients(function: Callable) -> Function:
    def call(tensors: list[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return [*function(*tensors)]

    return call


def _results(graph: GraphModule) -> int:
    return len(next(node.args[0] for node in graph.graph.nodes if node.op == "output"))
