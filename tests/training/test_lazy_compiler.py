"""Optimisers that import no compiler take torch's own steps, and are torch's own again once it is there."""

import functools
import subprocess
import sys
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

from pyro_vae.training import lazy_compiler
from pyro_vae.training.lazy_compiler import take_step

OPTIMIZERS = {
    "Adam": torch.optim.Adam,
    "fused": partial(torch.optim.Adam, fused=True),
    "AdamW": partial(torch.optim.AdamW, weight_decay=0.1),
    "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "RMSprop": torch.optim.RMSprop,
}


def after_steps(make, step, scheduled):
    """The weights after three steps."""
    weights = [torch.linspace(-1, 1, 6).view(2, 3).requires_grad_(), torch.ones(2, requires_grad=True)]
    optimizer = make(weights)
    schedule = StepLR(optimizer, 1, gamma=0.5) if scheduled else None
    for _ in range(3):
        optimizer.zero_grad()
        (weights[0].exp().sum() * weights[1].square().sum()).backward()
        step(optimizer)
        if schedule is not None:
            schedule.step()
    return weights


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_those_of_the_optimiser(monkeypatch, name, scheduled):
    expected = after_steps(OPTIMIZERS[name], lambda optimizer: optimizer.step(), scheduled)
    monkeypatch.setattr(lazy_compiler, "COMPILER", "not.imported")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a schedule that saw no step
        found = after_steps(OPTIMIZERS[name], take_step, scheduled)
    assert all(map(torch.equal, found, expected))


class Own(torch.optim.SGD):
    """An optimiser with a step of its own."""

    def step(self, closure=None):
        self.param_groups[0]["params"][0].data.fill_(7.0)


@pytest.mark.parametrize("kind", ["own class", "hook", "own step", "own step of a schedule"])
def test_a_step_that_is_not_torchs_alone_is_called_as_it_is(monkeypatch, kind):
    monkeypatch.setattr(lazy_compiler, "COMPILER", "not.imported")
    weight = nn.Parameter(torch.ones(1))
    optimizer = (Own if kind == "own class" else torch.optim.SGD)([weight], lr=0.0)
    if kind == "hook":
        optimizer.register_step_post_hook(lambda *_: weight.data.fill_(7.0))
    elif kind == "own step":
        monkeypatch.setattr(optimizer, "step", lambda: weight.data.fill_(7.0))
    elif kind == "own step of a schedule":
        torch.optim.lr_scheduler.ConstantLR(optimizer)
        monkeypatch.setattr(optimizer, "step", functools.wraps(optimizer.step)(lambda: weight.data.fill_(7.0)))
    take_step(optimizer)
    assert weight.item() == 7.0


TRAINED = """
import sys, torch
import pyro_vae as pv
from pyro_vae.linear_gaussian import LinearGaussian
program = LinearGaussian(torch.ones(3, 1))
program.observe = lambda split, generator=None: split.rows
rows = torch.randn(40, 3)
data = pv.Data("rows", *(pv.Split(rows=part) for part in (rows[:20], rows[20:30], rows[30:])))
pv.fit(program, data, epochs=2, batch_size=10, lr=0.1, progress=False)
assert "torch._dynamo" not in sys.modules

import torch._dynamo
(weight,) = [torch.ones(1, requires_grad=True)]
torch.optim.Adam([weight]).state_dict()
for name in ("add_param_group", "state_dict"):
    method = getattr(torch.optim.Optimizer, name).__wrapped__
    assert vars(method)["__dynamo_disable"]._torchdynamo_orig_callable is method
print("done")
"""


@pytest.mark.slow
def test_a_training_imports_no_compiler_and_a_compiler_finds_torchs_own_methods():
    done = subprocess.run([sys.executable, "-c", TRAINED], capture_output=True, text=True)
    assert done.stdout == "done\n", done.stderr
