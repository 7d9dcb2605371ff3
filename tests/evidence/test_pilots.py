"""Pilots: temperatures of equal steps, step sizes for each image, and chains that do not depend on themselves."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from evidence_programs import images, oracle
from tqdm import tqdm

from pyro_vae.evidence.annealing import annealing_settings, linear
from pyro_vae.evidence.path import AnnealingPath
from pyro_vae.evidence.pilots import SHARE, _spread, equal_steps, pilot_temperatures, piloted


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


def test_a_spread_is_averaged_over_the_ends_of_a_step():
    """β is 1 + (3 + 1)/2 = 3 nats a unit in the first half and 1 + 1 in the second: 1.5 + 1 in all, in fifths."""
    betas = equal_steps(np.array([0.0, 0.5, 1.0]), np.array([3.0, 1.0, 1.0]), 5)
    np.testing.assert_allclose(betas, [0, 1 / 6, 1 / 3, 1 / 2, 3 / 4, 1])


def test_the_first_step_is_of_the_size_of_the_docstring():
    """D^−¼ standard deviations of f_0, or the size that was given."""
    x = images(oracle(), 5)
    for options, wanted in (({}, 2**-0.25), ({"step_size": 0.3}, 0.3)):
        steps = plan(oracle(), x, num_temperatures=80, chains=3, **options).steps
        torch.testing.assert_close(steps[0], torch.full((5,), wanted).double())


def test_steps_do_not_depend_on_the_unit_of_z():
    """z in other units, 1,000 times as large, has the same temperatures and step sizes in its own deviations."""
    found = []
    for unit in (1.0, 1000.0):

        def model(x, unit=unit):
            with pyro.plate("rows", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x)).double(), unit))
                pyro.sample("x", dist.Normal(z / unit, 0.1), obs=x)

        torch.manual_seed(0)
        with torch.no_grad():
            path = AnnealingPath(model, None, (torch.linspace(-1, 1, 4).double(),))
            bar = tqdm(total=4 * pilot_temperatures(40), disable=True)
            found.append(piloted(path, annealing_settings(40, chains=2), bar))
    np.testing.assert_allclose(found[1].betas, found[0].betas, rtol=1e-6)
    torch.testing.assert_close(found[1].steps, found[0].steps, rtol=1e-6, atol=0)
    torch.testing.assert_close(found[1].scale, 1000 * found[0].scale)


def test_a_row_without_a_finite_spread_counts_for_nothing():
    delta = torch.tensor([[0.0, 0.0, 1.0], [2.0, torch.inf, 1.0]])
    assert _spread(delta) == pytest.approx(2**0.5 / 2)  # of two chains, √2 and 0
    assert _spread(delta[:1]) == _spread(delta[:, 1:2]) == 0
