"""KL divergences in closed form, against torch's between dense covariances and against samples."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from monte_carlo import assert_mean_is
from pyro.infer import TraceMeanField_ELBO
from torch.distributions import kl_divergence

from pyro_vae import guides, priors
from pyro_vae.distributions import divergences

D = 3


def diagonal(*batch):
    return dist.Normal(torch.randn(*batch, D).double(), torch.rand(*batch, D).double() + 0.5).to_event(1)


def full_rank(*batch):
    factor = torch.randn(*batch, D, D).double()
    return dist.MultivariateNormal(torch.randn(*batch, D).double(), factor @ factor.mT + torch.eye(D).double())


def low_rank(*batch):
    loc, factor = torch.randn(*batch, D).double(), torch.randn(*batch, D, 2).double()
    return dist.LowRankMultivariateNormal(loc, factor, torch.rand(*batch, D).double() + 0.5)


def dense(p):
    covariance = torch.diag_embed(p.variance) if isinstance(p, dist.Independent) else p.covariance_matrix
    return dist.MultivariateNormal(p.mean, covariance)


normals = pytest.mark.parametrize("make_p", [diagonal, full_rank, low_rank])
guide_normals = pytest.mark.parametrize("make_q", [diagonal, full_rank, low_rank])


@normals
@guide_normals
@pytest.mark.parametrize("batch", [(), (4,), (2, 4)])
def test_every_pair_of_normals_agrees_with_dense_covariances(make_q, make_p, batch):
    torch.manual_seed(0)
    q, p = make_q(*batch), make_p()
    kl = kl_divergence(q, p)
    assert kl.shape == batch
    torch.testing.assert_close(kl, kl_divergence(dense(q), dense(p)))
    assert divergences.has_closed_form_kl(q, p)


@normals
@guide_normals
def test_a_plate_expands_the_divergence(make_q, make_p):
    torch.manual_seed(0)
    q, p = make_q(4), make_p()
    expanded = kl_divergence(q.expand((2, 4)), p.expand((2, 4)))
    torch.testing.assert_close(expanded, kl_divergence(q, p).expand(2, 4))


@normals
@guide_normals
def test_closed_form_agrees_with_samples(make_q, make_p):
    torch.manual_seed(0)
    q, p = make_q(), make_p()
    z = q.sample((20_000,))
    draws = q.log_prob(z) - p.log_prob(z)
    assert_mean_is(draws, kl_divergence(q, p), sees=kl_divergence(q, p) / 5)


@pytest.mark.parametrize("make_q", [full_rank, low_rank])
def test_mean_field_elbo_takes_the_closed_form(make_q):
    torch.manual_seed(0)
    q, p = make_q(4), diagonal()

    def program(prior):
        with pyro.plate("images", 4):
            pyro.sample("z", prior)

    elbo = TraceMeanField_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    loss = elbo.loss(lambda: program(p), lambda: program(q))
    assert loss == pytest.approx(kl_divergence(q, p).sum().item())


def test_what_has_no_closed_form_is_named():
    posterior = guides.Flow(torch.nn.Flatten(-3), D, width=4, features=4)
    normal, flow = diagonal(5), posterior(torch.rand(5, 1, 2, 2))
    for prior in (priors.Mixture(D, 2), priors.Flow(D, width=4), priors.Vamp.random(posterior, 2, (1, 2, 2))):
        assert not divergences.has_closed_form_kl(normal, prior())
        assert not divergences.has_closed_form_kl(flow, prior())
    assert not divergences.has_closed_form_kl(flow, priors.StandardNormal(D)())
    laplace = dist.Laplace(torch.zeros(D), 1.0).to_event(1)
    assert not divergences.has_closed_form_kl(full_rank(), laplace)
    assert not divergences.has_closed_form_kl(laplace, low_rank())


@pytest.mark.parametrize("make_q", [full_rank, low_rank])
def test_codes_of_different_size_are_refused(make_q):
    with pytest.raises(ValueError, match="the same latent"):
        kl_divergence(make_q(), dist.Normal(torch.zeros(1), 1.0).to_event(1))
