"""Recorded graphs against the functions themselves, at other values, and what cannot be recorded."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.compiling.recorder import Recorder, recorded
from pyro_vae.compiling.untraceable import Untraceable

X = torch.linspace(0.1, 1.2, 12).reshape(4, 3)


def gradient(x):
    layer = nn.Linear(3, 2, dtype=x.dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(6.0).reshape(2, 3))
        layer.bias.zero_()
    loss = (layer(x).sigmoid() * torch.randn(2)).sum() + torch.logsumexp(x.t() @ x, 0).sum()
    return (loss.detach(), *torch.autograd.grad(loss, [layer.weight, layer.bias]))


def counted(x):
    total = torch.tensor(2.0)
    for row in x.unbind():
        total += row.sum()  # in place, on a number of Python
    return total


def turned(x):
    seen = x.detach()
    seen.t_()  # a view in place: x keeps its shape
    return x.sum(0), seen.sum(0), seen


def moved(x):
    y = x.clone()
    y[1] = 0
    y.detach()[2] += 1
    return y, torch.stack([*y.split([1, 3])[1]]).topk(2)


def per_row(x):
    return torch.func.vmap(torch.func.grad(lambda row: row.pow(3).sum() + row.prod()))(x)


@pytest.mark.parametrize("function", [gradient, counted, turned, moved, per_row])
def test_a_graph_is_the_function_at_other_values_and_again(function):
    with torch.random.fork_rng():
        graph = recorded(function, [X.clone()])
        for x in (X.flip(0) ** 2, X, X):
            torch.manual_seed(1)
            wanted = torch.utils._pytree.tree_leaves(function(x.clone()))
            torch.manual_seed(1)
            with torch.no_grad():
                got = torch.utils._pytree.tree_leaves(graph(x.clone()))
            assert len(got) == len(wanted)
            torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def test_the_operators_are_those_of_torchs_own_recorder():
    def names(graph):
        found = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        return [name for name in found if "detach" not in name and "alias" not in name and "getitem" not in name]

    with torch.random.fork_rng():
        assert names(recorded(gradient, [X])) == names(make_fx(gradient)(X))


def test_tensors_that_are_no_arguments_are_held_and_stay_the_very_tensors():
    weight = nn.Parameter(torch.ones(3))
    graph = recorded(lambda x: x * weight + weight.detach(), [X])
    (held,) = [getattr(graph, node.target) for node in graph.graph.nodes if node.op == "get_attr"]
    assert held is weight
    with torch.no_grad():
        weight.mul_(2)
    assert torch.equal(graph(X), X * 2 + 2)


def test_shapes_and_dtypes_are_noted():
    graph = recorded(lambda x: x.half().sum(1), [X])
    *_, last, output = graph.graph.nodes
    assert output.op == "output" and last.meta["val"].shape == (4,) and last.meta["val"].dtype == torch.float16


def test_draws_of_a_generator_of_its_own_are_refused():
    with pytest.raises(Untraceable, match="generator of its own"):
        recorded(lambda x: x + torch.rand(3, generator=torch.Generator()), [X])


def test_numbers_that_are_read_become_constants():
    graph = recorded(lambda x: x * torch.tensor(3.0).item() + x.sum().item(), [X])
    assert torch.equal(graph(torch.zeros(4, 3)), torch.zeros(4, 3) + X.sum())


def test_weights_that_autocast_converted_before_are_converted_anew():
    layer = nn.Linear(3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        layer(X)  # autocast now keeps the weight in bfloat16
        graph = recorded(layer, [X])
        assert torch.is_autocast_cache_enabled()
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
    assert not graph(X).any()


class Logged(torch.Tensor):
    """A tensor with operators of its own, which are made of others."""

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        plain = torch.utils._pytree.tree_map_only(Logged, lambda each: each.inner, (args, kwargs or {}))
        return func(*plain[0], **plain[1])


def test_operators_of_a_kind_of_tensor_are_recorded_as_those_that_they_call():
    logged = torch.Tensor._make_wrapper_subclass(Logged, (4, 3))
    logged.inner = 2 * X
    graph = recorded(lambda x: x + logged, [X])
    assert torch.equal(graph(X), 3 * X)


def test_a_recorder_ends_with_its_block():
    with Recorder([X]) as recorder:
        y = X + 1
    before = copy.copy(recorder._known)
    y.sin()
    assert recorder._known == before


@pytest.mark.slow
def test_torchs_compiler_is_not_imported():
    code = """
import sys, torch
from pyro_vae.compiling.noise import Draws
from pyro_vae.compiling.recorder import recorded
from pyro_vae.compiling.values import ValuesUnread
with Draws(), ValuesUnread([]):
    recorded(lambda x: x.sin() + torch.rand(3), [torch.zeros(3)])
print([name for name in sys.modules if name in ("torch._dynamo", "torch._inductor", "sympy")])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
