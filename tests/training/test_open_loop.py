"""The open loop: fit is the loop over it, users may do anything between epochs, and nothing is lost by leaving it."""

import errno
import inspect
import pickle
import random
import signal
import subprocess
import sys

import numpy as np
import pyro
import pytest
import torch
from programs import DIGITS, FEW, Breaks, NormalizedDecoder, needs_compiler, refused_by_2_11, same_bits, small_vae
from pyro.infer import RenyiELBO, Trace_ELBO
from small_trainings import rows, started
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pyro_vae import CheckpointError, Training, evaluate, files, fit, fixed_x
from pyro_vae.data import Data
from pyro_vae.estimators import Description
from pyro_vae.handlers import KLWeighted, LinearWarmUp
from pyro_vae.training import NonFiniteLoss, TrainingWarning, epochs
from pyro_vae.training.checkpoint import decode
from pyro_vae.training.history import History

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compiler")]

ENGINES = ["eager", pytest.param("compiled", marks=needs_compiler)]
OF_WEIGHTS = ["eager", pytest.param("compiled", marks=[needs_compiler, refused_by_2_11])]


def whole(program=None, **settings):
    """The program after a training that nothing disturbs, and its rows."""
    program = program or small_vae()
    training = started(program, **settings)
    for _ in training:
        pass
    return program, rows(training.history)


def assert_as_whole(program, training, **settings):
    expected, expected_rows = whole(**settings)
    assert same_bits(program, expected) and rows(training.history) == expected_rows


@pytest.mark.parametrize("engine", [*ENGINES, "svi"])
def test_fit_is_the_loop_over_epochs_and_over_steps_to_the_bit(engine):
    fitted, by_epochs, by_steps = (small_vae() for _ in range(3))
    history = fit(fitted, FEW, epochs=4, batch_size=50, lr=1e-2, engine=engine, progress=False)
    training = started(by_epochs, engine=engine)
    yielded = list(training)
    steps = started(by_steps, engine=engine)
    taken = list(steps.steps())
    assert same_bits(fitted, by_epochs) and same_bits(fitted, by_steps)
    assert rows(training.history) == rows(steps.history) == rows(history)
    assert yielded == training.history.rows and history.engine == training.history.engine == engine
    assert [(step.epoch, step.number) for step in taken] == [(1 + n // 4, 1 + n) for n in range(16)]
    assert [step.row for step in taken if step.row] == steps.history.rows and taken[3].row and not taken[4].row


def test_fit_is_short_and_has_the_options_of_the_loop():
    lines = inspect.getsource(fit).splitlines()
    assert len(lines) - len(fit.__doc__.splitlines()) <= 25
    assert inspect.signature(fit).parameters.keys() == inspect.signature(Training).parameters.keys()
    assert inspect.signature(fit).parameters["seed"].default == 0
    with pytest.raises(TypeError, match="epoch'"):
        fit(small_vae(), FEW, epoch=3)


@pytest.mark.parametrize("by", ["epochs", "steps"])
def test_what_the_user_does_between_changes_nothing(by):
    program = Breaks(small_vae(), noisy)
    np.random.seed(3)
    random.seed(3)
    expected, expected_rows = whole(Breaks(small_vae(), noisy))
    np.random.seed(3)
    random.seed(3)
    training = started(program)
    program.eval()
    program.vae.posterior.train()
    for _ in training if by == "epochs" else training.steps():
        assert not program.training and program.vae.posterior.training
        torch.manual_seed(int(torch.rand(1) * 1000))
        np.random.rand(3), random.random()
        evaluate(program.vae, torch.rand(5, 1, 8, 8).round(), particles=3)
        fit(small_vae(), FEW, epochs=1, batch_size=100, engine="eager", progress=False)
    assert same_bits(program, expected) and rows(training.history) == expected_rows
    assert not program.training and program.vae.posterior.training


def noisy(count, x):
    """Noise of every generator."""
    noise = torch.from_numpy(np.random.rand(*x.shape)).to(x) + random.random() + torch.rand_like(x)
    return (x + noise / 10).clamp(max=1).round()


def test_the_users_random_numbers_go_on_as_if_nothing_were_trained():
    def draws():
        return torch.rand(1).item(), np.random.rand(), random.random()

    def seed():
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)

    seed()
    expected = [draws() for _ in range(6)]
    seed()
    training = started(Breaks(small_vae(), noisy))
    seed()
    drawn = [draws()]
    drawn += [draws() for _ in training]
    assert [*drawn, draws()] == expected


def test_modes_and_settings_of_the_user_neither_reach_the_training_nor_are_changed():
    program = small_vae()
    training = started(program)
    try:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), pyro.validation_enabled(True):
            for _ in training:
                assert not torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
                assert torch.get_float32_matmul_precision() == "highest"
                assert pyro.infer.util.is_validation_enabled() and torch.distributions.Distribution._validate_args
                assert torch.get_default_dtype() is (torch.float64 if len(training.history.rows) > 1 else torch.float32)
                torch.set_default_dtype(torch.float64)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_as_whole(program, training)


