"""Pyro programs traced once by ``torch.export`` and compiled whole, random draws included.

``torch.compile`` alone breaks a Pyro program into pieces and gains nothing. ``torch.export`` runs it once, handlers,
plates and traces and all, and keeps only what happened to tensors; that is compiled without a break.
"""

import logging
import os
import pickle
import shutil
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Thread
from types import FunctionType
from typing import Any
from unittest import mock

import pyro
import torch
from pyro.infer import ELBO, trace_elbo, trace_mean_field_elbo
from torch import Tensor, nn

from pyro_vae.compiling.constants import Changes, Held, Patience, is_plain, words
from pyro_vae.compiling.outcomes import USUAL, contents_kept, difference, outcome
from pyro_vae.tracing.leaves import tensors

# Draws by torch's own generators: the same numbers as eagerly, and on a CPU faster than the compiler's.
OPTIONS = {"fallback_random": True}
WORTH_CALLS = 500  # of a graph of some milliseconds, from which the seconds of compiling it are earned back
IN_PLACE = (
    "hold what changes in a tensor that is changed in place, as handlers.KLWeighted does: "
    'self.register_buffer("beta", torch.tensor(0.5)), then self.beta.fill_(0.7)'
)
OR_EAGERLY = 'or run eagerly, by engine="eager" in fit and compiled=False in the evidence'
NOT_THE_SAME = (
    "what was compiled is not what the program does on the same random numbers ({}): something takes part "
    "that a trace does not see, as a clock, an iterator or a hook"
)
LARGEST = 1 << 20  # elements of a tensor that is no parameter and no buffer, and is kept while a program is tried
CONVOLUTIONS = (torch.ops.aten.conv2d.default, torch.ops.aten.conv2d.padding, torch.ops.aten.conv_transpose2d.input)


class Untraceable(ValueError):
    """A program that does something else for other data, or keeps its parameters where tracing cannot follow them; or
    any, where there is no compiler.
    """


def compiled(elbo: ELBO, model: Callable, guide: Callable, *example: Tensor) -> "Compiled":
    """A module with the parameters of the program, whose call on such tensors is the loss of ``elbo``, in nats.

    The first graph is made at once, for the ``example``; another one for each new shape or dtype. Where ``model`` and
    ``guide`` are modules, or methods of modules, those are submodules of the result; parameters kept elsewhere, as in
    Pyro's store, are registered beside them. Numbers are drawn anew at each call from torch's generator, as eagerly.

    Raises ``Untraceable``, a ValueError, naming the line that is in the way: the program must do the same operations
    whatever the values of its tensors. Change that line, or train eagerly.

    >>> from pyro.infer import Trace_ELBO
    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program = LinearGaussian(torch.ones(3, 2))
    >>> loss = compiled(Trace_ELBO(), program.model, program.guide, program.simulate(5))
    >>> loss(program.simulate(5)).backward()
    """
    module = Compiled(elbo, model, guide)
    module.graph(example)
    return module


