"""log p(x) by importance sampling against the program in which it is known, eager and compiled."""

import sys
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from enumerated_programs import LABELS, MixtureOfFactors, OfTheModel, X
from evidence_programs import images, oracle, programs, rough, truth
from monte_carlo import assert_evidence_is, assert_mean_is, assert_share_is
from programs import conv_vae
from torch import nn

from pyro_vae.arguments import ProgramArguments
from pyro_vae.compiling import Graphs, Untraceable
from pyro_vae.evidence import UntrustedEvidence, annealed_evidence, log_evidence
from pyro_vae.evidence.plan import MeasurementPlan

pytestmark = pytest.mark.filterwarnings("ignore::pyro_vae.evidence.UntrustedEvidence")  # except where it is expected

GRAPHS = sys.modules[Graphs.__module__]


@pytest.mark.slow
def test_within_four_standard_errors_of_the_exact_evidence():
    program = rough()
    x = images(program, 1000)
    evidence = log_evidence(program.model, program.guide, x, 1000, seed=1)
    deviations = (evidence.log_px - truth(program, x)) / evidence.standard_error
    assert (deviations.abs() < 4).double().mean() >= 0.99
    assert 0.9 < deviations.std() < 1.1  # neither too large nor too small an error
    assert 1e-3 < evidence.standard_error.median() < 0.1


@pytest.mark.slow
def test_interval_covers_the_truth():
    program = rough()
    x = images(program, 10).repeat_interleave(200, 0)
    evidence = log_evidence(program.model, program.guide, x, 400, seed=2)
    covered = (evidence.log_px - truth(program, x)).abs() < 1.96 * evidence.standard_error
    assert (evidence.pareto_k < 0.7).double().mean() > 0.9
    kept = covered[evidence.pareto_k < 0.7]
    assert_share_is(kept, at_least=0.95, at_most=0.95, sees=0.91)
    assert_share_is(covered[:200][evidence.pareto_k[:200] < 0.7], at_least=0.95, at_most=0.95, sees=0.75)


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


@pytest.mark.slow
def test_lower_bound_rises_with_particles():
    program = rough(narrower=0.6)
    x = images(program, 200)
    exact = truth(program, x).mean()
    bounds = []
    for K in (1, 10, 100):
        bounds.append(log_evidence(program.model, program.guide, x, K, seed=3).mean)
    assert bounds[0] < bounds[1] < bounds[2] < exact
    elbo = program.elbo(x).mean().item()
    single = torch.stack(
        [log_evidence(program.model, program.guide, x, 1, seed=seed, progress=False).log_px for seed in range(40)]
    )
    assert_mean_is(single.mean(1), elbo, sees=(exact - elbo) / 4)


@pytest.mark.slow
@pytest.mark.parametrize("K", [1, 7, 101])
def test_chunk_changes_nothing(K):
    program = rough()
    x = images(program, 12)
    options = {"batch_size": 5, "engine": "eager", "seed": 4}
    first, *others = (log_evidence(program.model, program.guide, x, K, chunk=n, **options) for n in (1, 23, 10_000))
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
    MeasurementPlan.of(program.model, program.guide, ProgramArguments.of((x,)), batch, batch)
    looked_at = sum(shape[0] for shape, _ in program.posterior.seen), sum(shape[:-1].numel() for shape in decoded)
    assert max(looked_at) < 10 * batch  # in the runs that look at the plates
    few = 2  # rows on which the marks of the sites are looked at
    log_evidence(program.model, program.guide, x, K, chunk=chunk, batch_size=batch, seed=0)
    assert sum(shape[0] for shape, _ in program.posterior.seen) == n + 2 * looked_at[0] + few
    assert sum(shape[:-1].numel() for shape in decoded) == n * K + 2 * looked_at[1] + few
    assert max(shape[:-1].numel() for shape in decoded) <= max(chunk, 3 * batch)


@pytest.mark.slow
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
    unseeded = [log_evidence(program.model, program.guide, x, 5, seed=None).log_px for _ in range(2)]
    assert not torch.equal(*unseeded)