@pytest.mark.parametrize("by", ["epochs", "steps", "both"])
def test_a_loop_that_was_left_goes_on_where_it_stopped(by):
    program, seen = small_vae(), []
    training = started(program)
    while len(training.history.rows) < 4:
        for item in training.steps() if by == "steps" or (by == "both" and len(seen) % 2) else training:
            seen.append(item)
            break
    assert len(seen) == {"epochs": 4, "steps": 16}.get(by, len(seen))
    training.finish()
    assert_as_whole(program, training)
    assert list(training) == list(training.steps()) == []


def test_an_epoch_begun_by_steps_is_ended_by_the_loop_over_epochs():
    program = small_vae()
    training = started(program)
    for step in training.steps():
        if step.number == 6:
            break
    assert [row["epoch"] for row in training] == [2, 3, 4]
    assert_as_whole(program, training)


def test_finish_restores_the_best_and_the_loop_goes_on_from_the_present_parameters():
    def ruin(optimizer, steps):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step < 8 else 300.0)

    program = small_vae()
    training = started(program, schedule=ruin)
    for row in training:
        if row["epoch"] == 3:
            break
    present = evaluate(program, fixed_x(program, FEW.valid.images)).bound.mean().item()
    assert present == pytest.approx(training.history.rows[2]["valid_bound"])
    history = training.finish()
    assert training.finish() is history and history.kept_epoch == 2 and not history.interrupted
    kept = evaluate(program, fixed_x(program, FEW.valid.images)).bound.mean().item()
    assert kept == pytest.approx(history.rows[1]["valid_bound"]) and kept > present
    assert [row["epoch"] for row in training] == [4]
    assert_as_whole(program, training, schedule=ruin)


def test_finish_before_the_first_epoch_has_ended_keeps_the_steps_taken():
    program, start = small_vae(), small_vae()
    training = started(program)
    next(training.steps())
    moved = [parameter.clone() for parameter in program.parameters()]
    history = training.finish()
    assert all(map(torch.equal, program.parameters(), moved)) and not same_bits(program, start)
    assert history.kept_epoch is None and history.reason.endswith("those of the last step")


@pytest.mark.parametrize("leave", ["break", "error", "interrupt"])
@pytest.mark.parametrize("at", [2, 4])
def test_leaving_the_loop_saves_the_run(tmp_path, leave, at):
    training = started(small_vae(), tmp_path)
    try:
        for row in training:
            if row["epoch"] == at:
                training.optimizer.param_groups[0]["lr"] = 3e-3  # what the user changes is saved, too
                if leave == "break":
                    break
                raise {"error": ZeroDivisionError, "interrupt": KeyboardInterrupt}[leave]
    except (ZeroDivisionError, KeyboardInterrupt):
        assert leave != "break"
    assert decode((tmp_path / "checkpoint.pt").read_bytes(), "")["step"] == 4 * at
    resumed, expected = small_vae(), small_vae()
    other = started(resumed, tmp_path, resume=True)
    assert [row["epoch"] for row in other] == list(range(at + 1, 5))
    for row in (undisturbed := started(expected)):
        if row["epoch"] == at:
            undisturbed.optimizer.param_groups[0]["lr"] = 3e-3
    assert same_bits(resumed, expected) and rows(other.history) == rows(undisturbed.history)


