"""Where the values of distributions lie, by what is accepted as a guide's of a model."""

from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import pytest
import torch
from pyro.infer.autoguide import AutoGuideList
from torch.distributions.transforms import CumulativeDistributionTransform

from pyro_vae.tracing.supports import ONE_TURN, known_support, moves_freely
from pyro_vae.tracing.traces import paired_traces


@pytest.mark.parametrize(
    ("fn", "free"),
    [
        (dist.Gamma(torch.ones(2), 1.0).to_event(1), True),
        (dist.Uniform(0.0, 2.0).mask(True), True),
        (dist.MultivariateNormal(torch.zeros(2), torch.eye(2)), True),
        (dist.LogNormal(0.0, 1.0), True),
        (dist.VonMises(0.0, 1.0), True),
        (dist.Categorical(torch.ones(2)), False),
        (dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0), transforms.StickBreakingTransform()), False),
        (dist.LKJCholesky(3), False),
    ],
)
def test_which_draws_may_move_in_every_direction(fn, free):
    assert moves_freely(fn) == free


@pytest.mark.parametrize("low, fits", [(0.0, True), (0.5, False)])
def test_the_support_of_an_inverse_distribution_function_is_known(low, fits):
    """The usual way to truncate a normal distribution: of z > 0 only, it proposes nothing below."""
    inverse = CumulativeDistributionTransform(dist.Normal(0.0, 1.0)).inv
    guide = dist.TransformedDistribution(dist.Uniform(torch.tensor(low), 1.0), [inverse])
    programs = [lambda fn=fn: pyro.sample("z", fn) for fn in (dist.Normal(0.0, 1.0), guide)]
    if fits:
        paired_traces(*programs)
    else:
        with pytest.raises(ValueError, match=r"support is Real\(\) in the model and GreaterThan\(lower_bound=0.0"):
            paired_traces(*programs)


VECTORS = [
    transforms.LowerCholeskyAffine(torch.zeros(2), torch.eye(2)),
    transforms.Permute(torch.tensor([1, 0])),
    transforms.spline_coupling(2, count_bins=4),
]


@pytest.mark.parametrize("transform", VECTORS, ids=lambda transform: type(transform).__name__)
@pytest.mark.parametrize(
    "base, fits", [(dist.Normal(torch.zeros(2), 1.0), True), (dist.HalfNormal(torch.ones(2)), False)]
)
def test_a_transform_of_vectors_makes_no_whole_of_a_part(transform, base, fits):
    def model():
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    def guide():
        pyro.sample("z", dist.TransformedDistribution(base.to_event(1), [transform]))

    if fits:
        paired_traces(model, guide)
    else:
        with pytest.raises(ValueError, match=r"support is Real\(\) in the model and a part of Real\(\) in the guide"):
            paired_traces(model, guide)


@pytest.mark.parametrize("parts, fits", [(dist.Normal(torch.zeros(2), 1.0), 1), (dist.HalfNormal(torch.ones(2)), 0)])
def test_a_mixture_lies_where_its_parts_lie(parts, fits):
    parts = dist.TransformedDistribution(parts, [transforms.AffineTransform(0.5, 1.0)])
    guide = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts)
    programs = [lambda fn=fn: pyro.sample("z", fn) for fn in (dist.Normal(0.0, 1.0), guide)]
    with nullcontext() if fits else pytest.raises(ValueError, match=r"GreaterThan\(lower_bound=0.5\) in the guide"):
        paired_traces(*programs)


ANGLES = {
    "one": dist.VonMises(0.0, 1.0),
    "mixture": dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.VonMises(torch.zeros(2), 1.0)),
    "two": dist.SineBivariateVonMises(0.0, 0.0, 1.0, 1.0, 0.1),
    "skewed": dist.SineSkewed(dist.VonMises(torch.zeros(2), 1.0).to_event(1), torch.tensor([0.2, 0.1])),
}


@pytest.mark.parametrize("name", ANGLES)
def test_angles_are_of_one_turn(name):
    fn = ANGLES[name]

    def model():
        pyro.sample("z", fn)

    assert known_support(fn) is ONE_TURN and fn.sample((1000,)).abs().max() <= torch.pi
    paired_traces(model, model)
    normal = dist.Normal(torch.zeros(fn.event_shape), 1.0).to_event(len(fn.event_shape))

    def unrolled():
        u = pyro.sample("u", normal, infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(u, event_dim=len(fn.event_shape)))

    with pytest.raises(ValueError, match=r"its support is Interval.* in the model and Real"):
        paired_traces(model, lambda: pyro.sample("z", normal))
    with pytest.raises(ValueError, match=r"makes \['z'\] of draws \['u'\], .* lie in \[Interval.*a VonMises"):
        paired_traces(model, unrolled)
    own = AutoGuideList(model)
    own.append(model)
    paired_traces(model, own)
