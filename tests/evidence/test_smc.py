"""Sequential Monte Carlo: p̂ stays unbiased and its standard error honest, against closed forms and quadrature."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from evidence_programs import EAGER, P, calibrated, images, oracle, truth
from monte_carlo import assert_mean_is

from pyro_vae.evidence import annealed_evidence, bidirectional, sigmoid
from pyro_vae.evidence.smc import family_weights, resampled

pytestmark = pytest.mark.filterwarnings("ignore::pyro_vae.evidence.UntrustedEvidence")


@pytest.mark.slow
def test_heirs_are_as_many_as_weights_say():
    torch.manual_seed(0)
    w = np.array([0.5, 0.25, 0.25, 1e-300])[:, None] * np.ones((1, 4000))
    log_w = np.log(w)
    log_w[:, 1] = -np.inf  # nothing to choose from: reported at the end
    after, chosen = resampled(np.concatenate([log_w, np.full((12, 4000), -np.inf)]))
    assert (after[:, 1] == -np.inf).all() and (chosen[:, 1] == np.arange(16)).all()
    heirs = np.stack([(chosen[:, 2:] == i).sum(0) for i in range(16)])
    assert (heirs == np.array([8, 4, 4] + [0] * 13)[:, None]).all()  # systematic: 16 w, to the next whole number
    np.testing.assert_allclose(after[:, 2:], math.log(1 / 16))
    uneven = np.log(np.array([0.9, 0.04, 0.03, 0.03]))[:, None] * np.ones((1, 20_000))
    heirs = np.stack([(resampled(uneven)[1] == i).sum(0) for i in range(4)])
    np.testing.assert_allclose(heirs.mean(1), [3.6, 0.16, 0.12, 0.12], atol=0.02)
    assert set(np.unique(heirs[0])) == {3, 4}


def test_chains_of_like_weights_stay():
    log_w = np.log(np.array([[1.0, 1.0], [2.0, 1e-3], [2.0, 1e-3]]))
    after, chosen = resampled(log_w)
    assert (after[:, 0] == log_w[:, 0]).all() and (chosen[:, 0] == [0, 1, 2]).all()
    assert np.ptp(after[:, 1]) == 0 and chosen[0, 1] == 0


def test_a_family_has_the_weight_of_its_chains():
    log_w, family = np.log(np.array([[1.0], [2.0], [4.0], [8.0]])), np.array([[3], [3], [0], [0]])
    np.testing.assert_allclose(np.exp(family_weights(log_w, family)), [[12], [0], [0], [3]])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:a single one of 8 chains makes up most")
@pytest.mark.parametrize("chains", [3, 8])
def test_resampled_weights_are_unbiased(chains):
    """E p̂ = p(x), where nearly every image is resampled, and the bound itself is loose."""
    program = oracle(scale=0.4)
    x = images(program, 4000, seed=1)
    evidence = annealed_evidence(
        program.model, None, x, num_temperatures=12, leapfrog=2, chains=chains, resample=True, seed=2, chunk=32_000,
        schedule=sigmoid, **EAGER,
    )  # fmt: skip
    log_ratio = evidence.log_px - truth(program, x)
    ratio = log_ratio.exp()
    assert log_ratio.mean() < -0.02
    assert_mean_is(ratio, 1.0, sees=0.2)


SETTING = {"num_temperatures": 40, "chains": 64, "seed": 0, "chunk": 26_000, **EAGER}


@pytest.mark.slow
def test_standard_errors_are_calibrated_on_the_oracle():
    program = oracle(scale=1.0)
    x = images(program, 400)
    calibrated(annealed_evidence(program.model, None, x, **SETTING), truth(program, x))


@pytest.mark.slow
def test_resampling_gains_where_weights_differ_and_its_standard_errors_are_calibrated():
    program = oracle(scale=0.4)
    x = images(program, 400)
    setting = SETTING | {"chains": 128, "chunk": 52_000}
    evidence = annealed_evidence(program.model, None, x, resample=True, **setting)
    calibrated(evidence, truth(program, x), least=0.0)
    independent = annealed_evidence(program.model, None, x[:200], **setting)
    spread, larger = (
        (log_px - truth(program, x[: len(log_px)])).std() for log_px in (evidence.log_px, independent.log_px)
    )
    assert spread < 0.9 * larger


def logistic(x, features):
    """Five answers x of each row, of log odds z_0 + z_1 features, z ~ N(0, I)."""
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        odds = z[..., :1] + z[..., 1:] * features
        pyro.sample("x", dist.Bernoulli(logits=odds, validate_args=False).to_event(1), obs=x)


@pytest.mark.slow
@pytest.mark.parametrize("resample", [False, True])
def test_standard_errors_are_calibrated_in_a_logistic_latent_regression(resample):
    torch.manual_seed(3)
    features = 2 * torch.randn(400, 5, dtype=torch.float64)
    z = torch.randn(400, 2, dtype=torch.float64)
    x = torch.bernoulli((z[:, :1] + z[:, 1:] * features).sigmoid())
    nodes, weights = (torch.from_dlpack(a) for a in np.polynomial.hermite_e.hermegauss(40))
    odds = nodes[:, None, None, None] + nodes[:, None, None] * features  # (40, 40, 400, 5)
    log_likelihood = (x * odds - torch.nn.functional.softplus(odds)).sum(-1)
    log_weights = (weights / weights.sum()).log()
    exact = (log_likelihood + log_weights[:, None, None] + log_weights[:, None]).logsumexp((0, 1))
    evidence = annealed_evidence(logistic, None, (x, features), resample=resample, **SETTING)
    calibrated(evidence, exact)


@pytest.mark.slow
def test_chains_that_vary_too_much_are_not_trusted():
    """So few temperatures from the prior leave weights whose intervals miss the truth for a fifth of the images."""
    program = oracle(scale=0.2)
    x = images(program, 100)
    for resample in (False, True):
        setting = SETTING | {"num_temperatures": 10, "chains": 40}
        evidence = annealed_evidence(program.model, None, x, resample=resample, **setting)
        missed = (evidence.log_px - truth(program, x)).abs() > 1.96 * evidence.standard_error
        assert missed.double().mean() > 0.12 and not evidence.trusted.any()


def test_resampling_is_one_way():
    program = oracle()
    with pytest.raises(TypeError, match=r"bidirectional: wanted keywords among .*; got resample"):
        bidirectional(program.model, None, torch.zeros(2, P).double(), resample=True)
    with pytest.raises(ValueError, match=r"resample: wanted True or False, got 0\.5"):
        annealed_evidence(program.model, None, torch.zeros(2, P).double(), resample=0.5)
