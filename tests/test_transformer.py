"""``VAETransformer`` keeps scikit-learn's contract, and its log p(x) is that of closed forms and of enumeration."""

import io
import itertools
import math
import pickle
import sys
from importlib import import_module

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.datasets import load_digits, load_wine
from sklearn.decomposition import FactorAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from pyro_vae import VAE, UntrustedEvidence, VAETransformer, log_evidence

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
WINE, CULTIVARS = load_wine(return_X_y=True)
LOADINGS, SCALES, MEANS = RNG.normal(size=(6, 2)) * 3, RNG.uniform(0.5, 2, 6), RNG.normal(size=6) * 10


def small(**settings):
    return VAETransformer(**{"latent": 2, "hidden": (8,), "epochs": 2, "random_state": 0, **settings})


def factor_rows(n):
    """Rows of the factor analysis x = MEANS + LOADINGS z + SCALES ε."""
    return MEANS + RNG.normal(size=(n, 2)) @ LOADINGS.T + RNG.normal(size=(n, 6)) * SCALES


def density_of_linear(model):
    """The normal density of a model with hidden=() in closed form, in the units of X."""
    likelihood = model.vae_.likelihood
    linear, low = likelihood.network.layers[0], likelihood.min_log_scale
    W, scale = linear.weight.detach(), (low + F.softplus(likelihood.log_scale.detach() - low)).exp()
    covariance = model.scale_[:, None] * (W @ W.T + scale.square().diag()).numpy() * model.scale_
    return multivariate_normal(model.mean_ + model.scale_ * linear.bias.detach().numpy(), covariance)


@parametrize_with_checks([small()])
@pytest.mark.filterwarnings("ignore::pyro_vae.UntrustedEvidence", "ignore::sklearn.exceptions.SkipTestWarning")
def test_every_check_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def linear():
    model = VAETransformer(2, hidden=(), epochs=30, lr=2e-2, particles=500, random_state=0)
    return model.fit(factor_rows(1000))


@pytest.mark.filterwarnings("ignore::pyro_vae.UntrustedEvidence")
def test_log_px_is_the_closed_form_of_the_fitted_model_in_the_units_of_x(linear):
    X = factor_rows(200)
    difference = linear.score_samples(X) - density_of_linear(linear).logpdf(X)
    assert abs(difference).max() < 0.1
    assert abs(linear.score(X) - density_of_linear(linear).logpdf(X).mean()) < 0.02


@pytest.mark.filterwarnings("ignore::pyro_vae.UntrustedEvidence")
def test_a_linear_model_comes_close_to_factor_analysis_and_to_the_truth(linear):
    X, T = factor_rows(1000), factor_rows(500)
    truth = multivariate_normal(MEANS, LOADINGS @ LOADINGS.T + np.diag(SCALES**2)).logpdf(T).mean()
    assert abs(linear.score(T) - FactorAnalysis(2).fit(X).score(T)) < 0.1
    assert abs(linear.score(T) - truth) < 0.1


@pytest.mark.filterwarnings("ignore::pyro_vae.UntrustedEvidence")
def test_score_samples_agrees_with_log_evidence_on_the_fitted_vae(linear):
    X = factor_rows(100)
    evidence = log_evidence(linear.vae_, torch.from_numpy((X - linear.mean_) / linear.scale_), 500, progress=False)
    difference = linear.score_samples(X) + np.log(linear.scale_).sum() - evidence.log_px.numpy()
    assert (abs(difference) < 6 * evidence.standard_error.numpy() + 1e-9).all() and abs(difference).max() > 0


@pytest.mark.filterwarnings("ignore::pyro_vae.UntrustedEvidence")
def test_other_units_take_the_logarithms_of_the_factors_off_and_change_no_code():
    factors = 2.0 ** np.arange(13)
    first, second = small().fit(WINE), small().fit(WINE * factors)
    shift = first.score_samples(WINE) - second.score_samples(WINE * factors)
    assert np.allclose(shift, np.log(factors).sum(), atol=1e-9)
    assert np.allclose(first.transform(WINE), second.transform(WINE * factors), atol=1e-12)
    assert np.allclose(
        first.inverse_transform(np.ones((1, 2))) * factors, second.inverse_transform(np.ones((1, 2))), rtol=1e-12
    )


def test_bernoulli_probabilities_of_all_rows_sum_to_one():
    X = (RNG.random((200, 1)) < RNG.random((200, 5))).astype(int)
    model = small(likelihood="bernoulli", particles=2000).fit(X)
    every = np.array(list(itertools.product([0, 1], repeat=5)))
    assert np.exp(model.score_samples(every)).sum() == pytest.approx(1, abs=0.02)
    assert ((model.inverse_transform(model.transform(X)) > 0) & (model.inverse_transform([[0, 0]]) < 1)).all()


def test_counts_have_the_probability_of_quadrature_and_begin_at_their_means():
    X = RNG.poisson(RNG.gamma(2, 50, size=(200, 1)) * np.array([1, 5, 0.02]))
    model = small(likelihood="negative-binomial", latent=1, epochs=3, particles=2000).fit(X)
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    with torch.no_grad():
        log_p = model.vae_.likelihood(torch.tensor(nodes)[:, None, None]).log_prob(torch.tensor(X[:20]).double())
    exact = torch.logsumexp(log_p + torch.tensor(weights / math.sqrt(2 * math.pi)).log()[:, None], 0)
    assert np.allclose(model.score_samples(X[:20]), exact, atol=0.05)
    assert np.allclose(model.inverse_transform([[0]]) / X.mean(0), 1, atol=0.5)


