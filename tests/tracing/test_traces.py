"""Traces of a program: what is drawn once, what is refused, and the weight of each image against sums by hand."""

import copy
import gc
import pickle
import weakref
from contextlib import ExitStack, nullcontext

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal, AutoNormalMessenger
from pyro.nn import PyroModule, PyroSample
from torch import nn
from torch.distributions import kl_divergence

from pyro_vae.estimators import DoublyReparameterized, ImportanceWeighted, ScoreFunction, StickingTheLanding
from pyro_vae.tracing.traces import (
    PARTICLES,
    Runs,
    check_rows,
    common_scale,
    image_plate,
    log_weights,
    paired_traces,
    plate_nesting,
    run,
    sample_sites,
    score,
    spread,
    stacked,
)
from pyro_vae.training.loop import check_program, evaluate

B = 4


@pytest.fixture(autouse=True)
def _clean_store():
    pyro.clear_param_store()
    torch.manual_seed(0)
    yield
    pyro.clear_param_store()


def model(x):
    with pyro.plate("images", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.deterministic("twice", 2 * z, event_dim=1)
        pyro.sample("x", dist.Normal(z.sum(-1), 0.5), obs=x)


def guide(x):
    with pyro.plate("images", len(x)):
        pyro.sample("z", dist.Normal(x.unsqueeze(-1).expand(-1, 2), 0.3).to_event(1))


def grid(x):
    """The images at dim −2; z in a plate of parts at dim −1."""
    with pyro.plate("images", B, dim=-2):
        with pyro.plate("parts", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 0.5), obs=x.unsqueeze(-1))


def grid_guide(x):
    with pyro.plate("images", B, dim=-2), pyro.plate("parts", 3, dim=-1):
        pyro.sample("z", dist.Normal(x.unsqueeze(-1), 0.3))


@pytest.mark.parametrize("vectorize", [None, True, False])
@pytest.mark.parametrize("K", [1, 5])
@pytest.mark.parametrize("program", [(model, guide), (grid, grid_guide)])
def test_log_weights_by_hand(program, K, vectorize):
    x = torch.randn(B)
    traces = paired_traces(*program, (x,), particles=K, vectorize=vectorize)
    z = traces[1].nodes["z"]["value"].reshape(K, B, -1)
    log_p = dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + dist.Normal(z.sum(-1), 0.5).log_prob(x)
    log_q = dist.Normal(x.unsqueeze(-1), 0.3).log_prob(z).sum(-1)
    torch.testing.assert_close(log_weights(*traces), log_p - log_q)
    assert image_plate(*traces).name == "images"


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("K", [1, 5])
@pytest.mark.parametrize("program", [(model, guide), (grid, grid_guide)])
def test_spread_reaches_the_particle_and_image_of_a_value(program, K, vectorize):
    traces = paired_traces(*program, (torch.randn(B),), particles=K, vectorize=vectorize)
    weights, site = torch.arange(K * B).reshape(K, B), traces[1].nodes["z"]
    shape = torch.broadcast_shapes((K, B, 1), site["value"].shape)
    reached = spread(weights, site, image_plate(*traces)).expand(shape).reshape(K, B, -1)
    assert torch.equal(reached, weights.unsqueeze(-1).expand_as(reached))


def test_the_guide_runs_once_and_the_search_for_plates_draws_nothing():
    state, calls = torch.get_rng_state(), []
    assert plate_nesting(grid, grid_guide, (torch.randn(B, generator=torch.Generator()),)) == 2
    assert torch.equal(state, torch.get_rng_state())
    paired_traces(model, lambda x: [calls.append(1), guide(x)], (torch.zeros(B),), particles=7, nesting=1)
    assert len(calls) == 1


def test_a_scale_that_all_sites_share_leaves_the_weights():
    x, half = torch.randn(B), poutine.scale(scale=0.5)
    torch.manual_seed(0)
    expected = log_weights(*paired_traces(model, guide, (x,)))
    torch.manual_seed(0)
    traces = paired_traces(half(model), half(guide), (x,))
    torch.testing.assert_close(log_weights(*traces), expected)
    assert common_scale(*traces) == 0.5
    with pytest.raises(ValueError, match="not an importance weight"):
        log_weights(*paired_traces(half(model), guide, (x,)))


