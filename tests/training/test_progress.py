"""What a training shows, on a terminal and elsewhere."""

import re
import sys

import pytest
from programs import small_vae
from small_trainings import started

from pyro_vae.training import History, progress
from pyro_vae.training.progress import Progress


@pytest.mark.slow
def test_without_a_terminal_progress_is_a_line_an_epoch(capsys):
    training = started(small_vae(), epochs=2, progress=True)
    shown = []
    for row in training:
        shown.append(capsys.readouterr())
        said = (
            f"epoch {row['epoch']} of 2: bound {row['train_bound']:.2f} nats per image on training images, "
            f"{row['valid_bound']:.2f} on validation images; best so far: epoch {training.history.best_epoch}; "
            f"{row['seconds']:.0f} s"
        )
        assert re.fullmatch(
            re.escape(said) + (r", at most \d+ s left\n" if row["epoch"] == 1 else r"\n"), shown[-1].out
        )
    assert len(shown) == 2 and all(each.err == "" for each in shown)


@pytest.mark.slow
def test_on_a_terminal_progress_is_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    training = started(small_vae(), epochs=2, progress=True)
    assert len(list(training)) == 2
    said = capsys.readouterr()
    assert said.out == "" and "100%" in said.err and "at most 00:00 left, epoch 2 of 2" in said.err
    assert f"validation {training.history.rows[0]['valid_bound']:.2f} (best: epoch 1)" in said.err


def rows_of(bounds, seconds):
    return [
        {"epoch": n, "train_bound": bound, "valid_bound": bound, "valid_objective": bound, "seconds": n * seconds}
        for n, bound in enumerate(bounds, 1)
    ]


@pytest.mark.parametrize("resumed", [False, True])
def test_the_time_left_counts_what_was_trained_and_how_long_the_measurement_takes(capsys, monkeypatch, resumed):
    """Epochs of 100 s of steps and 20 s of measurement: two are left after the third, also if it was just resumed."""
    now = iter([1000.0, 1020.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(now))
    shown = Progress(True, images=60, epochs=5)
    shown.begin(History(rows_of([-9.0, -7.0], 100.0)) if resumed else History(), 59 if resumed else 0)
    shown.step(1 if resumed else 60)
    shown.end_epoch(History(rows_of([-9.0, -7.0, -8.0], 100.0)))
    assert "-8.00 on validation images; best so far: epoch 2; 5 min, at most 4 min left\n" in capsys.readouterr().out


def test_a_resumed_bar_does_not_count_what_is_behind_as_done_just_now(capsys, monkeypatch):
    """Else two epochs in no time would promise the last one in no time, too."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    shown = Progress(True, images=60, epochs=3)
    shown.begin(History(rows_of([-9.0, -7.0], 100.0)), 0)
    assert shown._bar is not None and (shown._bar.n, shown._bar.initial) == (120, 120)
    shown.bound(3, -7.5)
    shown.close()
    said = capsys.readouterr().err
    assert "67%" in said and "at most ? left, epoch 3 of 3, validation -7.00 (best: epoch 2), now -7.5" in said
