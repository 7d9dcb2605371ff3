"""Compiled steps of SVI are those of SVI, and say in one paragraph why they cannot be."""

import copy
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import needs_compiler
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, ReweightedWakeSleep, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, autoguide
from torch import nn

from experiments.benchmarks.svi_programs import PROGRAMS
from pyro_vae.compiling import CompiledSVI, Untraceable
from pyro_vae.estimators import DoublyReparameterized

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compiler", "no_validation")]
X = torch.tensor([0.5, -1.0, 2.0, 0.3])


def model(x, flag=None, size=None):
    """A normal with a learned scale; a flag shifts the mean, and a size takes a subsample."""
    scale = pyro.param("scale", torch.tensor(1.5), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x), size) as index:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + (1.0 if flag else 0.0), scale), obs=x[index])


def guide(x, flag=None, size=None):
    loc = pyro.param("loc", torch.zeros(()))
    with pyro.plate("data", len(x), size) as index:
        pyro.sample("z", dist.Normal(loc * x[index], 0.7))


class PyroProgram(nn.Module):
    """The same as methods of a module."""

    def __init__(self):
        super().__init__()
        self.network, self.shift = nn.Linear(1, 2), nn.Parameter(torch.zeros(()))

    def model(self, x):
        pyro.module("program", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + self.shift, 0.5), obs=x)

    def guide(self, x):
        pyro.module("program", self)
        loc, log_scale = self.network(x[:, None]).unbind(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))


def trained(kind, calls, optim=None, elbo=None, functions=(model, guide)):
    """The losses of these steps, and all parameters after them."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    svi = kind(*functions, (optim or pyro.optim.Adam)({"lr": 0.1}), elbo or Trace_ELBO())
    losses = [svi.step(*args, **kwargs) for args, kwargs in calls]
    losses += [svi.evaluate_loss(*calls[0][0], **calls[0][1]) for _ in range(2)]
    values = {name: value.detach().clone() for name, value in pyro.get_param_store().named_parameters()}
    return svi, torch.tensor(losses), values


def begun(kind):
    """The program that is a module, at its start, and its training."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    program = PyroProgram()
    return program, kind(program.model, program.guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())


def assert_same(calls, **settings):
    _, losses, values = trained(SVI, calls, **settings)
    svi, others, moved = trained(CompiledSVI, calls, **settings)
    torch.testing.assert_close(losses, others, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(values, moved, rtol=1e-4, atol=1e-5)
    return svi


@needs_compiler
@pytest.mark.parametrize("optim", [pyro.optim.Adam, pyro.optim.ClippedAdam, pyro.optim.RMSprop])
def test_steps_with_flags_shapes_and_subsamples_are_those_of_svi(optim):
    calls = [((X,), {}), ((X, True), {"size": 2}), ((X[:3],), {"flag": None})] * 3
    svi = assert_same(calls, optim=optim)
    assert len(svi.graphs.state.graphs) == 4  # three of steps and an evaluation


@needs_compiler
def test_a_loss_of_two_numbers():
    assert_same([((X,), {})] * 3, elbo=ReweightedWakeSleep(num_particles=2, vectorize_particles=False))


ELBOS = [TraceGraph_ELBO(), RenyiELBO(0.5, num_particles=2), DoublyReparameterized(3)]


@needs_compiler
@pytest.mark.parametrize("elbo", ELBOS, ids=lambda elbo: type(elbo).__name__)
def test_any_elbo_is_compiled(elbo):
    assert_same([((X,), {})] * 3, elbo=elbo)


@needs_compiler
@pytest.mark.parametrize("name", ["eight_schools", "mixture", "logistic_flow", "factors"])
def test_programs_of_users(name):
    ways = []
    for kind in (SVI, CompiledSVI):
        pyro.clear_param_store()
        torch.manual_seed(0)
        case = PROGRAMS[name]()
        svi = kind(case.model, case.guide, case.optim, case.elbo)
        ways.append(torch.tensor([svi.step(*case.args) for _ in range(3)]))
    torch.testing.assert_close(*ways, rtol=1e-5, atol=1e-4)


@needs_compiler
def test_svi_goes_on_with_store_and_optimiser():
    def losses(*kinds):
        pyro.clear_param_store()
        torch.manual_seed(0)
        optim, found = pyro.optim.Adam({"lr": 0.1}), []
        for kind in kinds:
            svi = kind(model, guide, optim, Trace_ELBO())
            found += [svi.step(X) for _ in range(3)]
        return torch.tensor(found)

    torch.testing.assert_close(losses(SVI, SVI), losses(CompiledSVI, SVI))


@needs_compiler
def test_a_copy_goes_on_by_graphs_of_its_own():
    results = []
    for kind in (SVI, CompiledSVI):
        _, svi = begun(kind)
        losses = [svi.step(X) for _ in range(3)]
        other = copy.deepcopy(svi)
        results.append(losses + [each.step(X) for each in (other, other, other, svi, other)])
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_a_store_that_is_cleared_is_followed():
    found = []
    for kind in (SVI, CompiledSVI):
        pyro.clear_param_store()
        torch.manual_seed(0)
        svi = kind(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        losses = [svi.step(X) for _ in range(4)]
        with pyro.get_param_store().scope(pyro.get_param_store().get_state()):
            losses.append(svi.step(X))  # another dictionary with the same parameters
        pyro.clear_param_store()
        losses += [svi.step(X) for _ in range(4)]
        values = [value.detach() for value in pyro.get_param_store().values()]
        found.append([torch.tensor(losses), *values])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert len(svi.graphs.states) == 1 and not svi.ended


@needs_compiler
def test_buffers_of_a_guide_that_is_a_module_move():
    class Guide(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))

        def forward(self, x):
            pyro.module("guide", self)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.layers(x.unsqueeze(-1)).squeeze(-1), 1.0))

    means = []
    for kind in (SVI, CompiledSVI):
        torch.manual_seed(0)
        own = Guide()
        trained(kind, [((X,), {})] * 4, functions=(model, own))
        means.append(own.layers[0].running_mean.clone())
    torch.testing.assert_close(*means)


