"""Families of columns against scipy's densities in the units of the table; each integrates or sums to one."""

from functools import partial

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats

from pyro_vae.likelihoods import columns
from pyro_vae.tables import Schema

RNG = np.random.default_rng(0)
VALUES = {
    "real": RNG.normal(1000.0, 30.0, 200),
    "positive": RNG.lognormal(5.0, 0.4, 200),
    "count": RNG.poisson(7.0, 200),
    "binary": RNG.choice([1, 2], 200),
    "category": RNG.choice(["a", "b", "c", "d"], 200),
    "ordinal": RNG.choice([0.0, 3.3, 4.6, 9.9], 200, p=[0.5, 0.25, 0.15, 0.1]),
}


def built(family, kind, outputs=None):
    """The family of one column, its distribution at the outputs (zeros by default), and its column."""
    column = Schema.from_frame(pd.DataFrame({"a": VALUES[kind]}), {"a": kind}).columns[0]
    module = family([column]).double()
    outputs = torch.zeros(module.outputs) if outputs is None else torch.tensor(outputs)
    return module, module(outputs.double()), column


def bound(log_scale, low=-4.0):
    return low + np.logaddexp(0, log_scale - low)


def test_densities_are_those_of_scipy_in_the_units_of_the_table():
    x = VALUES["real"]
    p = built(columns.Normal, "real", [0.5, -1.0])[1]
    expected = stats.norm(x.mean() + 0.5 * x.std(), x.std() * np.exp(bound(-1.0)))
    np.testing.assert_allclose(p.log_prob(torch.tensor(x)).squeeze(), expected.logpdf(x), rtol=1e-5)

    module, p, _ = built(columns.StudentT, "real", [0.5, -1.0])
    df = 2 + np.logaddexp(0, module.raw_df.item())
    expected = stats.t(df, x.mean() + 0.5 * x.std(), x.std() * np.exp(bound(-1.0)))
    np.testing.assert_allclose(p.log_prob(torch.tensor(x)).squeeze().detach(), expected.logpdf(x), rtol=1e-5)

    x = VALUES["positive"]
    u = np.log(x)
    p = built(columns.LogNormal, "positive", [0.5, -1.0])[1]
    expected = stats.lognorm(u.std() * np.exp(bound(-1.0)), scale=np.exp(u.mean() + 0.5 * u.std()))
    np.testing.assert_allclose(p.log_prob(torch.tensor(x)).squeeze(), expected.logpdf(x), rtol=1e-5)

    p = built(columns.Gamma, "positive", [0.01, 0.02])[1]
    concentration = np.exp(6 * np.tanh(0.02 / 6))
    expected = stats.gamma(concentration, scale=np.exp(u.mean() + 15 * np.tanh(0.01 / 15)) / concentration)
    np.testing.assert_allclose(p.log_prob(torch.tensor(x)).squeeze(), expected.logpdf(x), rtol=1e-5)


def test_counts_are_those_of_scipy():
    x = VALUES["count"]
    mean = x.mean() * np.exp(15 * np.tanh(0.3 / 15))
    p = built(columns.Poisson, "count", [0.3])[1]
    np.testing.assert_allclose(p.log_prob(torch.tensor(x)).squeeze(), stats.poisson(mean).logpmf(x), rtol=1e-5)
    p = built(columns.NegativeBinomial, "count", [0.3, 1.0])[1]
    theta = np.exp(6 * np.tanh(1 / 6))
    expected = stats.nbinom(theta, theta / (theta + mean)).logpmf(x)
    np.testing.assert_allclose(p.log_prob(torch.tensor(x)).squeeze(), expected, rtol=1e-5)
    np.testing.assert_allclose([p.mean.item(), p.variance.item()], [mean, mean + mean**2 / theta], rtol=1e-5)


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        (columns.Normal, "real"),
        (columns.StudentT, "real"),
        (columns.LogNormal, "positive"),
        (columns.Gamma, "positive"),
    ],
)
def test_densities_integrate_to_one_in_the_units_of_the_table(family, kind):
    p = built(family, kind, [0.3, 0.2])[1]

    def density(x):
        return p.log_prob(torch.tensor([x], dtype=torch.float64)).exp().item()

    low, middle, high = (0.0, 150.0, 5000.0) if kind == "positive" else (-5000.0, 1000.0, 7000.0)
    total = sum(integrate.quad(density, *part, limit=200)[0] for part in ((low, middle), (middle, high)))
    assert total == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("family", "kind", "outputs"),
    [
        (columns.Categorical, "binary", 1),
        (columns.Categorical, "category", 3),
        (columns.Categorical, "ordinal", 3),
        (columns.Ordered, "ordinal", 2),
        (columns.Ordered, "binary", 2),
    ],
)
def test_masses_sum_to_one_and_start_at_the_shares(family, kind, outputs):
    module, p, column = built(family, kind)
    assert module.outputs == outputs
    levels = torch.tensor(column.levels).double()
    assert p.log_prob(levels[:, None]).exp().sum().item() == pytest.approx(1)
    np.testing.assert_allclose(p.probs.squeeze().detach(), column.shares, atol=2e-4)
    assert built(family, kind, [0.7] * outputs)[1].probs.sum().item() == pytest.approx(1)


