"""Imputation against the conditional moments of a Gaussian, which are known, and against enumeration."""

from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from monte_carlo import assert_estimate_is
from programs import DIGITS, linear_gaussian, small_vae
from torch import nn

from pyro_vae import fixed_x, likelihoods
from pyro_vae.data import Split
from pyro_vae.distributions.pixels import BinCentres, LogisticLevels
from pyro_vae.evidence import log_evidence
from pyro_vae.handlers import KLWeighted
from pyro_vae.imputation import UntrustedImputation, impute, moments_of, weighted_moments
from pyro_vae.linear_gaussian import LinearPosterior
from pyro_vae.missing import Masked

MASK = torch.tensor([[True, False, True, True, False], [False, True, True, False, False], [True] * 5, [False] * 5])


def gaussian():
    """Probabilistic PCA of five columns, the prior as its guide; four rows with holes."""
    program = linear_gaussian()
    program.posterior = LinearPosterior(*(torch.zeros(n).double() for n in ((2, 5), 2)), log_scale=torch.zeros(2))
    return program, torch.where(MASK, program.simulate(4), torch.nan)


def conditional(program, x, seen):
    """Mean and standard deviation of each missing value of one row given the seen ones."""
    weight, bias = program.weight.detach(), program.bias.detach()
    covariance = weight @ weight.T + program.variance().detach() * torch.eye(5)
    gain = covariance[~seen][:, seen] @ torch.linalg.pinv(covariance[seen][:, seen])
    rest = covariance[~seen][:, ~seen] - gain @ covariance[seen][:, ~seen]
    return bias[~seen] + gain @ (x[seen] - bias[seen]), rest.diagonal().sqrt()


def test_the_conditional_mean_and_standard_deviation_of_a_gaussian():
    program, x = gaussian()
    found = impute(Masked(program), (x, MASK), particles=50_000)
    for row, seen in enumerate(MASK):
        assert torch.equal(found.x[row, seen], x[row, seen])
        assert not found.standard_deviation[row, seen].any() and not found.standard_error[row, seen].any()
        mean, sd = conditional(program, x[row], seen)
        if not seen.all():
            assert_estimate_is(found.x[row, ~seen], mean, found.standard_error[row, ~seen], sees=0.2)
        torch.testing.assert_close(found.standard_deviation[row, ~seen], sd, rtol=0.02, atol=0)
    assert not found.untrusted.any()


def test_the_standard_error_is_that_of_repeats():
    program, x = gaussian()
    many = Masked(program), (x[:1].repeat(500, 1), MASK[:1].repeat(500, 1))
    found = impute(*many, particles=400)
    spread, told = found.x[:, ~MASK[0]].std(0), found.standard_error[:, ~MASK[0]].square().mean(0).sqrt()
    torch.testing.assert_close(told, spread, rtol=0.15, atol=0)


def test_its_evidence_is_that_of_log_evidence_and_seeds_decide():
    program, x = gaussian()
    found = impute(Masked(program), (x, MASK), particles=2000, seed=3)
    other = log_evidence(Masked(program), (x, MASK), 2000, seed=3)
    torch.testing.assert_close(found.evidence.log_px, other.log_px)
    state = torch.get_rng_state()
    again = impute(KLWeighted(Masked(program), 0.5), (x.nan_to_num(7.0), MASK), particles=2000, seed=3)
    assert torch.equal(found.x, again.x) and torch.equal(state, torch.get_rng_state())
    assert not torch.equal(found.x, impute(Masked(program), (x, MASK), particles=2000, seed=4).x)
    assert program.training


@pytest.mark.parametrize("hole", [torch.nan, torch.inf, -1e30])
@pytest.mark.parametrize(
    "family, maps", [(likelihoods.Bernoulli, 1), (likelihoods.Beta, 2), (likelihoods.Categorical, 16)]
)
@pytest.mark.filterwarnings("ignore::pyro_vae.imputation.UntrustedImputation")
def test_what_is_missing_changes_nothing(family, maps, hole):
    vae = small_vae(family=family, maps=maps)
    x = vae.observe(DIGITS.train.images[:4], torch.Generator().manual_seed(0))
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    found, other = (impute(Masked(vae), (torch.where(mask, x, value), mask), 50) for value in (0.5, hole))
    assert torch.equal(found.x, other.x) and found.x.isfinite().all() and (found.standard_deviation >= 0).all()
    assert torch.equal(found.standard_deviation, other.standard_deviation)
    assert torch.equal(found.evidence.log_px, other.evidence.log_px)


