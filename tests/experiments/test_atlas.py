"""The atlas from end to end, cell by cell, and what it answers, of numbers that are known."""

import json
import math

import pytest
import torch
from programs import small_vae

from experiments import atlas
from experiments.atlases import answers, programs, report, trajectories
from pyro_vae.estimators import ReinMax, StickingTheLanding, StraightThrough, WakeSleep

OF_DRAWS = ["--draws", "2", "--images", "4", "--particles", "1", "2", "--most", "4"]
WORDS = ["--quick", "--quiet", *OF_DRAWS, "--latent", "2", "--rows", "200", "--seconds", "0.05"]


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
    return {
        "program": "vae", "moment": "0 epochs", "epochs": 0, "seed": 0, "estimators": found, "disagreements": []
    }  # fmt: skip


def test_numbers_of_a_cell(cell):
    assert answers.ratio(cell, "L^B", "guide") == 0.5 and answers.ratio(cell, "L^B", "guide", seconds=True) == 1.5
    assert answers.ratio(cell, "L^B", "model") is answers.ratio(cell, "DReG, K = 4", "guide") is None
    shares = [answers.minibatch_share(cell, name, "guide") for name in ("L^A", "L^B", "STL, K = 1")]
    assert shares == [0.75, 0.0, None]
    assert answers.cheapest(cell) == ("L^A", 1.0)  # neither the biased one, nor one of another bound
    assert answers.curve([cell, cell], "IWAE") == [(1, 1.0), (4, 0.5)] and answers.curve([cell], "DReG") == []


def test_the_table_is_over_seeds(cell):
    other = {**cell, "seed": 1, "estimators": {**cell["estimators"], "L^B": entry(8.0)}, "disagreements": ["a – b"]}
    text = answers.table([cell, other])
    assert "0.75 [0.5, 1]" in text and "1 DISAGREE" in text


def test_biased_estimators_are_known_by_name():
    found = programs.estimators([1, 2], 4)
    biased = {name for name, elbo in found.items() if isinstance(elbo, StraightThrough | ReinMax)}
    assert biased == set(answers.BIASED)


def test_a_program_is_tried_before_it_is_measured():
    kinds = {
        "STL": StickingTheLanding(),
        "wake-sleep": WakeSleep(),
        "DisARM": programs.estimators([2], 4)["DisARM, K = 2"],
    }
    taken, left_out = atlas.trial(small_vae(), (torch.zeros(3, 1, 8, 8),), kinds)
    assert set(taken) == {"STL", "wake-sleep"} and "no Bernoulli" in left_out["DisARM"]


class Told(trajectories.Fitted):
    """A training whose bounds are known beforehand."""

    def __init__(self, bounds):
        super().__init__(None, None)
        self.known, self.reached, self.kept = bounds, 0, False

    @property
    def bounds(self):
        return self.known[: self.reached]

    def to(self, epochs):
        self.reached = epochs

    def keep_best(self):
        self.kept = True


@pytest.mark.parametrize(
    ("bounds", "longest", "wanted", "reached"),
    [([-5.0, -3.0, -4.0, -4.0, -1.0], 5, (2, True), 4), ([-5.0, -4.0, -3.0], 3, (3, False), 3)],
    ids=["no rise for two epochs", "the end"],
)
def test_a_training_has_converged_where_its_bound_no_longer_rises(bounds, longest, wanted, reached):
    run = Told(bounds)
    assert trajectories.converged(run, 2, longest) == wanted and (run.reached, run.kept) == (reached, True)


def test_a_training_that_has_gone_on_is_refused():
    run = Told([-2.0, -1.0])
    run.training, run.reached = object(), 2
    with pytest.raises(ValueError, match="past epoch 1, at 2: wanted"):
        trajectories.Fitted.to(run, 1)


