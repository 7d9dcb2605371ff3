"""Every estimator against what it claims: values and gradients by hand at the same noise, exact means, variances."""

import copy
import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import pytest
import torch
from estimator_programs import (
    B,
    D,
    Local,
    P,
    TwoLayers,
    assert_equal,
    assert_same_mean,
    draws,
    estimate,
    gradients,
    mixture,
    name,
)
from monte_carlo import assert_mean_is
from programs import linear_gaussian
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.distributions import kl_divergence

from pyro_vae.distributions.transforms import Planar, Pushforward
from pyro_vae.estimators import (
    DoublyReparameterized,
    ImportanceWeighted,
    ScoreFunction,
    StickingTheLanding,
    WakeSleep,
    check_analytic_kl,
)
from pyro_vae.linear_gaussian import (
    LinearPosterior,
    exact_guide,
    maximum_likelihood,
    mean_field_elbo_variance,
    mean_field_guide,
    path_variance,
    trace_elbo_variance,
)
from pyro_vae.tracing.traces import log_weights, paired_traces

pytestmark = pytest.mark.usefixtures("float64")

ESTIMATORS = [
    StickingTheLanding(),
    StickingTheLanding(3),
    ImportanceWeighted(3),
    ImportanceWeighted(3, M=2),
    DoublyReparameterized(3),
    ScoreFunction(),
    ScoreFunction(3, "leave-one-out"),
]


each_estimator = pytest.mark.parametrize("estimator", ESTIMATORS, ids=name)


@pytest.fixture
def program():
    return linear_gaussian()


@pytest.fixture
def far(program):
    """The same program, its guide not exact."""
    program.posterior = LinearPosterior(0.1 * torch.randn(D, P), torch.randn(D), log_scale=torch.tensor([-0.5, -0.2]))
    return program


# Where the guide is exact ---------------------------------------------------------------------------------------------


def test_every_log_weight_is_the_evidence(program):
    x = program.simulate(B)
    log_w = log_weights(*paired_traces(program.model, program.guide, (x,), particles=100))
    torch.testing.assert_close(log_w, program.log_px(x).expand(100, B), rtol=0, atol=1e-10)


@each_estimator
def test_every_loss_is_minus_the_evidence(program, estimator):
    x = program.simulate(B)
    expected = -program.log_px(x).sum().item()
    assert estimator.loss(program.model, program.guide, x) == pytest.approx(expected, rel=1e-12)
    assert estimate(estimator, program, x)[0].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("estimator", "lands"),
    [
        (StickingTheLanding(), True),
        (StickingTheLanding(5), True),
        (DoublyReparameterized(5), True),
        (Trace_ELBO(), False),
        (ImportanceWeighted(5), False),
    ],
)
def test_path_derivatives_vanish_at_the_exact_guide(program, estimator, lands):
    _, ours = estimate(estimator, program, program.simulate(B))
    largest = max(value.abs().max() for key, value in ours.items() if key.startswith("posterior"))
    assert (largest < 1e-10) == lands
    assert largest < 1e-10 or largest > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "closed_form"),
    [
        (Trace_ELBO(), trace_elbo_variance),
        (TraceMeanField_ELBO(), mean_field_elbo_variance),
        (StickingTheLanding(), path_variance),
        (DoublyReparameterized(2), path_variance),
    ],
)
def test_measured_variances_are_the_closed_forms(estimator, closed_form):
    program = maximum_likelihood(torch.randn(50, P) @ torch.randn(P, P), D)
    program.posterior = mean_field_guide(program)
    n, x = 100_000, program.simulate(1)
    expected = closed_form(program, x)
    program.posterior = Local(program.posterior(x), n)
    _, ours = estimate(estimator, program, x.expand(n, P))
    for parameter, key in ("posterior.loc", "loc_bias"), ("posterior.log_scale", "log_scale"):
        torch.testing.assert_close(ours[parameter].var(0), expected[f"posterior.{key}"], rtol=0.05, atol=1e-20)


# By hand, at the same noise -------------------------------------------------------------------------------------------


