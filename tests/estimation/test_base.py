"""The abstract estimator: what a class that only writes its objective can do."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from estimator_programs import Bits, assert_equal, estimate, gradients, known_programs, name
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam

from pyro_vae.estimation import Description, Estimator, describe
from pyro_vae.estimators import (
    CIWAE,
    OVIS,
    PIWAE,
    TVO,
    Antithetic,
    DoublyReparameterized,
    GeneralizedDReG,
    ImportanceWeighted,
    RenyiBound,
    ScoreFunction,
    StickingTheLanding,
)
from pyro_vae.linear_gaussian import LinearGaussian
from pyro_vae.tracing.traces import log_prob


class Sampled(Estimator):
    """The ELBO with its total derivative, as Trace_ELBO has it."""

    def objective(self, model, guide, args, kwargs):
        model_trace, guide_trace = self._get_trace(model, guide, args, kwargs)
        bound = (log_prob(model_trace) - log_prob(guide_trace)) / self.num_particles
        return bound, bound


@pytest.fixture
def program():
    torch.manual_seed(0)
    program = LinearGaussian(torch.randn(5, 2, dtype=torch.float64), scale=0.7)
    program.posterior.loc_bias.data += 0.3
    return program


def gradient(program, backward):
    program.zero_grad()
    torch.manual_seed(1)
    value = backward()
    return value, [p.grad.clone() for p in program.parameters()]


def test_the_ways_to_a_loss_are_those_of_pyros_elbo(program):
    x = program.simulate(4)
    expected, slopes = gradient(program, lambda: Trace_ELBO().loss_and_grads(program.model, program.guide, x))
    ours = Sampled()
    value, written = gradient(program, lambda: ours.loss_and_grads(program.model, program.guide, x))
    torch.manual_seed(1)
    assert value == pytest.approx(expected) == pytest.approx(ours.loss(program.model, program.guide, x))
    assert isinstance(value, float)
    torch.testing.assert_close(written, slopes)

    def differentiated():
        loss = ours.differentiable_loss(program.model, program.guide, x)
        loss.backward()
        return loss.item()

    value, slopes = gradient(program, differentiated)
    assert value == pytest.approx(expected)
    torch.testing.assert_close(written, slopes)


@pytest.mark.slow
def test_svi_trains_by_it(program):
    x = program.simulate(50)
    svi = SVI(program.model, program.guide, Adam({"lr": 0.02}), Sampled(K=8))
    before = program.elbo(x).sum().item()
    for _ in range(50):
        svi.step(x)
    assert program.elbo(x).sum().item() > before + 1


def test_a_loss_that_is_nan_warns(program):
    class NotANumber(Estimator):
        def objective(self, model, guide, args, kwargs):
            bound = torch.tensor(torch.nan, requires_grad=True)
            return bound, bound

    estimator = NotANumber()
    for call in (estimator.loss, estimator.loss_and_grads, estimator.differentiable_loss):
        with pytest.warns(UserWarning, match="Encountered NaN: loss"):
            call(program.model, program.guide)


def test_the_loss_is_the_bound_and_the_gradient_that_of_the_surrogate(program):
    weight = torch.tensor(2.0, requires_grad=True)

    class Apart(Estimator):
        def objective(self, model, guide, args, kwargs):
            return torch.tensor(3.0), 5 * weight

    estimator = Apart()
    for call in (estimator.loss, estimator.loss_and_grads, estimator.differentiable_loss):
        assert call(program.model, program.guide) == -3.0
    estimator.differentiable_loss(program.model, program.guide).backward()
    assert weight.grad.item() == -10.0  # twice −5


@pytest.mark.parametrize("vectorize", [None, True, False])
def test_particles_together_or_one_by_one_give_the_exact_bound_of_an_exact_guide(program, vectorize):
    program.posterior.loc_bias.data -= 0.3
    x = program.simulate(3)
    wanted = -program.log_px(x).sum().item()
    assert Sampled(3, vectorize=vectorize).loss(program.model, program.guide, x) == pytest.approx(wanted)


def test_of_one_particle_any_shared_plate_gives_the_bound_and_of_more_two_are_refused():
    def model(x):
        with pyro.plate("rows", 3, dim=-2), pyro.plate("columns", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("rows", 3, dim=-2), pyro.plate("columns", 3, dim=-1):
            pyro.sample("z", dist.Normal(x / 3, 1.0))

    x, losses = torch.arange(9.0).reshape(3, 3), []
    for estimator in (Trace_ELBO(), ImportanceWeighted(1)):
        torch.manual_seed(0)
        losses.append(estimator.loss(model, guide, x))
    assert losses[0] == pytest.approx(losses[1])
    with pytest.raises(ValueError, match="plate"):
        ImportanceWeighted(2).loss(model, guide, x)


def test_a_site_without_a_path_has_a_value_and_no_gradient():
    class Weighted(Estimator):
        def objective(self, model, guide, args, kwargs):
            log_w, scale = self._reparameterised_weights(model, guide, args, kwargs)
            return (log_w.mean(0) * scale).sum(), log_w.sum()

    program, y, losses = Bits(), torch.tensor([0.7, -0.2]), []
    for estimator in (Weighted(), Trace_ELBO()):
        torch.manual_seed(0)
        losses.append(estimator.loss(program.model, program.guide, y))
    assert losses[0] == pytest.approx(losses[1])
    with pytest.raises(ValueError, match="'z'"):
        Weighted().differentiable_loss(program.model, program.guide, y)


def test_settings():
    with pytest.raises(ValueError, match="K: wanted a whole number of at least 1, got 0"):
        Sampled(K=0)
    with pytest.raises(ValueError, match="vectorize: got 'yes', wanted True, False or None"):
        Sampled(vectorize="yes")
    with pytest.raises(TypeError, match="abstract"):
        Estimator()


def test_it_claims_nothing():
    assert Sampled.is_bound and describe(Sampled()) == Description()
    with pytest.raises(ValueError, match="Sampled needs independent particles"):
        Antithetic(Sampled(2))


@pytest.mark.parametrize(
    "estimator",
    [
        CIWAE(3),
        DoublyReparameterized(3),
        GeneralizedDReG(3),
        ImportanceWeighted(3, M=2),
        OVIS(3),
        PIWAE(3, M=2),
        RenyiBound(0.5, 3),
        ScoreFunction(3, "leave-one-out"),
        StickingTheLanding(3),
        TVO(3),
    ],
    ids=name,
)
@pytest.mark.usefixtures("float64")
def test_a_scale_multiplies_value_and_gradient(estimator):
    program, x = known_programs()[1]
    loss, expected = estimate(estimator, program, x.expand(4))
    half = pyro.poutine.scale(scale=0.5)
    torch.manual_seed(0)
    scaled = estimator.differentiable_loss(half(program.model), half(program.guide), x.expand(4))
    assert scaled.item() == pytest.approx(loss.item() / 2, rel=1e-12)
    assert_equal(gradients(scaled, program), {key: value / 2 for key, value in expected.items()})
