"""Rows that influence one another are found, and no others."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae.errors import NoBound
from pyro_vae.tracing.traces import check_rows
from pyro_vae.training.loop import check_program, evaluate

B = 4


class Rows(nn.Module):
    """x ~ N(f(z), 1), q(z) = N(g(x), 1), for any f and g that a user may write."""

    def __init__(self, f, g=lambda x: x.unsqueeze(-1).expand(-1, 3)):
        super().__init__()
        self.f, self.g, self.weight = f, g, nn.Parameter(torch.ones(()))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.f(z) * self.weight, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.g(x), 1.0).to_event(1))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (Rows(lambda z: (z - z.mean(0)).sum(-1)), "site 'x' of the model: the log-probability of a row depends"),
        (Rows(lambda z: z.softmax(0).sum(-1)), "site 'x' of the model"),
        (Rows(nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 1), nn.Flatten(0))), "on one"),
        (Rows(lambda z: z.sum(-1), lambda x: (x / x.norm()).unsqueeze(-1).expand(-1, 3)), "site 'z' of the guide"),
        (Rows(lambda z: z.squeeze().sum(1)), "the program runs on two rows and fails on one"),
    ],
)
def test_rows_that_influence_one_another_have_no_bound_of_their_own(program, message):
    with pytest.raises(ValueError, match=message):
        check_program(program, torch.randn(5))


@pytest.mark.parametrize(
    "program",
    [
        Rows(lambda z: z.sum(-1)),
        Rows(nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 1), nn.Flatten(0))),
        Rows(lambda z: z.sum(-1) + torch.randn(len(z))),  # noise of its own: nothing can be said
        Rows(lambda z: z.sum(-1) + torch.arange(5.0)),  # made for five rows
    ],
)
def test_rows_that_do_not_are_not_refused(program):
    """A program in training mode, whose rows are tried in evaluation mode; the trial leaves no trace."""
    before, state = copy.deepcopy(program.state_dict()), torch.get_rng_state()
    check_program(program, torch.randn(5, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(state, torch.get_rng_state()) and program.training
    assert all(torch.equal(value, before[name]) for name, value in program.state_dict().items())


def test_rows_are_not_asked_of_a_program_without_a_plate_over_them():
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    check_rows(model, lambda x: pyro.sample("w", dist.Normal(0.0, 1.0)), (torch.randn(B),))


def test_a_program_whose_guide_is_a_point_can_be_trained_and_one_with_a_factor_cannot():
    """Pyro trains both. Minus a factor of the guide a bound is no bound; with a point it is log p(x, z)."""
    program, x = Rows(lambda z: z.sum(-1)), torch.randn(5)

    def point(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(torch.zeros(len(x), 3), event_dim=1))

    def scoring(x):
        point(x)
        pyro.factor("f", torch.ones(()), has_rsample=True)

    program.guide = point
    check_program(program, x)
    bound = dist.Normal(torch.zeros(3), 1.0).log_prob(torch.zeros(3)).sum() + dist.Normal(0.0, 1.0).log_prob(x)
    with pytest.warns(NoBound):
        torch.testing.assert_close(evaluate(program, x).bound.float(), bound)
    program.guide = scoring
    for call in (lambda: check_program(program, x), lambda: evaluate(program, x)):
        with pytest.raises(ValueError, match=r"the factors \['f'\] of the guide"):
            call()


def test_an_argument_that_is_as_long_as_the_batch_by_chance_is_named_as_a_cause():
    class Offsets(Rows):
        def model(self, x, offsets):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z.sum(-1) + offsets[1], 1.0), obs=x)

        def guide(self, x, offsets):
            super().guide(x)

    program = Offsets(None)
    check_program(program, (torch.randn(5), torch.ones(4)))
    with pytest.raises(ValueError, match="an argument that has as many entries as the batch by chance is cut, too"):
        check_program(program, (torch.randn(5), torch.ones(5)))