def test_values_without_a_density_are_no_sites():
    model_trace, _ = paired_traces(model, guide, (torch.zeros(B),))
    assert list(sample_sites(model_trace)) == ["z", "x"]


def test_shapes_are_checked_while_validation_is_on():
    def wrong(x):
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(3, len(x)), 1.0))

    with pytest.raises(ValueError, match='at site "z", invalid log_prob shape'):
        paired_traces(wrong, wrong, (torch.zeros(B),))


def test_sites_without_a_common_plate_have_no_weight_for_each_image():
    def without(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("images", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    traces = paired_traces(without, lambda x: pyro.sample("w", dist.Normal(0.0, 1.0)), (torch.zeros(B),))
    with pytest.raises(ValueError, match=r"do not share a plate over images.*'w': \[\]"):
        log_weights(*traces)


# Which dimension is the rows ------------------------------------------------------------------------------------------


class Sequences(nn.Module):
    """z and x of every row and time, in the plates "batch" and "time"; the guide is exact but for its scale."""

    def __init__(self, dims=(-2, -1)):
        super().__init__()
        self.dims, self.one = dims, nn.Parameter(torch.ones(()))

    def plates(self, x):
        each = zip(("batch", "time"), x.shape, self.dims)
        batch, time = (pyro.plate(name, size, dim=dim) for name, size, dim in each)
        return batch, time, x if self.dims == (-2, -1) else x.mT

    def model(self, x):
        batch, time, x = self.plates(x)
        with batch, time:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z * self.one, 1.0), obs=x)

    def guide(self, x):
        batch, time, x = self.plates(x)
        with batch, time:
            pyro.sample("z", dist.Normal(x / 2, 1.4))

    def log_w(self, x, z):
        """(K, B, T)"""
        log_p = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(x)
        return log_p - dist.Normal(x / 2, 1.4).log_prob(z)


@pytest.mark.parametrize("shape", [(6, 3), (3, 6), (4, 4), (1, 4), (2, 2)])
@pytest.mark.parametrize("K", [1, 5])
def test_the_rows_are_the_plate_of_as_many_elements_or_of_half_as_many_on_half_of_them(shape, K):
    program, x, runs = Sequences(), torch.randn(shape), Runs(K)
    traces = runs(program.model, program.guide, (x,))
    plate = runs.plate(program.model, program.guide, (x,), {}, traces)
    by_hand = program.log_w(x, traces[1].nodes["z"]["value"].reshape(K, *shape)).sum(-1)
    torch.testing.assert_close(log_weights(*traces, plate=plate), by_hand)


@pytest.mark.parametrize("dims", [(-2, -1), (-1, -2)])
@pytest.mark.parametrize("kind", [ImportanceWeighted, DoublyReparameterized])
def test_weighted_bounds_are_those_of_rows(kind, dims):
    """By hand they are means over draws of the log of a mean over two particles, the sum over times being inside."""
    program, x = Sequences(dims), torch.randn(2, 10)
    bounds = torch.tensor([-kind(2).loss(program.model, program.guide, x) for _ in range(100)])
    log_w = program.log_w(x, dist.Normal(x / 2, 1.4).sample((20_000, 2)))
    of_rows, of_times = (log_w.sum(dim).exp().mean(1).log().sum(-1).mean() for dim in (-1, -2))
    error = (bounds.var() / len(bounds)).sqrt()
    assert (bounds.mean() - of_rows).abs() < 4 * error
    assert (of_times - of_rows).abs() > 6 * error


@pytest.mark.parametrize("batch_size", [6, 4, 10])
def test_evaluation_has_a_bound_for_every_row(batch_size):
    """Of ten rows and four times, so that the last batch, or each of the first, is square."""
    program, x = Sequences(), torch.randn(10, 4)
    q = dist.Normal(x / 2, 1.4)
    rate = kl_divergence(q, dist.Normal(torch.zeros_like(x), 1.0)).sum(-1)
    distortion = -(dist.Normal(q.mean, 1.0).log_prob(x) - q.variance / 2).sum(-1)
    found = evaluate(program, x, batch_size=batch_size, particles=20_000)
    torch.testing.assert_close(found.rate.float(), rate, rtol=0.03, atol=0.03)
    torch.testing.assert_close(found.distortion.float(), distortion, rtol=0.03, atol=0.03)


