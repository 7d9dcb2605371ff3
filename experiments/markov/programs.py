"""A deep Markov model as a Pyro program, and its parts: networks, or linear maps with the exact guide."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Generator, Tensor, nn


class DeepMarkov(nn.Module):
    """p(x_1 … x_T, z_1 … z_T) = Π_t p(z_t | z_{t−1}) p(x_t | z_t), as in Krishnan et al. (2017), of unequal lengths.

    Args:
        start: z_0 (L,).
        transition: ``transition(z)`` -> p(z_t | z_{t−1} = z), event (L,).
        emission: ``emission(z)`` -> p(x_t | z_t = z), event (D,).
        guide: ``guide(z, h)`` -> q(z_t | z_{t−1} = z, x), where ``guide.context(x, lengths)`` is h of all steps.

    x has the shape (B, T, D), with zeros after the first ``lengths`` steps of each row. The rows are at dim −2, the
    steps at dim −1. Each z_t is a site of its own, of shape (B, 1); x is one site in the plate over the steps. Steps
    that a row does not have are masked in model and guide.
    """

    def __init__(self, start: Tensor, transition: nn.Module, emission: nn.Module, guide: nn.Module):
        super().__init__()
        self.start = nn.Parameter(start)
        self.transition, self.emission, self.posterior = transition, emission, guide

    def model(self, x: Tensor, lengths: Tensor, forecast: bool = False) -> Tensor:
        """Sample z_1 … z_T and x; x is observed, unless it is to be drawn: then only its shape matters."""
        seen, z, states = steps(x, lengths), self.start.expand(len(x), 1, -1), []
        with pyro.plate("rows", len(x), dim=-2):
            for t in range(x.shape[1]):
                with poutine.mask(mask=seen[:, t : t + 1]):
                    z = pyro.sample(f"z_{t + 1}", self.transition(z))
                states.append(z)
            with pyro.plate("steps", x.shape[1], dim=-1), poutine.mask(mask=seen):
                return pyro.sample("x", self.emission(torch.cat(states, -2)), obs=None if forecast else x)

    def guide(self, x: Tensor, lengths: Tensor) -> None:
        """Sample z_1 … z_T given x."""
        seen, z, h = steps(x, lengths), self.start.expand(len(x), 1, -1), self.posterior.context(x, lengths)
        with pyro.plate("rows", len(x), dim=-2):
            for t in range(x.shape[1]):
                with poutine.mask(mask=seen[:, t : t + 1]):
                    z = pyro.sample(f"z_{t + 1}", self.posterior(z, h[:, t : t + 1]))

    def observe(self, batch: Any, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return x and the lengths; what lies beyond the length of a row, NaN too, is replaced by zero."""
        seen = steps(batch.sequences, batch.lengths).unsqueeze(-1)
        return torch.where(seen, batch.sequences, 0.0), batch.lengths


def steps(x: Tensor, lengths: Tensor) -> Tensor:
    """Return which steps each row has, (B, T).

    >>> steps(torch.zeros(2, 3, 1), torch.tensor([3, 1]))
    tensor([[ True,  True,  True],
            [ True, False, False]])
    """
    return torch.arange(x.shape[1], device=x.device) < lengths.unsqueeze(-1)


def reversed_steps(x: Tensor, lengths: Tensor) -> Tensor:
    """Return x (B, T, D) with the steps of each row in reverse, and the padding behind them; twice, it is x again.

    >>> reversed_steps(torch.tensor([[[1.0], [2.0], [0.0]]]), torch.tensor([2])).flatten()
    tensor([2., 1., 0.])
    """
    order = (lengths.unsqueeze(-1) - 1 - torch.arange(x.shape[1], device=x.device)) % x.shape[1]
    return x.take_along_dim(order.unsqueeze(-1), 1)


class NormalOf(nn.Module):
    """N(loc, diag(scale²)) of numbers, by one hidden layer; ``residual`` adds z to loc, so that a state stays."""

    def __init__(self, inputs: int, width: int, outputs: int, residual: bool = False):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, 2 * outputs))
        self.residual = residual

    def forward(self, z: Tensor) -> Any:
        """Return the distribution, event (outputs,)."""
        loc, raw = self.layers(z).chunk(2, -1)
        return dist.Normal(loc + z if self.residual else loc, nn.functional.softplus(raw) + 1e-3).to_event(1)


