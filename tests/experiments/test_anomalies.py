"""The AUC is that of scikit-learn, its error that of new samples; the experiment runs from end to end."""

import json

import pytest
import torch
from programs import DIGITS
from sklearn.metrics import roc_auc_score

from experiments import anomalies

SMALL = ["--quick", "--epochs", "3", "--width", "16", "--latent", "2", "--particles", "5", "--images", "40"]


def drawn(seed, n=80, m=50):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, generator=generator).round(decimals=1), torch.randn(m, generator=generator).round(
        decimals=1
    ) + 1


def test_the_auc_is_that_of_scikit_learn_with_ties():
    normal, strange = drawn(0)
    truth = torch.cat([torch.zeros(len(normal)), torch.ones(len(strange))])
    assert anomalies.auc(normal, strange)["auc"] == pytest.approx(roc_auc_score(truth, torch.cat([normal, strange])))


def test_its_error_is_the_spread_over_new_samples():
    found = [anomalies.auc(*drawn(seed)) for seed in range(400)]
    spread = torch.tensor([result["auc"] for result in found]).std().item()
    assert found[0]["standard_error"] == pytest.approx(spread, rel=0.3)


def test_a_single_strange_image_has_the_error_of_a_share():
    found = anomalies.auc(torch.arange(10.0), torch.tensor([2.5]))
    assert found["auc"] == pytest.approx(0.3)
    assert found["standard_error"] == pytest.approx((0.3 * 0.7 / 9) ** 0.5)


def test_mutation_draws_the_share_anew_and_leaves_the_rest():
    changed = anomalies.mutated(DIGITS, 0.25, seed=0).train.images != DIGITS.train.images
    assert changed.double().mean() == pytest.approx(0.25 * 255 / 256, abs=0.01)


def test_simple_pictures_have_short_files():
    noise = torch.randint(256, (2, 1, 28, 28), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    black, random = anomalies.png_bits(torch.zeros_like(noise)), anomalies.png_bits(noise)
    assert (black < 1000).all() and (random > 28 * 28 * 8).all()
    assert (anomalies.png_bits(noise.expand(-1, 3, -1, -1)) > random).all()


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
