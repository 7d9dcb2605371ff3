"""Ways to write a training step of the same VAE: the engines of this library, Pyro's SVI, torch by hand, numpyro."""

import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.nn import functional as F

from pyro_vae import VAE, fit, guides, likelihoods, networks, priors
from pyro_vae.compiling.convolutions import Conv2d, ConvTranspose2d
from pyro_vae.config import PartSettings, build_vae
from pyro_vae.data.sets import Data, Split
from pyro_vae.networks import lowered_precision
from pyro_vae.training.engines import Compiled, Eager, fast_matmul

LATENT, LR = 20, 1e-3
Round = Callable[[Tensor], float]  # from batches (steps, B, C, H, W) of pixels to the seconds that they took


def build(net: str, shape: tuple[int, int, int] = (1, 28, 28), latent: int = LATENT) -> VAE:
    """The networks of pytorch/examples and the like: 784-400-z, or 4 × 4 convolutions to 32 and 64 maps."""
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
        grey = pixels / 255
        x = (torch.rand_like(grey) < grey).float()
        loc, log_scale = self.encoder(x).chunk(2, -1)
        z = loc + log_scale.exp() * torch.randn_like(loc)
        kl = 0.5 * (loc.square() + (2 * log_scale).exp() - 1 - 2 * log_scale).sum()
        return F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum") + kl


def adam(module: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(module.parameters(), lr=LR, fused=True)


def timed(step: Callable[[Tensor], Any], precision: torch.dtype | None = None, vae: VAE | None = None) -> Round:
    """Rounds of a step that returns its loss, under the settings that fit would make."""

    def run(pixels: Tensor) -> float:
        start = time.perf_counter()
        with lowered_precision(vae or nn.Identity(), precision):
            for batch in pixels:
                float(step(batch))
        return time.perf_counter() - start

    return run


def fit_way(net: str) -> Round:
    vae = build(net)

    def run(pixels: Tensor) -> float:
        images = pixels.flatten(0, 1)
        few = Data("few", *(Split(images[:n], None) for n in (len(images), 100, 100)))
        return fit(vae, few, epochs=1, batch_size=pixels.shape[1], engine="eager", progress=False).rows[0]["seconds"]

    return run


def svi(net: str) -> Round:
    vae = build(net)
    inference = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": LR}), Trace_ELBO())
    return timed(lambda pixels: inference.step(vae.observe(pixels)))


def engine(kind: type, precision: torch.dtype | None = None) -> Callable[[str], Round]:
    def make(net: str) -> Round:
        vae = build(net)
        return with_fast_matmul(timed(kind(vae, Trace_ELBO(), adam(vae)), precision, vae))

    return make


def with_fast_matmul(run: Round) -> Round:
    def fast(pixels: Tensor) -> float:
        with fast_matmul("cpu"):
            return run(pixels)

    return fast


def by_hand(way: Callable[[nn.Module], Callable[[Tensor], Tensor]]) -> Callable[[str], Round]:
    return lambda net: timed(step_by_hand(ByHand(build(net)), way))


def step_by_hand(module: nn.Module, way: Callable = lambda module: module) -> Callable[[Tensor], Tensor]:
    optimizer, loss_of = adam(module), way(module)

    def step(pixels: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(pixels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def by_hand_whole(net: str) -> Round:
    return with_fast_matmul(timed(whole_step_by_hand(ByHand(build(net)))))


def whole_step_by_hand(module: nn.Module) -> Callable[[Tensor], Tensor]:
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
    import jax  # an optional dependency: without it the way is not offered
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from jax.example_libraries import stax

    dense, relu = stax.Dense, stax.Relu
    heads = stax.FanOut(2), stax.parallel(dense(LATENT), stax.serial(dense(LATENT), stax.Exp))
    if net == "mlp":
        encoder = stax.serial(stax.Flatten, dense(400), relu, *heads)
        decoder = stax.serial(dense(400), relu, dense(784))
    else:
        maps = (lambda key, shape: ((shape[0], 7, 7, 64), ())), (lambda p, h, **_: h.reshape(-1, 7, 7, 64))

        def strided(layer: Callable, channels: int) -> Any:
            return layer(channels, (4, 4), (2, 2), "SAME")

        encoder = stax.serial(strided(stax.Conv, 32), relu, strided(stax.Conv, 64), relu, stax.Flatten, *heads)
        decoder = stax.serial(
            dense(3136), relu, maps, strided(stax.ConvTranspose, 32), relu, strided(stax.ConvTranspose, 1)
        )

    def model(x):
        decode = numpyro.module("decoder", decoder, (len(x), LATENT))
        with numpyro.plate("images", len(x)):
            z = numpyro.sample("z", dist.Normal(0, 1).expand([LATENT]).to_event(1))
            logits = decode(z).reshape(len(x), 784)
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x.reshape(len(x), 784))

    def guide(x):
        loc, scale = numpyro.module("encoder", encoder, (len(x), 28, 28, 1))(x)
        with numpyro.plate("images", len(x)):
            numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

    inference = numpyro.infer.SVI(model, guide, numpyro.optim.Adam(LR), numpyro.infer.Trace_ELBO())

    @jax.jit
    def scan(state, key, pixels):
        def body(carry, batch):
            state, key = carry
            key, draw = jax.random.split(key)
            x = (jax.random.uniform(draw, batch.shape) * 255 < batch).astype("float32")
            state, loss = inference.update(state, x)
            return (state, key), loss

        return jax.lax.scan(body, (state, key), pixels)

    carry: list[Any] = []

    def run(pixels: Tensor) -> float:
        batches = jnp.asarray(pixels.numpy()).transpose(0, 1, 3, 4, 2)
        if not carry:
            carry.extend((inference.init(jax.random.PRNGKey(0), jnp.zeros(batches[0].shape)), jax.random.PRNGKey(1)))
        start = time.perf_counter()
        carry[:], losses = scan(*carry, batches)
        losses.block_until_ready()
        return time.perf_counter() - start

    return run


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
