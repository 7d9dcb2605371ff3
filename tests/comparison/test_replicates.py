"""Many draws of a recorded function at once against the function itself, called again and again."""

import pytest
import torch

from pyro_vae.comparison.replicates import Replicates
from pyro_vae.compiling.constants import WatchedConstants
from pyro_vae.compiling.joint import record
from pyro_vae.compiling.untraceable import Untraceable

X = torch.linspace(-1, 1, 6, dtype=torch.float64).view(3, 2)


def replicates(function, *args):
    return Replicates(record(function, args, WatchedConstants({"function": function}), compiler=None), args)


def assert_draws_are_those_of(function, *args, draws=5):
    torch.manual_seed(3)
    expected = [torch.stack(results) for results in zip(*(function(*args) for _ in range(draws)))]
    after = torch.get_rng_state()
    many = replicates(function, *args)
    torch.manual_seed(3)
    for found, wanted in zip(many(draws), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(torch.get_rng_state(), after)  # no number more, none less


def test_a_loss_and_its_gradient():
    weight = torch.full((2, 2), 0.3, dtype=torch.float64, requires_grad=True)

    def function(x):
        hidden = torch.tanh(x @ weight)
        z = hidden + torch.empty(3, 2, dtype=torch.float64).normal_() * hidden.exp()
        loss = (z @ weight - x).square().sum() + torch.rand(()).double()
        return loss.detach(), *torch.autograd.grad(loss, [weight])

    assert_draws_are_those_of(function, X)


def test_random_bits_whose_chance_no_random_number_decides():
    def function(x):
        bits = torch.bernoulli(x.sigmoid())
        one = torch.multinomial(x.exp(), 1)
        return (bits * x).sum(), x.gather(1, one) + bits[:, :1]

    assert_draws_are_those_of(function, X)


def test_results_that_are_not_random_are_repeated():
    assert_draws_are_those_of(lambda x: (x.sum(), torch.randn(2).double() * x[0]), X)
    assert_draws_are_those_of(lambda x: (x.sum(), x.exp()), X, draws=2)


def test_writing_into_a_draw():
    def function(x):
        noise = torch.zeros(3, 2, dtype=torch.float64).normal_()
        noise.mul_(x)
        noise[0] = x[1]
        return (noise.sum(), noise)

    assert_draws_are_those_of(function, X)


def test_random_numbers_that_decide_on_others_are_refused():
    with pytest.raises(Untraceable, match=r"the distribution of .*depends on other random numbers"):
        replicates(lambda x: (torch.bernoulli(torch.rand(3)),), X)


def test_what_would_be_shared_by_all_draws_is_not_written():
    def function(x):
        shared = torch.zeros(3, 2, dtype=torch.float64)
        shared[0] = torch.rand(2).double()
        return (shared,)

    with pytest.raises(Untraceable, match="into a tensor that all draws share"):
        replicates(function, X)


def test_buffers_that_move_are_refused_and_stay():
    total = torch.zeros(2, dtype=torch.float64)

    def function(x):
        total.add_(x[0])
        return (total + torch.rand(2),)

    with pytest.raises(Untraceable):
        replicates(function, X)
    assert not total.any()