class Switch(nn.Module):
    """z in {0, 1}, given which two Poisson counts are independent; the guide is uniform."""

    rates = torch.tensor([[1.0, 9.0], [8.0, 2.0]]).double()

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def model(self, x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3).double()))
            pyro.sample("x", dist.Poisson(self.rates[z.long()]).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Bernoulli(torch.tensor(0.5).double()))


def test_counts_against_enumeration():
    x, mask = torch.tensor([[3.0, 0.0], [6.0, 0.0]]).double(), torch.tensor([[True, False]] * 2)
    found = impute(Masked(Switch()), (x, mask), particles=20_000)
    rates, prior = Switch.rates, torch.tensor([0.7, 0.3]).double()
    weight = (dist.Poisson(rates[:, 0]).log_prob(x[:, :1]) + prior.log()).softmax(-1)
    mean = weight @ rates[:, 1]
    sd = (weight @ (rates[:, 1] + rates[:, 1] ** 2) - mean**2).sqrt()
    assert_estimate_is(found.x[:, 1], mean, found.standard_error[:, 1], sees=0.5)
    torch.testing.assert_close(found.standard_deviation[:, 1], sd, rtol=0.03, atol=0)


@pytest.mark.parametrize(
    "fn", [BinCentres(torch.randn(1, 16)), LogisticLevels(torch.tensor([0.3]), torch.tensor([-2.0]))]
)
def test_draws_take_the_place_of_a_missing_closed_form(fn):
    """One draw a particle has the variance of the distribution on average."""
    torch.manual_seed(0)
    many = fn.expand([20_000])
    mean, variance = moments_of(many)
    assert variance.mean() == pytest.approx(many.sample().var().item(), rel=0.05)
    assert mean[0] == pytest.approx(many.sample().mean().item(), abs=0.02)


@pytest.mark.slow
def test_nan_is_missing_where_the_program_says_so_itself():
    """A program that masks NaN by itself, with its particles one after the other."""

    class Own(Switch):
        def model(self, x):
            with pyro.plate("rows", len(x)):
                z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3).double()))
                assert z.dim() == 1
                fn = dist.Poisson(self.rates[z.long()]).mask(~x.isnan()).to_event(1)
                pyro.sample("x", fn, obs=x.nan_to_num(0))

    x = torch.tensor([[3.0, torch.nan], [6.0, torch.nan]]).double()
    found = impute(Own(), x, particles=300)
    other = impute(Masked(Switch()), (x, ~x.isnan()), particles=20_000)
    assert_estimate_is(
        found.x[:, 1], other.x[:, 1], torch.hypot(found.standard_error, other.standard_error)[:, 1], sees=2.0
    )
    with pytest.raises(ValueError, match="nothing is missing in 2 rows; a missing value is NaN in x"):
        impute(Own(), x.nan_to_num(0))


@pytest.mark.parametrize("particles", [1, 50])
@pytest.mark.filterwarnings("ignore::pyro_vae.imputation.UntrustedImputation")
def test_a_distribution_may_say_itself_what_its_average_is(particles):
    """As a row with categories does, by the most probable level."""

    class Largest(dist.Independent):
        def expand(self, batch_shape, _instance=None):
            return Largest(self.base_dist.expand((*batch_shape, *self.event_shape)), 1)

        def average(self, weights):
            assert weights.shape == self.batch_shape == (particles, 2)
            torch.testing.assert_close(weights.sum(0), torch.ones(2).double())
            return self.mean.amax(0), torch.full((2, 2), 3.0), torch.full((2, 2), 4.0)

    class Program(Switch):
        def model(self, x):
            with pyro.plate("rows", len(x)):
                z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3).double()))
                rates = torch.where(z[..., None] > 0, self.rates[1], self.rates[0])
                fn = Largest(dist.Poisson(rates).mask(~x.isnan()), 1)
                pyro.sample("x", fn, obs=x.nan_to_num(0))

    x = torch.tensor([[3.0, torch.nan], [6.0, torch.nan]]).double()
    found = impute(Program(), x, particles)
    assert found.x[:, 0].tolist() == [3, 6] and set(found.x[:, 1].tolist()) <= {9, 2}
    assert found.standard_deviation.tolist() == [[0, 3]] * 2 and found.standard_error.tolist() == [[0, 4]] * 2

    class OneByOne(Program):
        def model(self, x):
            with pyro.plate("rows", len(x)):
                z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3).double())).reshape(len(x))
                fn = Largest(dist.Poisson(self.rates[z.long()]).mask(~x.isnan()), 1)
                pyro.sample("x", fn, obs=x.nan_to_num(0))

    with pytest.raises(ValueError, match="site 'x': a Largest is averaged over particles that run together"):
        impute(OneByOne(), x, particles)


