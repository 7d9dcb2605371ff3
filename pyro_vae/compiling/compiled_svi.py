"""Pyro's SVI with compiled steps."""

import logging
from collections.abc import Callable, Sequence
from operator import is_not
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.ops.provenance import detach_provenance
from pyro.optim import PyroOptim
from pyro.util import warn_if_nan
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pyro_vae.compiling.checked import NowAndThen
from pyro_vae.compiling.compiler import check_compiler
from pyro_vae.compiling.followed import FollowedGraphs
from pyro_vae.compiling.joint import check_same, own_gradients, record
from pyro_vae.compiling.loss import surroundings
from pyro_vae.compiling.private import stored_parameters
from pyro_vae.compiling.signatures import Signature, apart, interference, signature_of
from pyro_vae.compiling.steps import Steps
from pyro_vae.compiling.untraceable import StaleGraph, Untraceable, first_line
from pyro_vae.errors import warn

INSTEAD = "train by pyro.infer.SVI"
MOST = 16  # graphs of a program in one state


class CompiledSVI(SVI):
    """``pyro.infer.SVI``, with loss, gradients and evaluation as compiled graphs; a script changes one line.

    Parameters are those of Pyro's store and of modules, and the state of the optimiser is that of ``optim``, so that
    ``SVI`` can go on with both. Losses and parameters are those of ``SVI`` with the same seed, up to rounding.

    The first step with arguments of new shapes is that of ``SVI`` itself, which also makes lazy parameters. The second
    one compiles a graph, in some seconds. Numbers, flags, None and other arguments that are no tensors are part of a
    graph: another value needs another one. If a number or flag of the program changes, the next step is that of
    ``SVI``, and a graph is made anew. A graph is compared with the program after 10, 100, 1000 and then every 1000 or
    5000 uses; if it is not the same any more, ``StaleGraph`` warns, and the second time all further steps are eager.

    Raises ``Untraceable``, a ValueError, at the second step if the program cannot be compiled; the message names the
    line. If that is found only later, or if more than ``most`` different arguments come, the steps with these arguments
    are those of ``SVI``, and a message is logged.

    Args:
        model, guide, optim, loss, loss_and_grads: as for ``pyro.infer.SVI``.
        most: the largest number of graphs.

    >>> import pyro.distributions as dist
    >>> from pyro.infer import Trace_ELBO, autoguide
    >>> def model(x):
    ...     loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
    >>> guide = autoguide.AutoNormal(model)
    >>> svi = CompiledSVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    >>> losses = [svi.step(torch.tensor([1.0, 2.0, 3.0])) for _ in range(100)]
    >>> abs(guide.median()["loc"] - 2) < 1
    tensor(True)
    """

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        optim: PyroOptim,
        loss: Any,
        loss_and_grads: Callable | None = None,
        *,
        most: int = MOST,
    ):
        super().__init__(model, guide, optim, loss, loss_and_grads)
        self.most, self.roots = most, {"model": model, "guide": guide, "loss": loss, "loss_and_grads": loss_and_grads}
        self.parts = self._parts()
        self.store = stored_parameters()
        self.graphs: FollowedGraphs | None = None  # from the second step on
        self.seen: set[Any] = set()  # keys of the steps so far
        self.eager: set[Any] = set()  # keys that are never compiled
        self.settles = False  # whether SVI's step may make what graphs need
        self.said: set[str] = set()  # what surrounded steps
        self.ended = False  # whether the program changed too often

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy has: all but the graphs, which belong to the parameters of this one."""
        return {**vars(self), "graphs": None, "seen": set(), "store": None}

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Take a gradient step; return the loss, in nats. All arguments are passed to model and guide."""
        graph, tensors = self._graph("step", args, kwargs)
        if graph is None:
            return self._settled(super().step(*args, **kwargs))
        parts, gradients = graph(tensors)
        graph.step(gradients)
        return graph.as_loss(parts)

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Return the loss, in nats, without a step."""
        graph, tensors = self._graph("evaluate_loss", args, kwargs)
        if graph is None:
            return self._settled(super().evaluate_loss(*args, **kwargs))
        return graph.as_loss(graph(tensors)[0])

    def _graph(self, method: str, args: tuple, kwargs: dict[str, Any]) -> "tuple[StepGraph | None, list[Tensor]]":
        """Return the graph for such arguments, None if SVI is to take the step, and the tensors among them."""
        signature, tensors = signature_of(args, kwargs)
        key = method, signature.key
        if self.ended or self._is_surrounded(method) or not self._follows() or key in self.eager:
            return None, tensors
        if key not in self.seen:
            self.seen.add(key)
            self.settles = True
            return None, tensors
        try:
            graph = self._followed(key, signature, tensors)
            return (graph if self._is_sound(graph, tensors) else None), tensors
        except Untraceable as error:
            if self.graphs is None or not any(state.graphs for state in self.graphs.states):
                raise
            self.eager.add(key)
            logging.getLogger(__name__).warning("steps like this one are not compiled: %s", first_line(error))
            return None, tensors

    def _settled(self, loss: Any) -> Any:
        """Return the loss of a step of SVI, after a look at what that step made."""
        if self.graphs is not None and self.settles:
            self.graphs.settle()
        self.settles = False
        return loss

    def _is_sound(self, graph: "StepGraph", tensors: Sequence[Tensor]) -> bool:
        """Return whether a graph still does what the program does, as far as was looked at."""
        found = graph.check(tensors)
        if found:
            assert self.graphs is not None
            self.settles = True
            try:
                self.graphs.doubt(found)
            except Untraceable as error:
                self.ended = True
                warn(f"the next steps are not compiled: {first_line(error)}", StaleGraph)
        return not found

    def _is_surrounded(self, method: str) -> bool:
        """Return whether the call lies within something that a graph does not see; say so the first time."""
        around = interference() or (None if method != "step" or torch.is_grad_enabled() else "torch.no_grad")
        if around and around not in self.said:
            self.said.add(around)
            logging.getLogger(__name__).warning("steps within %s are not compiled", around)
        return around is not None

    def _parts(self) -> list[Any]:
        return [self.model, self.guide, self.loss, self.loss_and_grads, self.optim]

    def _follows(self) -> bool:
        """Return whether the graphs are those of the program as it is now; if not, all further steps are eager."""
        if any(map(is_not, self._parts(), self.parts)):  # a script set one of them
            self.parts, self.graphs, self.seen = self._parts(), None, set()
            self.roots = dict(zip(self.roots, self.parts))
        if self.graphs is None:
            if self.store is not stored_parameters():
                self.seen = set()
        elif self.graphs.changes_of_store():  # all begins anew: SVI makes the parameters
            self.graphs, self.seen = None, set()
        self.store = stored_parameters()
        if self.graphs is None:
            return True
        state = self.graphs.state
        try:
            self.graphs.follow()
            if self.graphs.state is not state and not self.graphs.state.graphs:
                self.seen, self.eager = set(), set()  # SVI makes what is new
        except Untraceable as error:
            self.ended = True
            logging.getLogger(__name__).warning("the next steps are not compiled: %s", first_line(error))
        return not self.ended

    def _followed(self, key: tuple, signature: Signature, tensors: Sequence[Tensor]) -> "StepGraph":
        if self.graphs is None:
            self.graphs = FollowedGraphs({**self.roots, **surroundings()}, self.most, INSTEAD)
        return self.graphs.get(key, lambda: self._made(key[0], signature, tensors))

    def _made(self, method: str, signature: Signature, tensors: Sequence[Tensor]) -> "StepGraph":
        check_compiler(INSTEAD)
        if method == "step" and any(tensor.requires_grad for tensor in tensors):
            raise Untraceable(
                f"an argument requires a gradient, which a graph does not compute; detach it, or {INSTEAD}"
            )
        assert self.graphs is not None
        watched = self.graphs.watched
        watched.roots = {**watched.roots, **{f"argument {id(other)}": other for other in signature.others}}
        function = self.loss_and_grads if method == "step" else torch.no_grad()(self.loss)
        return StepGraph(self, function, signature, tensors)


class StepGraph:
    """A loss, and its gradients if there are any, in one compiled graph for arguments of one signature.

    Attributes:
        trained: parameters that get a gradient.
        untrained: other parameters of the program, which the optimiser sees, too.
        others: tensors that get a gradient and are no parameters that SVI trains, as blocked ones.
        steps: takes the optimiser's step.
    """

    def __init__(self, svi: CompiledSVI, function: Callable, signature: Signature, tensors: Sequence[Tensor]):
        self.svi, self.function, self.signature = svi, function, signature
        self.trained: list[Tensor] = []
        self.untrained: list[Tensor] = []
        self.others: list[Tensor] = []
        tensors = apart(tensors)
        self.kind, self.parts = None, 0  # of the loss: its type if it is a tuple, and how many numbers it has
        assert svi.graphs is not None
        self.watched = svi.graphs.watched
        self.recorded = record(self._outcome, tensors, self.watched)
        names = [f"part {number} of the loss" for number in range(2, self.parts + 1)]
        leaves = enumerate([*self.trained, *self.others])
        names += [pyro.get_param_store().param_name(leaf) or f"a parameter ({i})" for i, leaf in leaves]
        check_same(self.recorded, self._outcome, tensors, names, INSTEAD)
        self.check = NowAndThen(self.recorded, self._outcome, names, self.watched)
        self.is_stale = self.recorded.is_stale
        self.steps = Steps(svi.optim, self.trained, self.untrained)

    def __call__(self, tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Return the parts of the loss, and the gradients of ``trained`` and of ``others``."""
        results = self.recorded([tensor.detach() if tensor.requires_grad else tensor for tensor in tensors])
        return results[: self.parts], results[self.parts :]

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Take the optimiser's step, and add the gradients of ``others`` to theirs, as SVI does."""
        self.steps(gradients[: len(self.trained)])
        for leaf, gradient in zip(self.others, gradients[len(self.trained) :]):
            leaf.grad = gradient.clone() if leaf.grad is None else leaf.grad.add_(gradient)

    def as_loss(self, parts: Sequence[Tensor]) -> Any:
        """Return the loss as a number, or as the tuple that it is."""
        values: Any = [part.item() for part in parts]
        for value in values:
            warn_if_nan(value, "loss")
        return values[0] if self.kind is None else self.kind(values)

    def _outcome(self, *tensors: Tensor) -> list[Tensor]:
        """Do what ``SVI.step`` does before the optimiser's step."""
        args, kwargs = self.signature.rebuild(tensors)
        leaves = self._leaves()
        with own_gradients(leaves), poutine.trace(param_only=True) as captured:
            loss: Any = self.function(self.svi.model, self.svi.guide, *args, **kwargs)
            sites: Any = captured.trace.nodes.values()
            found = [site["value"].unconstrained() for site in sites]
            found = list({id(leaf): leaf for leaf in found}.values())
            self.trained = [leaf for leaf in found if leaf.grad is not None]
            self.untrained = [leaf for leaf in found if leaf.grad is None]
            known = {id(leaf) for leaf in found}
            self.others = [leaf for leaf in leaves if leaf.grad is not None and id(leaf) not in known]
            gradients: list[Any] = [leaf.grad for leaf in (*self.trained, *self.others)]
        self.kind = type(loss) if isinstance(loss, tuple) else None
        parts = tree_leaves(detach_provenance(loss))  # pyright: ignore[reportArgumentType]
        self.parts = len(parts)
        return [*(torch.as_tensor(part).detach() for part in parts), *gradients]

    def _leaves(self) -> list[Tensor]:
        """Return all tensors that may get a gradient, each once."""
        modules = [place.value for place in self.watched.places if isinstance(place.value, torch.nn.Module)]
        found = [parameter for module in modules for parameter in module.parameters()]
        found += [place.value for place in self.watched.places if isinstance(place.value, Tensor)]
        found += [leaf for _, leaf in pyro.get_param_store().named_parameters()]
        return list({id(leaf): leaf for leaf in found if leaf.requires_grad and leaf.is_leaf}.values())
