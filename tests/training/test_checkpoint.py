"""Runs that are stopped and resumed end with the bits of those that were not; damaged checkpoints are refused."""

import copy
import errno
import hashlib
import io
import os
import pickle
import signal
from contextlib import nullcontext

import pytest
import torch
from programs import FEW, Breaks, needs_compiler, same_bits, small_vae
from small_trainings import rows, started, stopped, train

from pyro_vae import files, fit
from pyro_vae.files import CheckpointError
from pyro_vae.training import TrainingWarning, checkpoint, engines, worth
from pyro_vae.training.checkpoint import Checkpoints, decode, encode
from pyro_vae.training.eager import EagerEngine

CONTENT = {"step": 7, "loc": torch.arange(3.0), "rows": [{"bound": -1.5}], "none": None}


# after steps 1, 4, 5 (the end of an epoch), 13 and the last
@pytest.mark.slow
@pytest.mark.parametrize(("at", "engine"), [*((at, "eager") for at in (2, 5, 6, 14, 26)), (14, "svi")])
def test_a_run_stopped_at_any_step_ends_with_the_same_bits(tmp_path, usual_interrupt, at, engine):
    whole, broken, resumed = (Breaks(small_vae(), lambda count, x: x) for _ in range(3))
    expected = train(whole, engine=engine)
    stopped(broken.vae, tmp_path, at, engine=engine)
    history = train(resumed, tmp_path, resume=True, engine=engine)
    assert same_bits(whole, resumed) and rows(history) == rows(expected)
    assert history.best_epoch == expected.best_epoch and not history.interrupted


@pytest.mark.slow
@needs_compiler
@pytest.mark.usefixtures("quick_compiler")
def test_a_compiled_run_that_was_stopped_ends_with_the_same_bits(tmp_path, usual_interrupt, monkeypatch):
    # Compiled steps do not run the program's Python: a checkpoint is due when the signal comes.
    whole, broken, resumed = (small_vae() for _ in range(3))
    expected = train(whole, engine="compiled")

    def ask(self, step):
        if step == 13:
            signal.raise_signal(signal.SIGINT)
        return False

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "due", ask)
        assert train(broken, tmp_path, engine="compiled").interrupted
    assert decode((tmp_path / "checkpoint.pt").read_bytes(), "")["step"] in (13, 14)
    history = train(resumed, tmp_path, resume=True, engine="compiled")
    assert same_bits(whole, resumed) and rows(history) == rows(expected) and history.engine == "compiled"


@pytest.mark.slow
def test_another_engine_than_the_one_that_was_stopped_is_said(tmp_path, usual_interrupt, monkeypatch):
    stopped(small_vae(), tmp_path, 14, engine="auto")
    content = decode((tmp_path / "checkpoint.pt").read_bytes(), "")
    content["history"]["engine"] = "compiled"
    (tmp_path / "checkpoint.pt").write_bytes(encode(content))
    with pytest.warns(TrainingWarning, match="was trained by 'compiled' and went on by 'eager'"):
        train(Breaks(small_vae(), lambda count, x: x), tmp_path, resume=True, engine="auto")


class Quick(EagerEngine):
    """Eager steps that pass for compiled ones."""

    name = "compiled"

    def __init__(self, *args, strict, rows, **settings):
        super().__init__(*args, **settings)


@pytest.mark.slow
def test_parts_that_were_frozen_leave_a_resumed_run_its_engine(tmp_path, monkeypatch):
    """``auto`` counts the work of parameters that are trained: a resumed run has fewer, and the same bits."""
    counted = []

    def as_much_as_the_first(work, steps):
        counted.append(work.operations)
        return work.operations >= counted[0]

    whole, broken, resumed = (small_vae() for _ in range(3))
    monkeypatch.setattr(worth.Work, "earns_back", as_much_as_the_first)
    monkeypatch.setattr(engines, "CompiledEngine", Quick)
    monkeypatch.setattr(engines, "FEWEST", 1)

    def frozen_after(training, epochs):
        for row in training:
            if row["epoch"] == 1:
                training.program.likelihood.requires_grad_(False)
            if row["epoch"] == epochs:
                break
        return training.finish()

    expected = frozen_after(started(whole, engine="auto"), 4)
    frozen_after(started(broken, tmp_path, engine="auto"), 2)
    history = frozen_after(started(resumed, tmp_path, resume=True, engine="auto"), 4)
    assert history.engine == expected.engine == "compiled" and rows(history) == rows(expected)
    content = decode((tmp_path / "checkpoint.pt").read_bytes(), "")
    assert content["compiles"] is True
    del content["compiles"]  # as in earlier versions
    (tmp_path / "checkpoint.pt").write_bytes(encode(content))
    with pytest.warns(TrainingWarning, match="went on by 'eager'"):
        frozen_after(started(small_vae(), tmp_path, resume=True, engine="auto", epochs=5), 5)


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False])
def test_more_epochs_may_earn_back_what_fewer_did_not(tmp_path, monkeypatch, before):
    monkeypatch.setattr(engines, "FEWEST", 1)
    monkeypatch.setattr(worth.Work, "earns_back", lambda self, steps: before or steps > 16)
    monkeypatch.setattr(engines, "CompiledEngine", Quick)
    for epochs, compiles in (4, before), (5, True):
        with nullcontext() if before or epochs == 4 else pytest.warns(TrainingWarning, match="went on by 'compiled'"):
            for _ in started(small_vae(), tmp_path, resume=True, engine="auto", epochs=epochs):
                pass
        assert decode((tmp_path / "checkpoint.pt").read_bytes(), "")["compiles"] is compiles


