"""Importance weights of many particles a row, in slices, so that memory is that of a few decoded images."""

from collections.abc import Callable, Sequence

import pyro
import torch
from pyro import poutine
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyro_vae.compiling.export import Graphs, owners, traced
from pyro_vae.evidence.arguments import Arguments
from pyro_vae.evidence.plan import Plan
from pyro_vae.tracing.traces import (
    check_sites,
    common_scale,
    particle_trace,
    per_image,
    proposal_sites,
    sample_sites,
    sliced,
)

FEW = 10  # slices of a batch of images up to which they are eager: a last, small batch is not worth a graph


class Weights:
    """log w = log p(x, z) − log q(z | x) of K particles a row, drawn from the guide at once, in slices.

    Args:
        model, guide: a program.
        plan: how it is measured.
        chunk: number of z decoded at once.
        graphs: what of the model is compiled.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program, given = LinearGaussian(torch.ones(3, 1).double()), Arguments.of((torch.zeros(2, 3).double(),))
    >>> plan = Plan.of(program.model, program.guide, given, asked=None, most=10)
    >>> weights = Weights(program.model, program.guide, plan, chunk=10, graphs=Graphs(False, 0, "cpu"))
    >>> weights(given, K=50, bar=tqdm(disable=True)).shape
    torch.Size([50, 2])
    """

    def __init__(self, model: Callable, guide: Callable, plan: Plan, chunk: int, graphs: Graphs):
        self.model, self.guide, self.plan, self.chunk, self.graphs = model, guide, plan, chunk, graphs

    def __call__(self, batch: Arguments, K: int, bar: tqdm) -> Tensor:
        """Of shape (K, B). Pyro validates the guide's run and the model's first, which are eager."""
        with pyro.validation_enabled(True):
            guide_trace = self.plan.trace(self.guide, batch, K)
        step, log_w, graph, plate = max(1, self.chunk // (batch.rows or 1)), [], None, None
        for start in range(0, K, step):
            part = sliced(guide_trace, start, min(start + step, K))
            if graph is None or start + step > K:
                with pyro.validation_enabled(start == 0):
                    model_trace = self.plan.trace(self.model, batch, min(step, K - start), replayed=part)
                check_sites(model_trace, part)
                if start == 0:
                    plate = self.plan.plate(self.model, self.guide, batch, (model_trace, part))
                    scale = common_scale(model_trace, part, plate=plate)
                    graph = self._graph(model_trace, part, batch, plate) if self._worth(K // step) else None
                log_p = log_joint(model_trace, plate)
            else:
                log_p = graph(part)
            log_q = sum(per_image(site, plate) for site in proposal_sites(part).values())
            log_w.append((log_p - log_q) / scale)
            bar.update(log_w[-1].numel())
        return torch.cat(log_w)

    def _worth(self, slices: int) -> bool:
        return slices >= FEW or self.graphs.strict

    def _graph(
        self, model_trace: poutine.Trace, part: poutine.Trace, batch: Arguments, plate: CondIndepStackFrame | None
    ) -> Callable[[poutine.Trace], Tensor] | None:
        """From a slice of the guide's trace, like this one, to log p(x, z); None where that is to be eager."""
        names = list(sample_sites(model_trace, observed=False))

        def tensors(part: poutine.Trace) -> tuple[Tensor, ...]:
            return (*(part.nodes[name]["value"] for name in names), *batch.tensors)

        joint, example = Joint(self.model, names, plate, self.plan.layout.nesting, batch), tensors(part)
        graph = self.graphs.get(lambda: traced(joint, example), example)
        return None if graph is None else lambda part: graph(*tensors(part))


class Joint(nn.Module):
    """log p(x, z) of shape (K, B) from values of the latent sites ``names``, each (K, B, ...), and the tensors among
    the program's arguments.
    """

    def __init__(
        self, model: Callable, names: Sequence[str], plate: CondIndepStackFrame | None, nesting: int, batch: Arguments
    ):
        super().__init__()
        self.names, self.plate, self.nesting, self.batch, self.model = tuple(names), plate, nesting, batch, (model,)
        self.owners = nn.ModuleList(owners(model))

    def forward(self, *tensors: Tensor) -> Tensor:
        values, batch = dict(zip(self.names, tensors)), self.batch.with_tensors(tensors[len(self.names) :])
        conditioned = poutine.condition(*self.model, data=values)
        trace = particle_trace(conditioned, batch.args, len(tensors[0]), self.nesting, kwargs=batch.kwargs)
        return log_joint(trace, self.plate)


def log_joint(model_trace: poutine.Trace, plate: CondIndepStackFrame | None) -> Tensor:
    """log p(x, z) of each particle and row, (K, B); without a plate over rows of all together, (K, 1)."""
    return sum(per_image(site, plate) for site in sample_sites(model_trace).values())
