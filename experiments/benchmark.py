#!/usr/bin/env python
"""How fast is a training step, against other ways to write the same VAE, and what does it cost as things grow?

    python experiments/benchmark.py                    # the MLP 784-400-20 and the conv 32-64 net, batch 128 and 512
    python experiments/benchmark.py --nets mlp --batches 128 --rounds 5 --only compiled "torch whole step"
    python experiments/benchmark.py --nets default --batches 256 --only fit "torch eager"
    python experiments/benchmark.py --scaling          # cost against images, particles, latent size and image side
    python experiments/benchmark.py --parts            # cost of other priors and guides, conv net, z of 32, batch 256
    python experiments/benchmark.py --quality          # seconds until log p(x) of test images is as published

Every way sees the same images in memory, in turns: each round takes some steps of each, one after the other, so that a
busy machine is busy for all. The images a second of one machine say little; the ratios of a round do.

    fit               with its data path, engine="eager"; the others find their batches ready
    svi               pyro.infer.SVI with pyro.optim.Adam, as Pyro's tutorials have it
    eager, compiled   the engines of fit, in float32 and with the networks in bfloat16
    torch eager       the same step by hand: closed-form KL, fused Adam
    torch compiled    the same under torch.compile, backward() and fused Adam
    torch whole step  the same with gradient and Adam in one compiled graph, float32 matmul as fit sets it
    numpyro           where numpyro and jax are installed: one jitted step, a scan over the steps of a round
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pyro
import quality
import torch
from matplotlib.figure import Figure
from pyro.infer import SVI, Trace_ELBO
from results import provenance, save_figure, write_json
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from pyro_vae import VAE, data, evaluate, fit, guides, likelihoods, load, networks, priors
from pyro_vae.convolutions import Conv2d, ConvTranspose2d
from pyro_vae.data import Data, Split
from pyro_vae.engines import Compiled, Eager, fast_matmul, keep_freed_memory
from pyro_vae.networks import lowered_precision
from pyro_vae.parts import PartSettings, build_vae
from pyro_vae.training import fixed_x

LATENT, LR = 20, 1e-3
Round = Callable[[Tensor], float]  # from batches (steps, B, C, H, W) of pixels to the seconds that they took


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", choices=("mlp", "conv", "default"), default=["mlp", "conv"],
                        help="default: that of run.py")
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 512], metavar="SIZE")
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY",
                        help="of: " + ", ".join(WAYS))
    parser.add_argument("--images", type=int, default=5120, help="that each way sees in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scaling", action="store_true", help="measure cost against sizes instead")
    parser.add_argument("--parts", action="store_true", help="measure the cost of other priors and guides instead")
    parser.add_argument("--quality", action="store_true",
                        help="train run.py's recipe fast from a cold start instead, and measure log p(x)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of --quality")
    parser.add_argument("--evidence", type=int, default=5000, metavar="K",
                        help="particles of --quality, on all test images")
    parser.add_argument("--dataset", choices=("auto", *data.NAMES), default="auto")
    parser.add_argument("--data-dir", type=Path, default=None, help="folder in which the data lie")
    parser.add_argument("--out", type=Path, default=None,
                        help="the results, .json and .png (default: figures/benchmark, _scaling, _parts or "
                             "_quality, where the single runs are kept in a folder of that name, and not run again)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    try:
        return measure(parse_arguments(argv))
    except (ValueError, data.DataError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def measure(args: argparse.Namespace) -> int:
    keep_freed_memory()  # as fit does
    images = load(args.dataset, root=args.data_dir)
    if tuple(images.shape) != (1, 28, 28):
        raise ValueError(f"the nets are for images of 1 × 28 × 28, as of MNIST, not for {images.name}")
    kind = "_scaling" * args.scaling or "_parts" * args.parts or "_quality" * args.quality
    args.out = args.out or Path(f"figures/benchmark{kind}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"settings": vars(args), "dataset": images.name, "versions": provenance(),
                              "threads": torch.get_num_threads(), "peak": peak()}
    with pyro.validation_enabled(False):
        if args.scaling:
            result["scaling"] = scaling(args.rounds)
            figure, text = scaling_figure(result["scaling"]), scaling_table(result["scaling"])
        elif args.parts:
            result["parts"] = [cost_of_parts(images, engine, args.rounds) for engine in (Eager, Compiled)]
            figure, text = parts_figure(result["parts"]), parts_table(result["parts"])
        elif args.quality:
            where = ["--dataset", images.name, *(["--data-dir", str(args.data_dir)] if args.data_dir else [])]
            result["quality"] = [quality.trained(seed, args.evidence, args.out / f"seed{seed}", where)
                                 for seed in args.seeds]
            figure, text = quality.figure(result["quality"]), quality.table(result["quality"])
        else:
            result["speed"] = [compare(images, net, batch, args) for net in args.nets for batch in args.batches]
            result["evaluation"] = [evaluation(images, net, args.rounds) for net in args.nets]
            figure, text = speed_figure(result["speed"]), speed_table(result)
    print(text)
    write_json(args.out.with_suffix(".json"), result)
    save_figure(args.out.with_suffix(".png"), figure)
    return 0


def build(net: str, shape: tuple[int, int, int] = (1, 28, 28), latent: int = LATENT) -> VAE:
    """The networks of pytorch/examples and the like: 784-400-z, or 4 × 4 convolutions to 32 and 64 maps."""
    torch.manual_seed(0)
    if net == "default":
        return build_vae(PartSettings(), torch.zeros(1, *shape, dtype=torch.uint8))
    encoder, decoder = {
        "mlp": (networks.MLPEncoder, networks.MLPDecoder), "conv": (networks.ConvEncoder, networks.ConvDecoder)
    }[net]
    return VAE(priors.StandardNormal(latent), likelihoods.Bernoulli(decoder(latent, shape, maps=1)),
               guides.MeanField(encoder(shape), latent))


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
    def make(net: str) -> Round:
        module = ByHand(build(net))
        optimizer, loss_of = adam(module), way(module)

        def step(pixels: Tensor) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(pixels)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return timed(step)

    return make


def by_hand_whole(net: str) -> Round:
    module = ByHand(build(net))
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

    return with_fast_matmul(timed(lambda pixels: step(values, means, squares, count, pixels)))


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
        decoder = stax.serial(dense(3136), relu, maps, strided(stax.ConvTranspose, 32), relu,
                              strided(stax.ConvTranspose, 1))

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


def compare(images: Data, net: str, batch: int, args: argparse.Namespace) -> dict[str, Any]:
    """Images a second of each way, in rounds of which the first does not count; compiling is timed apart."""
    torch._dynamo.reset()
    steps = max(2, args.images // batch)
    pixels = images.train.images[: steps * batch].unflatten(0, (steps, batch))
    names = [name for name in args.only if (net, name) != ("default", "numpyro")]  # in which it is not written
    bar = tqdm(total=(args.rounds + 2) * len(names), desc=f"{net}, batch {batch}")
    ways, first = {}, {}
    for name in names:
        start = time.perf_counter()
        ways[name] = WAYS[name](net)
        ways[name](pixels[:2])
        first[name] = time.perf_counter() - start
        bar.update()
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(args.rounds + 1):
        for name, run in ways.items():
            rate = steps * batch / run(pixels)
            if number > 0:
                rates[name].append(rate)
            bar.update()
    bar.close()
    flops = flops_per_image(net)
    return {"net": net, "batch": batch, "flops_per_image": flops, "images_per_second": rates,
            "medians": {name: statistics.median(values) for name, values in rates.items()},
            "seconds_to_second_step": first}


def ratio(rates: dict[str, list[float]], one: str, other: str) -> float:
    """The median over the rounds of the ratio of two ways in one round."""
    return statistics.median(a / b for a, b in zip(rates[one], rates[other]))


def flops_per_image(net: str) -> float:
    """Of matrix products and convolutions in a step, forward and backward."""
    module = ByHand(build(net))
    with FlopCounterMode(display=False) as counter:
        module(torch.zeros(8, 1, 28, 28, dtype=torch.uint8)).backward()
    return counter.get_total_flops() / 8


def peak() -> dict[str, float]:
    """Operations a second that a product of 1024 × 1024 matrices reaches here, in each precision."""
    found = {}
    for name, dtype in ("float32", torch.float32), ("bfloat16", torch.bfloat16):
        a = torch.randn(1024, 1024).to(dtype)
        with fast_matmul("cpu"):
            seconds = []
            for _ in range(8):
                start = time.perf_counter()
                a @ a
                seconds.append(time.perf_counter() - start)
        found[name] = 2 * 1024**3 / min(seconds)
    return found


def evaluation(images: Data, net: str, rounds: int) -> dict[str, Any]:
    """Images a second of ``evaluate``."""
    vae = build(net)
    x = fixed_x(vae, images.valid.images[:2000])
    rates = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        evaluate(vae, x)
        rates.append(len(x) / (time.perf_counter() - start))
    return {"net": net, "images_per_second": rates[1:], "median": statistics.median(rates[1:])}


SIZES = {"images": (32, 128, 512, 2048), "particles": (1, 4, 16, 64), "latent": (2, 8, 32, 128), "side": (14, 28, 56)}


def scaling(rounds: int) -> dict[str, dict[int, float]]:
    """Seconds of an eager step of the MLP as one size grows; the others are 128 images, 1 particle, z 20, side 28."""
    return {what: {size: step_seconds(rounds, **{what: size}) for size in sizes} for what, sizes in SIZES.items()}


def step_seconds(rounds: int, images: int = 128, particles: int = 1, latent: int = LATENT, side: int = 28) -> float:
    vae = build("mlp", (1, side, side), latent)
    elbo = Trace_ELBO(particles, vectorize_particles=particles > 1, max_plate_nesting=1)
    run = with_fast_matmul(timed(Eager(vae, elbo, adam(vae))))
    pixels = torch.randint(256, (4, images, 1, side, side), dtype=torch.uint8)
    run(pixels)
    return statistics.median(run(pixels) / 4 for _ in range(rounds))


PARTS = {  # in the words of run.py; the first is what the others are compared with
    "standard normal, mean-field": {},
    "flow prior": {"prior": "autoregressive", "flow_depth": 4, "flow_width": 256},
    "VampPrior of 500": {"prior": "vamp", "components": 500},
    "flow guide": {"guide": "inverse-autoregressive", "flow_depth": 4, "flow_width": 256},
}


def cost_of_parts(images: Data, kind: type, rounds: int, steps: int = 5, batch: int = 256) -> dict[str, Any]:
    """Seconds of a step under each prior and guide, in turns, and the median of its ratio to the first in one round."""
    pixels = images.train.images[: steps * batch].unflatten(0, (steps, batch))
    ways = {}
    for name, words in PARTS.items():
        torch.manual_seed(0)
        vae = build_vae(PartSettings(latent=32, **words), images.train.images[:1000])
        ways[name] = with_fast_matmul(timed(kind(vae, Trace_ELBO(), adam(vae))))
        ways[name](pixels[:2])
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, run in ways.items():
            second = run(pixels) / steps
            seconds[name] += [second] if number > 0 else []
    return {"engine": kind.__name__.lower(), "seconds": seconds,
            "ratios": {name: ratio(seconds, name, next(iter(PARTS))) for name in PARTS}}


def parts_table(cases: list[dict[str, Any]]) -> str:
    return "\n".join(f"{case['engine']:<9} {name:<28} {1e3 * statistics.median(case['seconds'][name]):7.1f} ms a step, "
                     f"{case['ratios'][name]:.2f} ×" for case in cases for name in PARTS)


def parts_figure(cases: list[dict[str, Any]]) -> Figure:
    figure, axes = plt.subplots(1, len(cases), figsize=(4.5 * len(cases), 2.4), sharey=True, layout="constrained")
    for axis, case in zip(axes, cases):
        axis.barh(list(PARTS), list(case["ratios"].values()))
        axis.set(title=case["engine"], xlabel="seconds a step / those of the first")
    axes[0].invert_yaxis()
    return figure


def speed_table(result: dict[str, Any]) -> str:
    lines = []
    for case in result["speed"]:
        lines.append(f"{case['net']}, batch {case['batch']}, {case['flops_per_image'] / 1e6:.1f} Mflop an image")
        for name, median in case["medians"].items():
            top = result["peak"]["bfloat16" if "bfloat16" in name else "float32"]
            others = [f"{ratio(case['images_per_second'], name, other):5.2f} × {other}"
                      for other in ("svi", "torch eager", "torch whole step", "numpyro")
                      if other in case["medians"] and other != name and not name.startswith("torch")]
            share = f"{100 * median * case['flops_per_image'] / top:3.0f} % of peak"
            lines.append(f"  {name:<18} {median:9,.0f} images/s  {share}  {'  '.join(others)}")
    lines += [f"evaluate, {case['net']}: {case['median']:,.0f} images/s" for case in result["evaluation"]]
    return "\n".join(lines)


def scaling_table(costs: dict[str, dict[int, float]]) -> str:
    return "\n".join(f"{what:<10}" + "".join(f"{size:>8}: {1e3 * s:7.1f} ms" for size, s in row.items())
                     for what, row in costs.items())


def speed_figure(cases: list[dict[str, Any]]) -> Figure:
    figure, axes = plt.subplots(1, len(cases), figsize=(4 * len(cases), 3.5), squeeze=False, layout="constrained")
    for axis, case in zip(axes[0], cases):
        names = list(case["medians"])
        axis.barh(names, list(case["medians"].values()))
        for i, name in enumerate(names):
            axis.plot(case["images_per_second"][name], [i] * len(case["images_per_second"][name]), "k.", ms=3)
        axis.invert_yaxis()
        axis.set(title=f"{case['net']}, batch {case['batch']}", xlabel="images a second")
    return figure


def scaling_figure(costs: dict[str, dict[int, float]]) -> Figure:
    figure, axes = plt.subplots(1, len(costs), figsize=(3.2 * len(costs), 3), sharey=True, layout="constrained")
    for axis, (what, row) in zip(axes, costs.items()):
        axis.loglog(list(row), [1e3 * seconds for seconds in row.values()], "o-")
        axis.set(xlabel=what)
    axes[0].set_ylabel("milliseconds a step")
    return figure


if __name__ == "__main__":
    sys.exit(main())
