"""Arguments of any kind: how they are cut into batches, and how wrong ones are refused."""

import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from evidence_programs import EAGER, X, exact, proposed, scaled
from many_programs import PIXELS, vae

import pyro_vae
from pyro_vae.arguments import checked_arguments
from pyro_vae.evidence import annealed_evidence, bidirectional, log_evidence

SHIFTS = torch.arange(7.0)


CALLS = {
    "one tensor": (X, {}, 0.0),
    "a tuple of a tensor": ((X,), {}, 0.0),
    "a number beside it": ((X, 1.5), {}, 1.5),
    "a tensor without dimensions": ((X, torch.tensor(1.5)), {}, 1.5),
    "a tensor of the rows": ((X, SHIFTS), {}, SHIFTS),
    "one tensor for all rows": ((X, torch.tensor([1.5])), {}, 1.5),
    "keywords": (X, {"sizes": SHIFTS, "flag": True, "first": 0}, SHIFTS),
    "a list of the rows": ((X, 1.0), {"sizes": SHIFTS.tolist()}, 1 + SHIFTS),
    "an array of the rows": (X, {"sizes": SHIFTS.numpy()}, SHIFTS),
    "None": ((X, 2.0), {"sizes": None}, 2.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("x, kwargs, loc", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("batch_size", [None, 3])
def test_arguments_of_any_kind(x, kwargs, loc, batch_size):
    found = log_evidence(scaled, proposed, x, 20, kwargs=kwargs, batch_size=batch_size, seed=0)
    torch.testing.assert_close(found.log_px, exact(X, loc), atol=1e-5, rtol=0)
    annealed = annealed_evidence(scaled, proposed, x, kwargs=kwargs, num_temperatures=3, chunk=18 * 3, seed=0)
    torch.testing.assert_close(annealed.log_px, exact(X, loc), atol=1e-5, rtol=0)


def test_data_that_are_not_the_first_argument():
    def model(weights, name, x):
        assert name == "any" and weights.shape == (3,)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1) * weights, 1.0).to_event(1), obs=x)

    def guide(weights, name, x):
        with pyro.plate("rows", len(x)):
            precision = 1 + weights.square().sum()
            pyro.sample("z", dist.Normal(x @ weights / precision, precision.rsqrt()))

    weights, x = torch.tensor([0.5, -1.0, 2.0]), torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    covariance = torch.eye(3) + torch.outer(weights, weights)
    wanted = dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(x).double()
    for batch_size in (None, 5):
        found = log_evidence(model, guide, (weights, "any", x), 20, batch_size=batch_size, seed=0)
        torch.testing.assert_close(found.log_px, wanted, atol=1e-5, rtol=0)
    # As many weights as rows, by chance: nothing is cut where all rows are taken at once, or where cutting fails.
    for batch_size in (None, 3, 8):
        found = log_evidence(model, guide, (weights, "any", x[:3]), 20, batch_size=batch_size, seed=0)
        torch.testing.assert_close(found.log_px, wanted[:3], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"batch_size: wanted all 3 rows at once, got 2: .*; leave batch_size out"):
        log_evidence(model, guide, (weights, "any", x[:3]), 20, batch_size=2)


@pytest.mark.slow
def test_no_arguments_at_all():
    def model():
        scaled(X)

    def guide():
        proposed(X)

    found = log_evidence(model, guide, (), 20, seed=0)
    torch.testing.assert_close(found.log_px, exact(X), atol=1e-5, rtol=0)
    torch.testing.assert_close(annealed_evidence(model, guide, (), num_temperatures=3, seed=0).log_px, exact(X))


def test_data_that_the_program_holds_itself_are_taken_whole():
    """More rows than a batch, none of which can be cut from the arguments, or a plate of a fixed size."""
    x = torch.linspace(-2, 2, 300)
    programs = (lambda: scaled(x), lambda: proposed(x)), (lambda flag: scaled(x), lambda flag: proposed(x))
    for (model, guide), args in zip(programs, ((), (True,))):
        torch.testing.assert_close(log_evidence(model, guide, args, 20, seed=0).log_px, exact(x), atol=1e-5, rtol=0)
    found = log_evidence(lambda a: scaled(x), lambda a: proposed(x), torch.zeros(300), 20, seed=0)
    torch.testing.assert_close(found.log_px, exact(x), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"no plate that all sample sites share is one over the 5 images"):
        log_evidence(lambda a: scaled(x), lambda a: proposed(x), torch.zeros(5), 20)


