"""Programs as Pyro's users write them, through every estimator: each gives the right number or an error that says why.

The right number is known by other means: closed forms, sums over the values of a discrete site, or the mean of Pyro's
``Trace_ELBO``.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from monte_carlo import assert_mean_is
from pyro import poutine
from pyro.infer import Trace_ELBO, autoguide
from torch.distributions import biject_to, constraints, kl_divergence

from pyro_vae.comparison.compare import compare_estimators
from pyro_vae.estimators import DoublyReparameterized, ImportanceWeighted, ScoreFunction, StickingTheLanding
from pyro_vae.handlers import FreeBits
from pyro_vae.training.loop import check_program

# Of K particles each; of all of them the mean loss is minus the ELBO.
KINDS = {
    "StickingTheLanding": StickingTheLanding,
    "ScoreFunction": ScoreFunction,
    "ScoreFunction, leave-one-out": partial(ScoreFunction, baseline="leave-one-out"),
    "FreeBits": lambda K: FreeBits(0.0, K),
    "ImportanceWeighted": lambda K: ImportanceWeighted(1, M=K),
}
X = torch.tensor([0.5, -1.0, 2.0, 0.3], dtype=torch.float64)
COUNTS = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
pytestmark = pytest.mark.usefixtures("float64")
NO_PLATE = "do not share a plate over images"
NO_RSAMPLE = "is not reparameterised"
NO_KL = "no closed form is registered"


class Case(NamedTuple):
    """A program, its parameters, the ELBO as a function of them, log p(x), and the errors that estimators raise."""

    model: Callable
    guide: Callable
    parameters: list
    elbo: Callable
    log_px: float | None = None
    refused: dict = {}
    args: tuple = (X,)


def leaf(*values):
    return torch.tensor(values).squeeze().requires_grad_()


def normal(loc, raw):
    return dist.Normal(loc, raw.exp())


def conjugate():
    """z ~ N(0, 1), x | z ~ N(θ z, 1) in each row."""
    loc, raw, theta = leaf(0.4), leaf(-0.3), leaf(1.2)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(theta * z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(loc * x, raw))

    def elbo():
        q = normal(loc * X, raw)
        expected = dist.Normal(theta * q.mean, 1.0).log_prob(X) - theta**2 * q.variance / 2
        return (expected - kl_divergence(q, dist.Normal(torch.zeros(4), 1.0))).sum()

    exact = dist.Normal(0.0, (1 + theta.item() ** 2) ** 0.5).log_prob(X).sum().item()
    return Case(model, guide, [loc, raw, theta], elbo, exact)


def unsized():
    """The same in a plate that is given no size."""
    case = conjugate()

    def model(x):
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(case.parameters[2] * z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data"):
            pyro.sample("z", normal(case.parameters[0] * x, case.parameters[1]))

    return case._replace(model=model, guide=guide)


def subsampled():
    """The same of two rows of the four, whose terms count twice."""
    case = conjugate()
    loc, raw, theta = case.parameters

    def model(x):
        with pyro.plate("data", len(x), subsample_size=2) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(theta * z, 1.0), obs=x[rows])

    def guide(x):
        with pyro.plate("data", len(x), subsample_size=2) as rows:
            pyro.sample("z", normal(loc * x[rows], raw))

    return case._replace(model=model, guide=guide, refused={"FreeBits": "scaled or masked"})


def weighted_rows():
    """The same with a weight of each row."""
    case, weights = conjugate(), torch.tensor([1.0, 3.0, 0.5, 2.0])
    scaled = poutine.scale(scale=weights)
    loc, raw, theta = case.parameters

    def elbo():
        q = normal(loc * X, raw)
        expected = dist.Normal(theta * q.mean, 1.0).log_prob(X) - theta**2 * q.variance / 2
        return (weights * (expected - kl_divergence(q, dist.Normal(torch.zeros(4), 1.0)))).sum()

    exact = (weights * dist.Normal(0.0, (1 + theta.item() ** 2) ** 0.5).log_prob(X)).sum().item()
    refused = {"FreeBits": "scaled or masked"}
    return case._replace(model=scaled(case.model), guide=scaled(case.guide), elbo=elbo, log_px=exact, refused=refused)


def masked_rows():
    """The same of the rows that have a z; of the others x ~ N(0, 1)."""
    case, has = conjugate(), torch.tensor([True, False, True, True])
    loc, raw, theta = case.parameters

    def model(x):
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=has):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(torch.where(has, theta * z, 0.0), 1.0), obs=x)

    def elbo():
        q = normal(loc * X, raw)
        expected = dist.Normal(theta * q.mean, 1.0).log_prob(X) - theta**2 * q.variance / 2
        kl = kl_divergence(q, dist.Normal(torch.zeros(4), 1.0))
        return torch.where(has, expected - kl, dist.Normal(0.0, 1.0).log_prob(X)).sum()

    exact = (
        torch.where(
            has, dist.Normal(0.0, (1 + theta.item() ** 2) ** 0.5).log_prob(X), dist.Normal(0.0, 1.0).log_prob(X)
        )
        .sum()
        .item()
    )
    guide = poutine.mask(mask=has)(case.guide)
    return case._replace(model=model, guide=guide, elbo=elbo, log_px=exact, refused={"FreeBits": "scaled or masked"})


def gamma():
    """A positive latent: z ~ Gamma(2, 1), x | z ~ Poisson(z), and a guide of the same family."""
    shape, rate, counts = leaf(0.5), leaf(0.2), torch.tensor([1.0, 0.0, 3.0, 2.0])

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(pyro.sample("z", dist.Gamma(2.0, 1.0))), obs=x)

    def q():
        return dist.Gamma(1 + counts + shape.exp(), rate.exp())

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", q())

    def elbo():
        log_z = torch.digamma(q().concentration) - q().rate.log()
        expected = counts * log_z - q().mean - (counts + 1).lgamma()
        return (expected - kl_divergence(q(), dist.Gamma(torch.full((4,), 2.0), 1.0))).sum()

    exact = dist.NegativeBinomial(2.0, torch.tensor(0.5)).log_prob(counts).sum().item()
    return Case(model, guide, [shape, rate], elbo, exact, args=(counts,))


def log_normal_guide():
    """The same with a guide that is pushed onto the positive numbers."""
    case, loc, raw = gamma(), leaf(0.3), leaf(-0.5)

    def guide(x):
        with pyro.plate("data", len(x)):
            base = normal(loc + torch.zeros(len(x)), raw)
            pyro.sample("z", dist.TransformedDistribution(base, [biject_to(constraints.positive)]))

    def elbo():
        mean, counts = (loc + raw.exp() ** 2 / 2).exp(), case.args[0]
        expected = counts * loc - mean - (counts + 1).lgamma() + loc - mean  # log p(x | z) and log p(z)
        entropy = loc + raw + 0.5 * math.log(2 * math.pi * math.e)
        return (expected + entropy).sum()

    return case._replace(guide=guide, parameters=[loc, raw], elbo=elbo, refused={"FreeBits": NO_KL})


def beta_bernoulli():
    """A latent of all rows: p ~ Beta(2, 3), x | p ~ Bernoulli(p)."""
    a, b = leaf(0.8), leaf(0.5)

    def model(x):
        p = pyro.sample("p", dist.Beta(2.0, 3.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(p), obs=x)

    def q():
        return dist.Beta(a.exp(), b.exp())

    def elbo():
        total = torch.digamma(a.exp() + b.exp())
        log_p, log_1_p = torch.digamma(a.exp()) - total, torch.digamma(b.exp()) - total
        return (COUNTS * log_p + (1 - COUNTS) * log_1_p).sum() - kl_divergence(q(), dist.Beta(torch.tensor(2.0), 3.0))

    refused = {"ImportanceWeighted": NO_PLATE, "DoublyReparameterized": NO_PLATE}
    return Case(model, lambda x: pyro.sample("p", q()), [a, b], elbo, refused=refused, args=(COUNTS,))


def mixture():
    """A discrete latent of each row, drawn by the guide."""
    logits, centres = leaf(0.3, -0.2, 0.1), leaf(-1.0, 0.0, 2.0)
    prior = dist.Categorical(logits=torch.tensor([0.0, 1.0, -1.0]))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(centres[z], 0.7), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=logits))

    def elbo():
        log_joint = prior.logits + dist.Normal(centres, 0.7).log_prob(X.unsqueeze(-1))
        return (logits.softmax(-1) * (log_joint - logits.log_softmax(-1))).sum()

    paths = ["StickingTheLanding", "ImportanceWeighted", "DoublyReparameterized", "FreeBits"]
    return Case(model, guide, [logits, centres], elbo, refused=dict.fromkeys(paths, NO_RSAMPLE))


def nuisance():
    """A latent of each row beneath one of all rows."""
    loc, raw, of_row, row_raw = leaf(0.2), leaf(-0.4), leaf(0.5), leaf(-0.2)

    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(m, 1.0)), 1.0), obs=x)

    def guide(x):
        pyro.sample("m", normal(loc, raw))
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(of_row * x, row_raw))

    def elbo():
        m, z = normal(loc, raw), normal(of_row * X, row_raw)
        log_p = dist.Normal(0.0, 1.0).log_prob(m.mean) - m.variance / 2
        log_p = log_p + (dist.Normal(m.mean, 1.0).log_prob(z.mean) - (m.variance + z.variance) / 2).sum()
        log_p = log_p + (dist.Normal(z.mean, 1.0).log_prob(X) - z.variance / 2).sum()
        return log_p + m.entropy() + z.entropy().sum()

    refused = dict.fromkeys(["ImportanceWeighted", "DoublyReparameterized"], NO_PLATE)
    return Case(model, guide, [loc, raw, of_row, row_raw], elbo, refused=refused)


def nested():
    """Two latents of each row, in a plate of their own inside that of the rows."""
    loc, raw = leaf(0.4), leaf(-0.3)

    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            with pyro.plate("parts", 2, dim=-1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0), obs=x.unsqueeze(-1))

    def q():
        return normal(loc * X.unsqueeze(-1).expand(4, 2), raw)

    def guide(x):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("parts", 2, dim=-1):
            pyro.sample("z", q())

    def elbo():
        expected = dist.Normal(q().mean.sum(-1), 1.0).log_prob(X) - q().variance.sum(-1) / 2
        return expected.sum() - kl_divergence(q(), dist.Normal(torch.zeros(4, 2), 1.0)).sum()

    exact = dist.Normal(0.0, 3**0.5).log_prob(X).sum().item()
    return Case(model, guide, [loc, raw], elbo, exact)


def sequential():
    """Rows one after the other, in a plate that is a loop."""
    loc, raw = leaf(0.4), leaf(-0.3)

    def model(x):
        for i in pyro.plate("data", len(x)):
            z = pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
            pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i])

    def guide(x):
        for i in pyro.plate("data", len(x)):
            pyro.sample(f"z_{i}", normal(loc * x[i], raw))

    def elbo():
        q = normal(loc * X, raw)
        expected = dist.Normal(q.mean, 1.0).log_prob(X) - q.variance / 2
        return (expected - kl_divergence(q, dist.Normal(torch.zeros(4), 1.0))).sum()

    refused = dict.fromkeys(["ImportanceWeighted", "DoublyReparameterized"], NO_PLATE)
    return Case(model, guide, [loc, raw], elbo, refused=refused)


def partly_observed():
    """``obs_mask``: what is missing of x is a site of its own, which the guide draws under the same mask."""
    loc, raw, imputed = leaf(0.4), leaf(-0.3), leaf(0.6)
    seen = torch.tensor([True, False, True, True])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x, obs_mask=seen)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(loc * x, raw))
            with poutine.mask(mask=~seen):
                pyro.sample("x_unobserved", dist.Normal(imputed + torch.zeros(len(x)), 1.0))

    def elbo():
        q, missing = normal(loc * X, raw), dist.Normal(imputed, 1.0)
        expected = dist.Normal(q.mean, 1.0).log_prob(X) - q.variance / 2
        filled = dist.Normal(q.mean, 1.0).log_prob(imputed) - (q.variance + 1) / 2 + missing.entropy()
        return (torch.where(seen, expected, filled) - kl_divergence(q, dist.Normal(torch.zeros(4), 1.0))).sum()

    exact = dist.Normal(0.0, 2**0.5).log_prob(X)[seen].sum().item()
    return Case(model, guide, [loc, raw, imputed], elbo, exact, {"FreeBits": "scaled or masked"})


def points():
    """A guide of single points in each row, as AutoDelta: it has Pyro's loss, and no importance weight."""
    place, theta = leaf(0.4), leaf(1.2)
    case = conjugate()

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(place * x))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(theta * z, 1.0), obs=x)

    def elbo():
        return (dist.Normal(0.0, 1.0).log_prob(place * X) + dist.Normal(theta * place * X, 1.0).log_prob(X)).sum()

    refused = dict.fromkeys(["ImportanceWeighted", "DoublyReparameterized"], "single points")
    return case._replace(
        model=model,
        guide=guide,
        parameters=[place, theta],
        elbo=elbo,
        log_px=None,
        refused=refused | {"FreeBits": "is a point"},
    )


