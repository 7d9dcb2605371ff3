"""The tables of a comparison hold its numbers, in one row for each estimator or pair."""

from dataclasses import replace

import pytest
from comparing import compare, estimate, made, oracle, pair, statistics
from pyro.infer import Trace_ELBO

from pyro_vae.comparison.intervals import short
from pyro_vae.comparison.report import report
from pyro_vae.estimators import ImportanceWeighted


def notes(result):
    return "\n".join(report(result)[-1].notes)


def test_a_table_says_where_its_numbers_are_from_and_marks_what_is_no_bound():
    two = {"A": statistics(-3.0, 2.0, 0.5), "W": statistics(-4.0, 8.0, 0.25, is_bound=False)}
    bounds, guide, *_ = report(made(two))
    assert bounds.title == "2 estimators, 50 draws each, seed 3, at one batch of 8 images; nats per image"
    assert [row[1] for row in bounds.rows] == ["-3.0000 ± 0.1250 ", "-4.0000 ± 0.1250*"]
    assert [row[4] for row in guide.rows] == ["1", "2"]  # variance × seconds, against the first one's
    assert "* minus the loss of an estimator that has no bound" in notes(made(two))
    assert "* minus the loss" not in notes(made({"A": two["A"]}))
    joint = report(made(two, images=None, batches=2))[0].title
    assert joint == "2 estimators, 50 draws each, seed 3, at 2 batches; nats for all data"


def test_a_note_says_why_a_program_has_no_bound():
    weighted = made({"A": statistics(-3.0, 2.0, 0.5, is_bound=False)}, no_bound="sites have weights")
    assert "* minus the loss, no bound on log p(x): sites have weights" in notes(weighted)
    assert "of an estimator that has no bound" not in notes(weighted)
    assert "minus loss -3.0000" in repr(weighted.estimators["A"])


def test_notes_say_what_is_not_known_and_what_was_left_out():
    known, silent = statistics(-3.0, 2.0, 0.5), statistics(-3.0, 2.0, 0.5, estimates=None)
    assert "no gradient is known" not in notes(made({"A": known, "B": known}))
    assert "no gradient is known" not in notes(made({"A": silent}))  # alone it agrees with nothing
    assert "no gradient is known to agree with that of B:" in notes(made({"A": known, "B": silent}))
    many = notes(made({"A": known, "B": silent, "C": silent, "D": silent}))
    assert "no gradient is known to agree with that of B, C, …:" in many
    assert "no gradient is known" not in notes(made({"A": known, "B": silent}, [pair("A", "B", 0.5)]))
    assert "shared by model and guide, counted as the guide's: 2 tensors" in notes(
        made({"A": known}, shared=("a", "b"))
    )
    assert "drawn one by one: A: it has no batching rule" in notes(
        made({"A": known}, eager={"A": "it has no batching rule"})
    )


@pytest.mark.parametrize(("count", "shown"), [(6, ["= E0 – E1", "  E0 – E2"]), (7, ["= E0 – E1"])])
def test_of_many_estimators_only_pairs_that_should_agree_are_shown(count, shown):
    pairs = [pair("E0", "E1", 0.5), pair("E0", "E2", 1e-9, expected=False)]
    result = made({f"E{n}": statistics(-3.0, 2.0, 0.5) for n in range(count)}, pairs)
    assert [row[0] for row in report(result)[-1].rows] == shown
    assert ("pairs that need not agree are in to_dict()" in notes(result)) == (count == 7)


def test_pairs_that_should_agree_and_do_not_are_marked():
    """Two pairs share the chance of a false alarm of one per cent."""
    pairs = [pair("A", "B", 0.006), pair("A", "C", 0.004), pair("A", "D", 1e-9, expected=False)]
    result = made({name: statistics(-3.0, 2.0, 0.5) for name in "ABCD"}, pairs)
    assert result.disagreements() == (pairs[1],)
    *_, table = report(result)
    assert table.columns == ["", "guide: z", "p"]
    assert [row[0] for row in table.rows] == ["= A – B", "! A – C", "  A – D"]


def test_intervals_of_few_draws_are_noted():
    doubtful = statistics(-3.0, 2.0, 0.5)
    doubtful = replace(doubtful, guide=replace(doubtful.guide, snr=estimate(0.5, freedom=3.0)))
    assert "? a few draws make the width" in notes(made({"A": doubtful}))
    assert "? a few draws make the width" not in notes(made({"A": statistics(-3.0, 2.0, 0.5)}))


@pytest.mark.slow
def test_tables_hold_the_numbers_of_the_result():
    program, x = oracle(offset=0.3)
    estimators = {"A": Trace_ELBO(), "B": Trace_ELBO(), "C": ImportanceWeighted(4)}
    result = compare(program.model, program.guide, batches=[(x,), (2 * x,)], draws=20, estimators=estimators)
    bounds, batches, guide, model, agreement = report(result)
    for table in (bounds, batches, guide, model):
        assert [row[0] for row in table.rows] == ["A", "B", "C"] and len(table.columns) == len(table.rows[0])
    entry = result.estimators["C"]
    assert bounds.rows[2][1].strip() == f"{entry.bound.mean:.4f} ± {entry.bound.standard_error:.4f}"
    assert batches.rows[2][2] == short(entry.guide.minibatch_variance)
    assert guide.rows[2][1:4] == (entry.guide.variance, entry.guide.snr, entry.guide.norm_ratio)
    assert model.rows[0][4] == "1"
    assert [row[0] for row in agreement.rows] == ["= A – B", "  A – C", "  B – C"]
    pair = next(pair for pair in result.agreements if (pair.first, pair.second, pair.group) == ("A", "C", "model"))
    assert agreement.rows[1][3:] == (f"{short(pair.largest_z)} ({pair.typical_largest_z:.1f})", short(pair.p_value))


@pytest.mark.slow
def test_of_one_batch_there_is_no_table_between_batches():
    program, x = oracle()
    result = compare(program.model, program.guide, x, draws=5, estimators={"A": Trace_ELBO()})
    assert len(report(result)) == 3 and "between batches" not in str(result)
