"""The tables of a comparison hold its numbers, in one row for each estimator or pair."""

import pytest
from comparing import compare, oracle
from pyro.infer import Trace_ELBO

from pyro_vae.comparison.intervals import short
from pyro_vae.comparison.report import report
from pyro_vae.estimators import ImportanceWeighted

pytestmark = pytest.mark.slow


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


def test_of_one_batch_there_is_no_table_between_batches():
    program, x = oracle()
    result = compare(program.model, program.guide, x, draws=5, estimators={"A": Trace_ELBO()})
    assert len(report(result)) == 3 and "between batches" not in str(result)
