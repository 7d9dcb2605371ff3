"""Programs drawn at random, whose bounds and gradients are known by enumeration and Gauss–Hermite quadrature.

A program has one to three latent sites of a row, each linear in those before it, and one observation. There are two
kinds of rows, with numbers of their own. Every row has parameters of its own too: the gradient of one run in the
parameters of many rows of one kind is as many independent draws of the gradient of one row.
"""

import math
from contextlib import ExitStack
from dataclasses import dataclass

import hypothesis.strategies as st
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

CENTRES = torch.tensor([-0.8, 0.3, 0.9], dtype=torch.float64)  # what the values of a categorical site stand for
APART = torch.tensor([0.3, -0.3], dtype=torch.float64)  # of the two parts of an event, or of an inner plate
DIMENSIONS = {"normal": 1, "event": 2, "parts": 2, "log-normal": 1, "bernoulli": 0, "categorical": 0}
NODES = {0: 1, 1: 24, 2: 20, 3: 10, 4: 7}  # of each dimension, by their number
WEIGHTS = 1.0, 2.5  # of the two kinds of rows


@dataclass(frozen=True)
class Latent:
    """A latent site; ``masked`` leaves it out of the second kind of rows, ``scale`` is its KL weight."""

    kind: str
    masked: bool = False
    scale: float = 1.0

    @property
    def discrete(self):
        return DIMENSIONS[self.kind] == 0


@dataclass(frozen=True)
class Spec:
    """What a program consists of. ``weighted``: every row has a weight; ``shared``: the first site is of all rows."""

    latents: tuple[Latent, ...]
    seed: int
    binary: bool = False
    unseen: bool = False  # whether x is masked in the second kind of rows
    weighted: bool = False
    shared: bool = False

    @property
    def discrete(self):
        return any(latent.discrete for latent in self.latents)

    @property
    def scales_differ(self):
        return any(latent.scale != 1.0 for latent in self.latents)

    @property
    def masked(self):
        return any(latent.masked for latent in self.latents)

    @property
    def uses_masked(self):
        """Whether a density that counts depends on latent values that do not, in the second kind of rows."""
        of_later = [self.unseen, *(latent.masked for latent in reversed(self.latents))]  # x, then the last latent
        return any(latent.masked and not all(of_later[:i]) for i, latent in enumerate(reversed(self.latents), 1))

    @property
    def dimensions(self):
        return sum(DIMENSIONS[latent.kind] for latent in self.latents)

    @property
    def parts(self):
        """The sites in the inner plate. Parts of a second one would depend on all of the first, against the plate."""
        return sum(latent.kind == "parts" for latent in self.latents)

    @property
    def has_parts(self):
        return self.parts > 0


def latents(kinds=tuple(DIMENSIONS)):
    scales = st.sampled_from([1.0, 1.0, 1.0, 0.5])
    return st.builds(Latent, st.sampled_from(kinds), st.sampled_from([False, False, True]), scales)


def specs(shared=False):
    sites = st.lists(latents(), min_size=1, max_size=3).map(tuple)
    if shared:
        of_all = latents(("normal", "log-normal", "bernoulli", "categorical")).map(lambda site: Latent(site.kind))
        sites = st.tuples(of_all, latents()) | st.tuples(of_all)
    flags = [st.booleans(), st.booleans(), st.just(False) if shared else st.booleans(), st.just(shared)]
    drawn = st.builds(Spec, sites, st.integers(0, 2**16), *flags)
    return drawn.filter(lambda spec: spec.dimensions in NODES and spec.parts <= 1)


def numbers(spec):
    """Return the numbers of the program by name, (2,) for the two kinds of rows, and x (2,)."""
    generator = torch.Generator().manual_seed(spec.seed)

    def draw(low, high):
        return low + (high - low) * torch.rand(2, generator=generator, dtype=torch.float64)

    found = {}
    for i, _ in enumerate(spec.latents):
        found |= {f"p{i}": draw(-0.5, 0.5), f"q{i}": draw(-0.5, 0.5), f"raw{i}": draw(-0.2, 0.2), f"x{i}": draw(-1, 1)}
        found |= {f"{part}{i}{j}": draw(-0.6, 0.6) for j in range(i) for part in "pq"}
        found |= {f"in x{i}": draw(-0.4, 0.4)}
    x = draw(-1.5, 1.5)
    return found, (x > 0).double() if spec.binary else x


