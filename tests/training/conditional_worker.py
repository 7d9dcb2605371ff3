"""What ``test_conditional_training.py`` runs in other processes: train FILE, under torchrun; killed FOLDER ENGINE."""

import os
import signal
import sys
import warnings

import pytest
import torch
from ranks_worker import FEW, Point
from small_trainings import train
from torch import nn
from uncompiled import run_as_recorded

from experiments.conditional import Conditional
from pyro_vae import Checkpoints, fit, likelihoods
from pyro_vae.training import ranks


def conditional(seed=0):
    torch.manual_seed(seed)
    return Conditional(FEW.shape, classes=10, latent=3, width=16)


def trained():
    """Return the parameters of each rank, and their bounds, after a training whose draws are means."""
    program = conditional()
    program.likelihood.binarize, program.posterior = likelihoods.threshold, Point(program.posterior)
    history = fit(program, FEW, epochs=3, batch_size=50, lr=1e-2, progress=False)
    return {
        "parameters": ranks.all_gather(nn.utils.parameters_to_vector(program.parameters()).detach()[None]),
        "bounds": ranks.all_gather(torch.tensor([[row["valid_bound"] for row in history.rows]])),
    }


def train_over_ranks(file):
    with ranks.processes(minutes=1):
        result = trained()
        if ranks.rank() == 0:
            torch.save(result, file)


def killed(folder, engine):
    """Train, with a checkpoint after step 12, until the process is killed after step 14."""

    def due(self, step):
        if step == 14:
            os.kill(os.getpid(), signal.SIGKILL)
        return step == 12

    Checkpoints.due = due
    run_as_recorded(pytest.MonkeyPatch())
    train(conditional(), folder, engine=engine)


if __name__ == "__main__":
    warnings.simplefilter("error", UserWarning)
    {"train": train_over_ranks, "killed": killed}[sys.argv[1]](*sys.argv[2:])
