"""The command line from end to end on the bundled digits, and what it refuses."""

import argparse
import csv
import errno
import io
import json
import re
import shlex
import signal
import subprocess
import sys
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import results
import run
import torch
from evidence import load_run
from parts import BINARIZE, ESTIMATORS, GUIDES, LIKELIHOODS, PRIORS, check_taken, given, home_path

from pyro_vae import analysis, evaluate, files, guides, load, plots
from pyro_vae.config import TAKEN_BY, build_vae, load_vae
from pyro_vae.data.sets import Data, Split
from pyro_vae.files import locked
from pyro_vae.training import fixed_x
from pyro_vae.training.checkpoint import Checkpoints

SCRIPT = Path(run.__file__)
SMALL = ["--net", "mlp", "--hidden", "16", "--epochs", "2", "--quiet"]


def command(tmp_path, *words):
    return run.main(["--dataset", "digits", *SMALL, "--out", str(tmp_path / "out"), *words])


def test_everything_is_written_and_agrees(tmp_path, capsys):
    assert command(tmp_path) == 0
    out = tmp_path / "out"
    metrics = json.loads((out / "metrics.json").read_text())
    pictures = ["aggregate_posterior", "interpolation", "latent_plane", "learning_curves", "manifold"]
    pictures += ["reconstructions", "samples"]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["history.csv", "metrics.json", "parameters.pt", "training.pt", *(f"{name}.png" for name in pictures)]
    )
    assert all((out / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in pictures)
    sizes = {"train": 1297, "valid": 250, "test": 250}
    assert metrics["dataset"] == {"name": "digits", "shape": [1, 8, 8], "note": "", **sizes}
    assert metrics["settings"]["lik"] == "bernoulli" and metrics["settings"]["seed"] == 0
    assert metrics["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert metrics["interrupted"] is False and metrics["best_epoch"] in (1, 2)
    assert metrics["kept_epoch"] == metrics["best_epoch"] and "epochs 1 to 2" in metrics["kept_because"]
    test = metrics["test"]
    assert test["bound"] == pytest.approx(-test["rate"] - test["distortion"]) and test["images"] == 250
    for name in ("Trace_ELBO", "TraceMeanField_ELBO"):
        assert metrics["estimators"][name]["bound"] == pytest.approx(test["bound"], abs=6 * test["standard_error"])
    evidence = metrics["evidence"]
    assert evidence["images"] == 250 and evidence["num_particles"] == 50
    assert test["bound"] < evidence["log_px"] < test["bound"] + 10
    with (out / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    printed = capsys.readouterr().out
    assert f"{test['bound']:.2f} ± {test['standard_error']:.2f} nats per image" in printed and str(out) in printed
    assert ("Pareto k̂ > 0.7" in printed) == (evidence["share_pareto_k_above_0.7"] > 0)


def test_the_saved_parameters_are_those_that_were_measured(tmp_path):
    assert command(tmp_path, "--latent", "3") == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    args = run.parse_arguments([*SMALL, "--latent", "3"])
    data = load("digits")
    vae = build_vae(args, data.train.images)
    vae.load_state_dict(torch.load(tmp_path / "out/parameters.pt", weights_only=True))
    again = evaluate(vae, fixed_x(vae, data.test.images)).summary()
    assert again["bound"] == pytest.approx(metrics["test"]["bound"], abs=1e-5)
    assert not (tmp_path / "out/manifold.png").exists()  # only a plane has one


@pytest.mark.parametrize("lik", [lik for lik in LIKELIHOODS if lik != "bernoulli"])
def test_every_likelihood(tmp_path, lik):
    assert command(tmp_path, "--lik", lik) == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    test = metrics["test"]
    assert 0 < test["bits_per_dim"] < 30 and test["bits_per_dim_standard_error"] > 0
    if lik in ("normal", "logistic"):
        assert 0 <= metrics["share_of_scales_at_bound"] <= 1


@pytest.mark.parametrize(
    "words",
    [
        *(["--binarize", name] for name in BINARIZE),
        *(["--estimator", name, *["--particles", "2"] * (name != "wake-sleep")] for name in ESTIMATORS),
        ["--lik", "normal", "--scale", "shared"],
        ["--lik", "normal", "--scale", "0.1"],
        ["--lik", "categorical", "--bins", "2"],
        ["--particles", "3", "--precision", "bfloat16"],
        ["--net", "conv", "--hidden", "8"],
    ],
    ids=" ".join,
)
def test_options(tmp_path, words):
    assert command(tmp_path, "--epochs", "1", *words) == 0
    assert (tmp_path / "out/metrics.json").is_file()


@pytest.mark.parametrize("words", [*(["--prior", name] for name in PRIORS), *(["--guide", name] for name in GUIDES)])
def test_every_prior_and_guide(tmp_path, capsys, words):
    sizes = {"components": "5", "flow_width": "8"}
    own = [
        f"--{option.replace('_', '-')}={size}"
        for option, size in sizes.items()
        if words[1] in TAKEN_BY[option].get(words[0][2:], ())
    ]
    words = [*words, *own, "--epochs", "1"]
    assert run.main(["--dataset", "digits", *SMALL[:-1], "--out", str(tmp_path / "out"), *words]) == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    closed = metrics["kl_in_closed_form"]
    assert closed == (words[1] in ("standard", "diagonal", "meanfield", "full-rank", "low-rank"))
    assert ("by Monte Carlo: it has no closed form" in capsys.readouterr().out) == (not closed)
    assert 0 <= metrics["active_units"] <= 2 and ("TraceMeanField_ELBO" in metrics["estimators"]) == closed
    assert (len(metrics["rate_per_dimension"]) == 2) if closed else metrics["rate_per_dimension"] is None
    assert (tmp_path / "out/aggregate_posterior.png").is_file() and (tmp_path / "out/samples.png").is_file()


def test_digits_instead_of_mnist_are_named_at_the_start_at_the_end_and_in_the_results(tmp_path, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network in this test")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.delenv("PYRO_VAE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for words in ([word for word in SMALL if word != "--quiet"], [*SMALL, "--overwrite"]):
        assert run.main([*words, "--out", str(tmp_path / "out")]) == 0
        printed = capsys.readouterr().out
        assert printed.count("NOTE: not MNIST but scikit-learn's 8 × 8 digits") == 2
    assert "not MNIST" in json.loads((tmp_path / "out/metrics.json").read_text())["dataset"]["note"]


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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--latent", "0"], "latent must be a whole number of at least 1, got 0"),
        (["--lik", "categorical", "--bins", "1"], "bins: wanted a whole number from 2 to 256, got 1"),
        (["--lik", "categorical", "--bins", "300"], "from 2 to 256, got 300"),
        (["--lr", "-0.001"], "lr: wanted a positive number, got -0.001"),
        (["--batch", "1298"], r"batch_size: wanted 1 to 1297 \(the training images\), got 1298"),
        (["--batch", "0"], "batch_size: wanted 1 to 1297"),
        (["--epochs", "0"], "epochs: wanted"),
        (["--evidence", "-1"], "--evidence: wanted a number of particles, or 0 for no log p"),
        (["--particles", "0"], "--particles: wanted at least 1, got 0"),
        (["--scale", "big", "--lik", "normal"], "--scale: wanted 'pixel', 'shared' or a positive number, got 'big'"),
        (["--scale", "-1", "--lik", "normal"], "positive number, got '-1'"),
        (["--scale", "inf", "--lik", "normal"], "positive number, got 'inf'"),
        (["--hidden", "8", "0"], r"hidden: wanted positive whole numbers, got"),
        (["--dataset", "frey", "--data-dir", "/nowhere/at/all"], "frey was not found"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_refused_and_leaves_nothing(tmp_path, capsys, words, message):
    assert command(tmp_path, *words) == 1
    assert re.search(f"error: .*{message}", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_where_there_is_none(tmp_path, capsys):
    assert command(tmp_path, "--device", "cuda") == 1
    assert "torch sees no CUDA device" in capsys.readouterr().err


def test_an_unknown_likelihood(capsys):
    with pytest.raises(SystemExit, match="2"):
        run.main(["--lik", "poisson"])
    assert "invalid choice: 'poisson'" in capsys.readouterr().err


def test_an_out_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    assert command(tmp_path, "--out", str(tmp_path / "file/out")) == 1
    assert "cannot be written" in capsys.readouterr().err
    assert command(tmp_path, "--out", str(tmp_path / "file")) == 1
    assert "not a run's results" in capsys.readouterr().err and (tmp_path / "file").read_text() == "kept"


def test_ctrl_c_saves_what_was_trained(tmp_path):
    words = ["--dataset", "digits", "--net", "mlp", "--epochs", "100000", "--engine", "eager"]
    words += ["--out", str(tmp_path / "out")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A process started in the background ignores Ctrl-C, and would hand that on.
    usual = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    with subprocess.Popen([sys.executable, SCRIPT, *words], **pipes, **usual) as process:
        try:
            for line in process.stderr:  # universal newlines: each update of the progress bar is a line
                if "epoch 3" in line:
                    break
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 130 and "interrupted: what was trained so far is saved in" in out
    again = shlex.join(["python", str(SCRIPT), *words, "--resume"])
    assert out.rstrip().endswith(f"go on with: {again}".replace("python", Path(sys.executable).name, 1))
    assert (tmp_path / "out/checkpoint.pt").is_file()
    assert json.loads((tmp_path / "out/metrics.json").read_text())["interrupted"] is True
    assert torch.load(tmp_path / "out/parameters.pt", weights_only=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


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


def state_of(folder):
    return torch.load(folder / "parameters.pt", weights_only=True)


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


def test_a_longer_run_that_is_killed_goes_on_too_and_the_shorter_results_stay_until_then(tmp_path, monkeypatch):
    words = ["--schedule", "constant", "--evidence", "0"]
    assert command(tmp_path, *words, "--epochs", "1") == 0
    with monkeypatch.context() as patch:
        patch.setattr(run, "measure", lambda *args: signal.raise_signal(signal.SIGTERM))
        assert command(tmp_path, *words, "--resume") == 143
    metrics = tmp_path / "out/metrics.json"
    assert json.loads(metrics.read_text())["settings"]["epochs"] == 1
    assert command(tmp_path, *words, "--resume") == 0
    assert json.loads(metrics.read_text())["settings"]["epochs"] == 2


def test_a_longer_run_has_the_schedule_of_its_length_and_says_so(tmp_path):
    assert command(tmp_path, "--evidence", "0") == 0
    with pytest.warns(UserWarning, match="the schedule is now that of the new number of epochs"):
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
    (tmp_path / "out" / run.TRAINING).unlink()  # as earlier versions left a folder
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
        lambda: (out / run.TRAINING).write_bytes(b"damaged"),
    ):
        change()
        for _ in range(2):
            assert run.main([*words, "--resume", "--epochs", "4"]) == 1
            assert "has ended after 2 epochs" in capsys.readouterr().out
        np.save(f"{data}/train.npy", images)
        assert run.main([*words, "--resume"]) == 0
        files |= {run.TRAINING: (out / run.TRAINING).read_bytes()}
        assert {path.name: path.read_bytes() for path in out.iterdir()} == files


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
    monkeypatch.setattr(run, "measure", lambda *args: signal.raise_signal(signal.SIGTERM))
    assert command(tmp_path) == 143
    assert "interrupted; go on with: " in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"checkpoint.pt"}
    monkeypatch.undo()
    assert command(tmp_path, "--resume") == 0


def test_the_results_of_a_finished_run_are_kept_until_the_next_is_whole(tmp_path, monkeypatch):
    assert command(tmp_path, "--seed", "1") == 0
    with monkeypatch.context() as patch:
        patch.setattr(run, "measure", lambda *args: signal.raise_signal(signal.SIGTERM))
        assert command(tmp_path, "--seed", "2", "--overwrite") == 143
    assert json.loads((tmp_path / "out/metrics.json").read_text())["settings"]["seed"] == 1
    assert command(tmp_path, "--seed", "2", "--resume") == 0
    assert json.loads((tmp_path / "out/metrics.json").read_text())["settings"]["seed"] == 2


def test_two_runs_into_one_folder(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out"):
        assert command(tmp_path) == 1
        assert "another run is writing to" in capsys.readouterr().err
    assert command(tmp_path) == 0


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


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_steps_that_are_not_finite_are_counted_in_the_metrics(tmp_path, capsys, monkeypatch):
    def spoil(self, x):
        return finite(self, x * torch.nan if spoil.behind in (2, 3) else x)

    def due(self, step):
        spoil.behind = step
        return False

    finite, spoil.behind = guides.MeanField.forward, 0
    monkeypatch.setattr(guides.MeanField, "forward", spoil)
    monkeypatch.setattr(Checkpoints, "due", due)
    assert command(tmp_path, "--skip-non-finite", "2") == 0
    assert json.loads((tmp_path / "out/metrics.json").read_text())["skipped_steps"] == 2
    spoil.behind = 0
    assert command(tmp_path, "--overwrite") == 1
    assert re.search("error: .*in epoch 1, step 3, under Trace_ELBO: .* site 'z' of the guide", capsys.readouterr().err)


def test_help_reads_well():
    done = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True, check=True)
    for words in ("Train one VAE and measure it", "--lik {bernoulli,", "dimensions of z", "--overwrite", "--resume"):
        assert words in done.stdout


def test_provenance_names_versions_and_commit():
    found = results.provenance()
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", found["torch"])
    assert found["git_commit"] is None or re.fullmatch(r"[0-9a-f]{40}\+?", found["git_commit"])


def test_the_commit_is_that_of_the_beginning_and_a_move_is_said(monkeypatch):
    assert "git_commit_at_the_end" not in results.provenance()
    assert results.installed("no-package-of-this-name") is None
    monkeypatch.setattr(results, "BEGAN_AT", "a" * 40)
    monkeypatch.setattr(results, "git_commit", lambda: "b" * 40 + "+")
    found = results.provenance()
    assert (found["git_commit"], found["git_commit_at_the_end"]) == ("a" * 40, "b" * 40 + "+")


def own_images(folder, sizes, shape=(1, 8, 8), labels=None, pixels=None):
    """A folder of images for --dataset; ``labels``: those of each split by name, repeated."""
    draw = np.random.RandomState(0)
    folder.mkdir()
    for split, size in zip(("train", "valid", "test"), sizes):
        random = draw.randint(256, size=(size, *shape)).astype(np.uint8)
        np.save(folder / f"{split}.npy", random if pixels is None else np.full_like(random, pixels))
        if split in (labels or {}):
            np.save(folder / f"{split}_labels.npy", np.resize(labels[split], size))
    return str(folder)


def twice(tmp_path, capsys, dataset, *words):
    """Runs on a dataset, then resumes what has ended, which only reports; the metrics, and what was printed."""
    words = ["--dataset", dataset, *SMALL, "--evidence", "0", "--out", str(tmp_path / "out"), *words]
    assert run.main(words) == 0
    printed, metrics = capsys.readouterr().out, (tmp_path / "out/metrics.json").read_text()
    assert run.main([*words, "--resume"]) == 0
    assert capsys.readouterr().out == printed and (tmp_path / "out/metrics.json").read_text() == metrics
    return json.loads(metrics), printed


def drawn(tmp_path):
    return {path.stem for path in (tmp_path / "out").glob("*.png")}


@pytest.mark.parametrize("labels", [range(1, 27), range(47), [3, 10**6], range(1000)], ids=len)
def test_any_number_of_classes(tmp_path, capsys, labels):
    every = {split: list(labels) for split in ("train", "valid", "test")}
    metrics, printed = twice(tmp_path, capsys, own_images(tmp_path / "letters", (1200, 20, 100), labels=every))
    assert metrics["left_out"] == {} and "left out" not in printed
    assert drawn(tmp_path) == set(run.PICTURES) and 0 <= metrics["knn_accuracy"] <= 1


@pytest.mark.parametrize("split", ["train", "test"])
def test_labels_of_one_split_alone_give_no_accuracy_and_cost_nothing_else(tmp_path, capsys, split):
    metrics, printed = twice(tmp_path, capsys, own_images(tmp_path / "parts", (60, 20, 20), labels={split: [0, 1]}))
    other = {"train": "test", "test": "train"}[split]
    assert list(metrics["left_out"]) == ["knn_accuracy"] and "knn_accuracy" not in metrics
    assert (
        f"left out             knn_accuracy: it takes labels of training and test images, and the {other} images "
        "have none\n" in printed
    )
    assert drawn(tmp_path) == set(run.PICTURES)


@pytest.mark.parametrize("channels", [2, 4])
def test_images_whose_channels_are_no_colours(tmp_path, capsys, channels):
    metrics, _ = twice(tmp_path, capsys, own_images(tmp_path / "rgba", (60, 20, 20), (channels, 8, 8)))
    assert metrics["left_out"] == {} and drawn(tmp_path) == set(run.PICTURES)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_the_layout_that_an_error_asks_for(tmp_path, capsys, layout):
    """Both answers to the question can be given, and the evidence is measured on the images that were trained on."""
    shape = (8, 8, 3)
    data = own_images(tmp_path / "asked", (60, 20, 20), shape)
    assert run.main(["--dataset", data, *SMALL, "--out", str(tmp_path / "out")]) == 1
    assert "or by run.py --layout; or," in capsys.readouterr().err
    metrics, _ = twice(tmp_path, capsys, data, "--layout", layout)
    wanted = list(shape) if layout == "NCHW" else [3, 8, 8]
    assert metrics["dataset"]["shape"] == wanted and drawn(tmp_path) == set(run.PICTURES)
    _, pixels, _ = load_run(tmp_path / "out", torch.device("cpu"))
    assert list(pixels.shape[1:]) == wanted
    assert command(tmp_path, "--layout", "NCHW", "--overwrite") == 1
    assert 'layout: wanted "NCHW" or "NHWC" for a folder, else None' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sizes", "left_out"),
    [
        (
            (12, 1, 1),
            {"active_units", "knn_accuracy", "latent_plane.png", "aggregate_posterior.png", "interpolation.png"},
        ),
        ((1, 1, 2), {"knn_accuracy"}),
        ((15, 2, 2), set()),
    ],
)
def test_few_images(tmp_path, capsys, sizes, left_out):
    every = {split: [0, 1, 2] for split in ("train", "valid", "test")}
    data = own_images(tmp_path / "few", sizes, labels=every)
    metrics, printed = twice(tmp_path, capsys, data, "--lik", "logistic", "--evidence", "3")
    assert set(metrics["left_out"]) == left_out and printed.count("left out") == len(left_out)
    assert metrics["settings"]["batch"] == sizes[0]
    single = sizes[2] == 1
    for entry in (metrics["test"], metrics["evidence"]):
        assert (entry["standard_error"] is None) == single == (entry["bits_per_dim_standard_error"] is None)
    assert re.search(r"^test bound +-[\d.]+ nats per image, 1 images$", printed, re.MULTILINE) or not single


@pytest.mark.parametrize(("lik", "pixels"), [("bernoulli", 0), ("normal", 255), ("beta", 0)])
def test_images_that_are_all_the_same(tmp_path, capsys, lik, pixels):
    data = own_images(tmp_path / "same", (30, 5, 5), labels={"train": [0, 1], "test": [0, 1]}, pixels=pixels)
    metrics, _ = twice(tmp_path, capsys, data, "--lik", lik, "--latent", "3")
    assert metrics["left_out"] == {}


def test_what_cannot_be_measured_or_drawn_is_named_and_costs_nothing_else(tmp_path, capsys, monkeypatch):
    def fails(*args, **kwargs):
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(analysis, "knn_accuracy", fails)
    monkeypatch.setattr(run, "evaluate", fails)
    monkeypatch.setattr(run, "log_evidence", fails)
    monkeypatch.setattr(run, "repeated_bound", lambda *args: {"bound": float("nan")})
    monkeypatch.setattr(plots, "manifold", fails)
    metrics, printed = twice(tmp_path, capsys, "digits", "--evidence", "3")
    reasons = dict.fromkeys(("test", "evidence", "knn_accuracy", "manifold.png"), "division by zero")
    assert {**reasons, "estimators": metrics["left_out"]["estimators"]} == metrics["left_out"]
    assert "not JSON compliant" in metrics["left_out"]["estimators"] and not set(metrics) & set(metrics["left_out"])
    for name, why in metrics["left_out"].items():
        assert f"left out             {name}: {why}\n" in printed
    assert drawn(tmp_path) == set(run.PICTURES) - {"manifold"}
    assert not Checkpoints(tmp_path / "out").exist()


def test_ctrl_c_in_a_measurement_is_no_failure_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "repeated_bound", lambda *args: signal.raise_signal(signal.SIGTERM))
    assert command(tmp_path) == 143
    assert Checkpoints(tmp_path / "out").exist() and not (tmp_path / "out/metrics.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scale", "0.1"], "--scale: ignored beside --lik bernoulli; write --lik normal, or leave --scale out"),
        (["--scale", "pixel"], "--scale: ignored beside --lik bernoulli"),  # the default, and yet given
        (["--lik", "normal", "--bins", "4"], "--bins: ignored beside --lik normal; write --lik categorical"),
        (["--lik", "beta", "--binarize", "threshold"], "--binarize: ignored beside --lik beta; write --lik bernoulli"),
        (["--components", "5"], "--components: ignored beside --prior standard; write --prior mixture or vamp"),
        (["--guide", "full-rank", "--rank", "2"], "--rank: ignored beside --guide full-rank; write --guide low-rank"),
        (
            ["--flow-depth", "3", "--prior", "vamp"],
            "--flow-depth: ignored beside --prior vamp --guide meanfield; write "
            "--prior autoregressive or spline, or --guide inverse-autoregressive or planar, or leave --flow-depth out",
        ),
        (["--flow-width", "8"], "--flow-width: ignored beside"),
        (["--channels", "8"], "--channels: ignored beside --net mlp; write --net conv"),
        (
            ["--estimator", "wake-sleep", "--particles", "5"],
            "--particles: ignored beside --estimator wake-sleep; write --estimator trace or meanfield",
        ),
        (["--scal", "0.1"], "--scale: ignored beside --lik bernoulli"),  # as argparse lets one shorten it
        (
            ["--recipe", "fast", "--prior", "standard", "--flow-width", "8"],
            "--flow-width: ignored beside --prior standard",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_option_that_is_ignored_is_refused(tmp_path, capsys, words, message):
    assert command(tmp_path, *words) == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert list(tmp_path.iterdir()) == []


def test_what_takes_an_option_is_told_and_helps(capsys):
    """Each cure, followed, is no longer refused."""
    parser = argparse.ArgumentParser()
    for option, takers in run.OPTIONS_TAKEN_BY.items():
        for slot, names in takers.items():
            for name in names:
                check_taken(
                    [option],
                    {
                        "lik": ["bernoulli"],
                        "prior": ["standard"],
                        "guide": ["meanfield"],
                        "net": ["mlp"],
                        "estimator": ["wake-sleep"],
                        slot: [name],
                    },
                    run.OPTIONS_TAKEN_BY,
                )
    parser.add_argument("--hidden", nargs="*", default=[4])
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    assert given(parser, []) == set() and given(parser, ["--hidden", "--seed", "0"]) == {"hidden", "seed"}


def test_options_that_the_recipe_sets_are_not_given(tmp_path):
    assert run.parse_arguments(["--recipe", "fast", "--prior", "standard"]).flow_width == 128
    assert run.parse_arguments(["--recipe", "fast", "--net", "mlp"]).channels == [16, 32]


def images_of(count, *shape):
    split = Split(torch.zeros(count, *shape, dtype=torch.uint8))
    return Data("some", split, split, split)


@pytest.mark.parametrize(
    ("words", "images", "expected"),
    [
        ([], (50_000, 1, 28, 28), ("conv", "relu", [256, 256], 10, 256, 5e-3)),
        ([], (1297, 1, 8, 8), ("mlp", "silu", [256, 256, 256], 100, 100, 5e-3)),
        ([], (6000, 3, 8, 8), ("mlp", "silu", [256, 256, 256], 10, 100, 5e-3)),
        ([], (1565, 1, 28, 20), ("conv", "relu", [256, 256], 100, 256, 5e-3)),
        ([], (60, 1, 8, 8), ("mlp", "silu", [256, 256, 256], 100, 60, 5e-3)),
        (["--net", "mlp"], (1297, 1, 8, 8), ("mlp", "relu", [400], 100, 256, 5e-3)),
        (["--net", "conv", "--latent", "9"], (1297, 1, 8, 8), ("conv", "relu", [400], 100, 256, 5e-3)),
        (["--channels", "8"], (1297, 1, 8, 8), ("conv", "relu", [256, 256], 100, 256, 5e-3)),
        (["--hidden", "7", "--activation", "tanh"], (1297, 1, 8, 8), ("mlp", "tanh", [7], 100, 100, 5e-3)),
        (["--batch", "32", "--lr", "0.1", "--epochs", "3"], (1297, 1, 8, 8), ("mlp", "silu", [256] * 3, 3, 32, 0.1)),
        (["--recipe", "fast"], (1297, 1, 8, 8), ("conv", "silu", [256], 14, 128, 5e-3)),
        (["--recipe", "small"], (50_000, 1, 28, 28), ("mlp", "silu", [256, 256, 256], 10, 100, 5e-3)),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_defaults_suit_the_images_and_the_command_line_holds(words, images, expected):
    args = run.parse_arguments(words)
    run.fill_in(args, images_of(*images))
    assert tuple(getattr(args, name) for name in ("net", "activation", "hidden", "epochs", "batch", "lr")) == expected


def test_the_default_on_small_images_uses_both_dimensions_and_says_so(tmp_path, capsys):
    words = ["--dataset", "digits", "--epochs", "15", "--evidence", "0", "--quiet", "--out", str(tmp_path / "out")]
    assert run.main(words) == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["active_units"] == 2 and min(metrics["rate_per_dimension"]) > 0.5
    assert "collapsed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("active", "rates", "says", "warns"),
    [
        (0, 0.01, "0 of 2 (variance of the code above 0.01)", "collapsed: 2 of 2 latent dimensions"),
        (0, 8.67, "0 of 2 (variance of the code above 0.01)", None),
        (0, [4.1, 4.57], "0 of 2 (variance of the code above 0.01); rate per unit 4.57, 4.10 nats", None),
        (2, [1.5, 1.4], "2 of 2 (variance of the code above 0.01); rate per unit 1.50, 1.40 nats", None),
        (1, [0.001, 2.0], "rate per unit 2.00, 0.00 nats, 1 below 0.05", "collapsed: 1 of 2 latent dimensions"),
        (0, [0.001, 0.0], "rate per unit 0.00, 0.00 nats, 2 below 0.05", "collapsed: 2 of 2 latent dimensions"),
        (
            3,
            [2.0] * 3 + [0.0] * 27,
            "3 of 30 (variance of the code above 0.01); rate per unit 2.00 to 0.00 nats, 27 below",
            None,
        ),
        (0, [0.0] * 30, "30 below 0.05", "collapsed: 30 of 30 latent dimensions"),
    ],
)
def test_active_units_do_not_mislead(active, rates, says, warns):
    """A number instead of the rates: that of all units together, where the KL has no closed form."""
    alone = isinstance(rates, float)
    settings = {"latent": 2 if alone else len(rates), "activation": "relu"}
    rows = list(
        run.unit_rows(
            {
                "active_units": active,
                "rate_per_dimension": None if alone else rates,
                "test": {"rate": rates},
                "settings": settings,
            }
        )
    )
    assert rows[0][0] == "active units" and says in rows[0][1]
    assert len(rows) == 1 + bool(warns) and (not warns or (rows[1][0] == "WARNING" and warns in rows[1][1]))


def test_the_home_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert run.main(["--dataset", "digits", *SMALL, "--epochs", "1", "--evidence", "0", "--out=~/results"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
    assert home_path("~") == tmp_path and home_path("a/~") == Path("a/~")
    with pytest.raises(SystemExit, match="2"):
        run.main(["--out", "~nobody-of-that-name/results"])
    assert re.search("argument --out: ~nobody-of-that-name/results: .*; write ", capsys.readouterr().err)
    assert load_vae("~/results").prior().event_shape == (2,)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_that_lacks_characters(tmp_path, monkeypatch, encoding):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    assert command(tmp_path, "--lik", "normal", "--evidence", "30", "--latent", "8") == 0
    with pytest.raises(SystemExit, match="0"):
        run.main(["--help"])
    sys.stdout.flush()
    printed = raw.getvalue().decode(encoding)
    assert ("k-hat > 0.7" in printed) and ("+-" if encoding == "ascii" else "±") in printed


def test_an_error_is_one_line(tmp_path, capsys, monkeypatch):
    def fails(*args, **kwargs):
        raise ValueError("found invalid values:\ntensor([[[nan, nan],\n" + "         [nan, nan]]])\n" * 1000)

    monkeypatch.setattr(run, "fit", fails)
    assert command(tmp_path) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: found invalid values: tensor([[[nan, nan], [nan") and said.count("\n") == 1
    assert len(said) < 120


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


def test_a_stopped_run_outlives_a_mistaken_one_in_its_place(tmp_path, capsys):
    out = tmp_path / "out"
    Checkpoints(out).folder.mkdir()
    Checkpoints(out).save({"step": 3})
    assert command(tmp_path, "--overwrite", "--batch", "99999") == 1
    assert Checkpoints(out, resume=True).load() == {"step": 3}
    assert command(tmp_path, "--overwrite") == 0
    assert not Checkpoints(out).exist()


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_trained(tmp_path, capsys, monkeypatch):
    def read_only(dir):
        raise OSError(errno.EROFS, "Read-only file system")

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(results.tempfile, "TemporaryFile", read_only)
    assert command(tmp_path) == 1
    assert re.search("error: .*out cannot be written .*Read-only", capsys.readouterr().err)


def test_a_folder_of_arrays_gives_what_the_same_images_in_memory_do(tmp_path):
    digits = load("digits")
    for split in ("train", "valid", "test"):
        part = getattr(digits, split)
        np.save(tmp_path / f"{split}.npy", part.images)
        np.save(tmp_path / f"{split}_labels.npy", part.labels)
    results = []
    for name in ("digits", str(tmp_path)):
        assert run.main(["--dataset", name, *SMALL, "--evidence", "0", "--out", str(tmp_path / f"{len(results)}")]) == 0
        results.append(json.loads((tmp_path / f"{len(results)}/metrics.json").read_text()))
    for number in ("test", "knn_accuracy", "active_units", "rate_per_dimension"):
        assert results[0][number] == results[1][number]


def test_a_recipe_gives_other_defaults_and_the_command_line_holds():
    plain, fast = run.parse_arguments([]), run.parse_arguments(["--recipe", "fast", "--epochs", "3"])
    assert fast.epochs == 3 and plain.recipe is None
    assert {name: getattr(fast, name) for name in run.RECIPES["fast"]} == {**run.RECIPES["fast"], "epochs": 3}
    assert set(vars(plain)) >= set(run.RECIPES["fast"]) and plain.prior == "standard"
    spelled = vars(run.parse_arguments(run.words_of("fast").split()))
    assert {name: spelled[name] for name in run.RECIPES["fast"]} == run.RECIPES["fast"]


def test_a_run_that_was_stopped_before_it_was_saved_begins_anew(tmp_path, capsys):
    assert command(tmp_path, "--evidence", "0") == 0
    path = tmp_path / "out/metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "interrupted": True}))
    assert command(tmp_path, "--evidence", "0") == 1 and "holds another run's results" in capsys.readouterr().err
    assert command(tmp_path, "--evidence", "0", "--resume") == 0
    assert "stopped before it was saved; it begins anew" in capsys.readouterr().out
    assert json.loads(path.read_text())["interrupted"] is False
