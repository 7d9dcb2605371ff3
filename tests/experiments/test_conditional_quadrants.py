"""Images cut into quadrants, the programs that complete them where the numbers are known, and the whole experiment."""

import json

import pytest
import torch
import torch.nn.functional as F
from monte_carlo import assert_evidence_is
from programs import DIGITS
from pyro.infer import Trace_ELBO

from experiments import conditional_quadrants as quadrants
from pyro_vae import evaluate, fixed_x, log_evidence


def completion(count=2, binarize="intensity"):
    torch.manual_seed(0)
    return quadrants.Completion(quadrants.Baseline(quadrants.Cut((1, 8, 8), count, binarize), 16), latent=3, width=16)


@pytest.mark.parametrize(("count", "seen"), [(1, "..\nx."), (2, "x.\nx."), (3, "xx\nx.")])
def test_the_quadrants_that_are_seen(count, seen):
    cut = quadrants.Cut((1, 6, 8), count)
    hidden, values = torch.zeros(2, len(cut.hidden)), torch.ones(2, len(cut.seen))
    whole = cut.joined(hidden, values)
    corners = whole[:, 0, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.tolist() == 2 * [[float(mark == "x") for mark in seen.replace("\n", "")]]
    assert whole.unfold(2, 3, 3).unfold(3, 4, 4).flatten(-2).std(-1).max() == 0  # whole quadrants
    assert len(cut.seen) == 12 * count


def test_cut_and_joined_an_image_is_as_it_was():
    cut = quadrants.Cut((1, 8, 8), 2)
    torch.testing.assert_close(cut.joined(*cut(DIGITS.test)), DIGITS.test.images / 255)


def test_the_loss_of_the_baseline_is_the_cross_entropy_of_torch():
    program = completion().baseline
    hidden, seen = fixed_x(program, DIGITS.test)
    found = evaluate(program, DIGITS.test)
    expected = F.binary_cross_entropy_with_logits(program.network(seen), hidden, reduction="none").sum(-1)
    torch.testing.assert_close(found.distortion.float(), expected.detach())
    assert found.rate.shape == (250,) and not found.rate.any()


@pytest.mark.slow
def test_where_z_changes_nothing_the_program_is_the_baseline():
    program = completion()
    torch.nn.init.zeros_(program.decoder.last.weight)
    baseline = evaluate(program.baseline, DIGITS.test[:20]).bound
    evidence = log_evidence(program, DIGITS.test[:20], particles=4000)
    assert_evidence_is(evidence, baseline, sees=0.5)
    assert evaluate(program, DIGITS.test[:20], particles=4000).bound.mean() < baseline.mean()


def test_the_decoder_is_a_network_of_z_and_the_seen_values_beside_each_other():
    decoder = quadrants.Decoder(latent=3, seen=5, hidden=7, width=4)
    z, seen = torch.randn(6, 2, 3), torch.randn(2, 5)
    first = torch.cat([decoder.of_z.weight, decoder.of_seen.weight], 1)
    beside = torch.cat([z, seen.expand(6, 2, 5)], -1)
    hidden = F.relu(F.linear(beside, first, decoder.of_z.bias + decoder.of_seen.bias))
    torch.testing.assert_close(decoder(z, seen), decoder.last(F.relu(decoder.second(hidden))))


@pytest.mark.parametrize("binarize", quadrants.BINARIZE)
def test_a_step_moves_everything_but_the_baseline(binarize):
    program = completion(binarize=binarize)
    Trace_ELBO()(program.model, program.guide)(*program.observe(DIGITS.train[:50])).backward()
    for name, parameter in program.named_parameters():
        moved = parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any()
        assert bool(moved) is not name.startswith("baseline"), name


@pytest.mark.slow
def test_it_is_trained_measured_and_drawn_and_not_done_twice(tmp_path, capsys, monkeypatch):
    words = ["--quick", "--quiet", "--quadrants", "1", "3", "--epochs", "20", "--warm-up", "15", "--lr", "5e-3"]
    words += ["--baseline-epochs", "20", "--batch", "64", "--out", str(tmp_path / "runs")]
    assert quadrants.main(words) == 0
    results = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert [run["quadrants"] for run in results] == [1, 3]
    for run in results:
        difference = run["baseline"]["mean"] - run["minus_log_p"]["mean"]
        assert run["gain"]["mean"] == pytest.approx(difference, rel=1e-3)
        assert run["gain"]["mean"] > run["gain_of_the_bound"]["mean"] > 0
    assert results[0]["gain"]["mean"] > results[1]["gain"]["mean"]
    assert (tmp_path / "runs.png").read_bytes().startswith(b"\x89PNG")
    table = capsys.readouterr().out.splitlines()[-3:]
    assert "published" not in table[1]  # it is of MNIST
    monkeypatch.setattr(quadrants, "measured", lambda *_: pytest.fail("it was measured again"))
    assert quadrants.main(words) == 0
    assert capsys.readouterr().out.splitlines() == table


def test_the_published_numbers_stand_beside_those_of_the_same_data():
    entry = {"mean": 1.0, "standard_error": 0.1}
    run = dict.fromkeys(("baseline", "minus_log_p", "gain", "gain_of_the_bound"), entry)
    run |= {"quadrants": 1, "settings": {"dataset": "mnist", "binarize": "intensity"}}
    assert "published: baseline 100.4, program 71.8, gain 28.6" in quadrants.in_words(run)
    assert "published" not in quadrants.in_words({**run, "settings": {"dataset": "mnist", "binarize": "dynamic"}})
