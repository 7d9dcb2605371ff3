"""Values as draws at their own noise: the path to the parameters is that of rsample."""

import pyro.distributions as dist
import pytest
import torch

from pyro_vae.distributions.families import LowRankMultivariateNormal, MultivariateNormal
from pyro_vae.tracing.base_noise import drawn_from, redrawn

pytestmark = pytest.mark.usefixtures("float64")


def lower(raw):
    return torch.diag_embed(raw.exp()) + 0.3 * torch.ones(2, 2).tril(-1) * raw[..., :1, None]


@pytest.mark.parametrize(
    "family",
    [
        lambda loc, raw: dist.Normal(loc, raw.exp()).to_event(1),
        lambda loc, raw: dist.Laplace(loc, raw.exp()).mask(torch.tensor(True)).to_event(1),
        lambda loc, raw: dist.Cauchy(loc, raw.exp()).expand([4, 3, 2]).to_event(1),
        lambda loc, raw: dist.LogNormal(loc, raw.exp()).to_event(1),
        lambda loc, raw: MultivariateNormal(loc, scale_tril=lower(raw)),
        lambda loc, raw: dist.TransformedDistribution(
            dist.Normal(loc, 1.0).to_event(1),
            [dist.transforms.AffineTransform(0.5, raw.exp()), dist.transforms.SigmoidTransform()],
        ),
    ],
)
def test_the_path_is_that_of_rsample(family):
    loc, raw = torch.randn(3, 2).requires_grad_(), (0.3 * torch.randn(3, 2)).requires_grad_()
    draw = family(loc, raw).rsample((4,) if family(loc, raw).batch_shape == (3,) else ())
    again = redrawn(family(loc, raw), draw.detach())
    torch.testing.assert_close(again, draw)
    weight = torch.randn(draw.shape)
    for ours, expected in zip(*(torch.autograd.grad((weight * z).sum(), [loc, raw]) for z in (again, draw))):
        torch.testing.assert_close(ours, expected)


def test_a_low_rank_gaussian_moves_as_the_full_one_of_its_covariance():
    factor, diagonal, value = torch.randn(2, 1).requires_grad_(), torch.rand(2).requires_grad_(), torch.randn(5, 2)
    fn = LowRankMultivariateNormal(torch.zeros(2), factor, diagonal)
    full = MultivariateNormal(torch.zeros(2), covariance_matrix=factor @ factor.T + torch.diag(diagonal))
    for ours, expected in zip(
        *(torch.autograd.grad(redrawn(q, value).square().sum(), [factor, diagonal]) for q in (fn, full))
    ):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(
    "fn",
    [
        dist.Gamma(torch.ones(2), 1.0),
        dist.Bernoulli(torch.full((2,), 0.5)),
        dist.MixtureSameFamily(dist.Categorical(torch.ones(3)), dist.Normal(torch.zeros(3), 1.0)),
        dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0), [dist.transforms.AbsTransform()]),
        dist.TransformedDistribution(dist.Gamma(torch.ones(2), 1.0), [dist.transforms.ExpTransform()]),
    ],
)
def test_no_map_is_known_for_others(fn):
    assert redrawn(fn, fn.sample()) is None


@pytest.mark.parametrize(
    "fn",
    [
        dist.Normal(1.0, 2.0),
        dist.Laplace(1.0, 2.0),
        dist.LogNormal(0.2, 0.5),
        dist.Uniform(-1.0, 3.0),
        dist.Exponential(2.0),
        dist.TransformedDistribution(dist.Normal(0.0, 1.0), [dist.transforms.AffineTransform(1.0, -2.0)]),
    ],
)
def test_numbers_are_drawn_by_the_inverse_of_their_distribution_function(fn):
    u = torch.linspace(0.01, 0.99, 50)
    torch.testing.assert_close(fn.cdf(drawn_from(fn, u)), u)


def test_categories_are_drawn_by_the_inverse_of_theirs():
    probs, u = torch.tensor([0.2, 0.5, 0.3]), (torch.arange(1000) + 0.5) / 1000
    counts = torch.bincount(drawn_from(dist.Categorical(probs), u))
    assert counts.tolist() == [200, 500, 300]
    hot = drawn_from(dist.OneHotCategorical(probs), u[:, None].expand(-1, 3))
    assert hot.sum(0).tolist() == [200.0, 500.0, 300.0] and hot.sum(-1).eq(1).all()
    assert drawn_from(dist.Bernoulli(0.3), u).sum() == 300


def test_gaussians_and_flows_are_drawn_from_their_base():
    tril, loc = torch.tensor([[1.0, 0.0], [0.5, 2.0]]), torch.tensor([1.0, -1.0])
    u = torch.rand(4, 2)
    base = torch.special.ndtri(u)
    torch.testing.assert_close(drawn_from(MultivariateNormal(loc, scale_tril=tril), u), loc + base @ tril.T)
    flow = dist.TransformedDistribution(
        dist.Normal(torch.zeros(2), 1.0).to_event(1), [dist.transforms.LowerCholeskyAffine(loc, tril)]
    )
    torch.testing.assert_close(drawn_from(flow, u), loc + base @ tril.T)


def test_what_has_no_inverse_is_refused():
    with pytest.raises(ValueError, match="Gamma has no known map from uniform numbers to its draws"):
        drawn_from(dist.Gamma(2.0, 1.0), torch.tensor(0.5))
