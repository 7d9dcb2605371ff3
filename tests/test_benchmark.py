"""The benchmark measures the same step in every way, and its ratios are those of one round."""

import argparse

import benchmark
import pyro
import pytest
import quality
import run
import torch
from pyro.infer import TraceMeanField_ELBO

from pyro_vae import load
from pyro_vae.data import Data, Split

PIXELS = torch.randint(256, (40, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("net", ["mlp", "conv", "default"])
def test_the_step_by_hand_is_the_programs(net):
    vae = benchmark.build(net)
    torch.manual_seed(1)
    by_hand = benchmark.ByHand(vae)(PIXELS)
    torch.manual_seed(1)
    x = vae.observe(PIXELS)
    torch.testing.assert_close(by_hand, TraceMeanField_ELBO()(vae.model, vae.guide)(x), rtol=1e-4, atol=0.0)


def test_every_way_that_is_not_compiled_is_timed_in_every_round():
    ways = ["fit", "svi", "eager", "torch eager"]
    args = argparse.Namespace(images=40, rounds=2, only=ways)
    split = Split(PIXELS, None)
    with pyro.validation_enabled(False):
        case = benchmark.compare(Data("random", split, split, split), "mlp", 20, args)
    assert list(case["medians"]) == ways and all(len(rates) == 2 for rates in case["images_per_second"].values())
    assert all(rate > 0 for rates in case["images_per_second"].values() for rate in rates)
    assert case["flops_per_image"] == pytest.approx(2 * (3 * 784 * 400 * 2 - 784 * 400 + 3 * 400 * 60), rel=0.01)
    assert "eager" in benchmark.speed_table({"speed": [case], "peak": benchmark.peak(), "evaluation": []})


def test_ratios_are_taken_within_a_round():
    assert benchmark.ratio({"a": [1.0, 20.0, 3.0], "b": [1.0, 10.0, 1.0]}, "a", "b") == 2.0


def test_other_images_are_refused(capsys):
    assert benchmark.main(["--dataset", "digits"]) == 1
    assert "1 × 28 × 28" in capsys.readouterr().err
    assert load("digits").shape == (1, 8, 8)


def test_parts_are_compared_with_the_first_in_each_round(monkeypatch):
    monkeypatch.setitem(benchmark.PARTS, "VampPrior of 500", {"prior": "vamp", "components": 5})
    split = Split(PIXELS, None)
    with pyro.validation_enabled(False):
        data = Data("random", split, split, split)
        case = benchmark.cost_of_parts(data, benchmark.Eager, rounds=2, steps=2, batch=10)
    assert case["ratios"]["standard normal, mean-field"] == 1.0 and min(case["ratios"].values()) > 0
    assert all(len(seconds) == 2 for seconds in case["seconds"].values())
    assert benchmark.parts_table([case]).count("ms a step") == len(benchmark.PARTS)


def test_time_to_quality_is_that_of_the_recipe_from_a_cold_start(tmp_path, monkeypatch):
    caches = []

    def in_this_process(command, check, env):
        caches.append(env["TORCHINDUCTOR_CACHE_DIR"])
        assert command[1] == run.__file__ and run.main(command[2:]) == 0

    monkeypatch.setattr("subprocess.run", in_this_process)
    monkeypatch.setattr("results.git_commit", lambda: None)
    small = ["--dataset", "digits", "--net", "mlp", "--hidden", "16", "--flow-width", "8", "--latent", "2"]
    words = [*small, "--epochs", "2", "--engine", "eager", "--precision", "float32"]
    runs = [quality.trained(seed, 30, tmp_path / f"seed{seed}", words) for seed in (0, 1, 0)]
    with pytest.raises(ValueError, match=r"seed0 holds a run whose log p\(x\) is by 30 particles, wanted 31"):
        quality.trained(0, 31, tmp_path / "seed0", words)
    del caches[3]
    assert len(set(caches)) == 3 and runs[0] == runs[2] != runs[1]
    assert runs[0]["settings"]["prior"] == "autoregressive" and len(runs[0]["history"]) == 2
    assert runs[0]["seconds"] == runs[0]["history"][-1]["seconds"] > 0
    assert runs[0]["evidence"]["num_particles"] == 30 and runs[0]["evidence"]["images"] == 250
    assert "reached" in quality.table(runs)  # images of 64 pixels have few nats
    runs[0]["evidence"]["log_px"] = quality.TARGET - 1
    assert "missed by 1.00" in quality.table(runs)
    assert len(quality.figure(runs).axes[0].get_lines()) > 2 * len(runs)
