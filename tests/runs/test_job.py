"""Runs from end to end on the bundled digits, and what they refuse."""

import csv
import errno
import json
import re
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_runs import SMALL, command, few_digits

from experiments import run
from pyro_vae import evaluate, guides, load
from pyro_vae.config import BINARIZE, ESTIMATORS, GUIDES, LIKELIHOODS, PRIORS, TAKEN_BY, build_vae
from pyro_vae.runs import arguments
from pyro_vae.runs.origins import digest
from pyro_vae.training import fixed_x
from pyro_vae.training.checkpoint import Checkpoints

SCRIPT = Path(run.__file__)
DISCRETE = ["disarm", "straight-through", "reinmax"]  # the commands' parts have no discrete latent variables
FITTING = [name for name in ESTIMATORS if name not in DISCRETE]


@pytest.mark.usefixtures("rendered")
@pytest.mark.slow
def test_everything_is_written_and_agrees(tmp_path, capsys):
    assert command(tmp_path) == 0
    out = tmp_path / "out"
    metrics = json.loads((out / "metrics.json").read_text())
    pictures = ["aggregate_posterior", "interpolation", "latent_plane", "learning_curves", "manifold"]
    pictures += ["reconstructions", "samples"]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["history.csv", "metrics.json", "model.safetensors", "training.pt", *(f"{name}.png" for name in pictures)]
    )
    assert all((out / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in pictures)
    sizes, data = {"train": 1297, "valid": 250, "test": 250}, load("digits")
    digests = {f"{split}_digest": digest(getattr(data, split)) for split in sizes}
    assert metrics["dataset"] == {"name": "digits", "shape": [1, 8, 8], "note": "", **sizes, **digests}
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


@pytest.mark.slow
def test_the_saved_parameters_are_those_that_were_measured(tmp_path):
    assert command(tmp_path, "--latent", "3") == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    args = arguments.parse_arguments([*SMALL, "--latent", "3"])
    data = load("digits")
    vae = build_vae(args, data.train.images)
    vae.load_state_dict(load_file(tmp_path / "out/model.safetensors"))
    again = evaluate(vae, fixed_x(vae, data.test.images)).summary()
    assert again["bound"] == pytest.approx(metrics["test"]["bound"], abs=1e-5)
    assert not (tmp_path / "out/manifold.png").exists()  # only a plane has one


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
@pytest.mark.parametrize("lik", [lik for lik in LIKELIHOODS if lik != "bernoulli"])
def test_every_likelihood(tmp_path, lik):
    assert command(tmp_path, "--dataset", few_digits(tmp_path / "few"), "--lik", lik) == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    test = metrics["test"]
    assert 0 < test["bits_per_dim"] < 30 and test["bits_per_dim_standard_error"] > 0
    if lik in ("normal", "logistic"):
        assert 0 <= metrics["share_of_scales_at_bound"] <= 1


@pytest.mark.parametrize("name", DISCRETE)
def test_an_estimator_of_other_sites_is_refused(tmp_path, capsys, name):
    assert command(tmp_path, "--estimator", name, "--particles", "2") == 1
    assert re.search("(site 'z'|no site) of the guide is (no )?Bernoulli", capsys.readouterr().err)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        *(["--binarize", name] for name in BINARIZE),
        *(["--estimator", name, *["--particles", "2"] * (name != "wake-sleep")] for name in FITTING),
        ["--lik", "normal", "--scale", "shared"],
        ["--lik", "normal", "--scale", "0.1"],
        ["--lik", "categorical", "--bins", "2"],
        ["--particles", "3", "--precision", "bfloat16"],
        ["--net", "conv", "--hidden", "8"],
    ],
    ids=" ".join,
)
def test_options(tmp_path, words):
    assert command(tmp_path, "--dataset", few_digits(tmp_path / "few"), "--epochs", "1", *words) == 0
    assert (tmp_path / "out/metrics.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("words", [*(["--prior", name] for name in PRIORS), *(["--guide", name] for name in GUIDES)])
def test_every_prior_and_guide(tmp_path, capsys, words):
    sizes = {"components": "5", "flow_width": "8"}
    own = [
        f"--{option.replace('_', '-')}={size}"
        for option, size in sizes.items()
        if words[1] in TAKEN_BY[option].get(words[0][2:], ())
    ]
    few = ["--dataset", few_digits(tmp_path / "few"), *SMALL[:-1], "--epochs", "1", "--out", str(tmp_path / "out")]
    assert run.main([*few, *words, *own]) == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    closed = metrics["kl_in_closed_form"]
    assert closed == (words[1] in ("standard", "diagonal", "meanfield", "full-rank", "low-rank"))
    assert ("by Monte Carlo: it has no closed form" in capsys.readouterr().out) == (not closed)
    assert 0 <= metrics["active_units"] <= 2 and ("TraceMeanField_ELBO" in metrics["estimators"]) == closed
    assert (len(metrics["rate_per_dimension"]) == 2) if closed else metrics["rate_per_dimension"] is None
    assert (tmp_path / "out/aggregate_posterior.png").is_file() and (tmp_path / "out/samples.png").is_file()


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--latent", "0"], "latent: wanted a whole number of at least 1, got 0"),
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
        (["--hidden", "8", "0"], r"hidden: wanted a whole number of at least 1, got 0"),
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


def test_an_out_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    assert command(tmp_path, "--out", str(tmp_path / "file/out")) == 1
    assert "cannot be written" in capsys.readouterr().err
    assert command(tmp_path, "--out", str(tmp_path / "file")) == 1
    assert "not a run's results" in capsys.readouterr().err and (tmp_path / "file").read_text() == "kept"


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Encountered NaN:UserWarning")
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


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_trained(tmp_path, capsys, monkeypatch):
    def read_only(dir):
        raise OSError(errno.EROFS, "Read-only file system")

    (tmp_path / "out").mkdir()
    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    assert command(tmp_path) == 1
    assert re.search("error: .*out cannot be written .*Read-only", capsys.readouterr().err)


@pytest.mark.slow
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