def density(kind, loc, raw):
    """Return the distribution of a site, whose value stands for ``summary``."""
    if kind == "bernoulli":
        return dist.Bernoulli(logits=loc)
    if kind == "categorical":
        return dist.Categorical(logits=loc.unsqueeze(-1) * CENTRES)
    if kind == "log-normal":
        return dist.LogNormal(loc / 2, raw.exp() / 2)
    if kind == "normal":
        return dist.Normal(loc, raw.exp())
    parts = dist.Normal(loc.unsqueeze(-1) + APART, raw.exp().unsqueeze(-1))
    return parts.to_event(1)


def summary(kind, value):
    """Return the number that later sites see of a value."""
    return CENTRES[value] if kind == "categorical" else value.sum(-1) if kind in ("event", "parts") else value


def linear(numbers, part, i, before, x=None):
    """Return the location of site i: of the prior (part "p"), or of the guide ("q"), which sees x."""
    terms = [numbers[f"{part}{i}{j}"] * value for j, value in enumerate(before)]
    return sum(terms, numbers[f"{part}{i}"]) + (numbers[f"in x{i}"] * x if x is not None else 0.0)


def likelihood(spec, numbers, before):
    mean = sum(numbers[f"x{i}"] * value for i, value in enumerate(before))
    return dist.Bernoulli(logits=mean) if spec.binary else dist.Normal(mean, 1.0)


# As Pyro sees it ------------------------------------------------------------------------------------------------------


class Program:
    """The model and guide of a spec, each of the two kinds of rows ``replicas`` times.

    ``parameters`` holds the numbers, of each row; those of a shared site are those of the first kind of rows. Rows are
    at dim −1, or −2 where a site lies in an inner plate of two parts. ``mark`` marks discrete sites for enumeration.
    """

    def __init__(self, spec, replicas=1, mark=False):
        self.spec, self.replicas, self.infer = spec, replicas, {"enumerate": "parallel"} if mark else {}
        found, x = numbers(spec)
        own = {"p0", "q0", "raw0"} if spec.shared else set()
        self.parameters = {name: pair[0].clone() if name in own else self.of_rows(pair) for name, pair in found.items()}
        for parameter in self.parameters.values():
            parameter.requires_grad_()
        self.x, self.first = self.of_rows(x), self.of_rows(torch.tensor([True, False]))
        self.weights = self.of_rows(torch.tensor(WEIGHTS).double())

    def of_rows(self, pair):
        rows = pair.repeat_interleave(self.replicas)
        return rows.unsqueeze(-1) if self.spec.has_parts else rows

    def model(self, x):
        values, rows = self.sites("p", None)
        with self.of_kind(rows, self.spec.unseen):
            pyro.sample("x", likelihood(self.spec, self.parameters, values), obs=x)

    def guide(self, x):
        self.sites("q", x)

    def sites(self, part, x):
        """Draw the latent sites; return what later sites see of them, and the plate of the rows."""
        before, rows = [], pyro.plate("rows", 2 * self.replicas, dim=-2 if self.spec.has_parts else -1)
        parts = pyro.plate("parts", 2, dim=-1) if self.spec.has_parts else None
        for i, latent in enumerate(self.spec.latents):
            of_all = self.spec.shared and i == 0
            loc = linear(self.parameters, part, i, before, None if of_all else x)
            raw = self.parameters[f"raw{i}"] if part == "q" else torch.zeros_like(self.parameters[f"raw{i}"])
            with ExitStack() as stack:
                if not of_all:
                    stack.enter_context(self.of_kind(rows, latent.masked))
                stack.enter_context(poutine.scale(scale=latent.scale))
                before.append(self.draw(i, latent.kind, loc, raw, parts))
        return before, rows

    def draw(self, i, kind, loc, raw, parts):
        infer = self.infer if DIMENSIONS[kind] == 0 else {}
        if kind != "parts":
            return summary(kind, pyro.sample(f"z{i}", density(kind, loc, raw), infer=infer))
        with parts:
            return pyro.sample(f"z{i}", dist.Normal(loc + APART, raw.exp())).sum(-1, keepdim=True)

    def of_kind(self, rows, masked):
        """Enter the plate of the rows, with their weights; ``masked``: with the first kind of rows alone."""
        stack = ExitStack()
        stack.enter_context(rows)
        if self.spec.weighted:
            stack.enter_context(poutine.scale(scale=self.weights))
        if masked:
            stack.enter_context(poutine.mask(mask=self.first))
        return stack


