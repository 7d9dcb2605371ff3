"""Pilots: temperatures of equal steps, step sizes for each image, and chains that do not depend on themselves."""

import math

import numpy as np
import pytest
import torch
from evidence_programs import images, oracle
from tqdm import tqdm

from pyro_vae.evidence.annealing import annealing_settings, linear
from pyro_vae.evidence.path import AnnealingPath
from pyro_vae.evidence.pilots import SHARE, equal_steps, pilot_temperatures, piloted


def plan(program, x, seed=0, **options):
    torch.manual_seed(seed)
    with torch.no_grad():
        return piloted(AnnealingPath(program.model, None, (x,)), annealing_settings(**options), tqdm(disable=True))


def test_temperatures_of_equal_steps():
    """Of a spread c / (β + b), which is that of a posterior of growing precision, they grow geometrically."""
    grid, b, c = np.linspace(0, 1, 4001), 0.01, 1000.0
    betas = np.array(equal_steps(grid, c / (grid + b), 50))
    np.testing.assert_allclose(np.log1p(betas / b), np.linspace(0, math.log1p(1 / b), 51), rtol=2e-3)
    assert (betas[0], betas[-1]) == (0, 1)
    flat = equal_steps(np.array([0, 0.3, 1.0]), np.full(3, 7.0), 10)
    np.testing.assert_allclose(flat, np.linspace(0, 1, 11))


def test_from_the_prior_temperatures_are_dense_where_weights_vary():
    found = plan(oracle(scale=0.2), images(oracle(scale=0.2), 50), num_temperatures=80, chains=4)
    betas = np.array(found.betas)
    assert len(betas) == 81 and (np.diff(betas) > 0).all()
    assert betas[40] < 0.25  # half of them
    assert found.steps.shape == (79, 50) and found.scale.shape == (50, 2)
    given = plan(oracle(), images(oracle(), 3), num_temperatures=80, schedule=linear)
    assert given.betas == linear(80).tolist()


def test_step_sizes_are_those_of_each_image():
    """Rows whose posterior is a hundred times as narrow as their prior take smaller steps at the end."""
    program = oracle(scale=0.01)
    narrow = plan(program, images(program, 10), num_temperatures=200, chains=8).steps
    wide = plan(oracle(scale=10.0), images(program, 10), num_temperatures=200, chains=8).steps
    assert (narrow[-1] < 0.1 * narrow[0]).all() and (wide[-1] > 0.7 * wide[0]).all()


def test_pilots_cost_an_eighth():
    assert [pilot_temperatures(T) for T in (2, 8, 64, 1000)] == [2, 8, 8, 1000 // SHARE]


@pytest.mark.parametrize("options", [{"chains": 1}, {"num_temperatures": 2}, {"num_temperatures": 3, "chains": 2}])
def test_few_chains_or_temperatures(options):
    found = plan(oracle(), images(oracle(), 3), **options)
    assert (np.diff(found.betas) > 0).all() and found.steps.isfinite().all()
    assert len(found.betas) == len(found.steps) + 2 == options.get("num_temperatures", 500) + 1


def test_a_reversed_plan():
    found = plan(oracle(), images(oracle(), 3), num_temperatures=10)
    back = found.reversed()
    assert list(back.betas) == found.betas[::-1] and torch.equal(back.steps, found.steps.flip(0))
