"""Annealed Hamiltonian chains: their temperatures, their transitions, and their weights (Neal 2001; Wu et al. 2017)."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypedDict

import numpy as np
import pyro
import torch
from torch import Tensor
from tqdm import tqdm

from pyro_vae.checks import positive_number, whole_number
from pyro_vae.evidence.path import AnnealingPath, ChainState
from pyro_vae.evidence.smc import family_weights, resampled
from pyro_vae.random import drawn_like

KEPT = 0.85  # share of the momentum that a leapfrog step keeps


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


class SequentialOptions(AnnealingOptions, total=False):
    """The keywords of ``annealed_evidence``: also whether chains are resampled."""

    resample: bool


class AnnealingSettings(NamedTuple):
    """T, chains per image, leapfrog steps per transition, β_0 … β_T, first step size, whether chains are resampled.

    β is None if pilots are to find it, and a step size of None is D^−¼.
    """

    num_temperatures: int
    chains: int
    leapfrog: int
    betas: list[float] | None
    step_size: float | None
    resample: bool


def annealing_settings(
    num_temperatures: int = 500,
    chains: int = 16,
    leapfrog: int = 1,
    schedule: Callable[[int], Tensor] | None = None,
    step_size: float | None = None,
    resample: bool = False,
) -> AnnealingSettings:
    """Check the options of an annealing and return its settings; raise ValueError for impossible ones.

    >>> annealing_settings(2, chains=4, schedule=linear).betas
    [0.0, 0.5, 1.0]
    """
    for name, number in (("num_temperatures", num_temperatures), ("chains", chains), ("leapfrog", leapfrog)):
        whole_number(name, number)
    if num_temperatures < 2:
        raise ValueError("num_temperatures: wanted at least 2, got 1; log_evidence needs none")
    if step_size is not None:
        positive_number("step_size", step_size)
    if not isinstance(resample, bool):
        raise ValueError(f"resample: wanted True or False, got {resample!r}; write resample=True")
    betas = None if schedule is None else _checked(schedule(num_temperatures).tolist(), num_temperatures)
    return AnnealingSettings(num_temperatures, chains, leapfrog, betas, step_size, resample)


class AnnealingPlan(NamedTuple):
    """How all chains of a batch move: β_0 … β_T, step sizes (T − 1, B) and their unit (B, D), and leapfrog steps.

    It must not depend on the chains whose weights count.
    """

    betas: Sequence[float]
    steps: Tensor
    scale: Tensor
    leapfrog: int

    def reversed(self) -> "AnnealingPlan":
        """Return the plan of the reverse chains."""
        return self._replace(betas=self.betas[::-1], steps=self.steps.flip(0))


class AnnealedChains(NamedTuple):
    """Chains that have passed all temperatures: log w (C, B), acceptance probabilities of transitions (T − 1, B)."""

    log_w: np.ndarray
    acceptance: Tensor


def anneal(path: AnnealingPath, z: Tensor, plan: AnnealingPlan, bar: tqdm, resample: bool = False) -> AnnealedChains:
    """Run chains z (C, B, D) along the temperatures of a plan.

    Momentum lasts from one temperature to the next, so that few leapfrog steps make a directed move (Horowitz 1991;
    Sohl-Dickstein & Culpepper 2012). The same procedure with the plan reversed is the exact reversal of the chains.
    """
    log_w, acceptance = np.zeros(z.shape[:2]), []  # in float64 on the host: not every device has it
    family = np.broadcast_to(np.arange(len(z))[:, None], log_w.shape)
    with pyro.validation_enabled(False):
        state, momentum = path(z), drawn_like(torch.randn, z)
        for t, (before, beta) in enumerate(itertools.pairwise(plan.betas)):
            log_w += (beta - before) * state.delta.cpu().numpy()
            bar.update(z.shape[1])
            if t == len(plan.steps):
                break
            if resample:
                log_w, chosen = resampled(log_w)
                family = np.take_along_axis(family, chosen, 0)
                state, momentum = _taken(state, momentum, torch.as_tensor(chosen, device=z.device))
            step = plan.steps[t].unsqueeze(-1) * plan.scale
            state, momentum, probability = hamiltonian(path, state, momentum, beta, step, plan.leapfrog)
            acceptance.append(probability.mean(0))
    return AnnealedChains(family_weights(log_w, family) if resample else log_w, torch.stack(acceptance))


def hamiltonian(
    path: AnnealingPath, old: ChainState, momentum: Tensor, beta: float, step: Tensor, leapfrog: int
) -> tuple[ChainState, Tensor, Tensor]:
    """Make a Hamiltonian transition that leaves f_β invariant (Neal 2011), and with it the momentum's N(0, I).

    The momentum is refreshed in part; if the proposal is rejected, it turns round. step: (B, D), the step size times
    the unit of each dimension. It is jittered by up to 20 %, because trajectories of one length may be periodic.
    Returns the next state, the next momentum and the acceptance probability (C, B).
    """
    step = step * (0.8 + 0.4 * drawn_like(torch.rand, old.start)).unsqueeze(-1)
    kept = KEPT**leapfrog
    momentum = kept * momentum + math.sqrt(1 - kept**2) * drawn_like(torch.randn, momentum)
    new, p = old, momentum
    for _ in range(leapfrog):
        p = p + 0.5 * step * new.gradient(beta)
        new = path(new.z + step * p)
        p = p + 0.5 * step * new.gradient(beta)
    energy = new.log_density(beta) - old.log_density(beta) - 0.5 * (p.square() - momentum.square()).sum(-1)
    probability = energy.nan_to_num(nan=-math.inf).clamp(max=0).exp()
    accepted = drawn_like(torch.rand, probability) < probability
    pairs = zip((*new, p), (*old, -momentum))
    *state, momentum = (torch.where(_like(a, accepted), a, b) for a, b in pairs)
    return ChainState(*state), momentum, probability


def _taken(state: ChainState, momentum: Tensor, chosen: Tensor) -> tuple[ChainState, Tensor]:
    """Return the chains ``chosen``, (C, B), of each image."""
    *taken, momentum = (a.gather(0, _like(a, chosen).expand_as(a)) for a in (*state, momentum))
    return ChainState(*taken), momentum


def _like(a: Tensor, chosen: Tensor) -> Tensor:
    """Return values (C, B) with the number of dimensions of a (C, B, ...)."""
    return chosen.reshape(chosen.shape + (1,) * (a.dim() - 2))


def _checked(betas: list[float], num_temperatures: int) -> list[float]:
    rising = all(before < beta for before, beta in itertools.pairwise(betas))
    if len(betas) != num_temperatures + 1 or (betas[0], betas[-1]) != (0.0, 1.0) or not rising:
        wanted = f"{num_temperatures + 1} rising numbers from 0 to 1, as from annealing.linear"
        raise ValueError(f"schedule: wanted {wanted}; got {betas}")
    return betas
