"""A program with a label, p(x | z, y) q(z | x, y), is trained and measured as one of x alone."""

import os
import re
import signal
from dataclasses import replace
from math import log
from pathlib import Path

import forked
import pytest
import torch
from conditional_worker import conditional, trained
from programs import DIGITS, FEW, needs_compiler, same_bits
from pyro.infer import Trace_ELBO
from pyro.infer.importance import vectorized_importance_weights
from small_trainings import rows, train

from pyro_vae import compare_estimators, evaluate, fit, fixed_x, log_evidence
from pyro_vae.data import Split
from pyro_vae.training.checkpoint import decode

pytestmark = pytest.mark.slow

ROOT, WORKER = Path(__file__).parents[2], Path(__file__).with_name("conditional_worker.py")
ENGINES = ["eager", pytest.param("compiled", marks=needs_compiler)]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, WORKER.parents[:3]))}


@pytest.fixture(scope="module")
def program():
    program = conditional()
    fit(program, DIGITS, epochs=40, lr=1e-2, engine="eager", progress=False)
    return program


def test_the_program_of_the_page_has_at_most_25_lines():
    (source,) = re.findall(r"^class Labelled.*?(?=^```)", (ROOT / "docs/conditional.md").read_text(), re.M | re.S)
    assert len(source.splitlines()) <= 25


@needs_compiler
@pytest.mark.usefixtures("quick_compiler")
def test_compiled_steps_are_those_of_the_eager_engine():
    eager, compiled = conditional(), conditional()
    expected, found = (train(each, engine=engine) for each, engine in ((eager, "eager"), (compiled, "compiled")))
    assert found.engine == "compiled" and expected.rows[-1]["valid_bound"] > expected.rows[0]["valid_bound"] + 1
    for row, other in zip(rows(expected), rows(found)):
        assert other == pytest.approx(row, rel=1e-4)
    for parameter, other in zip(eager.parameters(), compiled.parameters()):
        torch.testing.assert_close(parameter, other, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize("engine", ENGINES)
def test_killed_and_resumed_it_ends_with_the_same_bits(tmp_path, engine):
    whole, resumed = conditional(), conditional()
    expected = train(whole, engine=engine)

    done = forked.Forked(forked.file_of(WORKER), tmp_path, ENVIRONMENT, ["killed", tmp_path, engine]).wait()
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert decode((tmp_path / "checkpoint.pt").read_bytes(), "")["step"] == 12
    history = train(resumed, tmp_path, resume=True, engine=engine)
    assert same_bits(whole, resumed) and rows(history) == rows(expected)


def test_two_ranks_train_as_one(tmp_path):
    done = forked.ranks(WORKER, "train", tmp_path / "result.pt", folder=tmp_path, variables=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    two, one = torch.load(tmp_path / "result.pt"), trained()
    assert torch.equal(two["parameters"][0], two["parameters"][1])
    torch.testing.assert_close(two["bounds"][0], one["bounds"][0], rtol=1e-5, atol=0.0)
    torch.testing.assert_close(two["parameters"][0], one["parameters"][0], rtol=1e-3, atol=1e-5)
    assert one["bounds"][0, -1] > one["bounds"][0, 0] + 1


def test_evidence_is_that_of_pyro_row_by_row(program):
    """Pyro gives a joint weight of all rows of a batch, so that each row is a batch of its own."""
    split, K = DIGITS.test[:8], 4000
    evidence = log_evidence(program, split, particles=K, seed=1)
    x, y = fixed_x(program, split)
    torch.manual_seed(2)
    for row in range(len(split)):
        one = slice(row, row + 1)
        log_w, _, _ = vectorized_importance_weights(
            program.model, program.guide, x[one], y[one], num_samples=K, max_plate_nesting=1, normalized=False
        )
        w = (log_w.detach() - log_w.max().item()).exp()
        log_px, error = (log_w.logsumexp(0) - log(K)).item(), (w.std() / w.mean() / K**0.5).item()
        both = (error**2 + evidence.standard_error[row].item() ** 2) ** 0.5
        assert abs(log_px - evidence.log_px[row].item()) < 4 * both < 0.5


def test_the_label_arrives_with_its_image(program):
    x, y = fixed_x(program, DIGITS.test)
    right, wrong = (evaluate(program, (x, labels)).bound.mean() for labels in (y, (y + 1) % 10))
    assert right > wrong + 2
    torch.testing.assert_close(evaluate(program, DIGITS.test).bound.mean(), right)


def test_samples_of_a_class_look_like_it(program):
    """The mean image of a class is nearest to that of its own test images."""
    x, y = fixed_x(program, DIGITS.test)
    of_data = torch.stack([x[y == label].mean(0).flatten() for label in range(10)])
    torch.manual_seed(0)
    drawn = program.model(None, torch.arange(10).repeat_interleave(200)).unflatten(0, (10, 200)).mean(1).flatten(1)
    assert torch.equal(torch.cdist(drawn.detach(), of_data).argmin(1), torch.arange(10))


def test_estimators_are_compared_on_a_batch_with_labels(program):
    batch = DIGITS.train[:16]
    result = compare_estimators(program, batch, estimators={"a": Trace_ELBO()}, draws=20, progress=False)
    again = compare_estimators(
        program.model, program.guide, *fixed_x(program, batch), estimators={"a": Trace_ELBO()}, draws=20, progress=False
    )
    assert result.to_dict()["estimators"].keys() == again.to_dict()["estimators"].keys()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("label", [-1, 12])
def test_a_label_outside_the_classes_is_named_wherever_it_stands(engine, label, quick_compiler):
    """It is in a later batch than the first, which is tried before the training and traced."""
    labels = FEW.train.labels.clone()
    labels[-1] = label
    data = replace(FEW, train=Split(FEW.train.images, labels))
    with pytest.raises(ValueError, match=rf"labels: wanted whole numbers from 0 to 9, .* got {label} \(1 of") as caught:
        fit(conditional(), data, epochs=1, batch_size=50, engine=engine, seed=1, progress=False)
    assert (engine == "compiled") is any(entry.name == "culprit" for entry in caught.traceback)
    with pytest.raises(ValueError, match=rf"labels: wanted whole numbers from 0 to 9, .* got {label} \(1 of"):
        log_evidence(conditional(), data.train[-5:], particles=10)
