"""Runs that were stopped, or that go on for longer, and folders that are not to be written."""

import errno
import json
import signal

import numpy as np
import pytest
import torch
from small_runs import SMALL, command, own_images, state_of

from experiments import run
from pyro_vae import files
from pyro_vae.files import locked
from pyro_vae.runs import job, measurement, resume, sweep
from pyro_vae.runs.bounds import load_run
from pyro_vae.training import TrainingWarning
from pyro_vae.training.checkpoint import Checkpoints

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("undrawn")
def test_results_of_another_run_are_kept_unless_told(tmp_path, capsys):
    assert command(tmp_path, "--seed", "1") == 0
    assert command(tmp_path, "--seed", "2") == 1
    assert "another run's results; give another --out, or --overwrite" in capsys.readouterr().err
    assert json.loads((tmp_path / "out/metrics.json").read_text())["settings"]["seed"] == 1
    assert command(tmp_path, "--seed", "2", "--overwrite") == 0
    assert json.loads((tmp_path / "out/metrics.json").read_text())["settings"]["seed"] == 2
    (tmp_path / "out/metrics.json").unlink()
    assert command(tmp_path, "--overwrite") == 1
    assert "not a run's results" in capsys.readouterr().err


@pytest.fixture
def asked(monkeypatch):
    """Has the next run get a signal at a step."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def ask(number, at):
        def due(self, step):
            if step == at:
                monkeypatch.undo()
                signal.raise_signal(number)
            return False

        monkeypatch.setattr(Checkpoints, "due", due)

    yield ask
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "at"), [(signal.SIGINT, 3), (signal.SIGTERM, 6), (signal.SIGTERM, 10)])
def test_a_run_that_was_stopped_goes_on_to_the_same_result(tmp_path, capsys, asked, number, at):
    assert command(tmp_path, "--out", str(tmp_path / "whole")) == 0
    asked(number, at)
    assert command(tmp_path) == 128 + number
    assert "go on with: " in capsys.readouterr().out
    before = signal.getsignal(signal.SIGTERM)
    assert command(tmp_path) == 1
    assert "holds a run that was stopped; go on with it by --resume" in capsys.readouterr().err
    assert command(tmp_path, "--resume", "--lr", "0.1") == 1
    assert "the checkpoint is of another run: lr is 0.005 there and 0.1 here" in capsys.readouterr().err
    assert command(tmp_path, "--resume") == 0
    whole, resumed = state_of(tmp_path / "whole"), state_of(tmp_path / "out")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "out"))
    assert one["test"] == two["test"] and one["best_epoch"] == two["best_epoch"] and not two["interrupted"]
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {path.name for path in (tmp_path / "whole").iterdir()}
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_that_has_ended_or_was_stopped_goes_on_for_longer_to_the_same_result(tmp_path, capsys, asked):
    words = ["--schedule", "constant", "--evidence", "0"]
    assert command(tmp_path, *words, "--epochs", "4", "--out", str(tmp_path / "whole")) == 0
    for folder in ("ended", "stopped"):
        out = ["--out", str(tmp_path / folder)]
        if folder == "stopped":
            asked(signal.SIGINT, 8)
        assert command(tmp_path, *words, *out) == (130 if folder == "stopped" else 0)
        capsys.readouterr()
        assert command(tmp_path, *words, *out, "--epochs", "4", "--resume") == 0
        if folder == "ended":
            assert f"{tmp_path / folder} has ended after 2 epochs; it goes on to 4" in capsys.readouterr().out
        whole, longer = state_of(tmp_path / "whole"), state_of(tmp_path / folder)
        assert all(torch.equal(value, longer[name]) for name, value in whole.items())
        assert len((tmp_path / folder / "history.csv").read_text().splitlines()) == 5
        assert {path.name for path in (tmp_path / "whole").iterdir()} == {
            path.name for path in (tmp_path / folder).iterdir()
        }


@pytest.mark.usefixtures("undrawn")
def test_a_longer_run_that_is_killed_goes_on_too_and_the_shorter_results_stay_until_then(tmp_path, monkeypatch):
    words = ["--schedule", "constant", "--evidence", "0"]
    assert command(tmp_path, *words, "--epochs", "1") == 0
    with monkeypatch.context() as patch:
        patch.setattr(job, "measure", lambda *args: signal.raise_signal(signal.SIGTERM))
        assert command(tmp_path, *words, "--resume") == 143
    metrics = tmp_path / "out/metrics.json"
    assert json.loads(metrics.read_text())["settings"]["epochs"] == 1
    assert command(tmp_path, *words, "--resume") == 0
    assert json.loads(metrics.read_text())["settings"]["epochs"] == 2


@pytest.mark.usefixtures("undrawn")
def test_a_longer_run_has_the_schedule_of_its_length_and_says_so(tmp_path):
    assert command(tmp_path, "--evidence", "0") == 0
    with pytest.warns(TrainingWarning, match="the schedule is now that of the new number of epochs"):
        assert command(tmp_path, "--evidence", "0", "--resume", "--epochs", "3") == 0


def test_what_cannot_go_on_is_left_as_it_is(tmp_path, capsys):
    assert command(tmp_path, "--evidence", "0") == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for words, message in (
        (["--epochs", "1"], "holds a run of 2 epochs, got --epochs 1"),
        (["--epochs", "4", "--lr", "0.1"], "lr is 0.005 there and 0.1 here"),
    ):
        assert command(tmp_path, "--evidence", "0", "--resume", *words) == 1
        assert message in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    (tmp_path / "out" / resume.TRAINING).unlink()  # as earlier versions left a folder
    assert command(tmp_path, "--evidence", "0", "--resume", "--epochs", "4") == 1
    refused = capsys.readouterr().err
    assert "holds no training.pt from which its run of 2 epochs could go on" in refused
    assert refused.endswith("begin anew by --overwrite in the place of --resume\n")
    assert command(tmp_path, "--evidence", "0", "--overwrite", "--epochs", "4") == 0


def test_a_longer_run_that_is_refused_leaves_the_run_that_has_ended(tmp_path, capsys):
    """Other images and a damaged checkpoint are noticed late; the results can be asked for again."""
    data, out = own_images(tmp_path / "own", (60, 20, 20)), tmp_path / "out"
    words = ["--dataset", data, *SMALL, "--evidence", "0", "--out", str(out)]
    assert run.main(words) == 0
    files, images = {path.name: path.read_bytes() for path in out.iterdir()}, np.load(f"{data}/train.npy")
    for change in (
        lambda: np.save(f"{data}/train.npy", 255 - images),
        lambda: (out / resume.TRAINING).write_bytes(b"damaged"),
    ):
        change()
        for _ in range(2):
            assert run.main([*words, "--resume", "--epochs", "4"]) == 1
            assert "has ended after 2 epochs" in capsys.readouterr().out
        np.save(f"{data}/train.npy", images)
        assert run.main([*words, "--resume"]) == 0
        files |= {resume.TRAINING: (out / resume.TRAINING).read_bytes()}
        assert {path.name: path.read_bytes() for path in out.iterdir()} == files


@pytest.mark.usefixtures("undrawn")
def test_resuming_what_has_ended_or_not_begun(tmp_path, capsys):
    assert command(tmp_path, "--resume") == 0
    assert "NOTE: there is nothing to resume in" in capsys.readouterr().out
    before = (tmp_path / "out/metrics.json").read_bytes()
    assert command(tmp_path, "--resume") == 0
    assert "test bound" in capsys.readouterr().out and (tmp_path / "out/metrics.json").read_bytes() == before
    assert command(tmp_path, "--resume", "--seed", "3") == 1
    assert "seed is 0 there and 3 here" in capsys.readouterr().err
    for damage in ("[]", "{", '{"settings": 3}', '{"settings": {}}'):
        (tmp_path / "out/metrics.json").write_text(damage)
        assert command(tmp_path, "--resume") == 1
        assert "error: " in capsys.readouterr().err


def test_a_signal_in_the_measurement_loses_no_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(job, "measure", lambda *args: signal.raise_signal(signal.SIGTERM))
    assert command(tmp_path) == 143
    assert "interrupted; go on with: " in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"checkpoint.pt", "history.csv"}
    monkeypatch.undo()
    assert command(tmp_path, "--resume") == 0


@pytest.mark.usefixtures("undrawn")
def test_the_results_of_a_finished_run_are_kept_until_the_next_is_whole(tmp_path, monkeypatch):
    assert command(tmp_path, "--seed", "1") == 0
    with monkeypatch.context() as patch:
        patch.setattr(job, "measure", lambda *args: signal.raise_signal(signal.SIGTERM))
        assert command(tmp_path, "--seed", "2", "--overwrite") == 143
    assert json.loads((tmp_path / "out/metrics.json").read_text())["settings"]["seed"] == 1
    assert command(tmp_path, "--seed", "2", "--resume") == 0
    assert json.loads((tmp_path / "out/metrics.json").read_text())["settings"]["seed"] == 2


@pytest.mark.usefixtures("undrawn")
def test_two_runs_into_one_folder(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out"):
        assert command(tmp_path) == 1
        assert "another run is writing to" in capsys.readouterr().err
    assert command(tmp_path) == 0


@pytest.mark.usefixtures("undrawn")
def test_a_disk_that_is_full_when_results_are_written(tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:

        def full(file, data):
            if "checkpoint" not in file.name:
                raise OSError(errno.ENOSPC, "No space left on device")
            file.write(data)

        patch.setattr(files, "_write", full)
        assert command(tmp_path) == 1
    assert "No space left on device); what was saved before is untouched: free some space" in capsys.readouterr().err
    assert command(tmp_path, "--resume") == 0


def test_ctrl_c_in_a_measurement_is_no_failure_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(measurement, "repeated_bounds", lambda *args: signal.raise_signal(signal.SIGTERM))
    assert command(tmp_path) == 143
    assert Checkpoints(tmp_path / "out").exist() and not (tmp_path / "out/metrics.json").exists()


def test_what_is_not_a_runs_is_left_alone(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.new").write_text("mine")
    assert command(tmp_path) == 1
    (out / "thesis.new").unlink()
    assert command(tmp_path) == 0
    (out / "notes.txt").write_text("mine")
    (out / "evidence").mkdir()
    assert command(tmp_path, "--overwrite", "--latent", "3") == 0
    assert (out / "notes.txt").read_text() == "mine"
    assert not (out / "manifold.png").exists() and not (out / "evidence").exists()  # of the model that was there


@pytest.mark.usefixtures("undrawn")
def test_a_stopped_run_outlives_a_mistaken_one_in_its_place(tmp_path, capsys):
    out = tmp_path / "out"
    Checkpoints(out).folder.mkdir()
    Checkpoints(out).save({"step": 3})
    assert command(tmp_path, "--overwrite", "--batch", "99999") == 1
    assert Checkpoints(out, resume=True).load() == {"step": 3}
    assert command(tmp_path, "--overwrite") == 0
    assert not Checkpoints(out).exist()


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_was_stopped_before_it_was_saved_begins_anew(tmp_path, capsys):
    assert command(tmp_path, "--evidence", "0") == 0
    path = tmp_path / "out/metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "interrupted": True}))
    assert command(tmp_path, "--evidence", "0") == 1 and "holds another run's results" in capsys.readouterr().err
    assert command(tmp_path, "--evidence", "0", "--resume") == 0
    assert "stopped before it was saved; it begins anew" in capsys.readouterr().out
    assert json.loads(path.read_text())["interrupted"] is False


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_run_that_has_ended_is_not_that_of_other_rows_of_the_same_shape(tmp_path, capsys, split):
    """Neither for --resume and a sweep, nor for a measurement, unless its data are named."""
    data, out = own_images(tmp_path / "data", (30, 5, 5)), tmp_path / "out/seed-0"
    words = ["--dataset", data, *SMALL, "--evidence", "0", "--measure", "none", "--quiet"]
    assert run.main([*words, "--out", str(out)]) == 0
    assert sweep.main([*words, "--out", str(tmp_path / "out")]) == 0
    images = np.load(tmp_path / f"data/{split}.npy")
    images[-1, 0, 7, 7] ^= 1
    np.save(tmp_path / f"data/{split}.npy", images)
    capsys.readouterr()
    assert run.main([*words, "--out", str(out), "--resume"]) == 1
    said = capsys.readouterr().err
    assert f"its numbers are of other rows than those of this command: {split}_digest is" in said
    assert "pyro-vae train --overwrite trains and measures anew" in said
    assert sweep.main([*words, "--out", str(tmp_path / "out")]) == 1
    assert f"{split}_digest is" in capsys.readouterr().err
    with pytest.raises(ValueError, match=f"{split}_digest is .*; to measure it on these, .* name them by --dataset"):
        load_run(out, torch.device("cpu"))
    assert len(load_run(out, torch.device("cpu"), None, data)[1]) == 5


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_has_ended_is_not_measured_again_and_says_so(tmp_path, capsys):
    assert command(tmp_path, "--measure", "none") == 0
    before = (tmp_path / "out/metrics.json").read_bytes()
    assert command(tmp_path, "--measure", "none", "--resume") == 0
    assert "NOTE" not in capsys.readouterr().out
    assert command(tmp_path, "--measure", "full", "--evidence", "5", "--resume") == 0
    said = "out holds a run that has ended, and was measured by --measure none --evidence 50, as it stays"
    assert said in capsys.readouterr().out
    assert (tmp_path / "out/metrics.json").read_bytes() == before
