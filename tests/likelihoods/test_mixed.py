"""A likelihood of mixed columns as a part of a program: missing cells, units, evidence, training, imputation."""

import copy
from functools import partial

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from mixed_tables import mixed_frame
from monte_carlo import assert_estimate_is, assert_evidence_is
from pyro.infer import SVI, Trace_ELBO
from scipy import integrate, special, stats
from torch import nn

import pyro_vae as pv
from pyro_vae import guides, likelihoods, priors, tables
from pyro_vae.estimators import ImportanceWeighted
from pyro_vae.imputation import impute
from pyro_vae.likelihoods import columns

FRAME = mixed_frame()
SCHEMA = tables.Schema.from_frame(FRAME)
X = SCHEMA.encode(FRAME)
LATENT = 2


def program(schema=SCHEMA, latent=LATENT, seed=0, strength=20, **options):
    torch.manual_seed(seed)
    features = tables.Features(schema)
    encoder = nn.Sequential(features, nn.Linear(features.out_features, 16), nn.ReLU())
    decoder = nn.Sequential(nn.Linear(latent, 16), nn.Tanh())
    vae = pv.VAE(
        priors.StandardNormal(latent),
        likelihoods.Mixed(decoder, schema, features=16, **options),
        guides.MeanField(encoder, latent, features=16),
    )
    with torch.no_grad():
        vae.likelihood.head.weight.mul_(strength)  # p(x | z) depends on z from the start
    return vae.double()


def split(x=X):
    return pv.Split(table=x)


def data(x=X):
    return pv.Data("mixed", *(pv.Split(table=part) for part in (x[:40], x[40:50], x[50:])))


@pytest.mark.parametrize("stands_there", [0.0, 1e30, -7.5, torch.inf, -torch.inf, torch.nan])
def test_whatever_stands_in_a_missing_cell_changes_nothing(stands_there):
    """x holds NaN where a cell is missing; the value that was there before reaches no bound, gradient or sample."""
    vae, seen = program(), torch.rand(X.shape, generator=torch.Generator().manual_seed(0)) < 0.7
    table = torch.where(seen & ~X.isnan(), X, stands_there)
    batch = pv.Split(table=table, mask=seen & ~X.isnan())
    x = vae.observe(batch)
    elbo = ImportanceWeighted(K=3)
    torch.manual_seed(1)
    loss = elbo(vae.model, vae.guide)(x)
    loss.backward()
    expected = program()
    torch.manual_seed(1)
    wanted = elbo(expected.model, expected.guide)(expected.observe(split(torch.where(seen, X, torch.nan))))
    wanted.backward()
    assert torch.equal(loss, wanted)
    assert loss.isfinite()
    for (name, parameter), (_, other) in zip(vae.named_parameters(), expected.named_parameters()):
        assert parameter.grad.isfinite().all(), name
        assert torch.equal(parameter.grad, other.grad), name


def test_log_probability_of_seen_cells_is_the_marginal_one():
    """Given z the columns are independent: the density of a part is the integral of the whole over the rest."""
    p = program().likelihood(torch.zeros(LATENT).double())
    x = X[10].clone()
    cells = p.column_log_prob(x)
    x[[0, 5]] = torch.nan
    torch.testing.assert_close(p.log_prob(x), cells[[1, 2, 3, 4, 6]].sum())


def test_evidence_in_the_tables_own_units_against_quadrature():
    """log p(x) of a latent dimension of one, by Gauss–Hermite quadrature of densities of scipy, written by hand."""
    vae = program(latent=1, strength=5)
    x = X[:8]
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    with torch.no_grad():
        out = vae.likelihood.head(vae.likelihood.network(torch.tensor(nodes)[:, None]))
    log_px = special.logsumexp(by_hand(out.numpy(), x.numpy()) + np.log(weights / weights.sum())[:, None], axis=0)
    found = pv.log_evidence(vae, x, particles=20_000, seed=0)
    assert_evidence_is(found, log_px, sees=0.5)