def test_warns_of_images_that_cannot_be_trusted():
    program = rough(narrower=0.2)
    x = images(program, 30)
    with pytest.warns(UntrustedEvidence, match=r"k̂ > 0.7 for \d+ of 30 images .* can be trusted") as caught:
        evidence = log_evidence(program.model, program.guide, x, 500, seed=0)
    assert caught[0].filename == __file__
    assert evidence.untrusted == (evidence.pareto_k > 0.7).double().mean() > 0.5
    assert f"k̂ > 0.7 for {evidence.untrusted:.1%} of the images" in str(evidence)


def test_standard_error_of_the_mean_has_both_parts():
    """The mean over new images and new draws scatters as the standard error says, with much Monte Carlo noise."""
    program = rough(narrower=0.7)
    x = images(program, 200 * 100)
    whole = log_evidence(program.model, program.guide, x, 10, batch_size=5000, chunk=50_000, seed=0)
    sets = [replace(whole, log_px=part) for part in whole.log_px.split(100)]
    means, said = (torch.tensor([getattr(s, name) for s in sets]) for name in ("mean", "mean_standard_error"))
    assert means.std().item() == pytest.approx(said.mean().item(), rel=0.2)


def discrete(x: torch.Tensor, guide: bool = False):
    with pyro.plate("images", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5] if guide else [0.3, 0.7])))
        return None if guide else pyro.sample("x", dist.Normal(z.float(), 1.0), obs=x)


def test_discrete_latent():
    x = torch.tensor([0.0, 1.0])
    evidence = log_evidence(discrete, lambda x: discrete(x, guide=True), x, 5000, seed=0)
    exact = (0.3 * dist.Normal(0.0, 1.0).log_prob(x).exp() + 0.7 * dist.Normal(1.0, 1.0).log_prob(x).exp()).log()
    assert_evidence_is(evidence, exact, sees=0.1)
    with pytest.raises(ValueError, match=r"'z' is discrete, with the support .* real"):
        annealed_evidence(discrete, None, x)


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
    assert_evidence_is(some, exact.expand(3), sees=0.2)


@pytest.mark.parametrize("options", [{"particles": 0}, {"particles": 2.5}, {"particles": 5, "chunk": 0},
                                     {"particles": 5, "batch_size": -1}])  # fmt: skip
def test_numbers_that_cannot_be(options):
    program = oracle()
    with pytest.raises(ValueError, match="wanted a whole number of at least 1"):
        log_evidence(program.model, program.guide, images(program, 2), **options)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize("kind", ["conv", "two layers"])
def test_compiled_is_eager(kind):
    model, guide, x = [*programs()][kind == "two layers"]
    # Batches of three images and of one, in slices of four particles, the last of two.
    eager, compiled = (
        log_evidence(model, guide, x, 30, chunk=12, batch_size=3, engine=engine, seed=0)
        for engine in ("eager", "compiled")
    )
    torch.testing.assert_close(compiled.log_px, eager.log_px, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(compiled.ess, eager.ess, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compiler")
def test_a_model_is_compiled_where_that_is_earned_back(monkeypatch):
    program, made = conv_vae(), []
    make = Graphs._made
    monkeypatch.setattr(Graphs, "_made", lambda *args: made.append(args) or make(*args))
    x = program.observe(torch.randint(256, (6, 1, 8, 8), dtype=torch.uint8))
    log_evidence(program.model, program.guide, x, 20, chunk=6, batch_size=3, seed=0)
    assert not made
    monkeypatch.setattr(GRAPHS, "WORTH_CALLS", 20)
    log_evidence(program.model, program.guide, x, 20, chunk=6, batch_size=3, seed=0)
    assert len(made) == 1  # for both batches
    monkeypatch.setattr(GRAPHS, "missing_compiler", lambda: "none here")
    log_evidence(program.model, program.guide, x, 20, chunk=6, batch_size=3, seed=0)
    assert len(made) == 1


def test_a_model_that_cannot_be_traced_is_run_eagerly_unless_it_must_not(monkeypatch):
    def model(x):
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z if float(z.sum()) > 1e9 else 2 * z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(0.4 * x, 0.5))

    monkeypatch.setattr(GRAPHS, "WORTH_CALLS", 1)
    x = torch.randn(3)
    auto, eager = (log_evidence(model, guide, x, 30, chunk=9, engine=how, seed=0) for how in ("auto", "eager"))
    assert torch.equal(auto.log_px, eager.log_px)
    with pytest.raises(Untraceable, match="float"):
        log_evidence(model, guide, x, 30, chunk=9, engine="compiled", seed=0)


def test_lowered_precision_of_the_networks_moves_the_estimate_a_little():
    program = conv_vae()
    x = program.observe(torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8))
    full, lowered = (
        log_evidence(program.model, program.guide, x, 40, chunk=16, precision=dtype, seed=0)
        for dtype in (None, torch.bfloat16)
    )
    difference = (full.log_px - lowered.log_px).abs()
    assert 0 < difference.max() < 0.5
    assert program.likelihood.network.dtype is None


