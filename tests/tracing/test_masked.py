"""Triangular solves by halves: orders, widths, blocks and clamps, against the written Jacobian."""

import itertools
import threading
import warnings

import pyro.distributions.transforms as transforms
import pytest
import torch
from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN
from torch import nn

from pyro_vae.tracing.jacobians import stepped
from pyro_vae.tracing.masked import degrees, masked_network, watched

pytestmark = pytest.mark.usefixtures("float64")


def random_order(D, hidden):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*input_dim = 1")
        return AutoRegressiveNN(D, hidden)


def flow(network, context=None, **options):
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.4)
    if context is None:
        return transforms.AffineAutoregressive(network, **options)
    return transforms.ConditionalAffineAutoregressive(network, **options).condition(context)


def backwards(transform, x, b):
    """g of the step with Jᵀ g = b."""
    return stepped(transform, x.requires_grad_())[1](b)


def written(transform, x, b):
    """The same by the Jacobian of each row, (rows, D, D)."""
    matrix = torch.stack([torch.autograd.functional.jacobian(transform, row) for row in x.detach()])
    return torch.linalg.solve(matrix.mT, b.unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize(("D", "hidden"), [(1, [2]), (3, [5, 4]), (16, [16]), (17, [17, 17]), (41, [90, 60, 70])])
def test_the_solution_is_that_of_the_written_jacobian(D, hidden):
    transform, x, b = flow(random_order(D, hidden)), torch.randn(2, D), torch.randn(2, D)
    torch.testing.assert_close(backwards(transform, x, b), written(transform, x, b))


def test_a_context_belongs_to_its_row():
    x, b, contexts = torch.randn(2, 20), torch.randn(2, 20), torch.randn(2, 3)
    network = ConditionalAutoRegressiveNN(20, 3, [22, 22])
    found = backwards(flow(network, contexts), x, b)
    for row, context in enumerate(contexts):
        one = transforms.ConditionalAffineAutoregressive(network).condition(context)
        torch.testing.assert_close(found[row], written(one, x[row : row + 1], b[row : row + 1])[0])


def test_a_clamped_scale_has_pyros_derivative():
    transform, x = flow(AutoRegressiveNN(4, [6]), log_scale_min_clip=-0.01, log_scale_max_clip=0.01), torch.randn(2, 4)
    torch.testing.assert_close(backwards(transform, x, torch.ones(2, 4)), written(transform, x, torch.ones(2, 4)))
    assert transform.arn(x)[1].abs().max() > 0.1 > transform._cached_log_scale.abs().max()


def test_degrees_say_what_each_unit_sees():
    network = ConditionalAutoRegressiveNN(6, 2, [7, 9], permutation=torch.tensor([3, 1, 0, 5, 2, 4]))
    seen = [layer.mask for layer in network.layers[:-1]]
    reached = list(itertools.accumulate(seen, lambda below, mask: ((mask @ below) > 0).double()))
    assert degrees(network) == [links[:, 2:].sum(1).int().tolist() for links in reached]


def test_units_in_another_order_and_other_networks_are_not_known():
    network = AutoRegressiveNN(4, [6])
    assert masked_network(transforms.AffineAutoregressive(network)) is network

    class Other(AutoRegressiveNN):
        pass

    shuffled = AutoRegressiveNN(4, [6])
    shuffled.masks[0] = shuffled.masks[0].flip(0)
    for unknown in (shuffled, Other(4, [6]), AutoRegressiveNN(4, [6], param_dims=[1])):
        assert masked_network(transforms.AffineAutoregressive(unknown)) is None


def test_nothing_stays_on_the_network():
    network = AutoRegressiveNN(4, [6])
    with pytest.raises(RuntimeError), watched(network):
        network(torch.zeros(2, 3))
    assert not any(layer._forward_hooks for layer in network.layers)


def test_another_thread_is_not_recorded():
    network, x = AutoRegressiveNN(4, [6]), torch.zeros(2, 4)
    with watched(network) as passes:
        network(x)
        other = threading.Thread(target=network, args=(x,))
        other.start()
        other.join()
    assert len(passes) == len(network.layers)
