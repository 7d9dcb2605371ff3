"""Evidence of programs as people write them: any arguments, shared latents, automatic guides, networks of one batch."""

import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer import autoguide as auto
from torch import nn

from pyro_vae.compiling.export import Untraceable
from pyro_vae.evidence.arguments import arguments
from pyro_vae.evidence.estimates import UntrustedEvidence, annealed_evidence, log_evidence

pytestmark = pytest.mark.filterwarnings("ignore:Pareto k̂")

X = torch.linspace(-2, 2, 7)


def exact(x, loc=0.0, variance=1.0):
    """Of z ~ N(loc, 1), x ~ N(z, √variance)."""
    return dist.Normal(loc, math.sqrt(1 + variance)).log_prob(x).double()


def check(evidence, wanted, particles=None):
    assert evidence.log_px.shape == wanted.shape
    assert ((evidence.log_px - wanted).abs() < 5 * evidence.standard_error + 1e-5).all(), evidence.log_px - wanted


@pytest.fixture(autouse=True)
def empty_store():
    pyro.clear_param_store()


# arguments


def scaled(x, loc=0.0, *, sizes=None, flag=True, first=0, guide=False):
    """z ~ N(loc + sizes, 1) in each row, x | z ~ N(z, 1), and a guide that is exact."""
    assert flag is True and first == 0
    shift = loc if sizes is None else loc + torch.as_tensor(sizes, dtype=torch.float)
    with pyro.plate("rows", len(x)):
        if guide:
            pyro.sample("z", dist.Normal((x + shift) / 2, 0.5**0.5))
        else:
            z = pyro.sample("z", dist.Normal(shift + torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def proposed(*args, **kwargs):
    scaled(*args, **kwargs, guide=True)


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


def test_parts_of_arguments():
    given = arguments((torch.zeros(5), [torch.ones(5, 2), torch.ones(3)], {"a": np.arange(5)}), {"b": (1, 2, 3, 4, 5)})
    assert given.rows is None  # a tensor has three
    parts = list(given._replace(rows=5).batches(2))
    assert [part.rows for part in parts] == [2, 2, 1]
    assert [len(value) for value in parts[2].args[1]] == [1, 3]
    assert parts[1].args[2]["a"].tolist() == [2, 3] and parts[1].kwargs["b"] == (3, 4)
    assert next(given._replace(rows=5).batches(5)).kwargs["b"] == (1, 2, 3, 4, 5)
    assert not given._replace(rows=5).only_tensors and given._replace(rows=3).only_tensors
    tensors = given.tensors
    assert len(tensors) == 3 and torch.equal(given.with_tensors(tuple(t + 1 for t in tensors)).args[0], torch.ones(5))


def test_lists_that_are_cut_are_no_constants_of_a_graph():
    call = partial(log_evidence, scaled, proposed, X, 4, kwargs={"sizes": [1.0] * 7})
    with pytest.raises(Untraceable, match=r"compiled: a list or array .* 7 rows; write compiled=False"):
        call(compiled=True, batch_size=3)
    torch.testing.assert_close(call(compiled=False, batch_size=3).log_px, exact(X, 1.0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [0, -1, 2.0, math.nan, True, "3", None, torch.tensor(3)])
def test_numbers_that_are_none(value):
    for name in ("num_particles", "chunk", "batch_size"):
        if value is None and name != "num_particles":
            continue
        with pytest.raises(ValueError, match=f"{name}: wanted a whole number of at least 1, got"):
            log_evidence(scaled, proposed, X, **{"num_particles": 5} | {name: value})
    for name in ("num_temperatures", "chains", "leapfrog"):
        with pytest.raises(ValueError, match=f"{name}: wanted"):
            annealed_evidence(scaled, None, X, **{name: value})
    if value is not None and not isinstance(value, bool) and value not in (0, -1):
        with pytest.raises(ValueError, match="seed: wanted a whole number"):
            log_evidence(scaled, proposed, X, 5, seed=value)
    assert len(log_evidence(scaled, proposed, X, np.int64(5), batch_size=np.int32(2), seed=np.uint8(0)).log_px) == 7


# latents that rows share


def shared(x):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(m, 1.0), obs=x)


def log_shared(x):
    n = len(x)
    return dist.MultivariateNormal(torch.zeros(n), torch.eye(n) + 1).log_prob(x).double().reshape(1)


def test_one_weight_of_all_rows_where_they_share_a_latent():
    guide = lambda x: pyro.sample("m", dist.Normal(x.mean(), 0.5))  # noqa: E731
    for x in (X, torch.randn(300, generator=torch.Generator().manual_seed(0)) / 5):  # more than a batch
        evidence = log_evidence(shared, guide, x, 3000, seed=0)
        check(evidence, log_shared(x))
        assert evidence.joint and evidence.to_dict()["joint"] and "of all images together" in str(evidence)
    with pytest.raises(ValueError, match=r"wanted all 7 rows at once, got 3: latent sites outside their plate"):
        log_evidence(shared, guide, X, 10, batch_size=3)
    assert not log_evidence(scaled, proposed, X, 5).joint


def test_shared_and_local_latents_together():
    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(m, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        m = pyro.sample("m", dist.Normal(x.mean(), 0.7))
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal((x + m) / 2, 0.75))

    wanted = dist.MultivariateNormal(torch.zeros(7), 2 * torch.eye(7) + 1).log_prob(X).double().reshape(1)
    check(log_evidence(model, guide, X, 5000, seed=0), wanted)
    settings = {"num_temperatures": 50, "leapfrog": 3, "chains": 50, "seed": 0, "compiled": False}
    check(annealed_evidence(model, guide, X, **settings), wanted)


@pytest.mark.parametrize("of_all", [False, True])
def test_rows_that_a_plate_takes_at_random_have_no_weight(of_all):
    """Which rows these are nobody knows; beside a latent of all rows they have another scale."""

    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0)) if of_all else 0.0
        with pyro.plate("rows", 7, subsample_size=3) as rows:
            z = pyro.sample("z", dist.Normal(m, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    def guide(x):
        if of_all:
            pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 7, subsample_size=3):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    words = "scaled differently .* plate subsampling" if of_all else "'rows' takes 3 of 7 rows at random.* plate of len"
    for call in (lambda: log_evidence(model, guide, X, 10), lambda: annealed_evidence(model, guide, X, chains=2)):
        with pytest.raises(ValueError, match=words):
            call()


def test_a_batch_of_larger_data_has_weights():
    """Rows given as a batch of a thousand: the scale that all sites share is divided out."""

    def program(x, guide=False):
        with pyro.plate("rows", 1000, subsample_size=len(x)):
            if guide:
                pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
            else:
                pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    found = log_evidence(program, lambda x: program(x, guide=True), X, 20, batch_size=4, seed=0)
    torch.testing.assert_close(found.log_px, exact(X), atol=1e-5, rtol=0)


# automatic guides


AUTO = ["AutoNormal", "AutoDiagonalNormal", "AutoMultivariateNormal", "AutoLowRankMultivariateNormal",
        "AutoNormalMessenger", "AutoStructured", "AutoIAFNormal"]  # fmt: skip


@pytest.mark.filterwarnings("ignore:ConditionalAutoRegressiveNN input_dim = 1")
@pytest.mark.parametrize("kind", AUTO)
@pytest.mark.parametrize("model, wanted", [(shared, log_shared), (scaled, exact)], ids=["shared", "local"])
def test_trained_automatic_guides(kind, model, wanted):
    torch.manual_seed(0)
    guide = getattr(auto, kind)(model)
    elbo = Trace_ELBO(10, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), elbo)
    for _ in range(150):
        svi.step(X)
    before = {name: value.clone() for name, value in pyro.get_param_store().items()}
    found = log_evidence(model, guide, X, 500, seed=0)
    check(found, wanted(X).sum().reshape(1) if found.joint else wanted(X))
    after = pyro.get_param_store()
    assert set(before) == set(after.keys()) and all(torch.equal(after[name], value) for name, value in before.items())
    assert np.isfinite(svi.step(X))