def test_a_square_batch_has_the_rows_that_earlier_batches_showed():
    """Also where half of the rows cannot be tried, since the program has a parameter for each time of four rows."""
    program, runs = Sequences(), Runs(3)

    def model(x):
        assert len(x) >= 3
        program.model(x)

    for shape in ((6, 4), (4, 4), (5, 4)):
        x = torch.randn(shape)
        traces = runs(model, program.guide, (x,))
        assert runs.plate(model, program.guide, (x,), {}, traces).name == "batch"
    with pytest.raises(ValueError, match=r"the rows could be the plate 'time' \(dim -1\) or 'batch' \(dim -2\)"):
        x = torch.randn(4, 4)
        Runs(3).plate(model, program.guide, (x,), {}, runs(model, program.guide, (x,)))


def test_a_third_plate_of_half_as_many_elements_does_not_matter():
    def program(observes):
        def function(x):
            sizes = {"batch": len(x), "time": x.shape[1], "channel": x.shape[2]}
            with ExitStack() as stack:
                for dim, (name, size) in zip((-3, -2, -1), sizes.items()):
                    stack.enter_context(pyro.plate(name, size, dim=dim))
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                if observes:
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        return function

    x, runs = torch.randn(4, 4, 2), Runs(3)
    traces = runs(program(True), program(False), (x,))
    assert runs.plate(program(True), program(False), (x,), {}, traces).name == "batch"


def test_the_cure_for_two_plates_that_fit_works():
    """An event dimension in the place of one plate."""

    def model(x):
        with pyro.plate("batch", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("batch", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).to_event(1))

    x = torch.randn(4, 4)
    exact = dist.Normal(0.0, 2**0.5).log_prob(x).sum().item()
    assert ImportanceWeighted(3).loss(model, guide, x) == pytest.approx(-exact, rel=1e-5)


def test_where_no_argument_tells_the_rows_two_plates_are_asked_about():
    program, x = Sequences(), torch.randn(6, 3)
    traces = run(lambda: program.model(x), lambda: program.guide(x))
    for trace in traces:
        score(trace)
    with pytest.raises(ValueError, match="no argument tells the number of rows; give x as an argument"):
        image_plate(*traces)
    with pytest.raises(ValueError, match="no argument tells the number of rows"):
        ImportanceWeighted(2).loss(lambda: program.model(x), lambda: program.guide(x))
    assert ImportanceWeighted(2).loss(program.model, program.guide, x) > 0  # the cure
    assert image_plate(*traces, images=6).name == "batch"
    with pytest.raises(ValueError, match="no plate that all sample sites share is one over the 7 images"):
        image_plate(*traces, images=7)


def test_rows_are_found_among_keywords_and_behind_flags():
    program, x = Sequences(), torch.randn(6, 3)
    exact = dist.Normal(0.0, 2**0.5).log_prob(x).sum().item()

    def model(flag, *, batch):
        program.model(batch["x"])

    def guide(flag, *, batch):
        x = batch["x"]
        with pyro.plate("batch", 6, dim=-2), pyro.plate("time", 3, dim=-1):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    assert ImportanceWeighted(2).loss(model, guide, True, batch={"x": x}) == pytest.approx(-exact, rel=1e-5)