@pytest.mark.parametrize(
    ("settings", "X", "message"),
    [
        ({"likelihood": "bernoulli"}, WINE, r"wanted 0 or 1, got 14\.23"),
        ({"likelihood": "negative-binomial"}, WINE, "wanted counts, whole numbers from 0"),
        ({"hidden": 64}, WINE, r"hidden: wanted a tuple of widths, got 64; write e\.g\. \(64,\)"),
        ({"likelihood": "beta"}, WINE, "likelihood: wanted one of normal, bernoulli, negative-binomial"),
        ({"latent": 0}, WINE, "latent: wanted a whole number of at least 1"),
        ({"particles": 1.5}, WINE, "particles: wanted a whole number"),
        ({"batch_size": 0}, WINE, "batch_size: wanted a whole number"),
        ({"epochs": 0}, WINE, "epochs: wanted"),
        ({"validation_fraction": 1}, WINE, "validation_fraction: wanted a number between 0 and 1"),
        ({"hidden": (0,)}, WINE, "hidden: wanted a whole number"),
        ({}, np.where(WINE > 1000, np.nan, WINE), "NaN"),
    ],
)
def test_what_fit_refuses(settings, X, message):
    with pytest.raises(ValueError, match=message):
        small(**settings).fit(X)


def test_codes_of_another_width_are_refused():
    with pytest.raises(ValueError, match="Z: wanted 2 columns, as transform returns, got 3"):
        small().fit(WINE).inverse_transform(np.zeros((4, 3)))


@pytest.mark.filterwarnings("ignore::pyro_vae.UntrustedEvidence")
def test_it_survives_pickle_joblib_and_clone(tmp_path):
    model = small().fit(WINE)
    assert isinstance(model.vae_, VAE)
    joblib.dump(model, tmp_path / "model.joblib")
    for again in (pickle.load(io.BytesIO(pickle.dumps(model))), joblib.load(tmp_path / "model.joblib")):
        assert np.array_equal(model.score_samples(WINE), again.score_samples(WINE))
    anew = clone(model)
    assert anew.get_params() == model.get_params() and not hasattr(anew, "vae_")
    assert np.array_equal(anew.fit(WINE).transform(WINE), model.transform(WINE))


@pytest.mark.filterwarnings("ignore::pyro_vae.UntrustedEvidence")
def test_widths_may_be_an_array():
    found = [small(hidden=hidden).fit(WINE).score_samples(WINE[:3]) for hidden in ((5,), np.array([5]))]
    assert np.array_equal(*found)


def test_names_of_columns_go_in_and_out():
    frame = load_wine(as_frame=True).data
    named = small().set_output(transform="pandas")
    codes = named.fit_transform(frame)
    assert list(codes.columns) == ["vaetransformer0", "vaetransformer1"] and codes.index.equals(frame.index)
    assert named.inverse_transform(codes.to_numpy()).shape == frame.shape  # pandas gives read-only arrays
    model = small().fit(frame)
    assert model.n_features_in_ == 13 and list(model.feature_names_in_) == list(frame.columns)
    with pytest.raises(ValueError, match="feature names"):
        model.transform(pd.DataFrame(WINE, columns=frame.columns[::-1]))


def test_codes_carry_what_a_classifier_needs():
    model = VAETransformer(3, hidden=(32,), epochs=40, lr=1e-2, random_state=0)
    pipeline = make_pipeline(StandardScaler(), model, LogisticRegression())
    assert cross_val_score(pipeline, WINE, CULTIVARS, cv=3).mean() > 0.9


@pytest.mark.filterwarnings("ignore::pyro_vae.UntrustedEvidence")
def test_a_grid_search_finds_the_two_dimensions_of_the_data():
    search = GridSearchCV(small(hidden=(), epochs=20, lr=2e-2), {"latent": [1, 2]}, cv=2, error_score="raise")
    search.fit(factor_rows(600))
    scores = search.cv_results_["mean_test_score"]
    assert search.best_params_ == {"latent": 2} and scores[1] > scores[0] + 0.5


def test_pictures_as_rows_come_back_better_than_their_mean():
    X = load_digits().data[:600]
    model = VAETransformer(8, epochs=20, lr=1e-2, random_state=0).fit(X)
    error = X - model.inverse_transform(model.transform(X))
    assert np.square(error).sum() < 0.6 * np.square(X - X.mean(0)).sum()


def test_few_particles_and_rows_far_away_warn():
    model = small(particles=30).fit(WINE)
    with pytest.warns(UntrustedEvidence, match="more particles do not cure it"):
        assert model.score(WINE * 3) < -1000


def test_without_scikit_learn_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    monkeypatch.delitem(sys.modules, "pyro_vae.transformer")
    with pytest.raises(ImportError, match=r"pip install 'pyro_vae\[data\]'"):
        import_module("pyro_vae.transformer")