@pytest.mark.parametrize("kind", AUTO)
def test_a_new_automatic_guide_stays_new(kind):
    """It may be trained on other rows than those that it was measured on, and on another plate than the first two."""
    torch.manual_seed(0)
    guide = getattr(auto, kind)(scaled)
    state = torch.get_rng_state()
    evidence = log_evidence(scaled, guide, X, 50, seed=0)
    assert evidence.log_px.isfinite().all() and len(pyro.get_param_store()) == 0
    assert torch.equal(torch.get_rng_state(), state)
    one, other = (log_evidence(scaled, guide, X, 50).log_px for _ in range(2))
    assert not torch.equal(one, other)  # without a seed the caller's numbers are used, and go on
    svi = SVI(scaled, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    assert np.isfinite(svi.step(torch.zeros(12)))
    assert len(next(iter(pyro.get_param_store().values())).reshape(-1)) >= 12
    with pytest.raises(ValueError, match="wanted all 12 rows at once, got 5: Pyro's automatic guides"):
        log_evidence(scaled, guide, torch.zeros(12), 5, batch_size=5)


def test_parameters_of_each_row():
    """A guide that is not amortised runs on all rows alone; so do more rows than a batch would have."""
    x = torch.linspace(-2, 2, 300)
    loc = pyro.param("loc", x / 2)

    def guide(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc"), 0.5**0.5))

    torch.testing.assert_close(log_evidence(scaled, guide, x, 20, seed=0).log_px, exact(x), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="wanted all 300 rows at once, got 100: the program does not run on fewer"):
        log_evidence(scaled, guide, x, 20, batch_size=100)
    assert loc.shape == (300,)


# guides that observe, or have a factor


def test_what_a_guide_observes_is_not_drawn():
    def guide(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
            pyro.sample("label", dist.Normal(0.0, 1.0), obs=x, infer={"is_auxiliary": True})

    torch.testing.assert_close(log_evidence(scaled, guide, X, 20, seed=0).log_px, exact(X), atol=1e-5, rtol=0)
    annealed = annealed_evidence(scaled, guide, X, num_temperatures=3, seed=0)
    torch.testing.assert_close(annealed.log_px, exact(X), atol=1e-5, rtol=0)


def test_a_factor_in_the_guide_leaves_no_density():
    def guide(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(x / 2, 0.7))
            pyro.factor("f", -z.square(), has_rsample=True)

    for call in (lambda: log_evidence(scaled, guide, X, 20), lambda: annealed_evidence(scaled, guide, X, chains=2)):
        with pytest.raises(ValueError, match=r"the factors \['f'\] of the guide leave no density"):
            call()


# networks that take one batch dimension


class OneBatchDimension(nn.Module):
    """x | z ~ N(W z, ½) by a network that flattens what it gets, and has as many outputs as there are rows."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.linear, self.norm = kind, nn.Linear(2, 6, bias=False).double(), nn.BatchNorm1d(6).double()
        self.norm.eval()

    def decode(self, z):
        if self.kind == "view":
            return self.linear(z).view(-1, 6)
        if self.kind == "norm":
            return self.norm(self.linear(z)) * math.sqrt(1 + self.norm.eps)
        return self.linear(z)[torch.arange(len(z))]

    def model(self, x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decode(z), 0.5**0.5).to_event(1), obs=x)

    def guide(self, x):
        weight = self.linear.weight
        precision = torch.eye(2).double() + 2 * weight.T @ weight
        with pyro.plate("rows", len(x)):
            loc = 2 * x @ weight @ torch.linalg.inv(precision)
            pyro.sample("z", dist.MultivariateNormal(loc, precision_matrix=precision))


@pytest.mark.parametrize("kind", ["view", "norm", "index"])
def test_networks_that_take_one_batch_dimension(kind):
    torch.manual_seed(0)
    program, x = OneBatchDimension(kind), torch.randn(6, 6).double()
    weight = program.linear.weight
    covariance = torch.eye(6) / 2 + weight @ weight.T
    wanted = dist.MultivariateNormal(torch.zeros(6).double(), covariance).log_prob(x).detach()
    for batch_size in (None, 4):
        found = log_evidence(program.model, program.guide, x, 30, batch_size=batch_size, seed=0)
        torch.testing.assert_close(found.log_px, wanted)
    for start in (program.guide, None):
        settings = {"num_temperatures": 40, "leapfrog": 2, "chains": 10, "seed": 0}
        check(annealed_evidence(program.model, start, x, **settings), wanted)


# values that are no numbers


def test_nan_is_named_in_one_line():
    x, labels = X.clone(), SHIFTS.clone()
    x[[1, 4]], labels[2] = math.nan, math.nan
    for call in (partial(log_evidence, scaled, proposed, num_particles=20), partial(annealed_evidence, scaled, None)):
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


# the caller's surroundings


@pytest.mark.parametrize("caller", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_the_callers_modes_change_no_number(caller):
    class Program(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def model(self, x):
            with pyro.plate("rows", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
                pyro.sample("x", dist.MultivariateNormal(self.linear(z), torch.eye(3)), obs=x)

        def guide(self, x):
            with pyro.plate("rows", len(x)):
                pyro.sample("z", dist.Normal(pyro.param("a", torch.tensor(0.4)) * self.linear(x), 0.7).to_event(1))

    torch.manual_seed(0)
    program, x = Program(), 100 * torch.randn(5, 3)
    calls = (
        lambda x: log_evidence(program.model, program.guide, x, 10, seed=0).log_px,
        lambda x: annealed_evidence(program.model, program.guide, x, num_temperatures=4, chains=2, seed=0).log_px,
    )
    for call in calls:
        wanted = call(x)
        pyro.clear_param_store()
        with caller():
            found = call(x + 0)  # made in the caller's mode
        assert found.dtype == torch.float64 and torch.equal(found, wanted)
    loss = Trace_ELBO().differentiable_loss(program.model, program.guide, x)
    loss.backward()
    assert program.linear.weight.grad.isfinite().all() and pyro.param("a").grad is not None


def test_a_program_made_in_inference_mode():
    """Its evidence can be measured; no gradient can be taken through it."""
    with torch.inference_mode():
        program = OneBatchDimension("norm")
        x = torch.randn(4, 6).double()
        assert log_evidence(program.model, program.guide, x, 10, seed=0).log_px.isfinite().all()
        with pytest.raises(ValueError, match=r"made inside torch.inference_mode.* under torch.no_grad"):
            annealed_evidence(program.model, None, x)
    with torch.no_grad():
        program = OneBatchDimension("norm")
        assert annealed_evidence(program.model, None, x, num_temperatures=3, seed=0).log_px.isfinite().all()


def test_the_warning_has_a_class_of_its_own():
    narrow = lambda x: pyro.plate("rows", len(x))(lambda: pyro.sample("z", dist.Normal(x / 2, 0.05)))()  # noqa: E731
    with pytest.warns(UntrustedEvidence, match="Pareto k̂ > 0.7 for"):
        log_evidence(scaled, narrow, X, 500, seed=0)
