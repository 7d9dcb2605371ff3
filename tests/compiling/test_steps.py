"""Steps of known gradients are those of Pyro's optimisers."""

import pytest
import torch
from pyro.optim import SGD, Adam, ClippedAdam

from pyro_vae.compiling.steps import Steps


@pytest.mark.parametrize(
    "make",
    [
        lambda: Adam({"lr": 0.1}),
        lambda: Adam({"lr": 0.1}, {"clip_norm": 0.5}),
        lambda: Adam({"lr": 0.1, "weight_decay": 0.1}),
        lambda: ClippedAdam({"lr": 0.1, "clip_norm": 0.3, "lrd": 0.9}),
        lambda: SGD({"lr": 0.1, "momentum": 0.9}),
    ],
)
def test_steps_are_those_of_the_optimiser_and_may_be_mixed_with_them(make):
    generator, results = torch.Generator().manual_seed(0), []
    gradients = [[torch.randn(3, generator=generator), torch.randn(2, 2, generator=generator)] for _ in range(6)]
    for ours in (False, True):
        parameters, optim = [torch.ones(3, requires_grad=True), torch.ones(2, 2, requires_grad=True)], make()
        steps = Steps(optim, parameters, [])
        for number, group in enumerate(gradients):
            if ours and number != 3:
                steps(group)
                continue
            for parameter, gradient in zip(parameters, group):
                parameter.grad = gradient.clone()
            optim(parameters)
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)
        results.append(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    torch.testing.assert_close(*results)


def test_a_gradient_of_the_users_own_counts_as_in_svi():
    weight = torch.ones(1, requires_grad=True)
    steps = Steps(SGD({"lr": 1.0}), [weight], [])
    weight.grad = torch.tensor([2.0])
    steps([torch.tensor([1.0])])
    assert weight.tolist() == [-2.0] and weight.grad.tolist() == [0.0]