def unsized(latent):
    def model(x):
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(torch.zeros(latent(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data"):
            pyro.sample("z", dist.Normal(0.4 * x[:1] if latent(x) == () else 0.4 * x, 0.7).expand(latent(x)))

    return model, guide


def test_a_plate_without_a_size_has_that_of_the_log_probabilities():
    x = torch.randn(B)
    for K in (1, 3):
        traces = paired_traces(*unsized(lambda x: x.shape), (x,), particles=K)
        assert image_plate(*traces, images=B).size == B
        assert log_weights(*traces).shape == (K, B)


def test_a_site_with_one_value_for_all_rows_does_not_lie_in_a_plate_without_a_size():
    model, _ = unsized(lambda x: ())

    def guide(x):
        with pyro.plate("data"):
            pyro.sample("z", dist.Normal(0.4, 0.7))

    with pytest.raises(ValueError, match="do not share a plate over images"):
        log_weights(*paired_traces(model, guide, (torch.randn(B),)))


@pytest.mark.parametrize("name", ["particles", "num_particles_vectorized"])
def test_a_plate_of_any_name_may_be_the_rows(name):
    def renamed(program):
        def function(x):
            with pyro.plate(name, len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0) if program == "model" else dist.Normal(x / 2, 0.5**0.5))
                if program == "model":
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        return function

    x = torch.randn(B)
    traces = paired_traces(renamed("model"), renamed("guide"), (x,), particles=3)
    torch.testing.assert_close(log_weights(*traces), dist.Normal(0.0, 2**0.5).log_prob(x).expand(3, B))
    assert image_plate(*traces).name == name != PARTICLES


# Model and guide compared ---------------------------------------------------------------------------------------------

HAS = torch.tensor([True, False, True, True])
LOC = torch.zeros(B)


def pair(of_model, of_guide, plates=(("data", -1), ("data", -1)), handlers=(nullcontext, nullcontext)):
    """A program of one latent site, which model and guide draw from such distributions in such plates and handlers."""

    def draw(i, fn):
        name, dim = plates[i]
        plate = pyro.plate(name, B, dim=dim)
        with plate, handlers[i]():
            return plate, pyro.sample("z", fn)

    def model(x):
        plate, z = draw(0, of_model)
        with plate:
            pyro.sample("x", dist.Normal(z.sum(-1) if of_model.event_dim else z, 1.0), obs=x)

    return model, lambda x: draw(1, of_guide)


def masked(mask):
    return lambda: poutine.mask(mask=mask)


def scaled(scale):
    return lambda: poutine.scale(scale=scale)


N, POSITIVE = dist.Normal(LOC, 1.0), dist.Gamma(torch.ones(B), 1.0)
DIFFERENT = {
    "mask of the model alone": (pair(N, N, handlers=(masked(HAS), nullcontext)), "its mask in the model is not that"),
    "mask of the guide alone": (pair(N, N, handlers=(nullcontext, masked(HAS))), "its mask in the model is not that"),
    "another mask": (pair(N, N, handlers=(masked(HAS), masked(~HAS))), "its mask in the model is not that"),
    "no mask but False": (pair(N, N, handlers=(masked(True), masked(False))), "its mask in the model is not that"),
    "mask of a distribution": (pair(N.mask(HAS), N), "its mask in the model is not that"),
    "a wider support": (pair(POSITIVE, N), r"its support is GreaterThanEq.* in the model and Real\(\) in the guide"),
    "one that Pyro does not look at": (pair(dist.Exponential(torch.ones(B)), N), "its support is"),
    "a narrower support": (pair(N, dist.HalfNormal(torch.ones(B))), "its support is Real"),
    "a part of its domain moved": (
        pair(N, dist.TransformedDistribution(POSITIVE, [transforms.AffineTransform(0.0, -2.0)])),
        r"its support is Real\(\) .*upper_bound=-?0",
    ),
    "a bound that is moved": (
        pair(POSITIVE, dist.TransformedDistribution(POSITIVE, [transforms.AffineTransform(1.0, 1.0)])),
        "its support is .*lower_bound=1",
    ),
    "an angle": (pair(dist.VonMises(LOC, 1.0), N), r"its support is Interval.*3.14.* in the model and Real\(\)"),
    "an interval": (pair(dist.Uniform(LOC, 2.0), dist.Beta(torch.ones(B), 1.0)), "its support is Interval"),
    "another plate": (pair(N, N, plates=(("data", -1), ("rows", -1))), "its plates are .*'data' of 4 at dim -1"),
    "another dim": (
        pair(N, dist.Normal(torch.zeros(B, 1), 1.0), plates=(("data", -1), ("data", -2))),
        "its shape",
    ),
    "another shape": (pair(N, dist.Normal(torch.zeros(B, 1), 1.0).to_event(1)), "its event has 0 dimensions"),
    "another event": (
        pair(dist.Normal(torch.zeros(B, 2), 1.0).to_event(1), dist.Normal(torch.zeros(B, 3), 1.0).to_event(1)),
        r"its shape is \(4, 2\) in the model and \(4, 3\)",
    ),
    "another scale": (pair(N, N, handlers=(scaled(2.0), nullcontext)), "its scale is 2 in the model and 1 in the"),
    "weights of rows": (pair(N, N, handlers=(scaled(torch.rand(B)), nullcontext)), "its scale is a tensor of shape"),
}


@pytest.mark.parametrize("estimator", [StickingTheLanding(), ScoreFunction(), ImportanceWeighted(2)])
@pytest.mark.parametrize("case", DIFFERENT)
def test_sites_of_one_name_that_differ_are_refused(case, estimator):
    (model, guide), message = DIFFERENT[case]
    for validated in (True, False):
        with pyro.validation_enabled(validated), pytest.raises(ValueError, match=f"site 'z': {message}"):
            estimator.loss(model, guide, LOC)


@pytest.mark.parametrize(
    "program",
    [
        pair(N, N, handlers=(masked(HAS), masked(HAS.clone()))),
        pair(N.mask(HAS), N, handlers=(nullcontext, masked(HAS))),
        pair(N, N, handlers=(masked(True), nullcontext)),
        pair(POSITIVE, dist.LogNormal(LOC, 1.0)),
        pair(POSITIVE, dist.Delta(torch.ones(B))),
        pair(N, dist.MixtureSameFamily(dist.Categorical(torch.ones(B, 2)), dist.Normal(torch.zeros(B, 2), 1.0))),
        pair(dist.Uniform(LOC, 1.0), dist.Beta(torch.ones(B), 1.0)),
        pair(POSITIVE, dist.TransformedDistribution(dist.LogNormal(LOC, 1.0), transforms.AffineTransform(0.0, 2.0))),
        pair(
            dist.Uniform(LOC, 3.0),
            dist.TransformedDistribution(dist.Beta(torch.ones(B), 1.0), [transforms.AffineTransform(3.0, -3.0)]),
        ),
        pair(dist.VonMises(LOC, 1.0), dist.VonMises(LOC + 1.0, 2.0)),
    ],
)
def test_sites_that_differ_by_nothing_that_matters_are_not(program):
    paired_traces(*program, (LOC,))
    paired_traces(*program, (LOC,), particles=3)


def test_a_guide_that_leaves_a_category_out_is_refused():
    def program(size):
        def draw(x):
            with pyro.plate("data", B):
                pyro.sample("z", dist.Categorical(torch.ones(size)))

        return draw

    with pytest.raises(ValueError, match="site 'z': its support is IntegerInterval"):
        ScoreFunction().loss(program(3), program(2), LOC)


def test_a_guide_without_the_mask_of_a_partly_observed_site_is_refused():
    def model(x):
        with pyro.plate("data", B):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x, obs_mask=HAS)

    with pytest.raises(ValueError, match="site 'x_unobserved': its mask"):
        StickingTheLanding().loss(model, AutoNormal(model), LOC)


def test_enumeration_is_named_where_only_the_model_has_the_site():
    def model(x):
        with pyro.plate("data", B):
            pyro.sample("y", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    for K in (1, 2):
        with pytest.raises(ValueError, match=r"\['y'\] are meant for enumeration.*TraceEnum_ELBO"):
            StickingTheLanding(K).loss(model, lambda x: None, LOC)


def test_a_program_without_sites_is_refused():
    for estimator in (StickingTheLanding(), ScoreFunction(3), ImportanceWeighted(2)):
        with pytest.raises(ValueError, match="the model has no sample site"):
            estimator.differentiable_loss(lambda: None, lambda: None)


# Guides that run the model --------------------------------------------------------------------------------------------


def test_the_observations_of_a_guide_that_runs_the_model_are_the_models():
    messenger = AutoNormalMessenger(model)

    class Held:
        def guide(self, x):
            return messenger(x)

    x = torch.randn(B)
    for guide in (messenger, Held().guide, poutine.scale(scale=1.0)(messenger)):
        for K in (1, 3):
            model_trace, guide_trace = paired_traces(model, guide, (x,), particles=K)
            assert list(sample_sites(guide_trace)) == ["z"]
            assert list(sample_sites(model_trace)) == ["z", "x"]
            assert log_weights(model_trace, guide_trace).shape == (K, B)
    assert messenger.locs.z.shape == (B, 2)  # made outside of the plate of particles
    assert Runs(3).layout(model, messenger, (x,)).vectorized


# Particles together and one by one ------------------------------------------------------------------------------------


def summing(dim):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(dim), 1.0), obs=x)

    return model


