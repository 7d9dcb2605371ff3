"""log p(x) against the program in which it is known, closed forms of tails, and programs of other structure."""

import functools
import json
import math
from dataclasses import replace

import evidence as experiment
import pyro
import pyro.distributions as dist
import pytest
import run
import torch
from torch import nn

from pyro_vae.evidence import annealing
from pyro_vae.evidence.annealing import AnnealingPath, hamiltonian
from pyro_vae.evidence.arguments import Arguments
from pyro_vae.evidence.estimates import annealed_evidence, bidirectional, from_log_weights, log_evidence
from pyro_vae.evidence.plan import Plan
from pyro_vae.linear_gaussian import LinearGaussian, mean_field_guide
from pyro_vae.training.loop import fixed_x

pytestmark = pytest.mark.filterwarnings("ignore:Pareto k̂")  # but where it is waited for

P, D = 6, 2
EAGER = {"compiled": False}  # compiled programs have tests of their own


def oracle(seed: int = 0, scale: float = 0.7) -> LinearGaussian:
    """A program with an exact guide, in float64."""
    weight = torch.randn(P, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return LinearGaussian(weight, scale=scale)


def rough(seed: int = 0, narrower: float = 0.9, **options) -> LinearGaussian:
    """A program whose factorised guide is moved and too narrow."""
    program = oracle(seed, **options)
    guide = mean_field_guide(program)
    with torch.no_grad():
        guide.loc_bias += 0.1
        guide.log_scale += math.log(narrower)
    program.posterior = guide
    return program


def images(program: LinearGaussian, n: int, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return program.simulate(n)


def truth(program: LinearGaussian, x: torch.Tensor) -> torch.Tensor:
    return program.log_px(x).detach()


# importance sampling


def test_within_four_standard_errors_of_the_exact_evidence():
    program = rough()
    x = images(program, 1000)
    evidence = log_evidence(program.model, program.guide, x, 1000, seed=1)
    deviations = (evidence.log_px - truth(program, x)) / evidence.standard_error
    assert (deviations.abs() < 4).double().mean() >= 0.99
    assert 0.9 < deviations.std() < 1.1  # neither too large nor too small an error
    assert 1e-3 < evidence.standard_error.median() < 0.1


def test_interval_covers_the_truth():
    program = rough()
    x = images(program, 10).repeat_interleave(200, 0)
    evidence = log_evidence(program.model, program.guide, x, 400, seed=2)
    covered = (evidence.log_px - truth(program, x)).abs() < 1.96 * evidence.standard_error
    shares = torch.stack([c[k < 0.7].double().mean() for c, k in zip(covered.split(200), evidence.pareto_k.split(200))])
    assert (evidence.pareto_k < 0.7).double().mean() > 0.9
    assert 0.90 <= shares[0] <= 0.98
    assert 0.93 <= shares.mean() <= 0.97


@pytest.mark.parametrize("dtype, error", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_exact_guide_leaves_no_error(dtype, error):
    program = oracle().to(dtype)
    x = images(program, 20)
    evidence = log_evidence(program.model, program.guide, x, 100, seed=0)
    assert evidence.standard_error.max() < min(error, 1e-6)
    assert (evidence.log_px - truth(program, x)).abs().max() < error
    assert (evidence.ess - 100).abs().max() < 1e-3
    assert not (evidence.pareto_k > 0.7).any()
    assert evidence.untrusted == 0 and evidence.monte_carlo_error < 1e-6


def test_lower_bound_rises_with_particles():
    program = rough(narrower=0.6)
    x = images(program, 200)
    exact = truth(program, x).mean()
    bounds = []
    for K in (1, 10, 100):
        bounds.append(log_evidence(program.model, program.guide, x, K, seed=3).mean)
    assert bounds[0] < bounds[1] < bounds[2] < exact
    elbo = program.elbo(x).mean().item()
    assert abs(bounds[0] - elbo) < 4 * program.elbo(x).std().item() / math.sqrt(200)


@pytest.mark.parametrize("K", [1, 7, 101])
def test_chunk_changes_nothing(K):
    program = rough()
    x = images(program, 12)
    first, *others = (
        log_evidence(program.model, program.guide, x, K, chunk=chunk, batch_size=5, seed=4) for chunk in (1, 23, 10_000)
    )
    for other in others:
        torch.testing.assert_close(other.log_px, first.log_px, rtol=0, atol=1e-12)
        torch.testing.assert_close(other.ess, first.ess)


class Counting(nn.Module):
    def __init__(self, part: nn.Module):
        super().__init__()
        self.part, self.seen = part, []

    def forward(self, *args):
        self.seen.append((args[0].shape, self.training))
        return self.part(*args)


@pytest.mark.parametrize("K, chunk", [(1, 500), (7, 30), (250, 64)])
def test_each_image_is_encoded_once_and_decoded_exactly_K_times(K, chunk):
    n, batch, decoded = 20, 10, []
    program = rough()
    x = images(program, n)
    program.posterior, likelihood = Counting(program.posterior), program.likelihood
    program.likelihood = lambda z: decoded.append(z.shape) or likelihood(z)
    Plan.of(program.model, program.guide, Arguments.of((x,)), batch, batch)
    looked_at = sum(shape[0] for shape, _ in program.posterior.seen), sum(shape[:-1].numel() for shape in decoded)
    assert max(looked_at) < 10 * batch  # in the runs that look at the plates
    log_evidence(program.model, program.guide, x, K, chunk=chunk, batch_size=batch, seed=0)
    assert sum(shape[0] for shape, _ in program.posterior.seen) == n + 2 * looked_at[0]
    assert sum(shape[:-1].numel() for shape in decoded) == n * K + 2 * looked_at[1]
    assert max(shape[:-1].numel() for shape in decoded) <= max(chunk, 3 * batch)


def test_leaves_mode_gradients_and_random_numbers_alone():
    program = rough()
    program.posterior = Counting(program.posterior)
    x = images(program, 3)
    program.train()
    state = torch.get_rng_state()
    evidence = log_evidence(program.model, program.guide, x, 5, seed=0)
    annealed_evidence(program.model, program.guide, x, num_temperatures=5, seed=0)
    assert torch.equal(state, torch.get_rng_state())
    assert program.training and program.posterior.training and program.posterior.part.training
    assert not any(training for _, training in program.posterior.seen)
    assert all(parameter.grad is None for parameter in program.parameters())
    assert not evidence.log_px.requires_grad
    assert torch.equal(evidence.log_px, log_evidence(program.model, program.guide, x, 5, seed=0).log_px)
    unseeded = [log_evidence(program.model, program.guide, x, 5).log_px for _ in range(2)]
    assert not torch.equal(*unseeded)


# diagnostics


def test_statistics_of_log_weights():
    w = torch.tensor([[1.0, 2.0, 3.0, 6.0]], dtype=torch.float64).T
    for shift in (0.0, -5000.0):  # a constant factor of the weights moves the logarithm and nothing else
        evidence = from_log_weights(w.log() + shift)
        assert evidence.log_px.item() == pytest.approx(math.log(3) + shift)
        assert evidence.ess.item() == pytest.approx(144 / 50)
        assert evidence.standard_error.item() == pytest.approx(math.sqrt(14 / 3) / 3 / 2)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.8, 1.2])
def test_pareto_k_of_pareto_weights(k):
    u = torch.rand(100_000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    evidence = from_log_weights(-k * u.log())
    assert (evidence.pareto_k - k).abs().max() < 0.15
    assert evidence.pareto_k.mean().item() == pytest.approx(k, abs=0.06)


@pytest.mark.parametrize("scale, k", [(0.8, 0.36), (0.5, 0.75)])
def test_pareto_k_of_too_narrow_a_gaussian(scale, k):
    """q = N(0, s²) for p = N(0, 1): log w = χ²₁ (1 − s²)/2 + constant, so that the tail has k = 1 − s²."""
    z = scale * torch.randn(200_000, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p, q = dist.Normal(0.0, 1.0), dist.Normal(0.0, scale)
    assert from_log_weights(p.log_prob(z) - q.log_prob(z)).pareto_k.mean().item() == pytest.approx(k, abs=0.1)


def test_pareto_k_where_there_is_no_tail():
    assert from_log_weights(torch.zeros(20, 3)).pareto_k.isnan().all()  # too few to say
    assert (from_log_weights(torch.zeros(21, 3)).pareto_k == -math.inf).all()
    two_values = torch.arange(1000).remainder(50).eq(0).double().unsqueeze(1)
    assert not (from_log_weights(two_values).pareto_k > 0.7).any()


def test_weights_that_have_collapsed_onto_a_few_are_not_trusted():
    """Three draws carry all: the others have underflowed beside them, and a fit finds no tail of which to give k̂."""
    log_w = torch.full((1000, 1), -2000.0)
    log_w[:3] = torch.tensor([[0.0], [-1.0], [-2.0]])
    log_w[3:6] = -math.inf
    evidence = from_log_weights(log_w)
    assert evidence.pareto_k.tolist() == [math.inf] and evidence.untrusted == 1.0


def test_warns_of_images_that_cannot_be_trusted():
    program = rough(narrower=0.2)
    x = images(program, 30)
    with pytest.warns(UserWarning, match=r"k̂ > 0.7 for \d+ of 30 images .* can be trusted") as caught:
        evidence = log_evidence(program.model, program.guide, x, 500, seed=0)
    assert caught[0].filename == __file__
    assert evidence.untrusted == (evidence.pareto_k > 0.7).double().mean() > 0.5
    assert f"k̂ > 0.7 for {evidence.untrusted:.1%} of the images" in str(evidence)


def test_summary_over_images():
    log_px, error = torch.tensor([-1.0, -2.0, -6.0]).double(), torch.tensor([0.3, 0.4, 0.0]).double()
    evidence = replace(from_log_weights(torch.zeros(30, 3)), log_px=log_px, standard_error=error)
    assert evidence.mean == -3
    assert evidence.mean_standard_error == pytest.approx(math.sqrt(7 / 3))
    assert evidence.monte_carlo_error == pytest.approx(0.5 / 3)
    assert json.loads(json.dumps(evidence.to_dict(), allow_nan=False))["log_px"] == -3
    one = from_log_weights(torch.zeros(1, 1)).to_dict()
    assert one["standard_error"] is None and one["monte_carlo_error"] is None and one["log_px"] == 0


def test_standard_error_of_the_mean_has_both_parts():
    """The mean over new images and new draws scatters as the standard error says, with much Monte Carlo noise."""
    program = rough(narrower=0.7)
    x = images(program, 200 * 100)
    whole = log_evidence(program.model, program.guide, x, 10, batch_size=5000, chunk=50_000, seed=0)
    sets = [replace(whole, log_px=part) for part in whole.log_px.split(100)]
    means, said = (torch.tensor([getattr(s, name) for s in sets]) for name in ("mean", "mean_standard_error"))
    assert means.std().item() == pytest.approx(said.mean().item(), rel=0.2)


# annealing


@pytest.mark.parametrize("from_guide", [False, True])
def test_annealing_comes_within_a_twentieth_of_a_nat(from_guide):
    program = rough(narrower=0.5)
    x = images(program, 20)
    evidence = annealed_evidence(
        program.model, program.guide if from_guide else None, x, num_temperatures=500, leapfrog=3, seed=0, **EAGER
    )
    error = evidence.log_px - truth(program, x)
    assert error.mean().abs() < 0.05
    assert (error / evidence.standard_error).abs().max() < 5
    assert 0.55 < evidence.acceptance.mean() < 0.75
    assert evidence.num_particles == 16 and evidence.num_temperatures == 500


@pytest.mark.parametrize("from_guide", [False, True])
def test_bidirectional_bounds_bracket_the_truth(from_guide):
    program = rough(narrower=0.5)
    template = torch.zeros(30, P, dtype=torch.float64)
    guide = program.guide if from_guide else None
    close = bidirectional(program.model, guide, template, num_temperatures=500, leapfrog=3, seed=0, **EAGER)
    exact = truth(program, close.x)
    assert close.x.shape == template.shape
    assert abs(close.gap.mean()) < 0.05
    assert (close.lower - exact).mean() < 3 * (close.lower - exact).std() / math.sqrt(30)
    assert (close.upper - exact).mean() > -3 * (close.upper - exact).std() / math.sqrt(30)
    assert json.loads(json.dumps(close.to_dict(), allow_nan=False))["gap"] == pytest.approx(close.gap.mean().item())


def test_few_temperatures_leave_a_gap_that_holds_the_truth():
    program = oracle(scale=0.4)
    bounds = bidirectional(
        program.model, None, torch.zeros(300, P).double(), num_temperatures=10, leapfrog=2, chains=2, seed=0, chunk=9999
    )
    exact = truth(program, bounds.x)
    assert (bounds.lower - exact).mean() < -5 * (bounds.lower - exact).std() / math.sqrt(300)
    assert (bounds.upper - exact).mean() > 5 * (bounds.upper - exact).std() / math.sqrt(300)
    assert "simulated images, gap" in str(bounds)
    options = {"num_temperatures": 2, "leapfrog": 1, "chains": 2, "seed": 0, "chunk": 40, "step_size": 0.05}
    few, more = (bidirectional(program.model, None, bounds.x[:30], **options | {"num_temperatures": T}) for T in (2, 3))
    assert torch.equal(few.x, more.x)  # so that numbers of temperatures can be compared


@pytest.mark.parametrize("schedule", [annealing.linear, annealing.sigmoid])
def test_annealed_weights_are_unbiased_both_ways(schedule):
    """E w = p(x) forwards and E 1/w = 1/p(x) backwards, at so few temperatures that the bounds themselves are loose."""
    program = oracle(scale=1.0)
    bounds = bidirectional(
        program.model, None, torch.zeros(4000, P).double(), num_temperatures=8, leapfrog=2, chains=4, seed=1,
        schedule=schedule, chunk=32_000,
    )  # fmt: skip
    exact = truth(program, bounds.x)
    for log_ratio in (bounds.lower - exact, exact - bounds.upper):
        ratio = log_ratio.exp()
        assert log_ratio.mean() < -0.02
        assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(len(ratio))


def test_annealing_from_the_exact_posterior_is_exact():
    program = oracle()
    x = images(program, 5)
    evidence = annealed_evidence(program.model, program.guide, x, num_temperatures=5, seed=0)
    torch.testing.assert_close(evidence.log_px, truth(program, x))
    assert evidence.standard_error.max() < 1e-6


def test_transitions_leave_the_posterior_alone_and_find_it():
    program = oracle()
    x = images(program, 1)
    path = AnnealingPath(program.model, None, (x,))
    torch.manual_seed(0)
    point = path(path.draw(4000))
    for _ in range(12):
        point, probability = hamiltonian(path, point, 1.0, torch.full((1, D), 0.2).double(), leapfrog=8)
    exact = program.exact_posterior(x)
    error = (point.z[:, 0].mean(0) - exact.mean[0]) / (exact.variance[0] / 4000).sqrt()
    assert error.abs().max() < 4
    spread = exact.variance[0].sqrt()
    assert (point.z[:, 0].T.cov() - exact.covariance_matrix[0]).div(spread * spread[:, None]).abs().max() < 0.1
    assert 0.5 < probability.mean() < 1


def test_densities_of_the_path_and_their_gradients():
    program = rough()
    x = images(program, 3)
    path = AnnealingPath(program.model, program.guide, (x,))
    point = path(path.draw(4))
    z = point.z.clone().requires_grad_()
    joint = program.prior().log_prob(z) + program.likelihood(z).log_prob(x)
    start = program.posterior(x).log_prob(z)
    target = 0.7 * start + 0.3 * joint
    torch.testing.assert_close(point.log_density(0.3), target.detach())
    torch.testing.assert_close(point.gradient(0.3), torch.autograd.grad(target.sum(), z)[0])


# programs of other structure


def hierarchical(x: torch.Tensor, guide: bool = False, scale: float = 1.0):
    """u scalar, z | u per pixel in an inner plate at dim −1, images at dim −2: x ~ N(0, 2 I + 1 1ᵀ) per image."""
    with pyro.plate("images", len(x), dim=-2):
        u = pyro.sample("u", dist.Normal(x.new_zeros(()), scale))
        with pyro.plate("pixels", x.shape[1], dim=-1):
            z = pyro.sample("z", dist.Normal(u, scale))
            return None if guide else pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def hierarchical_evidence(x: torch.Tensor) -> torch.Tensor:
    covariance = 2 * torch.eye(x.shape[1]) + 1
    return dist.MultivariateNormal(torch.zeros(x.shape[1]), covariance).log_prob(x).double()


def test_two_sites_and_a_plate_within_the_images():
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    guide = lambda x: hierarchical(x, guide=True, scale=1.2)  # noqa: E731
    evidence = log_evidence(hierarchical, guide, x, 20_000, seed=0)
    assert ((evidence.log_px - hierarchical_evidence(x)) / evidence.standard_error).abs().max() < 4
    for start in (None, guide):
        settings = {"num_temperatures": 200, "leapfrog": 4, "chains": 100, "seed": 0, **EAGER}
        annealed = annealed_evidence(hierarchical, start, x, **settings)
        assert ((annealed.log_px - hierarchical_evidence(x)) / annealed.standard_error).abs().max() < 4
        assert annealed.standard_error.max() < 0.1
    bounds = bidirectional(hierarchical, None, x, num_temperatures=200, leapfrog=4, seed=0, **EAGER)
    assert bounds.x.shape == x.shape and abs(bounds.gap.mean()) < 0.2


def test_labels_beside_the_images_and_parameters_in_the_store():
    def model(x, y):
        loc = pyro.param("loc", torch.tensor([0.0, 3.0]))
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(loc[y], 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, y):
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(0.5 * (x + pyro.param("loc", torch.tensor([0.0, 3.0]))[y]), 0.5**0.5))

    pyro.clear_param_store()
    x, y = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([0, 1, 1])
    exact = dist.Normal(torch.tensor([0.0, 3.0, 3.0]), 2**0.5).log_prob(x).double()
    torch.testing.assert_close(log_evidence(model, guide, (x, y), 30, seed=0).log_px, exact, atol=1e-5, rtol=0)
    annealed = annealed_evidence(model, None, (x, y), num_temperatures=200, leapfrog=3, chains=50, seed=0, **EAGER)
    assert (annealed.log_px - exact).abs().max() < 0.1
    bounds = bidirectional(model, guide, (x, y), num_temperatures=5, seed=0)
    torch.testing.assert_close(bounds.gap, torch.zeros(3).double(), atol=1e-4, rtol=0)


def discrete(x: torch.Tensor, guide: bool = False):
    with pyro.plate("images", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5] if guide else [0.3, 0.7])))
        return None if guide else pyro.sample("x", dist.Normal(z.float(), 1.0), obs=x)


