"""Whether the best estimator is found: choices that are known, and two programs from end to end."""

import json
from functools import partial

import pytest
from pyro.infer import Trace_ELBO

from experiments import best
from pyro_vae.comparison import Estimate, Ranked, Ranking
from pyro_vae.estimators import StickingTheLanding


def ranking(tied=(), **scores):
    """A ranking of estimators of the ELBO by these scores."""
    entries = [
        Ranked(name, "ELBO", place, place == 1 or name in tied, Estimate(score, score, score),
               Estimate(score, score, score), None, None, 1.0, 32)
        for place, (name, score) in enumerate(sorted(scores.items(), key=lambda item: item[1]), 1)
    ]  # fmt: skip
    return Ranking(tuple(entries), {}, 1, False, True, 4, 0)


def test_a_choice_is_as_good_as_its_score_in_the_long_ranking():
    long = ranking(tied=("c",), a=1.0, b=1.05, c=2.0, d=3.0)
    found = [best.choice(ranking(**{name: 1.0}), long, "ELBO") for name in "abcd"]
    assert [each["ratio"] for each in found] == [1.0, 1.05, 2.0, 3.0]
    assert [each["tied"] for each in found] == [True, False, True, False]
    cells = [{"program": "p", "choices": {"ELBO": each}} for each in found]
    assert "2 of 4 within 10 % of the best, 1 more cannot be told apart" in best.table(cells)
    assert "c, 2.00 times the score of a, which cannot be told apart" in best.line(cells[2])


def test_a_best_score_of_zero():
    assert best.choice(ranking(a=0.0), ranking(a=0.0, b=1.0), "ELBO")["ratio"] == 1.0


@pytest.mark.slow
def test_cells_are_kept_and_the_same_command_goes_on(tmp_path, capsys, monkeypatch):
    few = {"Trace_ELBO": Trace_ELBO(), "sticking": StickingTheLanding()}
    monkeypatch.setattr(best, "best_estimator", partial(best.best_estimator, estimators=few))
    words = ["--quick", "--quiet", "--seconds", "0.01", "--images", "4", "--out", str(tmp_path / "best")]
    assert best.main([*words, "--programs", "eight_schools"]) == 0
    before = (tmp_path / "best" / "eight_schools-seed0.json").stat().st_mtime_ns
    assert best.main([*words, "--programs", "eight_schools", "oracle"]) == 0
    assert (tmp_path / "best" / "eight_schools-seed0.json").stat().st_mtime_ns == before
    found = json.loads((tmp_path / "best.json").read_text())["cells"]
    assert [cell["program"] for cell in found] == ["oracle", "eight_schools"]
    assert all(cell["choices"]["ELBO"]["chosen"] for cell in found)
    assert "first bound of each program" in capsys.readouterr().out


@pytest.mark.parametrize("name", best.PROGRAMS)
def test_all_programs_are_known(name):
    assert name in best.OF_IMAGES or name in best.svi_programs.PROGRAMS
