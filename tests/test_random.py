"""Blocks that leave global state as it was, and measurements that the caller's modes do not reach."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_vae.comparison.compare import compare_estimators
from pyro_vae.estimators import DoublyReparameterized, ImportanceWeighted, ScoreFunction, StickingTheLanding
from pyro_vae.evidence.estimates import log_evidence
from pyro_vae.handlers import FreeBits
from pyro_vae.random import measurement, mode, seeded, without_autocast
from pyro_vae.tracing.particles import score
from pyro_vae.training.loop import evaluate

MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "enable_grad": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("caller", MODES.values(), ids=MODES)
def test_a_measurement_is_the_same_in_every_mode_of_the_caller(caller):
    layer, x = nn.Linear(3, 2), torch.randn(4, 3)

    @measurement
    def product(x):
        kept = nn.Parameter(torch.ones(()))  # as Pyro's store keeps what a program makes at its first run
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad((kept * layer(x)).sum(), kept)
        return layer(x), gradient, kept

    with caller():
        out, gradient, kept = product(x)
    assert torch.equal(out, layer(x)) and not out.requires_grad
    assert torch.allclose(gradient, layer(x).sum()) and not kept.is_inference()
    (2 * kept).backward()
    assert kept.grad == 2


def test_modes_of_the_caller_come_back():
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        measurement(lambda: None)()
        with pytest.raises(ZeroDivisionError):
            measurement(lambda: 1 / 0)()
        assert torch.is_inference_mode_enabled() and torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_cache_enabled() and not torch.is_grad_enabled()
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_weights_cast_within_a_measurement_do_not_serve_the_callers_training():
    layer, x = nn.Linear(3, 1), torch.ones(1, 3)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad(), without_autocast(), torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        layer(x).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("seed", [1.5, "1", True, 2**64, -(2**63) - 1, None])
def test_seeds_that_are_none(seed):
    with pytest.raises(ValueError, match="seed: wanted a whole number"), seeded(seed):
        pass


def test_seeds_of_any_whole_number():
    draws = []
    for seed in (3, np.int64(3), np.uint8(3)):
        with seeded(seed):
            draws.append(torch.rand(2))
    assert all(torch.equal(draws[0], draw) for draw in draws)
    for seed in (-1, 2**64 - 1):
        with seeded(seed):
            torch.rand(1)


def test_mode_restores_each_submodule():
    module = nn.Sequential(nn.Dropout(), nn.Dropout())
    module[0].eval()
    with mode(module, training=False):
        assert not module[1].training
    assert (module[0].training, module[1].training) == (False, True)


class Linear(nn.Module):
    """A program with plain networks, whose results autocast lowers; ``cast`` brings them back to float32."""

    def __init__(self, cast=False):
        super().__init__()
        torch.manual_seed(0)
        self.decoder, self.encoder, self.cast = nn.Linear(2, 50), nn.Linear(50, 2), cast

    def through(self, network, value):
        return network(value).float() if self.cast else network(value)

    def model(self, x):
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.through(self.decoder, z), 0.05).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("images", len(x)):
            loc = self.through(self.encoder, x)
            pyro.sample("z", dist.Normal(loc, loc.exp() / 2).to_event(1))


X = torch.rand(4, 50, generator=torch.Generator().manual_seed(0))
ELBOS = [StickingTheLanding(3), ImportanceWeighted(3), DoublyReparameterized(3), ScoreFunction(3), FreeBits(0.1)]


@pytest.mark.parametrize("elbo", ELBOS, ids=lambda elbo: type(elbo).__name__)
def test_densities_in_bfloat16_are_refused_by_a_cure_that_works(elbo):
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(ValueError, match=r"its distribution is in 16 bits.*torch.autocast.*Normal\(loc.float\(\)"):
            elbo.differentiable_loss(Linear().model, Linear().guide, X)
        program = Linear(cast=True)
        torch.manual_seed(1)
        lowered = elbo.differentiable_loss(program.model, program.guide, X)
    lowered.backward()
    torch.manual_seed(1)
    loss = elbo.differentiable_loss(program.model, program.guide, X)
    assert lowered.dtype == torch.float32 and program.decoder.weight.grad is not None
    torch.testing.assert_close(lowered, loss, rtol=0.01, atol=0)  # the networks alone were lowered


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


def test_comparisons_and_evidence_keep_autocast_out():
    program = Linear()
    calls = (
        lambda: evaluate(program, X).bound,
        lambda: log_evidence(program.model, program.guide, X, 5, seed=0).log_px,
        lambda: torch.tensor(compare_estimators(
            program.model, program.guide, X, estimators={"L^A": Trace_ELBO()}, draws=5, progress=False
        ).estimators["L^A"].bound.mean),
    )  # fmt: skip
    for call in calls:
        wanted = call()
        for caller in (lambda: torch.autocast("cpu", torch.bfloat16), torch.inference_mode):
            with caller():
                assert torch.equal(call(), wanted)
