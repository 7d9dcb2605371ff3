"""What a trace turns into a constant: found where it changes, so that all engines train alike, or say why not."""

import copy
import ctypes
import itertools
import timeit
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from programs import needs_compiler
from pyro.infer import Trace_ELBO
from torch import nn
from watched_programs import (
    BATCHES,
    DRAWS,
    LAYERS,
    PLACES,
    ByHandler,
    Config,
    Program,
    Training,
    assert_alike,
    noisy,
    normalised,
    pictures,
    program,
)

from pyro_vae import fit, handlers
from pyro_vae.compiling import ProgramLoss, Untraceable
from pyro_vae.compiling.constants import WatchedConstants
from pyro_vae.compiling.joint import record
from pyro_vae.compiling.outcomes import difference
from pyro_vae.compiling.parts import LONGEST
from pyro_vae.estimators import StickingTheLanding
from pyro_vae.linear_gaussian import LinearGaussian
from pyro_vae.random import random_state
from pyro_vae.training import engines, gradients, worth
from pyro_vae.training.checkpoint import encode
from pyro_vae.training.engines import CompiledEngine, EagerEngine, EngineWarning

pytestmark = [pytest.mark.slow, needs_compiler, pytest.mark.usefixtures("quick_compiler", "no_validation")]


@pytest.mark.parametrize("place", ["self.beta", "self.config.kl.beta", "self.handler.beta"])
def test_a_number_that_changes_once_is_traced_anew(place):
    assert not assert_alike(PLACES[place], lambda program, step: program.set(0.9) if step == 3 else None)


@pytest.mark.parametrize("place", ["self.beta", "self.beta (another Tensor", "self.handler.beta"])
def test_a_number_that_changes_at_each_step_is_trained_eagerly_and_named(place):
    (said,) = assert_alike(PLACES[place], lambda program, step: program.set(0.1 * (step + 1)), engine="eager")
    assert said.startswith(f"training eagerly: {place}") and "handlers.KLWeighted" in said


def test_the_advised_buffer_is_compiled():
    advised = program(
        lambda self: self.register_buffer("beta", torch.tensor(0.5)), None, lambda self, beta: self.beta.fill_(beta)
    )
    assert not assert_alike(advised, lambda program, step: program.set(0.1 * (step + 1)))
    scalar = type(
        "Scalar",
        (ByHandler,),
        {
            "hold": lambda self: setattr(self, "handler", handlers.KLWeight(torch.ones(()))),
            "set": lambda self, beta: self.handler.beta.fill_(beta),
        },
    )
    assert not assert_alike(scalar, lambda program, step: program.set(0.1 * (step + 1)))


