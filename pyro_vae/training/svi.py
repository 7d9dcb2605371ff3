"""The engine that steps ``pyro.infer.SVI``: the reference for the others."""

from collections.abc import Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_vae.compiling.private import acts_before_step
from pyro_vae.observation import Arguments, from_fields
from pyro_vae.program import Program
from pyro_vae.tracing.probing import left_as_it_was
from pyro_vae.training import ranks
from pyro_vae.training.eager import as_module


class SVIEngine:
    """Takes ``pyro.infer.SVI.step`` with Pyro's own optimiser, which keeps a torch optimiser for each parameter.

    They share the state of the given optimiser. Estimators without a ``differentiable_loss`` train by this engine only;
    if their loss has several values, the engine returns the sum.

    The arguments are those of ``EagerEngine``. Raises ValueError for a parameter without a param site, because ``SVI``
    would silently not train it. Raises ValueError for several processes, for gradient clipping, and for an optimiser
    with a hook before its step or another ``step`` than its class, none of which ``SVI`` supports.
    """

    name = "svi"

    def __init__(
        self,
        program: Program,
        estimator: Any,
        optimizer: Optimizer,
        scheduler: LRScheduler | None = None,
        clip: float | None = None,
        fields: Sequence[str] = ("images",),
    ):
        others = 'write engine="eager" or "compiled"'
        if not hasattr(estimator, "differentiable_loss"):
            others = f"{type(estimator).__name__} trains by no other engine, so leave that out"
        if ranks.world_size() > 1:
            raise ValueError(f'engine: "svi" trains in one process, and here are {ranks.world_size()}; {others}')
        if clip is not None:
            raise ValueError(f'clip: engine="svi" does not clip the norm of all gradients; {others}')
        self.others = others
        self.program, self.module, self.fields = program, as_module(program), tuple(fields)
        self.scheduler, self.optimizer = scheduler, optimizer
        self.pyro_optimizer = PyroOptim(type(optimizer), {})
        self.svi = SVI(program.model, program.guide, self.pyro_optimizer, estimator)
        self.checked: set[int] = set()  # parameters known to have a param site
        self._check_optimizer()

    def __call__(self, *raw: Tensor) -> Tensor:
        """Take a step on a batch, a tensor for each field; return its loss, in nats."""
        self._check_optimizer()
        args = from_fields(self.program, self.fields, *raw)
        self._check_sites(args)
        self._share_state()
        self.optimizer.zero_grad()
        loss = self.svi.step(*args)
        self.optimizer.zero_grad()
        self.optimizer.step()  # moves nothing without gradients, and lets schedules and hooks see a step
        if self.scheduler is not None:
            self.scheduler.step()
        return torch.as_tensor(loss).sum()

    def end_epoch(self) -> None:
        """Do nothing: nothing is compiled that could be compared."""

    def _check_optimizer(self) -> None:
        """Check, at each step, that Pyro's optimisers do all that the given one does; hooks after its step are run."""
        if acts_before_step(self.optimizer):
            raise ValueError(
                'optimizer: engine="svi" would ignore a hook before its step, or a step put in the place of its own, '
                f"got {type(self.optimizer).__name__} with one of them; {self.others}"
            )

    def _share_state(self) -> None:
        """Let Pyro's optimiser of each parameter use the settings and the state of the given one."""
        own, kind = self.pyro_optimizer, type(self.optimizer)
        for group in self.optimizer.param_groups:
            settings = {name: value for name, value in group.items() if name != "params"}
            for parameter in group["params"]:
                if parameter not in own.optim_objs:
                    own.optim_objs[parameter] = kind([parameter], lr=group["lr"])  # pyright: ignore[reportCallIssue]
                    own.grad_clip[parameter] = None
                own.optim_objs[parameter].state[parameter] = self.optimizer.state[parameter]
                own.optim_objs[parameter].param_groups[0].update(settings)

    def _check_sites(self, args: Arguments) -> None:
        """Check that each trained parameter has a param site: at the first step, and when another one is unfrozen."""
        trained = {id(p) for p in self.program.parameters() if p.requires_grad}
        if trained <= self.checked:
            return
        functions = self.program.guide, self.program.model
        with left_as_it_was(*functions), torch.no_grad():
            traces = [poutine.trace(function, param_only=True).get_trace(*args) for function in functions]
            sites: list[Any] = [trace.nodes[name] for trace in traces for name in trace.param_nodes]
            self.checked |= trained & {id(site["value"].unconstrained()) for site in sites}
        if not trained <= self.checked:
            names = [name for name, p in self.module.named_parameters() if id(p) in trained - self.checked]
            raise ValueError(
                f"engine='svi': Pyro sees no param site of {names[:3]} ({len(names)} in all) and would not train them; "
                "call pyro_vae.vae.parameter_sites(self) in model and guide, or take another engine"
            )
