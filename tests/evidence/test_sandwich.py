"""Summaries of bounds from both sides."""

import json
import math

import pytest
import torch

from pyro_vae.evidence import AnnealedSandwich, Sandwich

LOWER, UPPER, X = torch.tensor([-3.0, -5.0]).double(), torch.tensor([-2.0, -4.5]).double(), torch.zeros(2, 1)


def test_means_and_standard_errors_over_images():
    found = Sandwich(LOWER, UPPER, X, 500, seed=3).to_dict()
    assert (found["lower"], found["upper"], found["gap"]) == (-4, -3.25, 0.75)
    assert found["gap_standard_error"] == pytest.approx(0.25) and found["lower_standard_error"] == pytest.approx(1)
    assert (found["images"], found["num_particles"], found["seed"]) == (2, 500, 3)
    one = Sandwich(LOWER[:1], UPPER[:1], X[:1], 5).to_dict()
    assert one["gap_standard_error"] is None and json.loads(json.dumps(one, allow_nan=False)) == one


def test_settings_are_shown():
    text = str(Sandwich(LOWER, UPPER, X, 500, seed=3))
    assert "-4.000 ≤ log p(x) ≤ -3.250 nats per image on 2 simulated images, gap 0.750" in text
    assert "K = 500, seed 3" in text
    annealed = AnnealedSandwich(LOWER, UPPER, X, 8, acceptance=torch.ones(2) / 2, num_temperatures=30)
    assert "8 chains, 30 temperatures" in str(annealed) and repr(annealed).startswith("AnnealedSandwich(")
    found = annealed.to_dict()
    assert (found["acceptance"], found["num_temperatures"], found["num_particles"]) == (0.5, 30, 8)


def test_a_frame_has_a_row_for_each_image():
    frame = Sandwich(LOWER, UPPER, X, 500).to_frame()
    assert frame.gap.tolist() == [1, 0.5] and frame.index.tolist() == [0, 1] and not math.isnan(frame.lower[1])
