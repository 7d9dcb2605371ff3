"""The loss of any Pyro program as a compiled module."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pyro_vae.compiling.checked import NowAndThen
from pyro_vae.compiling.compiler import check_compiler, quiet_torch
from pyro_vae.compiling.followed import FollowedGraphs
from pyro_vae.compiling.joint import Recorded, check_same, record
from pyro_vae.compiling.loss import ProgramLoss, surroundings
from pyro_vae.compiling.outcomes import contents_kept
from pyro_vae.compiling.private import tensors_only
from pyro_vae.compiling.signatures import Signature, apart, interference, signature_of
from pyro_vae.compiling.trial import LARGEST
from pyro_vae.compiling.untraceable import Untraceable
from pyro_vae.random import forked_rng
from pyro_vae.tracing.leaves import leaves

INSTEAD = "call elbo.differentiable_loss instead"
MOST = 64  # graphs of a program in one state


def compiled(elbo: ELBO, model: Callable, guide: Callable, *example: Any, **options: Any) -> "CompiledLoss":
    """Return a compiled module with the parameters of the program; its call returns the loss of ``elbo``, in nats.

    A graph for arguments like these is made at once, and another one for each new shape or dtype of a tensor, and for
    each new value of another argument, such as a flag, a number or None. If ``model`` and ``guide`` are modules, or
    methods of modules, those are submodules of the result. Parameters kept elsewhere, as in Pyro's store, are
    registered beside them. Each call draws new numbers from torch's generator, as an eager call does.

    Numbers and flags of the program are followed. If one changes where nothing is watched, a comparison with the
    program after 10, 100, 1000 and then every 1000 or 5000 uses finds it: ``StaleGraph`` warns, and the loss is
    compiled anew; the second time ``Untraceable`` is raised.

    The operations of the program must not depend on the values of its tensors. Otherwise ``Untraceable``, a ValueError,
    names the line: change it, or train eagerly.

    >>> from pyro.infer import Trace_ELBO
    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program = LinearGaussian(torch.ones(3, 2))
    >>> loss = compiled(Trace_ELBO(), program.model, program.guide, program.simulate(5))
    >>> loss(program.simulate(5)).backward()
    """
    module = CompiledLoss(elbo, model, guide)
    module.graph(example, options)
    return module


class CompiledLoss(nn.Module):
    """The compiled loss of a program, made by ``compiled``."""

    def __init__(self, elbo: ELBO, model: Callable, guide: Callable):
        super().__init__()
        self.loss = ProgramLoss(elbo, model, guide)
        self.graphs = FollowedGraphs(self.loss.roots, MOST, INSTEAD)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy has: all but the graphs, which belong to the parameters of this one."""
        return {name: value for name, value in vars(self).items() if name != "graphs"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of another one, without graphs."""
        super().__setstate__(state)
        self.loss.roots |= surroundings()
        self.graphs = FollowedGraphs(self.loss.roots, MOST, INSTEAD)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss, in nats."""
        around = interference()
        if around:
            raise Untraceable(f"the loss is called within {around}, which a graph does not see; use it in the program")
        self.graphs.follow()
        signature, tensors = signature_of(args, kwargs)
        graph = self._graph_of(signature, tensors)
        found = graph.check(tensors)
        if found:
            self.graphs.doubt(found)
            graph = self._graph_of(signature, tensors)
        return graph(tensors)

    def graph(self, args: tuple, kwargs: dict[str, Any] | None = None) -> "LossGraph":
        """Return the compiled graph for such arguments; it is made if it is new."""
        return self._graph_of(*signature_of(args, kwargs or {}))

    def _graph_of(self, signature: Signature, tensors: Sequence[Tensor]) -> "LossGraph":
        key = signature.key, torch.is_grad_enabled()
        return self.graphs.get(key, lambda: self._made(signature, tensors))

    def _made(self, signature: Signature, tensors: Sequence[Tensor]) -> "LossGraph":
        check_compiler(INSTEAD)
        return LossGraph(self.loss, signature, tensors, self.graphs.watched)


class LossGraph:
    """A loss and its gradients in one compiled graph, for arguments of one signature."""

    def __init__(self, loss: ProgramLoss, signature: Signature, tensors: Sequence[Tensor], watched: Any):
        tensors = apart(tensors)
        self.kept = signature.others  # their identity is part of the key
        self.signature = signature
        kept = [*loss.parameters(), *loss.buffers(), *watched.tensors(LARGEST), *tensors]
        with forked_rng(*(t.device for t in tensors)), contents_kept(kept), quiet_torch(), tensors_only():
            found = leaves([self._eager(loss, tensors)])
        given = {id(tensor) for tensor in tensors}
        self.found = [leaf for leaf in found if id(leaf) not in given]
        registered = {id(parameter): parameter for parameter in loss.parameters()}
        self.trained = [registered[id(leaf)] if id(leaf) in registered else loss.other(leaf) for leaf in self.found]
        self.places = [
            i for i, tensor in enumerate(tensors) if tensor.requires_grad and any(tensor is f for f in found)
        ]

        def function(*tensors: Tensor) -> tuple[Tensor, ...]:
            value = self._eager(loss, tensors)
            wanted = [*self.found, *(tensors[i] for i in self.places)]
            gradients = torch.autograd.grad(value, wanted, allow_unused=True) if wanted else ()
            return value.detach(), *(g if g is not None else torch.zeros_like(p) for g, p in zip(gradients, wanted))

        self.recorded: Recorded = record(function, tensors, watched)
        self.is_stale = self.recorded.is_stale
        names = {id(parameter): name for name, parameter in loss.named_parameters()}
        names = [names.get(id(parameter), "a parameter") for parameter in self.trained]
        check_same(self.recorded, function, tensors, names, INSTEAD)
        self.check = NowAndThen(self.recorded, function, names, watched)

    def _eager(self, loss: ProgramLoss, tensors: Sequence[Tensor]) -> Tensor:
        args, kwargs = self.signature.rebuild(tensors)
        return torch.as_tensor(loss(*args, **kwargs))

    def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the loss for the tensors of a signature, with a gradient to parameters and those that require one."""
        wanted = [*self.trained, *(tensors[i] for i in self.places)]
        return _Loss.apply(self.recorded, [tensor.detach() for tensor in tensors], *wanted)


class _Loss(torch.autograd.Function):
    """Computes the gradients beside the loss, and multiplies them by the gradient that arrives."""

    @staticmethod
    def forward(ctx: Any, graph: Recorded, tensors: list[Tensor], *wanted: Tensor) -> Tensor:
        value, *gradients = graph(tensors)
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *arriving: Tensor) -> tuple:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, None, *(arriving[0] * gradient for gradient in ctx.saved_tensors)