REFUSED = {
    "a branch": (lambda x: 2 * x if x.sum() > 0 else x, "`.*x.sum.. > 0.*`.*a number is read from a tensor"),
    "a mask as an index": (lambda x: x[x > 0].sum(), "the size of a tensor depends on values of another one"),
    "the longest length": (lambda x: torch.ones(int(x.max())).sum(), "a number is read from a tensor"),
    "NumPy": (lambda x: float(x.numpy()[0]), "a number is read from a tensor"),
}


@needs_compiler
@pytest.mark.parametrize("name", REFUSED)
def test_a_program_that_reads_values_is_refused_in_one_paragraph(name):
    shift, said = REFUSED[name]

    def reading(x):
        return model(x + shift(x))

    svi = CompiledSVI(reading, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    svi.step(X)
    with pytest.raises(Untraceable, match=said) as caught:
        svi.step(X)
    message = str(caught.value)
    assert "test_compiled_svi.py, line" in message and "\n" not in message and len(message) < 600
    assert message.endswith("or train by pyro.infer.SVI")  # there is no argument engine
    assert caught.value.__suppress_context__


@needs_compiler
def test_more_values_than_graphs_are_left_to_svi(caplog):
    svi = CompiledSVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO(), most=1)
    for flag in (1, 1, 2, 2, 2):
        svi.step(X, flag)
    assert len(svi.graphs.state.graphs) == 1
    said = [record.getMessage() for record in caplog.records if record.name == CompiledSVI.__module__]
    assert len(said) == 1 and "1 graphs were compiled for different arguments" in said[0]


@needs_compiler
def test_a_number_that_changes_at_each_step_is_followed_by_svi(caplog):
    program, found = SimpleNamespace(shift=0.0), []

    def shifted(x):
        return model(x + program.shift)

    for kind in (SVI, CompiledSVI):
        pyro.clear_param_store()
        torch.manual_seed(0)
        svi, losses = kind(shifted, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()), []
        for program.shift in (0.0, 0.0, 0.0, 0.1, 0.2, 0.3, 0.3):
            losses.append(svi.step(X))
        found.append(torch.tensor(losses))
    torch.testing.assert_close(*found)
    assert svi.ended and "program.shift (0.1 -> 0.2): it changes from call to call" in caplog.text


