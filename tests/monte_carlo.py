"""Means of random draws against known numbers, in tests that can fail: the error that each would find is stated."""

import torch

SIGMAS = 4  # of a mean: a right one is further away with a probability of 6e-5, as the seeds are drawn once


def assert_mean_is(draws, wanted, *, sees, error=0.0):
    """Check the mean of draws (N, ...) over their first dimension, within four of its standard errors.

    Args:
        draws: independent of each other.
        wanted: the exact mean, or an estimate of it that has a standard ``error`` of its own.
        sees: the error of the mean that would matter. There must be so many draws that one of this size, or a larger
            one, goes unseen with a probability of at most 6e-5.
        error: the standard error of ``wanted``.
    """
    draws = torch.as_tensor(draws)
    assert_estimate_is(draws.mean(0), wanted, (draws.var(0) / len(draws) + error**2) ** 0.5, sees=sees)


def assert_estimate_is(found, wanted, error, *, sees):
    """Check estimates that have these standard errors, as ``assert_mean_is`` does."""
    found, wanted, error = map(torch.as_tensor, (found, wanted, error))
    least = 2 * SIGMAS * error.max().item()
    assert least <= sees, f"draws that see errors from {least:.3g} cannot see one of {sees:.3g}"
    gap = (found - wanted).abs()
    assert (gap <= SIGMAS * error + 1e-9).all(), f"{found} is not {wanted}: {(gap / error).max():.1f} standard errors"