# By quadrature --------------------------------------------------------------------------------------------------------


class Quadrature:
    """Expectations over the guide of one kind of rows, differentiable in its ``numbers``.

    Attributes:
        log_q: the log weights of the points, (N,), whose sum of weights is one.
        shared, own: the terms of log p(x, z) − log q(z | x) of a shared site and of the row, scaled, (N,).
        log_w: the sum of both without the weight of the row, (N,).
    """

    def __init__(self, spec, numbers, x, first):
        self.log_q, before, terms = torch.zeros(1, dtype=torch.float64), [], []
        for i, latent in enumerate(spec.latents):
            of_all = spec.shared and i == 0
            noise, log_weights = nodes(latent.kind, spec)
            count, size = len(noise), len(self.log_q)
            self.log_q, *rest = (old.repeat_interleave(count) for old in (self.log_q, *before, *terms))
            before, terms = rest[: len(before)], rest[len(before) :]
            loc = linear(numbers, "q", i, before, None if of_all else x).expand(size * count)
            prior = linear(numbers, "p", i, before).expand(size * count)
            raw = numbers[f"raw{i}"]
            q, p = density(latent.kind, loc, raw.expand_as(loc)), density(latent.kind, prior, torch.zeros_like(prior))
            value = moved(latent.kind, loc, raw, noise.repeat(size, *[1] * (noise.dim() - 1)))
            log_prob = q.log_prob(value)
            self.log_q = self.log_q + (log_prob if latent.discrete else log_weights.repeat(size))
            seen = 0.0 if latent.masked and not first else latent.scale
            terms.append(seen * (p.log_prob(value) - log_prob))
            before.append(summary(latent.kind, value))
        x_term = likelihood(spec, numbers, before).log_prob(x) * (0.0 if spec.unseen and not first else 1.0)
        weight = WEIGHTS[0 if first else 1] if spec.weighted else 1.0
        self.weight, self.shared = weight, terms.pop(0) if spec.shared else torch.zeros_like(x_term)
        self.log_w = sum(terms, x_term)
        self.own = weight * self.log_w

    def mean(self, values):
        return (self.log_q.exp() * values).sum()

    def bound(self, K):
        """Return the mean and variance of the weight of the row times log 1/K Σ w, for K of at most 2."""
        log_q, log_mean = self.log_q, self.log_w
        if K == 2:
            log_q = (log_q.unsqueeze(1) + log_q).flatten()
            log_mean = torch.logaddexp(log_mean.unsqueeze(1), log_mean).flatten() - math.log(2)
        values = self.weight * log_mean
        mean = (log_q.exp() * values).sum()
        return mean, (log_q.exp() * (values - mean).square()).sum().detach()


def nodes(kind, spec):
    """Return the nodes of a site, (N, ...), and their log weights."""
    if kind in ("bernoulli", "categorical"):
        values = torch.arange(2.0).double() if kind == "bernoulli" else torch.arange(3)
        return values, torch.zeros(len(values))
    points, weights = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(NODES[spec.dimensions]))
    log_weights = (weights / weights.sum()).log()
    if DIMENSIONS[kind] == 1:
        return points, log_weights
    return torch.cartesian_prod(points, points), torch.cartesian_prod(log_weights, log_weights).sum(-1)


def moved(kind, loc, raw, noise):
    """Return the values to which q moves standard normal noise; those of a discrete site are the noise itself."""
    if kind in ("bernoulli", "categorical"):
        return noise
    if kind == "log-normal":
        return (loc / 2 + raw.exp() / 2 * noise).exp()
    if kind == "normal":
        return loc + raw.exp() * noise
    return loc.unsqueeze(-1) + APART + raw.exp() * noise


def quadratures(spec):
    """Return the numbers (2,), as leaves, and the quadrature of each kind of rows."""
    found, x = numbers(spec)
    leaves = {name: pair.requires_grad_() for name, pair in found.items()}
    own = {"p0", "q0", "raw0"} if spec.shared else set()
    of_row = [{name: pair[0 if name in own else i] for name, pair in leaves.items()} for i in (0, 1)]
    return leaves, [Quadrature(spec, numbers, x[i], first=i == 0) for i, numbers in enumerate(of_row)]
