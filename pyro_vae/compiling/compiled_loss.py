"""The loss of any Pyro program as a compiled module."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from pyro_vae.compiling.compiler import OPTIONS, missing_compiler, quiet_torch
from pyro_vae.compiling.constants import Changes, Patience, WatchedConstants, in_words
from pyro_vae.compiling.export import traced
from pyro_vae.compiling.loss import ProgramLoss
from pyro_vae.compiling.outcomes import difference, lowest_precision, outcome
from pyro_vae.compiling.private import tensors_only
from pyro_vae.compiling.untraceable import IN_PLACE, NOT_THE_SAME, Untraceable

INSTEAD = "call elbo.differentiable_loss instead"


def compiled(elbo: ELBO, model: Callable, guide: Callable, *example: Tensor) -> "CompiledLoss":
    """Return a compiled module with the parameters of the program; its call returns the loss of ``elbo``, in nats.

    A graph for arguments like ``example`` is made at once, and another one for each new shape or dtype. If ``model``
    and ``guide`` are modules, or methods of modules, those are submodules of the result. Parameters kept elsewhere, as
    in Pyro's store, are registered beside them. Each call draws new numbers from torch's generator, as an eager call
    does.

    The operations of the program must not depend on the values of its tensors. Otherwise ``Untraceable``, a ValueError,
    names the line: change it, or train eagerly.

    >>> from pyro.infer import Trace_ELBO
    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program = LinearGaussian(torch.ones(3, 2))
    >>> loss = compiled(Trace_ELBO(), program.model, program.guide, program.simulate(5))
    >>> loss(program.simulate(5)).backward()
    """
    module = CompiledLoss(elbo, model, guide)
    module.graph(example)
    return module


@dataclass
class TracedState:
    """The numbers and flags of a program, by name, and the graphs traced while it held them."""

    values: dict[str, Any]
    graphs: dict[tuple, Callable[..., Tensor]] = field(default_factory=dict)


class CompiledLoss(nn.Module):
    """The compiled loss of a program, made by ``compiled``."""

    def __init__(self, elbo: ELBO, model: Callable, guide: Callable):
        super().__init__()
        self.loss = ProgramLoss(elbo, model, guide)
        self.watched, self.patience = WatchedConstants(self.loss.roots), Patience()
        self.state = TracedState(self.watched.values)
        self.states = [self.state]

    def forward(self, *args: Tensor) -> Tensor:
        """Return the loss, in nats."""
        changes = self.watched.changes()
        if changes:
            self._follow(changes)
        else:
            self.patience.used()
        return self.graph(args)(*args)

    def graph(self, args: tuple[Tensor, ...]) -> Callable[..., Tensor]:
        """Return the compiled graph for arguments of these shapes; it is made if it is new."""
        key = tuple((arg.shape, arg.dtype, arg.device) for arg in args)
        if key not in self.state.graphs:
            missing = missing_compiler()
            if missing:
                raise Untraceable(f"nothing can be compiled here: {missing}; {INSTEAD}")
            self.state.graphs[key] = self._compiled(args)
            self.state.values = self.watched.values
        return self.state.graphs[key]

    def _follow(self, changes: Changes) -> None:
        """Switch to the graphs for the program's present values; it may have had them before, as for a mode."""
        known = [state for state in self.states if not self.watched.since(state.values)]
        if not known and self.patience.ends():
            raise Untraceable(
                f"{in_words(changes)}: it changes from call to call, and would have to be traced anew each "
                f"time; {IN_PLACE}, or {INSTEAD}"
            )
        if not known:
            self.states.append(TracedState(self.watched.values))
        self.state = known[0] if known else self.states[-1]

    def _compiled(self, args: tuple[Tensor, ...]) -> Callable[..., Tensor]:
        module = traced(self.loss, args, self.watched)
        graph = torch.compile(module, fullgraph=True, dynamic=False, options=OPTIONS)
        trained = {name: p for name, p in self.named_parameters() if p.requires_grad}
        leaves, buffers = {name: self.loss.leaf(p) for name, p in trained.items()}, dict(self.named_buffers())
        with quiet_torch(), tensors_only():
            found = difference(
                self,
                lowest_precision(module),
                args[0].numel(),
                lambda: outcome(self.loss, args, leaves, buffers),
                lambda: outcome(graph, args, trained, buffers),
            )
        if found:
            raise Untraceable(f"{NOT_THE_SAME.format(found)}; {INSTEAD}")
        return graph
