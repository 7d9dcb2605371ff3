"""GDReG: the exact gradient by quadrature, the priors' path by hand, and a lower variance of the priors' gradient."""

import pytest
import torch
from estimator_programs import (
    Chain,
    P,
    TwoLayers,
    assert_equal,
    assert_mean,
    assert_same_mean,
    estimate,
    exact_gradient,
    known_programs,
    variances,
)

from pyro_vae.estimators import DoublyReparameterized, GeneralizedDReG

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("float64")]


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("K", [1, 2])
def test_the_mean_gradient_is_that_of_the_bound(number, K):
    program, x = known_programs()[number]
    _, expected = exact_gradient(program, x, lambda log_w: log_w.exp().mean(-1).log(), K)
    assert_mean(GeneralizedDReG(K), program, x, expected)


@pytest.mark.parametrize("vectorize", [True, False])
def test_the_gradient_of_a_prior_by_hand(vectorize):
    """(w̃ ∂log p(y | z)/∂z − w̃² ∂log w/∂z) times 1 for m and (z − m) for log s."""
    program, K, y = Chain(), 3, torch.tensor([1.0, 0.0])
    ours = estimate(GeneralizedDReG(K, vectorize=vectorize), program, y)[1]
    dreg = estimate(DoublyReparameterized(K, vectorize=vectorize), program, y)[1]
    torch.manual_seed(0)
    traces = GeneralizedDReG(K, vectorize=vectorize)._get_trace(program.model, program.guide, (y,), {})
    z1, z2 = (traces[1].nodes[name]["value"].detach().requires_grad_() for name in ("z1", "z2"))
    p1, p2, q1, q2 = program.p_z1(), program.p_z2(z1), program.q_z1(), program.q_z2(z1)
    log_p_y = program.p_y(z1, z2).log_prob(y)
    log_w = p1.log_prob(z1) + p2.log_prob(z2) + log_p_y - q1.log_prob(z1) - q2.log_prob(z2)
    share = log_w.detach().softmax(0)
    slopes = torch.autograd.grad(log_w.sum(), [z1, z2], retain_graph=True)
    others = torch.autograd.grad((p2.log_prob(z2) + log_p_y).sum(), z1, retain_graph=True)[0]
    of_y = torch.autograd.grad(log_p_y.sum(), z2, retain_graph=True)[0]
    pulls = share * others - share**2 * slopes[0], share * of_y - share**2 * slopes[1]
    expected = {
        "m": -pulls[0].sum(),
        "log_s": -(pulls[0] * (z1 - program.m)).sum(),
        "a": -(pulls[1] * z1.tanh()).sum(),
        "log_t": -(pulls[1] * (z2 - program.a * z1.tanh())).sum(),
    }
    assert_equal({key: ours[key] for key in expected}, {key: value.detach() for key, value in expected.items()})
    same = set(dreg) - set(expected)
    assert_equal({key: ours[key] for key in same}, {key: dreg[key] for key in same})


def test_a_prior_without_parameters_leaves_the_others_their_paths():
    """That of z1, the first, is frozen; the gradients of p(z2 | z1) stay."""
    program, y = Chain(), torch.tensor([1.0, 0.0])
    expected = estimate(GeneralizedDReG(3), program, y)[1]
    for fixed in (program.m, program.log_s):
        fixed.requires_grad_(False)
    torch.manual_seed(0)
    GeneralizedDReG(3).loss_and_grads(program.model, program.guide, y)
    slopes = {key: value.grad for key, value in program.named_parameters() if value.grad is not None}
    assert_equal(slopes, {key: value for key, value in expected.items() if key not in ("m", "log_s")})


def test_a_masked_prior_has_no_gradient():
    """Its value counts in p(y | z) alone."""

    class Hidden(Chain):
        def p_z2(self, z1):
            return super().p_z2(z1).mask(False)

        def q_z2(self, z1):
            return super().q_z2(z1).mask(False)

    slopes = estimate(GeneralizedDReG(3), Hidden(), torch.tensor([1.0, 0.0]))[1]
    assert slopes["a"] == slopes["log_t"] == 0 != slopes["b"] and slopes["m"] != 0


def test_the_variance_of_the_priors_gradient_falls():
    program, y = Chain(), torch.ones(1)
    ours, theirs = (variances(kind(16), program, y, n=200) for kind in (GeneralizedDReG, DoublyReparameterized))
    assert ours["a"] < 0.4 * theirs["a"] and ours["log_t"] < 0.2 * theirs["log_t"]  # of p(z2 | z1)
    assert ours["b"] == pytest.approx(theirs["b"])


def test_shared_parameters_in_two_layers_have_the_mean_of_dreg():
    program = TwoLayers()
    x, y = torch.randn(1, P), torch.randint(2, (1, P)).double()
    args = x.expand(1000, P), y.expand(1000, P)
    assert_same_mean(GeneralizedDReG(4), DoublyReparameterized(4), program, *args)