@pytest.mark.slow
def test_a_compiler_that_fails_is_said_and_only_slower(monkeypatch, caplog):
    def broken(*args, **kwargs):
        raise RuntimeError("g++ ran out of memory")

    monkeypatch.setattr(GRAPHS, "compiled_graph", broken)
    monkeypatch.setattr(GRAPHS, "WORTH_CALLS", 1)
    program = oracle()
    x = images(program, 3)
    auto, eager = (log_evidence(program, x, 30, chunk=9, engine=engine) for engine in ("auto", "eager"))
    assert torch.equal(auto.log_px, eager.log_px)
    (said,) = caplog.messages
    assert said.startswith("not compiled, which is only slower: torch's compiler fails on this program (RuntimeError: ")
    assert "(RuntimeError: g++ ran out of memory). " in said
    with pytest.raises(Untraceable, match="out of memory"):
        log_evidence(program, x, 30, engine="compiled")


@pytest.mark.parametrize(("chunk", "batch_size"), [(500, None), (7, 3)])
def test_enumerated_sites_are_summed_out_of_every_weight(chunk, batch_size):
    """The guide has another q(y | x), which no weight depends on, and the exact q(z | x, y)."""
    program = MixtureOfFactors()
    program.log_joint = lambda x, exact=program.log_joint: exact(x).flip(-1)
    evidence = log_evidence(program, (X, LABELS), 10, chunk=chunk, batch_size=batch_size)
    expected = MixtureOfFactors().log_px(X, LABELS)
    assert torch.allclose(evidence.log_px, expected) and evidence.standard_error.max() < 1e-9


@pytest.mark.slow
def test_log_px_of_a_shifted_guide_sums_y_out():
    program = MixtureOfFactors(off=0.4)
    evidence = log_evidence(program, (X, LABELS), 20_000)
    assert_evidence_is(evidence, program.log_px(X, LABELS), sees=0.1)


@pytest.mark.parametrize("joint", [False, True])
def test_a_site_of_the_model_alone_has_the_weights_of_a_mixture(joint):
    x = torch.linspace(-2, 3, 7).double()
    programs = [OfTheModel(), OfTheModel(mixture=True)]
    for program in programs if joint else ():  # a latent of all rows

        def model(x, inner=program.model):
            pyro.sample("m", dist.Normal(torch.zeros(()).double(), 1.0))
            inner(x)

        def guide(x, inner=program.guide):
            pyro.sample("m", dist.Normal(torch.zeros(()).double(), 1.0))
            inner(x)

        program.model, program.guide = model, guide
    # One slice of particles: the random numbers are the same.
    ours, expected = (log_evidence(program, x, 400, chunk=10**6, engine="eager") for program in programs)
    assert torch.allclose(ours.log_px, expected.log_px) and ours.joint == expected.joint == joint


def test_an_enumerated_program_is_not_compiled_for_evidence():
    with pytest.raises(Untraceable, match='sites of the program are summed out, eagerly; write engine="eager"'):
        log_evidence(MixtureOfFactors(), (X, LABELS), 10, engine="compiled")