def of_three(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(len(x), 3), 0.5).to_event(1))


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(3), nn.Dropout(0.5)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.norm(z.flatten(0, -2)).reshape(z.shape).sum(-1), 1.0), obs=x)


class Dropping(Normed):
    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.drop(z).sum(-1), 1.0), obs=x)


def indexing(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(torch.zeros(len(x)).masked_scatter(x > 0, z[x > 0].sum(-1)), 1.0), obs=x)


def first_row(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1) - z[0].sum(), 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "together"),
    [
        (summing(-1), True),
        (summing(1), False),
        (indexing, False),
        (first_row, False),
        (Normed().model, False),
        (Normed().eval().model, True),
        (Dropping().model, True),
    ],
)
@pytest.mark.parametrize("K", [2, 5])
def test_particles_are_drawn_together_where_each_has_what_it_has_alone(model, together, K):
    x = torch.tensor([0.5, -1.0, 2.0])
    assert Runs(K).layout(model, of_three, (x,)) == (1, together)
    assert not Runs(K, vectorize=False).layout(model, of_three, (x,)).vectorized
    assert Runs(K, vectorize=True).layout(model, of_three, (x,)).vectorized
    model_trace, guide_trace = paired_traces(model, of_three, (x,), particles=K)
    assert guide_trace.nodes["z"]["value"].shape == (K, 3, 3)
    assert log_weights(model_trace, guide_trace).shape == (K, 3)


