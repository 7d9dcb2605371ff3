"""Another guide for a trained program: the model stays as it is to the bit, and the estimates of p(x) unbiased."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from monte_carlo import assert_mean_is
from programs import FEW, small_vae
from torch import nn

from pyro_vae import VAE, Averaged, evaluate, guides, likelihoods, log_evidence, networks, priors
from pyro_vae.data import Data, Split
from pyro_vae.evidence import refit_guide
from pyro_vae.evidence.refitting import HeldModel
from pyro_vae.guides import FullRank, MeanField
from pyro_vae.handlers import KLWeighted
from pyro_vae.linear_gaussian import LinearGaussian
from pyro_vae.sites import parameter_sites

P, D = 5, 3
QUICK = {"progress": False, "lr": 1e-2, "batch_size": 50}


def linear_vae(prior=None):
    """x = W z + noise, whose posterior is a normal of correlated dimensions, with an untrained mean-field guide."""
    torch.manual_seed(0)
    network = networks.MLPDecoder(D, (P,), maps=P, hidden=())
    nn.init.normal_(network.layers[0].weight)
    vae = VAE(
        prior or priors.StandardNormal(D),
        likelihoods.RealNormal(network, log_scale=-0.5),
        MeanField(networks.MLPEncoder((P,), hidden=()), D),
    )
    return vae.double()


def oracle(vae):
    """The program of the same p(x), where log p(x) is known."""
    layer = vae.likelihood.network.layers[0]
    return LinearGaussian(layer.weight.detach(), layer.bias.detach(), scale=vae.likelihood.log_scale.exp().item())


def rows(program, n=400, seed=1):
    torch.manual_seed(seed)
    return Split(table=program.simulate(n))


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_a_full_rank_guide_is_fitted_to_the_exact_posterior_and_the_model_is_left_alone():
    vae = linear_vae()
    truth, before = oracle(vae), state(vae)
    data = Data("rows", rows(truth), rows(truth, seed=2), rows(truth, 200, seed=3))
    factorised = copy.deepcopy(vae.posterior)
    refitted, limited = (
        refit_guide(vae, data, guide, epochs=30, **{**QUICK, "lr": 0.05}) for guide in (None, factorised)
    )
    assert same(before, state(vae)) and isinstance(refitted.posterior, FullRank)
    assert all(parameter.requires_grad for parameter in [*vae.parameters(), *refitted.parameters()])
    assert same(state(vae.likelihood), state(refitted.likelihood)) and refitted.likelihood is not vae.likelihood
    x = data.test.table
    gaps = [(truth.log_px(x) - evaluate(program, x).bound).mean() for program in (refitted, limited)]
    assert gaps[0] < 0.02 < 0.2 < gaps[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pyro_vae.UntrustedEvidence")  # of single rows
def test_a_guide_refitted_on_the_measured_rows_gives_unbiased_estimates():
    """The mean of p̂(x) / p(x), over rows and seeds, is 1; the z-scores of log p̂ are those of its standard errors."""
    vae = linear_vae()
    truth = oracle(vae)
    measured = rows(truth, 100)
    refitted = refit_guide(vae, measured, epochs=100, **QUICK)
    log_px = truth.log_px(measured.table).detach()
    runs = [log_evidence(refitted, measured, 50, seed=seed, progress=False) for seed in range(20)]
    ratio = torch.cat([(run.log_px - log_px).exp() for run in runs])
    assert_mean_is(ratio, 1.0, sees=0.1)
    covered = torch.cat([(run.log_px - log_px).abs() < 1.96 * run.standard_error for run in runs]).double()
    assert_mean_is(covered, 0.95, sees=0.05)


def test_the_full_rank_guide_starts_as_the_mean_field_one():
    mean_field = MeanField(networks.MLPEncoder((1, 4, 4), hidden=(7,)), 3)
    x = torch.rand(5, 1, 4, 4)
    started, q = FullRank.started_at(mean_field)(x), mean_field(x)
    assert torch.equal(started.mean, q.mean)
    assert torch.allclose(started.covariance_matrix, torch.diag_embed(q.variance))
    assert FullRank.started_at(mean_field).network is not mean_field.network


@pytest.mark.slow
def test_any_other_posterior_is_trained_further_as_a_copy():
    vae = linear_vae()
    vae.posterior = guides.LowRank(networks.MLPEncoder((P,), hidden=()), D, rank=1).double()
    measured = rows(oracle(vae))
    refitted = refit_guide(vae, measured, epochs=3, **QUICK)
    assert isinstance(refitted.posterior, guides.LowRank)
    assert evaluate(refitted, measured).bound.mean() > evaluate(vae, measured).bound.mean() + 0.5


def test_a_prior_that_holds_the_posterior_keeps_the_old_one():
    vae = small_vae()
    vae.prior = priors.Vamp(vae.posterior, FEW.train.images[:4] / 255)
    z = torch.randn(6, *vae.prior().event_shape)
    before = vae.prior().log_prob(z)
    refitted = refit_guide(vae, FEW, epochs=2, **QUICK)
    assert torch.equal(refitted.prior().log_prob(z), before)
    assert torch.equal(vae.prior().log_prob(z), before)


class Own(nn.Module):
    """A program without an attribute ``posterior``: a scalar z for each row, x ~ N(z, 1)."""

    def __init__(self, shares=False):
        super().__init__()
        self.shift, self.loc = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.shares = shares

    def model(self, x):
        parameter_sites(self)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(self.shift, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        parameter_sites(self)
        with pyro.plate("rows", len(x)):
            return pyro.sample("z", dist.Normal(self.shift if self.shares else self.loc, 1.0))

    def observe(self, batch, generator=None):
        return batch.value


class Affine(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.log_scale = (nn.Parameter(torch.zeros(())) for _ in range(3))

    def forward(self, x):
        parameter_sites(self)
        with pyro.plate("rows", len(x)):
            return pyro.sample("z", dist.Normal(self.a * x + self.b, self.log_scale.exp()))


@pytest.mark.slow
def test_a_program_of_ones_own_takes_a_module_that_samples_its_sites():
    torch.manual_seed(5)  # not the seed of the draws
    program, measured = Own(), Split(value=2**0.5 * torch.randn(300))
    refitted = refit_guide(program, measured, Affine(), epochs=60, progress=False, lr=3e-2, batch_size=50)
    assert refitted.proposal.a.item() == pytest.approx(0.5, abs=0.03)
    assert refitted.proposal.log_scale.exp().item() == pytest.approx(0.5**0.5, abs=0.03)
    evidence = log_evidence(refitted, measured, 100, progress=False)
    exact = dist.Normal(0.0, 2**0.5).log_prob(measured.value)
    assert torch.allclose(evidence.log_px.float(), exact, atol=0.02)
    assert program.shift.item() == refitted.program.shift.item() == 0


@pytest.mark.parametrize(
    ("program", "guide", "message"),
    [
        (Own(shares=True), None, "guide: it shares the parameters shift with the model"),
        (Own().requires_grad_(False), None, "guide: it has no parameter that can be trained"),
        (Own(), lambda x: None, "guide: wanted a module, .* got function"),
    ],
)
def test_what_cannot_be_refitted_is_refused(program, guide, message):
    with pytest.raises(ValueError, match=message):
        refit_guide(program, Split(value=torch.zeros(10)), guide, epochs=1, progress=False)


def test_modules_of_the_model_compute_as_in_evaluation_while_the_guide_is_trained():
    vae = linear_vae()
    vae.likelihood.network.layers.insert(0, nn.BatchNorm1d(D).double())
    vae.posterior.network.layers.insert(1, nn.BatchNorm1d(P).double())
    vae.likelihood.requires_grad_(False)
    held = HeldModel(copy.deepcopy(vae)).train()
    assert not held.program.likelihood.network.layers[0].training and held.program.posterior.network.layers[1].training


def with_batch_norm(program):
    """Give the decoder BatchNorm and dropout, and its means those of one batch."""
    layers = [nn.Linear(D, 7), nn.BatchNorm1d(7), nn.Dropout(0.5), nn.Linear(7, P)]
    program.likelihood.network = nn.Sequential(*layers).double()
    program.likelihood(torch.randn(9, D).double())
    return program


def test_buffers_modes_and_random_numbers_are_left_alone():
    vae = with_batch_norm(linear_vae())
    vae.posterior.network.eval()
    measured, before, random = rows(oracle(linear_vae()), 60), state(vae), torch.get_rng_state()
    refitted = refit_guide(vae, measured, epochs=1, **QUICK)
    assert same(before, state(vae)) and same(state(vae.likelihood), state(refitted.likelihood))
    assert torch.equal(random, torch.get_rng_state())
    for one, other in ((vae.likelihood, refitted.likelihood), (vae.posterior.network, refitted.posterior.network)):
        assert [module.training for module in one.modules()] == [module.training for module in other.modules()]
    assert all(module.training for module in vae.likelihood.modules())
    assert not any(module.training for module in refit_guide(vae.eval(), measured, epochs=1, **QUICK).modules())


def with_an_encoder():
    """The program of ``linear_vae`` with a guide whose network has parameters."""
    vae = linear_vae()
    vae.posterior = MeanField(networks.MLPEncoder((P,), hidden=(4,)), D).double()
    return vae


def test_a_guide_with_the_programs_encoder_is_trained_as_a_copy():
    vae = with_an_encoder()
    before = state(vae)
    guide = guides.LowRank(vae.posterior.network, D, rank=1).double()
    refitted = refit_guide(vae, rows(oracle(vae), 60), guide, epochs=1, **QUICK)
    assert same(before, state(vae))
    assert not torch.equal(refitted.posterior.network.layers[1].weight, before["posterior.network.layers.1.weight"])


def test_the_guide_of_an_average_is_trained_whole():
    averaged = Averaged(with_an_encoder(), decay=0.9)
    refitted = refit_guide(averaged.average, rows(oracle(averaged.program), 60), epochs=1, **QUICK)
    old, new = (program.posterior.network.layers[1].weight for program in (averaged.program, refitted))
    assert not torch.equal(old, new) and not any(value.requires_grad for value in averaged.average.parameters())


@pytest.mark.parametrize(
    ("program", "cure"),
    [
        (lambda: Averaged(linear_vae(), 0.9), r"program\.average"),
        (lambda: KLWeighted(linear_vae(), 0.1), r"program\.program"),
    ],
)
def test_programs_that_are_measured_as_another_one_are_refused(program, cure):
    with pytest.raises(ValueError, match=rf"got {type(program()).__name__}, .* write refit_guide\({cure}"):
        refit_guide(program(), rows(oracle(linear_vae()), 60), epochs=1, **QUICK)
