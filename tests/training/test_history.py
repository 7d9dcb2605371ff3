"""The history of a training, in memory and on disk."""

import csv
import re

import pytest
from programs import FEW, small_vae
from small_trainings import started

from pyro_vae import Checkpoints, Training, fit
from pyro_vae.files import CheckpointError
from pyro_vae.training.checkpoint import decode
from pyro_vae.training.history import ROW, History, HistoryFile, csv_of, history_row


def on_disk(folder):
    with (folder / "history.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.slow
def test_the_history_grows_on_disk_with_each_epoch(tmp_path):
    training = started(small_vae(), tmp_path)
    for row in training:
        assert on_disk(tmp_path) == training.history.rows and list(on_disk(tmp_path)[-1]) == list(ROW)
        assert row["epoch"] == len(on_disk(tmp_path))
    assert (tmp_path / "history.csv").read_bytes() == csv_of(training.history.rows)


@pytest.mark.slow
def test_rows_beyond_the_checkpoint_that_is_resumed_are_dropped(tmp_path):
    training = Training(
        small_vae(), FEW, epochs=4, batch_size=50, lr=1e-2, engine="eager", progress=False,
        checkpoints=Checkpoints(tmp_path, seconds=None, steps=6),
    )  # fmt: skip
    loop = iter(training)
    for _ in range(3):
        next(loop)
    saved = (tmp_path / "checkpoint.pt").read_bytes()  # of step 12, before the third epoch was measured
    assert decode(saved, "")["step"] == 12 and len(decode(saved, "")["history"]["rows"]) == 2
    loop.close()
    (tmp_path / "checkpoint.pt").write_bytes(saved)  # as if the process had been killed
    resumed = started(small_vae(), tmp_path, resume=True)
    assert len(on_disk(tmp_path)) == 3  # nothing is written before the training begins
    assert next(resumed.steps()).number == 13 and on_disk(tmp_path) == resumed.history.rows
    assert [row["epoch"] for row in resumed] == [4] and on_disk(tmp_path) == resumed.history.rows


@pytest.mark.slow
def test_a_run_that_begins_anew_begins_its_history_anew(tmp_path):
    fit(small_vae(), FEW, epochs=2, batch_size=50, progress=False, checkpoints=Checkpoints(tmp_path))
    training = Training(
        small_vae(), FEW, epochs=2, batch_size=50, progress=False, checkpoints=Checkpoints(tmp_path, overwrite=True)
    )
    assert len(on_disk(tmp_path)) == 2
    next(training.steps())
    assert not (tmp_path / "history.csv").exists()


def history_of(*objectives, **settings):
    return History([{"epoch": n, "valid_objective": value} for n, value in enumerate(objectives, 1)], **settings)


@pytest.mark.parametrize(
    ("history", "best", "kept", "reason"),
    [
        (history_of(), None, None, "no epoch has ended"),
        (history_of(-9.0, -7.0, -8.0), 2, 2, "the best of epochs 1 to 3 .* by the bound with one particle$"),
        (history_of(-9.0, -7.0, -8.0, keep="last"), 2, 3, "the last epoch, as keep="),
        (
            history_of(-1.0, -8.0, -9.0, comparable_from=2),
            2,
            2,
            "2 to 3 .*, since .* KL weight, changed in epoch 2$",
        ),
        (history_of(-1.0, -8.0, comparable_from=2), 2, 2, "the last epoch: .* changed in it, so no other compares"),
    ],
)
def test_the_epoch_that_is_kept_and_why(history, best, kept, reason):
    assert (history.best_epoch, history.kept_epoch) == (best, kept) and re.search(reason, history.reason)
    assert not history.interrupted and History(signal=2).interrupted


SUMMARY = {"bound": -3.0, "rate": 1.0, "distortion": 2.0, "standard_error": 0.1}


def test_a_row_has_the_columns_in_their_order():
    summaries = {"train": SUMMARY, "valid": {**SUMMARY, "objective": -4.0}}
    row = history_row(3, summaries, seconds=5.0, images=100)
    assert list(row) == list(ROW) and row["images_per_second"] == 60.0 and row["valid_objective"] == -4.0


def test_a_history_shows_its_last_epochs_and_what_went_wrong():
    history = History(
        [history_row(n, {"train": SUMMARY, "valid": {**SUMMARY, "objective": -n}}, 2.0 * n, 3000) for n in range(1, 8)]
    )
    text = str(history)
    assert text.splitlines()[0].startswith("7 epochs, of which the last 5; in nats per image")
    assert "kept: epoch 1, the best of epochs 1 to 7" in text and "1,500" in text
    assert "left out" not in text and "signal" not in text and repr(history).startswith("History(7 epochs, epoch 1 is")
    history = History(history.rows[:1], skipped=2, signal=15, engine="eager")
    assert "2 steps left out" in str(history) and "ended early by signal 15" in str(history)
    assert str(history).startswith("1 epoch; in") and repr(history).endswith("nats per image, eager engine)")
    assert repr(History()) == "History(0 epochs)" and "kept: epoch" not in str(History())


@pytest.mark.slow
def test_a_frame_has_all_that_the_rows_have():
    frame = History([{"epoch": 1, "valid_objective": -2.0}, {"epoch": 2, "own": 3.0}]).to_frame()
    assert list(frame.columns) == ["valid_objective", "own"] and list(frame.index) == [1, 2]
    assert frame.loc[1, "valid_objective"] == -2.0 and frame.loc[2, "own"] == 3.0 and frame.isna().sum().sum() == 2
    assert list(History().to_frame().columns) == list(ROW[1:])


def test_a_cell_that_a_row_does_not_have_is_empty():
    history = History([{"epoch": 1, "valid_objective": -2.0}, {"epoch": 2, "valid_objective": -1.5, "seconds": 3.0}])
    assert history._shown().rows == [["1", "-2.00", ""], ["2", "-1.50", "3.00"]]


def test_a_file_that_begins_anew_need_not_be_there(tmp_path):
    file = HistoryFile(tmp_path / "history.csv")
    rows = [dict.fromkeys(ROW, value) for value in (1.0, 2.0)]
    for _ in range(2):
        file.begin([])
        assert not file.path.exists()
        for row in rows:
            file.append(row)
        assert file.path.read_bytes() == csv_of(rows)


def test_a_row_that_cannot_be_written_is_an_error_with_the_cure(tmp_path):
    with pytest.raises(CheckpointError, match=r"history\.csv cannot be written .*there is no such folder: make it"):
        HistoryFile(tmp_path / "gone/history.csv").append(dict.fromkeys(ROW, 1.0))


@pytest.mark.parametrize("rates, collapsed", [((4.0, 0.01), True), ((0.01, 4.0), False), ((None, None), False)])
def test_codes_that_say_nothing_are_told(rates, collapsed):
    rows = [
        {"epoch": i, "valid_objective": -9.0 + i} | ({} if rate is None else {"valid_rate": rate})
        for i, rate in enumerate(rates, 1)
    ]
    history = History(rows)
    assert history.kept_epoch == 2 and ("collapsed: z says nothing of x" in str(history)) == collapsed