def test_a_network_whose_weights_are_drawn_runs_particle_by_particle():
    network = PyroModule[nn.Linear](2, 1)
    network.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))
    network.bias = PyroSample(dist.Normal(0.0, 1.0).expand([1]).to_event(1))
    x, y = torch.randn(5, 2), torch.randn(5)

    def model(x, y):
        mean = network(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    guide = AutoNormal(model, init_scale=0.5)
    guide(x, y)
    ours = torch.tensor([StickingTheLanding(2).loss(model, guide, x, y) for _ in range(60)])
    theirs = torch.tensor([Trace_ELBO(2).loss(model, guide, x, y) for _ in range(200)])
    assert (ours.mean() - theirs.mean()).abs() < 5 * (ours.var() / 60 + theirs.var() / 200).sqrt()


def test_the_trial_leaves_the_program_and_the_random_state_alone():
    program, x = Normed(), torch.randn(3)
    before, state = copy.deepcopy(program.state_dict()), torch.get_rng_state()
    Runs(5).layout(program.model, of_three, (x,))
    assert torch.equal(state, torch.get_rng_state()) and program.training
    assert all(torch.equal(value, before[name]) for name, value in program.state_dict().items())
    assert len(pyro.get_param_store()) == 0


def test_what_is_found_out_holds_for_one_program_in_one_mode_and_for_arguments_of_one_shape():
    program, x, runs = Normed(), torch.randn(3), Runs(4)
    assert not runs.layout(program.model, of_three, (x,)).vectorized
    assert runs.layout(program.eval().model, of_three, (x,)).vectorized
    assert not runs.layout(program.train().model, of_three, (x,)).vectorized
    assert runs.layout(summing(-1), of_three, (x,)).vectorized
    assert not runs.layout(summing(1), of_three, (x,)).vectorized
    assert not runs.layout(summing(1), of_three, (torch.randn(4),)).vectorized


def test_a_known_program_runs_once_a_batch_even_under_handlers_made_anew():
    calls, estimator, x = [], StickingTheLanding(3), torch.randn(B)
    counted = lambda x: [calls.append(1), guide(x)]  # noqa: E731
    mask = poutine.mask(mask=torch.ones(B, dtype=torch.bool))
    estimator.loss(mask(model), mask(counted), x)
    calls.clear()
    estimator.loss(mask(model), mask(counted), x)
    assert len(calls) == 1


def test_runs_keep_no_program_alive_and_can_be_copied():
    estimator, x = StickingTheLanding(3), torch.randn(3)

    def once():
        program = Normed()
        estimator.loss(program.model, of_three, x)
        return torch.nn.utils.parameters_to_vector(program.parameters()), weakref.ref(program)

    _, weak = once()
    gc.collect()
    assert weak() is None
    for twin in (copy.deepcopy(estimator), pickle.loads(pickle.dumps(estimator))):
        assert twin.runs.particles == 3 and twin.loss(summing(-1), of_three, x) > 0


def test_particles_whose_sites_vary_cannot_be_compared():
    def varying(name):
        return poutine.trace(lambda: pyro.sample(name, dist.Normal(0.0, 1.0))).get_trace()

    traces = [varying("a"), varying("b")]
    for trace in traces:
        score(trace)
    with pytest.raises(ValueError, match="site 'a' is not met, or not of one shape, in every particle"):
        stacked(traces, nesting=0)


def test_subsampled_rows_are_those_of_the_first_particle():
    def subsampled(x):
        with pyro.plate("data", 50, subsample_size=2) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    def guide(x):
        with pyro.plate("data", 50, subsample_size=2):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    x = torch.arange(50.0)
    model_trace, guide_trace = paired_traces(subsampled, guide, (x,), particles=4, vectorize=False)
    rows, z = model_trace.nodes["data"]["value"], guide_trace.nodes["z"]["value"]
    assert rows.shape == (2,) and torch.equal(rows, guide_trace.nodes["data"]["value"])
    torch.testing.assert_close(log_weights(model_trace, guide_trace), dist.Normal(z, 1.0).log_prob(x[rows]))


# Rows apart -----------------------------------------------------------------------------------------------------------


class Rows(nn.Module):
    """x ~ N(f(z), 1), q(z) = N(g(x), 1), with what a user may write for f and g."""

    def __init__(self, f, g=lambda x: x.unsqueeze(-1).expand(-1, 3)):
        super().__init__()
        self.f, self.g, self.weight = f, g, nn.Parameter(torch.ones(()))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.f(z) * self.weight, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.g(x), 1.0).to_event(1))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (Rows(lambda z: (z - z.mean(0)).sum(-1)), "site 'x' of the model: the log-probability of a row depends"),
        (Rows(lambda z: z.softmax(0).sum(-1)), "site 'x' of the model"),
        (Rows(nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 1), nn.Flatten(0))), "on one"),
        (Rows(lambda z: z.sum(-1), lambda x: (x / x.norm()).unsqueeze(-1).expand(-1, 3)), "site 'z' of the guide"),
        (Rows(lambda z: z.squeeze().sum(1)), "the program runs on two rows and fails on one"),
    ],
)
def test_rows_that_influence_one_another_have_no_bound_of_their_own(program, message):
    with pytest.raises(ValueError, match=message):
        check_program(program, torch.randn(5))


