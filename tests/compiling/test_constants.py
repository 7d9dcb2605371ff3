"""What a trace turns into a constant: found where it changes, so that all engines train alike, or say why not."""

import array
import copy
import itertools
import random
import timeit
import types
import warnings
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn
from torch.nn.utils import parametrizations

from pyro_vae import fit, handlers
from pyro_vae.compiling.constants import Held, words
from pyro_vae.compiling.export import Loss, Untraceable, compiled, missing_compiler, traced
from pyro_vae.compiling.outcomes import difference
from pyro_vae.data.sets import Data, Split
from pyro_vae.estimators import StickingTheLanding
from pyro_vae.evidence.estimates import log_evidence
from pyro_vae.linear_gaussian import LinearGaussian
from pyro_vae.random import random_state
from pyro_vae.training import engines
from pyro_vae.training.checkpoint import encode
from pyro_vae.training.engines import Compiled, Eager, EngineWarning

pytestmark = pytest.mark.skipif(bool(missing_compiler()), reason="no C++ compiler")
BATCHES = torch.randint(256, (12, 4, 1, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
GLOBAL = 0.1


@pytest.fixture(autouse=True)
def quick_compiler(monkeypatch):
    """Graphs are traced as ever, and run as they are: what torch's compiler makes of them is tested elsewhere."""
    compile, settings = torch.compile, {"backend": "eager", "fullgraph": True, "dynamic": False}
    monkeypatch.setattr(torch, "compile", lambda function, **_: compile(function, **settings))
    with pyro.validation_enabled(False):
        yield


class Program(nn.Module):
    """z of two dimensions, x of four, and a weight β of the KL, which subclasses hold where they like."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.decoder = nn.Sequential(nn.Linear(2, 3), nn.Softplus(), nn.Linear(3, 4))
        self.encoder = nn.Linear(4, 4)
        self.hold()

    def hold(self):
        self.beta = 0.1

    def weight(self):
        return self.beta

    def set(self, beta):
        self.beta = beta

    def observe(self, pixels, generator=None):
        return pixels.flatten(1) / 255

    def model(self, x):
        with pyro.plate("images", len(x)):
            with pyro.poutine.scale(scale=self.weight()):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.3).to_event(1), obs=x)

    def guide(self, x):
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("images", len(x)), pyro.poutine.scale(scale=self.weight()):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def program(hold, weight=None, set=None, **methods):
    """A subclass of ``Program``: what it holds, how it reads the weight, and how the weight is set."""
    given = {"hold": hold, "weight": weight, "set": set, **methods}
    return type("Held", (Program,), {name: method for name, method in given.items() if method is not None})


@dataclass
class Config:
    beta: float = 0.1


class Settings:
    beta = 0.1


def set_global(self, beta):
    global GLOBAL
    GLOBAL = beta


def hold_in_closure(self):
    beta = 0.1

    def weight():
        return beta

    def set(value):
        nonlocal beta
        beta = value

    self.weight, self.set = weight, set


class ByHandler(Program):
    def hold(self):
        self.handler = handlers.KLWeight(0.1)

    def weight(self):
        return 1.0

    def set(self, beta):
        self.handler.beta = beta

    def model(self, x):
        return self.handler(super().model)(x)

    def guide(self, x):
        return self.handler(super().guide)(x)


PLACES = {
    "self.beta": Program,
    "self.betas[0]": program(
        lambda self: setattr(self, "betas", [0.1]),
        lambda self: self.betas[0],
        lambda self, beta: self.betas.__setitem__(0, beta),
    ),
    "self.config['beta']": program(
        lambda self: setattr(self, "config", {"beta": 0.1}),
        lambda self: self.config["beta"],
        lambda self, beta: self.config.update(beta=beta),
    ),
    "self.config.beta": program(
        lambda self: setattr(self, "config", Config()),
        lambda self: self.config.beta,
        lambda self, beta: setattr(self, "config", Config(beta)),
    ),
    "self.config.kl.beta": program(
        lambda self: setattr(self, "config", types.SimpleNamespace(kl=types.SimpleNamespace(beta=0.1))),
        lambda self: self.config.kl.beta,
        lambda self, beta: setattr(self.config.kl, "beta", beta),
    ),
    "self.betas[...]": program(
        lambda self: setattr(self, "betas", np.array([0.1])),
        lambda self: float(self.betas[0]),
        lambda self, beta: self.betas.fill(beta),
    ),
    "self.beta (another Tensor)": program(
        lambda self: setattr(self, "beta", torch.tensor(0.1)),
        None,
        lambda self, beta: setattr(self, "beta", torch.tensor(beta)),
    ),
    "self.beta (another Tensor": program(
        lambda self: self.register_buffer("beta", torch.tensor(0.1)),
        None,
        lambda self, beta: setattr(self, "beta", torch.tensor(beta)),
    ),
    "Settings.beta": program(
        lambda self: setattr(Settings, "beta", 0.1),
        lambda self: Settings.beta,
        lambda self, beta: setattr(Settings, "beta", beta),
    ),
    "test_constants.GLOBAL": program(lambda self: set_global(self, 0.1), lambda self: GLOBAL, set_global),
    "beta": program(hold_in_closure),
    "self.handler.beta": ByHandler,
}


class Training:
    """Ten steps of an engine, two epochs, on batches of which the last of each epoch is smaller."""

    def __init__(self, kind, make, change=lambda program, step: None, estimator=None, **settings):
        random.seed(0)
        np.random.seed(0)
        self.program = make()
        self.optimizer = torch.optim.Adam(self.program.parameters(), lr=0.01, fused=True)
        self.step = kind(self.program, estimator or Trace_ELBO(), self.optimizer, **settings)
        torch.manual_seed(1)
        losses = []
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for step, batch in enumerate(BATCHES[:10]):
                change(self.program, step)
                losses.append(self.step(batch[:3] if step % 5 == 4 else batch))
                if step % 5 == 4:
                    self.step.end_epoch()
        self.losses = torch.stack(losses)
        self.said = [str(warning.message) for warning in said if warning.category is EngineWarning]
        assert len(said) == len(self.said), [str(w.message) for w in said]


def assert_alike(make, change=lambda program, step: None, engine="compiled", **settings):
    """Compiled and eager training come to the same losses, parameters and buffers; what was said on the way."""
    eager, fast = Training(Eager, make, change, **settings), Training(Compiled, make, change, strict=False, **settings)
    torch.testing.assert_close(fast.losses, eager.losses, rtol=1e-5, atol=0)
    for name, value in eager.program.state_dict().items():
        torch.testing.assert_close(fast.program.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)
    assert fast.step.name == engine, fast.said
    return fast.said


@pytest.mark.parametrize("place", PLACES)
def test_every_place_is_watched_and_named(place):
    program = PLACES[place]()
    held = Held({"model": program.model, "guide": program.guide})
    assert not held.changes()
    program.set(0.9)
    changes = words(held.changes())
    assert changes.startswith(place) and "," not in changes and not held.changes()
    if "Tensor" not in place:
        program.set(float(f"{0.9}"))
        assert not held.changes()
    held.look()
    program.set(0.4)
    held.put_back()
    assert not held.changes()


def test_a_global_that_is_only_called_like_an_attribute_is_not_watched(monkeypatch):
    held = Held({"model": Program().model})
    monkeypatch.setitem(globals(), "decoder", 3)
    assert not held.changes()


def test_values_are_put_back_where_they_were():
    held_by = types.SimpleNamespace(numbers=[1, 2], names={"a": 1}, kinds={1}, array=np.arange(2), last=None)
    held = Held({"self": held_by})
    array = held_by.array
    held_by.numbers.append(3)
    held_by.names.update(a=2, b=3)
    held_by.kinds.add(2)
    array += 1
    held_by.last, held_by.new = torch.ones(1), 1
    held.put_back()
    assert vars(held_by) | {"array": None} == {
        "numbers": [1, 2],
        "names": {"a": 1},
        "kinds": {1},
        "array": None,
        "last": None,
    }
    assert held_by.array is array and array.tolist() == [0, 1]


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
    monkeypatch.setattr(engines, "traced", lambda *args: traces.append(args) or traced(*args))
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


def noisy(noise, **held):
    """Programs whose ``observe`` adds a draw by ``noise(self)``; what they hold is made by functions without
    arguments."""
    return program(
        lambda self: vars(self).update({name: make() for name, make in held.items()}),
        lambda self: 1.0,
        observe=lambda self, pixels, generator=None: pixels.flatten(1) / 255 + noise(self),
    )


DRAWS = {
    "Python's module random": noisy(lambda self: random.random()),
    "NumPy's numpy.random": noisy(lambda self: torch.from_numpy(np.random.rand(4)).float()),
    "self.numbers": noisy(lambda self: self.numbers.random(), numbers=lambda: np.random.default_rng(0)),
    "self.old": noisy(lambda self: self.old.rand(), old=lambda: np.random.RandomState(0)),
    "self.held['numbers']": noisy(
        lambda self: self.held["numbers"].random(), held=lambda: {"numbers": random.Random(0)}
    ),
    "self.generator": noisy(
        lambda self: torch.rand(4, generator=self.generator), generator=lambda: torch.Generator().manual_seed(0)
    ),
}


@pytest.mark.parametrize("generator", DRAWS)
def test_draws_by_other_generators_are_eager_and_named(generator):
    (said,) = assert_alike(DRAWS[generator], engine="eager")
    assert f"draws from {generator}, " in said and "torch.rand" in said
    with pytest.raises(Untraceable, match="draws from"):
        Training(Compiled, DRAWS[generator])


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
        Training(Compiled, CHANGING[place])


def test_what_a_run_sets_up_or_keeps_for_others_to_see_is_no_change():
    def setting_up(self):
        self.table = {"beta": 0.1} if self.table is None else self.table
        self.last = torch.ones(()) * self.table["beta"]
        return self.last

    assert not assert_alike(program(lambda self: vars(self).update(table=None, last=None), setting_up))


class Smoothed(nn.Module):
    """Divides by a mean of what it saw, which it keeps in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.ones(()))

    def forward(self, h):
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * h.detach().abs().mean())
        return h / self.mean