def by_hand(out, x):
    """log p(x | z), (nodes, rows), from the outputs of the head; columns in the order of the schema's groups."""
    scale = np.exp(-4 + np.logaddexp(0, out[:, [1, 3]] + 4))
    height, income = FRAME.height, np.log(FRAME.income.astype(float))
    log_p = stats.norm(height.mean() + height.std(ddof=0) * out[:, :1], height.std(ddof=0) * scale[:, :1]).logpdf(
        x[:, 0]
    )
    log_p = np.where(np.isnan(x[:, 0]), 0, log_p)
    loc = income.mean() + income.std(ddof=0) * out[:, 2:3]
    log_p += stats.norm(loc, income.std(ddof=0) * scale[:, 1:]).logpdf(np.log(x[:, 1])) - np.log(x[:, 1])
    mean = FRAME.visits.mean() * np.exp(15 * np.tanh(out[:, 4:5] / 15))
    theta = np.exp(6 * np.tanh(out[:, 5:6] / 6))
    log_p += stats.nbinom(theta, theta / (theta + mean)).logpmf(x[:, 2])
    for i, name in ((6, "member"), (7, "smokes")):
        share = ((FRAME[name] == (True if name == "member" else "yes")).sum() + 0.5) / 61
        logit = special.logit(share) + out[:, i : i + 1]
        log_p += np.where(x[:, i - 3] == 1, special.log_expit(logit), special.log_expit(-logit))
    counts = np.array([(FRAME.eyes == name).sum() for name in ("blue", "brown", "green")]) + 0.5
    logits = np.log(counts) + np.c_[np.zeros(len(out)), out[:, 8:10]]
    eyes = np.nan_to_num(x[:, 5]).astype(int)
    log_p += np.where(np.isnan(x[:, 5]), 0, special.log_softmax(logits, 1)[:, eyes])
    shares = np.array([(FRAME.grade == name).sum() for name in ("low", "middle", "high")]) + 0.5
    cuts = special.logit(shares.cumsum() / shares.sum())[:2]
    edges = (cuts - out[:, 10:11]) / np.exp(4 * np.tanh(out[:, 11:12] / 4))
    mass = np.log(np.diff(np.c_[np.zeros(len(out)), special.expit(edges), np.ones(len(out))], axis=1))
    grade = np.nan_to_num(x[:, 6]).astype(int)
    return log_p + np.where(np.isnan(x[:, 6]), 0, mass[:, grade])


