"""Which dimension of a program is the rows; the weight of each row against sums by hand."""

from contextlib import ExitStack

import pyro
import pyro.distributions as dist
import pytest
import torch
from monte_carlo import assert_mean_is
from programs import flat_guide, flat_model, grid_guide, grid_model
from pyro import poutine
from pyro.infer import autoguide
from torch import nn
from torch.distributions import kl_divergence

from pyro_vae.estimators import DoublyReparameterized, ImportanceWeighted
from pyro_vae.tracing.messages import PARTICLES
from pyro_vae.tracing.particles import run, score
from pyro_vae.tracing.rows import (
    common_scale,
    common_weight,
    count_rows,
    image_plate,
    log_weights,
    per_image,
    points_without_density,
    spread,
)
from pyro_vae.tracing.traces import ProgramRuns, paired_traces
from pyro_vae.training.loop import evaluate

B = 4


@pytest.mark.parametrize("vectorize", [None, True, False])
@pytest.mark.parametrize("K", [1, 5])
@pytest.mark.parametrize("program", [(flat_model, flat_guide), (grid_model, grid_guide)])
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
@pytest.mark.parametrize("program", [(flat_model, flat_guide), (grid_model, grid_guide)])
def test_spread_reaches_the_particle_and_image_of_a_value(program, K, vectorize):
    traces = paired_traces(*program, (torch.randn(B),), particles=K, vectorize=vectorize)
    weights, site = torch.arange(K * B).reshape(K, B), traces[1].nodes["z"]
    shape = torch.broadcast_shapes((K, B, 1), site["value"].shape)
    reached = spread(weights, site, image_plate(*traces)).expand(shape).reshape(K, B, -1)
    assert torch.equal(reached, weights.unsqueeze(-1).expand_as(reached))


def test_a_scale_that_all_sites_share_leaves_the_weights():
    x, half = torch.randn(B), poutine.scale(scale=0.5)
    torch.manual_seed(0)
    expected = log_weights(*paired_traces(flat_model, flat_guide, (x,)))
    torch.manual_seed(0)
    traces = paired_traces(half(flat_model), half(flat_guide), (x,))
    torch.testing.assert_close(log_weights(*traces), expected)
    assert common_scale(*traces) == 0.5
    with pytest.raises(ValueError, match="not an importance weight"):
        log_weights(*paired_traces(half(flat_model), flat_guide, (x,)))


