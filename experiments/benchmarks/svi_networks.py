"""Programs with networks as users of Pyro train them by SVI, a few lines each, on simulated data."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, config_enumerate
from pyro.optim import ClippedAdam
from torch import Tensor, nn
from torch.nn.functional import one_hot, softplus

from experiments.benchmarks.svi_parts import Adam, Case, adam, beside, binary, net, normal
from pyro_vae.estimators import DoublyReparameterized


def vae(elbo: ELBO | None = None) -> Case:
    """Return a VAE of binary images, its networks registered by ``pyro.module``."""
    encoder, decoder = net(784, 200, 100), net(50, 200, 784)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 50), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("images", len(x)):
            pyro.sample("z", normal(encoder(x)))

    return Case(model, guide, (binary(64, 784),), elbo or Trace_ELBO(), adam())


def doubly_reparameterized() -> Case:
    """Return the VAE under an estimator that takes derivatives itself."""
    return vae(DoublyReparameterized(K=4))


def ss_vae(labelled: bool = False) -> Case:
    """Return the semi-supervised M2; labels that are None are summed out."""
    encoder, classifier, decoder = net(794, 100, 40), net(784, 100, 10), net(30, 100, 784)

    def model(x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 20), 1.0).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(logits=x.new_zeros(len(x), 10)), obs=y)
            pyro.sample("x", dist.Bernoulli(logits=decoder(beside(z, y))).to_event(1), obs=x)

    def guide(x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("encoder", encoder)
        pyro.module("classifier", classifier)
        with pyro.plate("images", len(x)):
            if y is None:
                y = pyro.sample("y", dist.OneHotCategorical(logits=classifier(x)))
            pyro.sample("z", normal(encoder(beside(x, y))))

    labels = one_hot(torch.arange(64) % 10, 10).float() if labelled else None
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    return Case(model, config_enumerate(guide), (binary(64, 784), labels), elbo, adam())


def cvae() -> Case:
    """Return a VAE of the missing part of an image given the rest, its likelihood masked."""
    prior, encoder, decoder = net(784, 100, 40), net(1568, 100, 40), net(20, 100, 784)
    modules = nn.ModuleList([prior, encoder, decoder])

    def model(x: Tensor, y: Tensor) -> None:
        pyro.module("cvae", modules)
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", normal(prior(x)))
            pixels = dist.Bernoulli(logits=decoder(z)).mask(x == -1)
            pyro.sample("y", pixels.to_event(1), obs=y)

    def guide(x: Tensor, y: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", normal(encoder(torch.cat([x, y], -1))))

    y = binary(64, 784)
    return Case(model, guide, (torch.where(torch.arange(784) < 392, -1.0, y), y), Trace_ELBO(), adam())


def scanvi() -> Case:
    """Return a program of counts with a label, a library size and a KL weight."""
    encoder, decoder, classes = net(101, 64, 20), net(15, 64, 100), nn.Linear(10, 5)
    modules = nn.ModuleList([encoder, decoder, classes])

    def model(x: Tensor, y: Tensor | None = None, weight: float = 1.0) -> None:
        pyro.module("scanvi", modules)
        theta = pyro.param("theta", x.new_ones(100), constraint=constraints.positive)
        with pyro.plate("cells", len(x)), poutine.scale(scale=weight):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 10), 1.0).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(logits=x.new_zeros(len(x), 5)), obs=y)
            size = pyro.sample("size", dist.LogNormal(x.sum(-1).log(), 0.5))
            share = decoder(beside(z, y)).softmax(-1)
            logits = (size.unsqueeze(-1) * share + 1e-6).log() - (theta + 1e-6).log()
            pyro.sample("x", dist.NegativeBinomial(theta, logits=logits).to_event(1), obs=x)

    def guide(x: Tensor, y: Tensor | None = None, weight: float = 1.0) -> None:
        out = encoder(torch.cat([x.log1p(), x.sum(-1, keepdim=True).log()], -1))
        with pyro.plate("cells", len(x)), poutine.scale(scale=weight):
            z = pyro.sample("z", normal(out))
            loc, scale = (
                pyro.param("shift", torch.tensor(0.0)),
                pyro.param("width", torch.tensor(0.1), constraints.positive),
            )
            pyro.sample("size", dist.LogNormal(x.sum(-1).log() + loc, scale))
            if y is None:
                pyro.sample("y", dist.OneHotCategorical(logits=classes(z)), infer={"enumerate": "parallel"})

    counts = torch.poisson(torch.full((128, 100), 2.0))
    return Case(model, guide, (counts, None, 0.5), TraceEnum_ELBO(max_plate_nesting=1), ClippedAdam({"lr": 1e-3}))


def cevae() -> Case:
    """Return a causal VAE with a binary treatment and networks for each arm."""
    outcome, treatment, features, encoder = net(21, 100, 2), net(20, 100, 1), net(20, 100, 30), net(32, 100, 40)
    modules = nn.ModuleList([outcome, treatment, features, encoder])

    def model(x: Tensor, t: Tensor, y: Tensor) -> None:
        pyro.module("cevae", modules)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 20), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(features(z), 1.0).to_event(1), obs=x)
            pyro.sample("t", dist.Bernoulli(logits=treatment(z).squeeze(-1)), obs=t)
            loc, raw = outcome(torch.cat([z, t.unsqueeze(-1)], -1)).unbind(-1)
            pyro.sample("y", dist.StudentT(4.0, loc, softplus(raw) + 1e-3), obs=y)

    def guide(x: Tensor, t: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(encoder(torch.cat([x, t.unsqueeze(-1), y.unsqueeze(-1)], -1))))

    x, t = torch.randn(100, 30), binary(100, 1).squeeze(-1)
    return Case(model, guide, (x, t, x[:, 0] + t), Trace_ELBO(), ClippedAdam({"lr": 1e-3, "lrd": 0.999}))


def dmm() -> Case:
    """Return a deep Markov model with masks and a weight of the latent terms; the guide reads backwards."""
    emit, move, combine, rnn = net(20, 50, 30), net(20, 50, 40), net(60, 50, 40), nn.GRU(30, 40, batch_first=True)
    modules = nn.ModuleList([emit, move, combine, rnn])

    def model(x: Tensor, mask: Tensor, weight: float) -> None:
        pyro.module("dmm", modules)
        z = x.new_zeros(len(x), 20)
        with pyro.plate("sequences", len(x)):
            for t in range(x.shape[1]):
                with poutine.scale(scale=weight):
                    z = pyro.sample(f"z_{t}", normal(move(z)).mask(mask[:, t]))
                pyro.sample(f"x_{t}", dist.Bernoulli(logits=emit(z)).to_event(1).mask(mask[:, t]), obs=x[:, t])

    def guide(x: Tensor, mask: Tensor, weight: float) -> None:
        hidden = rnn(x.flip(1))[0].flip(1)
        z = x.new_zeros(len(x), 20)
        with pyro.plate("sequences", len(x)), poutine.scale(scale=weight):
            for t in range(x.shape[1]):
                z = pyro.sample(f"z_{t}", normal(combine(torch.cat([z, hidden[:, t]], -1))).mask(mask[:, t]))

    x, lengths = binary(160, 30).view(20, 8, 30), torch.arange(20) % 7 + 2
    optim = ClippedAdam({"lr": 3e-4, "clip_norm": 10.0, "lrd": 0.9999})
    return Case(model, guide, (x, torch.arange(8) < lengths[:, None], 0.3), Trace_ELBO(), optim)


def air() -> Case:
    """Return attend-infer-repeat: up to two objects an image, their presence drawn with a learned baseline."""
    encode, decode, look, guess = (
        net(100 + 400, 100, 20),
        net(10, 100, 100),
        net(400, 100, 7),
        nn.Sequential(net(400, 50, 1), nn.Flatten(0)),
    )
    modules = nn.ModuleList([encode, decode, look])

    def grid(where: Tensor, inverse: bool) -> Tensor:
        scale, x, y = where.unbind(-1)
        scale, x, y = (1 / scale, -x / scale, -y / scale) if inverse else (scale, x, y)
        zero = torch.zeros_like(x)
        return torch.stack([scale, zero, x, zero, scale, y], -1).view(-1, 2, 3)

    def moved(images: Tensor, where: Tensor, size: int, inverse: bool) -> Tensor:
        shape = [len(images), 1, size, size]
        points = nn.functional.affine_grid(grid(where, inverse), shape, align_corners=False)
        return nn.functional.grid_sample(images, points, align_corners=False)

    def model(x: Tensor) -> None:
        pyro.module("air", modules)
        with pyro.plate("images", len(x)):
            here, canvas = x.new_ones(len(x)), x.new_zeros(len(x), 1, 20, 20)
            for t in range(2):
                here = pyro.sample(f"here_{t}", dist.Bernoulli(0.3 * here))
                where = pyro.sample(
                    f"where_{t}", dist.Normal(x.new_tensor([3.0, 0, 0]), 0.3).to_event(1).mask(here > 0)
                )
                what = pyro.sample(f"what_{t}", dist.Normal(x.new_zeros(10), 1.0).to_event(1).mask(here > 0))
                glimpse = decode(what).sigmoid().view(-1, 1, 10, 10)
                canvas = canvas + moved(glimpse, where, 20, False) * here.view(-1, 1, 1, 1)
            pyro.sample("x", dist.Normal(canvas.flatten(1), 0.3).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("guess", guess)
        with pyro.plate("images", len(x)):
            here, left = x.new_ones(len(x)), x
            for t in range(2):
                out = look(left)
                baseline: Any = {"baseline": {"nn_baseline": guess, "nn_baseline_input": left}}
                chance = out[:, 0].sigmoid() * here
                here = pyro.sample(f"here_{t}", dist.Bernoulli(chance), infer=baseline)
                place = dist.Normal(out[:, 1:4] + x.new_tensor([3.0, 0, 0]), softplus(out[:, 4:])).to_event(1)
                where = pyro.sample(f"where_{t}", place.mask(here > 0))
                glimpse = moved(left.view(-1, 1, 20, 20), where, 10, True).flatten(1)
                pyro.sample(f"what_{t}", normal(encode(torch.cat([glimpse, left], -1))).mask(here > 0))

    def rates(name: str) -> dict[str, float]:
        return {"lr": 1e-1 if name.startswith("guess") else 1e-4}

    return Case(model, guide, (binary(32, 400),), TraceGraph_ELBO(), Adam(rates))
