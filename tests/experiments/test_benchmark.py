"""The benchmark measures the same step in every way, and its ratios are those of one round."""

import argparse
import inspect
import re
from copy import deepcopy
from pathlib import Path

import pyro
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO

from experiments import benchmark, run
from experiments.benchmarks import parts, quality, ranks, scaling, speed, start, summary, ways
from pyro_vae import load
from pyro_vae.data import Data, Split
from pyro_vae.files import cache_folder
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_parts_are_compared_with_the_first_in_each_round(monkeypatch):
    monkeypatch.setitem(parts.PARTS, "VampPrior of 500", {"prior": "vamp", "components": 5})
    with pyro.validation_enabled(False):
        case = parts.cost(RANDOM, Eager, rounds=2, steps=2, batch=10)
    assert case["ratios"]["standard normal, mean-field"] == 1.0 and min(case["ratios"].values()) > 0
    assert all(len(seconds) == 2 for seconds in case["seconds"].values())
    assert parts.table([case]).count("ms a step") == len(parts.PARTS)


@pytest.mark.slow
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
    assert len(set(caches)) == 2 and [(row["cold"], row["warm"]) for row in found[0]["rounds"]] == [(12.5, 2.5)] * 2
    rows = {row.name: row for row in start.rows_of(found[0])}
    assert rows["MLP, batch 20: first compiled step, warm cache"].rounds == [2.5, 2.5]
    assert all(0 < value < 2.5 for value in rows["MLP, batch 20: fresh shell to two steps, cold cache"].rounds)
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


@pytest.mark.slow
def test_time_to_quality_is_that_of_the_recipe_from_a_cold_start(tmp_path, monkeypatch):
    caches = []

    def in_this_process(command, check, env):
        caches.append(env["TORCHINDUCTOR_CACHE_DIR"])
        assert env["XDG_CACHE_HOME"] == caches[-1] and Path(env["PYRO_VAE_DATA"]) == cache_folder()
        assert command[1] == run.__file__ and run.main(command[2:]) == 0

    monkeypatch.delenv("PYRO_VAE_DATA", raising=False)
    monkeypatch.setattr("subprocess.run", in_this_process)
    monkeypatch.setattr("pyro_vae.runs.origins.git_commit", lambda: None)
    images = load("digits")
    small = ["--dataset", "digits", "--net", "mlp", "--hidden", "16", "--flow-width", "8", "--latent", "2"]
    words = [*small, "--epochs", "2", "--engine", "eager", "--precision", "float32"]
    runs = [quality.trained(images, "fast", seed, 30, tmp_path, words) for seed in (0, 1, 0)]
    with pytest.raises(ValueError, match=r"fast_seed0_evidence.json holds log p\(x\) by 30 particles, wanted 31"):
        quality.trained(images, "fast", 0, 31, tmp_path, words)
    del caches[3]
    assert len(set(caches)) == 3 and runs[0] == runs[2] != runs[1]
    assert runs[0]["settings"]["prior"] == "autoregressive" and len(runs[0]["history"]) == 2
    assert runs[0]["seconds"] == runs[0]["history"][-1]["seconds"] > 0
    assert runs[0]["evidence"]["num_particles"] == 30 and runs[0]["evidence"]["images"] == 250
    assert runs[0]["seconds"] < runs[0]["seconds_from_shell"]
    lowest = min(run["evidence"]["log_px"] for run in runs)
    assert [row.rounds for row in quality.rows_of(runs)][1] == [lowest] and quality.rows_of(runs)[0].wanted == 60
    (tmp_path / "fast_seed0_shell.json").unlink()  # as if the run had been interrupted
    assert quality.trained(images, "fast", 0, 30, tmp_path, words)["seconds_from_shell"] is None
    assert runs[0]["evidence"]["log_px"] > runs[0]["test"]["bound"]
    assert "reached" in quality.table(runs)  # images of 64 pixels have few nats
    runs[0]["evidence"]["log_px"] = quality.TARGET - 1
    assert "missed by 1.00" in quality.table(runs)
    assert re.search(r"\n\| fast \| 1 \| \d+ \| \d+ \| −\d+\.\d\d nats ± \d", quality.markdown(runs))
    assert "\n| 1 | −" in quality.markdown(runs)
    assert len(quality.figure(runs).axes[0].get_lines()) > 2 * len(runs)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--scaling", "--nets", "mlp"],
            "--nets: ignored beside --scaling; write --start or --ranks or --profile or --summary, or no",
        ),
        (
            ["--parts", "--only", "fit"],
            "--only: ignored beside --parts; write --summary, or no question, or leave --only",
        ),
        (
            ["--start", "--images", "9"],
            "--images: ignored beside --start; write --ranks or --profile or --summary, or no",
        ),
        (["--seeds", "0"], "--seeds: ignored without a question; write --quality or --summary, or leave --seeds out"),
        (["--groups", "step"], "--groups: ignored without a question; write --summary, or leave --groups out"),
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
    if module is summary:
        assert all(set(group.OPTIONS) - {"recipes"} <= set(module.OPTIONS) for group in summary.GROUPS.values())
        read.update(*(group.OPTIONS for group in summary.GROUPS.values()))
        read.remove("recipes")
    assert read - {"out", "data_dir"} == set(module.OPTIONS)
    flag = [] if question == benchmark.SPEED else [f"--{question}"]
    values = {"nets": ["mlp"], "only": ["fit"], "groups": ["step"], "resume": []}
    words = [word for option in module.OPTIONS for word in (f"--{option}", *values.get(option, ["1"]))]
    assert benchmark.parse_arguments([*flag, *words]).question == question
