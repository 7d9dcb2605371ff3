"""A row scores the sum of its seen cells, whatever stands in the others; levels are a categorical distribution."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from monte_carlo import assert_mean_is

from pyro_vae.distributions.rows import Levels, Row, near_level

LEVELS = torch.tensor([[0.0, 3.3, 4.6], [1.0, 2.0, 5.0]])


def row(batch=(4,), seed=0):
    """Columns: Poisson, normal, levels, normal, levels; as parts the normals first."""
    g = torch.Generator().manual_seed(seed)
    normal = dist.Normal(torch.randn(*batch, 2, generator=g), 2.0)
    levels = Levels(LEVELS, torch.randn(*batch, 2, 3, generator=g))
    poisson = dist.Poisson(torch.rand(*batch, 1, generator=g) + 1)
    return Row([normal, levels, poisson], torch.tensor([1, 3, 2, 4, 0]), torch.tensor([0.0, 0.5, 0.0, 0.5, 1.0]))


X = torch.tensor([2.0, -0.7, 3.3, 1.2, 5.0])


def by_hand(p, x):
    normal, levels, poisson = p.parts
    log_probs = levels.logits.log_softmax(-1)
    return torch.stack(
        [
            dist.Poisson(poisson.rate[..., 0]).log_prob(x[0]),
            dist.Normal(normal.loc[..., 0], 2.0).log_prob(x[1]),
            log_probs[..., 0, 1],
            dist.Normal(normal.loc[..., 1], 2.0).log_prob(x[3]),
            log_probs[..., 1, 2],
        ],
        -1,
    )


@pytest.mark.parametrize("batch", [(), (4,), (7, 4)])
def test_log_probability_is_the_sum_over_columns(batch):
    p = row(batch)
    torch.testing.assert_close(p.column_log_prob(X), by_hand(p, X))
    torch.testing.assert_close(p.log_prob(X), by_hand(p, X).sum(-1))
    assert p.event_shape == (5,)
    assert p.batch_shape == batch


def test_missing_cells_score_nothing():
    p, x = row(), X.clone()
    x[[1, 4]] = torch.nan
    torch.testing.assert_close(p.log_prob(x), by_hand(p, X)[:, [0, 2, 3]].sum(-1))
    assert p.column_log_prob(x)[:, [1, 4]].isnan().all()
    assert torch.equal(p.log_prob(torch.full((5,), torch.nan)), torch.zeros(4))


def test_missing_cells_have_no_gradient_and_no_nan():
    p, x = row(), X.clone()
    x[[0, 1, 2]] = torch.nan
    parameters = (p.parts[0].loc, p.parts[1].logits, p.parts[2].rate)
    for parameter in parameters:
        parameter.requires_grad_()
    found = Row(
        [dist.Normal(parameters[0], 2.0), Levels(LEVELS, parameters[1]), dist.Poisson(parameters[2])],
        p.order,
        p.typical,
    )
    loc, logits, rate = torch.autograd.grad(found.log_prob(x).sum(), parameters)
    assert torch.equal(rate, torch.zeros_like(rate))
    assert torch.equal(loc[:, 0], torch.zeros(4))
    assert torch.equal(logits[:, 0], torch.zeros(4, 3))
    assert (loc[:, 1] != 0).all()
    assert (logits[:, 1] != 0).all()


@pytest.mark.parametrize(("column", "value"), [(0, -1.0), (0, 0.5), (1, torch.inf), (2, 1.0), (4, 0.0)])
def test_a_cell_outside_its_support_is_impossible(column, value):
    x = X.clone()
    x[column] = value
    with pyro.validation_enabled(False):
        p = row()
        assert torch.equal(p.log_prob(x), torch.full((4,), -torch.inf))
        assert not p.support.check(x)
    with pyro.validation_enabled(True), pytest.raises(ValueError, match="value argument"):
        row().log_prob(x)


def test_support_takes_missing_cells():
    x = torch.stack([X, torch.full((5,), torch.nan)])
    assert row(()).support.check(x).tolist() == [True, True]


def test_samples_lie_in_the_support_and_have_the_mean_and_variance():
    torch.manual_seed(0)
    p = row()
    x = p.sample((20_000,))
    assert x.shape == (20_000, 4, 5)
    assert p.support.check(x).all()
    assert_mean_is(x, p.mean, sees=0.1 * p.variance.max().sqrt())
    torch.testing.assert_close(x.var(0), p.variance, rtol=0.1, atol=0)


def test_expanded_and_in_a_plate():
    p = row(())
    assert p.expand((7, 4)).log_prob(X).shape == (7, 4)
    with pyro.plate("rows", 3), pyro.poutine.trace() as run:
        pyro.sample("x", p.expand((3,)), obs=X.expand(3, 5))
    torch.testing.assert_close(run.trace.log_prob_sum(), 3 * p.log_prob(X))


def test_point_values_are_means_or_most_probable_levels():
    p = row()
    normal, levels, poisson = p.parts
    codes = levels.logits.argmax(-1)
    expected = [poisson.rate[:, 0], normal.loc[:, 0], LEVELS[0][codes[:, 0]], normal.loc[:, 1], LEVELS[1][codes[:, 1]]]
    torch.testing.assert_close(p.point, torch.stack(expected, -1))


def test_average_is_that_of_the_mixture():
    """Against draws from the mixture, and its probabilities summed by hand."""
    torch.manual_seed(0)
    p, weights = row((3, 2)), torch.tensor([[0.5, 0.1], [0.3, 0.1], [0.2, 0.8]])
    value, spread, error = p.average(weights)
    which = torch.distributions.Categorical(weights.T).sample((50_000,))
    x = p.sample((50_000,)).gather(1, which[:, None, :, None].expand(-1, 1, 2, 5)).squeeze(1)
    numbers = [0, 1, 3]
    assert ((x.mean(0) - value)[:, numbers].abs() < 0.05).all()
    torch.testing.assert_close(x.std(0)[:, numbers], spread[:, numbers], rtol=0.03, atol=0)
    probs = (weights[..., None, None] * p.parts[1].probs).sum(0)
    torch.testing.assert_close(spread[:, [2, 4]], 1 - probs.amax(-1))
    torch.testing.assert_close(value[:, 2], LEVELS[0][probs[:, 0].argmax(-1)])
    one = row((3, 2)).average(torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]))
    torch.testing.assert_close(one[0], p.point[0])
    assert torch.equal(one[2], torch.zeros(2, 5))
    assert (error > 0).all()


def test_levels_are_a_categorical_distribution():
    torch.manual_seed(0)
    p = Levels(LEVELS[0], torch.randn(4, 3))
    codes = torch.tensor([2, 0, 1, 1])
    torch.testing.assert_close(p.log_prob(LEVELS[0][codes]), dist.Categorical(logits=p.logits).log_prob(codes))
    torch.testing.assert_close(p.mean, (p.probs * LEVELS[0]).sum(-1))
    assert p.support.check(torch.tensor([0.0, 3.3000002, 1.0])).tolist() == [True, True, False]
    assert p.sample((5,)).shape == (5, 4)


def test_levels_in_another_precision_are_the_same():
    wide = LEVELS[0].double() + 1e-7
    assert near_level(wide, LEVELS[0].double()).diagonal().all()


def test_levels_are_discrete_and_rows_are_not():
    assert Levels.support.is_discrete and Levels.support.event_dim == 0
    assert not Row.support.is_discrete and Row.support.event_dim == 1
    p = Levels(LEVELS[0], torch.zeros(3))
    assert p.support.is_discrete and row().support.event_dim == 1
