"""Triangular solves by halves: orders, widths, blocks and clamps, against the written Jacobian; and under tracing."""

import itertools

import pyro.distributions.transforms as transforms
import pytest
import torch
from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN
from torch import nn

from pyro_vae.tracing.masked import degrees, masked_step

pytestmark = pytest.mark.usefixtures("float64")


def flow(network, context=None, **options):
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.4)
    if context is None:
        return transforms.AffineAutoregressive(network, **options)
    return transforms.ConditionalAffineAutoregressive(network, **options).condition(context)


def jacobian(transform, x):
    """J of each row, (rows, D, D)."""
    return torch.stack([torch.autograd.functional.jacobian(transform, row) for row in x])


@pytest.mark.parametrize(("D", "hidden"), [(2, [2]), (3, [5, 4]), (8, [8]), (9, [9, 9]), (21, [50, 30, 40])])
def test_the_solution_is_that_of_the_written_jacobian(D, hidden):
    transform, x, b = flow(AutoRegressiveNN(D, hidden)), torch.randn(2, D), torch.randn(2, D)
    step, order = masked_step(transform, x)
    expected = torch.linalg.solve(jacobian(transform, x).mT, b.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(step.solved(b[:, order]), expected[:, order])


def test_a_context_belongs_to_its_row():
    x, b, contexts = torch.randn(2, 10), torch.randn(2, 10), torch.randn(2, 3)
    network = ConditionalAutoRegressiveNN(10, 3, [12, 12])
    both, order = masked_step(flow(network, contexts), x)
    found = both.solved(b[:, order])
    for row, context in enumerate(contexts):
        one = transforms.ConditionalAffineAutoregressive(network).condition(context)
        expected = torch.linalg.solve(jacobian(one, x[row : row + 1]).mT, b[row, :, None]).squeeze()
        torch.testing.assert_close(found[row], expected[order])


def test_a_clamped_scale_has_pyros_derivative():
    transform, x = flow(AutoRegressiveNN(4, [6]), log_scale_min_clip=-0.01, log_scale_max_clip=0.01), torch.randn(2, 4)
    step, order = masked_step(transform, x)
    matrix = jacobian(transform, x)
    assert step.scale.log().abs().max() <= 0.01 + 1e-12
    expected = torch.linalg.solve(matrix.mT, torch.ones(2, 4, 1)).squeeze(-1)
    torch.testing.assert_close(step.solved(torch.ones(2, 4)), expected[:, order])


def test_degrees_say_what_each_unit_sees():
    network = ConditionalAutoRegressiveNN(6, 2, [7, 9], permutation=torch.tensor([3, 1, 0, 5, 2, 4]))
    seen = [layer.mask for layer in network.layers[:-1]]
    reached = list(itertools.accumulate(seen, lambda below, mask: ((mask @ below) > 0).double()))
    assert degrees(network) == [links[:, 2:].sum(1).int().tolist() for links in reached]


def test_units_in_another_order_and_other_networks_are_not_known():
    network = AutoRegressiveNN(4, [6])
    network.masks[0] = network.masks[0].flip(0)
    assert degrees(network) is None
    assert masked_step(transforms.AffineAutoregressive(network), torch.zeros(1, 4)) is None

    class Other(AutoRegressiveNN):
        pass

    assert masked_step(transforms.AffineAutoregressive(Other(4, [6])), torch.zeros(1, 4)) is None
    of_one = AutoRegressiveNN(4, [6], param_dims=[1])
    assert masked_step(transforms.AffineAutoregressive(of_one), torch.zeros(1, 4)) is None


def test_a_network_that_was_never_run_can_be_exported():
    """Its degrees are read from its masks, while no value can be read from tensors of the graph."""
    network = AutoRegressiveNN(12, [16])

    class Program(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x, b):
            step, order = masked_step(transforms.AffineAutoregressive(self.network), x)
            return step.solved(b[:, order])

    x, b = torch.randn(2, 12), torch.randn(2, 12)
    exported = torch.export.export(Program(), (x, b), strict=False).module()
    torch.testing.assert_close(exported(x, b), Program()(x, b))
