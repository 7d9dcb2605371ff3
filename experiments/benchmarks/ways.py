"""Ways to write a training step of the same VAE: the engines of this library, Pyro's SVI, torch by hand, numpyro."""

import time
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.nn import functional as F
from tqdm import tqdm

from pyro_vae import VAE, fit, guides, likelihoods, networks, priors
from pyro_vae.compiling.convolutions import Conv2d, ConvTranspose2d
from pyro_vae.config import PartSettings, build_vae
from pyro_vae.data import Data, Split
from pyro_vae.networks import lowered_precision
from pyro_vae.training.engines import Compiled, Eager, fast_matmul

LATENT, LR = 20, 1e-3
NAMES = {"mlp": "MLP", "conv": "conv 32-64", "default": "network of run.py"}
Round = Callable[[Tensor], float]  # from batches (steps, B, C, H, W) of pixels to the seconds that they took


def build(net: str, shape: tuple[int, int, int] = (1, 28, 28), latent: int = LATENT) -> VAE:
    """Return a VAE with the networks of pytorch/examples: 784-400-z, or 4 × 4 convolutions to 32 and 64 maps."""
    torch.manual_seed(0)
    if net == "default":
        return build_vae(PartSettings(), torch.zeros(1, *shape, dtype=torch.uint8))
    encoder, decoder = {
        "mlp": (networks.MLPEncoder, networks.MLPDecoder),
        "conv": (networks.ConvEncoder, networks.ConvDecoder),
    }[net]
    return VAE(
        priors.StandardNormal(latent),
        likelihoods.Bernoulli(decoder(latent, shape, maps=1)),
        guides.MeanField(encoder(shape), latent),
    )


class ByHand(nn.Module):
    """The same loss without Pyro, by torch's own layers: x ~ Bernoulli(g / 255), the KL in closed form."""

    def __init__(self, vae: VAE):
        super().__init__()
        self.encoder = nn.Sequential(vae.posterior.network.layers, vae.posterior.head)
        self.decoder = vae.likelihood.network.layers
        for layer in self.modules():
            layer.__class__ = {Conv2d: nn.Conv2d, ConvTranspose2d: nn.ConvTranspose2d}.get(type(layer), type(layer))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the loss of a batch of pixels, summed over the images."""
        grey = pixels / 255
        x = (torch.rand_like(grey) < grey).float()
        loc, log_scale = self.encoder(x).chunk(2, -1)
        z = loc + log_scale.exp() * torch.randn_like(loc)
        kl = 0.5 * (loc.square() + (2 * log_scale).exp() - 1 - 2 * log_scale).sum()
        return F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum") + kl


def stacked(images: Data, batch: int, number: int) -> Tensor:
    """Return the first training images, about so many and at least two batches, as batches (steps, B, C, H, W)."""
    steps = max(2, number // batch)
    return images.train.images[: steps * batch].unflatten(0, (steps, batch))


Key = TypeVar("Key")


def in_turns(ways: Mapping[Key, Callable[[], float]], rounds: int, about: str) -> dict[Key, list[float]]:
    """Return what each function gives in every round, one after the other; the first round does not count.

    >>> in_turns({"a": lambda: 1.0, "b": lambda: 2.0}, rounds=2, about="two functions")
    {'a': [1.0, 1.0], 'b': [2.0, 2.0]}
    """
    found: dict[Key, list[float]] = {name: [] for name in ways}
    for number in tqdm(range(rounds + 1), desc=about):
        for name, way in ways.items():
            value = way()
            found[name] += [value] if number > 0 else []
    return found


def adam(module: nn.Module) -> torch.optim.Adam:
    """Return torch's fused Adam on all parameters."""
    return torch.optim.Adam(module.parameters(), lr=LR, fused=True)


def timed(step: Callable[[Tensor], Any], precision: torch.dtype | None = None, vae: VAE | None = None) -> Round:
    """Make rounds of a step that returns its loss, with the settings that ``fit`` would make."""

    def run(pixels: Tensor) -> float:
        start = time.perf_counter()
        with lowered_precision(vae or nn.Identity(), precision):
            for batch in pixels:
                float(step(batch))
        return time.perf_counter() - start

    return run


