"""The baselines are densities of scipy, the errors those written by hand; the experiment runs from end to end."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import integrate, stats
from sklearn.exceptions import ConvergenceWarning

from experiments import tables
from experiments.mixed_tables.baselines import baselines, column_density, negative_binomial
from experiments.mixed_tables.filling import errors, simple
from experiments.mixed_tables.frames import FRAMES, hidden, prepared
from pyro_vae.tables import Schema

RNG = np.random.default_rng(0)
FRAME = pd.DataFrame(
    {
        "height": RNG.normal(50.0, 3.0, 200),
        "income": RNG.lognormal(2.0, 0.5, 200),
        "visits": RNG.negative_binomial(2.0, 0.3, 200),
        "eyes": RNG.choice(["a", "b", "c"], 200),
    }
)
SCHEMA = Schema.from_frame(FRAME, {"height": "real"})
TABLE = SCHEMA.encode(FRAME).numpy()


@pytest.mark.slow
def test_independent_columns_by_hand():
    score = baselines(SCHEMA, TABLE, TABLE, seed=0)["independent columns"]
    expected = stats.norm(FRAME.height.mean(), FRAME.height.std(ddof=0)).logpdf(FRAME.height)
    shape, _, scale = stats.lognorm.fit(FRAME.income, floc=0)
    expected += stats.lognorm(shape, scale=scale).logpdf(FRAME.income)
    expected += negative_binomial(TABLE[:, 2])(TABLE[:, 2])
    shares = (FRAME.eyes.value_counts() + 0.5) / 201.5
    expected += np.log(FRAME.eyes.map(shares))
    np.testing.assert_allclose(score(TABLE), expected, rtol=1e-4)


def test_counts_have_the_largest_likelihood():
    x = TABLE[:, 2]
    best = negative_binomial(x)(x).sum()
    for theta in (0.5, 1.0, 2.0, 3.0, 5.0):
        assert best >= stats.nbinom(theta, theta / (theta + x.mean())).logpmf(x).sum() - 1e-6


def test_one_normal_is_that_of_scipy_and_integrates_to_one():
    schema = Schema.from_frame(FRAME[["height", "income"]], {"height": "real"})
    score = baselines(schema, TABLE[:, :2], TABLE[:, :2], seed=0)["one normal for all numbers"]
    u = np.c_[TABLE[:, 0], np.log(TABLE[:, 1])]
    cov = np.cov(u.T, ddof=0) + np.exp(-8) * np.diag(u.var(0))
    expected = stats.multivariate_normal(u.mean(0), cov).logpdf(u) - u[:, 1]
    np.testing.assert_allclose(score(TABLE[:, :2]), expected, rtol=1e-5)
    x = np.linspace(0.05, 120, 4000)
    row = np.array([integrate.simpson(np.exp(score(np.c_[np.full(4000, h), x])), x=x) for h in np.linspace(30, 70, 81)])
    assert integrate.simpson(row, x=np.linspace(30, 70, 81)) == pytest.approx(1, abs=1e-3)


def test_levels_are_scored_by_their_shares():
    density = column_density(SCHEMA.columns[3], TABLE[:, 3])
    assert np.exp(density(np.arange(3.0))).sum() == pytest.approx(1)


def test_errors_by_hand():
    truth = torch.tensor(TABLE)
    gaps = torch.zeros_like(truth, dtype=torch.bool)
    gaps[:4, 0] = True
    gaps[:4, 3] = True
    filled = truth.clone()
    filled[:4, 0] += torch.tensor([3.0, -3.0, 0.0, 0.0])
    filled[0, 3] = (truth[0, 3] + 1) % 3
    spread = torch.ones_like(truth)
    found = errors(SCHEMA, truth, gaps, filled, spread)
    assert found["mean_numbers"] == pytest.approx(np.sqrt(4.5) / FRAME.height.std(ddof=0))
    assert found["mean_levels"] == 0.25
    assert found["columns"]["height"]["within_2_sd"] == 0.5
    assert set(found["columns"]) == {"height", "eyes"}


def test_simple_imputation():
    x = torch.full((2, 4), torch.nan, dtype=torch.float64)
    filled = simple(SCHEMA, torch.tensor(TABLE), x)
    assert filled[0, 0].item() == pytest.approx(FRAME.height.mean())
    assert filled[1, 3].item() == ["a", "b", "c"].index(FRAME.eyes.mode()[0])


def test_a_share_of_the_cells_is_hidden_and_each_row_keeps_one():
    table = hidden(torch.zeros(2000, 3), 0.3, seed=0)
    assert table.isnan().double().mean().item() == pytest.approx(0.3, abs=0.03)
    assert not hidden(torch.zeros(500, 2), 0.95, seed=0).isnan().all(1).any()
    assert torch.equal(table.isnan(), hidden(torch.zeros(2000, 3), 0.3, seed=0).isnan())


def test_splits_hold_each_row_once():
    schema, data = prepared("wine", seed=1)
    rows = pd.concat([schema.frame(part.table) for part in (data.train, data.valid, data.test)])
    pd.testing.assert_frame_equal(
        rows.sort_values(list(rows)).reset_index(drop=True),
        FRAMES["wine"].load().sort_values(list(rows)).reset_index(drop=True),
    )


@pytest.mark.slow
def test_from_end_to_end(tmp_path, capsys):
    words = ["--tables", "wine", "--seeds", "0", "--steps", "30", "--hidden", "8", "--latent", "2", "--particles", "20"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        assert tables.main([*words, "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "tables.json").read_text())
    run = content["runs"][0]
    assert run["log_px"]["VAE"]["mean"] < 0
    assert set(content["summary"]["wine"]["imputation"]) == {"VAE", "means or most frequent levels"}
    assert (tmp_path / "tables_wine_pairs.png").is_file()
    before = (tmp_path / "tables" / "wine-seed0.json").read_bytes()
    assert "log p(x), independent columns" in capsys.readouterr().out
    assert tables.main(["--report", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "tables" / "wine-seed0.json").read_bytes() == before
    assert tables.main(["--missing", "2", "--out", str(tmp_path)]) == 1
