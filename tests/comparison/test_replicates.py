"""Many draws of a recorded function at once against the function itself, called again and again."""

import warnings

import pytest
import torch

from pyro_vae.comparison.replicates import Product, Replicates, whole
from pyro_vae.compiling import private
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
    found = many(draws)
    for result, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(whole(result), wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(torch.get_rng_state(), after)  # no number more, none less
    return found


def test_a_loss_and_its_gradient():
    weight = torch.full((2, 2), 0.3, dtype=torch.float64, requires_grad=True)

    def function(x):
        hidden = torch.tanh(x @ weight)
        z = hidden + torch.empty(3, 2, dtype=torch.float64).normal_() * hidden.exp()
        loss = (z @ weight - x).square().sum() + torch.rand(()).double()
        return loss.detach(), *torch.autograd.grad(loss, [weight])

    assert_draws_are_those_of(function, X)


def test_an_operator_without_a_batching_rule_is_not_warned_of(capfd, monkeypatch):
    def function(x):
        return (torch.rand(3, dtype=torch.float64).clamp_(0.2, 0.8) * x,)

    def slow():
        return torch.vmap(lambda x: torch.ops.aten.clamp_.default(x, 0.2))(torch.rand(2, 3))

    def warns(call, *args):  # in Python from torch 2.15 on, where quiet_torch silences it
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            call(*args)
        return "batching rule" in "".join([capfd.readouterr().err, *(str(each.message) for each in found)])

    assert not warns(assert_draws_are_those_of, function, X[:, 0])
    of_torch = warns(slow)  # a torch that has the rule does not
    monkeypatch.setattr(private, "VMAP_WARNINGS", ("torch._C._functorch", "gone"))
    assert warns(assert_draws_are_those_of, function, X[:, 0]) == (of_torch and torch.__version__ < "2.15")


@pytest.mark.parametrize("turned", [False, True])
def test_the_gradient_of_a_weight_is_a_product(turned):
    weight = torch.full((2, 2), 0.3, dtype=torch.float64, requires_grad=True)

    def function(x):
        noisy = x + torch.randn(3, 2).double()
        out = torch.nn.functional.linear(noisy, weight) if turned else noisy @ weight
        return torch.autograd.grad(out.exp().sum(), [weight])

    (found,) = assert_draws_are_those_of(function, X)
    assert isinstance(found, Product)


@pytest.mark.parametrize(("left", "right"), [((3, 4, 2), (2, 5)), ((4, 2), (3, 2, 5)), ((3, 4, 2), (3, 2, 5))])
def test_columns_of_a_product_are_those_of_its_matrices(left, right):
    generator = torch.Generator().manual_seed(0)
    product = Product(torch.randn(left, generator=generator), torch.randn(right, generator=generator))
    flat = product.whole().flatten(1)
    assert flat.shape == (3, product.size())
    for start, stop in ((0, 20), (3, 4), (4, 11), (15, 20)):
        torch.testing.assert_close(product.columns(start, stop), flat[:, start:stop])


def test_a_program_too_large_for_two_draws_at_once_makes_them_one_by_one():
    recorded = record(lambda x: (x.sum() + torch.rand(()),), (X,), WatchedConstants({}), compiler=None)
    recorded.elements = 1 << 40
    assert Replicates(recorded, (X,)).together == 1


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
