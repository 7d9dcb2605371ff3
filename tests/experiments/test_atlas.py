"""The atlas from end to end, cell by cell, and what it answers, of numbers that are known."""

import json
import math

import pytest
import torch
from programs import small_vae

from experiments import atlas
from experiments.atlases import answers, report
from pyro_vae.estimators import ReinMax, StickingTheLanding, StraightThrough, WakeSleep

WORDS = ["--quick", "--quiet", "--draws", "2", "--images", "4", "--particles", "1", "2", "--latent", "2"]


def entry(variance, seconds=1.0, between=0.0, snr=1.0, particles=1, estimates="ELBO"):
    group = {"variance": {"value": variance}, "minibatch_variance": between, "snr": {"value": snr}}
    return {"guide": group, "model": None, "seconds": seconds, "particles": particles, "estimates": estimates}


@pytest.fixture
def cell():
    found = {
        "L^A": entry(8.0, between=24.0),
        "L^B": entry(4.0, seconds=3.0, between=-1.0),
        "ReinMax": entry(0.1),
        "IWAE, K = 4": entry(1.0, snr=0.5, particles=4, estimates="L_4"),
    }
    return {"program": "vae", "epochs": 0, "seed": 0, "estimators": found, "disagreements": []}


def test_numbers_of_a_cell(cell):
    assert answers.ratio(cell, "L^B", "guide") == 0.5 and answers.ratio(cell, "L^B", "guide", seconds=True) == 1.5
    assert answers.ratio(cell, "L^B", "model") is answers.ratio(cell, "DReG, K = 4", "guide") is None
    shares = [answers.minibatch_share(cell, name, "guide") for name in ("L^A", "L^B", "STL, K = 1")]
    assert shares == [0.75, 0.0, None]
    assert answers.cheapest(cell) == ("L^A", 1.0)  # neither the biased one, nor one of another bound
    assert answers.curve([cell, cell], "IWAE") == [(4, 0.5)]


def test_the_table_is_over_seeds(cell):
    other = {**cell, "seed": 1, "estimators": {**cell["estimators"], "L^B": entry(8.0)}, "disagreements": ["a – b"]}
    text = answers.table([cell, other])
    assert "0.75 [0.5, 1]" in text and "1 DISAGREE" in text


def test_biased_estimators_are_known_by_name():
    found = atlas.estimators([1, 2])
    biased = {name for name, elbo in found.items() if isinstance(elbo, StraightThrough | ReinMax)}
    assert biased == set(answers.BIASED)


def test_a_program_is_tried_before_it_is_measured():
    kinds = {"STL": StickingTheLanding(), "wake-sleep": WakeSleep(), "DisARM": atlas.estimators([2])["DisARM, K = 2"]}
    taken, left_out = atlas.trial(small_vae(), (torch.zeros(3, 1, 8, 8),), kinds)
    assert set(taken) == {"STL", "wake-sleep"} and "no Bernoulli" in left_out["DisARM"]


@pytest.mark.slow
def test_cells_are_kept_and_the_same_command_goes_on(tmp_path, capsys, monkeypatch):
    words = [*WORDS, "--programs", "sigmoid", "logistic", "--moments", "0", "1", "--out", str(tmp_path / "atlas")]
    assert atlas.main([*words[:-5], "--moments", "0", *words[-2:]]) == 0
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "atlas").iterdir()}
    assert set(before) == {"sigmoid-0-seed0.json", "logistic-0-seed0.json"}
    assert atlas.main(words) == 0
    assert all((tmp_path / "atlas" / name).stat().st_mtime_ns == time for name, time in before.items())
    found = json.loads((tmp_path / "atlas.json").read_text())["cells"]
    assert [(cell["program"], cell["epochs"]) for cell in found] == [
        (name, epochs) for epochs in (0, 1) for name in ("sigmoid", "logistic")
    ]
    for cell in found:
        assert math.isfinite(answers.value(cell, "L^A", "guide")) and not cell["disagreements"]
    assert {path.name for path in tmp_path.glob("*.png")} == {
        f"atlas-{question}.png" for question in ("variance", "cost", "signal", "minibatch")
    }
    assert "least variance × seconds" in capsys.readouterr().out


def test_the_table_goes_between_the_markers_of_a_page(tmp_path, cell, capsys):
    results, page = tmp_path / "found.json", tmp_path / "page.md"
    results.write_text(json.dumps({"cells": [cell]}))
    page.write_text("before\n<!-- found -->\n<!-- end -->\nafter\n")
    assert report.main([str(results), "--into", str(page)]) == 0
    lines = page.read_text().splitlines()
    assert "| vae, 0 | 0.5 | – | 1 | – | 0.5 (K = 4) | – | 0.75 | L^A: 1 |" in lines and lines[-1] == "after"
    page.write_text("no markers")
    assert report.main([str(results), "--into", str(page)]) == 1
    assert "wanted a line <!-- found -->" in capsys.readouterr().err
