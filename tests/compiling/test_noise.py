"""Random operations that are taken out of a graph: the same numbers as when it draws them itself."""

import pytest
import torch
from torch import nn

from pyro_vae.compiling.noise import Draws, parts_of, without_draws
from pyro_vae.compiling.recorder import recorded
from pyro_vae.compiling.untraceable import Untraceable


def noisy(x):
    eps = torch.empty(x.shape).normal_()
    kept = torch.empty_like(x).bernoulli_(0.5)
    return (x * eps + torch.rand(3, *x.shape) + torch.randn_like(x) + kept + torch.randint(5, x.shape).float()).exp()


def test_the_graph_of_given_numbers_is_the_function():
    x = torch.linspace(0, 1, 8).reshape(4, 2)
    graph = recorded(noisy, [x])
    functions = without_draws(graph)
    with Draws() as draws:
        torch.manual_seed(3)
        wanted = noisy(x)
    assert functions == [draw.function for draw in draws.found] and len(functions) == 5
    torch.manual_seed(3)
    assert torch.equal(graph(x, *(draw() for draw in draws.found)), wanted)
    assert torch.equal(graph(x, *(torch.zeros(draw.shape) for draw in draws.found)), torch.ones(3, 4, 2))


@pytest.mark.parametrize(
    "function",
    [
        torch.bernoulli,
        torch.poisson,
        lambda x: torch._standard_gamma(x + 1),
        lambda x: x.clone().normal_(),
        lambda x: torch.multinomial(x + 1, 1),
    ],
)
def test_a_distribution_that_depends_on_a_tensor_cannot_be_drawn_before(function):
    x = torch.rand(3, 2)
    with pytest.raises(Untraceable, match="depends on tensors"), Draws():
        function(x)
    with pytest.raises(Untraceable, match="depends on tensors"):
        without_draws(recorded(function, [x]))


def test_a_generator_of_its_own_is_refused():
    with pytest.raises(Untraceable, match="a generator of its own"), Draws():
        torch.rand(2, generator=torch.Generator())


def test_rows_are_the_dimension_that_grows():
    with Draws() as whole:
        torch.randn(3, 8, 2), torch.randn(5), torch.randn(8)
    shapes = [torch.Size([3, 4, 2]), torch.Size([5]), torch.Size([4])]
    dims = [draw.dim_of_rows(shape, (8, 4)) for draw, shape in zip(whole.found, shapes)]
    assert dims == [1, None, 0]
    noise = torch.arange(8.0)
    assert [part.tolist() for part in parts_of(noise, 0, 2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert all(part is noise for part in parts_of(noise, None, 2))
    for shape in ([3, 3, 2], [2, 4, 2], [4, 2]):
        with pytest.raises(Untraceable, match="a draw of shape"):
            whole.found[0].dim_of_rows(torch.Size(shape), (8, 4))
    with pytest.raises(Untraceable, match="no dimension of 4 rows"):
        whole.found[2].dim_of_rows(torch.Size([4]), (4, 2))


def test_dropout_is_drawn_before():
    layer, x = nn.Dropout(0.5), torch.ones(6, 4)
    with Draws() as draws:
        torch.manual_seed(0)
        wanted = layer(x)
    graph = recorded(layer, [x])
    without_draws(graph)
    torch.manual_seed(0)
    assert torch.equal(graph(x, draws.found[0]()), wanted)
