"""The parameters of any Pyro program, found in its autograd graph, and a block that leaves a program as it was."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.enum import get_importance_trace
from pyro.params.param_store import normalize_param_name
from torch import Tensor, nn

from pyro_vae.traces import check_sites, sample_sites

DEPTH = 6  # steps from a program to the modules that it refers to


@dataclass(frozen=True)
class Parameters:
    """The trainable leaf tensors of a program by name, unconstrained.

    ``model`` are those that log p(x, z) depends on at fixed z, ``guide`` those that z or log q(z | x) depends on.
    What both depend on (the encoder, under a prior that is made of it) is counted as the guide's and named in
    ``shared``.
    """

    model: dict[str, Tensor]
    guide: dict[str, Tensor]
    shared: tuple[str, ...] = ()


def find_parameters(
    model: Callable, guide: Callable, args: Sequence = (), kwargs: Mapping | None = None, enumerated: bool = False
) -> tuple[Parameters, poutine.Trace, poutine.Trace]:
    """Runs the program once: its parameters, the model's trace and the guide's.

    A parameter is a leaf of the graph of the log-probabilities that requires a gradient, whether it lives in a module
    or in Pyro's store. Arguments are none. Leaves that no log-probability of this run depends on are not found.
    ``enumerated`` says that the guide may leave out sites that an ELBO enumerates.

    Raises ValueError where the latent sites of model and guide differ.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program = LinearGaussian(torch.ones(3, 1))
    >>> parameters, *_ = find_parameters(program.model, program.guide, (torch.zeros(2, 3),))
    >>> sorted(parameters.model), sorted(parameters.guide)
    (['bias', 'log_scale', 'weight'], ['posterior.loc_bias', 'posterior.loc_weight', 'posterior.scale_tril'])
    """
    kwargs = kwargs or {}
    with pyro.validation_enabled(False), torch.enable_grad():  # sites that differ are an error below, no warning
        model_trace, guide_trace = get_importance_trace("flat", float("inf"), model, guide, args, kwargs)
    if enumerated:
        latent = [name for name, site in sample_sites(model_trace).items() if site["infer"].get("enumerate")]
        for name in latent:
            if name not in guide_trace:
                model_trace.nodes[name]["is_observed"] = True
    check_sites(model_trace, guide_trace)
    codes = [site["value"] for site in sample_sites(guide_trace, observed=False).values()]
    given = {id(tensor) for tensor in tensors((args, kwargs))}
    of_guide = leaves([*codes, *_log_probs(guide_trace)])
    of_model = leaves(_log_probs(model_trace), stop=codes)
    name = _namer(model, guide)
    groups = {
        group: {name(leaf): leaf for leaf in found if id(leaf) not in given}
        for group, found in (("model", of_model), ("guide", of_guide))
    }
    shared = tuple(key for key in groups["model"] if key in groups["guide"])
    own = {key: leaf for key, leaf in groups["model"].items() if key not in shared}
    return Parameters(own, groups["guide"], shared), model_trace, guide_trace


def leaves(roots: Iterable[Tensor], stop: Iterable[Tensor] = ()) -> list[Tensor]:
    """The leaf tensors that require a gradient and that the roots depend on, other than through ``stop``.

    >>> a, b = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    >>> middle = 2 * b
    >>> leaves([a * middle], stop=[middle]) == [a]
    True
    """
    closed = {tensor.grad_fn for tensor in stop} | {None}
    closed_leaves = {id(tensor) for tensor in stop}
    found: dict[int, Tensor] = {}
    roots = [root for root in roots if isinstance(root, Tensor)]
    todo = [root.grad_fn for root in reversed(roots)]
    for root in roots:
        if root.requires_grad and root.grad_fn is None:
            found[id(root)] = root
    while todo:
        node = todo.pop()
        if node in closed:
            continue
        closed.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in closed_leaves:
            found[id(leaf)] = leaf
        todo += [following for following, _ in reversed(node.next_functions)]
    return list(found.values())


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and mappings.

    >>> len(list(tensors(({"x": torch.zeros(2)}, [torch.ones(1), 3]))))
    2
    """
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