def test_discrete_latent():
    x = torch.tensor([0.0, 1.0])
    evidence = log_evidence(discrete, lambda x: discrete(x, guide=True), x, 5000, seed=0)
    exact = (0.3 * dist.Normal(0.0, 1.0).log_prob(x).exp() + 0.7 * dist.Normal(1.0, 1.0).log_prob(x).exp()).log()
    assert ((evidence.log_px - exact) / evidence.standard_error).abs().max() < 4
    with pytest.raises(ValueError, match=r"'z' has the support .* real"):
        annealed_evidence(discrete, None, x)


# bad input


def calls(program: LinearGaussian):
    yield lambda x: log_evidence(program.model, program.guide, x, 10)
    yield lambda x: annealed_evidence(program.model, program.guide, x, num_temperatures=3)
    yield lambda x: annealed_evidence(program.model, None, x, num_temperatures=3)


@pytest.mark.parametrize("options", [{"num_particles": 0}, {"num_particles": 2.5}, {"num_particles": 5, "chunk": 0},
                                     {"num_particles": 5, "batch_size": -1}])  # fmt: skip
def test_numbers_that_cannot_be(options):
    program = oracle()
    with pytest.raises(ValueError, match="wanted a whole number of at least 1"):
        log_evidence(program.model, program.guide, images(program, 2), **options)


