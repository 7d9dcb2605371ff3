"""Values as draws at their own noise: the path to the parameters is that of rsample."""

import pyro.distributions as dist
import pytest
import torch

from pyro_vae.distributions.families import LowRankMultivariateNormal, MultivariateNormal
from pyro_vae.tracing.base_noise import redrawn

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
