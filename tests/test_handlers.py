"""Changes to programs against closed forms, against the program without them, and against another estimator."""

import copy
import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from monte_carlo import assert_mean_is
from programs import as_full
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.distributions import kl_divergence

from pyro_vae import guides, likelihoods, networks, priors
from pyro_vae.data.sets import load
from pyro_vae.distributions.transforms import Planar, Pushforward
from pyro_vae.estimators import ImportanceWeighted, ScoreFunction, StickingTheLanding
from pyro_vae.handlers import FreeBits, KLWeight, KLWeighted, LinearWarmUp, Unreparameterized, frozen
from pyro_vae.linear_gaussian import LinearGaussian, LinearPosterior, exact_guide
from pyro_vae.training.loop import evaluate, fit, fixed_x
from pyro_vae.vae import VAE

pytestmark = pytest.mark.usefixtures("float64")

B, P, D = 6, 5, 3


@pytest.fixture
def program():
    program = LinearGaussian(torch.randn(P, D), torch.randn(P), scale=0.7)
    log_scale = torch.tensor([-0.8, -0.3, -0.02])
    program.posterior = LinearPosterior(0.1 * torch.randn(D, P), 0.3 * torch.randn(D), log_scale=log_scale)
    return program


@pytest.fixture
def x(program):
    return program.simulate(B)


def estimate(estimator, model, guide, x, parameters):
    torch.manual_seed(1)
    loss = estimator.differentiable_loss(model, guide, x)
    gradients = torch.autograd.grad(loss, list(parameters), allow_unused=True)
    return loss.detach(), [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients)]


def kl(program, x):
    return kl_divergence(program.posterior(x), program.prior()).sum()


# KL weight ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 0.3, 4.0])
def test_the_weight_changes_loss_and_gradient_by_that_of_the_kl(program, x, beta):
    parameters, weight = list(program.parameters()), KLWeight(beta)
    loss, gradients = estimate(TraceMeanField_ELBO(), program.model, program.guide, x, parameters)
    ours, weighted = estimate(TraceMeanField_ELBO(), weight(program.model), weight(program.guide), x, parameters)
    torch.testing.assert_close(ours, loss + (beta - 1) * kl(program, x).detach())
    of_kl = torch.autograd.grad(kl(program, x), parameters, allow_unused=True)
    for one, other, part in zip(weighted, gradients, of_kl):
        torch.testing.assert_close(one, other if part is None else other + (beta - 1) * part)


@pytest.mark.parametrize("estimator", [Trace_ELBO(), StickingTheLanding(), ScoreFunction()])
def test_a_sampled_kl_is_weighted_too(program, x, estimator):
    torch.manual_seed(1)
    q = program.posterior(x)
    z = q.rsample()
    sampled = (q.log_prob(z) - program.prior().log_prob(z)).sum().detach()
    weight = KLWeight(1.0)
    losses = []
    for weight.beta in (1.0, 0.3):  # set between steps
        losses.append(estimate(estimator, weight(program.model), weight(program.guide), x, program.parameters())[0])
    torch.testing.assert_close(losses[1] - losses[0], -0.7 * sampled)


def test_a_weighted_program_is_itself_in_evaluation_mode(program, x):
    weighted = KLWeighted(program, beta=0.3)
    loss, _ = estimate(TraceMeanField_ELBO(), program.model, program.guide, x, program.parameters())
    ours, _ = estimate(TraceMeanField_ELBO(), weighted.model, weighted.guide, x, weighted.parameters())
    torch.testing.assert_close(ours, loss - 0.7 * kl(program, x).detach())
    torch.testing.assert_close(evaluate(weighted, x).bound, evaluate(program, x).bound, rtol=0, atol=0)
    assert weighted.training
    weighted.set_beta(1.0)
    ours, _ = estimate(TraceMeanField_ELBO(), weighted.model, weighted.guide, x, weighted.parameters())
    torch.testing.assert_close(ours, loss)
    assert not [key for key in weighted.state_dict() if not key.startswith("program.")]