class BernoulliOf(nn.Module):
    """Independent binary numbers, by one hidden layer."""

    def __init__(self, inputs: int, width: int, outputs: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, outputs))

    def forward(self, z: Tensor) -> Any:
        """Return the distribution, event (outputs,)."""
        return dist.Bernoulli(logits=self.layers(z)).to_event(1)


class BackwardGRU(nn.Module):
    """q(z_t | z_{t−1}, x_t … x_T) by a recurrent network that reads each row from its last step to its first."""

    def __init__(self, inputs: int, width: int, latent: int):
        super().__init__()
        self.gru, self.normal = nn.GRU(inputs, width, batch_first=True), NormalOf(latent + width, width, latent)

    def context(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return h_t of all steps, (B, T, width); the padding of a row comes last, so that no h_t depends on it."""
        return reversed_steps(self.gru(reversed_steps(x, lengths))[0], lengths)

    def forward(self, z: Tensor, h: Tensor) -> Any:
        """Return q(z_t | z_{t−1} = z, h_t = h); h takes the particles of z."""
        return self.normal(torch.cat([z, h.expand(*z.shape[:-1], -1)], -1))


class Linear(nn.Module):
    """N(W z, diag(scale²)), scale a vector."""

    def __init__(self, weight: Tensor, scale: Tensor):
        super().__init__()
        self.weight, self.scale = nn.Parameter(weight), nn.Parameter(scale)

    def forward(self, z: Tensor) -> Any:
        """Return the distribution, event (outputs,)."""
        return dist.Normal(z @ self.weight.T, self.scale).to_event(1)


class ExactGuide(nn.Module):
    """p(z_t | z_{t−1}, x_t … x_T) of a linear program, by the information filter that runs backwards.

    log p(x_t … x_T | z_t) = −½ zᵀ Λ_t z + η_tᵀ z + const, with W, R of the emission and A, Q of the transition:

        Λ_t = Wᵀ R⁻¹ W + Aᵀ G Λ_{t+1} A,   η_t = Wᵀ R⁻¹ x_t + Aᵀ G η_{t+1},   G = (I + Λ_{t+1} Q)⁻¹.

    Steps beyond the length of a row have neither of the first terms.
    """

    def __init__(self, transition: Linear, emission: Linear, widened: float = 1.0):
        super().__init__()
        self.transition, self.emission, self.widened = transition, emission, widened

    def context(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return (η_t, Λ_t) of all steps, (B, T, L + L²)."""
        A, Q = self.transition.weight, torch.diag(self.transition.scale.square())
        WR = self.emission.weight.T / self.emission.scale.square()
        identity = torch.eye(len(A), dtype=x.dtype)
        eta, Lambda, found = x.new_zeros(len(x), len(A)), x.new_zeros(len(x), *A.shape), []
        for x_t, has in zip(x.unbind(1)[::-1], steps(x, lengths).unbind(1)[::-1]):
            G = torch.linalg.inv(identity + Lambda @ Q)
            eta = (G @ eta.unsqueeze(-1)).squeeze(-1) @ A + has.unsqueeze(-1) * (x_t @ WR.T)
            Lambda = A.T @ G @ Lambda @ A + has[:, None, None] * (WR @ self.emission.weight)
            found.append(torch.cat([eta, Lambda.flatten(1)], -1))
        return torch.stack(found[::-1], 1)

    def forward(self, z: Tensor, h: Tensor) -> Any:
        """Return p(z_t | z_{t−1} = z, x), its covariance times the square of ``widened``."""
        A, precision = self.transition.weight, torch.diag(self.transition.scale**-2)
        eta, Lambda = h[..., : len(A)], h[..., len(A) :].unflatten(-1, A.shape)
        covariance = torch.linalg.inv(precision + Lambda)
        loc = (covariance @ (z @ A.T @ precision + eta).unsqueeze(-1)).squeeze(-1)
        return dist.MultivariateNormal(loc, self.widened**2 * (covariance + covariance.mT) / 2)