def test_arrays_are_refused_by_a_cure_that_works():
    for array in (X.numpy(), X.double().numpy()):
        for x in (array, (array, 1.0)):
            with pytest.raises(ValueError, match=r"got a NumPy array; write torch.from_numpy\(x\)"):
                annealed_evidence(scaled, None, x)
            with pytest.raises(ValueError, match=r"got a NumPy array; write torch.from_numpy\(x\)") as caught:
                log_evidence(scaled, proposed, x, 20)
        cure = eval(str(caught.value).rpartition("write ")[2], {"torch": torch, "x": array})
        torch.testing.assert_close(log_evidence(scaled, proposed, cure, 20, seed=0).log_px, exact(X), atol=1e-5, rtol=0)


def test_arrays_of_grey_levels_are_refused_by_a_cure_that_works():
    program = vae()
    with pytest.raises(ValueError, match=r"write pyro_vae.Split\(x\) for the grey levels of a program") as caught:
        log_evidence(program, PIXELS.numpy(), 2)
    cure = str(caught.value).rpartition("write ")[2].partition(" for ")[0]
    log_evidence(program, eval(cure, {"pyro_vae": pyro_vae, "x": PIXELS.numpy()}), 2)


def test_parts_of_arguments():
    given = checked_arguments(
        (torch.zeros(5), [torch.ones(5, 2), torch.ones(3)], {"a": np.arange(5)}), {"b": (1, 2, 3, 4, 5)}
    )
    assert given.rows is None  # a tensor has three
    parts = list(given._replace(rows=5).batches(2))
    assert [part.rows for part in parts] == [2, 2, 1]
    assert [len(value) for value in parts[2].args[1]] == [1, 3]
    assert parts[1].args[2]["a"].tolist() == [2, 3] and parts[1].kwargs["b"] == (3, 4)
    assert next(given._replace(rows=5).batches(5)).kwargs["b"] == (1, 2, 3, 4, 5)
    assert not given._replace(rows=5).only_tensors and given._replace(rows=3).only_tensors
    tensors = given.tensors
    assert len(tensors) == 3 and torch.equal(given.with_tensors(tuple(t + 1 for t in tensors)).args[0], torch.ones(5))


def test_nan_is_named_in_one_line():
    x, labels = X.clone(), SHIFTS.clone()
    x[[1, 4]], labels[2] = math.nan, math.nan
    for call in (partial(log_evidence, scaled, proposed, particles=20), partial(annealed_evidence, scaled, None)):
        with pytest.raises(ValueError, match=r"^x: 2 of its values are NaN or infinite, in the rows 1, 4; ") as caught:
            call(x=(x, 0.0))
        assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)
        with pytest.raises(ValueError, match=r"argument 1: 1 of its values are NaN or infinite, in the rows 2; "):
            call(x=(X, labels))


def test_nan_that_a_mask_hides_can_be_any_number():
    def program(x, seen, guide=False):
        with pyro.plate("rows", len(x)):
            if guide:
                variance = torch.where(seen, 0.5, 1.0)
                pyro.sample("z", dist.Normal(torch.where(seen, x.nan_to_num(0, 0, 0) / 2, 0.0), variance.sqrt()))
            else:
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0).mask(seen), obs=x)

    seen = torch.arange(7) % 2 == 0
    x = torch.where(seen, X, math.nan)
    call = lambda x: log_evidence(program, lambda *a: program(*a, guide=True), (x, seen), 20, seed=0)  # noqa: E731
    with pytest.raises(ValueError, match=r"put any number in their place, as in x.nan_to_num\(0, 0, 0\)"):
        call(x)
    wanted = torch.where(seen, exact(X), 0.0)
    torch.testing.assert_close(call(x.nan_to_num(0, 0, 0)).log_px, wanted, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_labels_beside_the_images_and_parameters_in_the_store():
    def model(x, y):
        loc = pyro.param("loc", torch.tensor([0.0, 3.0]))
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(loc[y], 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, y):
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(0.5 * (x + pyro.param("loc", torch.tensor([0.0, 3.0]))[y]), 0.5**0.5))

    pyro.clear_param_store()
    x, y = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([0, 1, 1])
    exact = dist.Normal(torch.tensor([0.0, 3.0, 3.0]), 2**0.5).log_prob(x).double()
    torch.testing.assert_close(log_evidence(model, guide, (x, y), 30, seed=0).log_px, exact, atol=1e-5, rtol=0)
    annealed = annealed_evidence(model, None, (x, y), num_temperatures=200, leapfrog=3, chains=50, seed=0, **EAGER)
    assert (annealed.log_px - exact).abs().max() < 0.1
    bounds = bidirectional(model, guide, (x, y), num_temperatures=5, seed=0)
    torch.testing.assert_close(bounds.gap, torch.zeros(3).double(), atol=1e-4, rtol=0)
