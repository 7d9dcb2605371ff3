"""Draws of gradients by a recorded graph against those of the program, on the same random numbers."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from comparing import compare, oracle, pictures
from programs import conv_vae, small_vae
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO

from experiments.discrete import SigmoidBeliefNetwork
from pyro_vae.comparison.drawing import Drawer
from pyro_vae.comparison.replicates import whole
from pyro_vae.compiling.untraceable import Untraceable
from pyro_vae.estimators import (
    Antithetic,
    DoublyReparameterized,
    ImportanceWeighted,
    QuasiMonteCarlo,
    ScoreFunction,
    StickingTheLanding,
)
from pyro_vae.tracing.leaves import find_parameters

KINDS = {
    "L^A": Trace_ELBO(),
    "L^B": TraceMeanField_ELBO(),
    "Renyi": RenyiELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
    "STL": StickingTheLanding(2),
    "IWAE": ImportanceWeighted(3),
    "DReG": DoublyReparameterized(3),
    "antithetic": Antithetic(StickingTheLanding(2)),
    "quasi-random": QuasiMonteCarlo(StickingTheLanding(2)),
}


def drawn(engine, program, x, elbo, draws=6):
    parameters, *_ = find_parameters(program.model, program.guide, (x,))
    drawer = Drawer((program.model, program.guide), [(x,)], {}, parameters, engine)
    torch.manual_seed(1)
    blocks = [
        (
            torch.tensor(block.losses),
            torch.cat([whole(g).flatten(1) for part in block.gradients.values() for g in part], 1),
        )
        for block in drawer.blocks("it", elbo, (x,), draws)
    ]
    return [torch.cat(part) for part in zip(*blocks)]


def assert_same_draws(program, x, elbo, rtol=1e-9):
    for eager, vectorized in zip(drawn("eager", program, x, elbo), drawn("vectorized", program, x, elbo), strict=True):
        assert eager.var(0).sum() > 0
        torch.testing.assert_close(vectorized, eager, rtol=rtol, atol=rtol * eager.abs().max().item())


@pytest.mark.parametrize("name", KINDS)
def test_draws_are_those_of_the_program(name):
    program, x = oracle(offset=0.3)
    if name == "L^B":
        program, x = small_vae().double(), pictures().double()
    assert_same_draws(program, x, KINDS[name])


@pytest.mark.parametrize("elbo", [Trace_ELBO(), DoublyReparameterized(3)])
def test_convolutions(elbo):
    assert_same_draws(conv_vae(), pictures(), elbo, rtol=1e-4)


def test_binary_units():
    torch.manual_seed(0)
    program = SigmoidBeliefNetwork((1, 8, 8), units=5).double()
    assert_same_draws(program, pictures().double(), ScoreFunction(4, "leave-one-out"))


def test_statistics_are_those_of_eager_draws_for_several_batches():
    program, _ = oracle(offset=0.3)
    batches = [(program.simulate(4),), (program.simulate(4),)]
    one, other = (
        compare(program, batches=batches, draws=100, engine=engine, estimators={"L^A": Trace_ELBO()})
        for engine in ("eager", "auto")
    )
    assert not other.eager
    one, other = one.estimators["L^A"], other.estimators["L^A"]
    assert other.bound.mean == pytest.approx(one.bound.mean, rel=1e-12) and other.guide.varying == one.guide.varying
    for group, key in itertools.product(("guide", "model"), ("variance", "snr", "norm_ratio")):
        wanted, found = (getattr(getattr(each, group), key) for each in (one, other))
        assert [found.value, found.low, found.high] == pytest.approx([wanted.value, wanted.low, wanted.high], rel=1e-9)
        assert getattr(other, group).minibatch_variance == pytest.approx(getattr(one, group).minibatch_variance)


def chain():
    def model(x):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        size = pyro.sample("size", dist.Gamma(rate, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(size, 1.0), obs=x)

    def guide(x):
        shape = pyro.param("shape", torch.tensor(3.0), constraint=dist.constraints.positive)
        rate = pyro.sample("rate", dist.Gamma(shape, 1.0))
        pyro.sample("size", dist.Gamma(rate + shape, 1.0))

    return model, guide


def test_what_cannot_be_vectorised_is_drawn_eagerly_and_said():
    x, kinds = torch.ones(3), {"L^A": Trace_ELBO()}
    found = compare(*chain(), x, estimators=kinds, draws=200)
    assert "depends on other random numbers" in found.eager["L^A"] and "drawn one by one: L^A: " in str(found)
    with pytest.raises(Untraceable, match=r'L\^A: .* depends on other random numbers; leave engine="vectorized" out'):
        compare(*chain(), x, estimators=kinds, engine="vectorized")


def test_a_program_that_reads_a_clock_is_not_trusted():
    program, x = oracle(offset=0.3)
    ticks = itertools.count(1)

    class Clock(Trace_ELBO):
        def differentiable_loss(self, *args):
            return super().differentiable_loss(*args) * next(ticks)

    found = compare(program, x, estimators={"clock": Clock()}, draws=200)
    assert "clock" in found.eager


def test_an_operator_that_cannot_be_vectorised_is_refused():
    program, x = oracle(offset=0.3)

    class Sparse(Trace_ELBO):
        def differentiable_loss(self, *args):
            return super().differentiable_loss(*args) + torch.rand(5).to_sparse().to_dense().sum()

    with pytest.raises(Untraceable, match=r'^it: .*; leave engine="vectorized" out'):
        drawn("vectorized", program, x, Sparse())


def test_few_draws_are_not_worth_a_graph():
    program, x = oracle()
    assert drawn("auto", program, x, Trace_ELBO(), draws=3)[0].shape == (3,)
    found = compare(program, x, estimators={"L^A": Trace_ELBO()}, draws=5)
    assert not found.eager


def test_words_that_are_no_engine():
    program, x = oracle()
    with pytest.raises(ValueError, match='engine: wanted "auto", "eager" or "vectorized", got \'fast\''):
        compare(program, x, estimators={"L^A": Trace_ELBO()}, engine="fast")