class Compiled(nn.Module):
    """What ``compiled`` returns."""

    def __init__(self, elbo: ELBO, model: Callable, guide: Callable):
        super().__init__()
        self.loss = Loss(elbo, model, guide)
        self.held, self.patience = Held(self.loss.roots), Patience()
        self.states = [State(self.held.values)]
        self.state = self.states[0]

    def forward(self, *args: Tensor) -> Tensor:
        changes = self.held.changes()
        if changes:
            self._follow(changes)
        else:
            self.patience.used()
        return self.graph(args)(*args)

    def graph(self, args: tuple[Tensor, ...]) -> Callable:
        """The compiled graph for arguments of these shapes."""
        key = tuple((arg.shape, arg.dtype, arg.device) for arg in args)
        if key not in self.state.graphs:
            missing = missing_compiler()
            if missing:
                raise Untraceable(f"nothing can be compiled here: {missing}; call elbo.differentiable_loss instead")
            self.state.graphs[key] = self._compiled(args)
            self.state.values = self.held.values
        return self.state.graphs[key]

    def _follow(self, changes: Changes) -> None:
        """Goes over to the graphs of what the program holds now: a mode, say, to which it returns."""
        known = [state for state in self.states if not self.held.since(state.values)]
        if not known and self.patience.ends():
            raise Untraceable(
                f"{words(changes)}: it changes from call to call, and would have to be traced anew each "
                f"time; {IN_PLACE}, or call elbo.differentiable_loss instead"
            )
        self.states += [] if known else [State(self.held.values)]
        self.state = known[0] if known else self.states[-1]

    def _compiled(self, args: tuple[Tensor, ...]) -> Callable:
        module = traced(self.loss, args, self.held)
        graph = torch.compile(module, fullgraph=True, dynamic=False, options=OPTIONS)
        trained = {name: p for name, p in self.named_parameters() if p.requires_grad}
        leaves, buffers = {name: self.loss.leaf(p) for name, p in trained.items()}, dict(self.named_buffers())
        with quiet_torch(), tensors_only():
            said = difference(
                self,
                precision(module),
                args[0].numel(),
                lambda: outcome(self.loss, args, leaves, buffers),
                lambda: outcome(graph, args, trained, buffers),
            )
        if said:
            raise Untraceable(f"{NOT_THE_SAME.format(said)}; call elbo.differentiable_loss instead")
        return graph


@dataclass
class State:
    """Numbers and flags of a program, by name, and the graphs that were traced while it held them."""

    values: dict[str, Any]
    graphs: dict[tuple, Callable] = field(default_factory=dict)


class Loss(nn.Module):
    """The loss of an ELBO as a module that holds the modules of model and guide; ``observe``: what makes x, if any.

    ``others`` are the parameters that the loss was seen to train though no module holds them; ``roots`` all that it
    refers to, by name.

    >>> from pyro.infer import Trace_ELBO
    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program = LinearGaussian(torch.ones(3, 1))
    >>> len(list(Loss(Trace_ELBO(), program.model, program.guide).parameters())) == len(list(program.parameters()))
    True
    """

    def __init__(self, elbo: ELBO, model: Callable, guide: Callable, observe: Callable | None = None):
        super().__init__()
        self.elbo, self.functions, self.observe = elbo, (model, guide), observe
        self.owners = nn.ModuleList(owners(model, guide, observe))
        self.others, self.leaves = nn.ParameterList(), {}
        self.roots = {
            "model": model,
            "guide": guide,
            "observe": observe,
            "elbo": elbo,
            "pyro.get_param_store()": pyro.get_param_store()._params,
        }

    def other(self, leaf: Tensor) -> nn.Parameter:
        """The parameter among ``others`` that shares the memory of a leaf, which is added if it is new."""
        for parameter in self.others:
            if parameter.data_ptr() == leaf.data_ptr():
                return parameter
        self.others.append(leaf if isinstance(leaf, nn.Parameter) else nn.Parameter(leaf.detach()))
        self.leaves[id(self.others[-1])] = leaf
        return self.others[-1]

    def leaf(self, parameter: nn.Parameter) -> Tensor:
        """The leaf that an eager run trains, for a parameter of this module."""
        return self.leaves.get(id(parameter), parameter)

    def forward(self, *args: Tensor) -> Tensor:
        args = args if self.observe is None else (self.observe(*args),)
        return self.elbo.differentiable_loss(*self.functions, *args)


def owners(*functions: Callable | None) -> list[nn.Module]:
    """The modules that these are, or whose methods they are, each once.

    >>> layer = nn.Linear(1, 1)
    >>> owners(layer, layer.forward, print, None)
    [Linear(in_features=1, out_features=1, bias=True)]
    """
    found = [
        function if isinstance(function, nn.Module) else getattr(function, "__self__", None) for function in functions
    ]
    return list(dict.fromkeys(owner for owner in found if isinstance(owner, nn.Module)))


