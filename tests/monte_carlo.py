"""Means of random draws against known numbers, in tests that can fail: the error that each would find is stated.

A check of a right number fails with a probability of at most 1e-4, of all its entries together, and as the seeds are
drawn once it then always does. One of a number that is off by ``sees`` or more passes with one of at most 1e-3: too few
draws for that fail by themselves.
"""

import torch
from scipy import stats

ALARM, MISS = 1e-4, 1e-3


def assert_mean_is(draws, wanted, *, sees, error=0.0):
    """Check the mean of draws (N, ...) over their first dimension, in its standard errors, by Student's t.

    Args:
        draws: independent of each other.
        wanted: the exact mean, or an estimate of it that has a standard ``error`` of its own.
        sees: the error of the mean that would matter.
        error: the standard error of ``wanted``.
    """
    draws = torch.as_tensor(draws)
    assert_estimate_is(
        draws.mean(0), wanted, (draws.var(0) / len(draws) + error**2) ** 0.5, sees=sees, draws=len(draws)
    )


def assert_estimate_is(found, wanted, error, *, sees, draws=10**9, rounding=1e-9):
    """Check estimates that have these standard errors, found from so many draws, as ``assert_mean_is`` does."""
    found, wanted, error = map(torch.as_tensor, (found, wanted, error))
    gap, student = (found - wanted).abs(), stats.t(draws - 1)
    allowed = student.isf(ALARM / 2 / gap.numel())
    least = (allowed + student.isf(MISS)) * error.max().item()
    assert least <= sees, f"draws that see errors from {least:.3g} cannot see one of {sees:.3g}"
    assert (gap <= allowed * error + rounding).all(), f"{found} is not {wanted}: {gap / error} standard errors"


def assert_evidence_is(evidence, wanted, *, sees, rounding=1e-5):
    """Check estimates of log p(x), in nats, against known values."""
    wanted, draws = torch.as_tensor(wanted).reshape(evidence.log_px.shape), evidence.num_particles
    assert_estimate_is(evidence.log_px, wanted, evidence.standard_error, sees=sees, draws=draws, rounding=rounding)


def assert_share_is(held, *, at_least=0.0, at_most=1.0, sees):
    """Check in what share of independent trials something held, by the binomial distribution.

    Args:
        held: whether it did, (N,).
        at_least, at_most: bounds of its probability.
        sees: a probability beyond the bounds that would matter.
    """
    count, n = int(sum(held)), len(held)
    fewest, most = stats.binom.ppf(ALARM / 2, n, at_least), stats.binom.isf(ALARM / 2, n, at_most)
    missed = stats.binom.cdf(most, n, sees) - stats.binom.cdf(fewest - 1, n, sees)
    assert missed <= MISS, (
        f"of {n} trials {fewest:.0f} to {most:.0f} may hold, with {sees} too by a chance of {missed:.2g}"
    )
    assert fewest <= count <= most, f"{count} of {n} held, wanted {fewest:.0f} to {most:.0f}"
