"""Any weights given to ``from_log_weights``: their statistics, as by exact sums, or an error that names the images."""

import json
import math
import re
import warnings
from fractions import Fraction

import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from pyro_vae.evidence import from_log_weights

OFTEN = settings(max_examples=10 * settings.default.max_examples)
FINITE = st.floats(-50, 50) | st.floats(-1e6, 1e6) | st.sampled_from([0.0, -745.0, -1e300, 1e300, -5e-324])
ANY = FINITE | st.sampled_from([-math.inf, math.inf, math.nan])
SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 3))


def exactly(column):
    """log mean w, sd(w) / (mean(w) √K) and (Σ w)² / Σ w² of a column with a finite weight, by sums of fractions."""
    peak, K = max(column), len(column)
    w = [Fraction(math.exp(value - peak)) for value in column]
    mean, squares = sum(w) / K, sum(value**2 for value in w)
    variance = float((squares - K * mean**2) / (K - 1) / K / mean**2) if K > 1 else math.nan
    return peak + math.log(mean), math.sqrt(max(variance, 0.0)), float((K * mean) ** 2 / squares)


@OFTEN
@given(arrays.arrays(np.float64, SHAPES, elements=ANY), st.booleans())
def test_any_weights_have_the_statistics_of_exact_sums_or_an_error_names_the_images(log_w, single):
    with np.errstate(over="ignore"):
        log_w = log_w.astype(np.float32) if single else log_w
    broken = np.flatnonzero(np.isnan(log_w).any(0) | (log_w == math.inf).any(0)).tolist()
    lost = np.flatnonzero((log_w == -math.inf).all(0)).tolist()
    if broken or lost:
        with pytest.raises(ValueError, match=r"log weights? (are|is) (NaN or|−inf)") as caught:
            from_log_weights(torch.from_numpy(log_w))
        named = re.search(r"images ([\d, and]+)", str(caught.value)).group(1)
        assert [int(word) for word in re.findall(r"\d+", named)] == (broken or lost)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evidence = from_log_weights(torch.from_numpy(log_w))
        assert str(evidence) and repr(evidence) and evidence._repr_html_()
    for image, column in enumerate(log_w.T.tolist()):
        log_px, error, ess = exactly(column)
        assert evidence.log_px[image].item() == pytest.approx(log_px, rel=1e-12, abs=1e-12)
        assert evidence.standard_error[image].item() == pytest.approx(error, rel=1e-6, abs=1e-7, nan_ok=True)
        assert evidence.ess[image].item() == pytest.approx(ess, rel=1e-12)
    assert evidence.mean == pytest.approx(evidence.log_px.numpy().mean(), rel=1e-12)
    assert json.loads(json.dumps(evidence.to_dict(), allow_nan=False))["num_particles"] == len(log_w)


@OFTEN
@given(arrays.arrays(np.float64, SHAPES, elements=st.floats(-300, 300)), st.floats(-1e3, 1e3), st.randoms())
def test_a_factor_of_the_weights_and_their_order_change_no_statistic(log_w, shift, random):
    order = random.sample(range(len(log_w)), len(log_w))
    evidence, other = (from_log_weights(torch.from_numpy(w)) for w in (log_w, log_w[order] + shift))
    torch.testing.assert_close(other.log_px, evidence.log_px + shift, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(other.ess, evidence.ess, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(other.standard_error, evidence.standard_error, rtol=1e-5, atol=1e-6, equal_nan=True)


@OFTEN
@given(st.integers(2, 200), st.floats(-1e5, 1e5))
def test_one_weight_that_is_not_zero_is_one_particle(K, value):
    log_w = torch.full((K, 1), -math.inf, dtype=torch.float64)
    log_w[K // 2] = value
    evidence = from_log_weights(log_w)
    assert evidence.log_px.item() == pytest.approx(value - math.log(K), rel=1e-12, abs=1e-9)
    assert evidence.ess.item() == pytest.approx(1.0)
    assert evidence.standard_error.item() == pytest.approx(1.0)  # sd(w) / (mean(w) √K) of a single one among zeros