def fit_way(net: str) -> Round:
    """Make rounds of ``fit`` with its data path."""
    vae = build(net)

    def run(pixels: Tensor) -> float:
        images = pixels.flatten(0, 1)
        few = Data("few", *(Split(images[:n], None) for n in (len(images), 100, 100)))
        return fit(vae, few, epochs=1, batch_size=pixels.shape[1], engine="eager", progress=False).rows[0]["seconds"]

    return run


def svi(net: str) -> Round:
    """Make rounds of Pyro's SVI."""
    vae = build(net)
    inference = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": LR}), Trace_ELBO())
    return timed(lambda pixels: inference.step(vae.observe(pixels)))


def engine(kind: type, precision: torch.dtype | None = None) -> Callable[[str], Round]:
    """Return the way of an engine in a precision."""

    def make(net: str) -> Round:
        vae = build(net)
        return with_fast_matmul(timed(kind(vae, Trace_ELBO(), adam(vae)), precision, vae))

    return make


def with_fast_matmul(run: Round) -> Round:
    """Make the same rounds with the float32 matmul of ``fit``."""

    def fast(pixels: Tensor) -> float:
        with fast_matmul("cpu"):
            return run(pixels)

    return fast


def by_hand(way: Callable[[nn.Module], Callable[[Tensor], Tensor]]) -> Callable[[str], Round]:
    """Return the way of the step by hand, its loss compiled or not by ``way``."""
    return lambda net: timed(step_by_hand(ByHand(build(net)), way))


def step_by_hand(module: nn.Module, way: Callable = lambda module: module) -> Callable[[Tensor], Tensor]:
    """Return a step by torch alone: loss, backward and Adam."""
    optimizer, loss_of = adam(module), way(module)

    def step(pixels: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(pixels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def by_hand_whole(net: str) -> Round:
    """Make rounds of the whole step by hand in one compiled graph."""
    return with_fast_matmul(timed(whole_step_by_hand(ByHand(build(net)))))


def whole_step_by_hand(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a compiled step by torch alone, Adam written out."""
    names = [name for name, _ in module.named_parameters()]
    values = [parameter.detach() for parameter in module.parameters()]
    means, squares = ([torch.zeros_like(value) for value in values] for _ in range(2))
    count = torch.zeros(())

    def loss_of(values: list[Tensor], pixels: Tensor) -> Tensor:
        return functional_call(module, dict(zip(names, values)), (pixels,))

    @torch.compile(fullgraph=True, dynamic=False, options={"fallback_random": True})
    def step(values, means, squares, count, pixels):
        gradients, loss = grad_and_value(loss_of)(values, pixels)
        count.add_(1)
        size, root = LR / (1 - 0.9**count), (1 - 0.999**count).sqrt()
        for p, m, v, g in zip(values, means, squares, gradients):
            m.lerp_(g, 0.1)
            v.mul_(0.999).addcmul_(g, g, value=0.001)
            p.sub_(size * m / (v.sqrt() / root + 1e-8))
        return loss

    return lambda pixels: step(values, means, squares, count, pixels)


def numpyro_way(net: str) -> Round:
    """Make rounds of a jitted numpyro step; numpyro and jax are imported only here, as they are optional."""
    return import_module("experiments.benchmarks.numpyro_step").rounds(net)


WAYS: dict[str, Callable[[str], Round]] = {
    "fit": fit_way,
    "svi": svi,
    "eager": engine(Eager),
    "compiled": engine(Compiled),
    "compiled bfloat16": engine(Compiled, torch.bfloat16),
    "torch eager": by_hand(lambda module: module),
    "torch compiled": by_hand(lambda module: torch.compile(module, fullgraph=True, dynamic=False)),
    "torch whole step": by_hand_whole,
    **({"numpyro": numpyro_way} if find_spec("numpyro") and find_spec("jax") else {}),
}
