"""Programs as users of Pyro train them by SVI, a few lines each, on simulated data.

Each function makes new parameters and returns a ``Case``.
"""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import (
    ELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceMeanField_ELBO,
    autoguide,
    config_enumerate,
)
from pyro.optim import ClippedAdam
from torch import Tensor
from torch.nn.functional import softplus

from experiments.benchmarks.svi_networks import air, cevae, cvae, dmm, doubly_reparameterized, scanvi, ss_vae, vae
from experiments.benchmarks.svi_parts import Adam, Case, adam, binary, net
from pyro_vae.estimators import StickingTheLanding


def eight_schools() -> Case:
    """Return the eight schools, by an automatic mean-field guide."""
    effects = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    errors = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def model(effects: Tensor, errors: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        tau = pyro.sample("tau", dist.HalfCauchy(25.0))
        with pyro.plate("schools", 8):
            eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
            pyro.sample("effect", dist.Normal(mu + tau * eta, errors), obs=effects)

    return Case(model, autoguide.AutoNormal(model), (effects, errors), Trace_ELBO(), adam())


def regression(kind: Callable[..., Any], elbo: ELBO | None = None, logistic: bool = False) -> Case:
    """Return a Bayesian regression, linear or logistic, with an automatic guide."""
    x = torch.randn(200, 8)
    y = x @ torch.linspace(-1, 1, 8) + 0.3 * torch.randn(200)

    def model(x: Tensor, y: Tensor) -> None:
        weights = pyro.sample("weights", dist.Normal(x.new_zeros(8), 1.0).to_event(1))
        bias = pyro.sample("bias", dist.Normal(0.0, 10.0))
        scale = pyro.sample("scale", dist.HalfCauchy(1.0))
        loc = x @ weights + bias
        with pyro.plate("data", len(x)):
            of_y = dist.Bernoulli(logits=loc) if logistic else dist.Normal(loc, scale)
            pyro.sample("y", of_y, obs=y)

    return Case(model, kind(model), (x, (y > 0).float() if logistic else y), elbo or Trace_ELBO(), adam())


def bayesian_regression() -> Case:
    """Return a linear regression with a full-rank guide."""
    return regression(autoguide.AutoMultivariateNormal)


def logistic_normal() -> Case:
    """Return a logistic regression with a mean-field guide and its KL in closed form."""
    return regression(autoguide.AutoNormal, TraceMeanField_ELBO(), logistic=True)


def logistic_flow() -> Case:
    """Return a logistic regression with a flow as its guide, under sticking-the-landing."""
    return regression(
        lambda model: autoguide.AutoIAFNormal(model, hidden_dim=[16]), StickingTheLanding(), logistic=True
    )


def mixture() -> Case:
    """Return a mixture of normals whose assignments are summed out."""

    @config_enumerate
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(3)))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
        with pyro.plate("components", 3):
            locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[k], scale), obs=x)

    guide = autoguide.AutoDelta(poutine.block(model, expose=["weights", "locs", "scale"]))
    x = torch.cat([torch.randn(30) - 4, torch.randn(30), torch.randn(40) + 5])
    return Case(model, guide, (x,), TraceEnum_ELBO(max_plate_nesting=1), Adam({"lr": 0.1, "betas": (0.8, 0.99)}))


def hmm() -> Case:
    """Return a hidden Markov model of sequences of different lengths, its states summed out."""
    lengths, notes = torch.tensor([8, 6, 7, 3, 8, 5, 8, 4, 2, 8]), binary(80, 20).view(10, 8, 20)

    @config_enumerate
    def model(notes: Tensor, lengths: Tensor) -> None:
        jumps = pyro.sample("jumps", dist.Dirichlet(0.9 * torch.eye(6) + 0.1).to_event(1))
        emits = pyro.sample("emits", dist.Beta(torch.full((6, 20), 0.1), 0.9).to_event(2))
        with pyro.plate("sequences", len(notes), dim=-2):
            state: Any = 0
            tones = pyro.plate("tones", 20, dim=-1)
            for t in pyro.markov(range(notes.shape[1])):
                inside: Any = (t < lengths).unsqueeze(-1)
                with poutine.mask(mask=inside):
                    state = pyro.sample(f"state_{t}", dist.Categorical(jumps[state]))
                    with tones:
                        pyro.sample(f"note_{t}", dist.Bernoulli(emits[state.squeeze(-1)]), obs=notes[:, t])

    guide = autoguide.AutoDelta(poutine.block(model, expose=["jumps", "emits"]))
    return Case(model, guide, (notes, lengths), TraceEnum_ELBO(max_plate_nesting=2), Adam({"lr": 0.05}))


