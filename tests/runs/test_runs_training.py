"""Options of the training: each does what Python does, is saved, resumed, and refused where it means nothing."""

import json
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import SMALL, command, own_images, state_of

from experiments import run
from pyro_vae import VAE, evaluate, fit, load, load_vae
from pyro_vae.averaging import Averaged
from pyro_vae.conditional import Conditional
from pyro_vae.config import build_estimator, build_vae
from pyro_vae.handlers import FreeBits, KLWeighted, LinearWarmUp
from pyro_vae.runs import resume
from pyro_vae.runs.arguments import fill_in, parse_arguments
from pyro_vae.runs.options import OPTIMIZERS
from pyro_vae.runs.reporting import optimiser
from pyro_vae.runs.training import check_training, is_over, measured_on, train_by
from pyro_vae.training import Checkpoints, warm_cosine
from tests.programs import FEW

DIGITS = load("digits")
PLAIN = ["--dataset", "digits", *SMALL, "--evidence", "0", "--batch", "50"]


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def program_and_options(words):
    args = parse_arguments([*PLAIN, *words])
    fill_in(args, FEW)
    torch.manual_seed(0)
    return args, build_vae(args, FEW.train.images)


def by_command(words):
    """What the options of a command line train: the bound of the test images."""
    args, vae = program_and_options(words)
    check_training(args, len(FEW.train))
    train_by(args, FEW, vae, build_estimator(args), progress=False)
    return evaluate(vae, FEW.test).summary()["bound"]


def in_python(wrap=None, estimator=None, make=None):
    """What fit trains for the program of the same command line."""
    args, vae = program_and_options([])
    program = wrap(vae) if wrap else vae
    options = {"optimizer": lambda parameters: make(parameters, program)} if make else {"lr": 5e-3}
    settings = {"epochs": 2, "batch_size": args.batch, "schedule": warm_cosine, "progress": False}
    fit(program, FEW, estimator, **settings, **options)
    kept = program.average if isinstance(program, Averaged) else vae
    return evaluate(kept, FEW.test).summary()["bound"]


