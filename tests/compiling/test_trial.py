"""The run before a record: what it may change, what it may not, and what is put back."""

import random

import pytest
import torch
from torch import nn

from pyro_vae.compiling import Untraceable
from pyro_vae.compiling.constants import WatchedConstants
from pyro_vae.compiling.trial import check_not_read, restored_if_untraceable, run_alone

X = torch.ones(2)


class Loss(nn.Module):
    """The sum of x, after something else was done."""

    def __init__(self, also):
        super().__init__()
        self.also, self.number, self.held, self.list = also, 0, torch.zeros(2), [0]

    def forward(self, x):
        self.also(self)
        return x.sum() + self.held.sum()


def tried(also):
    loss = Loss(also)
    watched = WatchedConstants({"loss": loss})
    return loss, run_alone(loss, (X,), watched)


def counted(loss):
    loss.number += 1


def counted_in_place(loss):
    loss.held.add_(1.0)


def set_up(loss):
    loss.number = max(loss.number, 3)


def replaced(loss):
    loss.held = loss.held + 1


@pytest.mark.parametrize(
    ("also", "words"),
    [
        (counted, r"changes loss\.number .* while it runs"),
        (counted_in_place, r"changes loss\.held while it runs"),
        (lambda loss: random.random(), "draws from Python's module random"),
    ],
    ids=["a number", "a tensor", "a generator"],
)
def test_what_a_record_would_do_only_once_is_refused(also, words):
    with pytest.raises(Untraceable, match=words + r'(?s:.*)engine="eager"'):
        tried(also)


def test_the_setup_of_a_first_run_is_allowed():
    loss, (value, replaced) = tried(set_up)
    assert value == 2.0 and not replaced and loss.number == 3


def test_a_tensor_that_each_run_replaces_must_not_be_read():
    loss, (value, changes) = tried(replaced)
    assert value == 4.0 and list(changes) == ["loss.held"]
    check_not_read(changes, loss, {"another": X})
    with pytest.raises(Untraceable, match=r"replaces loss\.held at each run"):
        check_not_read(changes, loss, {"constant": changes["loss.held"][1]})


@pytest.mark.parametrize("error", [Untraceable("no"), KeyError("no")])
def test_values_and_generators_are_put_back_after_one_kind_of_error(error):
    loss = Loss(counted)
    watched, state = WatchedConstants({"loss": loss}), random.getstate()
    with pytest.raises(type(error)), restored_if_untraceable(watched):
        loss.number = random.random()
        raise error
    put_back = isinstance(error, Untraceable)
    assert (loss.number == 0) is put_back and (random.getstate() == state) is put_back