def lda() -> Case:
    """Return topics of documents, words summed out, on a subsample of the documents, with an amortised guide."""
    words = torch.randint(0, 100, (30, 200))
    predict = net(100, 40, 5)

    @config_enumerate
    def model(words: Tensor, size: int) -> None:
        with pyro.plate("topics", 5):
            weights = pyro.sample("weights", dist.Gamma(0.2, 1.0))
            topics = pyro.sample("words_of", dist.Dirichlet(torch.ones(100) / 100))
        with pyro.plate("documents", 200, size, dim=-1) as index:
            mix = pyro.sample("mix", dist.Dirichlet(weights))
            with pyro.plate("words", 30, dim=-2):
                topic = pyro.sample("topic", dist.Categorical(mix))
                pyro.sample("word", dist.Categorical(topics[topic]), obs=words[:, index])

    def guide(words: Tensor, size: int) -> None:
        pyro.module("predict", predict)
        shape = pyro.param("shape", lambda: torch.ones(5), constraint=constraints.positive)
        topics = pyro.param("topic_words", lambda: torch.ones(5, 100), constraint=constraints.greater_than(0.5))
        with pyro.plate("topics", 5):
            pyro.sample("weights", dist.Gamma(shape, 1.0))
            pyro.sample("words_of", dist.Dirichlet(topics))
        with pyro.plate("documents", 200, size, dim=-1) as index:
            counts = torch.zeros(100, size).scatter_add(0, words[:, index], torch.ones(30, size))
            pyro.sample("mix", dist.Delta(predict(counts.T).softmax(-1), event_dim=1))

    return Case(model, guide, (words, 32), TraceEnum_ELBO(max_plate_nesting=2), ClippedAdam({"lr": 0.01}))


def sparse_gamma() -> Case:
    """Return a deep exponential family of gammas with a guide of gammas."""
    x = torch.poisson(torch.full((64, 60), 3.0))
    sizes = {"top": 20, "bottom": 10}

    def model(x: Tensor) -> None:
        with pyro.plate("top_weights", 20 * 10):
            top = pyro.sample("w_top", dist.Gamma(0.1, 0.3)).view(20, 10)
        with pyro.plate("bottom_weights", 10 * 60):
            bottom = pyro.sample("w_bottom", dist.Gamma(0.1, 0.3)).view(10, 60)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z_top", dist.Gamma(torch.full((20,), 0.1), 0.1).to_event(1))
            z = pyro.sample("z_bottom", dist.Gamma(0.1, 0.1 / (z @ top + 1e-3)).to_event(1))
            pyro.sample("x", dist.Poisson(z @ bottom + 1e-3).to_event(1), obs=x)

    def gamma(name: str, *shape: int) -> dist.Gamma:
        alpha = softplus(pyro.param(f"alpha_{name}", lambda: 0.5 + 0.1 * torch.randn(*shape)))
        mean = softplus(pyro.param(f"mean_{name}", lambda: 0.1 * torch.randn(*shape)))
        return dist.Gamma(alpha, alpha / mean)

    def guide(x: Tensor) -> None:
        for name, size in ("top", 200), ("bottom", 600):
            with pyro.plate(f"{name}_weights", size):
                pyro.sample(f"w_{name}", gamma(f"w_{name}", size))
        with pyro.plate("data", len(x)):
            for name, size in sizes.items():
                pyro.sample(f"z_{name}", gamma(f"z_{name}", len(x), size).to_event(1))

    return Case(model, guide, (x,), Trace_ELBO(), Adam({"lr": 0.01}))


