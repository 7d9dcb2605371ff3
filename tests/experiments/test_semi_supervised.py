"""M2 as a program whose bound is known by a sum over the classes, and the experiment on the bundled digits."""

import json

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import DIGITS
from pyro.infer import Trace_ELBO, TraceEnum_ELBO

from experiments import semi_supervised
from pyro_vae import evaluate, log_evidence
from pyro_vae.training import fixed_x

WORDS = ["--dataset", "digits", "--hidden", "16", "--latent", "3", "--quick", "--quiet", "--engine", "eager"]


def small_program(alpha=2.0):
    torch.manual_seed(0)
    args = semi_supervised.parse_arguments([*WORDS, "--alpha", str(alpha)])
    program = semi_supervised.build(DIGITS, args).double()
    with torch.no_grad():
        for parameter in program.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    x, labels = fixed_x(program, DIGITS.test[:6])
    return program, x, torch.where(torch.arange(6) < 3, labels, -1)


def by_hand(program, x, labels, z):
    """L(x, y) of each class at given z (10, rows, D), and log q(y | x)."""
    y = torch.arange(10).unsqueeze(1).expand(10, len(x))
    q = program.posterior(x, y)
    joint = program.likelihood(program.joined(z, y)).log_prob(x) - torch.tensor(10.0).double().log()
    joint = joint + dist.Normal(torch.zeros_like(z), 1.0).to_event(1).log_prob(z)
    return joint - q.log_prob(z), program.classifier(x).log_softmax(-1).T


@pytest.mark.usefixtures("float64")
def test_the_objective_is_that_of_the_paper():
    program, x, labels = small_program()
    torch.manual_seed(1)
    program.classifier.eval()  # no dropout, so that both calls see one classifier
    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(program.model, program.guide, x, labels)
    torch.manual_seed(1)
    y = torch.where(labels < 0, torch.arange(10).unsqueeze(1), labels)
    L, log_q = by_hand(program, x, labels, z := program.posterior(x, y).rsample())
    joint = program.likelihood(program.joined(z, y)).log_prob(x) - torch.tensor(10.0).log()
    joint = joint + dist.Normal(torch.zeros_like(z), 1.0).to_event(1).log_prob(z) - program.posterior(x, y).log_prob(z)
    q = log_q.exp()
    unknown = (q * (L - log_q)).sum(0)
    known = (q * joint).sum(0) + 2.0 * log_q.gather(0, labels.clamp(min=0)[None])[0]
    expected = -torch.where(labels < 0, unknown, known).sum()
    torch.testing.assert_close(loss, expected)
    trained = list(program.parameters())
    for ours, theirs in zip(torch.autograd.grad(loss, trained), torch.autograd.grad(expected, trained)):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.usefixtures("float64")
def test_what_is_measured_is_the_bound_without_the_term_of_the_classifier():
    program, x, labels = small_program(alpha=1000.0)
    bound = evaluate(program, (x, labels), particles=500).bound
    evidence = log_evidence(program, (x, labels), 500, progress=False).log_px
    assert ((bound < evidence + 0.05) & (bound > evidence - 30)).all()
    with pyro.validation_enabled(False):  # Pyro warns of the mark
        loss = Trace_ELBO(500).loss(program.eval().model, program.guide, x, labels)
    assert -loss == pytest.approx(bound.sum().item(), abs=1.5)


def test_labels_are_balanced_and_repeated():
    data = semi_supervised.with_few_labels(DIGITS, 50, 0.2, seed=1)
    shown = data.train[data.train.labels >= 0]
    assert (torch.bincount(shown.labels) == torch.bincount(shown.labels)[0]).all()
    assert len(shown) % 50 == 0 and 0.17 < len(shown) / len(data.train) < 0.23
    assert (data.valid.labels == -1).all() and (data.test.labels >= 0).all()
    pictures = shown.images.flatten(1).unique(dim=0)
    assert len(pictures) == 50 and len(data.train) == len(DIGITS.train) - 50 + len(shown)
    other = semi_supervised.with_few_labels(DIGITS, 50, 0.2, seed=2)
    assert not torch.equal(shown.images, other.train[other.train.labels >= 0].images)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["summed", "drawn"])
def test_it_is_trained_resumed_and_written(tmp_path, capsys, estimator):
    words = [*WORDS, "--out", str(tmp_path / "out"), "--estimator", estimator]
    assert semi_supervised.main(words) == 0
    assert "test error" in capsys.readouterr().out
    written = (tmp_path / "out/labels100-seed0.json").stat().st_mtime_ns
    assert semi_supervised.main(words) == 0
    assert (tmp_path / "out/labels100-seed0.json").stat().st_mtime_ns == written
    table = json.loads((tmp_path / "out.json").read_text())
    row = table["labels"]["100"]
    assert row["alone_test"]["mean"] < 50 and row["m2_test"]["mean"] < 60
    assert table["published"]["M2"]["100"][0] == 11.97
    assert (tmp_path / "out.png").is_file() and (tmp_path / "out/labels100-seed0.png").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--labels", "105"], "--labels: wanted a multiple of 10"),
        (["--labels", "100000"], "--labels: wanted a multiple of 10 up to"),
        (["--share", "1"], "--share: wanted a number between 0 and 1"),
        (["--latent", "0"], "--latent: wanted a whole number of at least 1"),
        (["--report"], "holds no run to report"),
    ],
)
def test_what_cannot_be_is_an_error(tmp_path, capsys, words, message):
    assert semi_supervised.main([*WORDS, *words, "--out", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err