@pytest.mark.parametrize(
    "program",
    [
        Rows(lambda z: z.sum(-1)),
        Rows(nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 1), nn.Flatten(0))),
        Rows(lambda z: z.sum(-1) + torch.randn(len(z))),  # noise of its own: nothing can be said
        Rows(lambda z: z.sum(-1) + torch.arange(5.0)),  # made for five rows
    ],
)
def test_rows_that_do_not_are_not_refused(program):
    """A program in training mode, whose rows are tried in evaluation mode; nothing tells that it ran."""
    before, state = copy.deepcopy(program.state_dict()), torch.get_rng_state()
    check_program(program, torch.randn(5, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(state, torch.get_rng_state()) and program.training
    assert all(torch.equal(value, before[name]) for name, value in program.state_dict().items())


def test_rows_are_not_asked_of_a_program_without_a_plate_over_them():
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    check_rows(model, lambda x: pyro.sample("w", dist.Normal(0.0, 1.0)), (torch.randn(B),))


def test_a_program_whose_guide_is_a_point_can_be_trained_and_one_with_a_factor_cannot():
    """Pyro trains both; but a bound that is less a factor of the guide is none, where a point has log p(x, z)."""
    program, x = Rows(lambda z: z.sum(-1)), torch.randn(5)

    def point(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(torch.zeros(len(x), 3), event_dim=1))

    def scoring(x):
        point(x)
        pyro.factor("f", torch.ones(()), has_rsample=True)

    program.guide = point
    check_program(program, x)
    bound = dist.Normal(torch.zeros(3), 1.0).log_prob(torch.zeros(3)).sum() + dist.Normal(0.0, 1.0).log_prob(x)
    torch.testing.assert_close(evaluate(program, x).bound.float(), bound)
    program.guide = scoring
    for call in (lambda: check_program(program, x), lambda: evaluate(program, x)):
        with pytest.raises(ValueError, match=r"the factors \['f'\] of the guide"):
            call()
