"""Programs whose gradients are known, and how a test draws, averages and integrates an estimator's gradient."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from monte_carlo import assert_mean_is
from pyro import poutine
from torch import nn

from pyro_vae.linear_gaussian import LinearGaussian, LinearPosterior

B, P, D = 3, 5, 2


def name(estimator):
    return f"{type(estimator).__name__}({estimator.num_particles})"


def gradients(loss, module):
    parameters = dict(module.named_parameters())
    values = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
    return {key: 0 * p if value is None else value for (key, p), value in zip(parameters.items(), values)}


def estimate(estimator, program, x, seed=0):
    """The loss and its gradient in every parameter."""
    torch.manual_seed(seed)
    loss = estimator(program.model, program.guide)(x)
    return loss, gradients(loss, program)


def assert_scale_multiplies(estimator, program, x):
    """Where model and guide are scaled by 2.5, so are value and gradient, at the same draws."""
    loss, slopes = estimate(estimator, program, x)
    program.model, program.guide = (poutine.scale(each, 2.5) for each in (program.model, program.guide))
    scaled, scaled_slopes = estimate(estimator, program, x)
    torch.testing.assert_close(scaled, 2.5 * loss)
    assert_equal(scaled_slopes, {key: 2.5 * slope for key, slope in slopes.items()})


def assert_equal(ours, expected):
    assert set(ours) == set(expected)
    for key, value in ours.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-9, atol=1e-9, msg=lambda m, key=key: f"{key}: {m}")


class Local(nn.Module):
    """A guide with parameters of its own for every image: of equal images, each gradient is an independent draw."""

    def __init__(self, q, n):
        super().__init__()
        self.loc = nn.Parameter(q.mean.detach()[:1].repeat(n, 1))
        self.log_scale = nn.Parameter(q.stddev.detach()[:1].log().repeat(n, 1))

    def forward(self, x):
        return dist.Normal(self.loc, self.log_scale.exp()).to_event(1)


class TwoLayers(nn.Module):
    """p(z1) p(z2 | z1) p(x | z1) p(y | z2), q(z1 | x) q(z2 | z1, x); ``shared`` enters both model and guide."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Parameter(0.3 * torch.randn(D, D))
        self.x_weight, self.y_weight = (nn.Parameter(torch.randn(P, D)) for _ in range(2))
        self.q1, self.q2 = nn.Linear(P, 2 * D), nn.Linear(P + D, 2 * D)
        self.q3 = nn.Linear(D, D)

    def p_z2(self, z1):
        return dist.Normal((z1 @ self.shared).tanh(), 0.8).to_event(1)

    def p_x(self, z1):
        return dist.Normal(z1 @ self.x_weight.T, 0.5).to_event(1)

    def p_y(self, z2):
        return dist.Bernoulli(logits=z2 @ self.y_weight.T).to_event(1)

    def q_z1(self, x):
        loc, log_scale = self.q1(x).chunk(2, -1)
        return dist.Normal(loc @ self.shared, log_scale.exp()).to_event(1)

    def q_z2(self, x, z1):
        together = torch.cat([x.expand(*z1.shape[:-1], P), z1], -1)
        loc, log_scale = self.q2(together).chunk(2, -1)
        return dist.Normal(loc, (0.3 * log_scale).exp()).to_event(1)

    def model(self, x, y):
        with pyro.plate("images", len(x)):
            z1 = pyro.sample("z1", dist.Normal(torch.zeros(D), 1.0).to_event(1))
            z2 = pyro.sample("z2", self.p_z2(z1))
            pyro.sample("x", self.p_x(z1), obs=x)
            pyro.sample("y", self.p_y(z2), obs=y)

    def guide(self, x, y):
        with pyro.plate("images", len(x)):
            z1 = pyro.sample("z1", self.q_z1(x))
            pyro.sample("z2", self.q_z2(x, z1))

    def log_p(self, x, y, z1, z2):
        log_p = dist.Normal(torch.zeros(D), 1.0).to_event(1).log_prob(z1) + self.p_z2(z1).log_prob(z2)
        return log_p + self.p_x(z1).log_prob(x) + self.p_y(z2).log_prob(y)

    def log_q(self, x, z1, z2):
        return self.q_z1(x).log_prob(z1) + self.q_z2(x, z1).log_prob(z2)

    def draw(self, x, K):
        z1 = self.q_z1(x).expand((K, len(x)) if K > 1 else (len(x),)).rsample()
        return z1, self.q_z2(x, z1).rsample()