def traced(loss: nn.Module, args: tuple[Tensor, ...], held: Held | None = None) -> nn.Module:
    """The loss, or another function of a program, as one graph of tensor operations, on its very parameters.

    Numbers and flags of the program become constants: ``held`` tells later what they were, and whether they changed.
    The program and the random number generators are left as they were. Raises ``Untraceable``.

    >>> from pyro.infer import Trace_ELBO
    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program = LinearGaussian(torch.ones(3, 1))
    >>> loss, x = Loss(Trace_ELBO(), program.model, program.guide), program.simulate(5)
    >>> graph = traced(loss, (x,))
    >>> with torch.random.fork_rng():
    ...     eager = loss(x)
    >>> torch.allclose(graph(x), eager)  # the same draws
    True
    """
    held = Held(getattr(loss, "roots", {"self": loss})) if held is None else held
    on_cpu = all(arg.device.type == "cpu" for arg in args)
    if on_cpu:
        warm_up()
    with random_numbers_kept(args), quiet_torch(), pyro.validation_enabled(False), tensors_only():
        with _left_where_untraceable(held):
            with contents_kept([*loss.parameters(), *loss.buffers(), *held.tensors(LARGEST)]):
                value, replaced = _run_alone(loss, args, held)
            leaves = {leaf.data_ptr(): leaf for leaf in _leaves(value)}
            try:
                exported = torch.export.export(loss, args, strict=False)
            except Exception as error:
                raise Untraceable(_explanation(error)) from error
            finally:
                held.put_back()
            _check_not_read(replaced, loss, exported.constants)
        graph = exported.module(check_guards=False)
    # What the loss trains but does not hold, as parameters in Pyro's store, was taken for constants.
    for name, constant in exported.constants.items():
        leaf = leaves.get(constant.data_ptr()) if torch.is_tensor(constant) else None
        if leaf is not None:
            owner, _, attribute = name.rpartition(".")
            delattr(graph.get_submodule(owner), attribute)
            graph.get_submodule(owner).register_parameter(attribute, loss.other(leaf))
    if on_cpu:
        channels_last(graph)
    return graph


def _run_alone(loss: nn.Module, args: tuple[Tensor, ...], held: Held) -> tuple[Tensor, Changes]:
    """The loss by an eager run, and what the run put in the place of other tensors or objects.

    Untraceable where the run draws from other generators than torch's own, or changes what the next one would begin
    with: a trace would do it once and for all. What a first run sets up is no such change.
    """
    generators = held.generators()
    states = {name: pickle.dumps(get()) for name, (get, _) in generators.items()}
    versions = _versions(loss, held)
    for _ in range(2):
        held.look()
        value = loss(*args)
        changes = held.changes()
        kept = {name: pair for name, pair in changes.items() if all(map(is_plain, pair))}
        replaced = {name: pair for name, pair in changes.items() if name not in kept}
        held.passing |= replaced.keys()
        if not kept:
            break
    held.look()
    drawn = [name for name, (get, _) in generators.items() if pickle.dumps(get()) != states[name]]
    moved = {name: pair for name, pair in _versions(loss, held).items() if versions.get(name, pair) != pair}
    if not (kept or drawn or moved):
        return value, replaced
    if drawn:
        raise Untraceable(
            f"the program draws from {', '.join(drawn)}, and what is traced would draw once and for all; "
            f"draw from torch's own generator, as torch.rand(...) does, {OR_EAGERLY}"
        )
    raise Untraceable(
        f"the program changes {words(kept) or ', '.join(moved)} while it runs, and what is traced would "
        f"keep one value; {IN_PLACE}, {OR_EAGERLY}"
    )


@contextmanager
def _left_where_untraceable(held: Held) -> Iterator[None]:
    """A block after which, if it raises ``Untraceable``, all that is held is as it was, and so are generators."""
    before = Held(held.roots)
    states = [(put, get()) for get, put in before.generators().values()]
    try:
        yield
    except Untraceable:
        before.put_back()
        for put, state in states:
            put(state)
        raise


def _versions(loss: nn.Module, held: Held) -> dict[str, int]:
    """How often each tensor that is no parameter and no buffer was changed in place, by name."""
    registered = {id(tensor) for tensor in (*loss.parameters(), *loss.buffers())}
    return {
        slot.name: slot.value._version
        for slot in held.slots
        if isinstance(slot.value, Tensor) and id(slot.value) not in registered and slot.name not in held.passing
    }