def moved_draws():
    """A draw of a fixed distribution, moved by a learned map to a point that carries the density of the map."""
    case = conjugate()
    loc, raw, _ = case.parameters

    def guide(x):
        with pyro.plate("data", len(x)):
            noise = pyro.sample("noise", dist.Normal(torch.zeros(len(x)), 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(loc * x + raw.exp() * noise, log_density=(-raw).expand(len(x))))

    return case._replace(guide=guide, refused={"FreeBits": NO_KL})


def factor_in_guide():
    """A factor of the guide counts as in Trace_ELBO; there is no importance weight."""
    case = conjugate()
    loc, raw, _ = case.parameters

    def guide(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(loc * x, raw))
            pyro.factor("penalty", loc * z**2, has_rsample=True)

    def elbo():
        q = normal(loc * X, raw)
        return case.elbo() - (loc * (q.mean**2 + q.variance)).sum()

    refused = dict.fromkeys(["ImportanceWeighted", "DoublyReparameterized"], "factors") | {"FreeBits": "scores"}
    return case._replace(guide=guide, elbo=elbo, log_px=None, refused=refused)


def not_for_a_plate_of_particles():
    """A sum over dimension 1, which is the rows in a plate of particles; there are as many, so that nothing fails."""
    loc, raw, x = leaf(0.3), leaf(-0.5), X[:3]

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(1), 1.0), obs=x)

    def q(x):
        return normal(loc * x.unsqueeze(-1).expand(3, 3), raw)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", q(x).to_event(1))

    def elbo():
        expected = dist.Normal(q(x).mean.sum(-1), 1.0).log_prob(x) - q(x).variance.sum(-1) / 2
        return expected.sum() - kl_divergence(q(x), dist.Normal(torch.zeros(3, 3), 1.0)).sum()

    return Case(model, guide, [loc, raw], elbo, dist.Normal(0.0, 2.0).log_prob(x).sum().item(), args=(x,))


