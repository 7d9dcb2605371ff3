"""Private parts of torch and Pyro: which are used, and what happens if one of them is gone."""

import ast
import re
from contextlib import nullcontext
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from enumerated_programs import LABELS, MixtureOfFactors, OfTheModel, X
from programs import needs_compiler
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, trace_elbo
from recorded_losses import originals, recorded_loss
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import pyro_vae
from pyro_vae.compiling import ProgramLoss, Untraceable, private
from pyro_vae.compiling.constants import WatchedConstants
from pyro_vae.compiling.private import tensors_only
from pyro_vae.linear_gaussian import LinearGaussian
from pyro_vae.training.adam import is_plain_adam
from pyro_vae.training.engines import CompiledEngine, EagerEngine, EngineWarning

ROOT = Path(pyro_vae.__file__).parent
ELSEWHERE = {"torch.utils._pytree", "torch.utils._python_dispatch", "torch._C", "pyro.poutine.runtime._PYRO_STACK"}


@pytest.fixture(autouse=True)
def looked_for_again(quick_compiler, no_validation):
    """Have what was found of torch looked for again."""
    private.functional_adam.cache_clear()
    yield
    private.functional_adam.cache_clear()


def linear_gaussian():
    program = LinearGaussian(torch.randn(3, 2, generator=torch.Generator().manual_seed(0)))
    program.observe = lambda pixels: pixels
    program.register_buffer("count", torch.zeros(()))
    return program


def trained(kind, **settings):
    """The engine after four steps, and the parameters."""
    program = linear_gaussian()
    optimizer = torch.optim.Adam(program.parameters(), lr=0.01, fused=True)
    step, x = (
        kind(program, Trace_ELBO(), optimizer, **settings),
        torch.rand(5, 3, generator=torch.Generator().manual_seed(1)),
    )
    torch.manual_seed(2)
    for _ in range(4):
        step(x)
    return step, torch.cat([parameter.detach().flatten() for parameter in program.parameters()])


UNSAFE = {
    "VERSION": ("_gone", r"has no \w+\._gone and does not tell whether a tensor was changed in place"),
    "GRADIENT_HOOKS": (("_gone", "_post_accumulate_grad_hooks"), "does not tell whether a gradient has hooks"),
    "REGISTRIES": (("_parameters", "_gone", "_modules"), "does not tell where a module keeps its parts"),
    "HOOKS": (("_forward_hooks", "_gone"), "does not tell which hooks a module has"),
}


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("part", UNSAFE)
def test_without_what_tracing_must_know_training_is_eager_or_refused(part, monkeypatch):
    name, said = UNSAFE[part]
    monkeypatch.setattr(private, part, name)
    with pytest.raises(Untraceable, match=f"{said}.*install an older torch.*engine=.eager"):
        trained(CompiledEngine)
    with pytest.warns(EngineWarning, match=f"training eagerly: .*{said}"):
        step, parameters = trained(CompiledEngine, strict=False)
    assert step.name == "eager" and torch.equal(parameters, trained(EagerEngine)[1])


SLOWER = {
    "STEP_HOOKS": ("_gone", "_optimizer_step_post_hooks"),
    "GLOBAL_STEP_HOOKS": ("_global_optimizer_pre_hooks", "_gone"),
    "ADAM": ("torch.optim.gone", "adam"),
}


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("part", SLOWER)
def test_without_what_is_only_faster_the_optimiser_takes_the_step(part, monkeypatch):
    optimizer = torch.optim.Adam(nn.Linear(1, 1).parameters(), fused=True)
    assert is_plain_adam(optimizer)
    private.functional_adam.cache_clear()
    monkeypatch.setattr(private, part, SLOWER[part])
    assert not is_plain_adam(optimizer)
    step, parameters = trained(CompiledEngine)
    assert step.name == "compiled"
    torch.testing.assert_close(parameters, trained(EagerEngine)[1])


def test_a_function_adam_of_other_arguments_is_not_called(monkeypatch):
    monkeypatch.setattr(private, "ADAM", ("math", "hypot"))
    assert private.functional_adam() is None


