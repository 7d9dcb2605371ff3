"""Steps of SVI: those of the eager engine and of Pyro's own loop, and what SVI would ignore."""

import copy
import random
import types

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from engine_trainings import BATCHES, Branching, Training, adam, assert_same_training
from programs import quick, small_vae
from pyro.infer import RenyiELBO, ReweightedWakeSleep, Trace_ELBO, TraceGraph_ELBO
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from pyro_vae import likelihoods, parameter_sites
from pyro_vae.training import warm_cosine
from pyro_vae.training.engines import EagerEngine, SVIEngine

pytestmark = pytest.mark.usefixtures("no_validation")


@pytest.mark.slow
def test_eager_is_svi():
    assert_same_training(Training(EagerEngine), Training(SVIEngine))


def test_svi_refuses_what_it_would_ignore():
    with pytest.raises(ValueError, match="clip"):
        Training(SVIEngine, clip=1.0)
    with pytest.raises(ValueError, match=r"no param site of \['loc'\].*parameter_sites"):
        Training(SVIEngine, Branching(), batches=BATCHES[:1])


def hooked(optimizer):
    optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: None)


def replaced(optimizer):
    optimizer.step = types.MethodType(lambda optimizer: type(optimizer).step(optimizer), optimizer)


@pytest.mark.parametrize("change", [hooked, replaced])
def test_svi_refuses_an_optimiser_that_does_more_before_its_step(change):
    program, wanted = small_vae(), r"hook before its step.*got Adam.*RenyiELBO trains by no other engine"

    def changed(parameters):
        optimizer = adam(parameters)
        change(optimizer)
        return optimizer

    with pytest.raises(ValueError, match=r'hook before its step.*"eager"'):
        Training(SVIEngine, program, changed, batches=())
    with pytest.raises(ValueError, match=wanted):
        quick(program, estimator=RenyiELBO(num_particles=2), optimizer=changed, lr=None)
    optimizer = adam(list(program.parameters()))
    step = SVIEngine(program, Trace_ELBO(), optimizer, warm_cosine(optimizer, 2))
    step(BATCHES[0])
    change(optimizer)
    with pytest.raises(ValueError, match="hook before its step"):
        step(BATCHES[1])


def test_hooks_after_a_step_and_those_of_all_optimisers_are_run_by_svi():
    def zeroed(optimizer, args, kwargs):
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = None

    program = small_vae()
    optimizer, before, moved = adam(list(program.parameters())), copy.deepcopy(program.state_dict()), []
    optimizer.register_step_post_hook(lambda *args: moved.append(differs(program, before)))
    step = SVIEngine(program, Trace_ELBO(), optimizer)
    handle = register_optimizer_step_pre_hook(zeroed)
    try:
        step(BATCHES[0])
    finally:
        handle.remove()
    step(BATCHES[1])
    assert moved == [False, True]


def differs(program, before):
    return any(not torch.equal(value, before[name]) for name, value in program.state_dict().items())


class PartlyShown(nn.Module):
    """A program of which Pyro is shown a layer, and not a frozen parameter beside it."""

    def __init__(self):
        super().__init__()
        self.layer, self.loc = nn.Linear(1, 1), nn.Parameter(torch.zeros(1), requires_grad=False)

    def observe(self, pixels, generator=None):
        return pixels.flatten(1)[:, :1] / 16

    def model(self, x):
        parameter_sites(self.layer)
        with pyro.plate("images", len(x)):
            pyro.sample("x", dist.Normal(self.layer(torch.ones(len(x), 1)) + self.loc, 1.0).to_event(1), obs=x)

    def guide(self, x):
        pass


def test_svi_refuses_a_parameter_without_a_param_site_once_it_is_free():
    program = PartlyShown()
    step = SVIEngine(program, Trace_ELBO(), adam(list(program.parameters())))
    before = program.layer.weight.item()
    step(BATCHES[0])
    assert program.layer.weight.item() != before
    program.loc.requires_grad_(True)
    with pytest.raises(ValueError, match=r"no param site of \['loc'\]"):
        step(BATCHES[1])


class Drawing(nn.Module):
    """A program with batch norm, spectral norm and a count of calls, whose model draws from all three generators."""

    def __init__(self):
        super().__init__()
        layer = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(64, 4))
        self.network, self.calls, self.draws = nn.Sequential(layer, nn.BatchNorm1d(4)), 0, []

    def observe(self, pixels, generator=None):
        return pixels.flatten(1) / 16

    def model(self, x):
        parameter_sites(self.network)
        self.calls += 1
        self.draws = [*self.draws, (torch.rand(1).item(), np.random.rand(), random.random())]
        with pyro.plate("images", len(x)):
            pyro.sample("x", dist.Normal(self.network(x), 1.0).to_event(1), obs=x[:, :4])

    def guide(self, x):
        pass


def test_looking_for_param_sites_changes_no_buffers_random_numbers_or_attributes():
    programs = Drawing(), Drawing()
    programs[1].load_state_dict(programs[0].state_dict())
    engines = [SVIEngine(program, Trace_ELBO(), adam(list(program.parameters()))) for program in programs]
    engines[1].checked = {id(parameter) for parameter in programs[1].parameters()}  # it does not look
    for engine in engines:
        pyro.set_rng_seed(0)
        for batch in BATCHES[:3]:
            engine(batch)
    assert programs[0].draws == programs[1].draws and programs[0].calls == programs[1].calls == 3
    torch.testing.assert_close(programs[0].state_dict(), programs[1].state_dict(), rtol=0.0, atol=0.0)
    assert int(programs[0].network[1].num_batches_tracked) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator",
    [
        RenyiELBO(alpha=0.5, num_particles=2, vectorize_particles=True, max_plate_nesting=1),
        TraceGraph_ELBO(),
        ReweightedWakeSleep(num_particles=2, vectorize_particles=True, max_plate_nesting=1),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
@pytest.mark.parametrize("engine", ["auto", "svi"])
def test_estimators_without_a_differentiable_loss_train_by_svi(estimator, engine):
    history = quick(small_vae(), estimator=estimator, engine=engine, epochs=4)
    assert history.engine == "svi"
    assert history.rows[-1]["valid_bound"] > history.rows[0]["valid_bound"] + 1


@pytest.mark.slow
def test_svi_of_such_an_estimator_takes_the_steps_of_pyros_own_loop():
    ours, theirs = small_vae(), small_vae()
    estimator = RenyiELBO(alpha=0.5, num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    steps = []

    class Noted(nn.Module):
        def __init__(self):
            super().__init__()
            self.vae, self.model, self.guide = ours, ours.model, ours.guide

        def observe(self, pixels, generator=None):
            x = likelihoods.threshold(pixels)
            if generator is None:
                steps.append((x, torch.get_rng_state()))
            return x

    quick(Noted(), estimator=estimator, epochs=1, keep="last")
    svi = pyro.infer.SVI(theirs.model, theirs.guide, pyro.optim.Adam({"lr": 1e-2, "fused": True}), estimator)
    for x, state in steps[1:]:  # the first is that of the check
        with torch.random.fork_rng():
            torch.set_rng_state(state)
            svi.step(x)
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()))