CASES = [
    conjugate,
    unsized,
    subsampled,
    weighted_rows,
    masked_rows,
    gamma,
    log_normal_guide,
    beta_bernoulli,
    mixture,
    nuisance,
    nested,
    sequential,
    partly_observed,
    points,
    moved_draws,
    factor_in_guide,
    not_for_a_plate_of_particles,
]


def draws(estimator, case, runs):
    """Losses (runs,) and gradients (runs, parameters)."""
    losses, gradients = [], []
    for _ in range(runs):
        loss = estimator.differentiable_loss(case.model, case.guide, *case.args)
        found = torch.autograd.grad(loss, case.parameters, allow_unused=True)
        found = [torch.zeros_like(p) if g is None else g for p, g in zip(case.parameters, found)]
        losses.append(loss.detach())
        gradients.append(torch.cat([gradient.flatten() for gradient in found]))
    return torch.stack(losses), torch.stack(gradients)


def assert_mean(values, expected, error=0.0, sees=5):
    """Check the mean of each column against the expected one, which may have a standard error.

    ``sees`` is in units of the norm of all expected values, plus one: few draws of programs that are not alike show
    terms that are lost, doubled or scaled by the particles, of which most programs have one that is large.
    """
    assert_mean_is(values, expected, error=error, sees=sees * (1 + torch.as_tensor(expected).norm()))