def test_weights_that_underflow_in_one_row_leave_the_others():
    log_w = torch.tensor([[-2000.0, 0.0], [-2001.0, 0.0]])
    mean = torch.tensor([[[1.0], [1.0]], [[3.0], [3.0]]])
    centre, sd, error = weighted_moments(log_w, mean, torch.zeros_like(mean))
    share = torch.tensor(-1.0).double().sigmoid()
    torch.testing.assert_close(centre[0, 0], 1 + 2 * share)
    assert centre[1, 0] == 2 and sd[1, 0] == 1 and error.isfinite().all()


def test_rows_that_cannot_be_trusted():
    program, x = gaussian()
    with pytest.warns(UntrustedImputation, match="fewer than 10 effective particles for 3 of 4 rows"):
        found = impute(Masked(program), (x, MASK), particles=5)
    assert found.untrusted.tolist() == [True, True, False, True]
    assert "10 of 20 values imputed" in str(found) and "3 of 4 rows cannot be trusted" in str(found)
    ratio = (found.standard_error / found.standard_deviation)[~MASK].mean()  # has no unit, as columns may differ in it
    assert f"{ratio:.1%} of a value's standard deviation, on average" in str(found)
    certain = replace(found, standard_deviation=torch.zeros(4, 5), standard_error=torch.zeros(4, 5))
    assert "0.0% of a value's standard deviation" in str(certain)


def test_bad_input():
    program, x = gaussian()
    with pytest.raises(ValueError, match="mask: wanted a bool tensor of the shape of x, got NoneType"):
        impute(Masked(program), x)
    with pytest.raises(ValueError, match="nothing is missing in 4 rows; a missing value is False in the mask"):
        impute(Masked(program), (x, torch.ones_like(MASK)))
    with pytest.raises(ValueError, match=r"data: wanted a Split, or x, a float tensor, .* got ndarray"):
        impute(Masked(program), x.numpy())
    with pytest.raises(ValueError, match="particles: wanted a whole number of at least 1, got 0"):
        impute(Masked(program), (x, MASK), 0)
    with pytest.raises(ValueError, match="site 'x': the model observes"):
        impute(constant("y", dist.Normal(0.0, 1.0)), x)
    with pytest.raises(ValueError, match="site 'x': a Cauchy distribution has no mean"):
        impute(constant("x", dist.Cauchy(0.0, 1.0)), x)


def constant(site, fn):
    """A program whose x does not depend on z."""

    class Other(Switch):
        def model(self, x):
            with pyro.plate("rows", len(x)):
                pyro.sample("z", dist.Bernoulli(torch.tensor(0.3).double()))
                pyro.sample(site, fn.expand([5]).to_event(1), obs=x.nan_to_num(0))

    return Other()


def test_a_split_is_observed_by_the_seed():
    images = DIGITS.test.images[:4]
    batch = Split(images, mask=torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) < 0.7)
    program = Masked(small_vae())
    args = fixed_x(program, batch, 5)
    found, other = impute(program, batch, 200, seed=5), impute(program, args, 200, seed=5)
    assert torch.equal(found.x, other.x)


@pytest.mark.parametrize("masked", [False, True])
def test_a_site_that_observes_a_function_of_x_is_refused(masked):
    """Its imputed values would be in other units than those that were seen."""

    class Standardised(nn.Module):
        def draw(self, x, model):
            with pyro.plate("rows", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                p = dist.Normal(z[..., None].expand(*z.shape, 3), 0.5)
                if model:
                    value = (x.nan_to_num() - 170) / 10
                    pyro.sample("x", (p if masked else p.mask(~x.isnan())).to_event(1), obs=value)

        def model(self, x):
            self.draw(x, True)

        def guide(self, x):
            self.draw(x, False)

    x = torch.tensor([[180.0, 175.0, torch.nan], [165.0, torch.nan, 160.0]])
    program, args = (Masked(Standardised()), (x, ~x.isnan())) if masked else (Standardised(), (x,))
    with pytest.raises(ValueError, match="site 'x': wanted it to observe x itself"):
        impute(program, args, particles=5)


def test_a_site_that_observes_x_transposed_is_refused():
    class Transposed(nn.Module):
        def model(self, x):
            with pyro.plate("rows", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                with pyro.plate("columns", 3, dim=-2):
                    pyro.sample("x", dist.Normal(z, 1.0).mask(~x.T.isnan()), obs=x.T.nan_to_num())

        def guide(self, x):
            with pyro.plate("rows", len(x), dim=-1):
                pyro.sample("z", dist.Normal(0.0, 1.0))

    for rows in (3, 5):
        x = torch.randn(rows, 3)
        x[0, 1] = torch.nan
        with pytest.raises(ValueError, match="transposed x"):
            impute(Transposed(), x, particles=5)
