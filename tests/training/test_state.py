"""All that changes in a training goes on after a stop: weights, schedules, random numbers, the choice of an epoch."""

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import Breaks, quick, same_bits, small_vae
from small_trainings import rows, stopped, train
from torch.optim import lr_scheduler

from pyro_vae.estimators import ImportanceWeighted
from pyro_vae.handlers import KLWeighted, LinearWarmUp
from pyro_vae.training import History, TrainingWarning, warm_cosine
from pyro_vae.training.checkpoint import decode, encode
from pyro_vae.training.history import ROW
from pyro_vae.training.state import TrainingState

pytestmark = pytest.mark.slow


def test_an_annealed_kl_weight_and_numpys_numbers_go_on_too(tmp_path, usual_interrupt):
    def run(folder=None, resume=False, at=None):
        torch.manual_seed(0)
        np.random.seed(0)
        weighted = KLWeighted(small_vae())

        def noisy(count, x):
            if count == at:
                signal.raise_signal(signal.SIGINT)
            return (x + torch.from_numpy(np.random.rand(*x.shape)).float() / 10).clamp(max=1).round()

        program = Breaks(weighted, noisy)
        train(program, folder, resume, optimizer=lambda p: weighted.anneal(torch.optim.Adam(p), LinearWarmUp(20)))
        return program, weighted.beta.item()

    whole, beta = run()
    _, early = run(tmp_path, at=10)
    resumed, late = run(tmp_path, resume=True)
    assert same_bits(whole, resumed) and late == beta == 1.0 and early == pytest.approx(9 / 20)


OLD = Path(__file__).parents[1] / "fixtures/format3/checkpoint.pt"  # of ``stopped(small_vae(), …, 14)``


@pytest.mark.filterwarnings("ignore:the checkpoint was written under:pyro_vae.training.TrainingWarning")
def test_a_checkpoint_of_format_3_goes_on(tmp_path):
    shutil.copy(OLD, tmp_path)
    whole, resumed = (Breaks(small_vae(), lambda count, x: x) for _ in range(2))
    expected, history = train(whole), train(resumed, tmp_path, resume=True)
    assert resumed.count == 1 + 25 - 13 and history.kept_epoch == expected.kept_epoch
    assert [row["valid_bound"] for row in history.rows] == pytest.approx([row["valid_bound"] for row in expected.rows])
    assert history.rows[0]["valid_objective"] == history.rows[0]["valid_bound"]
    torch.testing.assert_close(list(resumed.parameters()), list(whole.parameters()))
    shutil.copy(OLD, tmp_path)
    with pytest.raises(ValueError, match="keep is 'best' there and 'last' here"):
        train(resumed, tmp_path, resume=True, keep="last")


def constant(optimizer, steps):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)


@pytest.mark.parametrize("schedule", [None, constant])
@pytest.mark.parametrize("at", [None, 7, 14])
def test_a_run_goes_on_for_more_epochs_as_one_that_was_to_have_them(tmp_path, usual_interrupt, schedule, at):
    whole, first, longer = (Breaks(small_vae(), lambda count, x: x) for _ in range(3))
    expected = train(whole, epochs=6, schedule=schedule)
    if at is None:
        train(first, tmp_path, epochs=3, schedule=schedule)
    else:
        stopped(first.vae, tmp_path, at, epochs=3, schedule=schedule)
    history = train(longer, tmp_path, resume=True, epochs=6, schedule=schedule)
    assert same_bits(whole, longer) and rows(history) == rows(expected) and history.kept_epoch == expected.kept_epoch


def cosine(optimizer, steps):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def one_cycle(optimizer, steps):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)


