"""What a table says about a run, against runs that were trained."""

import json
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from small_runs import command

from pyro_vae.files import CheckpointError
from pyro_vae.runs.columns import COLUMNS, Column, Run, differing

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folders = []
    for words in (["--lik", "bernoulli"], ["--lik", "categorical", "--seed", "1"]):
        folder = tmp_path_factory.mktemp("run")
        assert command(folder, *words, "--evidence", "5") == 0
        folders.append(folder / "out")
    return folders


def test_columns_are_the_entries_of_metrics_json(trained):
    run = Run.read(trained[1])
    metrics = json.loads((trained[1] / "metrics.json").read_text())
    assert COLUMNS["bound"].cell(run)[:2] == (metrics["test"]["bound"], metrics["test"]["standard_error"])
    assert COLUMNS["log_px"].of(run) == metrics["evidence"]["log_px"]
    assert COLUMNS["active"].of(run) == metrics["active_units"]
    assert COLUMNS["bits"].of(run) == metrics["test"]["bits_per_dim"]
    assert COLUMNS["seconds"].of(run) == metrics["seconds"]["training"]
    rows = (trained[1] / "history.csv").read_text().splitlines()
    names, kept = rows[0].split(","), rows[metrics["kept_epoch"]].split(",")
    assert COLUMNS["valid"].of(run) == pytest.approx(float(kept[names.index("valid_bound")]))


def test_what_a_run_scores_and_what_differs(trained):
    first, second = (Run.read(folder) for folder in trained)
    assert first.observation == "black and white pixels (dynamic)" and second.observation == "grey levels"
    assert second.unit == "16 bins" and first.block.startswith("digits, 250 test images of 1 × 8 × 8: ")
    assert differing([first, second]) == ["lik", "seed"] and differing([first]) == []


def by_hand(**parts):
    dataset = {"name": "rows", "test": 5}
    return Run(Path(), {"settings": {"lik": "normal", "seed": 0}, "dataset": dataset, **parts})


@pytest.mark.parametrize(
    ("file", "why"),
    [
        ("other/file", "no run is there"),
        ("folder/history.csv", "its run has not ended"),
        ("folder/one/metrics.json", "the runs are the folders in it"),
    ],
)
def test_a_folder_without_a_run_says_what_it_is(tmp_path, file, why):
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).touch()
    with pytest.raises(CheckpointError, match=f"it holds no metrics.json: {why}"):
        Run.read(tmp_path / "folder")


def test_an_empty_folder_holds_no_run(tmp_path):
    with pytest.raises(CheckpointError, match="no run is there"):
        Run.read(tmp_path)


def test_what_was_not_measured_is_an_empty_cell():
    run = by_hand(test={"bound": -3.456, "standard_error": 0.0123, "rate": float("nan")}, left_out=None)
    assert str(COLUMNS["bound"].cell(run)) == "-3.46 ± 0.01" and str(COLUMNS["rate"].cell(run)) == ""
    assert str(COLUMNS["log_px"].cell(run)) == str(COLUMNS["valid"].cell(run)) == ""
    assert str(COLUMNS["bits"].cell(by_hand(test={"bits_per_dim": 1.23456}))) == "1.235"
    assert str(COLUMNS["rate"].cell(by_hand(test={"rate": 5}))) == "5.00"
    assert run.block.startswith("rows") and "5 test images of : x of the normal likelihood" in run.block
    with pytest.raises(FrozenInstanceError):
        COLUMNS["rate"].digits = 1


@pytest.mark.parametrize(
    ("asked", "digest", "which"),
    [("auto", "abc", ""), ("mnist", "abc", ""), ("pictures", "abc", " (digest abc)"), ("csv", None, " (read as csv)")],
)
def test_images_of_your_own_are_told_apart_by_their_digest(asked, digest, which):
    settings = {"lik": "normal", "seed": 0, "dataset": asked}
    run = Run(Path(), {"settings": settings, "dataset": {"name": "rows", "test": 5, "test_digest": digest}})
    assert run.block.startswith(f"rows{which}, 5 test images")


def test_a_measured_column_has_two_digits():
    assert str(Column("title", lambda run: 1.23456).cell(by_hand())) == "1.23"