@pytest.fixture
def two_layers():
    program = TwoLayers()
    x, y = torch.randn(B, P), torch.randint(2, (B, P)).double()
    stopped = copy.deepcopy(program).requires_grad_(False)

    def estimate(estimator, draws):
        """The estimator's gradient; by hand at the same noise log w, its path, its model's part, and log q."""
        torch.manual_seed(1)
        ours = gradients(estimator(program.model, program.guide)(x, y), program)
        torch.manual_seed(1)
        z = program.draw(x, draws)
        fixed = [value.detach() for value in z]
        log_w = program.log_p(x, y, *z) - program.log_q(x, *z)
        of_path = stopped.log_p(x, y, *z) - stopped.log_q(x, *z)
        of_model = program.log_p(x, y, *fixed)
        return program, ours, log_w, of_path, of_model, program.log_q(x, *fixed)

    return estimate


@pytest.mark.parametrize("K", [1, 4])
def test_sticking_the_landing_by_hand(two_layers, K):
    program, ours, _, of_path, of_model, _ = two_layers(StickingTheLanding(K), K)
    assert_equal(ours, gradients(-(of_path + of_model).sum() / K, program))


@pytest.mark.parametrize("K", [1, 4])
def test_doubly_reparameterized_by_hand(two_layers, K):
    program, ours, log_w, of_path, of_model, _ = two_layers(DoublyReparameterized(K), K)
    share = log_w.detach().reshape(K, B).softmax(0)
    surrogate = (share.square() * of_path).sum() + (share * of_model).sum()
    assert_equal(ours, gradients(-surrogate, program))


@pytest.mark.parametrize(("K", "M"), [(4, 1), (3, 2)])
def test_importance_weighted_by_hand(two_layers, K, M):
    program, ours, log_w, *_ = two_layers(ImportanceWeighted(K, M), K * M)
    groups = [log_w[m * K : (m + 1) * K].exp().mean(0).log() for m in range(M)]
    assert_equal(ours, gradients(-sum(groups).sum() / M, program))


@pytest.mark.parametrize(("K", "baseline"), [(1, None), (4, None), (4, "leave-one-out")])
def test_score_function_by_hand(two_layers, K, baseline):
    program, ours, log_w, _, of_model, log_q = two_layers(ScoreFunction(K, baseline), K)
    cost = log_w.detach().reshape(K, B)
    if baseline:
        cost = torch.stack([cost[k] - torch.cat([cost[:k], cost[k + 1 :]]).mean(0) for k in range(K)])
    assert_equal(ours, gradients(-((cost * log_q).sum() + of_model.sum()) / K, program))


def test_wake_sleep_by_hand(far):
    x = far.simulate(B)
    loss, ours = estimate(WakeSleep(), far, x)
    torch.manual_seed(0)
    z = far.posterior(x).sample()
    dream = far.prior().sample((B,))
    dreamt = far.likelihood(dream).sample()
    wake = far.prior().log_prob(z).sum() + far.likelihood(z).log_prob(x).sum()
    total = wake + far.posterior(dreamt).log_prob(dream).sum()
    assert loss.item() == pytest.approx(-total.item())
    assert_equal(ours, gradients(-total, far))
    assert not WakeSleep.is_bound and StickingTheLanding.is_bound


class Grid(nn.Module):
    """The images in a plate at dim −2; z in a plate of S parts at dim −1, whose sum the pixels see."""

    def __init__(self):
        super().__init__()
        self.loc, self.shift = nn.Parameter(torch.randn(B, 4)), nn.Parameter(torch.tensor(0.3))

    def model(self, x):
        with pyro.plate("images", B, dim=-2):
            with pyro.plate("parts", 4, dim=-1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True) + self.shift, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("images", B, dim=-2), pyro.plate("parts", 4, dim=-1):
            pyro.sample("z", dist.Normal(self.loc, 0.7))


@pytest.mark.parametrize("K", [1, 3])
def test_weights_of_images_among_other_plates_by_hand(K):
    program, x = Grid(), torch.randn(B, 1)
    torch.manual_seed(0)
    loss = DoublyReparameterized(K)(program.model, program.guide)(x)
    torch.manual_seed(0)
    z = dist.Normal(program.loc, 0.7).expand((K, B, 4) if K > 1 else (B, 4)).rsample().reshape(K, B, 4)

    def log_w(z, shift):
        log_p = dist.Normal(z.sum(-1) + shift, 1.0).log_prob(x.squeeze(-1))
        ratio = dist.Normal(0.0, 1.0).log_prob(z) - dist.Normal(program.loc.detach(), 0.7).log_prob(z)
        return log_p + ratio.sum(-1)

    of_path, of_model = log_w(z, program.shift.detach()), log_w(z.detach(), program.shift)
    share = of_path.detach().softmax(0)
    assert loss.item() == pytest.approx(-of_path.exp().mean(0).log().sum().item())
    expected = gradients(-(share.square() * of_path + share * of_model).sum(), program)
    assert_equal(gradients(loss, program), expected)