@pytest.mark.parametrize("schedule", [warm_cosine, cosine, one_cycle])
def test_a_schedule_of_a_run_that_goes_on_is_that_of_its_new_length(tmp_path, schedule):
    seen = {3: [], 6: []}

    def noted(epochs):
        def make(parameters):
            optimizer = torch.optim.Adam(parameters, lr=1e-2)
            optimizer.register_step_post_hook(
                lambda *_: seen[epochs].append([optimizer.param_groups[0][name] for name in ("lr", "betas")])
            )
            return optimizer

        return make

    train(small_vae(), tmp_path, epochs=3, schedule=schedule, optimizer=noted(3))
    with pytest.warns(
        TrainingWarning, match="the schedule is now that of the new number of epochs: .* of 3 epochs was"
    ):
        train(small_vae(), tmp_path, resume=True, epochs=6, schedule=schedule, optimizer=noted(6))
    expected, seen[6] = seen[6], []
    train(small_vae(), epochs=6, schedule=schedule, optimizer=noted(6))
    assert len(expected) == 15
    for one, other in zip(expected, seen[6][15:]):
        assert one[0] == pytest.approx(other[0]) and one[1] == pytest.approx(other[1])


def test_what_chooses_an_epoch_goes_on_too(tmp_path, usual_interrupt):
    def run(folder=None, resume=False, at=None):
        weighted = KLWeighted(small_vae())
        program = Breaks(weighted, lambda count, x: signal.raise_signal(signal.SIGINT) or x if count == at else x)
        schedule = LinearWarmUp(6, end=4.0)  # five steps an epoch: it stands still from the second on
        return program, train(
            program, folder, resume, optimizer=lambda p: weighted.anneal(torch.optim.Adam(p, lr=1e-2), schedule)
        )

    whole, expected = run()
    run(tmp_path, at=14)
    resumed, history = run(tmp_path, resume=True)
    assert same_bits(whole, resumed) and rows(history) == rows(expected)
    assert history.comparable_from == expected.comparable_from == 2 and history.reason == expected.reason
    assert history.rows[-1]["valid_objective"] < history.rows[-1]["valid_bound"]


@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_schedule_of_plateaus_and_the_way_to_keep_go_on_too(tmp_path, usual_interrupt, keep):
    def plateau(optimizer, steps):
        options = {"factor": 0.5, "patience": 0, "threshold": 2.0, "threshold_mode": "abs"}
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **options)

    settings = {"schedule": plateau, "keep": keep, "estimator": ImportanceWeighted(3)}
    whole, resumed = (Breaks(small_vae(), lambda count, x: x) for _ in range(2))
    expected = train(whole, **settings)
    stopped(small_vae(), tmp_path, 14, **settings)
    history = train(resumed, tmp_path, resume=True, **settings)
    assert same_bits(whole, resumed) and rows(history) == rows(expected) and history.reason == expected.reason
    assert len(train(resumed, tmp_path, resume=True, **{**settings, "epochs": 7}).rows) == 7


def test_the_history_of_a_hundred_thousand_epochs_is_saved():
    program = small_vae()
    optimizer = torch.optim.Adam(program.parameters())
    row = dict.fromkeys(ROW, 1.0)
    run = TrainingState(program, optimizer, None, 4, history=History([{**row, "epoch": n} for n in range(100_000)]))
    content = decode(encode(run.state_dict()), "")
    run.load_state_dict(content)
    assert run.history.rows[7] == {**row, "epoch": 7}


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_plateau_of_the_validation_objective_lowers_the_step(mode):
    steps = []

    def plateau(optimizer, _):
        optimizer.register_step_post_hook(lambda *_: steps.append(optimizer.param_groups[0]["lr"]))
        return lr_scheduler.ReduceLROnPlateau(optimizer, mode, 0.5, 0, threshold=2.0, threshold_mode="abs")

    rows = quick(small_vae(), epochs=8, schedule=plateau).rows
    expected, lr, best = [], 1e-2, -float("inf")
    for row in rows:
        expected.append(lr)
        if row["valid_objective"] > best + 2.0:
            best = row["valid_objective"]
        else:
            lr /= 2
    assert steps[::4] == pytest.approx(expected) and steps[3::4] == pytest.approx(expected)
    assert 1e-2 > expected[-1] > 0
