"""Draws go where the error is, and those that decide are not those that count."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monte_carlo import assert_mean_is, assert_share_is

from pyro_vae.arguments import ProgramArguments
from pyro_vae.evidence.budget import Draws, Verdicts, count, planned, seed_of
from pyro_vae.evidence.measuring import progress_bar
from pyro_vae.evidence.methods import ImportanceDraws


def pareto(images, shape, rows=7, **options):
    """A method whose weights have a Pareto tail, E w = 1, of a shape for each image."""

    def sampler(batch, K, bar):
        (k,) = batch.args
        return -k * torch.rand(K, len(k), dtype=torch.float64).log() + (1 - k).log()

    given = ProgramArguments.of((torch.full((images,), shape, dtype=torch.float64),))
    return ImportanceDraws(sampler, rows, **options), Draws(given, seed=0)


def measured(method, draws, plan):
    done = {}
    with progress_bar(0, "weight", False) as bar:
        count([method], draws, plan, bar, done)
    values = (np.concatenate(column) for column in zip(*(done[i] for i in sorted(done))))
    return next(values), next(values)


def test_each_image_gets_what_it_needs():
    method, draws = pareto(60, 0.1)
    draws.given.args[0][::2] = 0.3
    plan = planned([method], draws, 60, target=0.01, seconds=None)
    variance = {k: (1 - k) ** 2 / (1 - 2 * k) - 1 for k in (0.1, 0.3)}  # relative, of a Pareto distribution
    for k, of_kind in ((0.1, plan.draws[1::2]), (0.3, plan.draws[::2])):
        wanted = max(1.2 * variance[k] / 0.01**2, method.least * method.draws)
        assert 0.5 * wanted < of_kind.double().mean() < 2 * wanted
    _, error = measured(method, draws, plan)
    assert (error < 0.013).mean() > 0.9


@pytest.mark.parametrize("shape, most_trusted", [(0.6, 0.02), (0.75, 0.0)])
def test_heavy_tails_are_not_trusted(shape, most_trusted):
    method, draws = pareto(400, shape, rows=400)
    plan = planned([method], draws, 400, target=0.05, seconds=None)
    assert plan.trusted.double().mean() <= most_trusted
    assert plan.draws.max() <= 4 * method.pilots * method.draws  # more draws cure nothing


@pytest.mark.slow
def test_a_single_heavy_tail_is_mostly_not_trusted():
    trusted = []
    for seed in range(200):
        method, draws = pareto(1, 0.6, rows=1)
        draws.seed = seed
        trusted.append(bool(planned([method], draws, 1, target=0.05, seconds=None).trusted))
    assert_share_is(trusted, at_most=0.05, sees=0.22)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [0.1, 0.25])
def test_intervals_cover_the_truth(shape):
    method, draws = pareto(1000, shape, rows=500)
    plan = planned([method], draws, 1000, target=0.02, seconds=None)
    log_p, error = measured(method, draws, plan)
    assert plan.trusted.double().mean() > 0.95
    held = (np.abs(log_p / error) < 1.96)[plan.trusted.numpy()]  # log E w = 0
    assert_share_is(held, at_least=0.95, at_most=0.95, sees=0.89)
    assert_share_is(held, at_least=0.95, at_most=0.95, sees=0.99)


@pytest.mark.slow
def test_pilots_do_not_count():
    """An image whose pilots look good is not measured by them: its mean is right however the choice is made."""
    method, draws = pareto(2000, 0.3, rows=500, pilots=1, least=1)
    plan = planned([method], draws, 2000, target=0.05, seconds=None)
    log_p, _ = measured(method, draws, plan)
    few = (plan.draws == plan.draws.min()).numpy()
    assert_mean_is(np.exp(log_p[few]), 1.0, sees=0.05)


def test_a_plan_gives_the_same_bits_and_a_part_of_it_the_rest():
    method, draws = pareto(30, 0.2)
    plan = planned([method], draws, 30, target=0.03, seconds=None)
    first, again, part = {}, {}, {}
    with progress_bar(0, "weight", False) as bar:
        count([method], draws, plan, bar, first)
        count([method], Draws(draws.given, 0), plan, bar, again)
        part.update({i: first[i] for i in range(11)})
        count([method], Draws(draws.given, 0), plan, bar, part)
    for other in (again, part):
        assert all(np.array_equal(first[i], other[i], equal_nan=True) for i in range(30))


def test_seconds_set_the_target_by_the_measured_speed():
    method, draws = pareto(10, 0.2)
    plan = planned([method], draws, 10, target=None, seconds=1e-9)
    draws.seconds[method.name] = [method.rows * 0.5]  # half a second for each unit
    found = Verdicts([method], 10)
    found.variance[:], found.trusted[:] = 100.0, True
    target = found.affordable(draws, seconds=500.0)
    assert 0.5 * found.units(target).sum() <= 500 < 0.5 * found.units(0.9 * target).sum()
    assert plan.target == 10 and plan.draws.max() <= 2000  # what makes log p̂ normal, whatever it takes


def test_methods_are_tried_in_turn():
    """A second method gets the images that the first does not settle, and only those."""
    heavy, draws = pareto(40, 0.1)
    draws.given.args[0][5:15] = 0.7
    sure = ImportanceDraws(lambda batch, K, bar: 0.1 * torch.randn(K, batch.rows).double() - 0.005, rows=5, name="sure")
    plan = planned([heavy, sure], draws, 40, target=0.05, seconds=None)
    assert plan.methods == ("importance", "sure")
    assert set(torch.nonzero(plan.method).flatten().tolist()) >= set(range(5, 15))
    assert (plan.method == 0).double().mean() > 0.6 and plan.trusted.all()


def test_seeds_are_apart():
    names = SimpleNamespace(draws=[f"{purpose} {start}" for purpose in ("pilot", "count") for start in range(100)])
    assert len({seed_of(seed, name) for seed in (0, 1) for name in names.draws}) == 400


def test_seconds_and_a_target_ask_for_no_more_than_the_target():
    method, draws = pareto(10, 0.2)
    assert planned([method], draws, 10, target=0.3, seconds=1e6).target == 0.3