# Flows ----------------------------------------------------------------------------------------------------------------


class FlowGuide(nn.Module):
    """q(z | x): a Gaussian at A x, then the transforms that ``steps(x)`` gives."""

    def __init__(self, steps):
        super().__init__()
        self.base, self.steps = nn.Linear(P, 2 * D), steps

    def forward(self, x):
        loc, log_scale = self.base(x).chunk(2, -1)
        base = dist.Normal(loc, (0.2 * log_scale).exp()).to_event(1)
        return Pushforward(base, self.steps(x))


class Autoregressive(nn.Module):
    """Two steps that Pyro keeps from call to call, and their last pass with them."""

    def __init__(self):
        super().__init__()
        self.steps = nn.ModuleList([transforms.affine_autoregressive(D, [8]) for _ in range(2)])

    def forward(self, x):
        return list(self.steps)


class Planars(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = nn.Linear(P, 2 * (1 + 2 * D))

    def forward(self, x):
        return [Planar(part.split([1, D, D], -1)) for part in self.network(x).chunk(2, -1)]


@pytest.mark.parametrize("steps", [Autoregressive, Planars])
@pytest.mark.parametrize("K", [1, 3])
def test_sticking_the_landing_of_a_flow_by_its_inverse(program, steps, K):
    program.posterior = FlowGuide(steps())
    x, stopped = program.simulate(B), copy.deepcopy(program).requires_grad_(False)
    loss, ours = estimate(StickingTheLanding(K), program, x)
    torch.manual_seed(0)
    q = program.posterior(x).expand((K, B) if K > 1 else (B,))
    z = q.rsample()

    def log_w(program, z, q):
        return program.prior().log_prob(z) + program.likelihood(z).log_prob(x) - q.log_prob(z)

    of_path = log_w(stopped, z, stopped.posterior(x))
    of_model = log_w(program, z.detach(), stopped.posterior(x))
    assert loss.item() == pytest.approx(-of_path.sum().item() / K, rel=1e-9)
    expected = gradients(-(of_path + of_model).sum() / K, program)
    for key, value in ours.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-6, atol=1e-8, msg=lambda m, key=key: f"{key}: {m}")


def test_a_flow_onto_the_exact_posterior_lands(program):
    x, exact = program.simulate(B), exact_guide(program)
    parameters = nn.ParameterList([exact.loc_bias.new_tensor(exact(x).mean.tolist()), exact.scale_tril.tril()])

    class Guide(nn.Module):
        def __init__(self):
            super().__init__()
            self.parameters_ = parameters

        def forward(self, x):
            step = transforms.LowerCholeskyAffine(*self.parameters_, cache_size=1)
            return dist.TransformedDistribution(dist.Normal(torch.zeros(B, D), 1.0).to_event(1), [step])

    program.posterior = Guide()
    _, ours = estimate(StickingTheLanding(), program, x)
    _, total = estimate(Trace_ELBO(), program, x)
    for key in ("posterior.parameters_.0", "posterior.parameters_.1"):
        assert ours[key].abs().max() < 1e-10
        assert total[key].abs().max() > 0.1


