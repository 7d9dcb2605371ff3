"""Likelihoods compared on the digits: what is ranked and what never is, what goes on, and what failed."""

import json

import pytest
import torch

from experiments import compare_likelihoods as experiment
from experiments.likelihoods.families import RUNS
from experiments.likelihoods.measurement import BATCH
from experiments.likelihoods.report import ranking
from pyro_vae import evaluate
from pyro_vae.likelihoods import Beta
from pyro_vae.runs.bounds import load_run
from pyro_vae.training import fixed_x

pytestmark = pytest.mark.slow

FEW = [
    "--dataset",
    "digits",
    "--net",
    "mlp",
    "--hidden",
    "16",
    "--latent",
    "2",
    "--epochs",
    "1",
    "--evidence",
    "3",
    "--images",
    "20",
    "--quiet",
]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    words = ["--families", "beta", "categorical-4", "bernoulli-dynamic", "--seeds", "0", "1", "--out", str(out)]
    assert experiment.main([*FEW, *words]) == 0
    return out, [*FEW, *words]


def test_grey_levels_are_ranked_by_bits_and_black_and_white_never_is(compared):
    out, _ = compared
    families = json.loads((out / "likelihoods.json").read_text())["families"]
    assert {name: family["unit"] for name, family in families.items()} == {
        "beta": "bits/dim",
        "categorical-4": "bits/dim",
        "bernoulli-dynamic": "nats",
    }
    assert sorted(family["rank"] for name, family in families.items() if name != "bernoulli-dynamic") == [1, 2]
    assert families["bernoulli-dynamic"]["rank"] is None
    first, second = ranking(families)
    assert families[first]["log_px"]["mean"] < families[second]["log_px"]["mean"]
    assert families["categorical-4"]["least"] == 6.0 and families["beta"]["least"] is None  # log2(256 / 4)
    for family in families.values():
        assert family["seeds"] == [0, 1] and len(family["knn_accuracy"]["values"]) == 2
        assert all(0 <= value <= 1 for value in family["linear_probe_accuracy"]["values"])
        assert family["bound"]["images"] == 250 and family["log_px"]["images"] == 20
    text = (out / "likelihoods.txt").read_text()
    row = next(line for line in text.splitlines() if "Bernoulli, dynamic" in line)
    assert row.startswith(" ")  # without a rank
    for name in ("likelihoods.png", "likelihood_pictures.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_a_run_is_a_folder_that_the_evidence_experiment_takes(compared):
    folder = compared[0] / RUNS / "beta-seed0"
    vae, rows, metrics = load_run(folder, torch.device("cpu"))
    assert isinstance(vae.likelihood, Beta) and len(rows) == 250
    bound = evaluate(vae, fixed_x(vae, rows), batch_size=BATCH).bound.mean().item()
    assert bound == pytest.approx(metrics["results"]["nats"]["bound"]["mean"], rel=1e-6)


def test_what_is_there_is_not_trained_again_and_other_settings_are_refused(compared, monkeypatch, capsys):
    words = compared[1]
    monkeypatch.setattr(experiment, "trained", lambda *args, **kwargs: pytest.fail("trained again"))
    assert experiment.main(words) == 0
    assert experiment.main([*words, "--latent", "3"]) == 1
    assert "holds a run with settings latent = 2, wanted 3" in capsys.readouterr().err


def test_what_fails_after_the_training_costs_nothing_else(tmp_path, compared, monkeypatch, capsys):
    def fails(*args):
        raise ZeroDivisionError

    words = [*compared[1][:-5], "--families", "beta", "--seeds", "0", "--out", str(tmp_path)]
    monkeypatch.setattr(experiment, "strips", fails)
    assert experiment.main(words) == 0
    assert "Beta, seed 0: left out: pictures: ZeroDivisionError" in capsys.readouterr().out
    found = json.loads((tmp_path / RUNS / "beta-seed0/metrics.json").read_text())
    assert found["failed"] is None and found["results"]["knn_accuracy"] > 0
    monkeypatch.setattr(experiment, "measure", fails)
    assert experiment.main([*words, "--overwrite"]) == 0
    assert "Beta, seed 0: ZeroDivisionError" in capsys.readouterr().out
    assert (tmp_path / RUNS / "beta-seed0/model.safetensors").is_file()


def test_a_run_that_failed_is_reported_as_failed(compared, monkeypatch):
    out, words = compared

    def diverges(*args, **kwargs):
        raise experiment.NonFiniteLoss("the loss became nan in epoch 1")

    monkeypatch.setattr(experiment, "trained", diverges)
    folder = out.parent / "failed"
    words = [*words[:-5], "--seeds", "0", "--out", str(folder)]
    assert experiment.main(words) == 0
    assert json.loads((folder / RUNS / "beta-seed0/metrics.json").read_text())["results"] is None
    text = (folder / "likelihoods.txt").read_text()
    assert "Beta, seed 0: the loss became nan in epoch 1" in text
    assert json.loads((folder / "likelihoods.json").read_text())["families"]["beta"]["rank"] is None