@pytest.mark.slow
def test_a_run_that_died_repeats_only_the_steps_since_its_last_checkpoint(tmp_path):
    def die(count, x):
        if count == 15:  # step 14; the last checkpoint is that of step 12
            raise MemoryError
        return x

    whole, resumed = (Breaks(small_vae(), lambda count, x: x) for _ in range(2))
    expected = train(whole)
    with pytest.raises(MemoryError):
        train(Breaks(small_vae(), die), tmp_path)
    assert decode((tmp_path / "checkpoint.pt").read_bytes(), "")["step"] == 12
    assert decode((tmp_path / "checkpoint.previous.pt").read_bytes(), "")["step"] == 9
    history = train(resumed, tmp_path, resume=True)
    assert same_bits(whole, resumed) and rows(history) == rows(expected)
    assert resumed.count == 1 + 25 - 12


@pytest.mark.slow
def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(tmp_path, usual_interrupt):
    whole, resumed = small_vae(), small_vae()
    train(Breaks(whole, lambda count, x: x))
    stopped(small_vae(), tmp_path, 12)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.warns(TrainingWarning, match=r"checkpoint.pt is damaged.*going on from checkpoint.previous.pt"):
        train(Breaks(resumed, lambda count, x: x), tmp_path, resume=True)
    assert same_bits(whole, resumed)
    for path in Checkpoints(tmp_path).paths:
        path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"nothing to resume from.*train again from the beginning"):
        train(small_vae(), tmp_path, resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("damaged", [False, True])
def test_the_checkpoint_of_another_run_is_not_overwritten_without_a_word(tmp_path, damaged):
    train(small_vae(), tmp_path, epochs=1)
    if damaged:
        (tmp_path / "checkpoint.pt").write_bytes(b"damaged")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    program = small_vae(seed=1)
    state = copy.deepcopy(program.state_dict())
    with pytest.raises(CheckpointError, match=r"holds the checkpoint of a run; .*resume=True.*overwrite=True"):
        train(program, tmp_path)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert all(torch.equal(value, state[name]) for name, value in program.state_dict().items())
    settings = {"epochs": 2, "batch_size": 45, "lr": 1e-2, "progress": False}
    fit(program, FEW, checkpoints=Checkpoints(tmp_path, overwrite=True), **settings)
    again = small_vae(seed=1)
    fit(again, FEW, checkpoints=Checkpoints(tmp_path, resume=True), **settings)
    assert same_bits(program, again) and not (tmp_path / "checkpoint.previous.pt").exists()


def test_a_folder_below_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Checkpoints("~/runs").folder == tmp_path / "runs"
    with pytest.raises(ValueError, match=r"~nobody-here/runs: there is no such home folder; write /"):
        Checkpoints("~nobody-here/runs")


def test_what_is_saved_is_read_again():
    again = decode(encode(CONTENT), "")
    assert torch.equal(again.pop("loc"), CONTENT["loc"])
    assert again == {name: value for name, value in CONTENT.items() if name != "loc"}


class Payload:
    """Unpickled by Python's own loader it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_malicious_checkpoint_runs_no_code(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    pickle.loads(pickle.dumps(Payload(victim)))
    assert victim.exists()  # it would
    victim.rmdir()
    with pytest.raises(CheckpointError, match="only tensors, numbers, strings"):
        encode({"step": Payload(victim)})
    for module in (checkpoint, files):
        monkeypatch.setattr(module, "check_payload", lambda file, name: None)
    data = encode({"step": Payload(victim)})  # with a right checksum
    with pytest.raises(CheckpointError, match="cannot be read"):
        decode(data, "stranger")  # by torch's own refusal
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"stranger holds posix\.mkdir"):
        decode(data, "stranger")
    for protocol in (2, 4):
        (tmp_path / "checkpoint.pt").write_bytes(pickle.dumps(Payload(victim), protocol))
        with pytest.raises(CheckpointError, match="is no checkpoint"):
            Checkpoints(tmp_path, resume=True).load()
    assert not victim.exists()


@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EROFS, errno.ENOENT, errno.EACCES])
def test_a_failing_write_names_the_cure_and_leaves_the_last_checkpoint(tmp_path, monkeypatch, kind):
    checkpoints = Checkpoints(tmp_path, resume=True)
    checkpoints.save({"step": 1})

    def fail(file, data):
        file.write(data[:10])
        raise OSError(kind, os.strerror(kind))

    monkeypatch.setattr(files, "_write", fail)
    with pytest.raises(CheckpointError, match=rf"\({os.strerror(kind)}\).*untouched: {files.CURES[kind]}"):
        checkpoints.save({"step": 2})
    assert checkpoints.load() == {"step": 1} and [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_folder_removed_in_mid_run_is_an_error_with_the_cure(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()

    def remove(count, x):
        if count == 3:
            folder.rmdir()
        return x

    with pytest.raises(CheckpointError, match="there is no such folder: make it"):
        train(Breaks(small_vae(), remove), folder)


@pytest.mark.parametrize("stage", ["written", "renamed"])
def test_a_write_cut_off_anywhere_leaves_a_whole_checkpoint(tmp_path, monkeypatch, stage):
    checkpoints = Checkpoints(tmp_path, resume=True)
    checkpoints.save({"step": 1})
    checkpoints.save({"step": 2})

    class PowerLoss(BaseException):
        pass

    def cut(*args):
        raise PowerLoss

    names, replace = [], os.replace

    def cut_before_the_second(*args):
        names.append(args)
        if len(names) == 2:
            raise PowerLoss
        replace(*args)

    if stage == "written":
        monkeypatch.setattr(files.os, "fsync", cut)
    else:
        monkeypatch.setattr(files.os, "replace", cut_before_the_second)
    with pytest.raises(PowerLoss):
        checkpoints.save({"step": 3})
    monkeypatch.undo()
    assert checkpoints.load() == {"step": 2}


def test_when_it_is_time_to_save(tmp_path):
    by_steps, by_time, never = Checkpoints(tmp_path, None, 10), Checkpoints(tmp_path, 0.0), Checkpoints(tmp_path, 1e9)
    by_steps.note(5)
    assert [by_steps.due(step) for step in (14, 15)] == [False, True] and by_time.due(1) and not never.due(10**9)
    with pytest.raises(ValueError, match="wanted seconds of at least 0 and steps of at least 1, got -1 and None"):
        Checkpoints(tmp_path, -1)
    for wrong in ({"seconds": "60"}, {"seconds": float("nan")}, {"steps": 0}, {"steps": 2.5}, {"steps": True}):
        with pytest.raises(ValueError, match="wanted seconds of at least 0 and steps of at least 1, got"):
            Checkpoints(tmp_path, **wrong)


def test_a_checkpoint_is_due_seconds_after_the_last_one_and_then_saved(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    checkpoints = Checkpoints(tmp_path, seconds=10)
    checkpoints.save({"step": 5})
    for later, due in ((9.9, False), (10.0, True), (20.0, True)):
        now[0] = 1000.0 + later
        assert checkpoints.due(6) == due
    assert [checkpoints.saved(step) for step in (4, 5, 6)] == [False, True, False]
    checkpoints.note(0)
    assert not checkpoints.saved(0)  # nothing is trained yet, so nothing is worth a file


def test_the_format_of_a_checkpoint_is_what_its_description_says():
    """Runs of today have to be read by later versions: magic, four bytes, SHA-256, what torch reads."""
    data = encode(CONTENT)
    head, version, digest, payload = data[:20], data[20:24], data[24:56], data[56:]
    assert head == b"pyro_vae checkpoint\n" and int.from_bytes(version, "big") == checkpoint.FORMAT
    assert digest == hashlib.sha256(payload).digest() and torch.load(io.BytesIO(payload))["step"] == 7


def test_removed_checkpoints_are_gone_whether_there_were_two_or_none(tmp_path):
    checkpoints = Checkpoints(tmp_path, resume=True)
    checkpoints.remove()
    for step in (1, 2):
        checkpoints.save({"step": step})
    checkpoints.remove()
    assert not checkpoints.exist() and checkpoints.load() is None


def test_no_moment_without_a_whole_checkpoint_after_a_damaged_one(tmp_path, monkeypatch):
    first = Checkpoints(tmp_path)
    for step in (1, 2):
        first.save({"step": step})
    (tmp_path / "checkpoint.pt").write_bytes(b"damaged")
    resumed = Checkpoints(tmp_path, resume=True)
    with pytest.warns(TrainingWarning, match="going on from checkpoint.previous.pt"):
        assert resumed.load() == {"step": 1}

    replace, moves = os.replace, []

    def cut(source, target):
        moves.append(target)
        if len(moves) == 2:
            raise KeyboardInterrupt  # as if killed between two renames
        replace(source, target)

    monkeypatch.setattr(os, "replace", cut)
    resumed.save({"step": 3})
    assert moves == [tmp_path / "checkpoint.pt"]  # the damaged one does not take the place of the whole one
    monkeypatch.setattr(os, "replace", replace)
    (tmp_path / "checkpoint.pt").unlink()
    assert Checkpoints(tmp_path, resume=True).load() == {"step": 1}


def test_a_new_run_leaves_nothing_of_the_old_one_beside_its_own(tmp_path):
    old = Checkpoints(tmp_path)
    for step in (1, 2):
        old.save({"step": step})
    new = Checkpoints(tmp_path)
    assert new.load() is None and new.exist()
    new.save({"step": 5})
    (tmp_path / "checkpoint.pt").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="nothing to resume from"):
        Checkpoints(tmp_path, resume=True).load()
