"""The control variate for draws and batches: its means are exact, and its variance falls."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoIAFNormal, AutoMultivariateNormal, AutoNormal
from torch import nn

from pyro_vae import Data, fit
from pyro_vae.estimators import JointControlVariate
from pyro_vae.linear_gaussian import LinearGaussian
from pyro_vae.tracing.base_noise import drawn_from, made_of

ROWS, SIZE, D = 12, 3, 2
NOISE = 0.5  # of y


class Regression(nn.Module):
    """w ~ N(0, I), y ~ N(x · w, NOISE²), a batch standing for all rows, and a normal guide of independent weights."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(ROWS, D, generator=generator, dtype=torch.float64)
        self.y = self.x @ torch.tensor([1.0, -2.0]) + NOISE * torch.randn(ROWS, generator=generator)
        self.loc = nn.Parameter(torch.tensor([0.3, -0.5]))
        self.log_scale = nn.Parameter(torch.tensor([-1.0, 0.2]))
        self.batches = list(zip(self.x.split(SIZE), self.y.split(SIZE)))

    def model(self, x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(D), 1.0).to_event(1))
        with pyro.plate("rows", len(x)), poutine.scale(scale=ROWS / len(x)):
            pyro.sample("y", dist.Normal(x @ w, NOISE), obs=y)

    def guide(self, x, y):
        pyro.sample("w", dist.Normal(self.loc, self.log_scale.exp()).to_event(1))

    def elbo(self):
        """The ELBO of all rows in closed form."""
        variance = (2 * self.log_scale).exp()
        off = ((self.y - self.x @ self.loc) ** 2).sum() + ((self.x**2) @ variance).sum()
        likelihood = -0.5 * off / NOISE**2 + ROWS * dist.Normal(0.0, NOISE).log_prob(torch.tensor(0.0))
        kl = 0.5 * (variance + self.loc**2 - 1 - 2 * self.log_scale).sum()
        return likelihood - kl


@pytest.fixture
def regression(float64):
    return Regression()


def slopes(total, program):
    return torch.autograd.grad(total, [program.loc, program.log_scale])


def step(elbo, program, batch):
    """Minus loss, and its slopes."""
    loss = elbo.differentiable_loss(program.model, program.guide, *batch)
    return -loss.detach(), *(-slope for slope in slopes(loss, program))


@pytest.mark.parametrize("old", [False, True])
def test_over_all_batches_and_noises_of_two_points_the_means_are_exact(regression, monkeypatch, old):
    """Two points ±1 have the moments of normal noise up to the third, and here the gradient is quadratic in it."""
    elbo = JointControlVariate(regression.batches, refresh=10**6)
    step(elbo, regression, regression.batches[0])
    if old:
        with torch.no_grad():
            regression.loc += 0.4
            regression.log_scale -= 0.3
    found = []
    for signs in itertools.product([-1.0, 1.0], repeat=D):
        monkeypatch.setattr(torch, "randn_like", lambda like, signs=signs: torch.tensor(signs))
        found += [step(elbo, regression, batch) for batch in regression.batches]
    exact = regression.elbo()
    for each, truth in zip(zip(*found), (exact.detach(), *slopes(exact, regression))):
        torch.testing.assert_close(torch.stack(each).mean(0), truth)


def test_of_a_quadratic_density_the_gradient_in_the_mean_has_no_variance(regression):
    truth = slopes(regression.elbo(), regression)[0]
    elbo = JointControlVariate(regression.batches, refresh=1)
    for batch in regression.batches * 3:
        torch.testing.assert_close(step(elbo, regression, batch)[1], truth)


def logistic(x, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(D), 1.0).to_event(1))
    with pyro.plate("rows", len(x)), poutine.scale(scale=ROWS / len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)


@pytest.mark.parametrize(
    ("autoguide", "factor"), [(AutoNormal, 500), (AutoMultivariateNormal, 500), (AutoIAFNormal, 1.2)]
)
def test_the_variance_over_draws_and_batches_falls(regression, autoguide, factor):
    """The mean of 100 steps agrees with that of Trace_ELBO within 4.5 standard errors, for about 10 numbers each."""
    batches = [(x, (y > 0).double()) for x, y in regression.batches]
    guide = autoguide(logistic)
    guide(*batches[0])
    parameters, found = list(guide.parameters()), {}
    for elbo in (Trace_ELBO(), JointControlVariate(batches, refresh=50)):
        torch.manual_seed(0)
        steps = []
        for i in range(100):
            loss = elbo.differentiable_loss(logistic, guide, *batches[i % len(batches)])
            found_slopes = torch.autograd.grad(loss, parameters, allow_unused=True)
            steps.append(torch.cat([slope.flatten() for slope in found_slopes if slope is not None]))
        found[type(elbo)] = torch.stack(steps)
    plain, controlled = found[Trace_ELBO], found[JointControlVariate]
    error = (plain.var(0) / len(plain) + controlled.var(0) / len(controlled)).sqrt()
    assert ((plain.mean(0) - controlled.mean(0)).abs() < 4.5 * error + 1e-9).all()
    assert factor * controlled.var(0).sum() < plain.var(0).sum()