def test_a_weighted_program_trains_the_program(program, x):
    before = copy.deepcopy(program.state_dict())
    weighted = KLWeighted(program, beta=0.3)
    svi = SVI(weighted.model, weighted.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    svi.step(x)
    assert all(not torch.equal(before[key], value) for key, value in program.state_dict().items())


@pytest.mark.slow
def test_fit_warms_up_and_reports_the_bound_without_beta():
    torch.set_default_dtype(torch.float32)
    digits, latent = load("digits"), 2
    likelihood = likelihoods.Bernoulli(networks.MLPDecoder(latent, digits.shape, maps=1, hidden=(8,)))
    posterior = guides.MeanField(networks.MLPEncoder(digits.shape, hidden=(8,)), latent)
    vae = VAE(priors.StandardNormal(latent), likelihood, posterior)
    weighted, betas = KLWeighted(vae), []
    posterior.register_forward_hook(lambda *_: betas.append(float(weighted.beta)))

    def optimizer(parameters):
        return weighted.anneal(torch.optim.Adam(parameters, lr=1e-2), LinearWarmUp(steps=4, end=2.0))

    history = fit(weighted, digits, epochs=1, batch_size=256, optimizer=optimizer, progress=False)
    assert [beta for beta, _ in itertools.groupby(betas)] == [0.0, 0.5, 1.0, 1.5, 2.0]
    summary = evaluate(vae, fixed_x(vae, digits.valid.images)).summary()
    assert history.rows[0]["valid_bound"] == pytest.approx(summary["bound"])


def test_an_importance_weight_with_a_kl_weight_is_refused(program, x):
    weighted = KLWeighted(program, beta=0.3)
    with pytest.raises(ValueError, match="not an importance weight"):
        ImportanceWeighted(2).loss(weighted.model, weighted.guide, x)
    ImportanceWeighted(2).loss(weighted.eval().model, weighted.guide, x)


@pytest.mark.parametrize("beta", [-0.1, math.nan, math.inf])
def test_bad_weights(program, beta):
    for make in (KLWeight, lambda b: KLWeighted(program, b), KLWeighted(program).set_beta):
        with pytest.raises(ValueError, match="beta: got"):
            make(beta)


def test_without_a_weight_the_program_is_trained_as_it_is(program, x):
    loss, gradients = estimate(Trace_ELBO(), program.model, program.guide, x, program.parameters())
    weighted = KLWeighted(program)
    ours, same = estimate(Trace_ELBO(), weighted.model, weighted.guide, x, program.parameters())
    torch.testing.assert_close(ours, loss)
    torch.testing.assert_close(same, gradients)


def test_a_schedule_counts_the_steps_of_an_optimiser_of_several_groups(program):
    weighted, warm_up, parameters = (
        KLWeighted(program, beta=0.5),
        LinearWarmUp(4, start=0.5, end=2.5),
        program.parameters(),
    )
    optimizer = weighted.anneal(torch.optim.SGD([{"params": [p]} for p in parameters], lr=0.0), warm_up)
    betas = [float(weighted.beta)]
    for _ in range(3):
        optimizer.step()
        betas.append(float(weighted.beta))
    assert betas == [0.5, 1.0, 1.5, 2.0]
    state, again = optimizer.state_dict(), KLWeighted(program)
    resumed = again.anneal(torch.optim.SGD([{"params": [p]} for p in program.parameters()], lr=0.0), warm_up)
    resumed.load_state_dict(state)
    assert float(again.beta) == 2.0
    resumed.step()
    assert float(again.beta) == 2.5


def test_warm_up():
    warm_up = LinearWarmUp(steps=10, start=0.2, end=4.0)
    assert [warm_up(step) for step in (0, 5, 10, 11)] == pytest.approx([0.2, 2.1, 4.0, 4.0])
    with pytest.raises(ValueError, match="steps: got 0"):
        LinearWarmUp(steps=0)
    with pytest.raises(ValueError, match="beta: got -1"):
        LinearWarmUp(steps=1, start=-1)


# Free bits ------------------------------------------------------------------------------------------------------------


def test_without_free_bits_it_is_the_analytic_bound(program, x):
    parameters = list(program.parameters())
    loss, gradients = estimate(TraceMeanField_ELBO(), program.model, program.guide, x, parameters)
    ours, free = estimate(FreeBits(0.0), program.model, program.guide, x, parameters)
    torch.testing.assert_close(ours, loss)
    torch.testing.assert_close(free, gradients)


@pytest.mark.parametrize("K", [1, 4])
def test_free_bits_by_hand(program, x, K):
    parameters = list(program.parameters())
    q = program.posterior(x)
    dimensions = kl_divergence(q.base_dist, program.prior().base_dist).mean(0)
    nats = dimensions.sort().values[1:].mean().item()  # between the second and the third
    ours, free = estimate(FreeBits(nats, K), program.model, program.guide, x, parameters)
    torch.manual_seed(1)
    z = q.expand((K, B) if K > 1 else (B,)).rsample()
    cost = B * torch.where(dimensions > nats, dimensions, nats).sum()
    by_hand = cost - program.likelihood(z).log_prob(x).sum() / K
    torch.testing.assert_close(ours, by_hand.detach())
    torch.testing.assert_close(free, list(torch.autograd.grad(by_hand, parameters)))
    assert (dimensions < nats).sum() == 2


def test_a_site_that_is_not_factorised_is_one_group(program, x):
    program.posterior = exact_guide(program)
    total = kl_divergence(program.posterior(x), as_full(program.prior())).mean().item()
    torch.manual_seed(1)
    below = FreeBits(0.9 * total).loss(program.model, program.guide, x)
    torch.manual_seed(1)
    at_zero = FreeBits(0.0).loss(program.model, program.guide, x)
    torch.manual_seed(1)
    above = FreeBits(total + 2.0).loss(program.model, program.guide, x)
    assert below == pytest.approx(at_zero)
    assert above == pytest.approx(at_zero + 2.0 * B)


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.direction = nn.Parameter(torch.randn(1 + 2 * D))

    def forward(self, x):
        base = dist.Normal(x[:, :D], 0.6).to_event(1)
        return Pushforward(base, [Planar(self.direction.split([1, D, D]))])


def test_free_bits_refuse_what_they_cannot_count(program, x):
    with pytest.raises(ValueError, match="nats: got -1"):
        FreeBits(-1)
    weight = KLWeight(0.5)
    with pytest.raises(ValueError, match="site 'z' is scaled or masked"):
        FreeBits(0.1).loss(weight(program.model), weight(program.guide), x)
    program.posterior = Mixed()
    with pytest.raises(ValueError, match="site 'z': no closed form is registered"):
        FreeBits(0.1).loss(program.model, program.guide, x)


def test_free_bits_refuse_another_order():
    def program(*names):
        for name in names:
            pyro.sample(name, dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"draws \['a', 'b'\] and the guide \['b', 'a'\]"):
        FreeBits(0.1).loss(lambda: program("a", "b"), lambda: program("b", "a"))


def normal_program(plate, latent=lambda x: dist.Normal(0.4 * x, 0.7)):
    def model(x):
        with plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(x.shape), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with plate(x):
            pyro.sample("z", latent(x))

    return model, guide


@pytest.mark.parametrize("K", [1, 4])
@pytest.mark.parametrize("plate", [lambda x: pyro.plate("data"), lambda x: pyro.plate("particles", len(x))])
def test_free_bits_are_those_of_every_draw_whatever_the_plate_is_called_or_sized(plate, K):
    values, losses = torch.randn(5), []
    for each in (plate, lambda x: pyro.plate("images", len(x))):
        torch.manual_seed(1)
        losses.append(FreeBits(5.0, K).loss(*normal_program(each), values))
    assert losses[0] == pytest.approx(losses[1])


@pytest.mark.slow
def test_free_bits_of_particles_one_by_one():
    """Two layers, so that each particle has a KL of its own; it is their mean that has to exceed the free nats."""

    def program(loc, slope, observes):
        def function():
            with pyro.plate("images", 3):
                a = pyro.sample("a", dist.Normal(loc, 1.0))
                b = pyro.sample("b", dist.Normal(slope * a, 1.0))
                if observes:
                    pyro.sample("x", dist.Normal(b, 1.0), obs=torch.ones(3))

        return function

    model, guide = program(0.0, 1.0, True), program(0.3, 2.0, False)
    both = (FreeBits(0.5, 4, vectorize=vectorize) for vectorize in (True, False))
    together, apart = (torch.tensor([each.loss(model, guide) for _ in range(150)]) for each in both)
    assert_mean_is(together, apart.mean(), error=apart.std() / 150**0.5, sees=3.0)


def test_free_bits_refuse_guides_that_they_would_give_no_gradient_or_no_kl():
    values = torch.randn(5)
    model, guide = normal_program(lambda x: pyro.plate("data", len(x)))

    def bernoulli(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def bernoulli_guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=x))

    def scoring(x):
        guide(x)
        pyro.sample("a", dist.Normal(0.0, 1.0), obs=x[0], infer={"is_auxiliary": True})

    with pytest.raises(ValueError, match="site 'z' of the guide is not reparameterised"):
        FreeBits(0.1).differentiable_loss(bernoulli, bernoulli_guide, values)
    assert math.isfinite(FreeBits(0.1).loss(bernoulli, bernoulli_guide, values))
    with pytest.raises(ValueError, match=r"the guide scores \['a'\], which it does not draw"):
        FreeBits(0.1).loss(model, scoring, values)
    point = normal_program(lambda x: pyro.plate("data", len(x)), lambda x: dist.Delta(x))
    with pytest.raises(ValueError, match="site 'z' of the guide is a point"):
        FreeBits(0.1).loss(*point, values)
    half = normal_program(lambda x: pyro.plate("data", len(x)), lambda x: dist.Normal(x, 1.0).mask(x > 0))
    with pytest.raises(ValueError, match="site 'z': its mask"):
        FreeBits(0.1).loss(*half, values)


