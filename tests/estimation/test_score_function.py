"""Score functions of discrete sites: exact gradients by enumeration, and the variance that DisARM claims to lower."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from estimator_programs import (
    Bits,
    Choice,
    assert_mean,
    enumerated_gradient,
    estimate,
    exact_gradient,
    known_programs,
    mixture,
    variances,
)
from pyro.infer import Trace_ELBO, TraceGraph_ELBO
from torch import nn

from pyro_vae.estimators import OVIS, Antithetic, DisARM, ImportanceWeighted, ScoreFunction

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator",
    [DisARM(), DisARM(4), DisARM(4, vectorize=False), ScoreFunction(2), ScoreFunction(4, "leave-one-out")],
)
def test_the_mean_gradient_is_that_by_enumeration(estimator):
    program, y = Bits(), torch.tensor([0.7])
    n = 500 if estimator.runs.vectorize is None else 100
    assert_mean(estimator, program, y, enumerated_gradient(program, y), n=n, runs=100)


@pytest.mark.slow
def test_disarm_varies_less_than_the_leave_one_out_baseline_of_as_many_draws():
    """As Dong et al. (2020) say; with K / 2 pairs of K / 2 times less."""
    program, y = Bits(), torch.tensor([0.7])
    disarm, more = (variances(DisARM(K), program, y, n=500)["logits"] for K in (2, 8))
    baseline = variances(ScoreFunction(2, "leave-one-out"), program, y, n=500)["logits"]
    assert disarm < 0.9 * baseline
    assert disarm / more == pytest.approx(4, rel=0.3)


@pytest.mark.parametrize("estimator", [DisARM(4), ScoreFunction(4), ScoreFunction(4, "leave-one-out")])
def test_the_mean_value_is_the_elbo_by_enumeration(estimator):
    program, y, n = Bits(), torch.tensor([0.7]), 20_000
    z = program.values()
    elbo = (program.q().log_prob(z).exp() * program.log_w(y, z)).sum().item()
    spread = (program.q().log_prob(z).exp() * (program.log_w(y, z) - elbo) ** 2).sum().sqrt().item()
    loss = estimate(estimator, program, y.expand(n))[0].item() / n
    assert loss == pytest.approx(-elbo, abs=4.5 * spread / n**0.5)  # pairs of opposite draws vary no more than twice
    assert spread / n**0.5 < 0.02 < abs(elbo)


def test_by_default_it_has_one_particle_and_the_loss_of_pyro():
    program, y, losses = Bits(), torch.tensor([0.7, -0.2]), []
    for estimator in (ScoreFunction(), Trace_ELBO()):
        torch.manual_seed(0)
        losses.append(estimator.loss(program.model, program.guide, y))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_only_a_baseline_of_other_particles_needs_independent_ones():
    assert Antithetic(ScoreFunction(4)).num_particles == 4
    with pytest.raises(ValueError, match="needs independent particles"):
        Antithetic(ScoreFunction(4, "leave-one-out"))


def test_the_leave_one_out_baseline_lowers_the_variance():
    """log p(y) is far from zero, and weighs each score where there is no baseline."""
    program, y = Bits(), torch.tensor([5.0])
    without, with_it = (
        variances(ScoreFunction(4, kind), program, y, n=200)["logits"] for kind in (None, "leave-one-out")
    )
    assert with_it < 0.5 * without


def test_pairs_are_antithetic_by_hand():
    program, y = Bits(), torch.tensor([0.7, -0.2])
    for vectorize in (None, False):
        ours = estimate(DisARM(2, vectorize=vectorize), program, y)[1]["logits"]
        torch.manual_seed(0)
        traces = DisARM(2, vectorize=vectorize)._get_trace(program.model, program.guide, (y,), {})
        z = traces[1].nodes["z"]["value"]
        assert ((z[0] != z[1]) | (program.logits > 0) == (z[0] + z[1] > 0)).all()
        f = torch.stack([program.log_w(y, z[k]) for k in range(2)]).detach()
        by_hand = 0.5 * ((f[0] - f[1])[:, None] * (z[0] - z[1])).sum(0) * program.logits.abs().sigmoid()
        torch.testing.assert_close(ours, -by_hand.detach())


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("vectorize", [None, False])
def test_the_mean_gradient_of_ovis_is_that_of_l_k(number, vectorize):
    program, x = known_programs()[number]
    _, expected = exact_gradient(program, x, lambda log_w: log_w.exp().mean(-1).log(), K=2)
    assert_mean(OVIS(2, vectorize=vectorize), program, x, expected, n=1000 if vectorize is None else 100)


@pytest.mark.slow
def test_the_signal_of_ovis_grows_with_k_where_that_of_the_total_gradient_falls():
    """On a guide that is wider than the posterior, so that the weights are bounded."""
    program, x = known_programs()[0]
    key = "posterior.loc_bias"

    def signal(estimator):
        found = torch.stack([estimate(estimator, program, x.expand(50, 2), seed)[1][key] for seed in range(100)])
        return (found.mean() / found.std()).abs()

    assert signal(OVIS(128)) > 1.5 * signal(OVIS(4))
    assert signal(ImportanceWeighted(128)) < signal(ImportanceWeighted(4))


def test_ovis_needs_other_particles():
    with pytest.raises(ValueError, match=r"K: wanted at least 2.* got 1; write K=2"):
        OVIS(1)


def test_what_disarm_cannot_take_is_refused():
    with pytest.raises(ValueError, match=r"K: wanted an even number.*got 3; write K=2"):
        DisARM(3)
    program = mixture()
    program.logits = nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"site 'z' of the guide is no Bernoulli \(Categorical\).*leave-one-out"):
        DisARM().differentiable_loss(program.model, program.guide, torch.zeros(3))
    logits = torch.zeros((), requires_grad=True)

    def guide(y):
        with pyro.plate("images", len(y)):
            z1 = pyro.sample("z1", dist.Bernoulli(logits=logits))
            pyro.sample("z2", dist.Bernoulli(logits=logits + z1))

    for vectorize in (None, False):
        with pytest.raises(ValueError, match="site 'z2' of the guide has logits that depend on other draws"):
            DisARM(vectorize=vectorize).differentiable_loss(guide, guide, torch.zeros(50))


@pytest.mark.parametrize("estimator", [ScoreFunction(2), DisARM(2)])
def test_a_factor_of_the_guide_that_is_taken_for_a_draw_is_refused(estimator):
    program = Bits()

    def guide(y):
        program.guide(y)
        pyro.factor("f", program.logits.sum(), has_rsample=False)

    with pytest.raises(ValueError, match="factor 'f' of the guide has has_rsample=False"):
        estimator.differentiable_loss(program.model, guide, torch.ones(2))


@pytest.mark.parametrize("estimator", [ScoreFunction(2, "leave-one-out"), DisARM(2)])
def test_a_factor_of_the_guide_has_its_own_value_and_gradient(estimator):
    """It is a part of log q: what it adds to the loss is known."""
    program, slope, y, losses = Bits(), nn.Parameter(torch.tensor(0.7)), torch.tensor([0.7, -0.2]), []

    def guide(y):
        program.guide(y)
        pyro.factor("f", slope**3, has_rsample=True)

    for each in (program.guide, guide):
        torch.manual_seed(0)
        losses.append(estimator.differentiable_loss(program.model, each, y))
    assert (losses[1] - losses[0]).item() == pytest.approx(0.7**3)
    assert torch.autograd.grad(losses[1], slope)[0].item() == pytest.approx(3 * 0.7**2)


@pytest.mark.slow
def test_ovis_in_float32_bears_small_weights_and_large_log_weights():
    """Shares of a thousandth lie below the rounding of log w near −1,000."""
    loc = torch.tensor(0.1, requires_grad=True, dtype=torch.float32)
    x = torch.ones(20, dtype=torch.float32)

    def guide(x):
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(loc, 0.9))

    def gradient(off):
        def model(x):
            with pyro.plate("images", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)
                pyro.sample("y", dist.Normal(off + 0 * x, 1.0), obs=0 * x)

        torch.manual_seed(0)
        return torch.autograd.grad(OVIS(1000).differentiable_loss(model, guide, x), loc)[0]

    assert gradient(45.0).item() == pytest.approx(gradient(0.0).item(), rel=0.03)


def of_pyro(baseline, y, runs=40):
    """Draws of the guide's gradient under Pyro's TraceGraph_ELBO at one image, and the program."""
    torch.manual_seed(0)
    program = Choice(infer={"baseline": baseline} if baseline else {})
    found = []
    for _ in range(runs):
        program.zero_grad()
        TraceGraph_ELBO().loss_and_grads(program.model, program.guide, y.expand(500))
        found.append(program.logits.grad / 500)
    return torch.stack(found[10:]), program


def test_pyros_learned_baselines_leave_the_mean_and_lower_the_variance():
    y, level = torch.tensor([4.0]), nn.Parameter(torch.tensor(-25.0))
    plain, program = of_pyro({}, y)
    expected = enumerated_gradient(program, y)[: program.logits.numel()]
    kinds = {"use_decaying_avg_baseline": True}, {"nn_baseline": level.expand_as, "nn_baseline_input": y.expand(500)}
    for kind in kinds:
        found, program = of_pyro(kind, y)
        z = (found.mean(0) - expected) / (found.var(0) / len(found)).sqrt()
        assert z.abs().max() < 5
        assert found.var(0).sum() < 0.5 * plain.var(0).sum()
    assert level.grad.abs() > 0  # the loss trains the network