@pytest.mark.parametrize("options", [{"num_temperatures": 0}, {"num_temperatures": 1}, {"chains": 0}, {"leapfrog": 0},
                                     {"step_size": -1.0}, {"schedule": lambda n: annealing.linear(n + 1)},
                                     {"schedule": lambda n: annealing.linear(n).flip(0)}])  # fmt: skip
def test_annealing_that_cannot_be(options):
    program = oracle()
    for call in (annealed_evidence, bidirectional):
        with pytest.raises(ValueError, match="wanted"):
            call(program.model, program.guide, images(program, 2), **options)


@pytest.mark.parametrize("x", [torch.zeros(0, P).double(), torch.tensor(1.0), "x", [torch.zeros(2, P).double()]])
def test_no_images(x):
    for call in calls(oracle()):
        with pytest.raises(ValueError, match="x: wanted"):
            call(x)


def test_x_that_is_nan():
    program = oracle()
    x = images(program, 30)
    x[20, 3] = math.nan
    for call in calls(program):
        with pytest.raises(ValueError, match=r"^x: 1 of its values are NaN or infinite, in the rows 20; ") as caught:
            call(x)
        assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def black_and_white(x: torch.Tensor, guide: bool = False):
    with pyro.plate("images", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return None if guide else pyro.sample("x", dist.Bernoulli(logits=z), obs=x)


def test_x_outside_the_support_though_validation_is_off():
    with pyro.validation_enabled(False):
        for x in (torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, 1.0, 0.5])):
            with pytest.raises(ValueError, match="support"):
                log_evidence(black_and_white, lambda x: black_and_white(x, guide=True), x, 5, batch_size=2)
            with pytest.raises(ValueError, match="support"):
                annealed_evidence(black_and_white, None, x, num_temperatures=3)
        assert not torch.distributions.Distribution._validate_args