@pytest.mark.slow
def test_flows_without_an_inverse_have_the_mean_gradient_of_the_total_derivative(program):
    """Pyro's own planar step can be scored at its last draw only."""
    planar = transforms.Planar(D)
    program.posterior = FlowGuide(lambda x: [planar])
    program.planar = planar
    n = 2000
    x = program.simulate(1).expand(n, P)
    assert_same_mean(StickingTheLanding(), Trace_ELBO(), program, x)
    assert_same_mean(ScoreFunction(2, "leave-one-out"), Trace_ELBO(), program, x)


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("transform", "prior"),
    [
        (transforms.StickBreakingTransform, lambda: dist.Dirichlet(torch.full((D + 1,), 2.0))),  # its J is not square
        (transforms.ExpTransform, lambda: dist.Gamma(2.0, torch.ones(D)).to_event(1)),
        (transforms.SigmoidTransform, lambda: dist.Beta(2.0, torch.ones(D)).to_event(1)),
    ],
)
@pytest.mark.parametrize("K", [1, 3])
def test_maps_that_keep_their_last_pass_have_the_gradient_of_those_that_do_not(transform, prior, masked, K):
    loc, raw = torch.randn(B, D).requires_grad_(), torch.randn(B, D).requires_grad_()

    def draw(fn):
        with pyro.plate("images", B):
            return pyro.sample("z", fn.mask(torch.tensor([True, False, True])) if masked else fn)

    def model(cache_size):
        z = draw(prior().expand([B]))
        with pyro.plate("pixels", B):
            pyro.sample("x", dist.Normal(z.square().sum(-1), 1.0), obs=torch.ones(B))

    def guide(cache_size):
        draw(dist.TransformedDistribution(dist.Normal(loc, raw.exp()).to_event(1), [transform(cache_size=cache_size)]))

    def estimate(estimator, cache_size):
        torch.manual_seed(1)
        loss = estimator.differentiable_loss(model, guide, cache_size)
        return [loss, *torch.autograd.grad(loss, [loc, raw])]

    for estimator in (StickingTheLanding(K), ScoreFunction(K)):
        for ours, expected in zip(estimate(estimator, 1), estimate(estimator, 0)):
            torch.testing.assert_close(ours, expected)


# Means and variances --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("K", [2, 8])
def test_mean_gradients_of_dreg_are_those_of_iwae(far, K):
    x = far.simulate(1).expand(2000, P)
    assert_same_mean(DoublyReparameterized(K), ImportanceWeighted(K), far, x)


@pytest.mark.slow
def test_mean_gradients_of_dreg_are_those_of_iwae_in_two_layers():
    program = TwoLayers()
    x, y = torch.randn(1, P), torch.randint(2, (1, P)).double()
    assert_same_mean(DoublyReparameterized(4), ImportanceWeighted(4), program, x.expand(2000, P), y.expand(2000, P))


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator",
    [
        StickingTheLanding(),
        DoublyReparameterized(1),
        ImportanceWeighted(1),
        ScoreFunction(),
        ScoreFunction(2, "leave-one-out"),
        Trace_ELBO(),
        TraceMeanField_ELBO(),
    ],
    ids=name,
)
def test_mean_gradients_are_those_of_the_exact_elbo(far, estimator):
    x = far.simulate(1).expand(5000, P)
    exact = torch.cat([gradient.flatten() for gradient in gradients(-far.elbo(x).sum(), far).values()])
    ours = draws(estimator, far, (x,))
    z = (ours.mean(0) - exact) / (ours.var(0) / len(ours)).sqrt().clamp(min=1e-10)
    assert z.abs().max() < 5
    assert z.abs().median() < 2


@pytest.mark.slow
def test_variances_differ_where_they_should(far):
    n, x = 20_000, far.simulate(1)
    far.posterior = Local(far.posterior(x), n)
    x = x.expand(n, P)

    def variance(estimator):
        return estimate(estimator, far, x)[1]["posterior.loc"].var(0).sum()

    assert variance(ScoreFunction()) > 10 * variance(Trace_ELBO())
    assert variance(ScoreFunction(8, "leave-one-out")) < 0.5 * variance(ScoreFunction(8))
    assert variance(Trace_ELBO()) / variance(StickingTheLanding(4)) > 2
    assert variance(StickingTheLanding()) / variance(StickingTheLanding(4)) == pytest.approx(4, rel=0.1)
    assert variance(ImportanceWeighted(4)) / variance(ImportanceWeighted(4, M=3)) == pytest.approx(3, rel=0.1)


@pytest.mark.slow
def test_signal_to_noise_of_the_guide_falls_with_K_for_iwae_and_not_for_dreg(program):
    """Close to the exact guide, as K^-1/2 (Rainforth et al. 2018) and as K^1/2 (Tucker et al. 2019)."""
    n, x = 5000, program.simulate(1)
    program.posterior = Local(mean_field_guide(program)(x), n)
    program.posterior.loc.data += 0.03

    def ratio(estimator):
        gradient = estimate(estimator, program, x.expand(n, P))[1]["posterior.loc"]
        return gradient.mean(0).norm() / gradient.var(0).sum().sqrt()

    assert ratio(ImportanceWeighted(64)) < 0.4 * ratio(ImportanceWeighted(1))
    assert ratio(DoublyReparameterized(64)) > 2.5 * ratio(DoublyReparameterized(1))


