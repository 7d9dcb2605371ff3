"""What every prior, likelihood and guide owes the program, alone and in every combination with the others.

The networks are small; what each part computes is tested in its own module's tests.
"""

import copy
import inspect
import itertools

import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.nn.auto_reg_nn import MaskedLinear
from torch import nn

from pyro_vae import annealed_evidence, bidirectional, certify, guides, likelihoods, log_evidence, networks, priors
from pyro_vae.config import GUIDE, LIKELIHOOD, NETWORK, PRIOR, PartSettings, build_vae
from pyro_vae.tracing.traces import log_weights, paired_traces, sample_sites

SHAPE, LATENT, BATCH = (1, 8, 8), 3, 8
PIXELS = torch.randint(256, (BATCH, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

SMALL = {"net": "mlp", "hidden": (8,), "latent": LATENT, "components": 4, "rank": 2, "flow_width": 8}


def variants(slot):
    """For each part of a slot: its settings, and one more for each other value of its options that changes it."""
    tried = {"scale": ("pixel", "shared", "0.1")}
    made = {}
    for part in slot.parts():
        made[part.word] = {slot.name: part.word}
        for option in part.options:
            for value in option.choices or tried.get(option.name, ()):
                if value != option.default:
                    made[f"{part.word} {value}"] = {slot.name: part.word, option.name: value}
    return made


PRIORS, LIKELIHOODS, GUIDES = map(variants, (PRIOR, LIKELIHOOD, GUIDE))
PLAIN = ("standard", "bernoulli", "meanfield")
ALONE = [  # each part beside the plainest of the other two kinds
    PLAIN,
    *((prior, *PLAIN[1:]) for prior in PRIORS if prior != PLAIN[0]),
    *((PLAIN[0], likelihood, PLAIN[2]) for likelihood in LIKELIHOODS if likelihood != PLAIN[1]),
    *((*PLAIN[:2], guide) for guide in GUIDES if guide != PLAIN[2]),
]
alone = pytest.mark.parametrize("parts", ALONE, ids="-".join)
combinations = pytest.mark.parametrize("parts", [*itertools.product(PRIORS, LIKELIHOODS, GUIDES)], ids="-".join)


def build(parts):
    """The program of a prior, a likelihood and a guide, by their names, and x."""
    torch.manual_seed(0)
    prior, likelihood, guide = parts
    settings = PartSettings(**SMALL, **PRIORS[prior], **LIKELIHOODS[likelihood], **GUIDES[guide])
    vae = build_vae(settings, PIXELS)
    return vae, vae.observe(PIXELS, torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("module", "slot", "at", "makers"),
    [(priors, "prior", 0, PRIORS), (likelihoods, "likelihood", 1, LIKELIHOODS), (guides, "posterior", 2, GUIDES)],
    ids=["p", "lik", "q"],
)
def test_every_part_has_a_record(module, slot, at, makers):
    """Steps are parts of a flow, and what is abstract is no part; every other module of pictures there has a word."""
    defined = {
        value
        for name, value in inspect.getmembers(module, inspect.isclass)
        if issubclass(value, nn.Module) and value.__module__.startswith(module.__name__)
        if not (name.endswith("Step") or inspect.isabstract(value)) and getattr(value, "field", "images") == "images"
    }
    made = {type(getattr(build((*PLAIN[:at], word, *PLAIN[at + 1 :]))[0], slot)) for word in makers}
    assert made == defined


def test_every_network_has_a_record():
    made = set()
    for word in NETWORK.choices:
        vae = build_vae(PartSettings(**SMALL | {"net": word}), PIXELS)
        made |= {type(vae.posterior.network), type(vae.likelihood.network)}
    defined = {value for _, value in inspect.getmembers(networks, inspect.isclass) if issubclass(value, nn.Module)}
    assert made == {network for network in defined if issubclass(network, networks.Network)} - {networks.Network}


@alone
def test_observed_x_is_an_image_in_the_support(parts):
    vae, x = build(parts)
    assert x.shape == PIXELS.shape and x.is_floating_point()
    assert x.min() >= 0 and x.max() <= 1
    assert vae.likelihood(torch.zeros(BATCH, LATENT)).support.check(x).all()
    again = vae.observe(PIXELS, torch.Generator().manual_seed(1))
    assert torch.equal(x, again)


@alone
@pytest.mark.parametrize("particles", [1, 4])
def test_sites_and_shapes(parts, particles):
    vae, x = build(parts)
    batch = (BATCH,) if particles == 1 else (particles, BATCH)
    model_trace, guide_trace = paired_traces(vae.model, vae.guide, (x,), particles=particles)
    assert list(sample_sites(model_trace)) == ["z", "x"] and list(sample_sites(guide_trace)) == ["z"]
    for site in (model_trace.nodes["z"], guide_trace.nodes["z"], model_trace.nodes["x"]):
        assert site["log_prob"].shape == batch and site["log_prob"].isfinite().all()
        assert [(frame.name, frame.dim) for frame in site["cond_indep_stack"] if frame.name == "images"] == [
            ("images", -1)
        ]
    assert guide_trace.nodes["z"]["value"].shape == (*batch, LATENT)
    assert guide_trace.nodes["z"]["value"].requires_grad  # a reparameterised draw
    assert model_trace.nodes["x"]["fn"].mean.shape == (*batch, *SHAPE)
    assert log_weights(model_trace, guide_trace).shape == (particles, BATCH)


@alone
def test_particles_are_that_many_single_draws(parts):
    """Each particle is scored as it would be alone."""
    vae, x = build(parts)
    model_trace, guide_trace = paired_traces(vae.model, vae.guide, (x,), particles=4)
    together, z = log_weights(model_trace, guide_trace), guide_trace.nodes["z"]["value"].detach()
    for particle, scores in zip(z, together):
        prior, posterior = vae.prior().log_prob(particle), vae.posterior(x).log_prob(particle)
        wanted = vae.likelihood(particle).log_prob(x) + prior - posterior
        torch.testing.assert_close(scores, wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
@alone
@pytest.mark.filterwarnings("ignore::pyro_vae.evidence.StuckChains")
def test_its_evidence_is_estimated_in_every_way(parts):
    vae, x = build(parts)
    settings = {"num_temperatures": 3, "chains": 2, "leapfrog": 1, "seed": 0}
    assert log_evidence(vae.model, vae.guide, x, 3, seed=0).log_px.isfinite().all()
    assert certify(vae.model, vae.guide, x, 3, seed=0).gap.isfinite().all()
    for start in (None, vae.guide):
        assert annealed_evidence(vae.model, start, x, **settings).log_px.isfinite().all()
        assert bidirectional(vae.model, start, x, **settings).gap.isfinite().all()


@alone
def test_densities_keep_their_precision_within_autocast(parts):
    """Of given distributions to the last bit, draws too; of new ones up to what their networks lose."""
    vae, x = build(parts)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    z = torch.randn(4, BATCH, LATENT)
    prior, q, p = vae.prior(), vae.posterior(x), vae.likelihood(z)

    def numbers():
        torch.manual_seed(1)
        return q.log_prob(z), prior.log_prob(z), p.log_prob(x), p.mean, q.rsample((2,)), prior.sample((3,))

    def anew():
        return vae.posterior(x).log_prob(z), vae.prior().log_prob(z), vae.likelihood(z).log_prob(x)

    outside, anew_outside = numbers(), anew()
    with torch.autocast("cpu", torch.bfloat16):
        inside, anew_inside = numbers(), anew()
        drawn = vae.posterior(x).rsample(), vae.likelihood(z).mean, vae.model(n=2)
    assert all(map(torch.equal, inside, outside))
    assert {value.dtype for value in (*anew_inside, *drawn)} == {torch.float32}
    for near, exact in zip(anew_inside, anew_outside):
        torch.testing.assert_close(near, exact, rtol=0.01, atol=0.1)


@alone
def test_it_is_in_float64_where_that_is_the_default(parts):
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        vae, x = build(parts)
        loss = Trace_ELBO().differentiable_loss(vae.model, vae.guide, x)
        assert {x.dtype, loss.dtype, vae.model(n=2).dtype} == {torch.float64}
    finally:
        torch.set_default_dtype(before)


@alone
def test_it_observes_in_the_dtype_of_its_parameters(parts):
    vae = build(parts)[0].double()
    x = vae.observe(PIXELS, torch.Generator().manual_seed(1))
    loss = Trace_ELBO().differentiable_loss(vae.model, vae.guide, x)  # x is in the support, to rounding
    assert x.dtype == loss.dtype == torch.float64


@alone
def test_it_draws_images_forward(parts):
    vae, _ = build(parts)
    x = vae.model(n=5)
    assert x.shape == (5, *SHAPE) and x.isfinite().all()
    assert x[0].ne(x[1]).any()


@alone
def test_state_dict_round_trip_in_float64(parts):
    vae, x = build(parts)
    vae = vae.double()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    other = copy.deepcopy(build(parts)[0]).double()
    other.load_state_dict(vae.state_dict())
    losses = []
    for program in (vae, other):
        torch.manual_seed(2)
        losses.append(Trace_ELBO().differentiable_loss(program.model, program.guide, x.double()))
    assert losses[0].dtype == torch.float64
    assert torch.equal(*losses)


@pytest.mark.slow
@combinations
def test_one_training_step_moves_every_parameter(parts):
    vae, x = build(parts)
    before = copy.deepcopy(dict(vae.named_parameters()))
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-2)
    loss = Trace_ELBO()(vae.model, vae.guide)(x)
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name
        assert parameter.isfinite().all() and not torch.equal(parameter, before[name]), name
    # Of what the networks put out nothing is unused: each parameter of q and of each pixel gets its gradient.
    for last in (vae.posterior.head, [layer for layer in vae.likelihood.modules() if isinstance(layer, nn.Linear)][-1]):
        assert last.bias.grad.all()


@pytest.mark.parametrize("parts", [("autoregressive", *PLAIN[1:]), (*PLAIN[:2], "inverse-autoregressive")])
def test_only_what_a_mask_hides_stands_still(parts):
    """Some weights of an autoregressive network are masked for good: just these have no gradient.

    (Not so for splines, of which a step moves the pieces that some z lies in.)
    """
    vae, x = build(parts)
    Trace_ELBO()(vae.model, vae.guide)(x).backward()
    masked = [layer for layer in vae.modules() if isinstance(layer, MaskedLinear)]
    assert masked
    for layer in masked:
        assert torch.equal(layer.weight.grad != 0, layer.mask != 0)