def test_no_image_plate():
    """Rows in one event have one weight together."""

    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand(x.shape).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(x / 2, 0.8).to_event(1))

    x = torch.tensor([0.0, 1.0, -1.0])
    exact = dist.Normal(0.0, 2**0.5).log_prob(x).sum()
    for evidence in (
        log_evidence(model, guide, x, 2000, seed=0),
        annealed_evidence(model, None, x, num_temperatures=50, leapfrog=3, seed=0, **EAGER),
    ):
        assert evidence.joint and evidence.log_px.shape == (1,)
        assert (evidence.log_px - exact).abs() < 4 * evidence.standard_error


@pytest.mark.parametrize("size", [1, 5])
def test_a_plate_that_is_not_over_the_images(size):
    def program(x, guide=False):
        with pyro.plate("images", size, dim=-2), pyro.plate("pixels", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(size, 3), 1.0))
            return None if guide else pyro.sample("x", dist.Normal(z, 1.0), obs=x[:size])

    guide, x = functools.partial(program, guide=True), torch.zeros(5, 3)
    if size == 5:  # the plate of the pixels is not taken for the images because it is the inner one
        assert log_evidence(program, guide, x, 10, seed=0).log_px.shape == (5,)
        return
    for call in (lambda: log_evidence(program, guide, x, 10), lambda: annealed_evidence(program, None, x)):
        with pytest.raises(ValueError, match=r"is one over the 5 images: .*'images' of 1"):
            call()


