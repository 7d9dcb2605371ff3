"""Runs that are stopped and resumed end with the bits of those that were not; damaged checkpoints are refused."""

import copy
import errno
import os
import pickle
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from pyro.infer import Trace_ELBO
from test_loop import FEW, Breaks, small_vae

from pyro_vae import files, fit
from pyro_vae.estimators import ImportanceWeighted
from pyro_vae.files import CheckpointError, locked, write_whole
from pyro_vae.handlers import KLWeighted, LinearWarmUp
from pyro_vae.training import checkpoint
from pyro_vae.training.checkpoint import Checkpoints, decode, encode
from pyro_vae.training.loop import ROW, History, NonFiniteLoss, Run, warm_cosine

TIMES = ("seconds", "images_per_second")
CONTENT = {"step": 7, "loc": torch.arange(3.0), "rows": [{"bound": -1.5}], "none": None}


@pytest.fixture
def usual_interrupt():
    # A process started in the background ignores Ctrl-C; these tests want Python's usual handler.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def train(program, folder=None, resume=False, every=3, **settings):
    """Five epochs of four steps, and a fifth that is smaller."""
    checkpoints = folder and Checkpoints(folder, seconds=None, steps=every, resume=resume)
    step = {} if "optimizer" in settings else {"lr": 1e-2}
    settings = {"epochs": 5, "batch_size": 45, "schedule": warm_cosine, "progress": False, **step, **settings}
    return fit(program, FEW, checkpoints=checkpoints, **settings)


def same_bits(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))


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


# after steps 1, 4, 5 (the end of an epoch), 13 and the last
@pytest.mark.parametrize(("at", "engine"), [*((at, "eager") for at in (2, 5, 6, 14, 26)), (14, "svi")])
def test_a_run_stopped_at_any_step_ends_with_the_same_bits(tmp_path, usual_interrupt, at, engine):
    whole, broken, resumed = (Breaks(small_vae(), lambda count, x: x) for _ in range(3))
    expected = train(whole, engine=engine)
    stopped(broken.vae, tmp_path, at, engine=engine)
    history = train(resumed, tmp_path, resume=True, engine=engine)
    assert same_bits(whole, resumed) and rows(history) == rows(expected)
    assert history.best_epoch == expected.best_epoch and not history.interrupted


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
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


def test_another_engine_than_the_one_that_was_stopped_is_said(tmp_path, usual_interrupt, monkeypatch):
    stopped(small_vae(), tmp_path, 14, engine="auto")
    content = decode((tmp_path / "checkpoint.pt").read_bytes(), "")
    content["history"]["engine"] = "compiled"
    (tmp_path / "checkpoint.pt").write_bytes(encode(content))
    with pytest.warns(UserWarning, match="was trained by 'compiled' and went on by 'eager'"):
        train(Breaks(small_vae(), lambda count, x: x), tmp_path, resume=True, engine="auto")


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


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(tmp_path, usual_interrupt):
    whole, resumed = small_vae(), small_vae()
    train(Breaks(whole, lambda count, x: x))
    stopped(small_vae(), tmp_path, 12)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=r"checkpoint.pt is damaged.*going on from checkpoint.previous.pt"):
        train(Breaks(resumed, lambda count, x: x), tmp_path, resume=True)
    assert same_bits(whole, resumed)
    for path in Checkpoints(tmp_path).paths:
        path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"nothing to resume from.*train again from the beginning"):
        train(small_vae(), tmp_path, resume=True)


def test_other_settings_are_refused_by_name(tmp_path, usual_interrupt):
    stopped(small_vae(), tmp_path, 4)
    program = Breaks(small_vae(), lambda count, x: x)
    with pytest.raises(ValueError, match=r"lr is 0\.01 there and 0\.02 here, seed is 0 there and 1 here"):
        train(program, tmp_path, resume=True, lr=0.02, seed=1)
    with pytest.raises(ValueError, match=r"program is .* tensors"):
        train(Breaks(small_vae(latent=3), lambda count, x: x), tmp_path, resume=True)
    other = copy.copy(FEW)
    object.__setattr__(other, "train", FEW.train[torch.arange(200).flip(0)])
    with pytest.raises(ValueError, match="images is '200 images, checksum"):
        fit(
            program,
            other,
            epochs=5,
            batch_size=45,
            lr=1e-2,
            schedule=warm_cosine,
            progress=False,
            checkpoints=Checkpoints(tmp_path, resume=True),
        )


