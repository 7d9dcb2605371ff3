"""Pilot chains: a short annealing that carries no weight and finds temperatures and step sizes for one that does.

The weighted chains do not depend on their own past through what is adapted, so that E w = p(x) holds exactly.
"""

import numpy as np
import pyro
import torch
from torch import Tensor
from tqdm import tqdm

from pyro_vae.evidence.annealing import AnnealingPlan, AnnealingSettings, hamiltonian, sigmoid
from pyro_vae.evidence.path import AnnealingPath
from pyro_vae.random import drawn_like

TARGET_ACCEPTANCE = 0.9  # as momentum lasts, a rejection costs more than in plain Hamiltonian Monte Carlo
ADAPTATION = 1.0  # d log(step size) for each unit by which the acceptance misses its target
SHARE, FEWEST = 8, 8  # pilots pass an eighth of the temperatures, but at least eight
SCALE_DRAWS = 64  # draws per image of the starting density, whose spread is the unit of the step size


def pilot_temperatures(num_temperatures: int) -> int:
    """Return the number of temperatures that pilots pass.

    >>> [pilot_temperatures(T) for T in (3, 40, 400)]
    [3, 8, 50]
    """
    return min(num_temperatures, max(FEWEST, num_temperatures // SHARE))


def piloted(path: AnnealingPath, settings: AnnealingSettings, bar: tqdm) -> AnnealingPlan:
    """Run as many pilots as there will be chains, and return how the chains are to move."""
    scale, z = path.draw(SCALE_DRAWS).std(0), path.draw(settings.chains)
    T, n = settings.num_temperatures, pilot_temperatures(settings.num_temperatures)
    grid = np.interp(np.linspace(0, T, n + 1), np.arange(T + 1), settings.betas or sigmoid(T).tolist())
    step = z.new_full(z.shape[1:2], z.shape[-1] ** -0.25 if settings.step_size is None else settings.step_size)
    spreads, steps = [], []
    with pyro.validation_enabled(False):
        state, momentum = path(z), drawn_like(torch.randn, z)
        for beta in grid[1:]:
            bar.update(z.shape[1])
            spreads.append(_spread(state.delta))
            steps.append(step.log())
            state, momentum, probability = hamiltonian(
                path, state, momentum, beta, step.unsqueeze(-1) * scale, settings.leapfrog
            )
            step = step * (ADAPTATION * (probability.mean(0) - TARGET_ACCEPTANCE)).exp()
    spreads.append(_spread(state.delta))
    betas = settings.betas or equal_steps(grid, np.array(spreads), T)
    return AnnealingPlan(betas, _at(betas[1:-1], grid[1:], torch.stack(steps)).exp(), scale, settings.leapfrog)


def equal_steps(grid: np.ndarray, spreads: np.ndarray, num_temperatures: int) -> list[float]:
    """Return β_0 … β_T between which the weights lose equally much, from the spreads of Δ at a grid of β.

    A step dβ multiplies weights by exp(dβ Δ). Its conditional effective sample size (Zhou et al. 2016) is about
    1 / (1 + (dβ sd Δ)²), so that steps of equal dβ sd Δ make it equal. A spread of 1 nat is added: weights that hardly
    vary take equal steps, and a spread that is too small by chance makes no gap.

    >>> equal_steps(np.array([0.0, 0.5, 1.0]), np.zeros(3), 4)
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    length = np.concatenate([[0.0], np.cumsum(np.diff(grid) * (1 + (spreads[1:] + spreads[:-1]) / 2))])
    betas = np.interp(np.linspace(0, length[-1], num_temperatures + 1), length, grid)
    return [0.0, *betas[1:-1].tolist(), 1.0]


def _spread(delta: Tensor) -> float:
    """Return the standard deviation of Δ (C, B) over chains, as a mean over the images where it is finite."""
    spread = delta.cpu().double().std(0) if len(delta) > 1 else torch.zeros(1)
    finite = spread[spread.isfinite()]
    return finite.mean().item() if len(finite) else 0.0


def _at(betas: list[float], grid: np.ndarray, values: Tensor) -> Tensor:
    """Return values (n, B), known on a grid of β, at other β, by linear interpolation."""
    right = np.searchsorted(grid, betas).clip(1, len(grid) - 1) if len(grid) > 1 else np.zeros(len(betas), int)
    left = (right - 1).clip(0)
    width = np.where(right > left, grid[right] - grid[left], 1.0)
    share = values.new_tensor(((np.array(betas) - grid[left]) / width).clip(0, 1)).unsqueeze(-1)
    return torch.lerp(values[left], values[right], share)
