"""What a traced step computes, as CUDA graphs: its gradients, the whole step, or several steps at once.

The host starts a graph by one call. Several steps in a graph leave it time for the next ones: a step of small networks
takes a GPU 0.2 ms, and Python about as long to start it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    PolynomialLR,
    StepLR,
)

from pyro_vae.compiling.captured import Captured
from pyro_vae.training import ranks
from pyro_vae.training.adam import adam_step, is_plain_adam
from pyro_vae.training.eager import EagerEngine
from pyro_vae.training.gradients import StepGradients

SEVERAL = 10  # steps in a graph
LR_ONLY = {ConstantLR, CosineAnnealingLR, ExponentialLR, LambdaLR, LinearLR, MultiStepLR, PolynomialLR, StepLR}
Gradients = tuple[Tensor, list[Tensor], Tensor]  # the loss, its gradients and their norm


class Replays:
    """The CUDA graphs of an engine's steps; each is captured anew where something that it depends on changes.

    Learning rates are arguments of the graphs. All else that a schedule may change is fixed in them, so that a step
    under another schedule than those of ``LR_ONLY`` has only its gradients in a graph. A capture that fails raises
    NotCaptured, and nothing has changed then.

    Args:
        eager: the engine of eager steps, with optimiser, schedule and clipping.
    """

    def __init__(self, eager: EagerEngine):
        self.eager = eager
        self.captured: dict[str, tuple[Any, Captured]] = {}  # by what it computes, with what it depends on

    @property
    def whole(self) -> bool:
        """Whether the optimiser's step can be part of a graph.

        A learning rate in a graph is a float32, as torch's kernel wants it on a GPU; a step in float64 is not in one.
        """
        scheduler, optimizer = self.eager.scheduler, self.eager.optimizer
        known = scheduler is None or type(scheduler) in LR_ONLY
        single = all(p.dtype != torch.float64 for group in optimizer.param_groups for p in group["params"])
        return known and single and is_plain_adam(optimizer) and ranks.world_size() == 1

    def gradients(self, graph: StepGradients, raw: Sequence[Tensor]) -> Gradients:
        """Return loss, gradients and their norm; the next call overwrites all but the loss."""

        def found(*raw: Tensor) -> list[Tensor]:
            loss, gradients, norm = graph(*raw)
            return [loss, norm, *gradients]

        loss, norm, *gradients = self._replay("gradients", (graph,), found, raw, graph.buffers)(*raw)
        return loss.clone(), gradients, norm

    def step(self, graph: StepGradients, raw: Sequence[Tensor]) -> Tensor:
        """Take a step of plain Adam; return its loss. The schedule is not stepped."""
        lr = torch.full((1,), self._rate(), dtype=torch.float32, device=raw[0].device)
        replay = self._steps("step", graph, lambda lr, *raw: [(lr[0], raw)], (lr, *raw))
        return replay(lr, *raw)[0][0].clone()

    def several(self, graph: StepGradients, fields: Sequence[Tensor], index: Tensor) -> Tensor:
        """Take ``SEVERAL`` steps of plain Adam, and of the schedule; return their losses, (steps,).

        Args:
            graph: the graph of a step.
            fields: the rows of the data, a tensor on the GPU for each field.
            index: the rows of each step, (steps, rows).
        """

        def batches(lr: Tensor, index: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
            return [(rate, [field[rows] for field in fields]) for rate, rows in zip(lr, index)]

        memory = tuple(field.data_ptr() for field in fields)
        lr = torch.zeros(len(index), dtype=torch.float32, device=index.device)
        replay = self._steps("several", graph, batches, (lr, index), memory)
        rates = []
        for _ in index:
            rates.append(self._rate())
            if self.eager.scheduler is not None:
                self.eager.scheduler.step()
        lr = torch.tensor(rates, dtype=torch.float32, pin_memory=index.is_cuda).to(index.device, non_blocking=True)
        return replay(lr, index)[0].clone()

    def _rate(self) -> float:
        return float(self.eager.optimizer.param_groups[0]["lr"])

    def _steps(
        self, kind: str, graph: StepGradients, batches: Callable[..., Any], args: Sequence[Tensor], memory: tuple = ()
    ) -> Captured:
        """Return the graph that takes a step for each learning rate and batch that ``batches`` makes of arguments."""
        optimizer, clip = self.eager.optimizer, self.eager.clip
        (group,) = optimizer.param_groups
        states = [tensor for p in graph.trained for tensor in optimizer.state[p].values()]
        depends = (graph, clip, group["betas"], group["eps"], *memory, *(tensor.data_ptr() for tensor in states))

        def taken(*args: Tensor) -> list[Tensor]:
            return [torch.stack([take_step(graph, graph(*raw), optimizer, clip, lr) for lr, raw in batches(*args)])]

        return self._replay(kind, depends, taken, args, [*graph.values, *states, *graph.buffers])

    def _replay(
        self,
        kind: str,
        depends: tuple,
        function: Callable[..., list[Tensor]],
        args: Sequence[Tensor],
        changed: Sequence[Tensor],
    ) -> Captured:
        """Return the graph of a function, which is captured if it is new or depends on other things than before."""
        known = self.captured.get(kind)
        if known is None or known[0] != depends:
            self.captured.pop(kind, None)  # its memory is free for the next one
            known = self.captured[kind] = depends, Captured(function, args, changed)
        return known[1]


def take_step(
    graph: StepGradients, found: Gradients, optimizer: Optimizer, clip: float | None, lr: Tensor | None = None
) -> Tensor:
    """Take a step of plain Adam; return the loss, which is NaN if a gradient is not finite: nothing is then changed.

    Args:
        graph: what computed the gradients.
        found: the loss, its gradients and their norm, on each rank those of its own rows.
        optimizer: the optimiser.
        clip: the largest norm of all gradients together; longer ones are cut to it.
        lr: the learning rate, (); None: the optimiser's.
    """
    loss, gradients, norm = found
    if ranks.world_size() > 1:
        ranks.all_reduce([loss, *gradients])
        norm = nn.utils.get_total_norm(gradients)
    loss = loss + 0 * norm
    if clip is not None:
        share = (clip / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grads_with_norm_
        gradients = [gradient * share for gradient in gradients]
    adam_step(optimizer, graph.trained, graph.values, gradients, loss, lr)
    return loss
