"""Bound, rate and distortion of images: their values, and what is refused."""

import copy
from dataclasses import FrozenInstanceError

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from enumerated_programs import LABELS, MixtureOfFactors, OfTheModel, X
from monte_carlo import assert_estimate_is
from programs import FEW, quick, small_vae, with_rate
from torch import nn

from pyro_vae import Data, Split, evaluate, fit, likelihoods
from pyro_vae.comparison import compare_estimators
from pyro_vae.errors import NoBound
from pyro_vae.estimators import StickingTheLanding
from pyro_vae.linear_gaussian import LinearGaussian
from pyro_vae.training import fixed_x
from pyro_vae.training.evaluation import Evaluation, own_part


@pytest.mark.slow
def test_evaluate_is_the_mean_log_weight_of_every_image():
    vae = with_rate(small_vae())
    x = fixed_x(vae, FEW.test.images)
    evaluation = evaluate(vae, x, particles=400, batch_size=33)
    with torch.no_grad():
        q = vae.posterior(x)
        rate = torch.distributions.kl_divergence(q, vae.prior().expand(q.batch_shape))
        z = q.sample((4000,))
        rates, distortions = q.log_prob(z) - vae.prior().log_prob(z), -vae.likelihood(z).log_prob(x)
    assert evaluation.bound.shape == (100,) and evaluation.bound.dtype == torch.float64
    distortion, (rates, distortions) = distortions.mean(0), (part.std(0) / 400**0.5 for part in (rates, distortions))
    assert_estimate_is(evaluation.rate, rate, rates, sees=rate.mean())
    assert_estimate_is(evaluation.distortion, distortion, 1.1 * distortions, sees=rate.mean())
    assert_estimate_is(evaluation.rate.mean(), rate.mean(), rates.norm() / 100, sees=rate.mean() / 20)
    assert_estimate_is(evaluation.distortion.mean(), distortion.mean(), 1.1 * distortions.norm() / 100, sees=0.1)


def test_evaluate_changes_nothing_and_raises_on_nan():
    vae = small_vae()
    before, x = copy.deepcopy(vae.state_dict()), fixed_x(vae, FEW.test.images)
    state = torch.get_rng_state()
    assert torch.equal(evaluate(vae, x).bound, evaluate(vae, x).bound)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert all(parameter.grad is None for parameter in vae.parameters())
    vae.likelihood.network.layers[-2].bias.data[5] = torch.nan
    with pyro.validation_enabled(False), pytest.raises(FloatingPointError, match="100 of 100 images is not finite"):
        evaluate(vae, x)


def test_x_of_held_out_images_is_drawn_once():
    vae = small_vae()
    assert torch.equal(fixed_x(vae, FEW.test.images), fixed_x(vae, FEW.test.images))
    assert not torch.equal(vae.observe(FEW.test.images), vae.observe(FEW.test.images))


def test_a_double_program_whose_bound_is_known():
    torch.manual_seed(0)
    program = LinearGaussian(torch.randn(64, 2, dtype=torch.float64) / 8)
    program.observe = lambda pixels, generator=None: pixels.flatten(1) / 255
    x = fixed_x(program, FEW.test.images)
    assert x.dtype == torch.float64
    # The guide is exact.
    torch.testing.assert_close(evaluate(program, x).bound, program.log_px(x).detach(), rtol=1e-10, atol=0.0)
    quick(program, epochs=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"particles": 0}, "particles: wanted a whole number of at least 1, got 0"),
        ({"particles": -1}, "particles"),
        ({"particles": 2.0}, "particles"),
        ({"particles": True}, "particles"),
        ({"batch_size": 0}, "batch_size: wanted"),
        ({"batch_size": 1.5}, "batch_size"),
        ({"seed": 0.5}, "seed"),
        ({"seed": "0"}, "seed"),
    ],
)
def test_numbers_that_evaluate_refuses(settings, message):
    vae = small_vae()
    with pytest.raises(ValueError, match=message):
        evaluate(vae, fixed_x(vae, FEW.test.images), **settings)


@pytest.mark.parametrize("x", [torch.zeros(0, 1, 8, 8), torch.tensor(0.5), np.zeros((3, 1, 8, 8)), (), None])
def test_images_that_evaluate_refuses(x):
    with pytest.raises(ValueError, match=r"x: wanted a tensor .* with at least one image, got"):
        evaluate(small_vae(), x)


class Weighted(nn.Module):
    """A program in which images have a weight of their own."""

    def __init__(self):
        super().__init__()
        self.vae = small_vae()
        self.vae.likelihood.binarize = likelihoods.threshold
        self.observe = self.vae.observe

    def model(self, x):
        with pyro.poutine.scale(scale=weight(x)):
            return self.vae.model(x)

    def guide(self, x):
        with pyro.poutine.scale(scale=weight(x)):
            return self.vae.guide(x)


