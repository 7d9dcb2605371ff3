"""What a table says about a run, against runs that were trained."""

import json

import pytest
from small_runs import command

from pyro_vae.runs.columns import COLUMNS, Run, differing

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
