"""What a ranking says: its table, names, frame and JSON."""

import json
import math
from dataclasses import FrozenInstanceError, replace

import pytest

from pyro_vae.comparison import Estimate, Ranked, Ranking


def entry(name, target, rank, tied, value, model=None):
    estimate = Estimate(value, 0.9 * value, 1.2 * value)
    return Ranked(name, target, rank, tied, estimate, estimate, value, model, 1.0, 64)


@pytest.fixture
def ranking():
    entries = (
        entry("one", "ELBO", 1, True, 1.0),
        entry("two", "ELBO", 2, True, 1.1, 0.5),
        entry("three", "ELBO", 3, False, 9.0),
        entry("iwae", "L_4", 1, True, 2.0),
        entry("crooked", None, None, False, math.nan),
    )
    return Ranking(entries, {"DisARM": "no Bernoulli"}, 2, True, True, 16, 3)


def test_the_table_marks_ties_bounds_and_what_has_no_rank(ranking):
    lines = str(ranking).splitlines()
    assert [line.split()[1] for line in lines if line.startswith(("one ", "two ", "three "))] == ["1", "2=", "3"]
    order = [next(i for i, line in enumerate(lines) if line.startswith(text)) for text in ("gradient of the ELBO",
             "gradient of the L_4", "no bound", "left out: DisARM: no Bernoulli")]  # fmt: skip
    assert order == sorted(order)
    for words in (
        "no reason to prefer one bound",
        "The time was over",
        "biased gradient",
        "Seed 3, 2 rounds, 16 images",
    ):
        assert words in str(ranking)
    assert max(map(len, lines)) <= 120 and "2=" in ranking._repr_html_()


def test_gradients_of_no_bound_are_marked(ranking):
    marked = str(replace(ranking, no_bound="sites have weights"))
    assert "gradient of the ELBO*\n" in marked and "* no bound on log p(x) here: sites have weights" in marked
    assert "gradient of the ELBO\n" in str(ranking) and "no bound on log p(x)" not in str(ranking)


def test_it_says_whether_costs_are_measured_and_what_place_an_entry_has(ranking):
    assert "Cost: measured seconds of a draw. Seed 3" in str(ranking)
    assert "Cost: as given. Seed 3, 2 rounds.\n" in str(replace(ranking, timed=False, images=None))
    assert repr(ranking.entries[1]).startswith("Ranked(two: ELBO 2, variance × cost 1.1 [0.99, 1.32]")
    assert repr(ranking.entries[4]).startswith("Ranked(crooked: without a rank, ")
    with pytest.raises(FrozenInstanceError):
        ranking.entries[0].rank = 2


def test_best_and_tied_by_bound(ranking):
    assert ranking.targets == ("ELBO", "L_4")
    assert (ranking.best(), ranking.best("L_4")) == ("one", "iwae")
    assert (ranking.tied(), ranking.tied("L_4")) == (("one", "two"), ("iwae",))
    with pytest.raises(ValueError, match="one of: ELBO, L_4; got 'L_5'"):
        ranking.best("L_5")
    assert repr(ranking) == "Ranking(5 estimators; ELBO: one, L_4: iwae)"


def test_numbers_for_json_and_pandas(ranking):
    found = json.loads(json.dumps(ranking.to_dict(), allow_nan=False))
    assert found["entries"][4]["score"]["value"] is None and found["entries"][1]["tied"]
    frame = ranking.to_frame()
    assert frame.loc["two", "rank"] == 2 and frame.loc["three", "score_high"] == pytest.approx(10.8)


def test_names_in_any_order_of_the_alphabet():
    first, second = entry("z", "ELBO", 1, True, 1.0), entry("a", "L_2", 1, True, 2.0)
    ranking = Ranking((first, second), {}, 1, False, False, None, 0)
    assert (ranking.tied(), ranking.tied("L_2")) == (("z",), ("a",))
    with pytest.raises(FrozenInstanceError):
        ranking.seed = 1


def test_notes_of_what_there_is_alone(ranking):
    plain = Ranking(ranking.entries[:2], {}, 1, False, False, None, 0)
    for words in ("few draws", "The time was over", "Variances of different bounds", "biased gradient", "left out"):
        assert words not in str(plain)
    rough = replace(ranking.entries[0], score=Estimate(1.0, 0.9, 1.2, freedom=2.0))
    assert "? a few draws make the width" in str(replace(plain, entries=(rough,)))
