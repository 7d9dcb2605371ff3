"""Runs of a program and of its particles: what is recorded, scored, stacked and refused."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import PlainNetworks, flat_guide, flat_model, grid_guide
from pyro import poutine
from pyro.infer.autoguide import AutoNormalMessenger

from pyro_vae.estimators import DoublyReparameterized, ImportanceWeighted, ScoreFunction, StickingTheLanding
from pyro_vae.handlers import FreeBits
from pyro_vae.tracing.messages import sample_sites
from pyro_vae.tracing.particles import Replay, log_prob, particle, particle_trace, score, sliced, stacked, trace_of
from pyro_vae.tracing.rows import log_weights
from pyro_vae.tracing.traces import ProgramRuns, paired_traces

B = 4


def test_shapes_are_checked_while_validation_is_on():
    def wrong(x):
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(3, len(x)), 1.0))

    with pytest.raises(ValueError, match='at site "z", invalid log_prob shape'):
        paired_traces(wrong, wrong, (torch.zeros(B),))


def test_the_observations_of_a_guide_that_runs_the_model_are_the_models():
    messenger = AutoNormalMessenger(flat_model)

    class Held:
        def guide(self, x):
            return messenger(x)

    x = torch.randn(B)
    for guide in (messenger, Held().guide, poutine.scale(scale=1.0)(messenger)):
        for K in (1, 3):
            model_trace, guide_trace = paired_traces(flat_model, guide, (x,), particles=K)
            assert list(sample_sites(guide_trace)) == ["z"]
            assert list(sample_sites(model_trace)) == ["z", "x"]
            assert log_weights(model_trace, guide_trace).shape == (K, B)
    assert messenger.locs.z.shape == (B, 2)  # made outside of the plate of particles
    assert ProgramRuns(3).layout(flat_model, messenger, (x,)).vectorized


def test_particles_whose_sites_vary_cannot_be_compared():
    def varying(name):
        return poutine.trace(lambda: pyro.sample(name, dist.Normal(0.0, 1.0))).get_trace()

    traces = [varying("a"), varying("b")]
    for trace in traces:
        score(trace)
    with pytest.raises(ValueError, match="site 'a' is missing in some particles, or differs in shape"):
        stacked(traces, nesting=0)


def test_subsampled_rows_are_those_of_the_first_particle():
    def subsampled(x):
        with pyro.plate("data", 50, subsample_size=2) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    def guide(x):
        with pyro.plate("data", 50, subsample_size=2):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    x = torch.arange(50.0)
    model_trace, guide_trace = paired_traces(subsampled, guide, (x,), particles=4, vectorize=False)
    rows, z = model_trace.nodes["data"]["value"], guide_trace.nodes["z"]["value"]
    assert rows.shape == (2,) and torch.equal(rows, guide_trace.nodes["data"]["value"])
    torch.testing.assert_close(log_weights(model_trace, guide_trace), dist.Normal(z, 1.0).log_prob(x[rows]))


# Sixteen bits

HALF = torch.zeros(2, dtype=torch.float16)


@pytest.mark.parametrize("fn", [
    dist.Normal(HALF.bfloat16(), 1.0).to_event(1),
    dist.Normal(HALF, 1.0).mask(torch.tensor(True)).to_event(1),
    dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(HALF, 1.0)),
    dist.TransformedDistribution(dist.Normal(HALF, 1.0), dist.transforms.ExpTransform()).to_event(1),
], ids=lambda fn: type(fn).__name__)  # fmt: skip
def test_distributions_in_16_bits_however_wrapped(fn):
    found = pyro.poutine.trace(lambda: pyro.sample("z", fn, obs=torch.ones(fn.event_shape))).get_trace()
    with pytest.raises(ValueError, match="site 'z': its distribution is in 16 bits"):
        score(found)


ELBOS = [StickingTheLanding(3), ImportanceWeighted(3), DoublyReparameterized(3), ScoreFunction(3), FreeBits(0.1)]


@pytest.mark.parametrize("elbo", ELBOS, ids=lambda elbo: type(elbo).__name__)
def test_densities_in_bfloat16_are_refused_by_a_cure_that_works(elbo):
    x = torch.rand(4, 50)
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(ValueError, match=r"its distribution is in 16 bits.*torch.autocast.*Normal\(loc.float\(\)"):
            elbo.differentiable_loss(PlainNetworks().model, PlainNetworks().guide, x)
        program = PlainNetworks(cast=True)
        torch.manual_seed(1)
        lowered = elbo.differentiable_loss(program.model, program.guide, x)
    lowered.backward()
    torch.manual_seed(1)
    loss = elbo.differentiable_loss(program.model, program.guide, x)
    assert lowered.dtype == torch.float32 and program.decoder.weight.grad is not None
    torch.testing.assert_close(lowered, loss, rtol=0.01, atol=0)  # the networks alone were lowered


# Particles apart


@pytest.mark.parametrize("program", [flat_guide, grid_guide])
@pytest.mark.parametrize("vectorized", [True, False])
def test_a_particle_replayed_alone_has_the_log_probability_that_it_has_among_others(program, vectorized):
    x, nesting = torch.randn(B), 1 if program is flat_guide else 2
    trace = particle_trace(program, (x,), 3, nesting, vectorized=vectorized)
    again = particle_trace(program, (x,), 3, nesting, replayed=trace, vectorized=not vectorized)
    together = trace.nodes["z"]
    assert torch.equal(again.nodes["z"]["value"], together["value"])
    for k in range(3):
        alone = trace_of(Replay(particle(trace, k))(program), (x,))
        score(alone)
        assert torch.equal(alone.nodes["z"]["value"], together["value"][k])
        torch.testing.assert_close(alone.nodes["z"]["log_prob"], together["log_prob"][k])
    whole = log_prob(trace)
    torch.testing.assert_close(whole, together["log_prob"].sum())
    torch.testing.assert_close(log_prob(sliced(trace, 0, 1)) + log_prob(sliced(trace, 1, 3)), whole)


def test_a_slice_takes_the_masks_of_its_particles_along():
    of_particles, of_rows = torch.tensor([[True] * B, [False] * B, [True] * B]), torch.tensor([True, False] * 2)

    def program(x):
        with pyro.plate("images", B), poutine.mask(mask=of_rows):
            pyro.sample("z", dist.Normal(x, 1.0).expand([3, B]).mask(of_particles))

    part = sliced(particle_trace(program, (torch.zeros(B),), 3, 1), 1, 3)
    kept = torch.stack([mask.expand(2, B) for mask in part.nodes["z"]["masks"]]).all(0)
    assert torch.equal(kept, (of_particles & of_rows)[1:])
    assert torch.equal(part.nodes["z"]["log_prob"] != 0, kept)
