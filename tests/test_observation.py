"""From a batch to the arguments of a program; labels, masks and covariates train and are measured as x is."""

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from monte_carlo import assert_evidence_is
from programs import DIGITS, FEW, copy_of, quick, same, small_vae
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_vae import (
    VAE,
    compare_estimators,
    evaluate,
    fixed_x,
    guides,
    likelihoods,
    log_evidence,
    networks,
    priors,
)
from pyro_vae.data import Data, Split
from pyro_vae.handlers import KLWeighted
from pyro_vae.missing import Masked
from pyro_vae.observation import fields_of, from_fields, observed

ROWS = Split(table=torch.randn(60, 3, generator=torch.Generator().manual_seed(0)), shift=torch.arange(60.0) / 20)
TABLE = Data("table", ROWS[:40], ROWS[40:50], ROWS[50:])


class Shifted(nn.Module):
    """x ~ N(z + loc + shift, 1) in three columns, with a shift of each row and z ~ N(0, 1): all is Gaussian."""

    def __init__(self):
        super().__init__()
        self.loc, self.slope = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.tensor(0.1))

    def model(self, x, shift):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            loc = (z + shift)[..., None] + self.loc
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(self, x, shift):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(self.slope * (x - shift[:, None] - self.loc).sum(-1), 0.6))

    def observe(self, batch, generator=None):
        return batch.table, batch.shift

    def log_px(self, split):
        """In closed form."""
        loc = self.loc + split.shift[:, None]
        covariance = torch.eye(3) + 1.0
        return dist.MultivariateNormal(loc, covariance).log_prob(split.table)


class Seen(nn.Module):
    """A program that notes how ``observe`` is called."""

    def __init__(self, result):
        super().__init__()
        self.calls, self.result = [], result
        self.weight = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def observe(self, pixels, *generator):
        self.calls.append(generator)
        return self.result


@pytest.mark.parametrize(("given", "wanted"), [(torch.float32, torch.float64), (torch.int64, torch.int64)])
def test_a_floating_x_takes_the_dtype_of_the_program(given, wanted):
    generator, program = torch.Generator(), Seen(torch.ones(3, dtype=given))
    assert observed(program, torch.zeros(3)).dtype is wanted
    assert torch.equal(observed(program, torch.zeros(3), generator), torch.ones(3, dtype=wanted))
    assert program.calls == [(), (generator,)]  # a program need not take a generator


def test_a_first_parameter_called_pixels_is_given_the_images():
    program = nn.Linear(1, 1)
    program.observe = lambda pixels: pixels / 255
    assert fields_of(program, DIGITS.test) == ("images",)
    assert torch.equal(observed(program, DIGITS.test), DIGITS.test.images / 255)
    with pytest.raises(ValueError, match="its first parameter is called pixels, and this batch has no images"):
        observed(program, ROWS)


def test_any_other_is_given_all_fields_and_images_alone_stand_for_a_batch():
    program = nn.Linear(1, 1)
    program.observe = lambda batch: (batch.images / 255, batch.labels)
    x, labels = from_fields(program, ("images", "labels"), *DIGITS.test[:7].fields.values())
    assert torch.equal(x, DIGITS.test.images[:7] / 255) and torch.equal(labels, DIGITS.test.labels[:7])
    program.observe = lambda batch: batch.images / 255
    assert torch.equal(fixed_x(program, DIGITS.test.images), fixed_x(program, DIGITS.test))


@pytest.mark.slow
def test_a_covariate_is_an_argument_everywhere():
    program, split = Shifted(), TABLE.test
    program.slope.data.fill_(0.25)
    args = fixed_x(program, split)
    assert torch.equal(evaluate(program, split).bound, evaluate(program, args).bound)
    evidence = log_evidence(program, split, particles=4000, seed=1)
    assert_evidence_is(evidence, program.log_px(split), sees=0.5)
    estimators = {"L^A": Trace_ELBO()}
    given = {"draws": 5, "progress": False, "estimators": estimators}
    first = compare_estimators(program, split, **given).to_dict()["estimators"]["L^A"]["bound"]
    assert first == compare_estimators(program, *args, **given).to_dict()["estimators"]["L^A"]["bound"]
    pair = compare_estimators(program, batches=[split[:5], split[5:]], **given)
    assert pair.images == 5 and pair.batches == 2


