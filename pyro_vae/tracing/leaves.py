"""The parameters of any Pyro program, found in its autograd graph."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.params.param_store import normalize_param_name
from torch import Tensor

from pyro_vae.tracing.matching import check_sites
from pyro_vae.tracing.messages import sample_sites
from pyro_vae.tracing.particles import run, score
from pyro_vae.tracing.probing import left_as_it_was, modules, tensors, unused

__all__ = ["ProgramParameters", "find_parameters", "leaves", "left_as_it_was", "modules", "tensors"]


@dataclass(frozen=True)
class ProgramParameters:
    """The trainable leaf tensors of a program by name, unconstrained.

    ``model`` are those that log p(x, z) depends on at fixed z, ``guide`` those that z or log q(z | x) depends on.
    Parameters that both depend on (the encoder, if the prior uses it) count as the guide's and are named in ``shared``.
    """

    model: dict[str, Tensor]
    guide: dict[str, Tensor]
    shared: tuple[str, ...] = ()


Parameters = ProgramParameters  # its name in 0.1


def find_parameters(
    model: Callable, guide: Callable, args: Sequence = (), kwargs: Mapping | None = None, enumerated: bool = False
) -> tuple[ProgramParameters, poutine.Trace, poutine.Trace]:
    """Run the program once, and return its parameters, the model's trace and the guide's trace.

    A parameter is a leaf of the graph of the log-probabilities that requires a gradient, in a module or in Pyro's
    store. Arguments are not parameters. Leaves on which no log-probability of this run depends are not found.
    ``enumerated`` says that the guide may leave out sites that an ELBO enumerates.

    Raises ValueError if the latent sites of model and guide differ.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program = LinearGaussian(torch.ones(3, 1))
    >>> parameters, *_ = find_parameters(program.model, program.guide, (torch.zeros(2, 3),))
    >>> sorted(parameters.model), sorted(parameters.guide)
    (['bias', 'log_scale', 'weight'], ['posterior.loc_bias', 'posterior.loc_weight', 'posterior.scale_tril'])
    """
    kwargs = kwargs or {}
    with pyro.validation_enabled(False), torch.enable_grad():
        model_trace, guide_trace = run(model, guide, args, kwargs)
        check_sites(model_trace, guide_trace, scales=False, enumerated=enumerated)
        score(model_trace)
        score(guide_trace)
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
    return ProgramParameters(own, groups["guide"], shared), model_trace, guide_trace


def leaves(roots: Iterable[Tensor], stop: Iterable[Tensor] = ()) -> list[Tensor]:
    """Return the leaf tensors that require a gradient and that the roots depend on, other than through ``stop``.

    >>> a, b = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    >>> middle = 2 * b
    >>> leaves([a * middle], stop=[middle]) == [a]
    True
    """
    closed = {tensor.grad_fn for tensor in stop} | {None}
    closed_leaves = {id(tensor) for tensor in stop}
    found: dict[int, Tensor] = {}
    roots = [root for root in roots if isinstance(root, Tensor)]
    todo: list[Any] = [root.grad_fn for root in reversed(roots)]
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


def _log_probs(trace: poutine.Trace) -> list[Tensor]:
    return [site["log_prob"] for site in sample_sites(trace).values()]


def _namer(model: Callable, guide: Callable) -> Callable[[Tensor], str]:
    """Return a function from a leaf to its name: in a module, in Pyro's store, or a number; all names differ."""
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
        key = unused(key, names)
        names[key] = leaf
        return key

    return name
