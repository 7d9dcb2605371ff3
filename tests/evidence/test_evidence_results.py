"""Statistics of log weights, and their summaries over images."""

import json
import math
from dataclasses import replace

import pytest
import torch

from pyro_vae.evidence import from_log_weights
from pyro_vae.evidence.results import AnnealedEvidence
from pyro_vae.evidence.sandwich import Sandwich


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


def test_one_bad_image_among_many_good_ones_is_not_trusted():
    log_w = 0.1 * torch.randn(500, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_w[:, 3] *= 40.0  # standard deviation 4: a few weights decide
    evidence = from_log_weights(log_w)
    assert evidence.pareto_k[3] > 0.7 and not evidence.trusted[3]
    assert evidence.trusted.sum() == 999


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


def annealed(k_hat=0.1):
    weights = from_log_weights(torch.zeros(30, 2))
    k_hat = torch.full((2,), k_hat, dtype=torch.float64)
    accepted, step = torch.tensor([0.8, 0.9]).double(), torch.tensor([0.5, 0.7]).double()
    parts = {"acceptance": accepted, "step_size": step, "num_temperatures": 50}
    return AnnealedEvidence(weights.log_px, weights.standard_error, weights.ess, k_hat, 30, 4, **parts)


def test_annealed_evidence_says_what_evidence_says_and_how_it_was_annealed():
    found = annealed().to_dict()
    assert found["num_particles"] == 30 and found["seed"] == 4 and found["images"] == 2
    assert (found["num_temperatures"], found["acceptance"]) == (50, pytest.approx(0.85))
    assert found["step_size"] == pytest.approx(0.6)
    assert "temperatures" in str(annealed()) and "0.85" in str(annealed())
    assert list(annealed().to_frame().columns)[-2:] == ["acceptance", "step_size"]


def test_a_chain_that_makes_up_most_of_an_estimate_is_doubted_where_chains_are_few():
    """Two of 16 chains that count alike are none."""
    few = replace(annealed(torch.nan), ess=torch.tensor([1.9, 2.1]).double(), num_particles=16)
    assert few.lone.tolist() == [True, False]
    assert few.doubt.startswith("a single one of 16 chains makes up most of p(x) for 1 of 2 images")
    assert few.doubt in " ".join(str(few).split()) and few.doubt.endswith(AnnealedEvidence.ADVICE)
    for sure in (replace(few, num_particles=3), replace(few, pareto_k=annealed(0.1).pareto_k), annealed(torch.nan)):
        assert not sure.lone.any() and sure.doubt == "" and "makes up" not in str(sure)


def test_what_evidence_shows():
    evidence = replace(from_log_weights(torch.zeros(30, 2)), log_px=torch.tensor([-1.25, -2.25]).double())
    assert "-1.750 ± 0.500 nats per image (n = 2, K = 30, seed None)" in str(evidence)
    assert "-1.75 ± 0.50 nats per image, n = 2, K = 30" in repr(evidence)
    assert repr(evidence).startswith("Evidence(") and repr(annealed()).startswith("AnnealedEvidence(")
    few = from_log_weights(torch.zeros(5, 2) + torch.arange(5.0)[:, None] / 9)
    assert "too few particles for k̂" in str(few) and "too few particles to tell" in str(few) and "%" not in repr(few)
    many = replace(evidence, pareto_k=torch.tensor([0.1, 0.9]).double())
    assert many.untrusted == 0.5 and "too few" not in str(many) and "k̂ > 0.7 for 50.0%" in repr(many)
    assert "Annealed" not in str(many) and math.isnan(few.untrusted)


def test_a_sandwich_says_when_chance_has_crossed_it():
    lower, x = torch.tensor([-3.0, -2.0]).double(), torch.zeros(2, 1)
    close = Sandwich(lower, lower + 0.25, x, num_particles=4)
    crossed = replace(close, upper=lower - 0.25)
    assert not close.joint and "-2.500 ≤ log p(x) ≤ -2.250 nats per image on 2 simulated images, gap 0.250" in str(
        close
    )
    assert "≤" not in repr(crossed) and "crossed" in str(crossed) and "crossed" not in str(close)
    assert close.to_dict()["gap"] == 0.25 and close.to_dict()["gap_standard_error"] == 0
