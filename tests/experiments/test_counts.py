"""Simulated cells against their own formulas, and the experiment from end to end on a few of them."""

import json

import pytest
import torch
from monte_carlo import assert_mean_is

from experiments import counts
from experiments.cells import recovery
from experiments.cells.program import CountProgram, beside
from experiments.cells.simulation import World, simulated
from pyro_vae.data import Split
from pyro_vae.tracing.traces import log_weights, paired_traces

WORDS = ["--cells", "300", "--held-out", "100", "--genes", "20", "--epochs", "2", "--width", "8", "--engine", "eager"]


def command(tmp_path, *words):
    return counts.main([*WORDS, "--quiet", "--out", str(tmp_path / "out"), *words])


@pytest.mark.slow
def test_from_end_to_end_and_what_is_there_is_not_run_again(tmp_path, capsys, monkeypatch):
    assert command(tmp_path) == 0
    assert "with the lab, seed 0: types" in capsys.readouterr().out
    result = json.loads((tmp_path / "out.json").read_text())
    assert set(result["table"]) == {"with the lab", "without the lab", "principal components"}
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    test = result["runs"][1]["test"]
    assert test["bound"] == pytest.approx(-test["rate"] - test["distortion"])
    monkeypatch.setattr(counts, "fit", lambda *_, **__: pytest.fail("it was run again"))
    assert command(tmp_path) == 0
    assert json.loads((tmp_path / "out.json").read_text()) == result
    assert command(tmp_path, "--latent", "3") == 1
    assert "give another --out" in capsys.readouterr().err


def test_cells_have_the_mean_and_the_variance_of_their_world():
    """Over many cells of one type, state, size and lab: E x = size × share, Var x = μ + μ² / θ."""
    world = World.drawn(5, seed=0)
    torch.manual_seed(0)
    x = world.family(torch.full((40_000, 5), 20.0)).sample()
    variance = 20 + 400 / world.log_dispersion.exp()
    assert_mean_is(x, torch.full((5,), 20.0), sees=1.0)
    assert (x.var(0) / variance - 1).abs().max() < 0.1


def test_the_truth_scores_cells_best():
    world = World.drawn(20, seed=0)
    cells = world.cells(500, seed=1)
    counts = cells.counts.double()
    assert cells.log_px.isfinite().all()
    mean = counts.sum(-1, keepdim=True) * world.base.softmax(-1)  # without types, states and labs
    assert cells.log_px.mean() > world.family(mean).log_prob(counts).sum(-1).mean() + 1
    lab_mean = [cells.counts[cells.lab == lab].sum(-1).double().mean().item() for lab in (0, 1)]
    assert lab_mean[1] / lab_mean[0] == pytest.approx(2, rel=0.15)


def test_the_same_seed_gives_the_same_cells():
    (first, _), (second, _), (other, _) = (simulated(20, 5, 6, seed) for seed in (1, 1, 2))
    for name, field in first.train.fields.items():
        assert torch.equal(field, second.train.fields[name])
    assert not torch.equal(first.train.counts, other.train.counts)
    assert not torch.equal(first.valid.counts, first.test.counts)


def test_mixing_is_one_for_shuffled_labs_and_zero_for_labs_apart():
    torch.manual_seed(0)
    labels, lab = torch.randint(3, (600,)), torch.randint(2, (600,))
    cells = Split(labels=labels, lab=lab)
    codes = 100.0 * labels[:, None] + torch.randn(600, 2)
    assert recovery.mixing(codes, cells) == pytest.approx(1, abs=0.05)
    assert recovery.mixing(codes + 1000.0 * lab[:, None], cells) == 0


@pytest.mark.parametrize("labs", [0, 2])
def test_the_program_scores_particles_as_it_scores_them_alone(labs):
    cells, _ = simulated(50, 10, 20, seed=0)
    program = CountProgram(20, labs, latent=3, width=8)
    x, lab, size = args = program.observe(cells.test)
    assert lab.shape == (10, labs) and torch.equal(size, x.sum(-1))
    model_trace, guide_trace = paired_traces(program.model, program.guide, args, particles=4)
    together, z = log_weights(model_trace, guide_trace), guide_trace.nodes["z"]["value"].detach()
    for particle, scores in zip(z, together):
        log_px = program.likelihood(beside(particle, lab), size).log_prob(x)
        wanted = log_px + program.prior().log_prob(particle) - program.posterior(beside(x, lab)).log_prob(particle)
        torch.testing.assert_close(scores, wanted, rtol=1e-4, atol=1e-3)