def weight(x):
    return 0.5 + (x.mean((1, 2, 3)) > 0.3)


@pytest.mark.slow
def test_a_weight_of_single_images_is_trained_and_divided_out_of_the_bound():
    program = Weighted()
    x = fixed_x(program, FEW.valid.images)
    torch.testing.assert_close(evaluate(program, x).bound, evaluate(program.vae, x).bound)
    assert weight(x).unique().tolist() == [0.5, 1.5]
    history = quick(program, epochs=3, batch_size=100)
    kept = history.rows[history.kept_epoch - 1]
    evaluation = evaluate(program.vae, x)
    assert kept["valid_bound"] == pytest.approx(evaluation.bound.mean().item())
    assert kept["valid_objective"] == pytest.approx((weight(x) * evaluation.bound).mean().item(), rel=1e-6)


def test_a_program_is_evaluated_as_it_is_used_after_training():
    """Without dropout, and whatever arguments follow x."""
    program = small_vae()
    x, dropped = fixed_x(program, FEW.test.images)[:7], copy.deepcopy(program)
    dropped.posterior.network = nn.Sequential(dropped.posterior.network, nn.Dropout(0.5))
    expected = evaluate(program, x).bound
    torch.testing.assert_close(evaluate(dropped, x).bound, expected)
    assert dropped.training
    dropped.model, dropped.guide = (lambda x, y, of=of: of(x) for of in (program.model, program.guide))
    torch.testing.assert_close(evaluate(dropped, (x, torch.tensor(2.0))).bound, expected)


class Points(nn.Module):
    """z ~ N(0, 0.01) of each row, x ~ N(z, 1), and a guide that is the point θ."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(0.01))

    def model(self, x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 0.01))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Delta(self.theta.expand(len(x))))

    def observe(self, batch, generator=None):
        return batch.table[:, 0]


def test_a_guide_of_single_points_has_no_bound_which_each_call_says_once():
    program, x = Points(), torch.linspace(-1, 1, 20)
    with pytest.warns(NoBound, match=r"at the sites \['z'\]: what is called the bound is log p\(x, z\)") as said:
        evaluation = evaluate(program, x, batch_size=7)
    assert len(said) == 1 and evaluation.points == ("z",) and "* no bound on log p(x)" in str(evaluation)
    assert said[0].filename == __file__
    joint = dist.Normal(0.0, 0.01).log_prob(program.theta) + dist.Normal(program.theta, 1.0).log_prob(x)
    torch.testing.assert_close(evaluation.bound, joint.detach().double())
    with pytest.warns(NoBound) as said:
        compared = compare_estimators(program, x, estimators={"STL": StickingTheLanding()}, draws=2, progress=False)
    assert len(said) == 1 and not compared.estimators["STL"].is_bound and "without a density" in compared.no_bound
    split = Split(table=x[:, None])
    with pytest.warns(NoBound) as said:
        fit(program, Data("rows", split, split, split), epochs=3, lr=1e-3, engine="eager", progress=False)
    assert len(said) == 1


def test_the_part_of_a_single_process_is_all_rows():
    x, y = torch.randn(5, 2), torch.arange(5)
    for args in ((x,), (x, y), (x, torch.tensor(1.0))):
        assert all(map(torch.equal, own_part(args), args))


def test_a_mean_of_one_image_has_no_error():
    one, two = (Evaluation(torch.arange(1.0, n + 1), torch.zeros(n)) for n in (1, 2))
    assert repr(one) == "Evaluation(bound -1.000, rate 1.000, distortion 0.000 nats per image, n = 1)"
    assert "bound -1.500 ± 0.500" in repr(two) and "±" not in str(one)
    with pytest.raises(FrozenInstanceError):
        one.rate = two.rate  # a measurement is not changed


@pytest.mark.slow
@pytest.mark.parametrize("particles", [1, 3])
def test_enumerated_sites_are_summed_out_exactly(particles):
    program = MixtureOfFactors()
    found = evaluate(program, (X, LABELS), particles=particles)
    assert torch.allclose(found.bound, program.log_px(X, LABELS).detach())  # the guide is exact, so nothing varies
    found = evaluate(MixtureOfFactors(off=0.3), (X, LABELS), particles=2000)
    drawn = evaluate(MixtureOfFactors(off=0.3, mark=None), (X, LABELS), particles=20_000)
    for one, other in ((found.rate, drawn.rate), (found.distortion, drawn.distortion)):
        assert torch.allclose(one, other, atol=0.08)


def test_a_site_of_the_model_alone_is_summed_out_in_batches():
    x = torch.linspace(-2, 3, 7).double()
    found = evaluate(OfTheModel(), x, particles=3, batch_size=4)
    expected = evaluate(OfTheModel(mixture=True), x, particles=3, batch_size=4)
    assert torch.allclose(found.rate, expected.rate) and torch.allclose(found.distortion, expected.distortion)