@pytest.fixture
def few(monkeypatch):
    """Some of the estimators, and of those that train."""
    found = {name: elbo for name, elbo in programs.estimators([1, 2], 4).items() if name in ("L^A", "STL, K = 1")}
    monkeypatch.setattr(atlas, "estimators", lambda particles, most: found)
    monkeypatch.setitem(atlas.TRAINERS, "sigmoid", ("score function, K = {K}", "DisARM, K = {K}"))


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_cells_are_kept_and_the_same_command_goes_on(tmp_path, capsys):
    words = [*WORDS, "--programs", "sigmoid", "logistic", "--out", str(tmp_path / "atlas")]
    assert atlas.main([*words, "--moments", "0", "--longest", "0"]) == 0
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "atlas").glob("*.json")}
    assert set(before) == {"sigmoid-0-epochs-seed0.json", "logistic-0-epochs-seed0.json", "sigmoid-gains-seed0.json"}
    assert atlas.main([*words, "--moments", "0", "1", "--longest", "0"]) == 0
    assert all((tmp_path / "atlas" / name).stat().st_mtime_ns == time for name, time in before.items())
    found = json.loads((tmp_path / "atlas.json").read_text())["cells"]
    assert sorted((cell["program"], cell["moment"]) for cell in found) == [
        ("logistic", "0 epochs"), ("logistic", "1 epochs"),
        ("sigmoid", "0 epochs"), ("sigmoid", "1 epochs"), ("sigmoid", "gains"),
    ]  # fmt: skip
    for cell in answers.measured(found):
        assert math.isfinite(answers.value(cell, "L^A", "guide")) and not cell["disagreements"]
    (gains,) = [cell for cell in found if cell["moment"] == "gains"]
    for trained in gains["trained"].values():
        assert trained["steps"] and trained["seconds"] >= gains["seconds"] == gains["settings"]["seconds"]
    assert {path.name for path in tmp_path.glob("*.png")} == {
        f"atlas-{question}.png" for question in ("variance", "cost", "signal", "minibatch", "gains")
    }
    assert "least variance × seconds" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_a_stopped_atlas_has_the_numbers_of_one_that_was_not(tmp_path, capsys):
    words = [*WORDS, "--programs", "oracle", "logistic", "--longest", "2"]
    assert atlas.main([*words, "--moments", "1", "2", "--out", str(tmp_path / "whole")]) == 0
    assert atlas.main([*words, "--moments", "1", "2", "--out", str(tmp_path / "stopped")]) == 0
    for path in (tmp_path / "stopped").glob("*-2-epochs-*.json"):
        path.unlink()
    (tmp_path / "stopped" / "oracle-converged-seed0.json").unlink()
    assert atlas.main([*words, "--moments", "1", "2", "--out", str(tmp_path / "stopped")]) == 0
    for path in (tmp_path / "whole").glob("*.json"):
        whole, stopped = (json.loads(each.read_text()) for each in (path, tmp_path / "stopped" / path.name))
        assert whole["bounds"] == stopped["bounds"] and whole["epochs"] == stopped["epochs"]
        for name, entry in whole["estimators"].items():
            assert entry["guide"]["variance"] == stopped["estimators"][name]["guide"]["variance"]


def test_the_table_goes_between_the_markers_of_a_page(tmp_path, cell, capsys):
    results, page = tmp_path / "found.json", tmp_path / "page.md"
    run = {"steps": 1234, "valid": {"bound": -101.5}, "evidence": {"log_px": -98.25}}
    trained = {"program": "vae", "moment": "gains", "seed": 0, "trained": {"L^A": run}}
    results.write_text(json.dumps({"cells": [cell, trained]}))
    markers = "<!-- found -->\n<!-- end -->\n<!-- found-gains -->\n<!-- end -->\n"
    page.write_text(f"before\n{markers}after\n")
    assert report.main([str(results), "--into", str(page)]) == 0
    lines = page.read_text().splitlines()
    assert (
        "| vae, 0 epochs | 0.5 | – | 1 | – | 1 (K = 1), 0.5 (K = 4) | – | 0.75 | L^A: 1 |" in lines
        and lines[-1] == "after"
    )
    assert "| vae, L^A | 1234 | -101.5 | -98.25 |" in lines
    page.write_text("no markers")
    assert report.main([str(results), "--into", str(page)]) == 1
    assert "wanted a line <!-- found -->" in capsys.readouterr().err
