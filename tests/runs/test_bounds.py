"""The bounds on log p(x) of a trained model, from end to end."""

import errno
import json
import os

import pytest
import torch
from small_runs import own_images

from pyro_vae import files
from pyro_vae.evidence import log_evidence
from pyro_vae.runs import bounds, train
from pyro_vae.runs import evidence as command
from pyro_vae.training import fixed_x

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::pyro_vae.evidence.UntrustedEvidence")]


FEW = ["--images", "4", "--particles", "30", "--temperatures", "4", "--chains", "2", "--leapfrog", "2"]


def test_the_experiment_measures_a_trained_model(tmp_path, capsys, monkeypatch):
    trained, out = str(tmp_path / "trained"), tmp_path / "out"
    small = ["--dataset", "digits", "--net", "mlp", "--hidden", "16", "--lik", "categorical", "--bins", "4"]
    assert train.main([*small, "--epochs", "1", "--out", trained, "--quiet"]) == 0
    few = ["--images", "6", "--particles", "30", "1", "--temperatures", "8", "4", "--chains", "2", "--leapfrog", "2"]
    words = ["--run", trained, "--out", str(out), *few, "--simulated", "7", "--quiet"]
    assert command.main(words) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert [row["num_particles"] for row in metrics["importance"]] == [1, 30]
    assert [(row["start"], row["num_temperatures"]) for row in metrics["annealed"]] == [
        ("prior", 4), ("prior", 8), ("guide", 4), ("guide", 8)
    ]  # fmt: skip
    assert [(row["images"], row["num_temperatures"]) for row in metrics["bidirectional"]] == [(7, 4), (7, 8)]
    assert (out / "evidence.png").read_bytes().startswith(b"\x89PNG")
    vae, rows, _ = bounds.load_run(tmp_path / "trained", torch.device("cpu"))
    again = log_evidence(vae.model, vae.guide, fixed_x(vae, rows[:6]), 30, seed=0)
    assert again.mean == pytest.approx(metrics["importance"][1]["log_px"])
    assert f"importance, K = 30 {again.mean:>29.3f}" in capsys.readouterr().out
    assert command.main(words) == 1 and "--overwrite" in capsys.readouterr().err
    assert metrics["proposals"] == []
    (both,) = metrics["certificates"]
    assert (both["proposal"], both["num_particles"], both["images"]) == ("guide", 30, 7) and both["gap"] > 0
    assert command.main([*words, "--overwrite", "--all", "--bfloat16", "--local", "--refit", "1"]) == 0
    assert "bfloat16 moves it by" in capsys.readouterr().out
    metrics = json.loads((out / "metrics.json").read_text())
    refitted, local = "refitted guide", "local proposals"
    assert [(row["proposal"], row["num_particles"], row["images"]) for row in metrics["proposals"]] == [
        (refitted, 1, 250), (refitted, 30, 250), (local, 1, 250), (local, 30, 250)
    ]  # fmt: skip
    assert [row["proposal"] for row in metrics["certificates"]] == ["guide", refitted, local]
    *_, full, lowered = metrics["importance"]
    assert all(row["log_px"] > full["log_px"] - 0.5 for row in metrics["proposals"][1::2])
    assert metrics["proposals"][0]["refit_epochs"] == 1 and "refit_seconds" not in metrics["proposals"][2]
    assert (full["images"], lowered["images"], lowered["precision"]) == (250, 6, "bfloat16")
    everything = log_evidence(vae.model, vae.guide, fixed_x(vae, rows), 30, seed=0)
    assert full["log_px_of_annealed_images"] == pytest.approx(everything.log_px[:6].mean().item())
    monkeypatch.setattr("pyro_vae.evidence.methods.LADDER", (4, 8))  # temperatures; a hundred take a minute
    assert command.main([*words[:4], "--overwrite", "--images", "5", "--target", "0.5", "--quiet"]) == 0
    (row,) = json.loads((out / "metrics.json").read_text())["budget"]
    assert row["images"] == 5 and row["target"] == 0.5 and sum(row["settled_by"].values()) == 5
    assert "settled by" in capsys.readouterr().out
    bias = lowered["log_px"] - full["log_px_of_annealed_images"]
    assert lowered["bias"] == pytest.approx(bias, abs=1e-9) and bias != 0
    assert command.main([*words, "--overwrite", "--images", "251"]) == 1
    assert "--images: wanted 2 to 250" in capsys.readouterr().err


