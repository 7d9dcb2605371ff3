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


class Counted:
    """Makes a function that scales by a number, and counts how often it is made and run in Python."""

    def __init__(self):
        self.made = 0

    def __call__(self):
        self.made += 1
        return lambda x: 3 * x


def test_a_graph_is_made_once_for_each_shape_and_dtype():
    graphs, make = Graphs(wanted=True, calls=1, device="cpu"), Counted()
    for x in (torch.ones(2), torch.zeros(2), torch.ones(3), torch.ones(2).double(), torch.ones(3)):
        assert torch.equal(graphs.get(make, (x,))(x), 3 * x)
    assert make.made == 3


def test_random_numbers_go_on_as_if_nothing_had_been_made():
    state = torch.get_rng_state()
    assert Graphs(True, 1, "cpu").get(lambda: torch.rand_like, (torch.ones(2),)) is not None
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("wanted", "calls", "compiler", "made"),
    [
        (None, graphs.WORTH_CALLS, True, True),
        (None, graphs.WORTH_CALLS - 1, True, False),
        (None, graphs.WORTH_CALLS, False, False),
        (False, 10**9, True, False),
        (True, 1, True, True),
    ],
)
def test_where_compiling_is_earned_back(monkeypatch, wanted, calls, compiler, made):
    monkeypatch.setattr(graphs, "missing_compiler", lambda: None if compiler else "no C++ compiler")
    graph = Graphs(wanted, calls, "cpu").get(lambda: torch.sin, (torch.ones(2),))
    assert (graph is not None) is made


def test_what_cannot_be_compiled_is_an_error_only_where_it_must_be(monkeypatch, caplog):
    def branching(x):
        return x if x.sum() > 0 else -x

    x = (torch.ones(2),)
    with pytest.raises(Exception, match="branching"):
        Graphs(True, 1, "cpu").get(lambda: branching, x)
    make = Counted()
    lenient = Graphs(None, graphs.WORTH_CALLS, "cpu")
    assert lenient.get(lambda: make() and branching, x) is None and lenient.get(lambda: make() and branching, x) is None
    assert make.made == 1 and "not compiled, which is only slower" in caplog.text
    monkeypatch.setattr(graphs, "missing_compiler", lambda: "no C++ compiler")
    with pytest.raises(Untraceable, match=r"no C\+\+ compiler"):
        Graphs(True, 1, "cpu").get(lambda: torch.sin, x)