def test_leaving_the_loop_in_the_middle_of_an_epoch_saves_the_run(tmp_path):
    for step in started(small_vae(), tmp_path).steps():
        if step.number == 6:
            break
    resumed = small_vae()
    training = started(resumed, tmp_path, resume=True)
    assert next(training.steps()).number == 7
    for _ in training:
        pass
    assert_as_whole(resumed, training)


def test_an_error_of_the_users_code_loses_nothing_without_checkpoints():
    program = small_vae()
    training = started(program)
    with pytest.raises(ZeroDivisionError):
        for _ in training:
            _ = 1 / 0
    assert len(training.history.rows) == 1
    for _ in training:
        pass
    assert_as_whole(program, training)


def test_an_error_of_the_program_restores_the_best_and_the_loop_can_be_entered_again():
    class Once(Exception):
        pass

    def fail(count, x):
        if count == 7:  # step 6, of epoch 2
            raise Once
        return x

    program, good = Breaks(small_vae(), fail), small_vae()
    training = started(program)
    with pytest.raises(Once):
        list(training)
    fit(good, FEW, epochs=1, batch_size=50, lr=1e-2, engine="eager", progress=False)
    assert same_bits(program.vae, good)
    assert [row["epoch"] for row in training] == [2, 3, 4]


@pytest.mark.filterwarnings("ignore:Encountered NaN:UserWarning")
def test_after_a_non_finite_loss_a_smaller_step_goes_on():
    program = Breaks(small_vae(), lambda count, x: x * torch.nan if count == 7 else x)
    training = started(program)
    with pytest.raises(NonFiniteLoss, match="epoch 2, step 2"):
        list(training)
    training.optimizer.param_groups[0]["lr"] = 1e-3
    assert [row["epoch"] for row in training] == [2, 3, 4] and training.history.skipped == 1


def test_an_interrupt_within_an_epoch_ends_the_loop_and_one_more_loop_goes_on(tmp_path):
    def ask(count, x):
        if count == 7:
            signal.raise_signal(signal.SIGINT)
        return x

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        program = Breaks(small_vae(), ask)
        training = started(program, tmp_path)
        assert [row["epoch"] for row in training] == [1]
        history = training.history
        assert history.interrupted and history.signal == signal.SIGINT
        assert decode((tmp_path / "checkpoint.pt").read_bytes(), "")["step"] == 6
        assert [row["epoch"] for row in training] == [2, 3, 4] and not training.history.interrupted
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert_as_whole(program.vae, training)


def test_an_interrupt_while_an_epoch_is_measured_gives_its_row_first(monkeypatch):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        training = started(small_vae())
        measure = training._epochs._summaries

        def interrupted(weights):
            signal.raise_signal(signal.SIGINT)
            return measure(weights)

        monkeypatch.setattr(training._epochs, "_summaries", interrupted)
        assert [row["epoch"] for row in training] == [1] and training.history.interrupted
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs: wanted"),
        ({"batch_size": 201}, "batch_size: wanted"),
        ({"accumulate": 0}, "accumulate: wanted a whole number of at least 1, got 0"),
        ({"accumulate": 2, "engine": "svi"}, r"accumulate: engine=\"svi\" .* got 2; leave it out"),
        ({"accumulate": 2, "estimator": RenyiELBO(num_particles=2), "engine": "auto"}, "accumulate: "),
        ({"engine": "fast"}, "engine: wanted one of"),
        ({"engine": "svi", "clip": 1.0}, "clip: "),
        ({"optimizer": torch.optim.Adam, "lr": 1e-2}, r"lr: got 0\.01 beside an optimizer.*leave one of the two out"),
        ({"schedule": "cosine"}, "schedule: wanted"),
        ({"keep": "first"}, "keep: wanted"),
    ],
)
def test_bad_settings_are_refused_at_construction(settings, message):
    with pytest.raises(ValueError, match=message):
        started(small_vae(), **settings)


