"""Private parts of torch and Pyro that the library uses, in one place, and what happens if one of them is gone.

Each of these names may change in any release. The names below are those in torch 2.14 and Pyro 1.9.

- ``Tensor._version``: no program that holds buffers or other tensors is traced; ``Untraceable`` says so.
- ``Tensor._backward_hooks``, ``_post_accumulate_grad_hooks``: no training is compiled; ``Untraceable`` says so.
- ``nn.Module._parameters``, ``_buffers``, ``_modules``, ``_forward_pre_hooks``, ``_forward_hooks``,
  ``_backward_pre_hooks``, ``_backward_hooks``: nothing is traced; ``Untraceable`` says so.
- ``Optimizer._optimizer_step_pre_hooks``, ``_optimizer_step_post_hooks`` and, in ``torch.optim.optimizer``,
  ``_global_optimizer_pre_hooks``, ``_global_optimizer_post_hooks``; the function ``torch.optim.adam.adam``: steps are
  taken by ``optimizer.step()``, which is slower; without the first, ``engine="svi"`` ignores hooks before a step.
- ``torch._dynamo``, ``__dynamo_disable`` and ``_torchdynamo_disable`` of functions, ``_opt_called`` and
  ``_wrapped_by_lr_sched`` of ``torch.optim.lr_scheduler``: torch's compiler is imported for an optimiser, which is
  slower.
- ``TorchDispatchMode._should_skip_dynamo``: torch's compiler is imported for a mode, which is slower.
- ``torch.compiler._is_compiling_flag``: convolutions take torch's own form, which is slower.
- ``torch._inductor.codecache``, ``cpu_vec_isa``, ``config``: nothing is done ahead of the first graph, which is slower.
- ``CppBuilder`` and ``CppTorchDeviceOptions`` of ``torch._inductor.cpp_builder``, and torch's file ``interface.cpp``:
  the files of a library are compiled one after the other, and nothing of them is kept, which is slower.
- ``torch._C._functorch._set_vmap_fallback_warning_enabled``: torch warns of each operator that it vectorises slowly.
- ``torch._foreach_add`` and its kin: Pyro's ``ClippedAdam`` steps each parameter by itself, which is slower.
- In ``library.py``: ``torch._inductor.aot_compile``, ``unsafe_alloc_void_ptrs_from_tensors`` and
  ``alloc_tensors_by_stealing_from_void_ptrs`` of ``torch._C._aoti``: no machine code is made or kept ahead
  of a run, and ``Untraceable`` says so.
- ``ParamStoreDict._params`` of Pyro: the whole parameter store is watched, which is slower.
- ``torch_item``, ``warn_if_nan`` of Pyro's ELBOs, such as ``trace_elbo``, and ``Dice.compute_expectation`` with
  ``_get_log_factors``: the name is not replaced. If the ELBO reads a value by another one, the program cannot be
  traced, and ``Untraceable`` says so.

Other modules use private parts that belong to the code around them: ``torch.utils._pytree`` (arguments of any shape),
``torch._C._get_tracing_state`` (``torch.jit.trace``), ``_PYRO_STACK`` (particles), ``_call``, ``_inv_call``,
``_beta``, ``_cache_size``, ``_mask`` and ``_params`` of distributions and transforms, ``normalize_param_name`` and
``param_with_module_name`` (names in Pyro's store). If one of these is gone, an ImportError or AttributeError names it.
Methods and attributes such as ``_pyro_sample``, ``_extended_shape`` and ``_validate_args`` are the way to extend
handlers and distributions.
"""

import importlib
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from operator import attrgetter
from typing import Any
from unittest import mock

import pyro
import torch
from pyro.infer import (
    renyi_elbo,
    rws,
    trace_elbo,
    trace_mean_field_elbo,
    traceenum_elbo,
    tracegraph_elbo,
    tracetmc_elbo,
)
from pyro.infer.util import Dice
from pyro.ops import packed
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from pyro_vae.compiling.untraceable import OR_EAGERLY, Untraceable
from pyro_vae.tracing.enumeration import LogSums

VERSION = "_version"
GRADIENT_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
REGISTRIES = ("_parameters", "_buffers", "_modules")
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")  # of a module
STEP_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
GLOBAL_STEP_HOOKS = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")  # of torch.optim.optimizer
ADAM = ("torch.optim.adam", "adam")
COMPILER = "torch._dynamo"
DISABLED, LEFT_ALONE = "__dynamo_disable", "_torchdynamo_disable"  # a function without the compiler; its mark
STEPPED, STEPS_SEEN = "_opt_called", "_wrapped_by_lr_sched"  # of an optimiser with a schedule, and of its step
COMPILING = "_is_compiling_flag"  # of torch.compiler
KERNELS = ("torch._inductor.codecache", "CppPythonBindingsCodeCache")
SETTINGS = ("torch._inductor.config", "patch")
INSTRUCTIONS = ("torch._inductor.cpu_vec_isa", "pick_vec_isa")
VMAP_WARNINGS = ("torch._C._functorch", "_set_vmap_fallback_warning_enabled")
FOREACH = "_foreach_"  # begins the names of torch's functions of lists of tensors
STACK = "_PYRO_STACK"  # of pyro.poutine.runtime: the handlers at work
STORE = "_params"
ELBOS = (renyi_elbo, rws, trace_elbo, trace_mean_field_elbo, traceenum_elbo, tracegraph_elbo, tracetmc_elbo)
OUR_ELBOS = "pyro_vae.estimation.base"  # it needs this package, and is looked up where it is loaded
READS = ("torch_item", "warn_if_nan")
FACTORS, EXPECTATION = "_get_log_factors", "compute_expectation"  # of Dice


