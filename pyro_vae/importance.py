"""Importance weights of many particles an image, in slices, so that memory is that of a few decoded images."""

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyro_vae.compiling import Graphs, owners, traced
from pyro_vae.traces import (
    check_sites,
    common_scale,
    image_plate,
    log_weights,
    particle_trace,
    per_image,
    sample_sites,
)

FEW = 10  # slices of a batch of images up to which they are eager: a last, small batch is not worth a graph


class Weights:
    """log w = log p(x, z) − log q(z | x) of K particles an image, drawn from the guide at once, in slices.

    Args:
        model, guide: a program whose sites share a plate over images.
        nesting: its ``plate_nesting``.
        chunk: number of z decoded at once.
        graphs: what of the model is compiled.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program = LinearGaussian(torch.ones(3, 1).double())
    >>> weights = Weights(program.model, program.guide, nesting=1, chunk=10, graphs=Graphs(False, 0, "cpu"))
    >>> weights((torch.zeros(2, 3).double(),), K=50, bar=tqdm(disable=True)).shape
    torch.Size([50, 2])
    """

    def __init__(self, model: Callable, guide: Callable, nesting: int, chunk: int, graphs: Graphs):
        self.model, self.guide, self.nesting, self.chunk, self.graphs = model, guide, nesting, chunk, graphs

    def __call__(self, args: tuple[Tensor, ...], K: int, bar: tqdm) -> Tensor:
        """Of shape (K, B). Pyro validates the guide's run and the model's first, which are eager."""
        with pyro.validation_enabled(True):
            guide_trace = particle_trace(self.guide, args, K, self.nesting)
        step, log_w, graph = max(1, self.chunk // len(args[0])), [], None
        for start in range(0, K, step):
            part = _slice(guide_trace, start, min(start + step, K))
            if graph is None or start + step > K:
                with pyro.validation_enabled(start == 0):
                    replayed = poutine.replay(self.model, trace=part)
                    model_trace = particle_trace(replayed, args, min(step, K - start), self.nesting)
                check_sites(model_trace, part)
                log_w.append(log_weights(model_trace, part, len(args[0])))
                graph = self._graph(model_trace, part, args) if start == 0 and self._worth(K // step) else graph
            else:
                log_w.append(graph(part))
            bar.update(log_w[-1].numel())
        return torch.cat(log_w)

    def _worth(self, slices: int) -> bool:
        return slices >= FEW or self.graphs.strict

    def _graph(
        self, model_trace: poutine.Trace, guide_trace: poutine.Trace, args: tuple[Tensor, ...]
    ) -> Callable[[poutine.Trace], Tensor] | None:
        """From a slice of the guide's trace, like this one, to its log weights; None where they are to be eager."""
        names = list(sample_sites(model_trace, observed=False))
        plate = image_plate(model_trace, guide_trace, len(args[0]))
        scale = common_scale(model_trace, guide_trace)

        def values(part: poutine.Trace) -> tuple[Tensor, ...]:
            return tuple(part.nodes[name]["value"] for name in names)

        example = (*values(guide_trace), *args)
        joint = self.graphs.get(lambda: traced(Joint(self.model, names, plate, self.nesting), example), example)

        def weights(part: poutine.Trace) -> Tensor:
            log_q = sum(per_image(site, plate) for site in sample_sites(part).values())
            return (joint(*values(part), *args) - log_q) / scale

        return None if joint is None else weights


class Joint(nn.Module):
    """log p(x, z) of shape (K, B) from values of the latent sites ``names``, each (K, B, ...), and the program's
    arguments.
    """

    def __init__(self, model: Callable, names: Sequence[str], plate: Any, nesting: int):
        super().__init__()
        self.names, self.plate, self.nesting, self.model = tuple(names), plate, nesting, (model,)
        self.owners = nn.ModuleList(owners(model))

    def forward(self, *tensors: Tensor) -> Tensor:
        values, args = dict(zip(self.names, tensors)), tensors[len(self.names) :]
        conditioned = poutine.condition(*self.model, data=values)
        trace = particle_trace(conditioned, args, len(tensors[0]), self.nesting)
        return sum(per_image(site, self.plate) for site in sample_sites(trace).values())


def _slice(trace: poutine.Trace, start: int, stop: int) -> poutine.Trace:
    """The trace of particles start … stop − 1 alone; their dimension is the first of every sample site."""
    part = trace.copy()
    for name, site in sample_sites(trace).items():
        part.nodes[name] = {**site, "value": site["value"][start:stop], "log_prob": site["log_prob"][start:stop]}
    return part
