"""Averaged weights: torch's own average, measured and kept, resumed to the same bits, whatever takes the steps."""

import pytest
import torch
from torch.optim import Adam
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pyro_vae import Checkpoints, Training, evaluate, fit, fixed_x
from pyro_vae.averaging import Averaged
from pyro_vae.handlers import KLWeighted
from tests.programs import FEW, needs_compiler, small_vae

DECAY = 0.9
SETTINGS = {"epochs": 3, "batch_size": 50, "progress": False}


def averaged_fit(program=None, engine="eager", **settings):
    averaged = Averaged(program or small_vae(), DECAY)
    by = {"optimizer": lambda parameters: averaged.follow(Adam(parameters, lr=1e-2))}
    return averaged, fit(averaged, FEW, engine=engine, **by, **(SETTINGS | settings))


def weights(program):
    return torch.cat([weight.detach().flatten() for weight in program.parameters()])


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize("engine", ["eager", "svi", pytest.param("compiled", marks=needs_compiler)])
def test_it_is_torchs_average_of_the_weights_that_the_same_training_has_without_it(engine):
    vae = small_vae()
    training = Training(vae, FEW, optimizer=lambda parameters: Adam(parameters, lr=1e-2), **SETTINGS, engine="eager")
    expected = AveragedModel(vae, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    for _ in training.steps():
        expected.update_parameters(vae)
    averaged, history = averaged_fit(engine=engine, keep="last")
    assert history.engine == engine
    tolerance = 0 if engine == "eager" else 1e-4
    assert torch.allclose(weights(averaged.average), weights(expected.module), rtol=0, atol=tolerance)
    assert (weights(averaged.average) - weights(averaged.program)).abs().max() > 1e-3


@pytest.mark.slow
def test_the_average_is_measured_and_kept():
    averaged, history = averaged_fit(epochs=2)
    assert history.kept_epoch == 2
    x = fixed_x(averaged.average, FEW.valid.images)
    measured, of_the_last_step = (evaluate(each, x).summary()["bound"] for each in (averaged.average, averaged.program))
    assert history.rows[-1]["valid_bound"] == measured != of_the_last_step


@pytest.mark.slow
def test_resumed_it_is_the_same(tmp_path):
    expected, history = averaged_fit()
    averaged = Averaged(small_vae(), DECAY)
    settings = SETTINGS | {
        "engine": "eager",
        "optimizer": lambda parameters: averaged.follow(Adam(parameters, lr=1e-2)),
    }
    for step in Training(averaged, FEW, checkpoints=Checkpoints(tmp_path), **settings).steps():
        if step.number == 6:
            break
    averaged = Averaged(small_vae(seed=3), DECAY)
    resumed = fit(averaged, FEW, checkpoints=Checkpoints(tmp_path, resume=True), **settings)
    assert torch.equal(weights(averaged.average), weights(expected.average))
    assert [row["valid_bound"] for row in resumed.rows] == [row["valid_bound"] for row in history.rows]


@pytest.mark.slow
def test_with_a_kl_weight_around_it():
    averaged = Averaged(small_vae(), DECAY)
    weighted = KLWeighted(averaged, beta=0.5)
    history = fit(weighted, FEW, optimizer=lambda parameters: averaged.follow(Adam(parameters)), **SETTINGS)
    assert history.rows[-1]["valid_objective"] > history.rows[-1]["valid_bound"]


@pytest.mark.parametrize("decay", [0.0, 1.0, 1, -0.1, float("nan"), "0.9", None])
def test_a_decay_that_averages_nothing(decay):
    with pytest.raises(ValueError, match=r"decay: wanted a number between 0 and 1, such as 0\.999, got"):
        Averaged(small_vae(), decay)


def test_a_training_without_follow_is_refused():
    with pytest.raises(ValueError, match=r"no step was averaged; write optimizer=.* averaged\.follow\("):
        fit(Averaged(small_vae(), DECAY), FEW, **SETTINGS)
    with pytest.raises(ValueError, match="follow: wanted a torch optimiser, got list"):
        Averaged(small_vae(), DECAY).follow([])