def test_other_versions_or_threads_are_said(tmp_path, usual_interrupt, monkeypatch):
    stopped(small_vae(), tmp_path, 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1000)
    with pytest.warns(UserWarning, match=r"is resumed under .*'threads': 1000.*: the same bits are not promised"):
        train(Breaks(small_vae(), lambda count, x: x), tmp_path, resume=True)


def test_a_whole_checkpoint_of_strange_content_is_an_error(tmp_path, usual_interrupt):
    stopped(small_vae(), tmp_path, 4)
    path = tmp_path / "checkpoint.pt"
    content = decode(path.read_bytes(), "")
    strange = {
        "taken": "x",
        "order": 3,
        "seconds": None,
        "program": {},
        "optimizer": {"state": 1},
        "random": None,
        "history": {"a": 1},
    }
    others = [("taken", 6), ("order", None), ("order", torch.zeros(200, dtype=torch.int64))]
    for name, value in [*strange.items(), *others]:
        path.write_bytes(encode({**content, name: value}))
        with pytest.raises(CheckpointError, match="the checkpoint does not fit this run"):
            train(Breaks(small_vae(), lambda count, x: x), tmp_path, resume=True)


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


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_non_finite_steps_are_left_out_counted_and_named():
    def spoil(count, x):
        return x * torch.nan if count in (4, 9) else x

    program = Breaks(small_vae(), spoil)
    assert train(program, skip_non_finite=2).skipped == 2
    assert all(parameter.isfinite().all() for parameter in program.parameters())
    with pytest.raises(NonFiniteLoss, match=r"epoch 2, step 3, under Trace_ELBO \(2 such steps, 1 may be left out\)"):
        train(Breaks(small_vae(), spoil), skip_non_finite=1)


@pytest.mark.filterwarnings("ignore:Encountered NaN")
@pytest.mark.parametrize(
    ("part", "site"), [("posterior.head", "site 'z' of the guide"), ("likelihood.network", "site 'x' of the model")]
)
def test_the_site_that_went_first_is_named(part, site):
    vae = small_vae()

    def ruin(count, x):
        if count == 5:
            for name, parameter in vae.named_parameters():
                if name.startswith(part):
                    parameter.data.fill_(torch.nan)
        return x

    with pytest.raises(NonFiniteLoss, match=f"epoch 1, step 4.*the log-probability that went first is that of {site}"):
        train(Breaks(vae, ruin))


def test_a_gradient_that_is_not_finite_is_named_and_never_applied():
    vae = small_vae()
    vae.extra = torch.nn.Parameter(torch.zeros(()))
    model = vae.model
    vae.model = lambda x: model(x + 0 * vae.extra.sqrt().nan_to_num())  # d sqrt(0) is infinite, times zero: NaN
    with pytest.raises(NonFiniteLoss, match=r"log-probability is finite, the gradient of extra is not \(1 in all"):
        train(vae, estimator=Trace_ELBO())
    assert vae.extra == 0


OLD = Path(__file__).parents[1] / "fixtures/format3/checkpoint.pt"  # of ``stopped(small_vae(), …, 14)``


@pytest.mark.filterwarnings("ignore:the checkpoint was written under")
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
    with pytest.warns(UserWarning, match="the schedule is now that of the new number of epochs: .* of 3 epochs was at"):
        train(small_vae(), tmp_path, resume=True, epochs=6, schedule=schedule, optimizer=noted(6))
    expected, seen[6] = seen[6], []
    train(small_vae(), epochs=6, schedule=schedule, optimizer=noted(6))
    assert len(expected) == 15
    for one, other in zip(expected, seen[6][15:]):
        assert one[0] == pytest.approx(other[0]) and one[1] == pytest.approx(other[1])


def test_a_run_of_fewer_epochs_than_are_behind_it_is_refused(tmp_path, usual_interrupt):
    stopped(small_vae(), tmp_path, 14)  # within the third epoch
    resumed = Breaks(small_vae(), lambda count, x: x)
    before = copy.deepcopy(resumed.state_dict())
    with pytest.raises(ValueError, match=r"epochs: wanted at least .* got 2, which are 10 steps, and it is at step 13"):
        train(resumed, tmp_path, resume=True, epochs=2)
    assert all(torch.equal(value, before[name]) for name, value in resumed.state_dict().items())
    with pytest.warns(UserWarning, match="new number of epochs"):
        assert len(train(resumed, tmp_path, resume=True, epochs=3).rows) == 3


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