def warmed(parameters, weighted):
    return weighted.anneal(torch.optim.Adam(parameters, lr=5e-3, fused=True), LinearWarmUp(4.0, end=0.5))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "python"),
    [
        ([], {}),
        (["--beta", "0.5"], {"wrap": lambda vae: KLWeighted(vae, 0.5)}),
        (["--beta", "0.5", "--warm-up", "1"], {"wrap": lambda vae: KLWeighted(vae, 0.5), "make": warmed}),
        (["--free-bits", "0.3"], {"estimator": FreeBits(0.3)}),
        (
            ["--optimizer", "adamw", "--weight-decay", "0.1"],
            {"make": lambda parameters, _: torch.optim.AdamW(parameters, lr=5e-3, weight_decay=0.1, fused=True)},
        ),
        (
            ["--beta2", "0.9"],
            {"make": lambda parameters, _: torch.optim.Adam(parameters, lr=5e-3, betas=(0.9, 0.9), fused=True)},
        ),
        (
            ["--optimizer", "sgd", "--lr", "1e-5"],
            {"make": lambda parameters, _: torch.optim.SGD(parameters, lr=1e-5, momentum=0.9)},
        ),
        (
            ["--ema", "0.5"],
            {
                "wrap": lambda vae: Averaged(vae, 0.5),
                "make": lambda parameters, averaged: averaged.follow(torch.optim.Adam(parameters, lr=5e-3, fused=True)),
            },
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_option_does_what_python_does(words, python):
    assert by_command(words) == in_python(**python)


def test_epochs_are_measured_on_at_most_so_many_validation_images():
    few = measured_on(7, FEW)
    assert torch.equal(few.valid.images, FEW.valid.images[:7]) and few.train is FEW.train and few.test is FEW.test
    assert measured_on(None, FEW) is FEW and len(measured_on(10**6, FEW).valid) == len(FEW.valid)


@pytest.fixture
def killed(monkeypatch):
    """Has the next run interrupted at a step."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    never = lambda self, step: False  # noqa: E731

    def kill(at):
        def due(self, step):
            if step == at:
                monkeypatch.setattr(Checkpoints, "due", never)
                signal.raise_signal(signal.SIGINT)
            return False

        monkeypatch.setattr(Checkpoints, "due", due)

    yield kill
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_all_options_together_are_resumed_to_the_same_bits(tmp_path, capsys, killed, undrawn):
    words = ["--beta", "0.5", "--warm-up", "1", "--ema", "0.5", "--patience", "2", "--weight-decay", "0.01"]
    words += ["--conditional", "--epochs", "3", "--evidence", "0"]
    assert command(tmp_path, *words, "--out", str(tmp_path / "whole")) == 0
    killed(8)
    assert command(tmp_path, *words) == 130
    capsys.readouterr()
    for other in (["--ema", "0.6"], ["--beta", "1"], ["--patience", "1"], ["--optimizer", "sgd"]):
        assert command(tmp_path, *words, *other, "--resume") == 1
        assert f"the checkpoint is of another run: {other[0][2:]} is" in capsys.readouterr().err
    assert command(tmp_path, *words, "--resume") == 0
    whole, resumed = state_of(tmp_path / "whole"), state_of(tmp_path / "out")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert metrics_of(tmp_path / "whole")["test"] == metrics_of(tmp_path / "out")["test"]


@pytest.mark.slow
def test_patience_stops_early_and_a_resumed_run_where_the_whole_one_did(tmp_path, capsys, monkeypatch, undrawn):
    words = ["--epochs", "40", "--patience", "1", "--lr", "0.03", "--schedule", "constant", "--evidence", "0"]
    assert command(tmp_path, *words, "--out", str(tmp_path / "whole")) == 0
    said = capsys.readouterr().out
    metrics = metrics_of(tmp_path / "whole")
    lines = (tmp_path / "whole/history.csv").read_text().splitlines()
    epochs = len(lines) - 1
    assert metrics["stopped_early"] and epochs < 40 and metrics["best_epoch"] == epochs - 1
    assert "stopped early        no better epoch in 1, before all 40" in said
    with monkeypatch.context() as patch:  # killed after the training, before its results

        def die(*args):
            raise KeyboardInterrupt

        patch.setattr("pyro_vae.runs.job.measure", die)
        assert command(tmp_path, *words) == 130
    assert command(tmp_path, *words, "--resume") == 0
    assert (tmp_path / "out/history.csv").read_text().count("\n") == epochs + 1
    assert metrics_of(tmp_path / "out")["test"] == metrics["test"]
    assert command(tmp_path, *words, "--resume") == 0  # it has ended
    capsys.readouterr()
    assert command(tmp_path, *words, "--resume", "--epochs", "50") == 0
    said = capsys.readouterr().out
    assert "stopped before its 40 epochs, and --patience 1 stops it there again; for a longer one give a larger" in said
    assert (tmp_path / "out/history.csv").read_text().count("\n") == epochs + 1


def test_without_patience_no_epoch_is_the_last():
    history = type("History", (), {"best_epoch": None, "rows": []})()
    assert not is_over(history, None) and not is_over(history, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--beta", "-1"], "--beta: wanted a weight of at least 0, got -1"),
        (["--warm-up", "3"], "--warm-up: wanted 0 to the 2 epochs of the training, got 3"),
        (["--warm-up", "nan"], "--warm-up: wanted 0 to the 2 epochs"),
        (["--warm-up", "1", "--beta", "0"], "--warm-up: --beta 0 has nothing to grow to"),
        (["--weight-decay", "-0.1"], "--weight-decay: wanted a number of at least 0, got -0.1"),
        (["--ema", "1"], "--ema: wanted a number between 0 and 1, such as 0.999, got 1"),
        (["--beta2", "1"], "--beta2: wanted a number between 0 and 1, such as 0.99, got 1"),
        (
            ["--beta2", "0.9", "--optimizer", "sgd"],
            "--beta2: ignored beside --optimizer sgd; write --optimizer adam or",
        ),
        (["--validate", "0"], "--validate: wanted"),
        (
            ["--ema", "0.999"],
            "--ema: an average over about 1000 steps is mostly of the first weights after the 12 steps",
        ),
        (["--patience", "0"], "--patience: wanted a whole number of at least 1, got 0"),
        (["--patience", "2"], "--patience: 2 epochs without a better one cannot pass in 2 epochs"),
        (["--free-bits", "-1"], "nats: got -1.0, wanted a number of at least zero"),
        (["--free-bits", "1", "--estimator", "trace"], "--free-bits: ignored beside --estimator trace; write --est"),
        (
            ["--free-bits", "1", "--beta", "2"],
            "--free-bits: it counts nats of the KL without a weight; leave",
        ),
        (["--beta", "2", "--estimator", "importance-weighted", "--particles", "3"], "remove the KL weight"),
        (["--conditional", "--prior", "vamp", "--components", "5"], "--prior vamp: its pseudo-inputs have no class"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_means_nothing_is_refused_and_leaves_nothing(tmp_path, capsys, words, message):
    assert command(tmp_path, *words) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("rendered")
@pytest.mark.slow
def test_a_conditional_run_is_loaded_again(tmp_path, capsys):
    assert command(tmp_path, "--conditional") == 0
    metrics, loaded = metrics_of(tmp_path / "out"), load_vae(tmp_path / "out")
    assert type(loaded) is Conditional and loaded.classes == 10 and not metrics["left_out"]
    assert evaluate(loaded, DIGITS.test).summary()["bound"] == metrics["test"]["bound"]
    assert metrics["evidence"]["log_px"] > metrics["test"]["bound"]
    assert {"samples.png", "reconstructions.png", "learning_curves.png"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    assert "log p(x)" in capsys.readouterr().out
    assert command(tmp_path) == 1  # another run's results
    assert command(tmp_path, "--overwrite") == 0 and type(load_vae(tmp_path / "out")) is VAE


def test_the_plan_names_what_changes_the_training():
    assert optimiser(parse_arguments(PLAIN)) == "Adam"
    words = ["--beta", "2", "--warm-up", "1", "--ema", "0.9", "--patience", "3", "--optimizer", "nadam"]
    said = "KL weight 2, warm-up 1, average of weights 0.9, patience 3, NAdam"
    assert optimiser(parse_arguments([*PLAIN, *words])) == said
    assert all(optimiser(parse_arguments([*PLAIN, "--optimizer", word])).lower() == word for word in OPTIMIZERS)


def test_a_conditional_run_without_labels_is_refused(tmp_path, capsys):
    data = own_images(tmp_path / "own", (60, 20, 20))
    words = ["--dataset", data, *SMALL, "--conditional", "--out", str(tmp_path / "out")]
    assert run.main(words) == 1
    said = capsys.readouterr().err
    assert "--conditional: wanted a label of each image, and train, valid, test of own lack some; give labels" in said


def test_a_run_of_an_earlier_version_is_compared_by_what_it_did():
    before, now = {"lr": 0.1, "epochs": 3}, {"lr": 0.1, "epochs": 3, **resume.SINCE}
    assert resume.compared(before) == resume.compared(now) == {"lr": 0.1}
    args = parse_arguments(PLAIN)
    fill_in(args, DIGITS)
    assert {name: getattr(args, name) for name in resume.SINCE} == resume.SINCE


@pytest.mark.slow
def test_a_folder_of_pictures_a_class_a_folder(tmp_path, capsys, undrawn):
    draw = np.random.RandomState(0)
    for name in ("cats", "dogs"):
        (tmp_path / "pngs" / name).mkdir(parents=True)
        for number in range(30):
            picture = draw.randint(256, size=(9, 12)).astype(np.uint8)
            Image.fromarray(picture).save(tmp_path / "pngs" / name / f"{number}.png")
    words = [
        "--dataset",
        str(tmp_path / "pngs"),
        "--size",
        "8",
        "--conditional",
        *SMALL,
        "--out",
        str(tmp_path / "out"),
    ]
    assert run.main(words) == 0
    metrics = metrics_of(tmp_path / "out")
    assert metrics["dataset"]["shape"] == [1, 8, 8] and load_vae(tmp_path / "out").classes == 2
    assert run.main([*words, "--size", "1", "2", "3", "--overwrite"]) == 1
    assert "--size: wanted a side, or height and width, got 1 2 3" in capsys.readouterr().err
    assert run.main(["--dataset", "digits", "--size", "9", *SMALL, "--out", str(tmp_path / "other")]) == 1
    assert "size: " in capsys.readouterr().err and not (tmp_path / "other").exists()
