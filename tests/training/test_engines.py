"""Engines: the same training by each of them; what they say when they cannot."""

import itertools

import pytest
import torch
from engine_trainings import BATCHES, adam
from programs import DIGITS, needs_compiler, small_vae
from pyro.infer import Trace_ELBO

from pyro_vae import fit
from pyro_vae.data.sets import Data
from pyro_vae.training.engines import (
    ENGINES,
    WORTH_COMPILING,
    CompiledEngine,
    EagerEngine,
    EngineWarning,
    SVIEngine,
    engine,
)

pytestmark = pytest.mark.usefixtures("no_validation")


def test_no_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    arguments = small_vae(), Trace_ELBO(), None
    for settings in {"name": "compiled"}, {"name": "auto", "steps": 10 * WORTH_COMPILING}:
        with pytest.warns(EngineWarning, match="training eagerly: no C.. compiler: 'no-such-compiler' is not found"):
            assert isinstance(engine(settings.pop("name"), *arguments, **settings), EagerEngine)
    assert isinstance(engine("auto", *arguments, steps=1), EagerEngine)


@needs_compiler
def test_auto_compiles_long_trainings():
    arguments = small_vae(), Trace_ELBO(), None
    assert isinstance(engine("auto", *arguments, steps=WORTH_COMPILING - 1), EagerEngine)
    assert isinstance(engine("auto", *arguments, steps=WORTH_COMPILING), CompiledEngine)


@pytest.mark.parametrize("name", [name for name in ENGINES if name != "compiled"])
def test_fit_says_which_engine_it_took(name):
    few = Data("few", DIGITS.train[:100], DIGITS.valid[:50], DIGITS.test[:50])
    history = fit(small_vae(), few, engine=name, epochs=1, batch_size=50, progress=False)
    assert history.engine == {"auto": "eager"}.get(name, name)


def test_unknown_engines_and_clips():
    with pytest.raises(ValueError, match="wanted one of auto, eager, compiled, svi, got 'fast'"):
        fit(small_vae(), DIGITS, engine="fast")
    with pytest.raises(ValueError, match="clip: wanted a positive number"):
        fit(small_vae(), DIGITS, clip=0.0)


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=1e-4, momentum=0.9, weight_decay=0.1)


def frozen_for_a_while(kind, optimizer):
    """Ten steps, of which the decoder is frozen in the fifth to the seventh: the engine and the decoder after each."""
    program, said = small_vae(), []
    decoder = program.likelihood.network
    step = kind(program, Trace_ELBO(), optimizer(list(program.parameters())))
    torch.manual_seed(1)
    for number, batch in enumerate(BATCHES[:4] + BATCHES[5:9] + BATCHES[10:12]):
        decoder.requires_grad_(not 4 <= number < 7)
        step(batch)
        said.append([torch.cat([p.detach().flatten() for p in part.parameters()]) for part in (decoder, program)])
    return step, *zip(*said)


FREEZING = {"eager": (EagerEngine, 0), "svi": (SVIEngine, 0), "compiled": (CompiledEngine, 10_000)}
FREEZING["compiled, too far away to be seen among the constants"] = CompiledEngine, 5


@needs_compiler
@pytest.mark.parametrize("optimizer", [adam, momentum])
@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize("kind, most", FREEZING.values(), ids=FREEZING)
def test_frozen_parameters_do_not_move_and_move_again_once_they_are_free(
    kind, optimizer, most, monkeypatch, quick_compiler
):
    monkeypatch.setattr("pyro_vae.compiling.places.MOST", most)
    step, decoder, whole = frozen_for_a_while(kind, optimizer)
    moved = [not torch.equal(one, other) for one, other in itertools.pairwise(decoder)]
    assert moved == 3 * [True] + 3 * [False] + 3 * [True]
    assert all(not torch.equal(one, other) for one, other in itertools.pairwise(whole))
    assert step.name == kind.name and (kind is not CompiledEngine or step.graph is not None)
    *_, reference = frozen_for_a_while(EagerEngine, optimizer)
    torch.testing.assert_close(whole[-1], reference[-1], rtol=1e-4, atol=1e-5)
