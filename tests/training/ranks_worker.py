"""What ``test_ranks.py`` runs under torchrun: python ranks_worker.py {train,die,whole,killed,resumed} FILE."""

import os
import signal
import sys
import warnings
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from programs import DIGITS, small_vae
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_vae import Checkpoints, fit, likelihoods
from pyro_vae.data.sets import Data
from pyro_vae.estimators import ImportanceWeighted
from pyro_vae.random import seeded
from pyro_vae.training import TrainingWarning, ranks
from pyro_vae.training.engines import Eager

FEW = Data("few", DIGITS.train[:152], DIGITS.valid[:51], DIGITS.test[:10])


class Still(dist.Normal):
    """A Gaussian whose draws are its mean."""

    def rsample(self, sample_shape=()):
        return self.loc.expand(self._extended_shape(sample_shape))


class Point(nn.Module):
    """A guide without noise."""

    def __init__(self, posterior):
        super().__init__()
        self.posterior = posterior

    def forward(self, x):
        return Still(self.posterior(x).mean, 1.0).to_event(1)


def without_noise():
    vae = small_vae()
    vae.likelihood.binarize, vae.posterior = likelihoods.threshold, Point(vae.posterior)
    return vae


def gradient():
    """The gradient of a step on 51 images, without noise, as the difference of the parameters that it makes."""
    vae = without_noise()
    before = nn.utils.parameters_to_vector(vae.parameters()).detach().clone()
    step = Eager(vae, Trace_ELBO(), torch.optim.SGD(vae.parameters(), lr=1e-3))
    loss = step(FEW.train.images[ranks.share(torch.arange(51))])
    return loss, before - nn.utils.parameters_to_vector(vae.parameters()).detach()


class Scaled(nn.Module):
    """A program whose loss is that of all rows, whatever the number of those it is given."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(()))

    def observe(self, pixels, generator=None):
        return pixels.flatten(1).float().mean(1)

    def model(self, x):
        with pyro.plate("rows", len(FEW.train), subsample_size=len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("rows", len(FEW.train), subsample_size=len(x)):
            pyro.sample("z", dist.Normal(self.loc, 1.0))


class Unknown(Trace_ELBO):
    """An estimator that says nothing of itself."""


def refusals():
    """What is said where the losses of two ranks do not add up, or may not."""
    said = []
    for program, estimator in (Scaled(), Trace_ELBO()), (small_vae(), Unknown()):
        try:
            fit(program, FEW, estimator, epochs=1, batch_size=50, progress=False, engine="eager")
            said.append("")
        except (ValueError, TrainingWarning) as error:
            said.append(str(error))
    return said


def train(file):
    loss, slope = gradient()
    with seeded(ranks.own_seed(0)):
        noise = torch.rand(1)
    vae = without_noise()
    history = fit(vae, FEW, epochs=3, batch_size=50, lr=1e-2, clip=100.0, progress=False)
    chosen = small_vae()
    choice = fit(chosen, FEW, ImportanceWeighted(3), epochs=3, batch_size=50, lr=1e-2, progress=False)
    steps = interrupted_steps()
    result = {
        "refused": refusals(),
        "loss": loss,
        "slope": slope,
        "steps": ranks.all_gather(torch.tensor([steps])),
        "noise": ranks.all_gather(noise),
        "parameters": ranks.all_gather(nn.utils.parameters_to_vector(vae.parameters()).detach()[None]),
        "objectives": ranks.all_gather(torch.tensor([[row["valid_objective"] for row in choice.rows]])),
        "kept": ranks.all_gather(torch.tensor([choice.kept_epoch])),
        "chosen": ranks.all_gather(nn.utils.parameters_to_vector(chosen.parameters()).detach()[None]),
        "bounds": ranks.all_gather(torch.tensor([[row["valid_bound"] for row in history.rows]])),
    }
    if ranks.rank() == 0:
        torch.save(result, file)


def interrupted_steps():
    """Steps taken until Ctrl-C, of which the last rank alone hears, in its third step."""
    vae, count = small_vae(), 0
    observe = vae.observe

    def counted(pixels, generator=None):
        nonlocal count
        count += generator is None
        if count == 4 and ranks.rank() == ranks.world_size() - 1:  # the first x is that of the program's check
            signal.raise_signal(signal.SIGINT)
        return observe(pixels, generator)

    vae.observe = counted
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background processes ignore
    assert fit(vae, FEW, epochs=9, batch_size=50, progress=False, engine="eager").interrupted
    return count - 1


def die(file):
    vae = small_vae()
    observe = vae.observe

    def leave(pixels, generator=None):
        if generator is None and ranks.rank() == 1:
            os._exit(3)
        return observe(pixels, generator)

    vae.observe = leave
    fit(vae, FEW, epochs=3, batch_size=50, progress=False)


def with_checkpoints(file, resume=False, killed_at=None):
    """Train with a checkpoint after every second step; ``killed_at``: the second rank is killed in that step."""
    vae, count = without_noise(), 0
    observe = vae.observe

    def counted(pixels, generator=None):
        nonlocal count
        count += generator is None
        if count - 1 == killed_at and ranks.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return observe(pixels, generator)

    vae.observe = counted
    first = ranks.rank() == 0
    checkpoints = Checkpoints(Path(file).parent, seconds=None, steps=2, resume=resume) if first else None
    fit(vae, FEW, checkpoints=checkpoints, epochs=3, batch_size=50, lr=1e-2, progress=False, engine="eager")
    found = ranks.all_gather(nn.utils.parameters_to_vector(vae.parameters()).detach()[None])
    if first:
        torch.save(found, file)


WORK = {
    "train": train,
    "die": die,
    "whole": with_checkpoints,
    "killed": partial(with_checkpoints, killed_at=6),
    "resumed": partial(with_checkpoints, resume=True),
}


def threads():
    """The names of this process's threads, those of C++ included, where the system tells."""
    return [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]


if __name__ == "__main__":
    warnings.simplefilter("error", UserWarning)
    with ranks.processes(minutes=1):
        import torch._dynamo  # as a run that compiles does; it must not hold the group

        WORK[sys.argv[1]](sys.argv[2])
    assert not [name for name in threads() if "gloo" in name], "the group of processes is still alive"