def test_the_density_of_the_whole_program_integrates_to_one():
    """Two real columns in units of thousands, and z summed out by quadrature."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(5000, 300, 100), "b": rng.lognormal(3, 0.5, 100)})
    likelihood = program(tables.Schema.from_frame(frame, {"a": "real"}), latent=1, strength=5).likelihood
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    p, weights = likelihood(torch.tensor(nodes)[:, None]), torch.tensor(weights / weights.sum())

    def density(b, a):
        x = torch.stack([torch.full((len(b),), a, dtype=torch.float64), torch.tensor(b)], -1)
        return (weights[:, None] * p.expand((60,)).log_prob(x[:, None]).exp().T).sum(0).detach().numpy()

    b = np.linspace(1e-3, 300, 1001)
    a = np.linspace(2000, 8000, 201)
    total = integrate.simpson([integrate.simpson(density(b, value), x=b) for value in a], x=a)
    assert total == pytest.approx(1, abs=1e-3)


def test_other_units_change_log_p_by_the_jacobian():
    """In centimetres instead of metres each row loses ln 100 nats."""
    metres = pd.DataFrame({"height": np.random.default_rng(0).normal(1.7, 0.1, 50)})
    a = program(tables.Schema.from_frame(metres)).likelihood
    b = program(tables.Schema.from_frame(100 * metres)).likelihood
    z = torch.randn(5, LATENT).double()
    x = torch.tensor([[1.75]]).double()
    torch.testing.assert_close(b(z).log_prob(100 * x), a(z).log_prob(x) - np.log(100), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_particles_samples_and_dtypes(dtype):
    vae = program().to(dtype)
    p = vae.likelihood(torch.randn(4, 60, LATENT, dtype=dtype))
    x = vae.observe(split())
    assert x.dtype == p.sample().dtype == p.log_prob(x).dtype == dtype
    assert p.log_prob(x).shape == (4, 60)
    assert p.support.check(p.sample()).all()
    drawn = SCHEMA.frame(vae.model(n=25))
    assert drawn.dtypes.equals(FRAME.dtypes)
    assert drawn.eyes.isin(["blue", "brown", "green"]).all()


@pytest.mark.slow
def test_compiled_is_eager_under_the_same_seed(quick_compiler):
    vae, x = program(), X[:10]
    losses = []
    for loss in (Trace_ELBO()(vae.model, vae.guide), pv.compiled(Trace_ELBO(), vae.model, vae.guide, x)):
        torch.manual_seed(3)
        value = loss(x)
        losses.append((value, *torch.autograd.grad(value, [*vae.parameters()])))
    for eager, fast in zip(*losses):
        torch.testing.assert_close(fast, eager)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_fit_trains_a_table_with_missing_cells(engine, quick_compiler):
    vae = program().float()
    before = pv.evaluate(vae, data().test, particles=20).bound.mean()
    history = pv.fit(vae, data(), epochs=30, batch_size=10, lr=0.01, engine=engine, progress=False, seed=0)
    assert len(history.rows) == 30
    assert pv.evaluate(vae, data().test, particles=20).bound.mean() > before + 1


def test_svi_of_pyro_trains_it():
    vae = program()
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    losses = [svi.step(X) for _ in range(60)]
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 20


def test_state_dict_holds_the_standardisation():
    vae = program()
    other = program(tables.Schema.from_frame(FRAME.assign(height=3 * FRAME.height + 1)), seed=1)
    other.load_state_dict(vae.state_dict())
    z = torch.randn(5, LATENT).double()
    assert torch.equal(other.likelihood(z).log_prob(X[:5]), vae.likelihood(z).log_prob(X[:5]))
    assert copy.deepcopy(vae).likelihood(z).log_prob(X[:5]).isfinite().all()


def test_families_by_column_and_by_kind():
    heavy = partial(columns.StudentT, min_log_scale=-2)
    likelihood = likelihoods.Mixed(
        nn.Identity(), SCHEMA, {"height": heavy, "count": columns.Poisson, "grade": columns.Categorical}, features=2
    )
    kinds = [type(family).__name__ for family in likelihood.families]
    assert kinds == ["StudentT", "LogNormal", "Poisson", "Categorical", "Categorical"]
    assert likelihood(torch.zeros(3, 2)).log_prob(X[10].float()).shape == (3,)
    with pytest.raises(ValueError, match=r"families: wanted names of columns, or kinds, .* got 'weight'"):
        likelihoods.Mixed(nn.Identity(), SCHEMA, {"weight": heavy}, features=2)


def test_bad_input():
    with pytest.raises(ValueError, match=r"Identity has no attribute out_features; write .*features=N"):
        likelihoods.Mixed(nn.Identity(), SCHEMA)
    with pytest.raises(ValueError, match="Identity: wanted features of shape"):
        likelihoods.Mixed(nn.Identity(), SCHEMA, features=3)(torch.zeros(5, 2))
    with pytest.raises(
        ValueError, match=r"table: wanted a float tensor \(N, 7\).* got torch.float64 of shape \(60, 3\)"
    ):
        program().observe(X[:, :3])
    with pytest.raises(ValueError, match="table: wanted a float tensor"):
        program().observe(X.nan_to_num(0).long())
    torch.testing.assert_close(program().observe(X.numpy()), program().observe(X), equal_nan=True)
    turned = program().observe(X.numpy()[::-1])  # torch takes no array that runs backwards
    torch.testing.assert_close(turned, program().observe(X.flip(0)), equal_nan=True)
    bad = X.clone()
    bad[2, 2] = -1
    with pytest.raises(ValueError, match=r"outside the support|log-probability is not finite|not finite"):
        pv.fit(program(), data(bad), epochs=1, batch_size=10, progress=False)


def test_imputation_by_the_program_is_that_by_quadrature():
    """A latent dimension of one: the weights of z given the seen cells by Gauss–Hermite quadrature."""
    vae = program(latent=1, strength=5)
    x = X[10:14].clone()
    x[:, [0, 2, 5]] = torch.nan
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    with torch.no_grad():
        p = vae.likelihood(torch.tensor(nodes)[:, None].expand(200, 4)[..., None])
        w = (torch.tensor(weights).log()[:, None] + p.log_prob(x)).softmax(0)
        value, spread, _ = p.average(w)
    found = impute(vae, x, particles=20_000, seed=0)
    torch.testing.assert_close(found.x[:, 5], value[:, 5])
    numbers = [0, 2]
    assert_estimate_is(
        found.x[:, numbers], value[:, numbers], found.standard_error[:, numbers], sees=0.2, rounding=1e-6
    )
    torch.testing.assert_close(found.standard_deviation[:, [0, 2, 5]], spread[:, [0, 2, 5]], rtol=0.05, atol=0.01)
    seen = [1, 3, 4, 6]
    assert torch.equal(found.x[:, seen], x[:, seen].double())
    assert SCHEMA.frame(found.x).eyes.isin(["blue", "brown", "green"]).all()


def test_the_program_fills_in_a_table_as_it_is():
    """NaN is a missing cell to the likelihood: no handler comes between."""
    vae = program()
    found, wanted = (make(particles=50, seed=3) for make in (partial(vae.impute, X[:6]), partial(impute, vae, X[:6])))
    assert torch.equal(found.x, wanted.x) and torch.equal(found.mask, wanted.mask)
    assert found.x.isfinite().all() and not found.mask.all()
