"""Straight-through gradients: where they are exact, and how far they are off elsewhere, by enumeration."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from estimator_programs import (
    Bits,
    Choice,
    assert_mean,
    assert_scale_multiplies,
    draws,
    enumerated_gradient,
    mixture,
)
from programs import linear_gaussian
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import nn

from pyro_vae.estimation.description import describe
from pyro_vae.estimators import ReinMax, ScoreFunction, StraightThrough

pytestmark = pytest.mark.usefixtures("float64")


def offset(estimator, program, y, n=20_000, runs=20):
    """Return the bias of the guide's gradient over the size of the exact one, and its standard error."""
    size = program.logits.numel()
    exact = enumerated_gradient(program, y)[:size]
    found = draws(estimator, program, (y.expand(n),), runs)[:, :size] / n
    scale = exact.norm()
    return ((found.mean(0) - exact).norm() / scale).item(), ((found.var(0) / runs).sum().sqrt() / scale).item()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Choice, Bits])
def test_enumeration_is_pyros(kind):
    program, y = kind(infer={"enumerate": "parallel"}), torch.tensor([0.7])
    if kind is Choice:
        loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(program.model, program.guide, y)
        expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(program.parameters()))])
        torch.testing.assert_close(enumerated_gradient(program, y), expected)
    assert_mean(ScoreFunction(4, "leave-one-out"), program, y, enumerated_gradient(program, y), n=500)


@pytest.mark.slow
@pytest.mark.parametrize("K", [1, 3])
@pytest.mark.parametrize("vectorize", [None, False])
def test_reinmax_is_exact_for_quadratics(K, vectorize):
    program, y = Choice(), torch.tensor([0.7])
    n = 2000 if vectorize is None else 300
    assert_mean(ReinMax(K, vectorize=vectorize), program, y, enumerated_gradient(program, y), n=n)


def test_reinmax_is_exact_for_single_bits_in_a_quadratic():
    program, y = Bits(cubic=0.0), torch.tensor([0.7])
    program.logits.data = program.logits.data[:1]
    program.prior.data, program.weight.data = program.prior.data[:1], program.weight.data[:1]
    assert_mean(ReinMax(), program, y, enumerated_gradient(program, y))


@pytest.mark.slow
def test_both_are_biased_elsewhere_and_reinmax_less():
    program, y = Choice(bent=1.0), torch.tensor([0.7])
    second, error = offset(ReinMax(), program, y)
    first, other = offset(StraightThrough(), program, y)
    cold, _ = offset(StraightThrough(temperature=0.3), program, y)
    assert second > 5 * error and first > 5 * other
    assert second < 0.5 * first and cold < first


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [StraightThrough(), ReinMax(2)])
def test_the_models_gradient_is_unbiased_and_the_guides_is_not_claimed(estimator):
    program, y = Choice(bent=1.0), torch.tensor([0.7])
    expected, size = enumerated_gradient(program, y), program.logits.numel()
    found = draws(estimator, program, (y.expand(2000),), 40)[:, size:] / 2000
    z = (found.mean(0) - expected[size:]) / (found.var(0) / 40).sqrt()
    assert z.abs().max() < 5
    assert (describe(estimator).guide_gradient, describe(estimator).model_gradient) == (None, "ELBO")


class Seen(Choice):
    """Keeps the draw that the model was given."""

    def p_y(self, z):
        self.z = z
        return super().p_y(z)


@pytest.mark.parametrize(
    ("estimator", "K"), [(StraightThrough(), 1), (ReinMax(), 1), (StraightThrough(3), 3), (ReinMax(3), 3)]
)
def test_draws_are_hard_and_the_loss_is_the_bound_at_them(estimator, K):
    program, y = Seen(bent=1.0), torch.tensor([0.7, -0.2])
    loss = estimator.loss(program.model, program.guide, y)
    assert ((program.z - program.z.round()).abs() < 1e-12).all() and program.z.max(-1).values.allclose(torch.ones(()))
    assert loss == pytest.approx(-program.log_w(y, program.z).sum().item() / K)
    assert describe(estimator).plain


@pytest.mark.parametrize("kind", [Choice, Bits])
@pytest.mark.parametrize("estimator", [StraightThrough(), ReinMax()])
def test_masked_rows_count_nothing(estimator, kind):
    program, y = kind(), torch.tensor([0.7, 0.7])
    masked = poutine.mask(mask=torch.tensor([True, False]))
    program.logits = nn.Parameter(program.logits.detach().repeat(2, 1))
    torch.manual_seed(0)
    loss = estimator.differentiable_loss(masked(program.model), masked(program.guide), y)
    (found,) = torch.autograd.grad(loss, program.logits)
    assert found[0].abs().max() > 0 and found[1].abs().max() == 0


@pytest.mark.parametrize("kind", [Choice, Bits])
@pytest.mark.parametrize("estimator", [StraightThrough(2), ReinMax(2)])
def test_a_scale_multiplies_value_and_gradient(estimator, kind):
    assert_scale_multiplies(estimator, kind(), torch.tensor([0.7, -0.2]))


@pytest.mark.parametrize("estimator", [StraightThrough(2), ReinMax(2)])
def test_reparameterised_sites_keep_the_gradient_of_trace_elbo(estimator):
    """In a program whose parts do not depend on each other, and of which the second alone is discrete."""
    loc, discrete, y = nn.Parameter(torch.tensor(0.4)), Choice(), torch.tensor([0.7, -0.2])

    def model(y):
        with pyro.plate("rows", len(y)):
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
            pyro.sample("of_u", dist.Normal(u.sin(), 0.5), obs=y)

    def guide(y):
        with pyro.plate("rows", len(y)):
            pyro.sample("u", dist.Normal(loc, 0.8))

    def both(first, second):
        return lambda y: (first(y), second(y))

    found = []
    for elbo, programs in (
        (estimator, (both(model, discrete.model), both(guide, discrete.guide))),
        (Trace_ELBO(2, vectorize_particles=True, max_plate_nesting=1), (model, guide)),
    ):
        torch.manual_seed(0)
        found += torch.autograd.grad(elbo.differentiable_loss(*programs, y), loc)
    torch.testing.assert_close(*found)


def test_other_discrete_sites_are_refused():
    program = mixture()
    program.logits = nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"site 'z' of the guide is a Categorical.*write OneHotCategorical"):
        ReinMax().differentiable_loss(program.model, program.guide, torch.zeros(3))
    with pytest.raises(ValueError, match="temperature: "):
        StraightThrough(temperature=0.0)


@pytest.mark.parametrize("estimator", [StraightThrough(), ReinMax(2)])
def test_a_program_without_a_draw_to_relax_is_refused(estimator):
    program = linear_gaussian()
    with pytest.raises(ValueError, match=f"so that {type(estimator).__name__} has no draw to relax.*Landing for repar"):
        estimator.loss(program.model, program.guide, program.simulate(2))
