"""The compiled loss of a program follows it, and is refused where it could not."""

import copy
import random

import pytest
import torch
from programs import DIGITS, needs_compiler, small_vae
from pyro import poutine
from pyro.infer import Trace_ELBO
from watched_programs import Program, normalised, program

from pyro_vae.compiling import Untraceable, compiled
from pyro_vae.linear_gaussian import LinearGaussian, mean_field_guide

pytestmark = pytest.mark.slow


def test_no_compiler_for_a_program_of_ones_own(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    vae = small_vae()
    with pytest.raises(Untraceable, match=r"nothing can be compiled here: no C\+\+ compiler.*differentiable_loss"):
        compiled(Trace_ELBO(), vae.model, vae.guide, vae.observe(DIGITS.train.images[:50]))


@needs_compiler
@pytest.mark.usefixtures("quick_compiler", "no_validation")
def test_a_compiled_loss_follows_its_program():
    made = Program()
    loss, x, eager = compiled(Trace_ELBO(), made.model, made.guide, torch.rand(5, 4)), torch.rand(5, 4), Trace_ELBO()
    graphs = []
    for beta in (0.1, 0.1, 0.5, 0.5, 0.1, 0.1):  # there and back again
        made.set(beta)
        values = []
        for function in (loss, lambda x: eager.differentiable_loss(made.model, made.guide, x)):
            torch.manual_seed(0)
            values.append(function(x))
        torch.testing.assert_close(*values)
        graphs.append(loss.graph((x,)))
    assert graphs[0] is graphs[1] is graphs[4] is graphs[5] and graphs[2] is graphs[3] is not graphs[0]
    with pytest.raises(Untraceable, match=r"self\.beta \(0\.7 -> 0\.8\): it changes from call to call"):
        for beta in (0.7, 0.8):
            made.set(beta)
            loss(x)


@needs_compiler
@pytest.mark.usefixtures("quick_compiler", "no_validation")
def test_a_compiled_loss_moves_buffers_as_the_eager_one_and_is_refused_for_other_draws():
    x, means = torch.rand(5, 4), []
    for how in (compiled, lambda elbo, model, guide, x: lambda x: elbo.differentiable_loss(model, guide, x)):
        made = normalised("batch norm")()
        loss = how(Trace_ELBO(), made.model, made.guide, x)
        for _ in range(3):
            loss(x)
        means.append(made.encoder[1].running_mean)
    torch.testing.assert_close(*means)
    drawing = program(lambda self: None, lambda self: random.random())()
    with pytest.raises(Untraceable, match="draws from Python's module random"):
        compiled(Trace_ELBO(), drawing.model, drawing.guide, x)


@needs_compiler
@pytest.mark.usefixtures("quick_compiler", "no_validation")
def test_a_tensor_of_the_program_as_an_argument_is_two_tensors_and_handlers_around_a_call_are_refused():
    made, x, y = Program(), torch.rand(5, 4), torch.rand(5, 4)

    def model(a):
        return made.model(a * x)

    def guide(a):
        return made.guide(a * x)

    loss = compiled(Trace_ELBO(), model, guide, x)
    values = []
    for function in (loss, lambda a: Trace_ELBO().differentiable_loss(model, guide, a)):
        torch.manual_seed(0)
        values.append(function(y))
    torch.testing.assert_close(*values)
    with poutine.scale(scale=2.0), pytest.raises(Untraceable, match="within a handler of Pyro"):
        loss(y)


@needs_compiler
def test_compiled_is_a_module_with_the_programs_parameters_for_batches_of_any_size():
    program = LinearGaussian(torch.ones(3, 2))
    program.posterior = mean_field_guide(program)
    loss = compiled(Trace_ELBO(), program.model, program.guide, program.simulate(5))
    assert {id(p) for p in loss.parameters()} == {id(p) for p in program.parameters()}
    for x in program.simulate(5), program.simulate(3):
        values = []
        for function in loss, Trace_ELBO()(program.model, program.guide):
            program.zero_grad()
            torch.manual_seed(2)
            value = function(x)
            value.backward()
            values.append([value.detach(), *(p.grad for p in program.parameters())])
        for a, b in zip(*values):
            torch.testing.assert_close(a, b)
    assert loss(x) != loss(x)  # drawn anew


@pytest.mark.usefixtures("quick_compiler", "no_validation")
def test_a_copy_has_parameters_and_graphs_of_its_own():
    program = LinearGaussian(torch.ones(3, 2))
    x = program.simulate(5)
    loss = compiled(Trace_ELBO(), program.model, program.guide, x)
    other = copy.deepcopy(loss)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    torch.manual_seed(0)
    value = other(x)
    value.backward()
    assert all(parameter.grad is None for parameter in loss.parameters())
    assert all(parameter.grad is not None for parameter in other.parameters())
    torch.manual_seed(0)
    assert loss(x).item() != pytest.approx(value.item(), rel=1e-3)
    with torch.no_grad():
        for mine, theirs in zip(loss.parameters(), other.parameters()):
            mine.copy_(theirs)
    torch.manual_seed(0)
    assert loss(x).item() == pytest.approx(value.item(), rel=1e-5)