def test_site_names_that_differ():
    program = oracle()
    guide = pyro.poutine.block(program.guide, hide=["z"])
    x = images(program, 2)
    for call in (lambda: log_evidence(program.model, guide, x, 5), lambda: annealed_evidence(program.model, guide, x)):
        with pytest.raises(ValueError, match="only in the model: \\['z'\\]"):
            call()


def narrow(x: torch.Tensor, guide: bool = False):
    """p(x | z) is zero beyond a distance of one half."""
    with pyro.plate("images", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return None if guide else pyro.sample("x", dist.Uniform(z - 0.5, z + 0.5, validate_args=False), obs=x)


def test_images_that_no_draw_explains_are_named():
    x = torch.zeros(12)
    x[[3, 11]] = 100.0
    with pytest.raises(ValueError, match=r"every log weight is −inf for the images 3[,:]"):
        log_evidence(narrow, lambda x: narrow(x, guide=True), x, 50, seed=0, batch_size=5)
    with pytest.raises(ValueError, match=r"every log weight is −inf for the images 3, 11:"):
        log_evidence(narrow, lambda x: narrow(x, guide=True), x, 50, seed=0)
    some = log_evidence(narrow, lambda x: narrow(x, guide=True), x[:3], 5000, seed=0)  # weights of zero are weights
    exact = (dist.Normal(0.0, 1.0).cdf(torch.tensor(0.5)) - dist.Normal(0.0, 1.0).cdf(torch.tensor(-0.5))).log()
    assert ((some.log_px - exact) / some.standard_error).abs().max() < 4


def test_log_weights_that_are_no_numbers():
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r"images 1[;]"):
            from_log_weights(torch.tensor([[0.0, value], [0.0, 0.0]]))


