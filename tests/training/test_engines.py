"""Engines: the same training by each of them; what they say when they cannot."""

import itertools
import re

import pytest
import torch
from engine_trainings import BATCHES, adam
from programs import DIGITS, needs_compiler, small_vae
from pyro.infer import Trace_ELBO

from pyro_vae import fit
from pyro_vae.data.sets import Data
from pyro_vae.training import worth
from pyro_vae.training.engines import (
    ENGINES,
    FEWEST,
    CompiledEngine,
    EagerEngine,
    EngineWarning,
    SVIEngine,
    engine,
)

pytestmark = pytest.mark.usefixtures("no_validation")


def first_step(name, **settings):
    """The engine of that name once it has taken a step."""
    program = small_vae()
    made = engine(name, program, Trace_ELBO(), adam(list(program.parameters())), **settings)
    made(BATCHES[0])
    return made


@pytest.fixture
def free(monkeypatch):
    """Have compiling take no seconds."""
    monkeypatch.setattr(worth, "COMPILING", (0.0, 0.0))


@pytest.mark.usefixtures("free")
def test_no_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    for settings in {"name": "compiled"}, {"name": "auto", "steps": FEWEST}:
        with pytest.warns(EngineWarning, match="training eagerly: no C.. compiler: 'no-such-compiler' is not found"):
            assert first_step(**settings).name == "eager"
    assert first_step("auto", steps=FEWEST - 1).name == "eager"


@needs_compiler
@pytest.mark.parametrize("accumulate", [1, 2])
def test_auto_compiles_what_is_earned_back(monkeypatch, caplog, accumulate):
    caplog.set_level("INFO", "pyro_vae.training.engines")
    monkeypatch.setattr(worth, "SAVED", (1.0, 0.0, 0.0))
    for seconds, name in (400.0 * accumulate, "eager"), (399.0 * accumulate, "compiled"):
        monkeypatch.setattr(worth, "COMPILING", (seconds, 0.0))
        assert first_step("auto", steps=400, accumulate=accumulate).name == name
        assert re.match(rf"{name}: \d+ operations .* take about {seconds:.0f} s to compile", caplog.messages[-1])


def test_auto_decides_alike_where_a_resumed_training_begins_with_a_small_batch(caplog):
    caplog.set_level("INFO", "pyro_vae.training.engines")
    assert len(BATCHES[4]) < len(BATCHES[0])
    for batch, rows in (BATCHES[0], None), (BATCHES[4], len(BATCHES[0])), (BATCHES[4], None):
        program = small_vae()
        engine("auto", program, Trace_ELBO(), adam(list(program.parameters())), steps=FEWEST, rows=rows)(batch)
    first, resumed, small = caplog.messages
    assert first == resumed != small


@pytest.mark.slow
@needs_compiler
@pytest.mark.usefixtures("free", "quick_compiler")
def test_auto_compiles_the_first_step_of_a_resumed_training():
    program, reference = small_vae(), small_vae()
    steps = [
        engine("auto", program, Trace_ELBO(), adam(list(program.parameters())), steps=FEWEST),
        CompiledEngine(reference, Trace_ELBO(), adam(list(reference.parameters()))),
    ]
    for step in steps:
        torch.manual_seed(1)
        assert step.name == ("eager" if step is steps[0] else "compiled")
        step(BATCHES[0])
    resumed = engine("auto", program, Trace_ELBO(), steps[0].eager.optimizer, steps=FEWEST, rows=len(BATCHES[0]))
    for step in resumed, steps[1]:
        torch.manual_seed(2)
        step(BATCHES[1])
        assert step.name == "compiled"
    assert resumed.taken.graph is not None
    assert all(torch.equal(*pair) for pair in zip(program.parameters(), reference.parameters()))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ENGINES if name != "compiled"])
def test_fit_says_which_engine_it_took(name):
    few = Data("few", DIGITS.train[:100], DIGITS.valid[:50], DIGITS.test[:50])
    history = fit(small_vae(), few, engine=name, epochs=1, batch_size=50, progress=False)
    assert history.engine == {"auto": "eager"}.get(name, name)


def test_unknown_engines_and_clips():
    with pytest.raises(ValueError, match="wanted one of auto, eager, compiled, captured, svi, got 'fast'"):
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


@pytest.mark.slow
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
