"""Pyro programs recorded: the same losses, gradients and draws; nothing left behind."""

import pytest
import torch
from enumerated_programs import LABELS, MixtureOfFactors, OfTheModel, X
from programs import small_vae
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from recorded_losses import PIXELS, assert_same, loss_of, recorded_loss

from pyro_vae import guides, handlers, likelihoods, priors
from pyro_vae.compiling.loss import ProgramLoss
from pyro_vae.estimators import ImportanceWeighted, ScoreFunction, StickingTheLanding, WakeSleep
from pyro_vae.networks import lowered_precision

pytestmark = pytest.mark.slow

LIKELIHOODS = {
    "Bernoulli": 1,
    "ContinuousBernoulli": 1,
    "Normal": 2,
    "Beta": 2,
    "Categorical": 16,
    "DiscretizedLogistic": 2,
}
ESTIMATORS = {
    "trace, three in turn": Trace_ELBO(3),
    "trace, three at once": Trace_ELBO(3, vectorize_particles=True, max_plate_nesting=1),
    "mean field": TraceMeanField_ELBO(),
    "sticking the landing": StickingTheLanding(),
    "importance weighted": ImportanceWeighted(3),
    "score function": ScoreFunction(2, baseline="leave-one-out"),
    "wake-sleep": WakeSleep(),
    "free bits": handlers.FreeBits(0.1),
}


@pytest.mark.parametrize("family", LIKELIHOODS)
def test_every_likelihood(family):
    assert_same(loss_of(small_vae(family=getattr(likelihoods, family), maps=LIKELIHOODS[family])))


@pytest.mark.parametrize("elbo", ESTIMATORS.values(), ids=ESTIMATORS)
def test_every_estimator(elbo):
    assert_same(loss_of(small_vae(), elbo))


@pytest.mark.parametrize("prior", [priors.DiagonalNormal, lambda d: priors.Mixture(d, 4), priors.Flow])
def test_priors(prior):
    assert_same(loss_of(small_vae(prior=prior)))


def test_a_prior_that_shares_the_guides_parameters():
    vae = small_vae()
    vae.prior = priors.Vamp(vae.posterior, PIXELS / 255)
    assert_same(loss_of(vae))


@pytest.mark.parametrize("guide", [guides.FullRank, lambda net, d: guides.LowRank(net, d, 1), guides.Flow])
def test_guides(guide):
    assert_same(loss_of(small_vae(guide=guide)))


def test_bfloat16():
    vae = small_vae()
    with lowered_precision(vae, torch.bfloat16):
        assert_same(loss_of(vae), rtol=1e-5)


def test_buffers_are_read_at_each_call():
    weighted = handlers.KLWeighted(small_vae(), beta=0.0)
    loss = loss_of(weighted)
    graph = recorded_loss(loss)
    for beta in (1.0, 2.0):
        weighted.set_beta(beta)
        torch.manual_seed(1)
        eager = loss(PIXELS)
        torch.manual_seed(1)
        torch.testing.assert_close(graph([PIXELS])[0], eager)


def test_the_random_numbers_go_on_as_if_nothing_had_been_recorded():
    loss, state = loss_of(small_vae()), torch.get_rng_state()
    recorded_loss(loss)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("program", "args"), [(MixtureOfFactors(0.3), (X, LABELS)), (OfTheModel(), (X[:, 0].clone(),))]
)
def test_sums_over_enumerated_sites(program, args):
    loss = ProgramLoss(TraceEnum_ELBO(max_plate_nesting=1), program.model, program.guide)
    assert_same(loss, args)
