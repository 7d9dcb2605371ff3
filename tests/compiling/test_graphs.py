"""Functions that are compiled for each shape, where that is earned back."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import needs_compiler

from pyro_vae.compiling import Untraceable, graphs
from pyro_vae.compiling.graphs import Graphs
from pyro_vae.evidence import log_evidence

pytestmark = [pytest.mark.slow, needs_compiler, pytest.mark.usefixtures("quick_compiler", "no_validation")]


# Noise that changes nothing is found as the program is traced; other noise has the particles run one by one before.
CASES = [(0.0, r'numpy\.random.*engine="eager"'), (0.1, r'one after .*engine="eager"')]


@pytest.mark.parametrize("noise, words", CASES)
def test_evidence_of_a_model_that_draws_by_numpy_is_eager(noise, words):
    def model(x):
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + noise * float(np.random.rand()), 1.0), obs=x)

    def guide(x):
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(0.4 * x, 0.8))

    x, values = torch.randn(3), []
    for engine in ("auto", "eager"):
        np.random.seed(0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pyro_vae.compiling.graphs.WORTH_CALLS", 1)
            values.append(log_evidence(model, guide, x, 30, chunk=9, engine=engine, seed=0).log_px)
    assert torch.equal(*values)
    with pytest.raises(Untraceable, match=words):
        log_evidence(model, guide, x, 30, chunk=9, engine="compiled", seed=0)


def result(graphs, function, x):
    """The only result of the only call; None if it is to run eagerly."""
    found = graphs.of_each(function, [(x,)])
    return None if found is None else next(found)[0]


def drawing(x):
    return (x + torch.rand_like(x),)


def tripled(x):
    return (3 * x,)


@pytest.fixture
def made(monkeypatch):
    """The graphs that are compiled."""
    found = []
    compiler = graphs.compiled_graph
    monkeypatch.setattr(graphs, "compiled_graph", lambda graph, *_, **__: found.append(graph) or compiler(graph))
    return found


def test_a_graph_is_made_once_for_each_shape_and_dtype(made):
    graphs = Graphs(wanted=True, calls=1, device="cpu")
    for x in (torch.ones(2), torch.zeros(2), torch.ones(3), torch.ones(2).double(), torch.ones(3)):
        assert torch.equal(result(graphs, tripled, x), 3 * x)
    assert len(made) == 3


def test_random_numbers_go_on_as_if_nothing_had_been_made():
    state = torch.get_rng_state()
    assert Graphs(True, 1, "cpu").of_each(drawing, [(torch.ones(2),)]) is not None
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("wanted", "calls", "compiler", "compiles"),
    [
        (None, graphs.WORTH_CALLS, True, True),
        (None, graphs.WORTH_CALLS - 1, True, False),
        (None, graphs.WORTH_CALLS, False, False),
        (False, 10**9, True, False),
        (True, 1, True, True),
    ],
)
def test_where_compiling_is_earned_back(monkeypatch, wanted, calls, compiler, compiles):
    monkeypatch.setattr(graphs, "missing_compiler", lambda: None if compiler else "no C++ compiler")
    assert (result(Graphs(wanted, calls, "cpu"), tripled, torch.ones(2)) is not None) is compiles


def test_what_cannot_be_compiled_is_an_error_only_where_it_must_be(monkeypatch, caplog):
    x, tries = torch.ones(2), []

    def failing(graph, *_, **__):
        tries.append(graph)
        raise RuntimeError("g++ ran out of memory")

    monkeypatch.setattr(graphs, "compiled_graph", failing)
    with pytest.raises(Untraceable, match=r"compiler fails.*out of memory"):
        result(Graphs(True, 1, "cpu"), tripled, x)
    lenient = Graphs(None, graphs.WORTH_CALLS, "cpu")
    assert result(lenient, tripled, x) is None and result(lenient, tripled, x) is None
    assert len(tries) == 2 and "not compiled, which is only slower" in caplog.text
    monkeypatch.setattr(graphs, "missing_compiler", lambda: "no C++ compiler")
    with pytest.raises(Untraceable, match=r"no C\+\+ compiler"):
        result(Graphs(True, 1, "cpu"), tripled, x)


@pytest.mark.parametrize("cores", [1, 3])
def test_several_cores_give_the_results_of_each_call_in_order(monkeypatch, cores):
    monkeypatch.setattr(graphs, "cores", lambda: cores)
    calls = [(torch.full((2,), float(i)),) for i in range(50)]
    found = [values[0][0].item() for values in Graphs(True, 1, "cpu").of_each(tripled, calls)]
    assert found == [3.0 * i for i in range(50)]


def test_a_graph_that_draws_itself_is_called_in_order(monkeypatch):
    """Threads that draw from one generator would do so in any order."""
    monkeypatch.setattr(graphs, "cores", lambda: 3)
    monkeypatch.setattr(graphs, "each", lambda function, calls, workers: [workers] * len(calls))
    for function, workers in ((drawing, 1), (tripled, 3)):
        assert next(Graphs(True, 1, "cpu").of_each(function, [(torch.zeros(2),)])) == workers
