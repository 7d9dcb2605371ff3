"""Runs of a program: which particles are drawn together, and what is known of a program that comes again."""

import copy
import gc
import pickle
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from monte_carlo import assert_mean_is
from programs import flat_guide, flat_model
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import nn

from pyro_vae.estimators import StickingTheLanding
from pyro_vae.tracing.traces import ProgramRuns, log_weights, paired_traces

B = 4


def summing(dim):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(dim), 1.0), obs=x)

    return model


def of_three(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(len(x), 3), 0.5).to_event(1))


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(3), nn.Dropout(0.5)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.norm(z.flatten(0, -2)).reshape(z.shape).sum(-1), 1.0), obs=x)


class Dropping(Normed):
    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.drop(z).sum(-1), 1.0), obs=x)


def indexing(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(torch.zeros(len(x)).masked_scatter(x > 0, z[x > 0].sum(-1)), 1.0), obs=x)


def first_row(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1) - z[0].sum(), 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "together"),
    [
        (summing(-1), True),
        (summing(1), False),
        (indexing, False),
        (first_row, False),
        (Normed().model, False),
        (Normed().eval().model, True),
        (Dropping().model, True),
    ],
)
@pytest.mark.parametrize("K", [2, 5])
def test_particles_are_drawn_together_where_each_has_what_it_has_alone(model, together, K):
    x = torch.tensor([0.5, -1.0, 2.0])
    assert ProgramRuns(K).layout(model, of_three, (x,)) == (1, together)
    assert not ProgramRuns(K, vectorize=False).layout(model, of_three, (x,)).vectorized
    assert ProgramRuns(K, vectorize=True).layout(model, of_three, (x,)).vectorized
    model_trace, guide_trace = paired_traces(model, of_three, (x,), particles=K)
    assert guide_trace.nodes["z"]["value"].shape == (K, 3, 3)
    assert log_weights(model_trace, guide_trace).shape == (K, 3)


def test_a_network_whose_weights_are_drawn_runs_particle_by_particle():
    network = PyroModule[nn.Linear](2, 1)
    network.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))
    network.bias = PyroSample(dist.Normal(0.0, 1.0).expand([1]).to_event(1))
    x, y = torch.randn(5, 2), torch.randn(5)

    def model(x, y):
        mean = network(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    guide = AutoNormal(model, init_scale=0.5)
    guide(x, y)
    ours = torch.tensor([StickingTheLanding(2).loss(model, guide, x, y) for _ in range(60)])
    theirs = torch.tensor([Trace_ELBO(2).loss(model, guide, x, y) for _ in range(200)])
    assert_mean_is(ours, theirs.mean(), error=theirs.std() / 200**0.5, sees=5.0)


def test_the_trial_leaves_the_program_and_the_random_state_alone():
    program, x = Normed(), torch.randn(3)
    before, state = copy.deepcopy(program.state_dict()), torch.get_rng_state()
    ProgramRuns(5).layout(program.model, of_three, (x,))
    assert torch.equal(state, torch.get_rng_state()) and program.training
    assert all(torch.equal(value, before[name]) for name, value in program.state_dict().items())
    assert len(pyro.get_param_store()) == 0


def test_what_is_found_out_holds_for_one_program_in_one_mode_and_for_arguments_of_one_shape():
    program, x, runs = Normed(), torch.randn(3), ProgramRuns(4)
    assert not runs.layout(program.model, of_three, (x,)).vectorized
    assert runs.layout(program.eval().model, of_three, (x,)).vectorized
    assert not runs.layout(program.train().model, of_three, (x,)).vectorized
    assert runs.layout(summing(-1), of_three, (x,)).vectorized
    assert not runs.layout(summing(1), of_three, (x,)).vectorized
    assert not runs.layout(summing(1), of_three, (torch.randn(4),)).vectorized


def test_a_known_program_runs_once_a_batch_even_under_handlers_made_anew():
    calls, estimator, x = [], StickingTheLanding(3), torch.randn(B)
    counted = lambda x: [calls.append(1), flat_guide(x)]  # noqa: E731
    mask = poutine.mask(mask=torch.ones(B, dtype=torch.bool))
    estimator.loss(mask(flat_model), mask(counted), x)
    calls.clear()
    estimator.loss(mask(flat_model), mask(counted), x)
    assert len(calls) == 1


def test_runs_keep_no_program_alive_and_can_be_copied():
    estimator, x = StickingTheLanding(3), torch.randn(3)

    def once():
        program = Normed()
        estimator.loss(program.model, of_three, x)
        return torch.nn.utils.parameters_to_vector(program.parameters()), weakref.ref(program)

    _, weak = once()
    gc.collect()
    assert weak() is None
    for twin in (copy.deepcopy(estimator), pickle.loads(pickle.dumps(estimator))):
        assert twin.runs.particles == 3 and twin.loss(summing(-1), of_three, x) > 0