def expected_of(case):
    """The loss and its gradient."""
    loss = -case.elbo()
    gradients = torch.autograd.grad(loss, case.parameters, allow_unused=True)
    gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(case.parameters, gradients)]
    return loss.detach(), torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("program", CASES)
def test_the_mean_loss_and_gradient_are_those_of_the_elbo(program, kind):
    case = program()
    K, runs = (4, 40) if program is not_for_a_plate_of_particles else (200, 14)
    refusal = case.refused.get(kind.split(",")[0])
    if refusal:
        with pytest.raises(ValueError, match=refusal):
            KINDS[kind](K).differentiable_loss(case.model, case.guide, *case.args)
        return
    for ours, expected in zip(draws(KINDS[kind](K), case, runs), expected_of(case)):
        assert_mean(ours, expected)


@pytest.mark.slow
@pytest.mark.parametrize("program", CASES)
def test_weighted_bounds_lie_between_elbo_and_evidence_and_have_one_gradient(program):
    case = program()
    estimators = ImportanceWeighted(5, M=40), DoublyReparameterized(5)
    refusal = case.refused.get("DoublyReparameterized")
    if refusal:
        for estimator in estimators:
            with pytest.raises(ValueError, match=refusal):
                estimator.differentiable_loss(case.model, case.guide, *case.args)
        return
    if program is not_for_a_plate_of_particles:
        estimators = ImportanceWeighted(3), DoublyReparameterized(3)
    (losses, gradients), (others, ours) = (draws(estimator, case, 25) for estimator in estimators)
    assert_mean(ours, gradients.mean(0), (gradients.var(0) / len(gradients)).sqrt())
    assert_mean(others, losses.mean(), (losses.var() / len(losses)).sqrt())
    error = (losses.var() / len(losses)).sqrt()
    assert -losses.mean() > -expected_of(case)[0] - 5 * error
    if case.log_px is not None:
        assert -losses.mean() < case.log_px + 5 * error