def test_two_trainings_in_turns_are_two_trainings_one_after_the_other():
    first, second = small_vae(), small_vae(seed=1)
    one, other = started(first), started(second, estimator=Trace_ELBO(2), seed=3)
    for _ in zip(one, other.steps(), strict=False):
        pass
    for training in other, one:
        for _ in training:
            pass
    assert_as_whole(first, one)
    expected, expected_rows = whole(small_vae(seed=1), estimator=Trace_ELBO(2), seed=3)
    assert same_bits(second, expected) and rows(other.history) == expected_rows


def test_a_loop_that_is_given_up_late_does_not_touch_a_training_that_has_ended(tmp_path):
    program = small_vae()
    training = started(program, tmp_path)
    first = iter(training)
    next(first)
    for _ in training:
        pass
    kept = {name: value.clone() for name, value in program.state_dict().items()}
    saved = (tmp_path / "checkpoint.pt").read_bytes()
    first.close()
    assert all(torch.equal(value, kept[name]) for name, value in program.state_dict().items())
    assert (tmp_path / "checkpoint.pt").read_bytes() == saved


def test_an_interpreter_that_ends_in_the_loop_is_quiet(tmp_path):
    script = f"""
import sys
sys.path[:0] = {sys.path!r}
from test_open_loop import *
loop = started(small_vae(), {str(tmp_path)!r}).steps()
next(loop)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr


@pytest.mark.parametrize("way", ["the end", "finish"])
def test_a_last_checkpoint_that_cannot_be_written_is_an_error_and_the_best_is_restored(tmp_path, monkeypatch, way):
    def ruin(optimizer, steps):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step < 8 else 300.0)

    def fail(file, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    program, expected = small_vae(), whole(schedule=ruin)[0]
    training = started(program, tmp_path, schedule=ruin)
    loop = iter(training)
    for _ in range(4):
        next(loop)
    monkeypatch.setattr(files, "_write", fail)
    with pytest.raises(CheckpointError, match="free some space"):
        next(loop) if way == "the end" else training.finish()
    assert same_bits(program, expected) and training.history.kept_epoch == 2


def test_warnings_that_are_errors_come_after_the_run_is_saved(tmp_path):
    program = KLWeighted(small_vae(), beta=0.0)
    training = started(program, tmp_path)
    with pytest.raises(TrainingWarning):
        for row in training:
            program.set_beta(row["epoch"] / 10)
    assert decode((tmp_path / "checkpoint.pt").read_bytes(), "")["step"] == 16


# Recipes of docs/training.md, by either engine


@pytest.mark.parametrize("engine", ENGINES)
def test_early_stopping(engine):
    program, best = small_vae(), -torch.inf
    training = started(program, engine=engine, optimizer=lambda p: torch.optim.SGD(p, lr=1e-5))
    for row in training:
        if row["valid_bound"] < best + 100:
            break
        best = row["valid_bound"]
    assert len(training.finish().rows) == 2


@pytest.mark.parametrize("engine", ENGINES)
def test_a_schedule_of_ones_own(engine):
    def trained(schedule):
        program = small_vae()
        training = started(program, engine=engine)
        schedule(training)
        return program, training.optimizer.param_groups[0]["lr"]

    def by_hand(training):
        for _ in training:
            training.optimizer.param_groups[0]["lr"] *= 0.5

    def by_plateau(training):
        plateau = ReduceLROnPlateau(training.optimizer, "max", factor=0.5, patience=0, threshold=1e9,
                                    threshold_mode="abs")  # fmt: skip
        for row in training:
            plateau.step(row["valid_bound"])

    halved, lr = trained(by_hand)
    assert lr == 1e-2 / 16
    reference = small_vae()
    steps = started(reference, engine=engine, schedule=lambda o, _: torch.optim.lr_scheduler.StepLR(o, 4, gamma=0.5))
    assert len(list(steps)) == 4 and same_bits(halved, reference)
    assert trained(by_plateau)[1] == 1e-2 / 8  # the first epoch is the best so far


@pytest.mark.parametrize("engine", ENGINES)
def test_an_average_of_the_weights(engine):
    program = small_vae()
    training = started(program, engine=engine, keep="last")
    average = AveragedModel(program, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    expected = {}
    for _ in training.steps():
        average.update_parameters(program)
        for name, parameter in program.named_parameters():
            before = expected.get(name, parameter.detach())
            expected[name] = 0.9 * before + 0.1 * parameter.detach()
    for name, parameter in average.module.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name])
    x = fixed_x(program, FEW.valid.images)
    assert evaluate(average.module, x).bound.mean() != evaluate(program, x).bound.mean()
    assert_as_whole(program, training, engine=engine, keep="last")


@pytest.mark.parametrize("engine", OF_WEIGHTS)
def test_a_kl_weight_that_is_changed_arrives_and_is_saved(engine, tmp_path):
    def raised(program, training, stop=9):
        for row in training:
            program.set_beta(4.0 if row["epoch"] >= 2 else 0.5)
            if row["epoch"] == stop:
                break

    program, resumed = (KLWeighted(small_vae(), beta=0.0) for _ in range(2))
    training = started(program, engine=engine)
    raised(program, training)
    history = training.history
    assert history.comparable_from == 3 and history.rows[-1]["valid_rate"] < history.rows[1]["valid_rate"]
    raised(resumed, started(resumed, tmp_path, engine=engine), stop=2)
    resumed = KLWeighted(small_vae(), beta=0.0)
    other = started(resumed, tmp_path, engine=engine, resume=True)
    assert resumed.beta == 4.0
    raised(resumed, other)
    assert same_bits(resumed, program) and rows(other.history) == rows(training.history)


@pytest.mark.parametrize("engine", OF_WEIGHTS)
def test_a_kl_weight_may_change_with_each_step(engine):
    """As by a hook of the optimiser."""
    by_steps, by_hook, warm_up = KLWeighted(small_vae(), beta=0.0), KLWeighted(small_vae()), LinearWarmUp(8, end=4.0)
    for step in started(by_steps, engine=engine, keep="last").steps():
        by_steps.set_beta(warm_up(step.number))

    def optimizer(parameters):
        return by_hook.anneal(torch.optim.Adam(parameters, lr=1e-2, fused=True), warm_up)

    whole(by_hook, optimizer=optimizer, keep="last")
    torch.testing.assert_close(list(by_steps.parameters()), list(by_hook.parameters()), rtol=1e-3, atol=1e-5)
    assert by_steps.beta == 4.0 and (engine == "compiled" or same_bits(by_steps, by_hook))


@pytest.mark.parametrize("make", [torch.optim.Adam, lambda p, lr: torch.optim.SGD(p, lr=1e-4, momentum=0.9)])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_part_that_is_frozen_rests_even_under_momentum_and_after_a_resume(engine, make, tmp_path):
    def optimizer(parameters):
        return make(parameters, lr=1e-2)

    def frozen(folder, resume=False, stop=9):
        program = small_vae()
        training = started(program, folder, resume, engine=engine, optimizer=optimizer, keep="last")
        parts = []
        for row in training:
            if row["epoch"] == 2:
                program.posterior.requires_grad_(False)
            parts.append(
                [p.detach().clone() for p in (program.posterior.head.weight, *program.likelihood.parameters())]
            )
            if row["epoch"] == stop:
                break
        return program, training, parts

    program, training, parts = frozen(None)
    assert not torch.equal(parts[0][0], parts[1][0])
    assert torch.equal(parts[1][0], parts[2][0]) and torch.equal(parts[1][0], parts[3][0])
    assert all(not torch.equal(parts[2][i], parts[3][i]) for i in range(1, len(parts[0])))
    assert training.history.engine == engine
    frozen(tmp_path, stop=2)
    resumed, other, _ = frozen(tmp_path, resume=True)
    assert not any(p.requires_grad for p in resumed.posterior.parameters())
    for one, two in zip(resumed.parameters(), program.parameters()):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    assert len(rows(other.history)) == 4


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.SGD])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_gradient_summed_over_parts_is_that_of_the_batch(engine, make, monkeypatch):
    """Without noise; the last batch of 20 images, too, and parts of unequal size."""
    monkeypatch.setattr(epochs, "shuffled", lambda fields: torch.arange(len(fields[0])))
    data = Data("some", DIGITS.train[:170], DIGITS.valid[:50], DIGITS.test[:50])

    def trained(accumulate):
        program = Still()
        training = Training(
            program, data, StillBound(), epochs=3, batch_size=50, accumulate=accumulate, engine=engine, clip=50.0,
            optimizer=lambda p: make(p, lr=1e-3), progress=False, keep="last",
        )  # fmt: skip
        losses = [step.loss for step in training.steps()]
        assert training.history.engine == engine
        return losses, [parameter.detach() for parameter in program.parameters()]

    expected, parameters = trained(1)
    for accumulate in (2, 4):
        losses, others = trained(accumulate)
        assert losses == pytest.approx(expected, rel=1e-4)
        torch.testing.assert_close(others, parameters, rtol=1e-3, atol=1e-5)


class Still(type(small_vae())):
    """A VAE whose x has no noise."""

    def __init__(self):
        vae = small_vae()
        super().__init__(vae.prior, vae.likelihood, vae.posterior)

    def observe(self, pixels, generator=None):
        return (pixels > 127).to(torch.float32)


class StillBound(Trace_ELBO):
    """The ELBO at the mean of the guide, which has no noise."""

    description = Description.unbiased("ELBO")

    def differentiable_loss(self, model, guide, x):
        vae = model.__self__
        q = vae.posterior(x)
        kl = torch.distributions.kl_divergence(q, vae.prior().expand(q.batch_shape)).sum()
        return kl - vae.likelihood(q.mean).log_prob(x).sum()


def test_what_a_schedule_of_the_weights_leaves_open_is_said_at_the_end_of_the_loop():
    program = KLWeighted(small_vae(), beta=0.0)
    training = started(program)
    with pytest.warns(TrainingWarning, match="still changed in the last epoch"):
        for row in training:
            program.set_beta(row["epoch"] / 10)


@pytest.mark.parametrize("name", ["optimizer", "program", "history"])
def test_what_the_loop_would_not_notice_cannot_be_set(name):
    with pytest.raises(AttributeError, match=name):
        setattr(started(small_vae()), name, None)


@pytest.mark.parametrize(("batch_size", "accumulate", "smallest"), [(50, 50, 1), (25, 13, 1), (50, 49, 2)])
def test_parts_on_which_batchnorm_cannot_be_trained_are_known_before(batch_size, accumulate, smallest):
    """25 images in 13 parts are 12 of two and one of one; in 49 parts 50 images are 25 of two."""
    vae = small_vae()
    program = type(vae)(vae.prior, type(vae.likelihood)(NormalizedDecoder()), vae.posterior)
    settings = {"batch_size": batch_size, "accumulate": accumulate, "epochs": 1}
    if smallest == 1:
        message = f"accumulate: the smallest of the {accumulate} parts of a batch of {batch_size} has 1, .*give fewer"
        with pytest.raises(ValueError, match=message):
            started(program, **settings)
    else:
        assert len(list(started(program, **settings))) == 1


def test_a_history_that_an_earlier_version_pickled_says_which_epoch_is_kept():
    history = History([{"epoch": 1, "valid_bound": -9.0}, {"epoch": 2, "valid_bound": -8.0}])  # no valid_objective
    assert pickle.loads(pickle.dumps(history)).kept_epoch == 2
