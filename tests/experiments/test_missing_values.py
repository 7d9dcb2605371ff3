"""The experiment on missing values: nothing that was removed is looked at, and a short run from end to end."""

import argparse
import json

import numpy as np
import pytest
import torch

from experiments import missing
from experiments.imputation import pictures, tables
from experiments.imputation.methods import extra_trees, iterative_imputer, mean_imputer, random_forests, rmse
from pyro_vae import likelihoods, load


@pytest.fixture
def correlated():
    """Three columns of 60 rows that agree up to a hundredth, and a mask of a fifth of the values."""
    generator = np.random.default_rng(0)
    table = generator.normal(size=(60, 1)) + 0.01 * generator.normal(size=(60, 3))
    return table, generator.random(table.shape) >= 0.2


@pytest.mark.slow
def test_other_methods_on_columns_that_agree(correlated):
    table, mask = correlated
    x = np.where(mask, table, np.nan)
    filled = mean_imputer(x, x)
    assert np.array_equal(filled, np.where(mask, table, np.nanmean(x, 0)))
    some = mask.any(1)  # the rows in which anything was seen
    for method in iterative_imputer(0), random_forests(0, 20, 5), extra_trees(0, 20, 5):
        found = method(x, x)
        assert np.array_equal(found[mask], table[mask])
        assert rmse(found[some], table[some], mask[some]) < 0.5 * rmse(filled[some], table[some], mask[some])
        assert np.isfinite(method(x, x[:5])).all()


def test_columns_are_standardised_by_what_was_seen(correlated):
    table, mask = correlated
    first = tables.standardised(table, mask)
    seen = np.where(mask, first, np.nan)
    np.testing.assert_allclose([np.nanmean(seen, 0), np.nanstd(seen, 0)], [[0] * 3, [1] * 3], atol=1e-12)
    np.testing.assert_array_equal(first[mask], tables.standardised(np.where(mask, table, 1e6), mask)[mask])


@pytest.mark.filterwarnings("ignore::pyro_vae.imputation.UntrustedImputation")
def test_what_was_removed_is_not_looked_at(correlated, monkeypatch):
    monkeypatch.setattr(tables, "EPOCH", 5)
    table, mask = correlated
    args = argparse.Namespace(steps=20, rows=30, particles=3, draws=100, lr=1e-2, family="student")
    first, told = tables.miwae(table, mask, 0, args)
    second, _ = tables.miwae(np.where(mask, table, -1e3), mask, 0, args)
    assert np.array_equal(first, second) and np.allclose(first[mask], table[mask])
    assert 1 <= told["kept_epoch"] <= told["epochs"] and told["held_out_rmse"] > 0


def test_masks_are_those_of_the_seed_and_baselines_see_them():
    images = load("digits")
    data, again = (pictures.removed(images, 0.5, 3) for _ in range(2))
    assert torch.equal(data.train.mask, again.train.mask) and 0.49 < data.train.mask.double().mean() < 0.51
    assert not torch.equal(data.valid.mask[:100], data.train.mask[:100])
    x = pictures.gaps(data.test[:20])
    assert np.array_equal(np.isnan(x), ~data.test.mask[:20].flatten(1).numpy())
    assert set(x[~np.isnan(x)]) == {0, 1} and likelihoods.threshold(images.test.images).mean() > 0.2


@pytest.mark.slow
def test_a_short_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tables, "EPOCH", 5)
    monkeypatch.setattr(pictures, "FOREST", {"trees": 2, "max_iter": 1, "n_nearest_features": 5})
    words = ["--quick", "--trees", "2", "--quiet", "--out", str(tmp_path / "missing")]
    assert missing.main(words) == 0
    printed = capsys.readouterr().out
    assert "wine (1 seeds)" in printed and "digits, seed 0: RMSE: MIWAE" in printed
    found = json.loads((tmp_path / "missing.json").read_text())
    assert found["settings"]["share"] == 0.5 and (tmp_path / "missing.png").stat().st_size > 1000
    for name, of_data in found["data"].items():
        (run,) = of_data["runs"]
        assert set(of_data["rmse"]) == set(missing.METHODS) and run["versions"]["git_commit"], name
        assert all(0 < error["mean"] < 3 for error in of_data["rmse"].values())
    assert missing.main(words) == 0 and "seed 0: RMSE" not in capsys.readouterr().out  # nothing is done twice
    assert missing.main([*words, "--share", "0.3"]) == 1
    assert "share" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, message", [(["--share", "1"], "--share: wanted"), (["--steps", "0"], "--steps: wanted")]
)
def test_bad_options(words, message, tmp_path, capsys):
    assert missing.main([*words, "--out", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err
