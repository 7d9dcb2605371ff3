"""Machine code of graphs, and the store that keeps it."""

import threading

import pytest
import torch
from programs import needs_compiler
from stores import with_runtime
from torch import nn

from pyro_vae.compiling import artifacts
from pyro_vae.compiling.artifacts import compiled_graph, key, layout, lifted
from pyro_vae.compiling.recorder import recorded
from pyro_vae.compiling.store import store

pytestmark = pytest.mark.slow

WEIGHT, X = torch.linspace(-1, 1, 6).view(2, 3), torch.linspace(0, 1, 8).view(4, 2)
HELD = torch.tensor([2.0, 3.0])


def step(weight, x, count):
    """Return the gradient of a noisy linear layer, x scaled by a tensor from outside, and count one call."""
    leaf = weight.detach().requires_grad_()
    noise = torch.rand_like(x).mean() + torch.randn(2).mean()
    count.add_(1)
    return torch.autograd.grad(((x @ leaf + noise) ** 2).sum(), leaf)[0], x * HELD


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return with_runtime(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def cache(folder, monkeypatch):
    monkeypatch.setenv("PYRO_VAE_CACHE", str(folder))


@pytest.fixture
def no_compiling(monkeypatch):
    def fail(*args):
        raise AssertionError("compiled, where the store should have been used")

    monkeypatch.setattr(artifacts, "compiled_library", fail)


@pytest.fixture(scope="module")
def graph():
    return recorded(step, [WEIGHT, X, torch.zeros(2)])


@pytest.fixture(scope="module")
def first(graph, folder):
    """Results of the function that was compiled, and its count."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYRO_VAE_CACHE", str(folder))
        return run(compiled_graph(graph, (WEIGHT, X, torch.zeros(2)), threads=1))


def run(function):
    torch.manual_seed(0)
    count = torch.zeros(2)
    return *function(WEIGHT, X, count), count


def again(graph):
    return compiled_graph(graph, (WEIGHT, X, torch.zeros(2)), threads=1)


@needs_compiler
def test_values_are_those_of_autograd_with_the_same_draws(first):
    for got, wanted in zip(first, run(step), strict=True):
        assert torch.allclose(got, wanted, rtol=1e-5) and not got.requires_grad


@needs_compiler
def test_a_stored_library_gives_the_same_bits_without_compiling(graph, first, no_compiling):
    assert all(map(torch.equal, run(again(graph)), first))


@needs_compiler
def test_a_tensor_held_by_the_graph_is_read_at_each_call(graph, first, no_compiling):
    function = again(graph)
    HELD.mul_(2)
    try:
        assert torch.equal(run(function)[1], 2 * first[1])
    finally:
        HELD.div_(2)


@needs_compiler
def test_parameters_can_be_arguments(graph, first, no_compiling):
    got = again(graph)(nn.Parameter(WEIGHT), X, torch.zeros(2))
    assert not any(tensor.requires_grad for tensor in got)


@needs_compiler
def test_two_threads_call_one_function_at_once(graph, first, no_compiling):
    function, found = again(graph), {}

    def work(scale):
        found[scale] = [function(WEIGHT, scale * X, torch.zeros(2))[1] for _ in range(200)]

    threads = [threading.Thread(target=work, args=(scale,)) for scale in (1.0, 2.0)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert all(torch.equal(value, scale * X * HELD) for scale, values in found.items() for value in values)


@needs_compiler
def test_another_layout_is_an_error(graph, first, no_compiling):
    with pytest.raises(ValueError, match="wanted tensors of shape"):
        again(graph)(WEIGHT, X.t().contiguous().t(), torch.zeros(2))


class Compiled(Exception):
    """The compiler was called."""


@needs_compiler
@pytest.mark.parametrize("fault", ["cut", "changed", "unsigned", "shared"])
def test_a_library_that_is_damaged_or_not_the_users_is_not_loaded(graph, first, monkeypatch, caplog, fault):
    def compile(*args):
        raise Compiled

    monkeypatch.setattr(artifacts, "compiled_library", compile)
    path = next(store().glob("*.so"))
    digest, data, sign = path.with_suffix(".sha256"), path.read_bytes(), path.with_suffix(".sha256").read_bytes()
    try:
        if fault == "unsigned":
            digest.unlink()
        elif fault == "shared":
            path.chmod(0o666)
        else:
            path.unlink()  # it is mapped into this process
            path.write_bytes(data[:1000] if fault == "cut" else data[:-1] + b"?")
        with pytest.raises(Compiled):
            again(graph)
    finally:
        path.unlink()
        path.write_bytes(data)
        path.chmod(0o600)
        digest.write_bytes(sign)
    assert "is compiled anew" in caplog.text


def test_names_depend_on_graph_layout_threads_and_settings(monkeypatch):
    flat, _ = lifted(recorded(lambda x: (x.sin(),), [X]))
    other, _ = lifted(recorded(lambda x: (x.cos(),), [X]))
    names = [
        key(flat, [X], 1),
        key(other, [X], 1),
        key(flat, [X.t()], 1),
        key(flat, [X.double()], 1),
        key(flat, [X], 2),
    ]
    monkeypatch.setenv("CXX", "clang++")
    assert len({*names, key(flat, [X], 1)}) == 6


@pytest.mark.parametrize(
    "graph", [torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 1))), recorded(lambda x: x.sin(), [X])]
)
def test_graphs_of_another_kind_are_refused(graph):
    with pytest.raises(ValueError, match="graph: wanted"):
        compiled_graph(graph, (X,))


@needs_compiler
def test_operators_without_a_c_function_run_through_torch():
    graph = recorded(lambda x: (torch.poisson(x) + 1,), [X])
    function = compiled_graph(graph, (X,), threads=1)
    torch.manual_seed(0)
    got = function(X)
    torch.manual_seed(0)
    assert torch.equal(got[0], torch.poisson(X) + 1)
    assert layout(got) == layout([X])