def test_without_gradients_the_loss_is_that_of_the_draw(regression, monkeypatch):
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)
    scale, (x, y) = regression.log_scale.exp(), regression.batches[0]
    w = regression.loc + scale
    log_p = dist.Normal(0.0, 1.0).log_prob(w).sum() + ROWS / SIZE * dist.Normal(x @ w, NOISE).log_prob(y).sum()
    log_q = dist.Normal(regression.loc, scale).log_prob(w).sum()
    elbo = JointControlVariate(regression.batches)
    assert elbo.loss(regression.model, regression.guide, x, y) == pytest.approx((log_q - log_p).item())
    assert elbo.age == 0


def test_parameters_are_looked_at_anew_after_so_many_steps_and_stay_as_they_are(regression):
    before = {name: value.clone() for name, value in regression.state_dict().items()}
    elbo, looks = JointControlVariate(regression.batches), []
    look = elbo._look
    elbo._look = lambda *args: looks.append(elbo.age) or look(*args)
    for batch in regression.batches * 2 + regression.batches[:1]:
        step(elbo, regression, batch)
    assert looks == [0, 4, 8]
    assert all(torch.equal(value, before[name]) for name, value in regression.state_dict().items())


def test_parameters_stay_as_they_are_where_a_model_fails(regression):
    elbo = JointControlVariate(regression.batches, refresh=100)
    step(elbo, regression, regression.batches[0])
    with torch.no_grad():
        regression.loc += 1.0
    kept, calls = regression.loc.detach().clone(), []

    def model(x, y):
        calls.append(None)
        if len(calls) == 2:
            raise RuntimeError("no")
        regression.model(x, y)

    with pytest.raises(RuntimeError, match="no"):
        elbo.differentiable_loss(model, regression.guide, *regression.batches[0])
    assert torch.equal(regression.loc, kept)


def test_statistics_of_batches_move_once_a_step_and_a_frozen_parameter_rests(regression):
    """The control variate is that of evaluation mode."""
    norm = nn.BatchNorm1d(D)

    def model(x, y):
        regression.model(norm(x), y)

    elbo = JointControlVariate(regression.batches)
    for count, batch in enumerate(regression.batches, 1):
        elbo.loss_and_grads(model, regression.guide, *batch)
        assert norm.num_batches_tracked == count
        norm.bias.requires_grad_(count == 1)
        norm.zero_grad()
    assert norm.training and norm.bias.grad is None and norm.weight.grad is None
    elbo.loss_and_grads(model, regression.guide, *regression.batches[0])
    assert norm.bias.grad is None and norm.weight.grad.isfinite().all()


DRAWN = {
    "normal": lambda: dist.Normal(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 3.0])).to_event(1),
    "masked": lambda: dist.Normal(torch.zeros(2), 2.0).mask(torch.tensor([True, False])).to_event(1),
    "correlated": lambda: dist.MultivariateNormal(torch.ones(2), torch.tensor([[2.0, 0.5], [0.5, 1.0]])),
    "low rank": lambda: dist.LowRankMultivariateNormal(torch.ones(2), torch.ones(2, 1), torch.ones(2)),
    "log-normal": lambda: dist.LogNormal(torch.zeros(2), 0.5),
    "simplex": lambda: dist.TransformedDistribution(
        dist.Normal(torch.zeros(2), 1.0), [dist.transforms.StickBreakingTransform()]
    ),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_draw_is_that_of_the_uniform_numbers_of_its_noise(name, float64):
    fn, uniforms = DRAWN[name](), torch.tensor([0.3, 0.9])
    noise = torch.special.ndtri(uniforms)
    torch.testing.assert_close(made_of(fn, lambda like: noise), drawn_from(fn, uniforms))


def test_other_noise_than_gaussian_is_refused(regression):
    def guide(x, y):
        pyro.sample("w", dist.Laplace(regression.loc, 1.0).to_event(1))

    elbo = JointControlVariate(regression.batches)
    with pytest.raises(ValueError, match=r"Laplace is no map of Gaussian noise.*AutoNormal"):
        elbo.differentiable_loss(regression.model, guide, *regression.batches[0])


def test_rows_that_the_program_draws_itself_are_refused():
    def model(y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y), subsample_size=2) as index:
            pyro.sample("y", dist.Normal(w, 1.0), obs=y[index])

    y = torch.zeros(4)
    svi = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.1}), JointControlVariate([(y,)]))
    with pytest.raises(ValueError, match="the plate 'rows' draws its rows itself"):
        svi.step(y)


@pytest.mark.parametrize("batches", [[], [torch.zeros(3)]])
def test_batches_are_tuples_of_arguments(batches):
    with pytest.raises(ValueError, match="batches: wanted the arguments of model and guide for each batch"):
        JointControlVariate(batches)


def test_fit_refuses_what_no_checkpoint_keeps():
    program = LinearGaussian(torch.ones(4, 1), shape=(1, 2, 2))
    data = Data.from_arrays(torch.zeros(20, 1, 2, 2, dtype=torch.uint8))
    with pytest.raises(ValueError, match="JointControlVariate keeps a state from step to step"):
        fit(program, data, JointControlVariate([(torch.zeros(2, 1, 2, 2),)]))


def test_a_guide_of_points_has_the_noise_of_batches_alone(regression):
    guide = AutoDelta(regression.model)
    guide(*regression.batches[0])
    elbo = JointControlVariate(regression.batches)
    found = torch.stack(
        [
            slope
            for batch in regression.batches
            for slope in torch.autograd.grad(
                elbo.differentiable_loss(regression.model, guide, *batch), list(guide.parameters())
            )
        ]
    )
    torch.testing.assert_close(found, found[:1].expand_as(found))  # as v is w, no batch differs from the mean