def test_ordered_is_that_of_pyro():
    """With the scale 1 the cumulative logits are those of ``OrderedLogistic``; η far away loses no precision."""
    module, p, _ = built(columns.Ordered, "ordinal", [0.8, 0.0])
    cuts = torch.cat([module.first, torch.nn.functional.softplus(module.raw_gaps) + 1e-4], -1).cumsum(-1)[0]
    expected = dist.OrderedLogistic(torch.tensor(0.8).double(), cuts.detach())
    np.testing.assert_allclose(p.probs.squeeze().detach(), expected.probs, rtol=1e-6)
    far = built(columns.Ordered, "ordinal", [300.0, 0.0])[1]
    assert far.logits.isfinite().all()
    assert far.log_prob(torch.zeros(1).double()).item() == pytest.approx(cuts[0].item() - 300, rel=1e-6)


@pytest.mark.parametrize("outputs", [[300.0, 3.0], [1e5, 0.0], [-1e6, 1.0]])
def test_ordered_levels_are_told_apart_in_float32_however_far(outputs):
    """Edges far away have no digits left for their gaps, which the gaps themselves have."""
    module, *_ = built(columns.Ordered, "ordinal")
    with torch.no_grad():
        module.raw_gaps.fill_(-7.0)  # of rare levels
        exact = module(torch.tensor(outputs).double()).logits
        np.testing.assert_allclose(module.float()(torch.tensor(outputs)).logits, exact, rtol=2e-6)


@pytest.mark.parametrize("family", [columns.Normal, columns.LogNormal, columns.StudentT])
def test_the_scale_is_bounded_and_the_bound_is_an_argument(family):
    kind = "positive" if family is columns.LogNormal else "real"
    column = built(family, kind)[2]
    for low in (-4.0, -1.0):
        p = built(partial(family, min_log_scale=low), kind, [0.0, -50.0])[1]
        scale = p.base_dist.scale if kind == "positive" else p.scale
        assert scale.item() == pytest.approx(column.scale * np.exp(low), rel=1e-3)


@pytest.mark.parametrize(
    "family", [*dict.fromkeys(columns.FAMILIES.values()), columns.StudentT, columns.Gamma, columns.Poisson]
)
def test_finite_gradients_however_far_the_network_goes(family):
    kind = family.kinds[0]
    for size in (0.0, 30.0, -30.0, 1e4):
        module, _, column = built(family, kind)
        module = module.float()
        outputs = torch.full((module.outputs,), size, requires_grad=True)
        x = torch.tensor(column.levels[0] if column.levels else float(VALUES[kind][0]))
        p = module(outputs)
        p.log_prob(x).sum().backward()
        assert p.log_prob(x).isfinite().all()
        assert outputs.grad.isfinite().all()
        assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


def test_a_family_refuses_a_column_of_another_kind():
    with pytest.raises(
        ValueError, match=r"Gamma scores columns of the kind positive, got the column 'a' of the kind real"
    ):
        built(columns.Gamma, "real")