def test_sites_without_a_common_plate_have_no_weight_for_each_image():
    def without(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("images", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    traces = paired_traces(without, lambda x: pyro.sample("w", dist.Normal(0.0, 1.0)), (torch.zeros(B),))
    with pytest.raises(ValueError, match=r"do not share a plate over images.*'w': \[\].*parameter_sites\(self\)"):
        log_weights(*traces)


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
    program, x, runs = Sequences(), torch.randn(shape), ProgramRuns(K)
    traces = runs(program.model, program.guide, (x,))
    plate = runs.plate(program.model, program.guide, (x,), {}, traces)
    by_hand = program.log_w(x, traces[1].nodes["z"]["value"].reshape(K, *shape)).sum(-1)
    torch.testing.assert_close(log_weights(*traces, plate=plate), by_hand)


@pytest.mark.parametrize("dims", [(-2, -1), (-1, -2)])
@pytest.mark.parametrize("kind", [ImportanceWeighted, DoublyReparameterized])
def test_weighted_bounds_are_those_of_rows(kind, dims):
    """By hand they are means over draws of the log of a mean over two particles, with the sum over times inside."""
    program, x = Sequences(dims), torch.randn(2, 10)
    bounds = torch.tensor([-kind(2).loss(program.model, program.guide, x) for _ in range(150)])
    log_w = program.log_w(x, dist.Normal(x / 2, 1.4).sample((20_000, 2)))
    of_rows, of_times = (log_w.sum(dim).exp().mean(1).log().sum(-1).mean() for dim in (-1, -2))
    assert_mean_is(bounds, of_rows, sees=(of_times - of_rows).abs())


@pytest.mark.parametrize("batch_size", [6, 4, 10])
def test_evaluation_has_a_bound_for_every_row(batch_size):
    """Ten rows and four times, so that the last batch, or each of the first ones, is square."""
    program, x = Sequences(), torch.randn(10, 4)
    q = dist.Normal(x / 2, 1.4)
    rate = kl_divergence(q, dist.Normal(torch.zeros_like(x), 1.0)).sum(-1)
    distortion = -(dist.Normal(q.mean, 1.0).log_prob(x) - q.variance / 2).sum(-1)
    found = evaluate(program, x, batch_size=batch_size, particles=20_000)
    torch.testing.assert_close(found.rate.float(), rate, rtol=0.03, atol=0.03)
    torch.testing.assert_close(found.distortion.float(), distortion, rtol=0.03, atol=0.03)


def test_a_square_batch_has_the_rows_that_earlier_batches_showed():
    """Half of the rows cannot be tried here, since the program has a parameter for each time of four rows."""
    program, runs = Sequences(), ProgramRuns(3)

    def model(x):
        assert len(x) >= 3
        program.model(x)

    for shape in ((6, 4), (4, 4), (5, 4)):
        x = torch.randn(shape)
        traces = runs(model, program.guide, (x,))
        assert runs.plate(model, program.guide, (x,), {}, traces).name == "batch"
    with pytest.raises(ValueError, match=r"the rows could be the plate 'time' \(dim -1\) or 'batch' \(dim -2\)"):
        x = torch.randn(4, 4)
        ProgramRuns(3).plate(model, program.guide, (x,), {}, runs(model, program.guide, (x,)))


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

    x, runs = torch.randn(4, 4, 2), ProgramRuns(3)
    traces = runs(program(True), program(False), (x,))
    assert runs.plate(program(True), program(False), (x,), {}, traces).name == "batch"


def test_the_cure_for_two_plates_that_fit_works():
    """An event dimension replaces one plate."""

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


# Log-probabilities of rows --------------------------------------------------------------------------------------------


def test_rows_are_those_of_the_first_tensor_that_has_a_dimension():
    x, y = torch.zeros(3, 2), torch.zeros(5)
    assert count_rows((x, y)) == 3 and count_rows((y, x)) == 5
    assert count_rows((torch.tensor(1.0), 7, {"deep": [y]}), {"x": x}) == 5
    assert count_rows((None, 2.0), {"x": x}) == 3 and count_rows((), {}) is None


@pytest.mark.parametrize("K", [1, 3])
def test_log_probabilities_of_a_site_are_summed_over_all_that_is_no_row(K):
    x = torch.randn(B)
    traces = paired_traces(grid_model, grid_guide, (x,), particles=K, vectorize=True)
    site, plate = traces[0].nodes["z"], image_plate(*traces)
    by_hand = dist.Normal(0.0, 1.0).log_prob(site["value"]).reshape(K, B, 3).sum(-1)
    torch.testing.assert_close(per_image(site, plate), by_hand)
    torch.testing.assert_close(per_image(site, None), by_hand.sum(-1, keepdim=True))


def test_a_weight_of_each_row_is_divided_out_and_other_tensors_are_refused():
    x, weights = torch.randn(B), torch.tensor([0.5, 1.0, 2.0, 3.0])

    def weights_of(scale):
        torch.manual_seed(1)
        scaled = poutine.scale(scale=scale)
        return log_weights(*paired_traces(scaled(grid_model), scaled(grid_guide), (x,)))

    torch.testing.assert_close(weights_of(weights.unsqueeze(-1)), weights_of(1.0))
    with pytest.raises(ValueError, match=r"scaled by a tensor of shape \(3,\), wanted a number or one weight for each"):
        weights_of(torch.tensor([1.0, 2.0, 3.0]))
    with pyro.validation_enabled(False), pytest.raises(ValueError, match="scaled by 0"):
        weights_of(torch.tensor([0.0, 1.0, 1.0, 1.0]).unsqueeze(-1))


def test_a_site_of_the_guide_alone_is_named_where_it_lies_outside_the_plate():
    def guide(x):
        with poutine.mask(mask=False):
            pyro.sample("u", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        flat_guide(x)

    traces = paired_traces(flat_model, guide, (torch.zeros(B),))
    with pytest.raises(ValueError, match=r"do not share a plate over images.*'u': \[\].*'z': \['images'\]"):
        log_weights(*traces)


@pytest.mark.parametrize("event_dim", [0, 1])
def test_a_point_beside_draws_is_refused_unless_each_draw_has_its_own(event_dim):
    def pair(point):
        def model(x):
            with pyro.plate("images", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                y = pyro.sample("y", dist.Normal(torch.zeros(len(x), *[2] * event_dim), 1.0).to_event(event_dim))
                pyro.sample("x", dist.Normal(z + (y.sum(-1) if event_dim else y), 1.0), obs=x)

        def guide(x):
            with pyro.plate("images", len(x)):
                z = pyro.sample("z", dist.Normal(x, 1.0))
                y = point(x, z)
                pyro.sample("y", dist.Delta(torch.stack([y, -y], -1) if event_dim else y, event_dim=event_dim))

        return model, guide

    x = torch.randn(B)
    traces = paired_traces(*pair(lambda x, z: 2 * x), (x,), particles=3, vectorize=True)
    with pytest.raises(ValueError, match=r"the guide proposes single points at the sites \['y'\]"):
        log_weights(*traces)
    traces = paired_traces(*pair(lambda x, z: 2 * z), (x,), particles=3, vectorize=True)
    assert log_weights(*traces).shape == (3, B)


def two_latents(x):
    """One of the real numbers, one of the positive ones."""
    z, s = (pyro.sample(name, prior) for name, prior in (("z", dist.Normal(0.0, 1.0)), ("s", dist.Gamma(2.0, 1.0))))
    with pyro.plate("images", len(x)):
        pyro.sample("x", dist.Normal(z, s), obs=x)


@pytest.mark.parametrize("K", [1, 3])
@pytest.mark.parametrize(
    ("kind", "points"),
    [
        (autoguide.AutoDelta, ("z", "s")),
        (autoguide.AutoLaplaceApproximation, ("_AutoLaplaceApproximation_latent", "z")),
        (autoguide.AutoNormal, ()),
        (autoguide.AutoMultivariateNormal, ()),
        (autoguide.AutoNormalMessenger, ()),
    ],
)
def test_points_without_a_density_are_those_of_no_draw(kind, points, K):
    guide = kind(two_latents)
    guide(torch.randn(B))
    assert points_without_density(*paired_traces(two_latents, guide, (torch.randn(B),), particles=K)) == points


def test_a_draw_that_one_point_has_used_up_is_no_density_of_another():
    guide = autoguide.AutoGuideList(two_latents)
    guide.append(autoguide.AutoNormal(poutine.block(two_latents, expose=["s"])))
    guide.append(autoguide.AutoDelta(poutine.block(two_latents, expose=["z"])))
    assert points_without_density(*paired_traces(two_latents, guide, (torch.randn(1),))) == ("z",)


@pytest.mark.parametrize(
    "within, of_x, outside, weight",
    [(10, 1, 1, 1), (1, 1, 0.5, None), (2, 3, 1, None), (2, 1, 2, 2)],
)
def test_a_weight_of_all_rows_beside_latents_of_all_of_them_is_that_of_a_batch(within, of_x, outside, weight):
    def model():
        with poutine.scale(scale=outside):
            pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", B), poutine.scale(scale=within):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            with poutine.scale(scale=of_x):
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(B))

    assert common_weight(poutine.trace(model).get_trace()) == weight


def one_point(prior, point):
    run = (poutine.trace(lambda fn=fn: pyro.sample("z", fn)).get_trace() for fn in (prior, point))
    return points_without_density(*run)


def test_points_of_whole_numbers_those_with_a_density_and_those_that_do_not_count_have_a_bound():
    """The mass p(x, z) of a whole number z is at most p(x)."""
    point, prior = dist.Delta(torch.ones(B)), dist.Normal(torch.zeros(B), 1.0)
    assert one_point(prior, point) == one_point(prior.to_event(1), point.to_event(1)) == ("z",)
    for discrete in (dist.Bernoulli(0.5 * torch.ones(B)), dist.Poisson(torch.ones(B)), dist.Delta(torch.ones(B))):
        assert not one_point(discrete, point) and not one_point(discrete.to_event(1), point.to_event(1))
    assert not one_point(dist.OneHotCategorical(torch.ones(B)), point.to_event(1))
    assert not one_point(prior, dist.Delta(torch.ones(B), log_density=torch.ones(B)))
    assert not one_point(prior.mask(False), point.mask(False))


def test_traces_without_sites_have_the_scale_of_none():
    assert common_scale(poutine.Trace(), poutine.Trace()) == 1.0