@pytest.mark.slow
def test_importance_weighted_bounds_grow_with_K_up_to_the_evidence(far):
    n, x = 5000, far.simulate(1)
    evidence, runs = far.log_px(x).item(), 10
    bounds = []
    for K in (1, 4, 16, 64):
        values = torch.tensor([ImportanceWeighted(K).loss(far.model, far.guide, x.expand(n, P)) for _ in range(runs)])
        bounds.append((-values.mean() / n, values.std() / n / math.sqrt(runs)))
    assert (bounds[0][0] - far.elbo(x)).abs() < 5 * bounds[0][1]
    for (lower, error), (upper, other) in itertools.pairwise(bounds):
        assert upper - lower > 5 * (error + other)
    assert bounds[-1][0] < evidence + 5 * bounds[-1][1]


def test_groups_average_bounds(far):
    x = far.simulate(B)
    torch.manual_seed(0)
    log_w = log_weights(*paired_traces(far.model, far.guide, (x,), particles=6))
    torch.manual_seed(0)
    loss = ImportanceWeighted(3, M=2).loss(far.model, far.guide, x)
    by_hand = 0.5 * (log_w[:3].exp().mean(0).log() + log_w[3:].exp().mean(0).log()).sum()
    assert loss == pytest.approx(-by_hand.item())


@pytest.mark.slow
def test_sleep_gradient_vanishes_on_average_at_the_exact_guide_alone(program):
    x = torch.zeros(5000, P)
    for exact in (True, False):
        if not exact:
            program.posterior.loc_bias.data += 0.5
        ours = torch.stack([estimate(WakeSleep(), program, x, seed)[1]["posterior.loc_bias"] for seed in range(20)])
        z = ours.mean(0) / (ours.std(0) / math.sqrt(20))
        assert (z.abs().max() < 5) == exact


# Discrete sites -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [ScoreFunction(), ScoreFunction(5), ScoreFunction(5, "leave-one-out")], ids=name)
def test_score_function_of_a_discrete_site(estimator):
    n, program = 50_000, mixture()
    x = torch.full((n,), 0.5)
    program.logits = nn.Parameter(torch.tensor([0.3, -0.2, 0.1]).repeat(n, 1))
    _, ours = estimate(estimator, program, x)
    exact = gradients(-program.elbo(x).sum(), program)
    assert_mean_is(ours["logits"], exact["logits"][0], sees=0.06)
    torch.testing.assert_close(ours["loc"], exact["loc"], rtol=0.02, atol=0.02 * exact["loc"].abs().max().item())


@pytest.mark.parametrize("estimator", [StickingTheLanding(), ImportanceWeighted(2), DoublyReparameterized(2)], ids=name)
def test_path_derivatives_refuse_a_discrete_site(estimator):
    program = mixture()
    program.logits = nn.Parameter(torch.zeros(B, 3))
    with pytest.raises(ValueError, match=r"site 'z' of the guide is not reparameterised.*ScoreFunction"):
        estimate(estimator, program, torch.zeros(B))
    assert math.isfinite(ImportanceWeighted(2).loss(program.model, program.guide, torch.zeros(B)))


def masked_by_handler(fn, seen):
    with pyro.poutine.mask(mask=seen):
        return pyro.sample("z", fn)


def masked_itself(fn, seen):
    return pyro.sample("z", fn.mask(seen))


def masked_inside_of_an_event(fn, seen):
    fn = dist.Bernoulli(logits=fn.logits.unsqueeze(-1)).mask(seen.unsqueeze(-1))
    return pyro.sample("z", fn.to_event(1)).squeeze(-1)


@pytest.mark.slow
@pytest.mark.parametrize("mask", [masked_by_handler, masked_itself, masked_inside_of_an_event])
def test_the_score_of_a_masked_site_is_that_of_its_draw(mask):
    """The model sees masked draws too, and what it makes of them depends on the logits that they were drawn by."""
    logits, seen = torch.tensor([0.2, -0.3, 0.4]).requires_grad_(), torch.tensor([True, False, False])
    x = torch.tensor([0.5, -1.0, 2.0])

    def model():
        with pyro.plate("images", 3):
            z = mask(dist.Bernoulli(torch.full((3,), 0.5)), seen)
            pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)

    def guide():
        with pyro.plate("images", 3):
            mask(dist.Bernoulli(logits=logits), seen)

    q = logits.sigmoid()
    log_px = [dist.Normal(2.0 * z, 1.0).log_prob(x) for z in (0, 1)]
    kl = kl_divergence(dist.Bernoulli(logits=logits), dist.Bernoulli(torch.full((3,), 0.5)))
    elbo = ((1 - q) * log_px[0] + q * log_px[1] - torch.where(seen, kl, 0.0)).sum()
    (expected,) = torch.autograd.grad(-elbo, logits)
    losses = [ScoreFunction(2000, "leave-one-out").differentiable_loss(model, guide) for _ in range(10)]
    ours = torch.stack([torch.autograd.grad(loss, logits)[0] for loss in losses])
    assert_mean_is(ours, expected, sees=0.1)