# Guides that Pyro makes -----------------------------------------------------------------------------------------------

GUIDES = {
    "AutoDelta": autoguide.AutoDelta,
    "AutoNormal": autoguide.AutoNormal,
    "AutoDiagonalNormal": autoguide.AutoDiagonalNormal,
    "AutoMultivariateNormal": autoguide.AutoMultivariateNormal,
    "AutoLowRankMultivariateNormal": autoguide.AutoLowRankMultivariateNormal,
    "AutoIAFNormal": partial(autoguide.AutoIAFNormal, hidden_dim=[6]),
    "AutoLaplaceApproximation": autoguide.AutoLaplaceApproximation,
    "AutoStructured": partial(autoguide.AutoStructured, conditionals="mvn", dependencies="linear"),
    "AutoGaussian": autoguide.AutoGaussian,
    "AutoNormalMessenger": autoguide.AutoNormalMessenger,
    "AutoHierarchicalNormalMessenger": autoguide.AutoHierarchicalNormalMessenger,
    "AutoRegressiveMessenger": autoguide.AutoRegressiveMessenger,
}


def unknown_scale(x):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    s = pyro.sample("s", dist.Gamma(3.0, 3.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(m, s), obs=x)


def of_real_latents(x):
    m, t = (pyro.sample(name, dist.Normal(0.0, 1.0)) for name in "mt")
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(m, (0.3 * t).exp()), obs=x)


def on_a_simplex(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Dirichlet(torch.ones(3)))
        pyro.sample("x", dist.Normal(z @ torch.tensor([1.0, 2.0, -1.0]), 1.0), obs=x)


