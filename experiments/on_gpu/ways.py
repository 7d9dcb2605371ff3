"""Ways to write a training step on a GPU: the data are on the device, and a batch is drawn there."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor, nn

from experiments.benchmarks.ways import LR, ByHand, build
from experiments.on_gpu.graphed import GraphedSteps
from pyro_vae.hardware import exact_convolutions
from pyro_vae.networks import lowered_precision
from pyro_vae.training.engines import CapturedEngine, CompiledEngine, EagerEngine

IN_A_GRAPH = 20  # steps of a replay
Steps = Callable[[int], Tensor]  # from a number of steps, which it takes, to a loss on the device


@dataclass(frozen=True)
class Case:
    """A network, the images that it is trained on, on their device, and the size of a batch."""

    net: str
    images: Tensor
    batch: int

    def vae(self) -> Any:
        """Return the VAE, on the device."""
        c, h, w = self.images.shape[1:]
        return build(self.net, (c, h, w)).to(self.images.device)

    def drawn(self) -> Tensor:
        """Return a batch of pixels, drawn on the device with replacement."""
        return self.images[torch.randint(len(self.images), (self.batch,), device=self.images.device)]


def adam(module: nn.Module, graphed: bool = False) -> torch.optim.Adam:
    """Return torch's fused Adam, for a CUDA graph if ``graphed``."""
    capturable = graphed and next(module.parameters()).is_cuda
    return torch.optim.Adam(module.parameters(), lr=LR, fused=True, capturable=capturable)


def repeated(step: Callable[[], Any]) -> Steps:
    """Return the way that calls a step again and again."""

    def take(count: int) -> Tensor:
        loss = None
        for _ in range(count):
            loss = step()
        return torch.as_tensor(loss)

    return take


def graphed(step: Callable[[], Tensor], device: torch.device) -> Steps:
    """Return the way that replays a CUDA graph of ``IN_A_GRAPH`` steps; a last replay is whole."""
    steps = GraphedSteps(step, IN_A_GRAPH, device)
    return lambda count: [steps() for _ in range(-(-count // IN_A_GRAPH))][-1][-1]


def svi(case: Case) -> Steps:
    """Return the way of Pyro's SVI with its own optimiser."""
    vae = case.vae()
    inference = SVI(vae.model, vae.guide, Adam({"lr": LR}), Trace_ELBO())
    return repeated(lambda: inference.step(vae.observe(case.drawn())))


def engine(
    kind: type, precision: torch.dtype | None = None, tf32: bool = False, channels_last: bool = False
) -> Callable[[Case], Steps]:
    """Return the way of an engine of ``fit``."""

    def make(case: Case) -> Steps:
        vae = case.vae()
        vae = vae.to(memory_format=torch.channels_last) if channels_last else vae
        step = kind(vae, Trace_ELBO(), adam(vae))
        take = within(lambda: products(tf32), repeated(lambda: step(case.drawn())))
        return within(lambda: lowered_precision(vae, precision), take)

    return make


def by_hand(
    in_graph: bool = False,
    compiled: bool = False,
    precision: torch.dtype | None = None,
    channels_last: bool = False,
    tf32: bool = False,
) -> Callable[[Case], Steps]:
    """Return the way of the step by torch alone, eager or as a CUDA graph, its loss compiled or not."""

    def make(case: Case) -> Steps:
        module, device = ByHand(case.vae()), case.images.device
        module = module.to(memory_format=torch.channels_last) if channels_last else module
        optimizer = adam(module, in_graph)
        loss_of = torch.compile(module, fullgraph=True, dynamic=False) if compiled else module

        def step() -> Tensor:
            optimizer.zero_grad()
            # A cache of casts would outlive the capture of a graph.
            with torch.autocast(device.type, torch.bfloat16, enabled=precision is not None, cache_enabled=False):
                loss = loss_of(case.drawn())
            loss.backward()
            optimizer.step()
            return loss.detach()

        with products(tf32):
            taken = graphed(step, device) if in_graph else repeated(step)
        return within(lambda: products(tf32), taken)

    return make


def numpyro_way(case: Case) -> Steps:
    """Return the way of one jitted scan of numpyro over the steps; imported only here, as jax is optional."""
    if case.images.shape[1:] != (1, 28, 28):
        raise ValueError("numpyro: its networks are written for 28 × 28 pixels")
    run = import_module("experiments.benchmarks.numpyro_step").rounds(case.net)
    pixels = torch.stack([case.drawn() for _ in range(IN_A_GRAPH)]).cpu()

    def take(count: int) -> Tensor:
        seconds = sum(run(pixels) for _ in range(-(-count // IN_A_GRAPH)))
        return torch.tensor(seconds)

    return take


@contextmanager
def products(tf32: bool) -> Iterator[None]:
    """Context manager in which matrix products and convolutions on a GPU round their factors to TF32, or do not."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        with nullcontext() if tf32 else exact_convolutions():  # torch rounds them to TF32 by default
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def within(context: Callable[[], Any], take: Steps) -> Steps:
    """Return a way whose steps are taken in a context manager."""

    def inside(count: int) -> Tensor:
        with ExitStack() as stack:
            stack.enter_context(context())
            return take(count)

    return inside


BF16 = torch.bfloat16
WAYS: dict[str, Callable[[Case], Steps]] = {  # in the order of their worth: the time may end before the last
    "svi": svi,
    "captured": engine(CapturedEngine),
    "compiled": engine(CompiledEngine),
    "torch graph": by_hand(in_graph=True),
    "torch graph, compiled": by_hand(in_graph=True, compiled=True),
    "captured, TF32": engine(CapturedEngine, tf32=True),
    "compiled, TF32": engine(CompiledEngine, tf32=True),
    "torch graph, compiled, TF32": by_hand(in_graph=True, compiled=True, tf32=True),
    "captured, bfloat16": engine(CapturedEngine, BF16),
    "compiled, bfloat16": engine(CompiledEngine, BF16),
    "torch graph, compiled, bfloat16": by_hand(in_graph=True, compiled=True, precision=BF16),
    "eager": engine(EagerEngine),
    "torch eager": by_hand(),
    **({"numpyro": numpyro_way} if find_spec("numpyro") and find_spec("jax") else {}),
    "torch compiled": by_hand(compiled=True),
    "compiled, channels last, bfloat16": engine(CompiledEngine, BF16, channels_last=True),
}
COMPILING = {name for name in WAYS if "compiled" in name or name == "numpyro"}