LAYERS = {
    "batch norm": lambda: nn.BatchNorm1d(4),
    "batch norm without momentum": lambda: nn.BatchNorm1d(4, momentum=None),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(4, 4)),
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(4, 4)),
    "dropout": lambda: nn.Dropout(0.3),
    "own": Smoothed,
}


def normalised(layer):
    """Programs with a layer in the encoder, after one without a bias: batch norm takes away what a bias adds."""

    def hold(self):
        self.beta, self.encoder = 1.0, nn.Sequential(nn.Linear(4, 4, bias=False), LAYERS[layer](), self.encoder)

    return program(hold)


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
        lambda self: setattr(self, "numbers", array.array("d", [0.1])),
        lambda self: self.numbers[0],
        lambda self, beta: self.numbers.__setitem__(0, beta),
    )


def test_a_change_that_is_not_seen_is_found_at_the_end_of_the_epoch_and_traced_anew_once():
    def once(program, step):
        if step == 4:  # the last step of the epoch, which is eager for its size
            program.set(0.9)

    (said,) = assert_alike(hidden(), once)
    assert "its loss is" in said and "traced anew" in said
    said = assert_alike(
        hidden(), lambda program, step: program.set({4: 0.9, 9: 0.5}.get(step, program.numbers[0])), engine="eager"
    )
    assert len(said) == 2 and said[1].startswith("training eagerly: ")