@pytest.mark.parametrize("of_all", [False, True])
def test_hooks_of_steps_are_seen(of_all):
    optimizer, hook = torch.optim.Adam(nn.Linear(1, 1).parameters(), fused=True), lambda *_: None
    handle = register_optimizer_step_post_hook(hook) if of_all else optimizer.register_step_post_hook(hook)
    assert not is_plain_adam(optimizer)
    handle.remove()
    assert is_plain_adam(optimizer)


def test_without_its_class_nothing_is_compiled_ahead(monkeypatch):
    monkeypatch.setattr(private, "KERNELS", ("torch._inductor.gone", "CppPythonBindingsCodeCache"))
    assert private.compile_first_kernel({}) is None


def test_without_the_dictionary_of_pyros_store_a_change_in_it_is_still_seen(monkeypatch):
    monkeypatch.setattr(private, "STORE", "_gone")
    pyro.clear_param_store()
    scale = pyro.param("scale", torch.ones(2))

    def model(x):
        pyro.sample("x", dist.Normal(pyro.param("scale"), 1.0).to_event(1), obs=x)

    watched = WatchedConstants(ProgramLoss(Trace_ELBO(), model, lambda x: None).roots)
    assert not watched.changes()
    pyro.get_param_store()["scale"] = 2 * scale.detach()
    assert any("scale" in name for name in watched.changes())
    pyro.clear_param_store()


@pytest.mark.slow
def test_without_the_functions_by_which_pyro_reads_nothing_is_put_in_their_place(monkeypatch):
    program, x = linear_gaussian(), torch.rand(5, 3)
    with monkeypatch.context() as patch:
        patch.delattr(trace_elbo, "warn_if_nan")
        with private.tensors_only():
            assert not hasattr(trace_elbo, "warn_if_nan")
            assert torch.is_tensor(trace_elbo.torch_item(torch.ones(())))
        assert not hasattr(trace_elbo, "warn_if_nan")
    monkeypatch.setattr(private, "READS", ("gone", "gone"))
    with pytest.raises(Untraceable):
        recorded_loss(ProgramLoss(Trace_ELBO(), program.model, program.guide), (x,))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("point", [False, True])
@pytest.mark.parametrize(("kind", "args"), [(MixtureOfFactors, (X, LABELS)), (OfTheModel, (X[:, 0].clone(),))])
def test_a_sum_that_reads_no_value_has_the_loss_and_gradient_of_pyros(kind, args, point):
    """Also where q has no mass at a value that the model gives none either, at which log q − log p is not a number."""
    program, results = kind(), []
    if point and kind is MixtureOfFactors:
        allowed = torch.tensor([0.0, -torch.inf, 0.0])
        inner = program.log_joint
        program.log_joint = lambda x: inner(x) + allowed
    elsewhere = TraceEnum_ELBO(max_plate_nesting=1)
    for reading in (nullcontext(), tensors_only()):
        torch.manual_seed(1)
        with reading:
            loss = elsewhere.differentiable_loss(program.model, program.guide, *args)
        results.append((loss, *torch.autograd.grad(loss, list(program.parameters()), allow_unused=True)))
    for theirs, ours in zip(*results):
        assert torch.allclose(theirs, ours) and theirs.isfinite().all()


def names_of(tree):
    """The dotted names in a module, and those that it imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.fullmatch(r"[\w.]+", name := ast.unparse(node)):
            yield name
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_private(name):
    first, *rest = name.split(".")
    return first in ("torch", "nn", "pyro", "dist") and any(re.match("_[^_]", part) for part in rest)


@pytest.mark.slow
def test_no_other_private_name_is_spelled_out_in_the_package():
    names = {name for file in ROOT.rglob("*.py") for name in names_of(ast.parse(file.read_text("utf-8")))}
    assert {name for name in names if is_private(name) and not name.startswith(tuple(ELSEWHERE))} == set()


def test_pyro_is_left_as_it_was_after_any_exception():
    before = originals()
    with pytest.raises(ZeroDivisionError), tensors_only():
        assert originals() != before
        _ = 1 / 0
    assert originals() == before
