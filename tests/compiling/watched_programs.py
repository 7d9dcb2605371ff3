"""Programs that hold a number or draw by a generator, each in another place, and trainings of them."""

import random
import types
import warnings
from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from torch import nn
from torch.nn.utils import parametrizations

from pyro_vae import handlers
from pyro_vae.data.sets import Data, Split
from pyro_vae.training.engines import CompiledEngine, EagerEngine, EngineWarning

BATCHES = torch.randint(256, (12, 4, 1, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
GLOBAL = 0.1


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
    return type("Watched", (Program,), {name: method for name, method in given.items() if method is not None})


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
    "watched_programs.GLOBAL": program(lambda self: set_global(self, 0.1), lambda self: GLOBAL, set_global),
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
    eager, fast = (
        Training(EagerEngine, make, change, **settings),
        Training(CompiledEngine, make, change, strict=False, **settings),
    )
    torch.testing.assert_close(fast.losses, eager.losses, rtol=1e-5, atol=0)
    for name, value in eager.program.state_dict().items():
        torch.testing.assert_close(fast.program.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)
    assert fast.step.name == engine, fast.said
    return fast.said


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


def pictures():
    split = Split(BATCHES.flatten(0, 1), torch.zeros(48, dtype=torch.int64))
    return Data("noise", split[:18], split[18:27], split[27:])