def test_without_a_compiler_the_second_step_says_so(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    svi = CompiledSVI(model, autoguide.AutoNormal(model), pyro.optim.Adam({"lr": 0.1}), TraceEnum_ELBO())
    svi.step(X)
    with pytest.raises(Untraceable, match=r"nothing can be compiled here: no C\+\+ compiler.*pyro.infer.SVI"):
        svi.step(X)


@needs_compiler
@pytest.mark.parametrize("name", ["one tensor twice", "a tensor of the program"])
def test_one_tensor_in_two_places_is_two_tensors_at_the_next_step(name):
    other = torch.tensor([1.5, 0.7, -2.0, 0.1])

    def twice(x, y):
        return model(x + y + (X if name != "one tensor twice" else 0.0))

    calls = [((X, X), {})] * 2 + [((X, other), {}), ((other, X), {})]
    assert_same(calls, functions=(twice, lambda x, y: guide(x)))


@needs_compiler
@pytest.mark.parametrize("around", [lambda: poutine.scale(scale=0.5), lambda: torch.autocast("cpu")])
def test_steps_within_something_that_a_graph_does_not_see_are_those_of_svi(around, caplog):
    found = []
    for kind in (SVI, CompiledSVI):
        pyro.clear_param_store()
        torch.manual_seed(0)
        svi = kind(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        losses = [svi.step(X) for _ in range(2)]
        with around():
            losses += [svi.step(X) for _ in range(2)]
        found.append(torch.tensor(losses))
    torch.testing.assert_close(*found)
    assert "are not compiled" in caplog.text


@needs_compiler
@pytest.mark.parametrize("what", ["optim", "model", "guide"])
def test_a_part_that_a_script_replaces_is_followed(what):
    news = {"optim": pyro.optim.Adam({"lr": 1.0}), "model": lambda x: model(x, True), "guide": lambda x: guide(2 * x)}
    found = []
    for kind in (SVI, CompiledSVI):
        pyro.clear_param_store()
        torch.manual_seed(0)
        news["optim"] = pyro.optim.Adam({"lr": 1.0})
        svi = kind(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        losses = [svi.step(X) for _ in range(2)]
        setattr(svi, what, news[what])
        found.append(torch.tensor(losses + [svi.step(X) for _ in range(3)]))
    torch.testing.assert_close(*found)


HOOKS = {
    "output": lambda layer: layer.register_forward_hook(lambda module, args, output: 2 * output),
    "input": lambda layer: layer.register_forward_pre_hook(lambda module, args: (2 * args[0],)),
    "gradient of the output": lambda layer: layer.register_full_backward_pre_hook(lambda module, of: (0 * of[0],)),
    "gradient": lambda layer: layer.weight.register_hook(torch.zeros_like),
    "stored gradient": lambda layer: layer.weight.register_post_accumulate_grad_hook(
        lambda w: setattr(w, "grad", None)
    ),
}


@needs_compiler
@pytest.mark.parametrize("of", HOOKS)
def test_a_hook_that_a_script_registers_or_removes_is_followed(of):
    found = []
    for kind in (SVI, CompiledSVI):
        program, svi = begun(kind)
        losses = [svi.step(X) for _ in range(3)]
        hook = HOOKS[of](program.network)
        losses += [svi.step(X) for _ in range(3)]
        hook.remove()
        found.append(torch.tensor(losses + [svi.step(X) for _ in range(3)]))
    torch.testing.assert_close(*found)


@needs_compiler
def test_gradients_of_what_svi_does_not_train_are_added_up():
    found = []
    for kind in (SVI, CompiledSVI):
        pyro.clear_param_store()
        torch.manual_seed(0)
        shift = torch.zeros((), requires_grad=True)

        def shifted(x):
            with poutine.block(hide=["scale"]):
                return model(x + shift)  # noqa: B023

        svi = kind(shifted, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        losses = [svi.step(X) for _ in range(4)]
        gradients = [leaf.grad for _, leaf in pyro.get_param_store().named_parameters()]
        found.append([torch.tensor(losses), shift.grad, *gradients])
    assert found[0][1] != 0
    torch.testing.assert_close(*found)


@needs_compiler
def test_an_argument_that_requires_a_gradient_is_refused():
    svi = CompiledSVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    given = X.clone().requires_grad_()
    svi.step(given)
    with pytest.raises(Untraceable, match="an argument requires a gradient"):
        svi.step(given)
    assert svi.evaluate_loss(given) > 0 and svi.evaluate_loss(given) > 0


@needs_compiler
def test_a_store_that_is_cleared_before_the_second_step():
    svi = CompiledSVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    svi.step(X)
    pyro.clear_param_store()
    losses = [svi.step(X) for _ in range(3)]
    assert len(losses) == 3 and len(svi.graphs.state.graphs) == 1


@needs_compiler
def test_a_parameter_that_appears_with_another_value_is_made_by_svi_and_then_compiled():
    found = []
    for kind in (SVI, CompiledSVI):
        pyro.clear_param_store()
        torch.manual_seed(0)
        settings = SimpleNamespace(shifted=False)

        def shifted(x):
            shift = pyro.param("shift", lambda: torch.randn(())) if settings.shifted else 0.0  # noqa: B023
            return model(x + shift)

        svi, losses = kind(shifted, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()), []
        for settings.shifted in (False, False, False, True, True, True, True):
            losses.append(svi.step(X))
        found.append([torch.tensor(losses), *pyro.get_param_store().values()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert len(svi.graphs.states) == 2 and all(state.graphs for state in svi.graphs.states)
    assert not svi.ended and not svi.eager


@needs_compiler
@pytest.mark.parametrize(
    "set_to", [lambda rate, value: rate.data.fill_(value), lambda rate, value: rate.numpy().fill(value)]
)
def test_a_number_read_from_memory_that_changes_without_a_version_is_followed(set_to):
    found = []
    for kind in (SVI, CompiledSVI):
        pyro.clear_param_store()
        torch.manual_seed(0)
        rate, losses = torch.zeros(()), []
        svi = kind(lambda x: model(x + float(rate)), guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())  # noqa: B023
        for value in (1.0, 1.0, 1.0, 2.0, 2.0):
            set_to(rate, value)
            losses.append(svi.step(X))
        found.append(torch.tensor(losses))
    torch.testing.assert_close(*found)
    assert not svi.ended and not svi.eager  # a value that is set to what it was is no change
