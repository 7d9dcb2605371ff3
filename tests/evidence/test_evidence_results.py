"""Statistics of log weights, and their summaries over images."""

import json
import math
from dataclasses import replace

import pytest
import torch

from pyro_vae.evidence import from_log_weights


def test_statistics_of_log_weights():
    w = torch.tensor([[1.0, 2.0, 3.0, 6.0]], dtype=torch.float64).T
    for shift in (0.0, -5000.0):  # a constant factor of the weights moves the logarithm and nothing else
        evidence = from_log_weights(w.log() + shift)
        assert evidence.log_px.item() == pytest.approx(math.log(3) + shift)
        assert evidence.ess.item() == pytest.approx(144 / 50)
        assert evidence.standard_error.item() == pytest.approx(math.sqrt(14 / 3) / 3 / 2)


def test_summary_over_images():
    log_px, error = torch.tensor([-1.0, -2.0, -6.0]).double(), torch.tensor([0.3, 0.4, 0.0]).double()
    evidence = replace(from_log_weights(torch.zeros(30, 3)), log_px=log_px, standard_error=error)
    assert evidence.mean == -3
    assert evidence.mean_standard_error == pytest.approx(math.sqrt(7 / 3))
    assert evidence.monte_carlo_error == pytest.approx(0.5 / 3)
    assert json.loads(json.dumps(evidence.to_dict(), allow_nan=False))["log_px"] == -3
    one = from_log_weights(torch.zeros(1, 1)).to_dict()
    assert one["standard_error"] is None and one["monte_carlo_error"] is None and one["log_px"] == 0


def test_log_weights_that_are_no_numbers():
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r"images 1[;]"):
            from_log_weights(torch.tensor([[0.0, value], [0.0, 0.0]]))


def test_weights_of_other_kinds_than_one_can_weigh():
    for wrong in (torch.zeros(5), torch.zeros(0, 3), torch.zeros(5, 2).bfloat16(), torch.zeros(5, 2).long(), [[0.0]]):
        with pytest.raises(ValueError, match=r"log_w: wanted a tensor \(K, images\) of float32 or float64"):
            from_log_weights(wrong)


def test_trusted_where_the_tail_is_surely_light():
    """With a chance of about 10⁻⁶ of another verdict: 50 images of 1,000 weights agree on a shape to 0.03."""
    log_u = torch.rand(1000, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log()
    assert from_log_weights(-0.2 * log_u).trusted.all() and not from_log_weights(-0.6 * log_u).trusted.any()
    by_chance = from_log_weights(-0.6 * log_u).pareto_k < 0.5  # k̂ of one image is rough: those are not trusted either
    assert by_chance.any()
    assert not from_log_weights(-0.2 * log_u[:16]).trusted.any()  # too few to tell
    assert from_log_weights(torch.zeros(1000, 2)).trusted.all()
    assert from_log_weights(-0.6 * log_u).to_dict()["share_trusted"] == 0


def test_the_interval_is_wider_where_the_error_is_uncertain():
    """By the quantile of Student's distribution: of 50 tails of shape 0.1, 0.4 and 0.8, and of a sample of 10."""
    log_u = torch.rand(1000, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log()

    def reach(evidence):
        low, high = ((evidence.interval - evidence.log_px[:, None]) / evidence.standard_error[:, None]).T
        torch.testing.assert_close(low, -high)
        return high.numpy()

    light, heavy, heavier = (reach(from_log_weights(-k * log_u)) for k in (0.1, 0.4, 0.8))
    assert light == pytest.approx(1.962, abs=0.01) and (heavier > 4.3).all()
    assert (heavy > 2).all() and heavy.mean() < 3
    assert reach(from_log_weights(-0.1 * log_u[:10])) == pytest.approx(4.303, abs=0.001)  # 2 freedoms: nothing is known
    assert from_log_weights(torch.zeros(1, 2)).interval.isnan().all()