def test_a_number_that_settles_is_compiled_again_and_one_that_does_not_is_not_traced_for_ever(monkeypatch):
    traces = []
    monkeypatch.setattr(gradients, "record", lambda *args: traces.append(args) or record(*args))
    assert not assert_alike(Program, lambda program, step: program.set(0.5 if step < 6 else 0.9))
    assert len(traces) == 2
    traces.clear()
    monkeypatch.setattr("pyro_vae.compiling.constants.ANEW", 1)
    assert assert_alike(Program, lambda program, step: program.set(0.1 * (1 + step // 2)), engine="eager")
    assert len(traces) == 2


def test_values_that_are_set_again_are_no_change():
    def again(program, step):
        program.beta, program.config = float(f"{0.25}"), Config(0.5)

    assert not assert_alike(Program, again)


@pytest.mark.parametrize("generator", DRAWS)
def test_draws_by_other_generators_are_eager_and_named(generator):
    (said,) = assert_alike(DRAWS[generator], engine="eager")
    assert f"draws from {generator}, " in said and "torch.rand" in said
    with pytest.raises(Untraceable, match="draws from"):
        Training(CompiledEngine, DRAWS[generator])


def test_the_advised_draws_are_compiled():
    assert not assert_alike(noisy(lambda self: torch.rand(4)))


def count(self):
    self.step += 1
    return 0.1 * self.step


def grow(self):
    self.betas.append(self.betas[-1] * 1.5)
    return self.betas[-1]


def replace(self):
    self.beta = self.beta * 1.5
    return self.beta


CHANGING = {
    "self.step": program(lambda self: setattr(self, "step", 0), count),
    "self.betas": program(lambda self: setattr(self, "betas", [0.1]), grow),
    "self.beta": program(lambda self: setattr(self, "beta", torch.tensor(0.1)), replace),
    "self.beta at": program(lambda self: self.register_buffer("beta", torch.tensor(0.1)), replace),
    "self.beta while": program(
        lambda self: setattr(self, "beta", torch.tensor(0.1)), lambda self: self.beta.mul_(1.5).clone()
    ),
}


@pytest.mark.parametrize("place", CHANGING)
def test_what_the_program_changes_itself_is_eager_and_named(place):
    (said,) = assert_alike(CHANGING[place], engine="eager")
    assert place in said
    with pytest.raises(Untraceable, match=r"(changes|replaces) self\.(step|betas|beta)"):
        Training(CompiledEngine, CHANGING[place])


def test_what_a_run_sets_up_or_keeps_for_others_to_see_is_no_change():
    def setting_up(self):
        self.table = {"beta": 0.1} if self.table is None else self.table
        self.last = torch.ones(()) * self.table["beta"]
        return self.last

    assert not assert_alike(program(lambda self: vars(self).update(table=None, last=None), setting_up))


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_with_buffers(layer):
    said = assert_alike(normalised(layer), engine="eager" if "without" in layer else "compiled")
    assert bool(said) == ("without" in layer)


def freeze(program, step):
    if step == 3:
        program.decoder[0].requires_grad_(False)
    if step == 7:
        program.decoder[0].requires_grad_(True)


def swap(program, step):
    if step == 3:
        program.decoder[1] = nn.Tanh()


def swap_parameters(program, step):
    if step == 3:
        program.encoder = nn.Linear(4, 4)


def halve(program, step):
    if step == 3:
        program.encoder.weight.data = 0.5 * program.encoder.weight.data


def add(program, step):
    if step == 3:
        program.decoder.append(nn.Sigmoid())


@pytest.mark.parametrize("change", [freeze, swap, swap_parameters, halve, add])
def test_changes_to_modules_and_parameters_are_followed(change):
    assert not assert_alike(Program, change)


def test_changes_to_objects_of_libraries_are_followed():
    def hold(self):
        self.beta, self.dropout = 0.1, nn.Dropout()

    def drop_less(program, step):
        program.dropout.p = 0.5 if step < 3 else 0.1

    dropping = program(hold, observe=lambda self, pixels, generator=None: self.dropout(pixels.flatten(1) / 255))
    assert not assert_alike(dropping, drop_less)


@pytest.mark.parametrize(
    ("estimator", "name", "values"),
    [
        (handlers.FreeBits(0.01), "nats", (0.01, 0.5)),
        (Trace_ELBO(), "num_particles", (1, 2)),
    ],
)
def test_changes_to_the_estimator_are_followed(estimator, name, values):
    unweighted = program(lambda self: setattr(self, "beta", 1.0))
    change = lambda program, step: setattr(estimator, name, values[step > 3])  # noqa: E731
    assert not assert_alike(unweighted, change, estimator=estimator)


def hidden():
    """A number where nobody looks."""
    return program(
        lambda self: setattr(self, "number", ctypes.c_double(0.1)),
        lambda self: self.number.value,
        lambda self, beta: setattr(self.number, "value", beta),
    )


def test_a_change_that_is_not_seen_is_found_at_the_end_of_the_epoch_and_traced_anew_once():
    def once(program, step):
        if step == 4:  # the last step of the epoch, which is eager for its size
            program.set(0.9)

    (said,) = assert_alike(hidden(), once)
    assert "its loss is" in said and "traced anew" in said
    said = assert_alike(
        hidden(), lambda program, step: program.set({4: 0.9, 9: 0.5}.get(step, program.number.value)), engine="eager"
    )
    assert len(said) == 2 and said[1].startswith("training eagerly: ")


def test_what_differs_at_each_run_is_eager_from_the_start():
    counting = program(lambda self: setattr(self, "numbers", itertools.count(1)), lambda self: 0.1 * next(self.numbers))
    training = Training(CompiledEngine, counting, strict=False)
    assert training.step.name == "eager" and "is not what the program does" in training.said[0]
    with pytest.raises(Untraceable, match="is not what the program does"):
        Training(CompiledEngine, counting)


@pytest.mark.parametrize("kind", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_of_gradients_are_eager_and_named(kind):
    def hold(self):
        self.beta = 1.0
        getattr(self.encoder.weight, kind)(lambda value: 0.5 * value if kind == "register_hook" else None)

    (said,) = assert_alike(program(hold), engine="eager")
    assert "the gradient of encoder.weight has a hook" in said


def test_the_comparison_leaves_no_trace(monkeypatch):
    compared = []
    training = Training(CompiledEngine, normalised("batch norm"))
    monkeypatch.setattr("pyro_vae.training.compiled.difference", lambda *args: compared.append(difference(*args)))
    training.step(BATCHES[10])

    def state():
        gradients = [parameter.grad for parameter in training.program.parameters()]
        return encode(
            {
                "program": dict(training.program.state_dict()),
                "optimizer": training.optimizer.state_dict(),
                "random": random_state(),
                "gradients": gradients,
            }
        )

    before = state()
    training.step.end_epoch()
    assert compared == [None] and state() == before
    training.step.end_epoch()
    assert len(compared) == 1  # no step since


def test_a_gradient_of_nothing_but_rounding_is_no_difference():
    def make():  # the guide is exact, so that its gradient is zero
        exact = LinearGaussian(torch.randn(4, 2, generator=torch.Generator().manual_seed(0)))
        exact.observe = lambda pixels, generator=None: pixels.flatten(1) / 255
        return exact

    settings = {"estimator": StickingTheLanding()}
    assert Training(CompiledEngine, make, **settings).step.name == "compiled"


def test_what_the_optimiser_is_told_later_is_followed():
    def change(training, step):
        if step == 3:
            training.optimizer.param_groups[0]["weight_decay"] = 0.1
        if step == 6:
            training.optimizer.load_state_dict(copy.deepcopy(training.optimizer.state_dict()))

    losses = []
    for kind in EagerEngine, CompiledEngine:
        training = Training(kind, Program)
        for step, batch in enumerate(BATCHES[:10]):
            change(training, step)
            losses.append(training.step(batch))
        assert training.step.name == kind.name
    torch.testing.assert_close(losses[:10], losses[10:], rtol=1e-5, atol=0)


def test_fit_says_what_really_trained(monkeypatch):
    monkeypatch.setattr(engines, "FEWEST", 1)
    monkeypatch.setattr(worth, "COMPILING", (0.0, 0.0))
    numbers = []
    for engine in "eager", "auto":
        trained = DRAWS["NumPy's numpy.random"]()
        np.random.seed(0)
        with pytest.warns(EngineWarning, match=r"numpy\.random") if engine == "auto" else nullcontext() as said:
            history = fit(trained, pictures(), epochs=2, batch_size=4, engine=engine, progress=False)
        assert history.engine == "eager" and (engine == "eager" or len(said) == 1)
        numbers.append([row["valid_bound"] for row in history.rows])
    assert numbers[0] == numbers[1]
    before = copy.deepcopy(trained.state_dict())
    with pytest.raises(Untraceable, match=r"numpy\.random"):
        fit(trained, pictures(), epochs=2, batch_size=4, engine="compiled", progress=False)
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in before.items())


def test_fit_compares_at_the_end_of_each_epoch(monkeypatch):
    compared = []
    monkeypatch.setattr("pyro_vae.parallel.cores", lambda: 1)  # shares are compared once more
    monkeypatch.setattr("pyro_vae.training.compiled.difference", lambda *args: compared.append(difference(*args)))
    unweighted = program(lambda self: setattr(self, "beta", 1.0))
    history = fit(unweighted(), pictures(), epochs=3, batch_size=4, engine="compiled", progress=False)
    assert compared == [None] * 4 and history.engine == "compiled"


def test_a_look_at_a_usual_program_takes_microseconds():
    watched = WatchedConstants(ProgramLoss(Trace_ELBO(), Program().model, Program().guide).roots)
    assert min(timeit.repeat(watched.changes, number=100, repeat=20)) / 100 < 1e-4


def test_a_long_list_of_other_numbers_is_followed():
    long = program(
        lambda self: setattr(self, "betas", (LONGEST + 1) * [0.1]),
        lambda self: self.betas[7],
        lambda self, beta: setattr(self, "betas", (LONGEST + 1) * [beta]),
    )
    assert not assert_alike(long, lambda program, step: program.set(0.9) if step == 3 else None)