def test_a_full_disk_leaves_the_numbers_on_the_terminal_and_no_half_results(tmp_path, capsys, monkeypatch):
    trained = ["--dataset", "digits", "--net", "mlp", "--hidden", "8", "--epochs", "1", "--quiet", "--evidence", "0"]
    assert train.main([*trained, "--out", str(tmp_path / "trained")]) == 0
    words = ["--run", str(tmp_path / "trained"), *FEW, "--simulated", "4", "--quiet"]
    before, _ = sorted(tmp_path.rglob("*")), capsys.readouterr()

    def full(file, content):
        file.write(content[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files, "_write", full)
        assert command.main(words) == 1
    said = capsys.readouterr()
    assert "importance, K = 30 " in said.out and "results in" not in said.out
    assert "metrics.json cannot be written (No space left on device)" in said.err and "free some space" in said.err
    assert sorted(tmp_path.rglob("*")) == before
    assert command.main(words) == 0  # with more room
    assert capsys.readouterr().out.startswith(said.out.split(" 0\n")[0][:200])


def test_a_conditional_model_is_measured_given_its_classes(tmp_path, capsys):
    trained = ["--dataset", "digits", "--conditional", "--hidden", "16", "--epochs", "1", "--quiet", "--evidence", "0"]
    assert train.main([*trained, "--out", str(tmp_path / "trained")]) == 0
    assert command.main(["--run", str(tmp_path / "trained"), *FEW, "--simulated", "6", "--quiet"]) == 0
    metrics = json.loads((tmp_path / "trained/evidence/metrics.json").read_text())
    program, rows, _ = bounds.load_run(tmp_path / "trained", torch.device("cpu"))
    again = log_evidence(program, rows[:4], 30, seed=0, progress=False)
    assert metrics["importance"][0]["log_px"] == pytest.approx(again.mean, abs=0.5)  # the whole split is drawn at once
    assert metrics["bidirectional"][0]["images"] == 6
    assert "≤ log p(x) ≤" in capsys.readouterr().out


def test_the_data_are_those_of_the_run_or_those_that_are_named(tmp_path, capsys):
    words = ["--dataset", "digits", "--hidden", "16", "--epochs", "1", "--quiet", "--evidence", "0"]
    assert train.main([*words, "--out", str(tmp_path / "trained")]) == 0
    load_run, cpu = bounds.load_run, torch.device("cpu")
    assert len(load_run(tmp_path / "trained", cpu)[1]) == len(load_run(tmp_path / "trained", cpu, None, "digits")[1])
    other = own_images(tmp_path / "large", (20, 3, 3), (1, 9, 9))
    with pytest.raises(ValueError, match=r"--dataset: wanted images of \[1, 8, 8\], .* got \[1, 9, 9\]"):
        load_run(tmp_path / "trained", cpu, None, other)
    metrics = json.loads((tmp_path / "trained/metrics.json").read_text())
    for name in ("dataset", "settings"):
        metrics.pop(name)
    (tmp_path / "trained/metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(ValueError, match="does not say which data its model was trained on; give them by --dataset"):
        load_run(tmp_path / "trained", cpu)
    assert len(load_run(tmp_path / "trained", cpu, None, "digits")[1]) == 250


def test_what_cannot_be_annealed_is_measured_by_importance_sampling(tmp_path, monkeypatch, capsys):
    def fails(*args, **options):
        raise ValueError("site 'y': discrete")

    words = ["--dataset", "digits", "--hidden", "16", "--epochs", "1", "--quiet", "--measure", "none"]
    assert train.main([*words, "--out", str(tmp_path / "trained")]) == 0
    monkeypatch.setattr(bounds, "annealed_evidence", fails)
    assert command.main(["--run", str(tmp_path / "trained"), *FEW, "--simulated", "6", "--quiet"]) == 0
    metrics = json.loads((tmp_path / "trained/evidence/metrics.json").read_text())
    assert metrics["annealed"] == [] and len(metrics["importance"]) == len(metrics["bidirectional"]) == 1
    assert "left out: annealed: site 'y': discrete" in capsys.readouterr().out
    assert command.main(["--run", str(tmp_path / "trained"), *FEW, "--chains", "0", "--overwrite"]) == 1
    assert "--chains: wanted a whole number of at least 1, got 0" in capsys.readouterr().err


def test_data_that_the_model_cannot_be_given_are_refused(tmp_path):
    words = ["--dataset", "digits", "--hidden", "16", "--epochs", "1", "--quiet", "--measure", "none"]
    assert train.main([*words, "--out", str(tmp_path / "trained")]) == 0
    metrics = json.loads((tmp_path / "trained/metrics.json").read_text())
    metrics["model"].pop("shape", None)
    other = own_images(tmp_path / "large", (20, 3, 3), (1, 9, 9))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounds, "read_metrics", lambda path: metrics)
        with pytest.raises(ValueError, match="--dataset: large does not fit the model"):
            bounds.load_run(tmp_path / "trained", torch.device("cpu"), None, other)