# Programs that are not autoencoders -----------------------------------------------------------------------------------


@pytest.fixture
def regression():
    """Bayesian logistic regression with an AutoNormal guide."""
    x = torch.randn(30, 3)
    y = torch.bernoulli((x @ torch.tensor([1.0, -1.0, 0.5])).sigmoid())

    def model(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=scale * (x * w).sum(-1)), obs=y)

    program = nn.Module()
    program.model, program.guide = model, AutoNormal(model, init_scale=0.3)
    program.guide(x, y)
    return program, x, y


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator", [StickingTheLanding(2000), ScoreFunction(20_000), ScoreFunction(2000, "leave-one-out")], ids=name
)
def test_logistic_regression_with_an_autoguide(regression, estimator):
    program, x, y = regression
    assert_same_mean(estimator, Trace_ELBO(2000, vectorize_particles=True), program, x, y, runs=20)


def test_logistic_regression_has_no_weight_for_each_image(regression):
    program, x, y = regression
    for estimator in (ImportanceWeighted(2), DoublyReparameterized(2)):
        with pytest.raises(ValueError, match=r"do not share a plate over images.*StickingTheLanding"):
            estimator.differentiable_loss(program.model, program.guide, x, y)


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator",
    [StickingTheLanding(), ImportanceWeighted(4), DoublyReparameterized(4), ScoreFunction(20, "leave-one-out")],
    ids=name,
)
def test_svi_trains_parameters_of_the_store(estimator):
    """x = 2, p(z) = N(0, 1), p(x | z) = N(z, 1): q goes to N(1, ½), and the shift of the model makes x likely."""

    def model(x):
        shift = pyro.param("shift", torch.tensor(0.0))
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + 0 * shift, 1.0), obs=x)
            pyro.sample("y", dist.Normal(shift, 1.0), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(loc, scale))

    x = torch.full((10,), 2.0)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), loss=estimator)
    losses = [svi.step(x) for _ in range(400)]
    assert all(isinstance(loss, float) for loss in losses)
    evidence = 10 * (dist.Normal(0.0, math.sqrt(2)).log_prob(x[0]) + dist.Normal(2.0, 1.0).log_prob(x[0])).item()
    assert svi.evaluate_loss(x) == pytest.approx(-evidence, rel=0.02)
    assert pyro.param("loc").item() == pytest.approx(1.0, abs=0.1)
    assert pyro.param("scale").item() == pytest.approx(math.sqrt(0.5), abs=0.1)
    assert pyro.param("shift").item() == pytest.approx(2.0, abs=0.05)


@each_estimator
def test_the_three_ways_to_a_gradient_agree(far, estimator):
    """loss_and_grads, as SVI calls it; differentiable_loss; the module of Pyro."""
    x = far.simulate(B)
    loss, expected = estimate(estimator, far, x)
    torch.manual_seed(0)
    value = estimator.loss_and_grads(far.model, far.guide, x)
    assert value == pytest.approx(loss.item(), rel=1e-12)
    assert_equal({key: p.grad for key, p in far.named_parameters()}, expected)
    torch.manual_seed(0)
    assert estimator.loss(far.model, far.guide, x) == pytest.approx(loss.item(), rel=1e-9)


@each_estimator
def test_the_guide_runs_once(far, estimator):
    calls = []
    estimate(estimator, far, far.simulate(B))  # the first run looks for the plates
    far.posterior.register_forward_hook(lambda *_: calls.append(1))
    estimate(estimator, far, far.simulate(B))
    assert len(calls) == 1


