"""The experiment runs from end to end."""

import json

import pytest
from programs import DIGITS

from experiments import anomalies

SMALL = ["--quick", "--epochs", "3", "--width", "16", "--latent", "2", "--particles", "5", "--images", "40"]


def test_mutation_draws_the_share_anew_and_leaves_the_rest():
    changed = anomalies.mutated(DIGITS, 0.25, seed=0).train.images != DIGITS.train.images
    assert changed.double().mean() == pytest.approx(0.25 * 255 / 256, abs=0.01)


@pytest.mark.slow
def test_the_experiment_from_end_to_end(tmp_path, capsys):
    command = [*SMALL, "--out", str(tmp_path / "run")]
    assert anomalies.main(command) == 0
    result = json.loads((tmp_path / "run.json").read_text())
    assert list(result["kinds"]) == ["test", "class 9", "inverted", "noise", "black"]
    assert (
        result["kinds"]["noise"]["auc"]["-log p(x)"]["auc"] == 1 and result["kinds"]["black"]["mean_log_px"]["n"] == 1
    )
    assert result["kinds"]["test"]["mean_log_px"]["n"] == 40 and (tmp_path / "run.png").stat().st_size > 10_000
    assert "of the test images are less likely than a black image" in capsys.readouterr().out
    assert anomalies.main(command) == 0  # the run is there
    assert anomalies.main([*command, "--latent", "3"]) != 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "message"), [("--left-out 12", "wanted a class of labelled images"), ("--mutation 1", "wanted a share")]
)
def test_what_it_refuses(option, message, tmp_path, capsys):
    assert anomalies.main([*SMALL, *option.split(), "--out", str(tmp_path / "run")]) != 0
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()