def test_chains_that_accept_nothing():
    program = oracle(scale=0.01)
    x = images(program, 3)
    with pytest.raises(ValueError, match=r"accepted nothing for 3 of 3 .*step sizes down to .*smaller step_size"):
        annealed_evidence(program.model, None, x, num_temperatures=4, step_size=1e6, seed=0)
    with pytest.raises(ValueError, match="accepted nothing"):
        bidirectional(program.model, None, x, num_temperatures=4, step_size=1e6, seed=0)


def test_no_bounds_for_a_model_of_two_observations():
    def model(x):
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.sample("y", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match="wanted one that observes the first argument"):
        bidirectional(model, None, torch.zeros(3))


# the experiment


def test_the_experiment_measures_a_trained_model(tmp_path, capsys):
    trained, out = str(tmp_path / "trained"), tmp_path / "out"
    small = ["--dataset", "digits", "--net", "mlp", "--hidden", "16", "--lik", "categorical", "--bins", "4"]
    assert run.main([*small, "--epochs", "1", "--out", trained, "--quiet"]) == 0
    few = ["--images", "6", "--particles", "30", "1", "--temperatures", "8", "4", "--chains", "2", "--leapfrog", "2"]
    words = ["--run", trained, "--out", str(out), *few, "--simulated", "7", "--quiet"]
    assert experiment.main(words) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert [row["num_particles"] for row in metrics["importance"]] == [1, 30]
    assert [(row["start"], row["num_temperatures"]) for row in metrics["annealed"]] == [
        ("prior", 4), ("prior", 8), ("guide", 4), ("guide", 8)
    ]  # fmt: skip
    assert [(row["images"], row["num_temperatures"]) for row in metrics["bidirectional"]] == [(7, 4), (7, 8)]
    assert (out / "evidence.png").read_bytes().startswith(b"\x89PNG")
    vae, pixels, _ = experiment.load_run(tmp_path / "trained", torch.device("cpu"))
    again = log_evidence(vae.model, vae.guide, fixed_x(vae, pixels[:6]), 30, seed=0)
    assert again.mean == pytest.approx(metrics["importance"][1]["log_px"])
    assert f"importance, K = 30 {again.mean:>29.3f}" in capsys.readouterr().out
    assert experiment.main(words) == 1 and "--overwrite" in capsys.readouterr().err
    assert experiment.main([*words, "--overwrite", "--all", "--bfloat16"]) == 0
    assert "bfloat16 moves it by" in capsys.readouterr().out
    *_, full, lowered = json.loads((out / "metrics.json").read_text())["importance"]
    assert (full["images"], lowered["images"], lowered["precision"]) == (250, 6, "bfloat16")
    everything = log_evidence(vae.model, vae.guide, fixed_x(vae, pixels), 30, seed=0)
    assert full["log_px_of_annealed_images"] == pytest.approx(everything.log_px[:6].mean().item())
    bias = lowered["log_px"] - full["log_px_of_annealed_images"]
    assert lowered["bias"] == pytest.approx(bias, abs=1e-9) and bias != 0
    assert experiment.main([*words, "--overwrite", "--images", "251"]) == 1
    assert "--images: wanted 2 to 250" in capsys.readouterr().err


def test_the_experiment_wants_a_trained_model(tmp_path, capsys):
    assert experiment.main(["--run", str(tmp_path)]) == 1
    assert "holds no trained model; train one by run.py" in capsys.readouterr().err