def modules(*functions: Callable) -> dict[str, nn.Module]:
    """The modules that functions are, are methods of, or refer to by a variable, each once; its name is the variable's.

    The first module that a function is or is a method of has the name "".

    >>> layer = nn.Linear(2, 1)
    >>> list(modules(layer.forward)), list(modules(lambda x: layer(x)))
    ([''], ['layer'])
    """
    names: dict[str, nn.Module] = {}
    seen: set[int] = set()
    todo = [("", function, DEPTH) for function in reversed(functions)]
    while todo:
        name, value, depth = todo.pop()
        if id(value) in seen or not depth:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            names[_unused(name if name or "" not in names else type(value).__name__, names)] = value
        else:
            todo += [(name, item, depth - 1) for name, item in _referred(value)]
    return names


@contextmanager
def left_as_it_was(model: Callable, guide: Callable) -> Iterator[None]:
    """A block after which nothing tells that the program ran.

    Restored are the random number generators (torch, numpy, Python), the entries of Pyro's store, and, of every module
    that model and guide refer to, buffers and modes.

    >>> with left_as_it_was(lambda: None, lambda: None):
    ...     p = pyro.param("trial", torch.zeros(2))
    >>> "trial" in pyro.get_param_store()
    False
    """
    stored = set(pyro.get_param_store().keys())
    submodules = {sub for module in modules(model, guide).values() for sub in module.modules()}
    modes = {sub: sub.training for sub in submodules}
    buffers = [
        (sub, name, buffer, buffer.clone()) for sub in submodules for name, buffer in sub.named_buffers(recurse=False)
    ]
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    state = pyro.util.get_rng_state()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        pyro.util.set_rng_state(state)
        _keep(stored)
        for sub, training in modes.items():
            sub.training = training
        for sub, name, buffer, value in buffers:
            setattr(sub, name, buffer)
            if not torch.equal(buffer, value):
                with torch.no_grad():
                    buffer.copy_(value)


def _keep(names: set[str]) -> None:
    """Takes all other entries out of Pyro's store; ``del`` fails there where one tensor has two names."""
    store = pyro.get_param_store()
    if names == set(store.keys()):
        return
    state = store.get_state()
    store.clear()
    store.set_state({part: {name: kept[name] for name in kept if name in names} for part, kept in state.items()})
    for _ in store.items():  # hands each entry its way back to the unconstrained tensor, which get_state took
        pass


def _log_probs(trace: poutine.Trace) -> list[Tensor]:
    return [site["log_prob"] for site in sample_sites(trace).values()]


def _referred(value: Any) -> list[tuple[str, Any]]:
    """What a callable holds, by name: a partial's arguments, a function's variables, an object's attributes."""
    if isinstance(value, MethodType):
        return [("", value.__func__), ("", value.__self__)]
    if isinstance(value, partial):
        return [("", item) for item in (*value.args, *value.keywords.values(), value.func)]
    if isinstance(value, FunctionType):
        try:
            variables = inspect.getclosurevars(value)
        except ValueError:  # a variable that is not bound yet
            return []
        library = str(value.__module__).split(".")[0] in ("torch", "pyro")
        known = dict(variables.nonlocals) if library else {**variables.globals, **variables.nonlocals}
        wrapped = {"": value.__wrapped__} if hasattr(value, "__wrapped__") else {}
        return list((known | wrapped).items())
    if isinstance(value, type | ModuleType):
        return []
    return list(getattr(value, "__dict__", {}).items())


def _namer(model: Callable, guide: Callable) -> Callable[[Tensor], str]:
    """From a leaf to its name: in a module, in Pyro's store, or a number; no two leaves have one name."""
    given = {
        id(parameter): f"{prefix}.{name}".removeprefix(".")
        for prefix, module in reversed(modules(model, guide).items())
        for name, parameter in module.named_parameters()
    }
    names: dict[str, Tensor] = {}

    def name(leaf: Tensor) -> str:
        for key, known in names.items():
            if known is leaf:
                return key
        stored = pyro.get_param_store().param_name(leaf)
        key = given.get(id(leaf)) or (normalize_param_name(stored) if stored else f"parameter {len(names) + 1}")
        key = _unused(key, names)
        names[key] = leaf
        return key

    return name


def _unused(name: str, names: Mapping) -> str:
    number = 1
    while name in names:
        number += 1
        name = f"{name.split(' #')[0]} #{number}"
    return name