def made_by_pyro(kind, model):
    guide = kind(model)
    guide(X)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return Case(model, guide, list(guide.parameters()), elbo=None)


@pytest.mark.slow
@pytest.mark.parametrize("kind", GUIDES.values(), ids=GUIDES)
def test_automatic_guides_have_the_mean_loss_and_gradient_of_trace_elbo(kind):
    of_a_flow = kind is GUIDES["AutoIAFNormal"]  # it draws scales near zero, and then means and losses are of any size
    case = made_by_pyro(kind, of_real_latents if of_a_flow else unknown_scale)
    theirs = draws(Trace_ELBO(200, vectorize_particles=True, max_plate_nesting=1), case, 15)
    for estimator in (StickingTheLanding(200), ScoreFunction(500, "leave-one-out")):
        for ours, their in zip(draws(estimator, case, 12), theirs):
            assert_mean(ours, their.mean(0), (their.var(0) / len(their)).sqrt())
    with pytest.raises(ValueError, match=NO_PLATE):
        ImportanceWeighted(2).differentiable_loss(case.model, case.guide, X)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        GUIDES[name]
        for name in GUIDES
        if name in ("AutoNormal", "AutoNormalMessenger", "AutoHierarchicalNormalMessenger", "AutoRegressiveMessenger")
    ],
)
def test_automatic_guides_of_rows_on_a_simplex(kind):
    """A cached map onto a simplex has a Jacobian that is not square."""
    case = made_by_pyro(kind, on_a_simplex)
    theirs = draws(Trace_ELBO(200, vectorize_particles=True, max_plate_nesting=1), case, 15)
    for ours, their in zip(draws(StickingTheLanding(200), case, 12), theirs):
        assert_mean(ours, their.mean(0), (their.var(0) / len(their)).sqrt())
    weighted = draws(ImportanceWeighted(3, M=60), case, 12)
    for ours, their in zip(draws(DoublyReparameterized(3), case, 20), weighted):
        assert_mean(ours, their.mean(0), (their.var(0) / len(their)).sqrt(), sees=9)


# After Pyro's examples ------------------------------------------------------------------------------------------------


class SemiSupervised(torch.nn.Module):
    """As ss_vae: a plate without a size, and code and label joined along dimension 1."""

    estimators = StickingTheLanding(3), ScoreFunction(3, "leave-one-out")
    args = torch.linspace(-1, 1, 12).double().reshape(3, 4), torch.eye(3).double()

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = torch.nn.Linear(4, 4), torch.nn.Linear(5, 4)

    def model(self, x, y):
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(torch.ones(len(x), 3)), obs=y)
            pyro.sample("x", dist.Normal(self.decoder(torch.cat([z, y], 1)), 1.0).to_event(1), obs=x)

    def guide(self, x, y):
        loc, raw = self.encoder(x).chunk(2, -1)
        with pyro.plate("data"):
            pyro.sample("z", normal(loc + y[:, :2], raw).to_event(1))


class Classifying(SemiSupervised):
    """As scANVI: everything is scaled, and the guide has the loss of its classifier as a factor."""

    estimators = (StickingTheLanding(3),)

    def __init__(self):
        super().__init__()
        self.classifier = torch.nn.Linear(2, 3)

    @poutine.scale(scale=0.5)
    def model(self, x, y):
        super().model(x, y)

    @poutine.scale(scale=0.5)
    def guide(self, x, y):
        loc, raw = self.encoder(x).chunk(2, -1)
        with pyro.plate("data"):
            z = pyro.sample("z", normal(loc, raw).to_event(1))
            log_prob = dist.OneHotCategorical(logits=self.classifier(z)).log_prob(y)
            pyro.factor("classification", -5.0 * log_prob, has_rsample=False)


