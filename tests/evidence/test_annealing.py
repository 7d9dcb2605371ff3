"""Temperatures, settings, and Hamiltonian transitions against the exact posterior."""

import pytest
import torch
from evidence_programs import D, images, oracle

from pyro_vae.evidence import annealed_evidence, bidirectional, linear, sigmoid
from pyro_vae.evidence.annealing import hamiltonian
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
