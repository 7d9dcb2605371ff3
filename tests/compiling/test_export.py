"""Pyro programs traced and compiled: the same losses, gradients and draws; what cannot be; nothing left behind."""

import shutil
from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO, trace_elbo, trace_mean_field_elbo
from torch import nn
from torch.func import functional_call, grad_and_value

from pyro_vae import VAE, guides, handlers, likelihoods, load, networks, priors
from pyro_vae.compiling import export as compiling
from pyro_vae.compiling.export import Loss, Untraceable, compiled, tensors_only, traced
from pyro_vae.estimators import DoublyReparameterized, ImportanceWeighted, ScoreFunction, StickingTheLanding, WakeSleep
from pyro_vae.linear_gaussian import LinearGaussian, mean_field_guide
from pyro_vae.networks import lowered_precision

PIXELS = load("digits").train.images[:6]
SHAPE = tuple(PIXELS.shape[1:])
COMPILER = pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
LIKELIHOODS = {
    "Bernoulli": 1,
    "ContinuousBernoulli": 1,
    "Normal": 2,
    "Beta": 2,
    "Categorical": 16,
    "DiscretizedLogistic": 2,
}
ESTIMATORS = {
    "trace, three in turn": Trace_ELBO(3),
    "trace, three at once": Trace_ELBO(3, vectorize_particles=True, max_plate_nesting=1),
    "mean field": TraceMeanField_ELBO(),
    "sticking the landing": StickingTheLanding(),
    "importance weighted": ImportanceWeighted(3),
    "score function": ScoreFunction(2, baseline="leave-one-out"),
    "wake-sleep": WakeSleep(),
    "free bits": handlers.FreeBits(0.1),
}


def small_vae(family="Bernoulli", prior=None, guide=None, latent=3):
    torch.manual_seed(0)
    decoder = networks.MLPDecoder(latent, SHAPE, LIKELIHOODS[family], hidden=(8,))
    posterior = (guide or guides.MeanField)(networks.MLPEncoder(SHAPE, hidden=(8,)), latent)
    return VAE((prior or priors.StandardNormal)(latent), getattr(likelihoods, family)(decoder), posterior)


def loss_of(program, elbo=None):
    return Loss(elbo or Trace_ELBO(), program.model, program.guide, getattr(program, "observe", None))


def assert_same(loss, args=(PIXELS,), rtol=1e-5, leaves=()):
    """The traced loss and its gradient, taken by torch.func, are those of the eager loss under the same seed."""
    graph = traced(loss, args)
    names, values = zip(*graph.named_parameters())
    torch.manual_seed(1)
    eager = loss(*args)
    elsewhere = {leaf.data_ptr(): leaf for leaf in leaves}
    trained = [elsewhere.get(value.data_ptr(), value) for value in values]
    gradients = torch.autograd.grad(eager, trained, allow_unused=True)
    torch.manual_seed(1)
    function = grad_and_value(lambda values: functional_call(graph, dict(zip(names, values)), args))
    other, value = function([value.detach() for value in values])
    # a loss may be small as a difference of large terms, of a nat or so a pixel
    torch.testing.assert_close(value, eager.detach(), rtol=rtol, atol=rtol * args[0].numel())
    for name, a, b in zip(names, other, gradients):
        b = torch.zeros_like(a) if b is None else b
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * b.abs().max().item(), msg=name)


@pytest.mark.parametrize("family", LIKELIHOODS)
def test_every_likelihood(family):
    assert_same(loss_of(small_vae(family)))


@pytest.mark.parametrize("elbo", ESTIMATORS.values(), ids=ESTIMATORS)
def test_every_estimator_that_can_be_traced(elbo):
    assert_same(loss_of(small_vae(), elbo))


@pytest.mark.parametrize("prior", [priors.DiagonalNormal, lambda d: priors.Mixture(d, 4), priors.Flow])
def test_priors(prior):
    assert_same(loss_of(small_vae(prior=prior)))


def test_a_prior_that_shares_the_guides_parameters():
    vae = small_vae()
    vae.prior = priors.Vamp(vae.posterior, PIXELS / 255)
    assert_same(loss_of(vae))


@pytest.mark.parametrize("guide", [guides.FullRank, lambda net, d: guides.LowRank(net, d, 1), guides.Flow])
def test_guides(guide):
    assert_same(loss_of(small_vae(guide=guide)))


