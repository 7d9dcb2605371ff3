"""The graph of a step: a loss whose derivatives are known, and the buffers that it moves."""

import pytest
import torch
from torch import nn

from pyro_vae.compiling.constants import WatchedConstants
from pyro_vae.compiling.outcomes import contents_kept, outcome
from pyro_vae.training import gradients
from pyro_vae.training.gradients import StepGradients

pytestmark = pytest.mark.usefixtures("quick_compiler")


class Quadratic(nn.Module):
    """Σ (w · x)², which counts its calls in a buffer; ``rest`` adds nothing, and ``still`` does not change."""

    def __init__(self):
        super().__init__()
        self.weight, self.rest = nn.Parameter(torch.tensor([1.0, -2.0])), nn.Parameter(torch.ones(1))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("still", torch.ones(()))

    def forward(self, x):
        self.count.add_(1)
        return (x @ self.weight).square().sum() * self.still


X = torch.tensor([[1.0, 0.0], [2.0, 1.0], [0.0, 3.0]])  # w · x = 1, 0, −6
LOSS, GRADIENT = 37.0, [2.0, -36.0]


@pytest.fixture
def quadratic():
    return Quadratic()


def recorded(quadratic, **settings):
    parameters, buffers = dict(quadratic.named_parameters()), dict(quadratic.named_buffers())

    def expected():
        with contents_kept(buffers.values()):
            return outcome(quadratic, (X,), parameters, buffers)

    return StepGradients(quadratic, (X,), WatchedConstants({"": quadratic}), parameters, buffers, expected, **settings)


@pytest.fixture
def graph(quadratic):
    return recorded(quadratic)


@pytest.mark.slow
def test_loss_gradients_and_their_norm(quadratic, graph):
    loss, (gradient,), norm = graph(X)
    assert graph.names == ["weight"] and graph.trained[0] is quadratic.weight
    assert loss == LOSS and gradient.tolist() == GRADIENT
    assert norm.item() == pytest.approx((4 + 1296) ** 0.5) and not loss.requires_grad
    with torch.no_grad():
        quadratic.weight.mul_(2)  # the graph reads the memory of the parameters
    loss, (gradient,), _ = graph(X)
    assert loss == 4 * LOSS and gradient.tolist() == [2 * value for value in GRADIENT]


@pytest.mark.parametrize(
    ("settings", "compiled"), [({}, True), ({"compiled": True}, True), ({"compiled": False}, False)]
)
def test_a_step_is_compiled_unless_it_is_not_to_be(quadratic, monkeypatch, settings, compiled):
    seen = []
    monkeypatch.setattr(gradients, "compiled_graph", lambda graph, args: seen.append(graph) or graph)
    graph = recorded(quadratic, **settings)
    loss, (gradient,), norm = graph(X)
    assert (loss, gradient.tolist()) == (LOSS, GRADIENT) and norm.item() == pytest.approx((4 + 1296) ** 0.5)
    assert len(seen) == compiled


@pytest.mark.slow
def test_buffers_move_in_a_step_and_not_in_a_comparison(quadratic, graph):
    before = quadratic.count.item()
    found = graph.outcome(X)
    assert found.loss == LOSS and found.gradients["weight"].tolist() == GRADIENT
    assert list(found.buffers) == ["count"] and found.buffers["count"] == before + 1 and quadratic.count == before
    graph(X)
    assert quadratic.count == before + 1


def test_gradients_lie_in_memory_as_the_parameters_do(graph):
    graph.values = [torch.zeros(3, 2).T]
    graph.recorded = lambda raw: (torch.tensor(1.0), torch.arange(6.0).reshape(2, 3))
    _, (gradient,), _ = graph(X)
    assert gradient.stride() == (1, 2) and gradient.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_parameters_that_are_frozen_or_free_since(quadratic, graph):
    assert not graph.changes()
    quadratic.weight.requires_grad_(False)
    assert graph.changes() == {"weight.requires_grad": (True, False)}
    quadratic.weight.requires_grad_(True)
    assert not graph.changes()
    still = next(parameter for name, parameter, flag in graph._known if name == "rest.requires_grad")
    still.requires_grad_(not still.requires_grad)
    assert list(graph.changes()) == ["rest.requires_grad"]
