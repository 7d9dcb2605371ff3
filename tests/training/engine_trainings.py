"""Engines that take a few steps on batches of the digits, and programs for them."""

import pyro
import pyro.distributions as dist
import torch
from programs import DIGITS, small_vae
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_vae.training import warm_cosine

BATCHES = [batch for _ in range(10) for batch in DIGITS.train.images[:220].split(50)]  # the last of five is smaller


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-2, fused=True)


class Training:
    """An engine that has taken a step on each of the batches."""

    def __init__(
        self, kind, program=None, optimizer=adam, batches=BATCHES, schedule=warm_cosine, elbo=None, **settings
    ):
        self.program = program or small_vae()
        self.optimizer = optimizer(list(self.program.parameters()))
        scheduler = schedule and schedule(self.optimizer, len(batches))
        self.step = kind(self.program, elbo or Trace_ELBO(), self.optimizer, scheduler, **settings)
        torch.manual_seed(1)
        self.losses = torch.stack([self.step(batch) for batch in batches])


def assert_same_training(a, b, rtol=1e-4):
    torch.testing.assert_close(a.losses, b.losses, rtol=1e-5, atol=0.0)
    assert not torch.equal(a.losses[0], a.losses[5])
    for one, other in zip(a.program.parameters(), b.program.parameters()):
        torch.testing.assert_close(one, other, rtol=rtol, atol=1e-5)
    states = (dict(training.optimizer.state_dict()["state"]) for training in (a, b))
    for one, other in zip(*(state.values() for state in states)):
        for key in ("step", "exp_avg", "exp_avg_sq"):
            scale = other[key].abs().max().item()
            torch.testing.assert_close(one[key], other[key], rtol=1e-3, atol=1e-3 * scale)


class Branching(nn.Module):
    """A program that looks at its data; without param sites."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1))

    def observe(self, pixels, generator=None):
        return pixels / 16

    def model(self, x):
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            if x.mean() > 0.3:
                z = 2 * z
            pyro.sample("x", dist.Normal(z[:, :, None, None], 1.0).expand(x.shape).to_event(3), obs=x)

    def guide(self, x):
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(self.loc, 1.0).expand([len(x), 1]).to_event(1))


def normalised():
    """Batch norm after a layer without a bias, of which it would take away all that a step adds."""
    program = small_vae()
    program.posterior.network.layers[1].register_parameter("bias", None)
    program.posterior.network.layers.append(nn.BatchNorm1d(16))
    return program