def mixture():
    """p(z) p(x | z) q(z | x) with z in {0, 1, 2}; the guide has logits of its own for every image."""
    logits, loc = torch.tensor([0.0, 1.0, -1.0]), nn.Parameter(torch.tensor([-1.0, 0.0, 2.0]))
    program = nn.Module()
    program.loc = loc

    def model(x):
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=logits))
            pyro.sample("x", dist.Normal(loc[z], 0.7), obs=x)

    def guide(x):
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Categorical(logits=program.logits))

    def elbo(x):
        q = program.logits.softmax(-1)
        log_joint = logits.log_softmax(-1) + dist.Normal(loc, 0.7).log_prob(x.unsqueeze(-1))
        return (q * (log_joint - q.log())).sum(-1)

    program.model, program.guide, program.elbo = model, guide, elbo
    return program


def draws(estimator, program, args, runs=40):
    values = []
    for seed in range(runs):
        torch.manual_seed(seed)
        loss = estimator(program.model, program.guide)(*args)
        values.append(torch.cat([gradient.flatten() for gradient in gradients(loss, program).values()]))
    return torch.stack(values)


def assert_same_mean(one, other, program, *args, runs=40):
    """The mean gradients differ by chance alone; most entries are within 2 standard errors."""
    a, b = draws(one, program, args, runs), draws(other, program, args, runs)
    assert_mean_is(a, b.mean(0), error=b.std(0) / runs**0.5, sees=b.mean(0).norm())
    z = (a.mean(0) - b.mean(0)) / ((a.var(0) + b.var(0)) / runs).sqrt().clamp(min=1e-10)
    assert z.abs().median() < 2, f"{name(one)} against {name(other)}: {z}"


# Exact gradients by quadrature ----------------------------------------------------------------------------------------


class Chain(nn.Module):
    """z1 ~ N(m, s), z2 ~ N(a tanh z1, t), y ~ Bernoulli(b z1 + c z2), every parameter trained; q(z1) q(z2 | z1)."""

    latent = 2

    def __init__(self):
        super().__init__()
        self.m, self.a, self.b, self.c = (nn.Parameter(torch.tensor(value)) for value in (0.4, 1.2, 0.9, -1.5))
        self.log_s, self.log_t = (nn.Parameter(torch.tensor(value)) for value in (0.3, -0.2))
        self.loc1, self.loc2, self.pull = (nn.Parameter(torch.tensor(value)) for value in (0.1, -0.3, 0.5))
        self.scale1, self.scale2 = (nn.Parameter(torch.tensor(value)) for value in (-0.2, -0.1))

    def p_z1(self):
        return dist.Normal(self.m, self.log_s.exp())

    def p_z2(self, z1):
        return dist.Normal(self.a * z1.tanh(), self.log_t.exp())

    def p_y(self, z1, z2):
        return dist.Bernoulli(logits=self.b * z1 + self.c * z2)

    def q_z1(self):
        return dist.Normal(self.loc1, self.scale1.exp())

    def q_z2(self, z1):
        return dist.Normal(self.loc2 + self.pull * z1, self.scale2.exp())

    def model(self, y):
        with pyro.plate("images", len(y)):
            z1 = pyro.sample("z1", self.p_z1())
            z2 = pyro.sample("z2", self.p_z2(z1))
            pyro.sample("y", self.p_y(z1, z2), obs=y)

    def guide(self, y):
        with pyro.plate("images", len(y)):
            z1 = pyro.sample("z1", self.q_z1())
            pyro.sample("z2", self.q_z2(z1))

    def log_w(self, y, noise):
        q_z1 = self.q_z1()
        z1 = q_z1.loc + q_z1.scale * noise[..., 0]
        q_z2 = self.q_z2(z1)
        z2 = q_z2.loc + q_z2.scale * noise[..., 1]
        log_p = self.p_z1().log_prob(z1) + self.p_z2(z1).log_prob(z2) + self.p_y(z1, z2).log_prob(y)
        return log_p - q_z1.log_prob(z1) - q_z2.log_prob(z2)


class Oracle(LinearGaussian):
    """The linear Gaussian program of one latent and two pixels, its guide not exact."""

    def __init__(self):
        posterior = LinearPosterior(torch.tensor([[0.3, -0.1]]), torch.tensor([0.2]), log_scale=torch.tensor([-0.5]))
        super().__init__(torch.tensor([[0.8], [-1.1]]), torch.tensor([0.1, 0.3]), scale=0.9, posterior=posterior)

    def log_w(self, x, noise):
        q = self.posterior(x)
        z = q.mean + q.stddev * noise
        return self.prior().log_prob(z) + self.likelihood(z).log_prob(x) - q.log_prob(z)


def known_programs():
    """Return programs of which an estimator's mean gradient is known, each with the arguments of one image."""
    return [(Oracle(), torch.tensor([[0.7, -1.2]])), (Chain(), torch.ones(1))]