def test_what_differs_at_each_run_is_eager_from_the_start():
    counting = program(lambda self: setattr(self, "numbers", itertools.count(1)), lambda self: 0.1 * next(self.numbers))
    training = Training(Compiled, counting, strict=False)
    assert training.step.name == "eager" and "is not what the program does" in training.said[0]
    with pytest.raises(Untraceable, match="is not what the program does"):
        Training(Compiled, counting)


@pytest.mark.parametrize("kind", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_of_gradients_are_eager_and_named(kind):
    def hold(self):
        self.beta = 1.0
        getattr(self.encoder.weight, kind)(lambda value: 0.5 * value if kind == "register_hook" else None)

    (said,) = assert_alike(program(hold), engine="eager")
    assert "the gradient of encoder.weight has a hook" in said


def test_the_comparison_leaves_no_trace(monkeypatch):
    compared = []
    training = Training(Compiled, normalised("batch norm"))
    monkeypatch.setattr(engines, "difference", lambda *args: compared.append(difference(*args)))
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
    assert Training(Compiled, make, **settings).step.name == "compiled"


def test_what_the_optimiser_is_told_later_is_followed():
    def change(training, step):
        if step == 3:
            training.optimizer.param_groups[0]["weight_decay"] = 0.1
        if step == 6:
            training.optimizer.load_state_dict(copy.deepcopy(training.optimizer.state_dict()))

    losses = []
    for kind in Eager, Compiled:
        training = Training(kind, Program)
        for step, batch in enumerate(BATCHES[:10]):
            change(training, step)
            losses.append(training.step(batch))
        assert training.step.name == kind.__name__.lower()
    torch.testing.assert_close(losses[:10], losses[10:], rtol=1e-5, atol=0)


def pictures():
    split = Split(BATCHES.flatten(0, 1), torch.zeros(48, dtype=torch.int64))
    return Data("noise", split[:18], split[18:27], split[27:])


def test_fit_says_what_really_trained(monkeypatch):
    monkeypatch.setattr(engines, "WORTH_COMPILING", 1)
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
    monkeypatch.setattr(engines, "difference", lambda *args: compared.append(difference(*args)))
    unweighted = program(lambda self: setattr(self, "beta", 1.0))
    history = fit(unweighted(), pictures(), epochs=3, batch_size=4, engine="compiled", progress=False)
    assert compared == [None] * 4 and history.engine == "compiled"


def test_a_compiled_loss_follows_its_program():
    made = Program()
    loss, x, eager = compiled(Trace_ELBO(), made.model, made.guide, torch.rand(5, 4)), torch.rand(5, 4), Trace_ELBO()
    graphs = []
    for beta in (0.1, 0.1, 0.5, 0.5, 0.1, 0.1):  # there and back again
        made.set(beta)
        values = []
        for function in (loss, lambda x: eager.differentiable_loss(made.model, made.guide, x)):
            torch.manual_seed(0)
            values.append(function(x))
        torch.testing.assert_close(*values)
        graphs.append(loss.graph((x,)))
    assert graphs[0] is graphs[1] is graphs[4] is graphs[5] and graphs[2] is graphs[3] is not graphs[0]
    with pytest.raises(Untraceable, match=r"self\.beta \(0\.7 -> 0\.8\): it changes from call to call"):
        for beta in (0.7, 0.8):
            made.set(beta)
            loss(x)


def test_a_compiled_loss_moves_buffers_as_the_eager_one_and_is_refused_for_other_draws():
    x, means = torch.rand(5, 4), []
    for how in (compiled, lambda elbo, model, guide, x: lambda x: elbo.differentiable_loss(model, guide, x)):
        made = normalised("batch norm")()
        loss = how(Trace_ELBO(), made.model, made.guide, x)
        for _ in range(3):
            loss(x)
        means.append(made.encoder[1].running_mean)
    torch.testing.assert_close(*means)
    drawing = program(lambda self: None, lambda self: random.random())()
    with pytest.raises(Untraceable, match="draws from Python's module random"):
        compiled(Trace_ELBO(), drawing.model, drawing.guide, x)


# Noise that changes nothing is found as the program is traced; other noise has the particles run one by one before.
CASES = [(0.0, r"numpy\.random.*compiled=False"), (0.1, r"one after .*compiled=False")]


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
    for how in (None, False):
        np.random.seed(0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pyro_vae.compiling.export.WORTH_CALLS", 1)
            values.append(log_evidence(model, guide, x, 30, chunk=9, compiled=how, seed=0).log_px)
    assert torch.equal(*values)
    with pytest.raises(Untraceable, match=words):
        log_evidence(model, guide, x, 30, chunk=9, compiled=True, seed=0)


def test_a_look_at_a_usual_program_takes_microseconds():
    held = Held(Loss(Trace_ELBO(), Program().model, Program().guide).roots)
    assert min(timeit.repeat(held.changes, number=100, repeat=20)) / 100 < 1e-4