def _check_not_read(replaced: Changes, loss: nn.Module, constants: dict[str, Any]) -> None:
    """Raises Untraceable where a tensor that each run replaces is read by the next one, or is a parameter or buffer."""
    registered = {id(tensor) for tensor in (*loss.parameters(), *loss.buffers())}
    places = {tensor.data_ptr() for tensor in constants.values() if torch.is_tensor(tensor)} - {0}
    read = [
        name
        for name, (_, new) in replaced.items()
        if torch.is_tensor(new) and (id(new) in registered or new.data_ptr() in places)
    ]
    if read:
        raise Untraceable(
            f"the program replaces {', '.join(read)} at each run, and a trace would keep one value; "
            f"{IN_PLACE}, {OR_EAGERLY}"
        )


def precision(graph: nn.Module) -> torch.dtype:
    """The lowest precision of the floating point numbers in a traced graph."""
    nodes = [node for part in graph.modules() if isinstance(part, torch.fx.GraphModule) for node in part.graph.nodes]
    found = {tensor.dtype for node in nodes for tensor in tensors(node.meta.get("val"))}
    return max(found & USUAL.keys(), key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)


class Graphs:
    """Functions of tensors, compiled one for each of the shapes that they are called with, where that is wanted.

    Args:
        wanted: True: what cannot be traced is an error; False: nothing is compiled; None: on a CPU where there is a
            compiler and ``calls`` are at least ``WORTH_CALLS``; what cannot be traced is then left to its eager form.
        calls: with tensors of one shape, that are to be expected.

    One instance is for one function: it is looked up by the shapes and dtypes of its arguments alone.

    >>> graphs = Graphs(wanted=None, calls=3, device="cpu")
    >>> graphs.get(lambda: torch.compile(torch.sin), (torch.zeros(2),)) is None
    True
    """

    def __init__(self, wanted: bool | None, calls: int, device: torch.device | str):
        earned = calls >= WORTH_CALLS and torch.device(device).type == "cpu"
        self.strict = bool(wanted)
        self.wanted = earned and not missing_compiler() if wanted is None else wanted
        self._graphs: dict[tuple, Callable | None] = {}

    def get(self, make: Callable[[], Callable], example: tuple[Tensor, ...]) -> Callable | None:
        """The compiled function for tensors like these, by ``make`` if it is new; None where it is to be eager."""
        if not self.wanted:
            return None
        key = tuple((tensor.shape, tensor.dtype) for tensor in example)
        if key not in self._graphs:
            self._graphs[key] = self._made(make, example)
        return self._graphs[key]

    def _made(self, make: Callable[[], Callable], example: tuple[Tensor, ...]) -> Callable | None:
        try:
            if self.strict and missing_compiler():
                raise Untraceable(missing_compiler())
            with random_numbers_kept(example), quiet_torch():
                graph = torch.compile(own_code(make()), fullgraph=True, dynamic=False, options=OPTIONS)
                graph(*example)
            return graph
        except Exception as error:  # of the program, of torch's compiler, or of the one that it calls
            if self.strict:
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            print(f"not compiled, which is only slower: {reason}", file=sys.stderr)
            return None


def own_code(function: Callable) -> Callable:
    """The function with a code object of its own: torch keeps its graphs, and counts them, by code object.

    >>> own_code(lambda x: 2 * x)(3)
    6
    """
    if not isinstance(function, FunctionType):
        return function
    code = function.__code__.replace()
    return FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)


@cache
def warm_up() -> Thread | None:
    """Has torch's compiler do in the background what it does before its first graph, once a process.

    Which vector instructions there are it finds out by the C++ compiler, and it compiles its own headers: 9 seconds on
    a cold cache, in which Python traces the program on another core. None where there is no compiler.
    """
    if missing_compiler():
        return None
    thread = Thread(target=_first_kernel, daemon=True)
    thread.start()
    return thread