def exact_gradient(program, x, bound, K, nodes=16):
    """Return the gradient of −E bound(log w_1 … log w_K) at one image, by Gauss–Hermite quadrature over all noise."""
    points, weights = (torch.tensor(part) for part in np.polynomial.hermite_e.hermegauss(nodes))
    dims = K * program.latent
    noise = torch.cartesian_prod(*[points] * dims).reshape(-1, K, program.latent)
    weight = torch.cartesian_prod(*[weights / weights.sum()] * dims).reshape(-1, dims).prod(-1)
    value = (weight * bound(program.log_w(x, noise))).sum()
    return value.item(), torch.cat([gradient.flatten() for gradient in gradients(-value, program).values()])


def assert_mean(estimator, program, x, expected, n=2000, runs=40):
    """The mean gradient is off by chance alone; most entries are within 2 standard errors."""
    ours = draws(estimator, program, (x.expand(n, *x.shape[1:]),), runs) / n
    assert_mean_is(ours, expected, sees=expected.norm() / 2)
    z = (ours.mean(0) - expected) / (ours.var(0) / runs).sqrt().clamp(min=1e-10)
    assert z.abs().median() < 2, f"{name(estimator)}: {z}"


def variances(estimator, program, x, n=2000, runs=100):
    """Return the variance of the gradient at one image, by parameter."""
    x = x.expand(n, *x.shape[1:])
    found = [estimate(estimator, program, x, seed)[1] for seed in range(runs)]
    return {key: torch.stack([one[key] for one in found]).var(0).sum().item() / n for key in found[0]}


# Exact gradients by enumeration ---------------------------------------------------------------------------------------


class Bits(nn.Module):
    """Three bits z with logits, a prior of their own, y ~ N(w·z + c z₁ z₂ z₃, 0.6)."""

    def __init__(self, cubic=1.5, infer=None):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.4, -0.8, 0.1]))
        self.prior = nn.Parameter(torch.tensor([0.0, 0.5, -0.3]))
        self.weight, self.cubic = nn.Parameter(torch.tensor([0.7, -0.9, 1.1])), cubic

    def p_y(self, z):
        return dist.Normal((z * self.weight).sum(-1) + self.cubic * z.prod(-1), 0.6)

    def model(self, y):
        with pyro.plate("images", len(y)):
            z = pyro.sample("z", dist.Bernoulli(logits=self.prior).to_event(1))
            pyro.sample("y", self.p_y(z), obs=y)

    def guide(self, y):
        with pyro.plate("images", len(y)):
            pyro.sample("z", self.q())

    def q(self):
        return dist.Bernoulli(logits=self.logits).to_event(1)

    def values(self):
        return torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * len(self.logits)).reshape(-1, len(self.logits))

    def log_w(self, y, z):
        log_p = dist.Bernoulli(logits=self.prior).to_event(1).log_prob(z) + self.p_y(z).log_prob(y)
        return log_p - self.q().log_prob(z)


class Choice(nn.Module):
    """One of four z with logits, y ~ N(loc·z + bent · sin loc·z, 0.6): log p(y, z) is quadratic in z if not bent."""

    def __init__(self, bent=0.0, infer=None):
        super().__init__()
        self.logits, self.infer = nn.Parameter(torch.tensor([0.4, -0.8, 0.1, 0.6])), infer or {}
        self.prior = nn.Parameter(torch.tensor([0.0, 0.5, -0.3, 0.2]))
        self.loc, self.bent = nn.Parameter(torch.tensor([0.7, -0.9, 1.1, 0.2])), bent

    def p_y(self, z):
        loc = (z * self.loc).sum(-1)
        return dist.Normal(loc + self.bent * loc.sin(), 0.6)

    def model(self, y):
        with pyro.plate("images", len(y)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=self.prior))
            pyro.sample("y", self.p_y(z), obs=y)

    def guide(self, y):
        with pyro.plate("images", len(y)):
            pyro.sample("z", self.q(), infer=self.infer)

    def q(self):
        return dist.OneHotCategorical(logits=self.logits)

    def values(self):
        return torch.eye(len(self.logits))

    def log_w(self, y, z):
        log_p = dist.OneHotCategorical(logits=self.prior).log_prob(z) + self.p_y(z).log_prob(y)
        return log_p - self.q().log_prob(z)


def enumerated_gradient(program, y):
    """Return the gradient of minus the ELBO at one image, summed over all values of z."""
    z = program.values()
    elbo = (program.q().log_prob(z).exp() * program.log_w(y, z)).sum()
    return torch.cat([gradient.flatten() for gradient in gradients(-elbo, program).values()])
