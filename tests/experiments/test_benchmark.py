"""The benchmark measures the same step in every way, and its ratios are those of one round."""

import argparse
import inspect
import re
from copy import deepcopy

import pyro
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO

from experiments import benchmark, run
from experiments.benchmarks import parts, quality, ranks, scaling, speed, start, ways
from pyro_vae import load
from pyro_vae.data import Data, Split
from pyro_vae.training.engines import Eager

PIXELS = torch.randint(256, (40, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
RANDOM = Data("random", *(Split(PIXELS, None) for _ in range(3)))


@pytest.mark.parametrize("net", ["mlp", "conv", "default"])
def test_the_step_by_hand_is_the_programs(net):
    vae = ways.build(net)
    torch.manual_seed(1)
    by_hand = ways.ByHand(vae)(PIXELS)
    torch.manual_seed(1)
    x = vae.observe(PIXELS)
    torch.testing.assert_close(by_hand, TraceMeanField_ELBO()(vae.model, vae.guide)(x), rtol=1e-4, atol=0.0)


def test_the_whole_step_by_hand_is_that_with_torchs_adam(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda **_: lambda step: step)
    modules = [module := ways.ByHand(ways.build("mlp")), deepcopy(module)]
    for module, make in zip(modules, (ways.step_by_hand, ways.whole_step_by_hand)):
        torch.manual_seed(1)
        step = make(module)
        for _ in range(3):
            step(PIXELS)
    first, other = (torch.nn.utils.parameters_to_vector(module.parameters()) for module in modules)
    torch.testing.assert_close(first, other, rtol=0.0, atol=1e-4)  # a step of Adam is 1e-3
    assert not torch.equal(first, torch.nn.utils.parameters_to_vector(ways.ByHand(ways.build("mlp")).parameters()))


def test_every_way_that_is_not_compiled_is_timed_in_every_round():
    names = ["fit", "svi", "eager", "torch eager"]
    args = argparse.Namespace(images=40, rounds=2, only=names, nets=["mlp"], batches=[20])
    with pyro.validation_enabled(False):
        found = speed.measure(RANDOM, args)
    (case,) = found["steps"]
    assert list(case["medians"]) == names and all(len(rates) == 2 for rates in case["images_per_second"].values())
    assert all(rate > 0 for rates in case["images_per_second"].values() for rate in rates)
    assert case["flops_per_image"] == pytest.approx(2 * (3 * 784 * 400 * 2 - 784 * 400 + 3 * 400 * 60), rel=0.01)
    assert "eager" in speed.table(found) and "evaluate, mlp" in speed.table(found)
    assert len(speed.figure(found).axes) == 1


def test_ratios_are_taken_within_a_round():
    assert speed.ratio({"a": [1.0, 20.0, 3.0], "b": [1.0, 10.0, 1.0]}, "a", "b") == 2.0


def test_other_images_are_refused(capsys):
    assert benchmark.main(["--dataset", "digits"]) == 1
    assert "1 × 28 × 28" in capsys.readouterr().err
    assert load("digits").shape == (1, 8, 8)


def test_parts_are_compared_with_the_first_in_each_round(monkeypatch):
    monkeypatch.setitem(parts.PARTS, "VampPrior of 500", {"prior": "vamp", "components": 5})
    with pyro.validation_enabled(False):
        case = parts.cost(RANDOM, Eager, rounds=2, steps=2, batch=10)
    assert case["ratios"]["standard normal, mean-field"] == 1.0 and min(case["ratios"].values()) > 0
    assert all(len(seconds) == 2 for seconds in case["seconds"].values())
    assert parts.table([case]).count("ms a step") == len(parts.PARTS)


def test_one_size_grows_at_a_time(monkeypatch):
    monkeypatch.setattr(scaling, "SIZES", {"images": (2, 200), "side": (8, 56)})
    with pyro.validation_enabled(False):
        costs = scaling.measure(RANDOM, argparse.Namespace(rounds=3))
    assert costs["images"][2] < costs["images"][200] and costs["side"][8] < costs["side"][56]
    assert scaling.table(costs).count(" ms") == 4 and len(scaling.figure(costs).axes) == 2


def test_the_start_is_cold_once_and_warm_after(monkeypatch):
    caches = []

    def in_this_process(command, check, stdout, cwd, env):
        caches.append(env["TORCHINDUCTOR_CACHE_DIR"])
        assert command[1:] == ["-m", "experiments.benchmarks.start", "mlp", "20"]
        assert (cwd / "experiments/benchmarks/start.py").is_file()
        return argparse.Namespace(stdout=b"12.5" if caches.count(caches[-1]) == 1 else b"2.5")

    monkeypatch.setattr("subprocess.run", in_this_process)
    found = start.measure(RANDOM, argparse.Namespace(nets=["mlp"], batches=[20], rounds=2))
    assert len(set(caches)) == 2 and found[0]["rounds"] == [{"cold": 12.5, "warm": 2.5}] * 2
    assert start.table(found) == "mlp, batch 20: cold 12.5 to 12.5 s, warm 2.5 to 2.5 s"


def test_ranks_share_the_cores_and_the_batch(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)

    def in_this_process(command, check, stdout, cwd, env):
        number = int(command[4].partition("=")[2])
        assert env["OMP_NUM_THREADS"] == str(4 // number) and command[-3:] == ["mlp", "20", "40"]
        return argparse.Namespace(stdout=b"100.0" if number == 1 else b"90.0")

    monkeypatch.setattr("subprocess.run", in_this_process)
    found = ranks.measure(RANDOM, argparse.Namespace(nets=["mlp"], batches=[20], rounds=1, images=40))
    assert ranks.table(found) == "mlp, batch 20: 1 rank 100 images/s, 2 ranks 90 images/s, ratio 0.90"
    assert found[0]["ratio"] == 0.9 and len(ranks.figure(found).axes) == 1


def test_time_to_quality_is_that_of_the_recipe_from_a_cold_start(tmp_path, monkeypatch):
    caches = []

    def in_this_process(command, check, env):
        caches.append(env["TORCHINDUCTOR_CACHE_DIR"])
        assert command[1] == run.__file__ and run.main(command[2:]) == 0

    monkeypatch.setattr("subprocess.run", in_this_process)
    monkeypatch.setattr("pyro_vae.runs.origins.git_commit", lambda: None)
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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--scaling", "--nets", "mlp"],
            "--nets: ignored beside --scaling; write --start or --ranks, or no question, or leave --nets out",
        ),
        (["--parts", "--only", "fit"], "--only: ignored beside --parts; write no question, or leave --only out"),
        (["--start", "--images", "9"], "--images: ignored beside --start; write --ranks, or no question, or leave"),
        (["--seeds", "0", "1", "2"], "--seeds: ignored without a question; write --quality, or leave --seeds out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_option_that_the_question_ignores_is_refused(capsys, words, message):
    assert benchmark.main(words) == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")


@pytest.mark.parametrize("question", benchmark.QUESTIONS)
def test_a_question_takes_the_options_that_it_reads(question):
    module = benchmark.QUESTIONS[question]
    read = set(re.findall(r"args\.(\w+)", inspect.getsource(module)))
    assert read - {"out", "data_dir"} == set(module.OPTIONS)
    flag = [] if question == benchmark.SPEED else [f"--{question}"]
    values = {"nets": "mlp", "only": "fit"}
    words = [word for option in module.OPTIONS for word in (f"--{option}", values.get(option, "1"))]
    assert benchmark.parse_arguments([*flag, *words]).question == question