def test_a_prior_made_of_the_guide_is_the_model(program):
    """VampPrior: its use of the guide's parameters belongs to log p and keeps its gradient."""
    program.posterior = LinearPosterior(torch.randn(D, P), torch.randn(D), log_scale=torch.zeros(D))
    pseudo = torch.randn(1, P)

    def model(x):
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", program.posterior(pseudo))
            pyro.sample("x", program.likelihood(z), obs=x)

    x, stopped = program.simulate(B), copy.deepcopy(program).requires_grad_(False)
    torch.manual_seed(0)
    ours = gradients(StickingTheLanding().differentiable_loss(model, program.guide, x), program)
    torch.manual_seed(0)
    z = program.posterior(x).rsample()
    fixed = z.detach()
    of_path = stopped.posterior(pseudo).log_prob(z) + stopped.likelihood(z).log_prob(x)
    of_path = of_path - stopped.posterior(x).log_prob(z)
    of_model = program.posterior(pseudo).log_prob(fixed) + program.likelihood(fixed).log_prob(x)
    assert_equal(ours, gradients(-(of_path + of_model).sum(), program))


def test_scales_and_masks_reach_the_bound_and_its_gradient(far):
    x = far.simulate(B)
    half, mask = pyro.poutine.scale(scale=0.5), torch.tensor([True, False, True])
    for estimator in (StickingTheLanding(), ImportanceWeighted(3), DoublyReparameterized(3), ScoreFunction()):
        loss, expected = estimate(estimator, far, x)
        torch.manual_seed(0)
        scaled = estimator.differentiable_loss(half(far.model), half(far.guide), x)
        assert scaled.item() == pytest.approx(loss.item() / 2)
        if not isinstance(estimator, ScoreFunction):  # there the weight is scaled, and not the score
            assert_equal(gradients(scaled, far), {key: value / 2 for key, value in expected.items()})
    masked = pyro.poutine.mask(mask=mask)
    torch.manual_seed(0)
    loss = StickingTheLanding().differentiable_loss(masked(far.model), masked(far.guide), x)
    torch.manual_seed(0)
    log_w = log_weights(*paired_traces(far.model, far.guide, (x,)))
    assert loss.item() == pytest.approx(-log_w[0, mask].sum().item())


# What a guide scores without drawing it -------------------------------------------------------------------------------


def scoring(kind):
    """A guide that draws z and has a term besides, in parameters of its own and of z."""
    program = nn.Module()
    program.loc, program.slope, x = nn.Parameter(torch.tensor(0.4)), nn.Parameter(torch.tensor(0.7)), torch.ones(B)

    def model():
        with pyro.plate("images", B):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide():
        with pyro.plate("images", B):
            z = pyro.sample("z", dist.Normal(program.loc * x, 0.8))
            if kind == "observed":
                pyro.sample("a", dist.Normal(program.slope * z, 1.0), obs=x, infer={"is_auxiliary": True})
            elif kind == "discrete":
                pyro.sample("a", dist.Bernoulli(logits=program.slope * z), obs=x, infer={"is_auxiliary": True})
            else:
                pyro.factor("a", program.slope * z**2, **kind)

    program.model, program.guide = model, guide
    return program


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "kind"),
    [
        (StickingTheLanding(200), "observed"),
        (StickingTheLanding(200), {"has_rsample": True}),
        (StickingTheLanding(200), {"has_rsample": False}),
        (ScoreFunction(2000, "leave-one-out"), "observed"),
        (ScoreFunction(2000, "leave-one-out"), {"has_rsample": True}),
    ],
)
def test_terms_of_a_guide_that_are_no_draws_count_as_in_trace_elbo(estimator, kind):
    program, theirs = scoring(kind), Trace_ELBO(200, vectorize_particles=True)
    assert_same_mean(estimator, theirs, program, runs=20)
    both = estimator, theirs
    ours, expected = (torch.tensor([e.loss(program.model, program.guide) for _ in range(20)]) for e in both)
    assert_mean_is(ours, expected.mean(), error=expected.std() / 20**0.5, sees=0.5)


def test_terms_of_a_guide_whose_gradient_is_not_known_are_refused():
    for estimator in (StickingTheLanding(), ScoreFunction(2)):
        with pytest.raises(ValueError, match=r"factor 'a' of the guide does not say.*has_rsample=True"):
            estimator.differentiable_loss(scoring({}).model, scoring({}).guide)
        with pytest.raises(ValueError, match="site 'a' is observed by the guide, and Bernoulli has no rsample"):
            estimator.differentiable_loss(scoring("discrete").model, scoring("discrete").guide)
    with pytest.raises(ValueError, match=r"factor .a. of the guide has has_rsample=False.*StickingTheLanding"):
        program = scoring({"has_rsample": False})
        ScoreFunction(2).differentiable_loss(program.model, program.guide)


