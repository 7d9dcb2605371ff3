"""A step of plain Adam: that of torch, and which optimisers are plain."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

from pyro_vae.training.adam import adam_step, is_plain_adam

SHAPES = [(3, 2), (5,)]


def parameters():
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def stepped(optimizer):
    """Take two steps of torch's own, so that there is a state."""
    for _ in range(2):
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = parameter.detach().sin()
        optimizer.step()


def step(optimizer, gradients, loss):
    values = optimizer.param_groups[0]["params"]
    adam_step(optimizer, values, [value.detach() for value in values], gradients, torch.tensor(loss))


@pytest.mark.parametrize("settings", [{}, {"lr": 0.1, "betas": (0.5, 0.9), "eps": 0.1}, {"fused": True}])
def test_a_step_is_that_of_torch(settings):
    ours, theirs = parameters(), parameters()
    optimizer, reference = Adam(ours, **settings), Adam(theirs, **settings)
    for one in (optimizer, reference):
        stepped(one)
    gradients = [torch.full(shape, 0.3) for shape in SHAPES]
    step(optimizer, gradients, 1.5)
    for parameter, gradient in zip(theirs, gradients):
        parameter.grad = gradient
    reference.step()
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other)
        for key in ("step", "exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(optimizer.state[one][key], reference.state[other][key])


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_step_whose_loss_is_not_finite_is_left_out(loss):
    ours = parameters()
    optimizer = Adam(ours)
    stepped(optimizer)
    before = copy.deepcopy((ours, optimizer.state_dict()))
    step(optimizer, [torch.full(shape, 0.3) for shape in SHAPES], loss)
    assert all(map(torch.equal, ours, before[0]))
    for number, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, before[1]["state"][number][key]) for key, value in state.items())


def hooked(parameters):
    optimizer = Adam(parameters)
    optimizer.register_step_post_hook(lambda *_: None)
    return optimizer


def scheduled(parameters):
    optimizer = Adam(parameters)
    optimizer.schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    return optimizer


def projected(parameters, first=lambda parameters: Adam(parameters)):
    """A step that ends with a projection, put in the place of the optimiser's own."""
    optimizer = first(parameters)
    own = optimizer.step

    @functools.wraps(own)
    def step(closure=None):
        own(closure)
        parameters[0].data.clamp_(-1, 1)

    optimizer.step = step
    return optimizer


class OwnAdam(Adam):
    """An Adam whose step could be another."""


@pytest.mark.parametrize(
    ("make", "plain"),
    [
        (Adam, True),
        (lambda given: Adam(given, lr=0.1, betas=(0.5, 0.9), eps=0.1, fused=True), True),
        (lambda given: Adam(given, weight_decay=0.1), False),
        (lambda given: Adam(given, amsgrad=True), False),
        (lambda given: Adam(given, maximize=True), False),
        (lambda given: Adam([{"params": given[:1]}, {"params": given[1:]}]), False),
        (hooked, False),
        (scheduled, True),
        (projected, False),
        (lambda given: projected(given, scheduled), False),
        (OwnAdam, False),
        (AdamW, False),
        (SGD, False),
    ],
)
def test_which_optimisers_are_plain(make, plain):
    assert is_plain_adam(make(parameters())) is plain