def test_convolutions_whose_channels_are_turned_innermost():
    torch.manual_seed(0)
    vae = VAE(
        priors.StandardNormal(3),
        likelihoods.Bernoulli(networks.ConvDecoder(3, SHAPE, 1, channels=(8, 8))),
        guides.MeanField(networks.ConvEncoder(SHAPE, channels=(8, 8)), 3),
    )

    def nodes(target):
        parts = [part for part in traced(loss_of(vae), (PIXELS,)).modules() if isinstance(part, torch.fx.GraphModule)]
        return [node for part in parts for node in part.graph.nodes if node.target == target]

    with lowered_precision(vae, torch.bfloat16):
        values = []
        for loss in (loss_of(vae), traced(loss_of(vae), (PIXELS,))):
            torch.manual_seed(1)
            values.append(loss(PIXELS).detach())
        torch.testing.assert_close(*values, rtol=4e-3, atol=0)  # of other sums, in bfloat16
        assert len(nodes(torch.ops.aten.contiguous.default)) == 2 * 2  # the ends of the networks are products
    assert_same(loss_of(vae), rtol=1e-4)
    assert not nodes(torch.ops.aten.contiguous.default)


def test_bfloat16():
    vae = small_vae()
    with lowered_precision(vae, torch.bfloat16):
        assert_same(loss_of(vae), rtol=1e-5)


def test_buffers_are_read_at_each_call():
    weighted = handlers.KLWeighted(small_vae(), beta=0.0)
    loss = loss_of(weighted)
    graph = traced(loss, (PIXELS,))
    for beta in (1.0, 2.0):
        weighted.set_beta(beta)
        torch.manual_seed(1)
        eager = loss(PIXELS)
        torch.manual_seed(1)
        torch.testing.assert_close(graph(PIXELS), eager)


def test_functions_whose_parameters_lie_in_pyros_store():
    pyro.clear_param_store()
    layer = nn.Linear(3, 2)

    def guide(x):
        pyro.module("layer", layer)
        scale = pyro.param("scale", torch.ones(2), constraint=dist.constraints.positive)
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(layer(x), scale).to_event(1))

    def model(x):
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True).expand(-1, 3), 1.0).to_event(1), obs=x)

    loss, x = Loss(Trace_ELBO(), model, guide), torch.rand(5, 3)
    loss(x)
    scale = pyro.get_param_store().get_param("scale").unconstrained()
    assert_same(loss, (x,), leaves=[scale])
    assert {p.data_ptr() for p in loss.others} == {p.data_ptr() for p in (scale, *layer.parameters())}
    pyro.clear_param_store()


@COMPILER
def test_compiled_is_a_module_with_the_programs_parameters_for_batches_of_any_size():
    program = LinearGaussian(torch.ones(3, 2))
    program.posterior = mean_field_guide(program)
    loss = compiled(Trace_ELBO(), program.model, program.guide, program.simulate(5))
    assert {id(p) for p in loss.parameters()} == {id(p) for p in program.parameters()}
    for x in program.simulate(5), program.simulate(3):
        values = []
        for function in loss, Trace_ELBO()(program.model, program.guide):
            program.zero_grad()
            torch.manual_seed(2)
            value = function(x)
            value.backward()
            values.append([value.detach(), *(p.grad for p in program.parameters())])
        for a, b in zip(*values):
            torch.testing.assert_close(a, b)
    assert loss(x) != loss(x)  # drawn anew


def test_the_random_numbers_go_on_as_if_nothing_had_been_traced():
    loss, state = loss_of(small_vae()), torch.get_rng_state()
    traced(loss, (PIXELS,))
    assert torch.equal(torch.get_rng_state(), state)


class Branching(nn.Module):
    """A program that looks at its data."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(2))

    def model(self, x):
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            if x.sum() > 3:
                z = 2 * z
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(self.loc, 1.0).expand([len(x), 2]).to_event(1))


def originals():
    return [getattr(m, name) for m in (trace_elbo, trace_mean_field_elbo) for name in ("torch_item", "warn_if_nan")]


def test_data_dependent_control_flow_is_named_and_pyro_is_left_as_it_was():
    before, program = originals(), Branching()
    with pytest.raises(Untraceable, match=r"test_export.py, line \d+: `if x.sum\(\) > 3:`.*engine=.eager"):
        traced(loss_of(program), (torch.ones(4, 2),))
    assert originals() == before and pyro.infer.util.is_validation_enabled()


def test_an_estimator_that_torch_cannot_trace_is_named():
    with pytest.raises(Untraceable, match=r"DoublyReparameterized.*engine=.eager"):
        traced(loss_of(small_vae(), DoublyReparameterized(3)), (PIXELS,))


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_torch_compiles_a_kernel_ahead_of_the_first_graph(monkeypatch):
    compiling.warm_up.cache_clear()
    thread = compiling.warm_up()
    assert thread is compiling.warm_up()
    thread.join()
    monkeypatch.setattr(compiling, "suppress", nullcontext)  # it is torch's own function, and may come to be another
    compiling._first_kernel()


def test_without_a_compiler_nothing_is_compiled_ahead(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    compiling.warm_up.cache_clear()
    assert compiling.warm_up() is None
    compiling.warm_up.cache_clear()


def test_pyro_is_left_as_it_was_after_any_exception():
    before = originals()
    with pytest.raises(ZeroDivisionError), tensors_only():
        assert originals() != before
        _ = 1 / 0
    assert originals() == before
