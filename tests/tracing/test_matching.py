"""Sites of model and guide compared: what is refused, and what differs by nothing that matters."""

from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal

from pyro_vae.estimators import ImportanceWeighted, ScoreFunction, StickingTheLanding
from pyro_vae.tracing.matching import check_order
from pyro_vae.tracing.messages import sample_sites
from pyro_vae.tracing.traces import paired_traces

B = 4
HAS = torch.tensor([True, False, True, True])
LOC = torch.zeros(B)


def pair(of_model, of_guide, plates=(("data", -1), ("data", -1)), handlers=(nullcontext, nullcontext)):
    """Return model and guide of one latent site, with the given distributions, plates and handlers."""

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
        pair(dist.Bernoulli(torch.full((B,), 0.3)), dist.Binomial(1, torch.full((B,), 0.6))),
        pair(dist.Binomial(1, torch.full((B,), 0.3)), dist.Bernoulli(torch.full((B,), 0.6))),
    ],
)
def test_sites_that_differ_by_nothing_that_matters_are_not(program):
    paired_traces(*program, (LOC,))
    paired_traces(*program, (LOC,), particles=3)


@pytest.mark.parametrize("estimator", [ScoreFunction(2), ImportanceWeighted(2), StickingTheLanding(2)])
def test_an_auxiliary_draw_counts_only_where_a_point_is_made_of_it(estimator):
    """log p(x, z) − log q(z | u) is a bound for each u; with − log q(u) beside it, it is above log p(x)."""

    def model(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 0.5), obs=x)

    def guide(x, mask=False):
        with pyro.plate("rows", len(x)):
            with poutine.mask(mask=mask):
                u = pyro.sample("u", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(0.8 * x + 0.3 * u, 0.45))

    x, log_px = torch.ones(2000), dist.Normal(0.0, 1.25**0.5).log_prob(torch.tensor(1.0)).item()
    torch.manual_seed(0)
    bound = -estimator.loss(model, guide, x) / 2000
    assert log_px - 0.3 < bound < log_px
    with pytest.raises(ValueError, match=r"draws \['u'\], marked auxiliary, whose density counts, and makes no point"):
        estimator.loss(model, lambda x: guide(x, mask=True), x)


def test_a_point_stands_against_one_auxiliary_draw_alone():
    def guide():
        draws = [pyro.sample(name, dist.Normal(0.0, 1.0), infer={"is_auxiliary": True}) for name in ("u", "v")]
        pyro.sample("z", dist.Delta(draws[0].exp()))

    def model():
        pyro.sample("z", dist.LogNormal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"draws \['u', 'v'\], .* makes points of fewer numbers \(\['z'\]\) of it"):
        paired_traces(model, guide)


def test_a_guide_that_leaves_a_category_out_is_refused():
    def program(size):
        def draw(x):
            with pyro.plate("data", B):
                pyro.sample("z", dist.Categorical(torch.ones(size)))

        return draw

    with pytest.raises(ValueError, match="site 'z': its support is IntegerInterval"):
        ScoreFunction().loss(program(3), program(2), LOC)
    p = torch.full((B,), 0.6)
    with pytest.raises(ValueError, match=r"site 'z': its support is Boolean.* in the model and IntegerInterval"):
        ScoreFunction().loss(*pair(dist.Bernoulli(p), dist.Binomial(2, p)), LOC)


def test_a_guide_without_the_mask_of_a_partly_observed_site_is_refused():
    def model(x):
        with pyro.plate("data", B):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x, obs_mask=HAS)

    with pytest.raises(ValueError, match="site 'x_unobserved': its mask"):
        StickingTheLanding().loss(model, AutoNormal(model), LOC)


def test_an_automatic_guide_of_other_rows_is_named():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    guide = AutoNormal(model)
    guide(torch.zeros(4))
    with pytest.raises(ValueError, match=r"plate 'data' is of 10 rows in the model and of 4 in the guide, .*make one"):
        StickingTheLanding().loss(model, guide, torch.zeros(10))


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


def test_the_order_of_sites_counts_and_further_ones_of_the_guide_do_not():
    def trace(*names):
        return poutine.trace(lambda: [pyro.sample(name, dist.Normal(0.0, 1.0)) for name in names]).get_trace()

    check_order(trace("a", "b"), trace("a", "noise", "b"))
    with pytest.raises(ValueError, match=r"the model draws \['a', 'b'\] and the guide \['b', 'a'\]"):
        check_order(trace("a", "b"), trace("b", "noise", "a"))


def test_a_loop_over_a_plate_is_no_dimension():
    """Its sites have names of their own, so a guide may draw them without the loop."""

    def draw(loop):
        return lambda: [pyro.sample(f"z{i}", dist.Normal(0.0, 1.0)) for i in loop()]

    of_plate, plain = draw(lambda: pyro.plate("data", 3)), draw(lambda: range(3))
    for model, guide in ((of_plate, plain), (plain, of_plate), (of_plate, of_plate)):
        assert len(sample_sites(paired_traces(model, guide)[1])) == 3


@pytest.mark.parametrize("kind", [dist.LKJCholesky, dist.LKJ])
def test_draws_of_another_distribution_than_is_scored_are_refused(kind):
    """Variances of the correlations are 1 / (2 η + D − 1) (Joe 2006), here 1/4, which the draws of torch have not."""
    draws = dist.LKJCholesky(3, 1.0).sample((20_000,))
    assert ((draws @ draws.mT)[:, 0, 2].var() - 1 / 4).abs() > 0.03  # within 0.01 the message could go
    programs = {D: lambda D=D: pyro.sample("L", kind(D, 1.0)) for D in (2, 3)}
    paired_traces(programs[2], programs[2])
    paired_traces(programs[3], AutoNormal(programs[3]))
    with pytest.raises(ValueError, match="site 'L': torch draws an LKJCholesky of 3 or more rows from another"):
        paired_traces(programs[3], programs[3])
