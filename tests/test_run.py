"""The command line from end to end on the bundled digits, and what it refuses."""

import csv
import errno
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
import run
import torch
from parts import BINARIZE, ESTIMATORS, GUIDES, LIKELIHOODS, PRIORS
from results import provenance

from pyro_vae import checkpoint, evaluate, guides, load
from pyro_vae.checkpoint import Checkpoints, locked
from pyro_vae.parts import build_vae
from pyro_vae.training import fixed_x

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
        ["history.csv", "metrics.json", "parameters.pt", *(f"{name}.png" for name in pictures)]
    )
    assert all((out / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in pictures)
    sizes = {"train": 1297, "valid": 250, "test": 250}
    assert metrics["dataset"] == {"name": "digits", "shape": [1, 8, 8], "note": "", **sizes}
    assert metrics["settings"]["lik"] == "bernoulli" and metrics["settings"]["seed"] == 0
    assert metrics["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert metrics["interrupted"] is False and metrics["best_epoch"] in (1, 2)
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
        *(["--estimator", name, "--particles", "2"] for name in ESTIMATORS),
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
    words = [*words, "--components", "5", "--flow-width", "8", "--epochs", "1"]
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

        patch.setattr(checkpoint, "_write", full)
        assert command(tmp_path) == 1
    assert "No space left on device); what was saved before is untouched: free some space" in capsys.readouterr().err
    assert command(tmp_path, "--resume") == 0


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_steps_that_are_not_finite_are_counted_in_the_metrics(tmp_path, capsys, monkeypatch):
    def spoil(self, x):
        spoil.calls += 1
        return finite(self, x * torch.nan if spoil.calls in (4, 5) else x)

    finite, spoil.calls = guides.MeanField.forward, 0
    monkeypatch.setattr(guides.MeanField, "forward", spoil)
    assert command(tmp_path, "--skip-non-finite", "2") == 0
    assert json.loads((tmp_path / "out/metrics.json").read_text())["skipped_steps"] == 2
    spoil.calls = 0
    assert command(tmp_path, "--overwrite") == 1
    assert re.search("error: .*in epoch 1, step 3, under Trace_ELBO: .* site 'z' of the guide", capsys.readouterr().err)


def test_help_reads_well():
    done = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True, check=True)
    for words in ("Train one VAE and measure it", "--lik {bernoulli,", "dimensions of z", "--overwrite", "--resume"):
        assert words in done.stdout


def test_provenance_names_versions_and_commit():
    found = provenance()
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", found["torch"])
    assert found["git_commit"] is None or re.fullmatch(r"[0-9a-f]{40}\+?", found["git_commit"])


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
    monkeypatch.setattr(run.tempfile, "TemporaryFile", read_only)
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
