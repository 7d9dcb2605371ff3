"""Rows are divided into disjoint and complete splits by a seed."""

from itertools import islice

import numpy as np
import pytest
import torch

from pyro_vae.data.shares import SPLITS, divided, drawn


@pytest.mark.parametrize("shares", [{}, {"valid": 0.1}, {"test": 7}, {"valid": 3, "test": 0.25}])
def test_splits_are_disjoint_and_complete(shares):
    rows = divided(40, shares, seed=3)
    assert list(rows) == [split for split in SPLITS if split == "train" or split in shares]
    assert sorted(torch.cat(list(rows.values())).tolist()) == list(range(40))
    order = np.random.RandomState(3).permutation(40)
    wanted = {"test": order[: len(rows.get("test", ()))], "valid": order[40 - len(rows.get("valid", ())) :]}
    assert all(rows[split].tolist() == wanted[split].tolist() for split in shares)


def test_a_small_share_is_one_row_at_least():
    assert [len(rows) for rows in divided(3, {"valid": 0.01, "test": 0.01}, 0).values()] == [1, 1, 1]


@pytest.mark.parametrize("share", [0, 1.0, -1, -0.1, True, float("nan")])
def test_what_is_no_share(share):
    with pytest.raises(ValueError, match="valid: wanted rows, a fraction between 0 and 1 or a number"):
        divided(40, {"valid": share}, 0)


def test_shares_that_leave_nothing():
    with pytest.raises(ValueError, match="got 4 rows of which 2 for valid and 2 for test are taken"):
        divided(4, {"valid": 2, "test": 0.5}, 0)
    with pytest.raises(ValueError, match="seed: wanted"):
        divided(4, {}, -1)


def test_rows_that_come_one_after_the_other_are_drawn_by_their_share():
    splits = list(islice(drawn({"valid": 0.1, "test": 0.3}, seed=1), 20_000))
    found = np.array([splits.count(split) for split in SPLITS]) / 20_000
    assert np.abs(found - [0.6, 0.1, 0.3]).max() < 5 * np.sqrt(0.25 / 20_000)
    assert splits[:50] == list(islice(drawn({"valid": 0.1, "test": 0.3}, seed=1), 50))
    with pytest.raises(ValueError, match="test: wanted a fraction, as the number of rows is not known"):
        next(drawn({"test": 3}, 0))
