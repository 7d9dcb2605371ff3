"""Steps of known gradients are those of Pyro's optimisers."""

import pytest
import torch
from pyro.optim import SGD, Adam, ClippedAdam

from pyro_vae.compiling import steps as stepping
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


def test_a_gradient_that_is_added_later_counts_as_in_svi():
    results = []
    for ours in (False, True):
        weight, optim = torch.ones(2, requires_grad=True), Adam({"lr": 0.1})
        steps = Steps(optim, [weight], [])
        for known, own in ((1.0, 0.0), (1.0, 0.0), (1.0, -3.0), (0.5, 0.0)):
            if ours:
                if own:
                    weight.grad += own
                steps([torch.full((2,), known)])
            else:
                weight.grad = torch.full((2,), known + own)
                optim([weight])
        results.append(weight.detach())
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    ("optim", "at_once"),
    [(Adam({"lr": 0.1}), 2), (Adam({"lr": 0.1, "weight_decay": 0.1}), 0), (SGD({"lr": 0.1}), 0)],
    ids=["Adam", "weight decay", "SGD"],
)
def test_from_the_second_step_on_all_parameters_of_plain_adam_are_stepped_at_once(monkeypatch, optim, at_once):
    called, plain_adam = [], stepping.plain_adam
    monkeypatch.setattr(stepping, "plain_adam", lambda *args: called.append(len(args[1])) or plain_adam(*args))
    parameters = [torch.ones(3, requires_grad=True), torch.ones(2, 2, requires_grad=True)]
    steps = Steps(optim, parameters, [])
    for _ in range(3):
        steps([torch.ones(3), torch.ones(2, 2)])
    assert called == at_once * [2]
