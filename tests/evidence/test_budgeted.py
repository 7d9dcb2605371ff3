"""The result of a budget, and its plan."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from pyro_vae.evidence import BudgetedEvidence, EvidencePlan, UntrustedEvidence
from pyro_vae.evidence.results import TRUSTED, warn_untrusted

PLAN = EvidencePlan(
    ("importance", "annealed-10"),
    torch.tensor([0, 1, 1]),
    torch.tensor([500, 64, 640]),
    torch.tensor([True, True, False]),
    0.05,
)


def evidence(k_hat=(0.1, 0.9, 0.2)):
    values = torch.tensor([-1.0, -2.0, -3.0]).double(), torch.tensor([0.04, 0.05, 0.9]).double()
    return BudgetedEvidence(*values, torch.full((3,), 50.0), torch.tensor(k_hat), 640, 0, plan=PLAN)


def test_trusted_by_pilots_and_by_the_draws_that_count():
    assert evidence().trusted.tolist() == [True, False, False]
    assert evidence((0.1, float("nan"), 0.2)).trusted.tolist() == [True, True, False]
    assert evidence((0.1, TRUSTED, 0.2)).trusted.tolist() == [True, True, False]  # at most 0.7
    assert evidence().untrusted == pytest.approx(2 / 3) and evidence().reached == pytest.approx(1 / 3)


def test_summary_names_the_methods():
    found, text = evidence().to_dict(), str(evidence())
    assert found["settled_by"] == {"importance": 1, "annealed-10": 2} and found["draws"] == 1204
    assert evidence().method == ("importance", "annealed-10", "annealed-10")
    assert "importance 1, annealed-10 2" in text and "64 to 640, 401 on average" in text
    assert "66.7% of the images cannot be trusted" in text
    assert repr(evidence()).startswith("BudgetedEvidence(log p(x) ≥ -2.00")


def test_warning_counts_what_is_not_trusted():
    with pytest.warns(UntrustedEvidence, match="2 of 3 images"):
        warn_untrusted(evidence())


def test_plan_of_some_images_and_back_from_tensors():
    part = EvidencePlan.from_tensors(PLAN.of([2, 0]).to_tensors())
    assert part.draws.tolist() == [640, 500] and part.methods == PLAN.methods and part.target == 0.05


def test_the_summary_has_the_numbers_of_the_images_and_is_fixed():
    found = evidence().to_dict()
    assert found["share_pareto_k_above_0.7"] == pytest.approx(1 / 3)
    assert found["share_reached"] == pytest.approx(1 / 3) and found["target"] == 0.05
    assert found["log_px"] == -2 and found["images"] == 3
    for part, name in ((PLAN, "target"), (evidence(), "seed")):
        with pytest.raises(FrozenInstanceError):
            setattr(part, name, 1)
    sure = replace(evidence((0.1, 0.1, 0.1)), plan=replace(PLAN, trusted=torch.ones(3, dtype=torch.bool)))
    assert sure.untrusted == 0 and "cannot be trusted" not in str(sure)


def test_a_target_is_reached_with_a_fifth_to_spare():
    sure = replace(PLAN, trusted=torch.ones(3, dtype=torch.bool))
    errors = torch.tensor([0.055, 0.0599, 0.0601]).double()
    found = replace(evidence((0.1, 0.1, 0.1)), plan=sure, standard_error=errors)
    assert found.reached == pytest.approx(2 / 3)
