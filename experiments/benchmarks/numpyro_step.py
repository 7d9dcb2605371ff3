"""The step of the benchmark by numpyro and jax, which have to be installed."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.example_libraries import stax
from torch import Tensor

from experiments.benchmarks.ways import LATENT, LR, Round


def rounds(net: str) -> Round:
    """Make rounds of a jitted numpyro step: a scan over the batches."""
    inference = numpyro_svi(*stax_networks(net))

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
            zeros = jnp.zeros(batches[0].shape)
            carry.extend((inference.init(jax.random.PRNGKey(0), zeros), jax.random.PRNGKey(1)))
        start = time.perf_counter()
        carry[:], losses = scan(*carry, batches)
        losses.block_until_ready()
        return time.perf_counter() - start

    return run


def stax_networks(net: str) -> tuple[Any, Any]:
    """Return encoder and decoder of ``build``, by jax."""
    dense, relu = stax.Dense, stax.Relu
    heads = stax.FanOut(2), stax.parallel(dense(LATENT), stax.serial(dense(LATENT), stax.Exp))
    if net == "mlp":
        return stax.serial(stax.Flatten, dense(400), relu, *heads), stax.serial(dense(400), relu, dense(784))
    maps = (lambda key, shape: ((shape[0], 7, 7, 64), ())), (lambda p, h, **_: h.reshape(-1, 7, 7, 64))

    def strided(layer: Callable, channels: int) -> Any:
        return layer(channels, (4, 4), (2, 2), "SAME")

    encoder = stax.serial(strided(stax.Conv, 32), relu, strided(stax.Conv, 64), relu, stax.Flatten, *heads)
    decoder = stax.serial(
        dense(3136), relu, maps, strided(stax.ConvTranspose, 32), relu, strided(stax.ConvTranspose, 1)
    )
    return encoder, decoder


def numpyro_svi(encoder: Any, decoder: Any) -> Any:
    """Return numpyro's SVI of the same program, by Adam and Trace_ELBO."""

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

    return numpyro.infer.SVI(model, guide, numpyro.optim.Adam(LR), numpyro.infer.Trace_ELBO())
