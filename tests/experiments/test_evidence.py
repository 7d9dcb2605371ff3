"""The experiment on bounds: a trained model is measured."""

import json

import pytest
import torch

from experiments import evidence as experiment
from experiments import run
from pyro_vae.evidence import log_evidence
from pyro_vae.training import fixed_x

pytestmark = pytest.mark.filterwarnings("ignore::pyro_vae.evidence.UntrustedEvidence")


def test_the_experiment_measures_a_trained_model(tmp_path, capsys):
    trained, out = str(tmp_path / "trained"), tmp_path / "out"
    small = ["--dataset", "digits", "--net", "mlp", "--hidden", "16", "--lik", "categorical", "--bins", "4"]
    assert run.main([*small, "--epochs", "1", "--out", trained, "--quiet"]) == 0
    few = ["--images", "6", "--particles", "30", "1", "--temperatures", "8", "4", "--chains", "2", "--leapfrog", "2"]
    words = ["--run", trained, "--out", str(out), *few, "--simulated", "7", "--quiet"]
    assert experiment.main(words) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert [row["num_particles"] for row in metrics["importance"]] == [1, 30]
    assert [(row["start"], row["num_temperatures"]) for row in metrics["annealed"]] == [
        ("prior", 4), ("prior", 8), ("guide", 4), ("guide", 8)
    ]  # fmt: skip
    assert [(row["images"], row["num_temperatures"]) for row in metrics["bidirectional"]] == [(7, 4), (7, 8)]
    assert (out / "evidence.png").read_bytes().startswith(b"\x89PNG")
    vae, pixels, _ = experiment.load_run(tmp_path / "trained", torch.device("cpu"))
    again = log_evidence(vae.model, vae.guide, fixed_x(vae, pixels[:6]), 30, seed=0)
    assert again.mean == pytest.approx(metrics["importance"][1]["log_px"])
    assert f"importance, K = 30 {again.mean:>29.3f}" in capsys.readouterr().out
    assert experiment.main(words) == 1 and "--overwrite" in capsys.readouterr().err
    assert experiment.main([*words, "--overwrite", "--all", "--bfloat16"]) == 0
    assert "bfloat16 moves it by" in capsys.readouterr().out
    *_, full, lowered = json.loads((out / "metrics.json").read_text())["importance"]
    assert (full["images"], lowered["images"], lowered["precision"]) == (250, 6, "bfloat16")
    everything = log_evidence(vae.model, vae.guide, fixed_x(vae, pixels), 30, seed=0)
    assert full["log_px_of_annealed_images"] == pytest.approx(everything.log_px[:6].mean().item())
    bias = lowered["log_px"] - full["log_px_of_annealed_images"]
    assert lowered["bias"] == pytest.approx(bias, abs=1e-9) and bias != 0
    assert experiment.main([*words, "--overwrite", "--images", "251"]) == 1
    assert "--images: wanted 2 to 250" in capsys.readouterr().err


def test_the_experiment_wants_a_trained_model(tmp_path, capsys):
    assert experiment.main(["--run", str(tmp_path)]) == 1
    assert "holds no trained model; train one by run.py" in capsys.readouterr().err