def test_settings_that_cannot_be_saved_are_refused_before_anything_is_trained(tmp_path):
    program = Breaks(small_vae(), lambda count, x: x)
    with pytest.raises(CheckpointError, match="only tensors, numbers, strings"):
        fit(program, FEW, batch_size=45, progress=False, checkpoints=Checkpoints(tmp_path, settings={"out": tmp_path}))
    assert program.count == 1


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


@pytest.mark.parametrize("name", ["../../evil", "/evil", "archive/../../evil"])
def test_path_names_in_a_checkpoint_are_refused(tmp_path, name):
    archive = tmp_path / "archive.pt"
    torch.save(CONTENT, archive)
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(name, b"evil")
    with archive.open("rb") as file, pytest.raises(CheckpointError, match=r"names that torch\.save does not give"):
        files.load_tree(file, "stranger")


def test_what_takes_any_amount_of_memory_is_refused(tmp_path):
    archive = tmp_path / "archive.pt"
    torch.save({"step": bytearray(3)}, archive)
    with archive.open("rb") as file, pytest.raises(CheckpointError, match=r"holds __builtin__\.bytearray"):
        files.load_tree(file, "stranger")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(1 << 24))
    with archive.open("rb") as file, pytest.raises(CheckpointError, match="compressed"):
        files.load_tree(file, "stranger")


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

    with pytest.raises(CheckpointError, match="the folder is gone: make it again"):
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


def test_write_whole_replaces_at_once(tmp_path):
    write_whole(tmp_path / "file", b"old")
    write_whole(tmp_path / "file", b"new", keep=tmp_path / "kept")
    assert (tmp_path / "file").read_bytes() == b"new" and (tmp_path / "kept").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "kept"]


def test_a_lock_holds_against_others_and_dies_with_its_process(tmp_path):
    hold = "import sys, time; from pyro_vae.files import locked\nwith locked(sys.argv[1]): print(1, flush=True); "
    words = [sys.executable, "-c", f"{hold} time.sleep(60)", tmp_path]
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout.readline() == b"1\n"
        with pytest.raises(CheckpointError, match="another run is writing to"), locked(tmp_path):
            pass
        process.kill()
        process.wait()
    with locked(tmp_path), pytest.raises(CheckpointError, match="another run"), locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_when_it_is_time_to_save(tmp_path):
    by_steps, by_time, never = Checkpoints(tmp_path, None, 10), Checkpoints(tmp_path, 0.0), Checkpoints(tmp_path, 1e9)
    by_steps.note(5)
    assert [by_steps.due(step) for step in (14, 15)] == [False, True] and by_time.due(1) and not never.due(10**9)
    with pytest.raises(ValueError, match="wanted seconds of at least 0 and steps of at least 1, got -1 and None"):
        Checkpoints(tmp_path, -1)
    for wrong in ({"seconds": "60"}, {"seconds": float("nan")}, {"steps": 0}, {"steps": 2.5}, {"steps": True}):
        with pytest.raises(ValueError, match="wanted seconds of at least 0 and steps of at least 1, got"):
            Checkpoints(tmp_path, **wrong)


def test_no_moment_without_a_whole_checkpoint_after_a_damaged_one(tmp_path, monkeypatch):
    first = Checkpoints(tmp_path)
    for step in (1, 2):
        first.save({"step": step})
    (tmp_path / "checkpoint.pt").write_bytes(b"damaged")
    resumed = Checkpoints(tmp_path, resume=True)
    with pytest.warns(UserWarning, match="going on from checkpoint.previous.pt"):
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


def test_two_files_of_one_name_in_an_archive(tmp_path):
    torch.save({"loc": torch.zeros(2)}, tmp_path / "file")
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(tmp_path / "file", "a") as archive:
        tree = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        archive.writestr(tree, archive.read(tree))
    with (tmp_path / "file").open("rb") as file, pytest.raises(CheckpointError, match="two files of one name"):
        files.load_tree(file, "file")


def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="is no file"):
        files.read_bytes(tmp_path / "pipe")


def test_the_history_of_a_hundred_thousand_epochs_is_saved():
    program = small_vae()
    optimizer = torch.optim.Adam(program.parameters())
    row = dict.fromkeys(ROW, 1.0)
    run = Run(program, optimizer, None, 4, history=History([{**row, "epoch": n} for n in range(100_000)]))
    content = decode(encode(run.state_dict()), "")
    run.load_state_dict(content)
    assert run.history.rows[7] == {**row, "epoch": 7}


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", unsupported)
    with pytest.warns(UserWarning, match="cannot be locked"), locked(tmp_path):
        pass
