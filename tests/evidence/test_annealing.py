"""Temperatures, settings, and Hamiltonian transitions against the exact posterior."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from evidence_programs import D, images, oracle, truth
from monte_carlo import assert_mean_is
from tqdm import tqdm

from pyro_vae.evidence import annealed_evidence, bidirectional, linear, sigmoid
from pyro_vae.evidence.annealing import AnnealingPlan, anneal, annealing_settings, hamiltonian
from pyro_vae.evidence.path import AnnealingPath


def test_schedules_run_from_zero_to_one():
    for schedule in (linear, sigmoid):
        betas = schedule(7)
        assert betas.dtype == torch.float64 and (betas[0], betas[-1]) == (0, 1) and (betas.diff() > 0).all()
    torch.testing.assert_close(sigmoid(6), 1 - sigmoid(6).flip(0))
    t = 2 * linear(6) - 1
    torch.testing.assert_close(sigmoid(6, slope=3.0), ((3 * t).sigmoid() - (-3 * t.new_ones(())).sigmoid()) / (
        (3 * t.new_ones(())).sigmoid() - (-3 * t.new_ones(())).sigmoid()))  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("leapfrog", "transitions"), [(8, 12), (1, 100)])
def test_transitions_leave_the_posterior_alone_and_find_it(leapfrog, transitions):
    program = oracle()
    x = images(program, 1)
    path = AnnealingPath(program.model, None, (x,))
    torch.manual_seed(0)
    point = path(path.draw(4000))
    momentum = torch.randn_like(point.z)
    for _ in range(transitions):
        step = torch.full((1, D), 0.2).double()
        point, momentum, probability = hamiltonian(path, point, momentum, 1.0, step, leapfrog)
    exact = program.exact_posterior(x)
    error = (point.z[:, 0].mean(0) - exact.mean[0]) / (exact.variance[0] / 4000).sqrt()
    assert error.abs().max() < 4
    spread = exact.variance[0].sqrt()
    assert (point.z[:, 0].T.cov() - exact.covariance_matrix[0]).div(spread * spread[:, None]).abs().max() < 0.1
    assert 0.5 < probability.mean() < 1
    assert (momentum[:, 0].T.cov() - torch.eye(D)).abs().max() < 0.1 and momentum.mean().abs() < 0.05


@pytest.mark.parametrize("options", [{"num_temperatures": 0}, {"num_temperatures": 1}, {"chains": 0}, {"leapfrog": 0},
                                     {"step_size": -1.0}, {"schedule": lambda n: linear(n + 1)},
                                     {"schedule": lambda n: linear(n).flip(0)}])  # fmt: skip
def test_annealing_that_cannot_be(options):
    program = oracle()
    for call in (annealed_evidence, bidirectional):
        with pytest.raises(ValueError, match="wanted"):
            call(program.model, program.guide, images(program, 2), **options)


def test_the_defaults_are_those_of_the_docstring():
    settings = annealing_settings()
    assert settings == (500, 16, 1, None, None, False)


@pytest.mark.parametrize("betas", [[0.0, 0.6, 0.4, 1.0], [0.0, 0.2, 0.4, 0.9], [0.1, 0.2, 0.4, 1.0]])
def test_a_schedule_rises_and_has_both_ends(betas):
    with pytest.raises(ValueError, match="schedule: wanted 4 rising numbers from 0 to 1"):
        annealing_settings(3, schedule=lambda T: torch.tensor(betas))


def test_a_proposal_whose_density_is_no_number_is_rejected():
    """z is positive in effect: log p(x, z) is NaN below zero."""

    def model(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)).double(), 1.0))
            pyro.factor("positive", z.sqrt())

    path = AnnealingPath(model, None, (torch.zeros(50).double(),), validated=False)
    torch.manual_seed(0)
    with pyro.validation_enabled(False):
        old = path(torch.full((4, 50, 1), 0.05).double())
        step = torch.full((50, 1), 1.0).double()
        new, _, probability = hamiltonian(path, old, torch.randn_like(old.z), 1.0, step, 1)
    assert (new.z > 0).all() and new.delta.isfinite().all()
    assert (probability == 0).double().mean() > 0.05 and (new.z != old.z).any()


@pytest.mark.parametrize("exact", [True, False])
def test_chains_make_all_transitions_and_weigh_without_bias(exact):
    """From the exact posterior every weight is p(x); from the prior their mean is, and their logarithms differ."""
    program = oracle(scale=2.0)
    x = images(program, 3)
    path = AnnealingPath(program.model, program.guide if exact else None, (x,))
    moves = AnnealingPlan(linear(5).tolist(), torch.full((4, 3), 0.3).double(), torch.ones(3, D).double(), 2)
    torch.manual_seed(0)
    bar = tqdm(total=5 * 3, disable=None)
    with torch.no_grad():
        chains = anneal(path, path.draw(4 if exact else 3000), moves, bar)
    assert chains.acceptance.shape == (4, 3) and chains.acceptance.min() > 0.5
    ratio = torch.from_numpy(chains.log_w) - truth(program, x)
    if exact:
        torch.testing.assert_close(ratio, torch.zeros(4, 3).double(), atol=1e-9, rtol=0)
    else:
        assert_mean_is(ratio.exp(), torch.ones(3), sees=0.3)
        spread = torch.from_numpy(anneal(path, path.draw(3000), moves._replace(steps=0 * moves.steps), bar).log_w).std(
            0
        )
        assert (ratio.std(0) < 0.8 * spread).all()  # without moves it is importance sampling
