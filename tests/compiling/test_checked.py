"""A graph that is not its program any more is found by the count of its uses, and a sound one keeps its bits."""

import ctypes
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import needs_compiler
from pyro.infer import SVI, Trace_ELBO

from pyro_vae.compiling import CompiledSVI, StaleGraph, Untraceable, checked, compiled
from pyro_vae.compiling.checked import EARLY, NowAndThen
from pyro_vae.compiling.constants import WatchedConstants
from pyro_vae.compiling.joint import record

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compiler", "no_validation")]
X = torch.tensor([0.5, -1.0, 2.0])


class Scaled:
    """A normal whose x is scaled by a number that nobody watches; it counts its runs in a buffer while that is 3."""

    def __init__(self):
        self.rate, self.runs = ctypes.c_double(1.0), torch.zeros(())

    def model(self, x):
        if self.rate.value == 0.0:
            raise ZeroDivisionError("a rate of 0")
        if self.rate.value == 3.0:
            self.runs.add_(1.0)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=self.rate.value * x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(())), 0.7))


def trained(kind, steps, rates, lr=1e-9):
    """Losses of steps that move nothing, with the rates that are set before some of them."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    program = Scaled()
    svi = kind(program.model, program.guide, pyro.optim.Adam({"lr": lr}), Trace_ELBO())
    losses = []
    for step in range(steps):
        program.rate.value = rates.get(step, program.rate.value)
        losses.append(svi.step(X))
    return torch.tensor(losses), program, svi


@needs_compiler
def test_a_change_that_is_not_seen_is_found_at_the_tenth_use():
    wanted, _, _ = trained(SVI, 16, {5: 2.0})
    with pytest.warns(StaleGraph, match=r"its loss is .*not watched, maybe within self.rate.*compiled anew") as said:
        found, _, svi = trained(CompiledSVI, 16, {5: 2.0})
    assert len(said) == 1 and __file__ == said[0].filename
    same = torch.isclose(wanted, found, rtol=1e-5)
    assert same.tolist() == [step < 5 or step >= EARLY[0] for step in range(16)]
    assert not svi.ended and svi.graphs.state.graphs


@needs_compiler
def test_the_second_time_all_further_steps_are_those_of_svi():
    rates = {5: 2.0, 15: 4.0, 22: 5.0, 23: 6.0}
    wanted, _, _ = trained(SVI, 25, rates)
    with pytest.warns(StaleGraph) as said:
        found, _, svi = trained(CompiledSVI, 25, rates)
    assert svi.ended and "the next steps are not compiled" in str(said[1].message) and len(said) == 2
    torch.testing.assert_close(found[20:], wanted[20:])


@needs_compiler
def test_a_check_changes_no_buffers_and_errors_are_the_programs_own():
    with pytest.warns(StaleGraph):
        _, program, _ = trained(CompiledSVI, 11, {5: 3.0})
    assert program.runs == 1.0  # of the step that SVI took
    with pytest.warns(StaleGraph, match="the program fails: a rate of 0"), pytest.raises(ZeroDivisionError):
        trained(CompiledSVI, 11, {5: 0.0})


@needs_compiler
@pytest.mark.parametrize("early", [(), range(100)])
def test_a_training_in_which_nothing_is_wrong_keeps_its_bits(monkeypatch, early):
    wanted, _, _ = trained(CompiledSVI, 20, {}, lr=0.1)
    monkeypatch.setattr(checked, "EARLY", early)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, _, _ = trained(CompiledSVI, 20, {}, lr=0.1)
    assert torch.equal(wanted, found)


@needs_compiler
def test_a_compiled_loss_is_made_anew_once():
    program = Scaled()
    loss = compiled(Trace_ELBO(), program.model, program.guide, X)
    for _ in range(5):
        loss(X)
    program.rate.value = 2.0
    for _ in range(4):
        loss(X)
    values = []
    for function in (loss, lambda x: Trace_ELBO().differentiable_loss(program.model, program.guide, x)):
        torch.manual_seed(0)
        with pytest.warns(StaleGraph, match="compiled anew") if function is loss else warnings.catch_warnings():
            values.append(function(X))
    torch.testing.assert_close(*values)
    program.rate.value = 4.0
    with pytest.raises(Untraceable, match=r"second time, it is not compiled again; call elbo\.differentiable_loss"):
        for _ in range(10):
            loss(X)


def test_a_gradient_that_is_new_is_a_difference():
    rate, weight = ctypes.c_double(0.0), torch.ones(1, requires_grad=True)

    def function(x):
        loss = (weight * x).sum() + 0.0 * rate.value
        (gradient,) = torch.autograd.grad(loss, [weight])
        return [loss.detach(), gradient] + [torch.ones(1)] * int(rate.value)

    watched = WatchedConstants({})
    check = NowAndThen(record(function, [X], watched), function, ["weight"], watched)
    assert [check(X.view(1, 3)) for _ in range(100)] == [None] * 100
    check.uses, rate.value = 9, 1.0
    assert "the gradient of a new parameter (1) differs by 1" in check(X.view(1, 3))


def test_small_graphs_are_compared_at_fewer_uses_as_their_programs_take_much_longer():
    watched, found = WatchedConstants({}), []
    for size in (3, checked.SMALL):
        check = NowAndThen(record(lambda x: [x.sum()], [torch.ones(size)], watched), lambda x: [x.sum()], [], watched)
        found.append(check.every)
    assert found == [checked.EVERY_OF_SMALL, checked.EVERY] == [5000, 1000]