# Frozen parameters ----------------------------------------------------------------------------------------------------


def test_frozen_parameters_rest_even_under_momentum(program, x):
    optimizer = torch.optim.Adam(program.parameters(), lr=0.1)

    def step():
        optimizer.zero_grad(set_to_none=False)
        Trace_ELBO()(program.model, program.guide)(x).backward()
        optimizer.step()

    step()
    before, gradient = copy.deepcopy(program.state_dict()), program.posterior.loc_bias.grad
    with frozen(program.posterior, program.bias):
        step()
    for key, value in program.state_dict().items():
        rested = key.startswith("posterior") or key == "bias"
        assert torch.equal(before[key], value) == rested, key
    assert all(parameter.requires_grad for parameter in program.parameters())
    assert program.posterior.loc_bias.grad is gradient
    step()
    assert not torch.equal(before["posterior.loc_bias"], program.posterior.loc_bias)


def test_frozen_parameters_of_the_store_rest_under_svi():
    def model(x):
        shift = pyro.param("shift", torch.tensor(0.0))
        with pyro.plate("images", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(shift, 1.0)), 1.0), obs=x)

    def guide(x):
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(1.0, scale))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    store = pyro.get_param_store()

    def values_after_a_step():
        svi.step(torch.ones(5))
        return pyro.param("shift").item(), pyro.param("scale").item()

    first = values_after_a_step()
    with frozen(dict(store.named_parameters())["scale"]):
        second = values_after_a_step()
    assert second[0] != first[0] and second[1] == first[1]
    with frozen(store):
        assert values_after_a_step() == second
    third = values_after_a_step()
    assert third[0] != second[0] and third[1] != second[1]


