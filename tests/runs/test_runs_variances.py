"""The comparison of estimators, from end to end on few draws."""

import json

import pytest

from pyro_vae.runs import compare, variances

pytestmark = pytest.mark.slow

WORDS = ["--quick", "--draws", "30", "--images", "8", "--quiet"]


def test_tables_numbers_and_figure_are_written(tmp_path, capsys):
    out = tmp_path / "out"
    assert compare.main([*WORDS, "--out", str(out)]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics["stages"]) == ["at initialisation", "after 1 epoch", "after 2 epochs"]
    for stage in metrics["stages"].values():
        assert set(stage["estimators"]) == set(variances.estimators([1, 4]))
        assert stage["draws"] == 30 and stage["images"] == 8
        assert stage["estimators"]["IWAE, K = 4"]["bound"]["mean"] > stage["estimators"]["L^A"]["bound"]["mean"]
    bounds = metrics["valid_bound"]
    assert bounds["after 2 epochs"] > bounds["after 1 epoch"]
    first, *_, last = (stage["estimators"]["L^A"]["bound"]["mean"] for stage in metrics["stages"].values())
    assert last > first  # it was trained between the stages
    assert (out / "estimators.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "tables.txt").read_text().count("mean gradients") == 3
    assert "after 2 epochs" in capsys.readouterr().out


def test_a_picture_that_cannot_be_drawn_costs_nothing_else(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(variances.plots, "estimator_variance", lambda *args: 1 / 0)
    monkeypatch.setattr(variances, "train", lambda *args: [("at initialisation", None)])
    assert compare.main([*WORDS, "--out", str(tmp_path / "out")]) == 0
    assert "left out: estimators.png: division by zero" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["left_out"] == {"estimators.png": "division by zero"} and metrics["stages"]
