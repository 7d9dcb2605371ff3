"""Training over several processes: the same step as one, the same parameters on each, noise of their own."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import forked
import pytest
import torch
from programs import DIGITS, small_vae
from ranks_worker import gradient, refusals, train

from pyro_vae import fit, load_vae, log_evidence
from pyro_vae.training import ranks
from pyro_vae.training.loop import fixed_x

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("ranks_worker.py")
RUN = Path(__file__).parents[2] / "experiments" / "run.py"


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, WORKER.parents[:3]))}


def torchrun(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", WORKER, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """By processes that are started without torchrun, which takes seconds; others are started by it."""
    folder = tmp_path_factory.mktemp("two")
    file = folder / "result.pt"
    done = forked.ranks(WORKER, "train", file, folder=folder, variables=environment())
    assert done.returncode == 0, done.stderr
    return torch.load(file)


def test_two_ranks_take_the_step_of_one(two):
    loss, slope = gradient()
    torch.testing.assert_close(two["loss"], loss)
    torch.testing.assert_close(two["slope"], slope, rtol=1e-5, atol=1e-6)
    assert slope.abs().max() > 0.01


def test_ranks_have_the_same_parameters_and_results_and_noise_of_their_own(two):
    assert torch.equal(two["parameters"][0], two["parameters"][1])
    assert torch.equal(two["bounds"][0], two["bounds"][1])
    assert two["noise"][0] != two["noise"][1]


def test_ranks_choose_one_epoch_by_the_objective_of_all_images(two, tmp_path):
    assert torch.equal(two["objectives"][0], two["objectives"][1]) and torch.equal(two["chosen"][0], two["chosen"][1])
    assert two["kept"].tolist() == 2 * [1 + int(two["objectives"][0].argmax())]
    train(tmp_path / "result.pt")
    one = torch.load(tmp_path / "result.pt")["objectives"][0]
    # Other noise: one measurement has a standard error of half a nat.
    torch.testing.assert_close(two["objectives"][0], one, rtol=0.0, atol=2.5)
    assert one[-1] > one[0] + 1


def test_all_ranks_stop_after_the_step_in_which_one_is_interrupted(two):
    assert two["steps"].tolist() == [3, 3]


def test_without_noise_two_ranks_train_as_one(two, tmp_path):
    train(tmp_path / "result.pt")
    one = torch.load(tmp_path / "result.pt")
    assert two["bounds"][0, -1] > two["bounds"][0, 0] + 1
    torch.testing.assert_close(two["bounds"][0], one["bounds"][0], rtol=1e-5, atol=0.0)
    torch.testing.assert_close(two["parameters"][0], one["parameters"][0], rtol=1e-3, atol=1e-5)


def test_losses_that_do_not_add_up_over_ranks_are_refused_before_a_step(two, tmp_path):
    scaled, unknown = two["refused"]
    assert "losses of 2 parts of a batch are summed (2 ranks)" in scaled and "the scale of site 'z' depends" in scaled
    assert "nothing says that that of Unknown is a sum over rows" in unknown
    assert refusals() == ["", ""]  # in one process


def test_the_others_stop_where_a_rank_dies():
    start = time.perf_counter()
    done = torchrun("die", "unused")
    assert done.returncode != 0 and time.perf_counter() - start < 60
    assert "exitcode  : 3" in done.stderr  # by the rank that died, and not by an error of its own


def test_a_run_of_two_ranks_of_which_one_was_killed_resumes_to_the_same_bits(tmp_path):
    """Without noise: that of the other ranks is drawn anew."""
    for name in ("whole", "killed", "resumed"):
        (tmp_path / name).mkdir()
    done = forked.ranks(WORKER, "whole", tmp_path / "whole/result.pt", folder=tmp_path, variables=environment())
    assert done.returncode == 0, done.stderr
    done = torchrun("killed", tmp_path / "killed/result.pt")
    assert done.returncode and "SIGKILL" in done.stderr and not (tmp_path / "killed/result.pt").exists()
    words = "resumed", tmp_path / "killed/result.pt"
    done = forked.ranks(WORKER, *words, folder=tmp_path / "resumed", variables=environment())
    assert done.returncode == 0, done.stderr
    whole, resumed = (torch.load(tmp_path / name / "result.pt") for name in ("whole", "killed"))
    assert torch.equal(resumed[0], resumed[1]) and torch.equal(whole, resumed)


def test_a_batch_with_fewer_images_than_ranks_is_refused(monkeypatch):
    monkeypatch.setattr(ranks, "world_size", lambda: 4)
    with pytest.raises(ValueError, match=r"4 ranks share each batch.*the smallest has 1;"):
        fit(small_vae(), DIGITS, batch_size=16, progress=False)
    with pytest.raises(ValueError, match=r"data.valid: 4 ranks share these images, of which there are 3"):
        fit(small_vae(), replace(DIGITS, valid=DIGITS.valid[:3]), batch_size=100, progress=False)


@pytest.mark.filterwarnings("ignore::pyro_vae.evidence.UntrustedEvidence")
def test_one_rank_reports_what_both_have_trained(tmp_path):
    settings = "--dataset=digits", "--net=mlp", "--hidden=16", "--epochs=2"
    out = f"--out={tmp_path / 'run'}"
    done = forked.ranks(RUN, *settings, out, folder=tmp_path, variables=environment())
    assert done.returncode == 0, done.stderr
    printed = [(tmp_path / f"rank{rank}" / "stdout").read_text() for rank in (0, 1)]
    assert "".join(printed).count("\ntest bound ") == 1
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    vae, test = load_vae(tmp_path / "run"), DIGITS.test
    parts = fixed_x(vae, test.images).tensor_split(2)
    evidence = [log_evidence(vae.model, vae.guide, x, 50, seed=seed) for x, seed in zip(parts, (0, 1_000_003))]
    assert metrics["evidence"]["images"] == len(test.images)
    shared = torch.cat([part.log_px for part in evidence])
    assert metrics["evidence"]["log_px"] == pytest.approx(shared.mean().item(), rel=1e-6)