class DispatchMode(TorchDispatchMode):
    """A mode for which torch does not import its compiler, to keep it from the mode's own code: that takes seconds."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


def in_place_changes(tensor: Tensor) -> int:
    """Return how often a tensor was changed in place. Raises ``Untraceable`` if torch does not tell.

    >>> x = torch.zeros(2)
    >>> before = in_place_changes(x)
    >>> in_place_changes(x.add_(1)) - before
    1
    """
    return _attribute(tensor, VERSION, "whether a tensor was changed in place")


def gradient_hooks(tensor: Tensor) -> tuple[Any, ...]:
    """Return the hooks of a gradient, None or empty without any. Raises ``Untraceable`` if torch does not tell.

    >>> gradient_hooks(torch.zeros(2))
    (None, None)
    """
    return tuple(_attribute(tensor, name, "whether a gradient has hooks") for name in GRADIENT_HOOKS)


def registries(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the dictionaries in which a module keeps its parameters, buffers and submodules.

    Raises ``Untraceable`` if one is not found.

    >>> class Model(nn.Module):
    ...     def __init__(self):
    ...         self.rate = 0.1
    >>> registries(Model())
    Traceback (most recent call last):
        ...
    pyro_vae.compiling.untraceable.Untraceable: Model.__init__ does not call super().__init__(), ...
    """
    if not vars(module).keys() >= set(REGISTRIES) and vars(nn.Module()).keys() >= set(REGISTRIES):
        kind = type(module).__name__
        raise Untraceable(f"{kind}.__init__ does not call super().__init__(), without which it holds no parts; call it")
    parameters, buffers, modules = (_attribute(module, name, "where a module keeps its parts") for name in REGISTRIES)
    return parameters, buffers, modules


def hooks(module: nn.Module) -> dict[str, dict[int, Any]]:
    """Return the dictionaries of a module's hooks, by name. Raises ``Untraceable`` if one is not found."""
    return {name: _attribute(module, name, "which hooks a module has") for name in HOOKS}


def has_step_hooks(optimizer: Optimizer) -> bool:
    """Return whether a step of an optimiser does more than that of its class; True if torch does not tell.

    A schedule replaces ``step`` by one that takes note of the call, which is no more.
    """
    hooks = [getattr(optimizer, name, None) for name in STEP_HOOKS]
    hooks += [member("torch.optim.optimizer", name) for name in GLOBAL_STEP_HOOKS]
    return _is_step_replaced(optimizer) or any(hook is None or len(hook) > 0 for hook in hooks)


def acts_before_step(optimizer: Optimizer) -> bool:
    """Return whether an optimiser's own ``step``, or hook before it, may change gradients; False if torch hides hooks.

    >>> optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)])
    >>> acts_before_step(optimizer)
    False
    >>> handle = optimizer.register_step_pre_hook(lambda *args: None)
    >>> acts_before_step(optimizer)
    True
    """
    return _is_step_replaced(optimizer) or len(getattr(optimizer, STEP_HOOKS[0], ())) > 0


@cache
def functional_adam() -> Callable[..., None] | None:
    """Return the function that takes a step of Adam on lists of tensors; None if torch has none of that form."""
    adam = member(*ADAM)
    names = ("fused", "lr", "eps", "found_inf", "beta1", "beta2", "weight_decay", "amsgrad", "maximize")
    try:
        inspect.signature(adam).bind([], [], [], [], [], [], **dict.fromkeys(names))
    except (TypeError, ValueError):
        return None
    return adam


def compile_first_kernel(options: dict[str, Any]) -> None:
    """Have torch's compiler do what it does once before its first graph: test the C++ compiler, compile its headers."""
    with suppress(Exception), member(*SETTINGS)(options):  # the first graph meets the same error, and reports it
        member(*KERNELS).load_pybinding([], 'extern "C" void kernel() {}')


def operators(*names: str) -> list[Any]:
    """Return those operators of ``torch.ops.aten`` that exist.

    >>> operators("conv2d.default", "conv2d.gone")
    [<OpOverload(op='aten.conv2d', overload='default')>]
    """
    found = []
    for name in names:
        with suppress(AttributeError):
            found.append(attrgetter(name)(torch.ops.aten))
    return found