@pytest.mark.parametrize("kind", ["observed", "discrete"])
def test_what_a_guide_observes_is_no_part_of_a_weight(kind):
    program = scoring(kind)
    exact = B * dist.Normal(0.0, math.sqrt(2)).log_prob(torch.tensor(1.0)).item()
    for estimator in (ImportanceWeighted(2000), DoublyReparameterized(2000)):
        assert estimator.loss(program.model, program.guide) == pytest.approx(-exact, abs=0.1)


# Bad input ------------------------------------------------------------------------------------------------------------


def test_bad_settings():
    for wrong in (0, -1, 1.5, True, "8"):
        for estimator in (StickingTheLanding, ImportanceWeighted, DoublyReparameterized, ScoreFunction):
            with pytest.raises(ValueError, match="K: wanted a whole number of at least 1, got"):
                estimator(wrong)
    with pytest.raises(ValueError, match="M: wanted a whole number of at least 1, got 0"):
        ImportanceWeighted(2, M=0)
    assert ImportanceWeighted(np.int64(3), M=np.int32(2)).num_particles == 6
    with pytest.raises(ValueError, match="write K=2"):
        ScoreFunction(1, baseline="leave-one-out")
    with pytest.raises(ValueError, match="wanted None or"):
        ScoreFunction(2, baseline="mean")


@each_estimator
def test_sites_of_another_name_are_refused(program, estimator):
    def guide(x):
        with pyro.plate("images", len(x)):
            pyro.sample("latent", program.posterior(x))

    with pytest.raises(ValueError, match=r"only in the model: \['z'\], only in the guide: \['latent'\]"):
        estimator.differentiable_loss(program.model, guide, program.simulate(B))


def test_wake_sleep_needs_to_know_what_to_dream(program):
    with pytest.raises(ValueError, match=r"observed sites are \['x', 'y'\], wanted one"):
        two = TwoLayers()
        WakeSleep().differentiable_loss(two.model, two.guide, torch.zeros(B, P), torch.zeros(B, P))
    with pytest.raises(ValueError, match="is not the first argument"):
        WakeSleep().differentiable_loss(
            lambda n, x: program.model(x), lambda n, x: program.guide(x), torch.tensor(1), program.simulate(B)
        )


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (lambda x: pyro.sample("z", dist.Delta(x)), "no density at the points"),
        (lambda x: pyro.factor("f", pyro.sample("z", dist.Normal(x, 1.0)), has_rsample=True), "does not draw"),
        (
            lambda x: pyro.sample("z", dist.TransformedDistribution(dist.Normal(x, 1.0), [transforms.ExpTransform()])),
            "site 'z': its support",
        ),
    ],
)
def test_wake_sleep_refuses_guides_without_a_density_of_the_dream(guide, message):
    def model(x):
        with pyro.plate("images", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def in_plate(x):
        with pyro.plate("images", len(x)):
            guide(x)

    with pytest.raises(ValueError, match=message):
        WakeSleep().differentiable_loss(model, in_plate, torch.ones(B))


def test_an_analytic_kl_that_would_be_sampled_is_refused(program):
    x = program.simulate(B)
    program.posterior = mean_field_guide(program)
    check_analytic_kl(program.model, program.guide, x)
    program.posterior = FlowGuide(Planars())
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"site 'z': no closed form is registered.*StickingTheLanding"):
        check_analytic_kl(program.model, program.guide, x)
    assert torch.equal(state, torch.get_rng_state())


@each_estimator
def test_a_nan_loss_warns_as_in_pyro(program, estimator):
    program.bias.data[0] = math.nan
    with pyro.validation_enabled(False):
        with pytest.warns(UserWarning, match="Encountered NaN: loss"):
            estimator.loss(program.model, program.guide, torch.zeros(B, P))
        with pytest.warns(UserWarning, match="Encountered NaN: loss"):
            estimator.loss_and_grads(program.model, program.guide, torch.zeros(B, P))


@each_estimator
def test_without_validation_the_gradient_is_the_same(far, estimator):
    x = far.simulate(B)
    _, expected = estimate(estimator, far, x)
    with pyro.validation_enabled(False):
        _, ours = estimate(estimator, far, x)
    assert_equal(ours, expected)
