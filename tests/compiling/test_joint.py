"""A function is recorded with its gradients, and reads tensors where they lie."""

import gc

import pytest
import torch
from torch import nn

from pyro_vae.compiling import Untraceable
from pyro_vae.compiling.constants import WatchedConstants
from pyro_vae.compiling.joint import check_same, own_gradients, record
from pyro_vae.compiling.private import unrecorded

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compiler")]


def test_second_derivatives_and_tensors_that_change():
    weight, scale = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor(3.0)

    def function(x):
        value = (scale * weight**3 * x).sum()
        (slope,) = torch.autograd.grad(value, [weight], create_graph=True)
        return value.detach(), *torch.autograd.grad(slope.square().sum(), [weight])

    x = torch.ones(2)
    graph = record(function, [x], WatchedConstants({}))
    check_same(graph, function, [x], ["weight"], "run eagerly")
    with torch.no_grad():
        weight.mul_(2)
    scale.fill_(0.5)
    for got, wanted in zip(graph([3 * x]), function(3 * x)):
        torch.testing.assert_close(got, wanted)


def test_what_is_computed_beside_the_record_is_refused():
    def function(x):
        return [torch.tensor((2 * x).detach().apply_(float).tolist())]  # by a function of Python, on memory

    with pytest.raises(Untraceable):
        record(function, [torch.ones(2)], WatchedConstants({}))


@pytest.mark.parametrize("between", [lambda: None, gc.collect])
def test_a_tensor_that_is_made_beside_the_record_is_refused(between):
    before = unrecorded(torch.full, (2,), 3.0)

    def function(x):
        made = unrecorded(torch.full, (2,), 3.0)
        between()
        return [x * before * made]

    with pytest.raises(Untraceable, match=r"1 of the program's tensors, the first of shape \(2,\), are computed where"):
        record(function, [torch.ones(2)], WatchedConstants({}))
    graph = record(lambda x: [x * before], [torch.ones(2)], WatchedConstants({}))
    assert [held is before for held in graph.held] == [True]


def test_a_function_that_another_run_does_not_repeat_is_refused():
    counts = iter(range(100))

    def function(x):
        return [x.sum() * next(counts)]

    graph = record(function, [torch.ones(2)], WatchedConstants({}))
    with pytest.raises(Untraceable, match=r"not what the program does on the same random numbers.*run eagerly"):
        check_same(graph, function, [torch.ones(2)], [], "run eagerly")


def test_gradients_are_put_back():
    weight = torch.ones(2, requires_grad=True)
    weight.sum().backward()
    before = weight.grad
    with own_gradients([weight]):
        assert weight.grad is None
        (2 * weight).sum().backward()
    assert weight.grad is before and before.tolist() == [1.0, 1.0]


def test_convolutions_of_lowered_precision_have_their_channels_innermost():
    layer, x = nn.Conv2d(8, 16, 3), torch.rand(2, 8, 5, 5)

    def given(precision):
        def function(x):
            with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
                return torch.autograd.grad(layer(x + 1).float().square().sum(), [layer.weight])

        nodes = record(function, [x], WatchedConstants({"layer": layer})).graph.graph.nodes
        names = {"aten.convolution.default": slice(2), "aten.convolution_backward.default": slice(1, 3)}
        args = [arg for node in nodes if str(node.target) in names for arg in node.args[names[str(node.target)]]]
        found = [arg.meta["val"] for arg in args if arg.op != "placeholder"]
        return [(each.dtype, each.is_contiguous(memory_format=torch.channels_last)) for each in found]

    assert given(torch.bfloat16) == 4 * [(torch.bfloat16, True)]
    assert given(None) == 2 * [(torch.float32, False)]  # the weight is an argument of the graph