def test_frozen_ends_with_an_error_and_refuses_what_holds_no_parameters(program):
    with pytest.raises(RuntimeError, match="inside"), frozen(program):
        raise RuntimeError("inside")
    assert all(parameter.requires_grad for parameter in program.parameters())
    for wrong in (program.weight * 2, [program], "posterior"):
        with pytest.raises(ValueError, match="frozen: got"), frozen(wrong):
            pass


# Score function -------------------------------------------------------------------------------------------------------


def test_an_unreparameterised_guide_has_the_gradient_of_the_score_function(program, x):
    """Also where the distribution is an Independent, which Pyro's own switch refuses."""
    parameters, guide = list(program.parameters()), Unreparameterized()(program.guide)
    loss, ours = estimate(Trace_ELBO(), program.model, guide, x, parameters)
    value, expected = estimate(ScoreFunction(), program.model, program.guide, x, parameters)
    torch.testing.assert_close(loss, value)
    torch.testing.assert_close(ours, expected)
    _, total = estimate(Trace_ELBO(), program.model, program.guide, x, parameters)
    assert (ours[-1] - total[-1]).abs().max() > 1


def test_particles_may_surround_it(program, x):
    pyros = Trace_ELBO(3, max_plate_nesting=1, vectorize_particles=True)  # its own search would draw from the generator
    parameters, guide = list(program.parameters()), Unreparameterized("z")(program.guide)
    _, ours = estimate(pyros, program.model, guide, x, parameters)
    _, expected = estimate(ScoreFunction(3), program.model, program.guide, x, parameters)
    torch.testing.assert_close(ours, expected)


def test_a_flow_is_scored_at_its_draw(program, x):
    program.posterior = Mixed()
    parameters, guide = list(program.parameters()), Unreparameterized()(program.guide)
    _, ours = estimate(Trace_ELBO(), program.model, guide, x, parameters)
    _, expected = estimate(ScoreFunction(), program.model, program.guide, x, parameters)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-8)


def test_only_the_named_sites_are_switched():
    loc = torch.zeros(2, requires_grad=True)

    def guide():
        return [pyro.sample(name, dist.Normal(loc, 1.0).to_event(1)).requires_grad for name in ("a", "b")]

    assert Unreparameterized("b")(guide)() == [True, False]
    assert Unreparameterized()(guide)() == [False, False]
    with pytest.raises(ValueError, match=r"no reparameterised site \['c'\]"):
        Unreparameterized("b", "c")(guide)()


def test_path_estimators_see_the_switch(program, x):
    with pytest.raises(ValueError, match="site 'z' of the guide is not reparameterised"):
        StickingTheLanding().differentiable_loss(program.model, Unreparameterized()(program.guide), x)


def test_a_weight_that_the_schedule_would_replace_is_refused():
    program = LinearGaussian(torch.ones(3, 1))
    adam = torch.optim.Adam(program.parameters())
    with pytest.raises(ValueError, match=r"given 4, .* from 0 to 1; write LinearWarmUp\(steps, end=4\)"):
        KLWeighted(program, beta=4.0).anneal(adam, LinearWarmUp(100))
    for beta, schedule in ((4.0, LinearWarmUp(100, end=4.0)), (0.0, LinearWarmUp(100)), (4.0, [0.0, 1.0].__getitem__)):
        KLWeighted(program, beta).anneal(torch.optim.Adam(program.parameters()), schedule)
