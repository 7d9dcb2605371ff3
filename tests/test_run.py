"""The command line from end to end on the bundled digits, and what it refuses."""

import csv
import json
import re
import signal
import subprocess
import sys
import urllib.error
from pathlib import Path

import pytest
import run
import torch
from parts import BINARIZE, ESTIMATORS, LIKELIHOODS
from results import provenance

from pyro_vae import evaluate, load
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
    with (out / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    printed = capsys.readouterr().out
    assert f"{test['bound']:.2f} ± {test['standard_error']:.2f} nats per image" in printed and str(out) in printed


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
    test = json.loads((tmp_path / "out/metrics.json").read_text())["test"]
    assert 0 < test["bits_per_dim"] < 30 and test["bits_per_dim_standard_error"] > 0


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


def test_digits_instead_of_mnist_are_named_at_the_start_at_the_end_and_in_the_results(tmp_path, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network in this test")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.delenv("PYRO_VAE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    words = [word for word in SMALL if word != "--quiet"]
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
        (["--particles", "0"], "--particles: wanted at least 1, got 0"),
        (["--scale", "big", "--lik", "normal"], "--scale: wanted 'pixel', 'shared' or a positive number, got 'big'"),
        (["--scale", "-1", "--lik", "normal"], "positive number, got '-1'"),
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
    words = ["--dataset", "digits", "--net", "mlp", "--epochs", "100000", "--out", str(tmp_path / "out")]
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
    assert json.loads((tmp_path / "out/metrics.json").read_text())["interrupted"] is True
    assert torch.load(tmp_path / "out/parameters.pt", weights_only=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_help_reads_well():
    done = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True, check=True)
    for words in ("Train one VAE and measure it", "--lik {bernoulli,", "dimensions of z", "--overwrite"):
        assert words in done.stdout


def test_provenance_names_versions_and_commit():
    found = provenance()
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", found["torch"])
    assert found["git_commit"] is None or re.fullmatch(r"[0-9a-f]{40}\+?", found["git_commit"])