def channels_last(graph: nn.Module) -> None:
    """Has convolutions of lowered precision work with the channels innermost, in memory: the faster way on a CPU.

    They are in graphs of their own, one for each block of autocast. A compiled step is faster by 5 to 15 % in bfloat16;
    in float32, or where it is eager and pays for each conversion apart, it would be slower.
    """
    for part in graph.modules():
        if part is graph or not isinstance(part, torch.fx.GraphModule):
            continue
        for node in part.graph.nodes:
            if node.target in CONVOLUTIONS:
                for argument in node.args[:2]:
                    with part.graph.inserting_before(node):
                        layout = {"memory_format": torch.channels_last}
                        turned = part.graph.call_function(torch.ops.aten.contiguous.default, (argument,), layout)
                    node.replace_input_with(argument, turned)
        part.recompile()


@contextmanager
def tensors_only() -> Iterator[None]:
    """A block in which Pyro's ELBOs read no value back to the host: what they read they leave as a tensor.

    >>> with tensors_only():
    ...     trace_elbo.torch_item(torch.ones(()))
    tensor(1.)
    >>> trace_elbo.torch_item(torch.ones(()))
    1.0
    """
    with (
        mock.patch.object(trace_elbo, "torch_item", _detached),
        mock.patch.object(trace_elbo, "warn_if_nan", _unread),
        mock.patch.object(trace_mean_field_elbo, "torch_item", _detached),
        mock.patch.object(trace_mean_field_elbo, "warn_if_nan", _unread),
    ):
        yield


def random_numbers_kept(args: Iterable[Tensor]) -> AbstractContextManager[None]:
    """A block after which the random number generators, of these tensors' devices too, are as they were before."""
    return torch.random.fork_rng({arg.device for arg in args if arg.is_cuda})


@contextmanager
def quiet_torch() -> Iterator[None]:
    """A block without what torch's compiler says about torch itself."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch\.")
        warnings.filterwarnings("ignore", "A model attribute .* requires gradient", UserWarning)
        warnings.filterwarnings("ignore", "The tensor attributes? .* assigned during export", UserWarning)
        try:
            yield
        finally:
            logging.disable(before)


def missing_compiler() -> str | None:
    """Why nothing can be compiled on this machine; None where a C++ compiler is at hand.

    ``torch.compile`` takes the compiler of the environment variable CXX, or g++.
    """
    name = os.environ.get("CXX") or "g++"
    return None if shutil.which(name) else f"no C++ compiler: {name!r} is not found; install one, or set CXX"


def _first_kernel() -> None:
    with suppress(Exception):  # which the first graph will meet again, and report
        from torch._inductor.codecache import CppPythonBindingsCodeCache  # seconds of imports

        CppPythonBindingsCodeCache.load_pybinding([], 'extern "C" void kernel() {}')


def _detached(value: Any) -> Any:
    return value.detach() if torch.is_tensor(value) else value


def _unread(value: Any, *args: Any, **kwargs: Any) -> Any:
    return value


def _leaves(loss: Tensor) -> list[Tensor]:
    """The tensors that a backward pass gives a gradient."""
    found, seen, open_nodes = [], set(), [loss.grad_fn]
    while open_nodes:
        node = open_nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        open_nodes += [following for following, _ in node.next_functions]
    return found


def _explanation(error: Exception) -> str:
    libraries = [str(Path(module.__file__).parent) for module in (torch, pyro)]
    standard = sysconfig.get_paths()["stdlib"]

    def foreign(file: str) -> bool:
        in_python = file.startswith(standard) and "site-packages" not in file
        return file.startswith((*libraries, "<")) or in_python or file == __file__

    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not foreign(frame.filename)]
    at = f" at {frames[-1].filename}, line {frames[-1].lineno}: `{frames[-1].line}`" if frames else ""
    reason = str(error).strip().split("\n")[0]
    if "fake tensor in the exported program constant" in reason:
        return (
            "the loss takes a derivative of the program's densities itself, as DoublyReparameterized does from two "
            'particles on, and torch.export loses the parameters in it; run eagerly, by engine="eager" in fit'
        )
    return (
        f"the program cannot be traced{at} ({type(error).__name__}: {reason}). What it does must not depend on the "
        f"values of tensors: take that line away, write it with torch.where, {OR_EAGERLY}"
    )