class Repeating(torch.nn.Module):
    """As AIR: objects one after the other, as long as there are any; codes of absent objects are masked."""

    estimators = ScoreFunction(1), ScoreFunction(3, "leave-one-out")
    args = (SemiSupervised.args[0],)

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = torch.nn.Linear(4, 6), torch.nn.Linear(2, 4)

    def model(self, x):
        with pyro.plate("data", len(x)):
            there, mean = torch.ones(len(x), 1), 0.0
            for t in range(2):
                there = pyro.sample(f"there_{t}", dist.Bernoulli(0.6 * there).to_event(1))
                code = dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1).mask(there.squeeze(-1).bool())
                mean = mean + self.decoder(pyro.sample(f"z_{t}", code)) * there
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(self, x):
        h = self.encoder(x)
        with pyro.plate("data", len(x)):
            there = torch.ones(len(x), 1)
            for t in range(2):
                there = pyro.sample(f"there_{t}", dist.Bernoulli(h[:, t : t + 1].sigmoid() * there).to_event(1))
                code = dist.Normal(h[:, 2 * t + 2 : 2 * t + 4], 0.8).to_event(1)
                pyro.sample(f"z_{t}", code.mask(there.squeeze(-1).bool()))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [SemiSupervised, Classifying, Repeating])
def test_programs_of_pyros_examples_have_the_mean_loss_and_gradient_of_trace_elbo(kind):
    program = kind()
    case = Case(program.model, program.guide, list(program.parameters()), elbo=None, args=program.args)
    theirs = draws(Trace_ELBO(), case, 250)
    for estimator in program.estimators:
        for ours, their in zip(draws(estimator, case, 40), theirs):
            assert_mean(ours, their.mean(0), (their.var(0) / len(their)).sqrt())


# Measured -------------------------------------------------------------------------------------------------------------


def compare(case, **estimators):
    return compare_estimators(case.model, case.guide, *case.args, estimators=estimators, draws=80, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("program", [conjugate, unsized, subsampled, nested])
def test_compared_bounds_are_in_nats_per_row(program):
    case = program()
    compared = compare(case, A=Trace_ELBO(), B=StickingTheLanding(2), C=ImportanceWeighted(3))
    assert compared.images == 4
    for name in "AB":
        bound = compared.estimators[name].bound
        assert abs(bound.mean - case.elbo().item() / 4) < 5 * bound.standard_error
    bound = compared.estimators["C"].bound
    assert case.elbo().item() / 4 < bound.mean < case.log_px / 4 + 5 * bound.standard_error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "scale"), [(weighted_rows, None), (nuisance, None), (beta_bernoulli, None), (conjugate, 0.3)]
)
def test_bounds_of_no_number_of_rows_are_those_of_all_data(program, scale):
    case = program()
    if scale:  # 1.2 rows
        scaled = poutine.scale(scale=scale)
        case = case._replace(model=scaled(case.model), guide=scaled(case.guide))
    compared = compare(case, A=Trace_ELBO())
    bound = compared.estimators["A"].bound
    assert compared.images is None
    assert abs(bound.mean - (scale or 1.0) * case.elbo().item()) < 5 * bound.standard_error


@pytest.mark.slow
def test_a_messenger_that_pyros_own_elbos_do_not_see_is_refused_for_them():
    """They would train it to the prior; ours see it."""

    class Program(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.theta = torch.nn.Parameter(torch.tensor(1.0))
            self.messenger = autoguide.AutoNormalMessenger(self.model)

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(self.theta * z, 1.0), obs=x)

        def guide(self, x):
            return self.messenger(x)

        def observe(self, pixels, generator=None):
            return pixels

    program = Program()
    program.guide(X)
    case = Case(program.model, program.guide, [], elbo=None)
    with pytest.raises(ValueError, match=r"runs the model through a GuideMessenger.*give the messenger itself"):
        compare(case, A=Trace_ELBO())
    with pytest.raises(ValueError, match="GuideMessenger"):
        check_program(program, X)
    check_program(program, X, StickingTheLanding())
    exact = dist.Normal(0.0, 2**0.5).log_prob(X).mean().item()
    for guide, elbo in ((program.guide, StickingTheLanding(50)), (program.messenger, Trace_ELBO())):  # the cure
        bound = compare(case._replace(guide=guide), A=elbo).estimators["A"].bound
        assert exact - 5 < bound.mean < exact + 4 * bound.standard_error
