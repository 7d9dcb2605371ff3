"""The VAE of labelled images: its evidence by quadrature, every engine alike, and no class that is unknown."""

import math

import pytest
import torch
from monte_carlo import assert_evidence_is
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from pyro_vae import (
    Checkpoints,
    Training,
    compare_estimators,
    evaluate,
    fit,
    guides,
    likelihoods,
    log_evidence,
    networks,
    priors,
)
from pyro_vae.conditional import Conditional
from pyro_vae.data import Data, Split
from pyro_vae.training import NonFiniteLoss
from tests.programs import FEW, needs_compiler

SETTINGS = {"epochs": 2, "batch_size": 50, "progress": False}


def small(classes=10, latent=2, seed=0):
    torch.manual_seed(seed)
    likelihood = likelihoods.Bernoulli(networks.MLPDecoder(latent + classes, (1, 8, 8), maps=1, hidden=(16,)))
    posterior = guides.MeanField(networks.MLPEncoder((2, 8, 8), hidden=(16,)), latent)
    return Conditional(priors.StandardNormal(latent), likelihood, posterior, classes, (8, 8))


def rows(history):
    return [(row["train_bound"], row["valid_bound"]) for row in history.rows]


@pytest.mark.slow
def test_the_evidence_is_the_integral_over_z():
    program = small(latent=1)
    x, y = program.observe(FEW.test[:4], torch.Generator().manual_seed(0))
    z = torch.linspace(-8, 8, 2001)[:, None, None].expand(-1, 4, -1)
    with torch.no_grad():
        hot = torch.eye(10)[y].expand(2001, -1, -1)
        p = program.likelihood(torch.cat([z, hot], -1)).log_prob(x) + program.prior().log_prob(z)
        expected = (p + math.log(16 / 2000)).logsumexp(0)
    found = log_evidence(program, (x, y), particles=4000)
    assert_evidence_is(found, expected, sees=0.5, rounding=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize("engine", ["svi", pytest.param("compiled", marks=needs_compiler)])
def test_every_engine_trains_alike_and_all_parts(engine):
    program, before = small(), dict(small().named_parameters())
    history, expected = fit(program, FEW, engine=engine, **SETTINGS), fit(small(), FEW, engine="eager", **SETTINGS)
    assert history.engine == engine
    for one, other in zip(rows(history), rows(expected)):
        assert one == pytest.approx(other, abs=1e-3)
    assert [name for name, value in program.named_parameters() if torch.equal(value, before[name])] == []


@pytest.mark.slow
def test_resumed_it_is_the_same(tmp_path):
    expected = fit(small(), FEW, engine="eager", **SETTINGS)
    for step in Training(small(), FEW, engine="eager", checkpoints=Checkpoints(tmp_path), **SETTINGS).steps():
        if step.number == 6:
            break
    again = fit(small(seed=1), FEW, engine="eager", checkpoints=Checkpoints(tmp_path, resume=True), **SETTINGS)
    assert rows(again) == rows(expected)


@pytest.mark.slow
def test_the_class_matters_to_model_and_guide():
    program = small()
    fit(program, FEW, epochs=60, batch_size=50, lr=1e-2, engine="eager", progress=False)
    x, y = program.observe(FEW.test, torch.Generator().manual_seed(0))
    right, wrong = (evaluate(program, (x, labels)).summary()["bound"] for labels in (y, (y + 1) % 10))
    assert right > wrong + 3
    assert not torch.equal(program.q(x, y).mean, program.q(x, (y + 1) % 10).mean)
    with torch.no_grad():
        drawn = program.model(None, torch.arange(10).repeat(20))
    assert drawn.shape == (200, 1, 8, 8)
    means = torch.stack([drawn[number::10].mean(0) for number in (0, 1)])
    own = torch.stack([x[y == number].mean(0) for number in (0, 1)])
    assert (means - own).square().sum() < (means - own.flip(0)).square().sum()


@pytest.mark.slow
def test_estimators_are_compared():
    estimators = {"A": Trace_ELBO(), "B": TraceMeanField_ELBO()}
    found = compare_estimators(small(), FEW.train[:16], estimators=estimators, draws=50, progress=False)
    assert str(found)


@pytest.mark.parametrize(
    "labels, got",
    [
        (None, "none; give them with the images"),
        ([3] * 99 + [-1], "-1 to 3; leave out the rows"),
        ([10] + [0] * 99, "0 to 10; make the program with classes=11"),
    ],
)
def test_a_class_that_is_missing_or_unknown_is_refused(labels, got):
    split = Split(FEW.valid.images, labels)
    with pytest.raises(ValueError, match=f"labels: wanted a class of each image, 0 to 9, got {got}"):
        fit(small(), Data("wrong", split, split, split), **SETTINGS)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_an_unknown_class_in_a_late_batch_is_refused_too(engine):
    labels = FEW.train.labels.clone()
    labels[150:] = -1
    data = Data("late", Split(FEW.train.images, labels), FEW.valid, FEW.test)
    with pytest.raises((ValueError, NonFiniteLoss), match="labels: wanted a class of each image, 0 to 9, got -1"):
        fit(small(), data, engine=engine, **SETTINGS)


def test_a_batch_without_images_and_one_with_a_mask_are_refused():
    with pytest.raises(ValueError, match=r"batch: wanted images, got Split\(table: 2 × 1, labels: 2\); write Split"):
        small().observe(Split(table=torch.zeros(2, 1), labels=[0, 1]))
    few = FEW.test[:4]
    with pytest.raises(ValueError, match="batch: its mask says which images were seen"):
        evaluate(small(), Split(few.images, few.labels, mask=few.images > 0))


def test_a_class_to_draw_that_the_program_does_not_have_is_named():
    with pytest.raises(ValueError, match="labels: wanted whole numbers from 0 to 9, as there are 10 classes, got 12"):
        small().model(None, torch.tensor([3, 12]))