def test_batches_of_an_evaluation_cut_all_arguments():
    program = Shifted()
    whole = evaluate(program, TABLE.train, particles=2000)
    cut = evaluate(program, TABLE.train, particles=2000, batch_size=7)
    assert torch.allclose(whole.bound, cut.bound, atol=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["eager", "svi"])
@pytest.mark.parametrize("wrap", [lambda program: program, KLWeighted])
def test_a_covariate_trains(engine, wrap):
    program = Shifted()
    if engine == "svi":
        program.model, program.guide = with_parameters(program, "model"), with_parameters(program, "guide")
    history = quick(wrap(program), TABLE, epochs=30, batch_size=10, engine=engine, lr=3e-2)
    truth = program.log_px(TABLE.valid).mean().item()
    assert truth - 0.6 < history.rows[-1]["valid_bound"] < truth + 0.3


def with_parameters(program, name):
    """The model or guide with a param site of each parameter, as SVI wants it."""
    run = getattr(program, name)

    def told(*args):
        for parameter, value in program.named_parameters():
            pyro.module(f"shifted {parameter}", nn.ParameterList([value]))
        return run(*args)

    return told


def test_a_split_needs_a_program_that_observes_it():
    program = Shifted()
    with pytest.raises(ValueError, match=r"after a model and a guide, which cannot observe it; give the program"):
        log_evidence(program.model, program.guide, TABLE.test, particles=5)


@pytest.mark.slow
def test_a_plain_vae_is_trained_by_the_images_of_labelled_data():
    with_labels, without = small_vae(), small_vae()
    quick(with_labels)
    quick(without, Data("few", *(Split(split.images) for split in (FEW.train, FEW.valid, FEW.test))))
    assert same(with_labels, copy_of(without))


def test_a_mask_that_the_program_would_not_follow_is_refused():
    """It would be a bound on log p of values that nobody saw."""
    program, images = small_vae(), FEW.test.images[:4]
    seen = torch.arange(images.numel()).reshape(images.shape) % 2 == 0
    for of_images in (program, Seen(images / 255), KLWeighted(Seen(images / 255))):
        with pytest.raises(ValueError, match=r"batch: its mask says which images were seen, .*write pyro_vae.Masked"):
            fixed_x(of_images, Split(images, mask=seen))
        of_counts = Split(images, counts=torch.ones(4, 2), mask=torch.ones(4, 2, dtype=torch.bool))
        assert fixed_x(of_images, of_counts).shape == images.shape
    assert fixed_x(Masked(program), Split(images, mask=seen))[1].equal(seen)


def test_a_table_with_holes_is_refused_with_a_cure_that_works():
    reals = likelihoods.RealNormal(networks.MLPDecoder(2, (3,), maps=6))
    program = VAE(priors.StandardNormal(2), reals, guides.MeanField(networks.MLPEncoder((3,)), 2))
    holes = Split(table=torch.tensor([[0.0, torch.nan, 1.0], [2.0, 3.0, 4.0]]))
    with pytest.raises(ValueError, match=r"score what was seen by pyro_vae\.Masked\(program\)"):
        evaluate(program, holes)
    assert evaluate(Masked(program), holes).bound.isfinite().all()


@pytest.mark.parametrize("rows", [pd.DataFrame({"a": [1.0]}), [[1.0]], None])
def test_what_holds_no_rows_is_refused_with_what_to_write(rows):
    with pytest.raises(ValueError, match=r"rows: wanted a Split, a tensor .* got a \w+; of a frame write"):
        small_vae().encode(rows)