def baseball() -> Case:
    """Return batting averages that share a prior, with a low-rank guide."""
    at_bats, hits = torch.full((18,), 45.0), torch.arange(18).float()

    def model(at_bats: Tensor, hits: Tensor) -> None:
        m = pyro.sample("m", dist.Uniform(0.0, 1.0))
        kappa = pyro.sample("kappa", dist.Pareto(1.0, 1.5))
        with pyro.plate("players", 18):
            chance = pyro.sample("chance", dist.Beta(m * kappa, (1 - m) * kappa))
            pyro.sample("hits", dist.Binomial(at_bats, chance), obs=hits)

    return Case(model, autoguide.AutoLowRankMultivariateNormal(model), (at_bats, hits), Trace_ELBO(), adam())


def inclined_plane() -> Case:
    """Return the friction of a plane from noisy times of a simulated slide."""
    times = 20.0 + torch.randn(20)

    def slide(friction: Tensor) -> Tensor:
        place, speed = torch.zeros(()), torch.zeros(())
        force = 9.8 * (0.5 - friction * 0.8660254)
        for _ in range(20):
            place, speed = place + speed * 0.1, speed + force * 0.1
        return 20.0 + 0.1 * place

    def model(times: Tensor) -> None:
        friction = pyro.sample("friction", dist.Uniform(0.0, 1.0))
        with pyro.plate("times", len(times)):
            pyro.sample("time", dist.Normal(slide(friction), 1.0), obs=times)

    def guide(times: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.1), constraint=constraints.unit_interval)
        width = pyro.param("width", torch.tensor(20.0), constraint=constraints.positive)
        pyro.sample("friction", dist.Beta(loc * width, (1 - loc) * width))

    return Case(model, guide, (times,), Trace_ELBO(), Adam({"lr": 0.01}))


def factors() -> Case:
    """Return a probabilistic matrix factorisation of some ratings."""
    users, items, ratings = torch.randint(0, 50, (400,)), torch.randint(0, 40, (400,)), torch.randn(400)

    def model(users: Tensor, items: Tensor, ratings: Tensor) -> None:
        with pyro.plate("users", 50):
            u = pyro.sample("u", dist.Normal(torch.zeros(5), 1.0).to_event(1))
        with pyro.plate("items", 40):
            v = pyro.sample("v", dist.Normal(torch.zeros(5), 1.0).to_event(1))
        with pyro.plate("ratings", 400, 100) as index:
            loc = (u[users[index]] * v[items[index]]).sum(-1)
            pyro.sample("rating", dist.Normal(loc, 0.5), obs=ratings[index])

    return Case(model, autoguide.AutoDiagonalNormal(model), (users, items, ratings), Trace_ELBO(), adam())


def capture_recapture() -> Case:
    """Return survival of animals that are captured again, alive or dead summed out."""
    seen = binary(40, 6)

    @config_enumerate
    def model(seen: Tensor) -> None:
        survival = pyro.sample("survival", dist.Uniform(0.0, 1.0))
        capture = pyro.sample("capture", dist.Uniform(0.0, 1.0))
        with pyro.plate("animals", len(seen)):
            alive = torch.ones(len(seen))
            first: Any = torch.zeros(len(seen), dtype=torch.bool)
            for t in pyro.markov(range(seen.shape[1])):
                with poutine.mask(mask=first):
                    alive = pyro.sample(f"alive_{t}", dist.Bernoulli(torch.where(first, survival * alive, 1.0)))
                    pyro.sample(f"seen_{t}", dist.Bernoulli(capture * alive), obs=seen[:, t])
                first = first | seen[:, t].bool()

    guide = autoguide.AutoDiagonalNormal(poutine.block(model, expose=["survival", "capture"]))
    return Case(model, guide, (seen,), TraceEnum_ELBO(max_plate_nesting=1), Adam({"lr": 0.01}))


PROGRAMS: dict[str, Callable[[], Case]] = {
    make.__name__: make
    for make in (
        vae, doubly_reparameterized, ss_vae, cvae, scanvi, cevae, eight_schools, bayesian_regression, logistic_normal,
        logistic_flow, mixture, hmm, dmm, lda, sparse_gamma, baseball, inclined_plane, factors, capture_recapture, air,
    )
}  # fmt: skip