def stored_parameters() -> Any:
    """Return the dictionary behind Pyro's parameter store, or the store itself if it is not found."""
    store = pyro.get_param_store()
    return getattr(store, STORE, store)


def within_handlers() -> bool:
    """Return whether this runs within a handler of Pyro, such as a plate or ``poutine.scale``.

    >>> with pyro.poutine.scale(scale=2.0):
    ...     within_handlers()
    True
    """
    return bool(getattr(pyro.poutine.runtime, STACK, ()))


def foreach(*names: str) -> list[Callable[..., Any]]:
    """Return torch's functions of lists of tensors; none if one of them is gone.

    >>> (add,) = foreach("add")
    >>> add([torch.ones(2)], [torch.ones(2)])
    (tensor([2., 2.]),)
    >>> foreach("add", "gone")
    []
    """
    found = [getattr(torch, FOREACH + name, None) for name in names]
    return [function for function in found if function is not None] if None not in found else []


def unrecorded(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return what a function returns, without a record of it."""
    with _disable_current_modes():
        return function(*args, **kwargs)


@contextmanager
def without_vmap_warnings() -> Iterator[None]:
    """Context manager in which ``torch.vmap`` does not warn of operators that it calls draw by draw, in C++, on stderr.

    Torch does not tell whether it warns; afterwards it does, as by default.
    """
    switch = member(*VMAP_WARNINGS)
    if switch is None:
        yield
        return
    switch(False)
    try:
        yield
    finally:
        switch(True)


@contextmanager
def as_if_compiling() -> Iterator[None]:
    """Context manager in which ``torch.compiler.is_compiling()`` is true."""
    if not hasattr(torch.compiler, COMPILING):
        yield
        return
    with mock.patch.object(torch.compiler, COMPILING, True):
        yield


def depends_on_values(operator: Any, args: Sequence[Any]) -> tuple[bool, bool]:
    """Return whether an operator reads a number from a tensor, and whether the size of its result depends on values.

    >>> aten = torch.ops.aten
    >>> depends_on_values(aten.nonzero.default, [torch.ones(2)]), depends_on_values(aten.sin.default, [torch.ones(2)])
    ((False, True), (False, False))
    """
    tags = getattr(operator, "tags", ())
    sizes = torch.Tag.dynamic_output_shape in tags
    if operator in operators("index.Tensor"):  # its size depends on values only where masks are indices
        sizes = any(torch.is_tensor(index) and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return torch.Tag.data_dependent_output in tags, sizes


@contextmanager
def tensors_only() -> Iterator[None]:
    """Context manager in which Pyro's ELBOs keep their values as tensors, and read none back to the host.

    >>> with tensors_only():
    ...     trace_elbo.torch_item(torch.ones(()))
    tensor(1.)
    >>> trace_elbo.torch_item(torch.ones(()))
    1.0
    """
    with ExitStack() as stack:
        for module in (*ELBOS, sys.modules.get(OUR_ELBOS)):
            for name, replacement in zip(READS, (_detached, _unread)):
                if hasattr(module, name):
                    stack.enter_context(mock.patch.object(module, name, replacement))
        if hasattr(Dice, FACTORS) and hasattr(Dice, EXPECTATION):
            stack.enter_context(mock.patch.object(Dice, EXPECTATION, expectation))
        yield


def expectation(dice: Any, costs: Mapping[frozenset[str], list[Any]]) -> Any:
    """Return the sum of costs under the weights of ``Dice``; those of weight 0 count for nothing, whatever they are.

    Pyro's own method selects the others, in a number that depends on the values of tensors.
    """
    total: Any = 0.0
    for plates, terms in costs.items():
        factors = getattr(dice, FACTORS)(plates)
        weights: list[Any] = [factor for factor in factors if torch.is_tensor(factor)]
        scale = math.exp(sum(factor for factor in factors if not torch.is_tensor(factor)))
        for cost in terms:
            if weights:
                others = {dim for weight in weights for dim in weight._pyro_dims} - plates - set(cost._pyro_dims)
                weight, cost = packed.broadcast_all(LogSums().sumproduct(weights, others), cost)
                cost = weight.exp() * torch.where(weight > -math.inf, cost, 0.0)
            total = total + scale * cost.sum()
    return total


def member(module: str, name: str) -> Any:
    """Return a member of a module, which is imported only here; None if either is gone."""
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


def _is_step_replaced(optimizer: Optimizer) -> bool:
    own = vars(optimizer).get("step")
    noted = hasattr(own, STEPS_SEEN) and getattr(own, "__wrapped__", None) is type(optimizer).step  # by a schedule
    return own is not None and not noted


def _attribute(owner: Any, name: str, what: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError as error:
        raise Untraceable(
            f"torch {torch.__version__} has no {type(owner).__name__}.{name} and does not tell {what}, so that no "
            f"program can be traced safely; install an older torch, {OR_EAGERLY}"
        ) from error


def _detached(value: Any) -> Any:
    return value.detach() if torch.is_tensor(value) else value


def _unread(value: Any, *args: Any, **kwargs: Any) -> Any:
    return value
