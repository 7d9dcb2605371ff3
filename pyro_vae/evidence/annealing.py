"""Annealed Hamiltonian chains: their temperatures, their transitions, and their weights (Neal 2001; Wu et al. 2017)."""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple, TypedDict

import numpy as np
import pyro
import torch
from torch import Tensor
from tqdm import tqdm

from pyro_vae.checks import positive_number, whole_number
from pyro_vae.evidence.path import AnnealingPath, ChainState

TARGET_ACCEPTANCE = 0.65  # of Hamiltonian proposals (Neal 2011)
ADAPTATION = 0.1  # d log(step size) for each unit by which the acceptance misses its target
PILOTS = 2  # chains per image that carry no weight and only set the step size
SCALE_DRAWS = 64  # draws per image of the starting density, whose spread is the unit of the step size


def linear(num_temperatures: int) -> Tensor:
    """Return β_t = t / T, shape (T + 1,).

    >>> linear(4)
    tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000], dtype=torch.float64)
    """
    return torch.from_dlpack(np.linspace(0, 1, num_temperatures + 1))


def sigmoid(num_temperatures: int, slope: float = 4.0) -> Tensor:
    """Return β_t ∝ σ(slope (2t/T − 1)), shifted and scaled to [0, 1]: dense at both ends (Grosse et al. 2015).

    >>> sigmoid(4)
    tensor([0.0000, 0.1050, 0.5000, 0.8950, 1.0000], dtype=torch.float64)
    """
    beta = 1 / (1 + np.exp(-slope * (2 * np.linspace(0, 1, num_temperatures + 1) - 1)))
    return torch.from_dlpack((beta - beta[0]) / (beta[-1] - beta[0]))


class AnnealingOptions(TypedDict, total=False):
    """The keywords of ``annealed_evidence`` and ``bidirectional`` that make up ``AnnealingSettings``."""

    num_temperatures: int
    chains: int
    leapfrog: int
    schedule: Callable[[int], Tensor] | None
    step_size: float | None


class AnnealingSettings(NamedTuple):
    """β_0 … β_T, chains per image, leapfrog steps per transition, and the first step size (None: ½ D^−¼)."""

    betas: list[float]
    chains: int
    leapfrog: int
    step_size: float | None

    @property
    def num_temperatures(self) -> int:
        """T."""
        return len(self.betas) - 1

    def reversed(self) -> "AnnealingSettings":
        """Return the settings with the temperatures in reverse."""
        return self._replace(betas=self.betas[::-1])


def annealing_settings(
    num_temperatures: int = 500,
    chains: int = 16,
    leapfrog: int = 10,
    schedule: Callable[[int], Tensor] | None = None,
    step_size: float | None = None,
) -> AnnealingSettings:
    """Check the options of an annealing and return its settings; raise ValueError for impossible ones.

    >>> annealing_settings(2, chains=4, schedule=linear)
    AnnealingSettings(betas=[0.0, 0.5, 1.0], chains=4, leapfrog=10, step_size=None)
    """
    for name, number in (("num_temperatures", num_temperatures), ("chains", chains), ("leapfrog", leapfrog)):
        whole_number(name, number)
    if num_temperatures < 2:
        raise ValueError("num_temperatures: wanted at least 2, got 1; log_evidence needs none")
    if step_size is not None:
        positive_number("step_size", step_size)
    betas = (schedule or sigmoid)(num_temperatures).tolist()
    rising = all(before < beta for before, beta in itertools.pairwise(betas))
    if len(betas) != num_temperatures + 1 or (betas[0], betas[-1]) != (0.0, 1.0) or not rising:
        wanted = f"{num_temperatures + 1} rising numbers from 0 to 1, as from annealing.linear"
        raise ValueError(f"schedule: wanted {wanted}; got {betas}")
    return AnnealingSettings(betas, chains, leapfrog, step_size)


class AnnealedChains(NamedTuple):
    """Chains that have passed all temperatures.

    log w (C, B); acceptance probabilities and step sizes of the T − 1 transitions, each (T − 1, B); the unit of the
    step size (B, D).
    """

    log_w: np.ndarray
    acceptance: Tensor
    steps: Tensor
    scale: Tensor


def forward_chains(path: AnnealingPath, settings: AnnealingSettings, bar: tqdm) -> AnnealedChains:
    """Run chains from the starting density to p(x, z); pilot chains set their step sizes."""
    scale = path.draw(SCALE_DRAWS).std(0)
    z = path.draw(PILOTS + settings.chains)
    step = 0.5 * z.shape[-1] ** -0.25 if settings.step_size is None else settings.step_size
    steps = z.new_full((len(settings.betas) - 2, z.shape[1]), step)
    return anneal(path, z, settings, steps, scale, PILOTS, bar)


def anneal(
    path: AnnealingPath, z: Tensor, settings: AnnealingSettings, steps: Tensor, scale: Tensor, pilots: int, bar: tqdm
) -> AnnealedChains:
    """Run chains z (pilots + C, B, D) along the temperatures; pilots, if any, set all step sizes but the first."""
    log_w, acceptance = np.zeros(z.shape[:2]), []  # in float64 on the host: not every device has it
    with pyro.validation_enabled(False):
        state = path(z)
        for t, (before, beta) in enumerate(itertools.pairwise(settings.betas)):
            log_w += (beta - before) * state.delta.cpu().numpy()
            bar.update(z.shape[1])
            if t == len(steps):
                break
            state, probability = hamiltonian(path, state, beta, steps[t].unsqueeze(-1) * scale, settings.leapfrog)
            acceptance.append(probability[pilots:].mean(0))
            if pilots and t + 1 < len(steps):
                steps[t + 1] = steps[t] * (ADAPTATION * (probability[:pilots].mean(0) - TARGET_ACCEPTANCE)).exp()
    return AnnealedChains(log_w[pilots:], torch.stack(acceptance), steps, scale)


def hamiltonian(
    path: AnnealingPath, old: ChainState, beta: float, step: Tensor, leapfrog: int
) -> tuple[ChainState, Tensor]:
    """Make a Hamiltonian transition that leaves f_β invariant (Neal 2011).

    step: (B, D), the step size times the unit of each dimension. It is jittered by up to 20 %, because trajectories of
    one length may be periodic. Returns the next state and the acceptance probability (C, B).
    """
    step = step * (0.8 + 0.4 * torch.rand_like(old.start)).unsqueeze(-1)
    momentum = torch.randn_like(old.z)
    new, p = old, momentum
    for _ in range(leapfrog):
        p = p + 0.5 * step * new.gradient(beta)
        new = path(new.z + step * p)
        p = p + 0.5 * step * new.gradient(beta)
    energy = new.log_density(beta) - old.log_density(beta) - 0.5 * (p.square() - momentum.square()).sum(-1)
    probability = energy.nan_to_num(nan=-math.inf).clamp(max=0).exp()
    accepted = torch.rand_like(probability) < probability
    chosen = (torch.where(accepted.reshape(accepted.shape + (1,) * (a.dim() - 2)), a, b) for a, b in zip(new, old))
    return ChainState(*chosen), probability
