"""Small trainings of the digits, stopped or whole, and what of them can be compared."""

import signal

from programs import FEW, Breaks

from pyro_vae import Checkpoints, Training, fit
from pyro_vae.training import warm_cosine

TIMES = ("seconds", "images_per_second")


def train(program, folder=None, resume=False, every=3, **settings):
    """Five epochs of four steps, and a fifth that is smaller."""
    checkpoints = folder and Checkpoints(folder, seconds=None, steps=every, resume=resume)
    step = {} if "optimizer" in settings else {"lr": 1e-2}
    settings = {"epochs": 5, "batch_size": 45, "schedule": warm_cosine, "progress": False, **step, **settings}
    return fit(program, FEW, checkpoints=checkpoints, **settings)


def rows(history):
    return [{name: value for name, value in row.items() if name not in TIMES} for row in history.rows]


def stopped(program, folder, at, **settings):
    """A run that asks itself to end within the batch of this number; the first is the check of the program."""

    def ask(count, x):
        if count == at:
            signal.raise_signal(signal.SIGINT)
        return x

    history = train(Breaks(program, ask), folder, **settings)
    assert history.interrupted and history.signal == signal.SIGINT
    return history


def started(program, folder=None, resume=False, **settings):
    """A training of four epochs of four steps."""
    checkpoints = folder and Checkpoints(folder, seconds=None, resume=resume)
    step = {} if "optimizer" in settings else {"lr": 1e-2}
    settings = {"epochs": 4, "batch_size": 50, "engine": "eager", "progress": False, **step, **settings}
    return Training(program, FEW, checkpoints=checkpoints, **settings)
