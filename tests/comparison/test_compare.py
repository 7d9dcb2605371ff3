"""The comparison against closed forms, stored gradients and exact gradients, on programs of every kind."""

import json
import math
import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.nn.functional import softplus

from pyro_vae import VAE, guides, likelihoods, networks, priors
from pyro_vae.comparison.compare import compare_estimators
from pyro_vae.estimators import (
    DoublyReparameterized,
    ImportanceWeighted,
    ScoreFunction,
    StickingTheLanding,
    WakeSleep,
)
from pyro_vae.linear_gaussian import (
    LinearGaussian,
    maximum_likelihood,
    mean_field_elbo_variance,
    mean_field_guide,
    path_variance,
    trace_elbo_variance,
)

SHAPE = (1, 8, 8)


@pytest.fixture(autouse=True)
def _clean_store():
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def compare(model, guide, *args, draws=100, **options):
    return compare_estimators(model, guide, *args, draws=draws, progress=False, **options)


def oracle(offset=0.0):
    torch.manual_seed(0)
    program = LinearGaussian(torch.randn(5, 2, dtype=torch.float64), scale=0.7)
    program.posterior.loc_bias.data += offset
    return program, program.simulate(6)


def small_vae(prior=None):
    torch.manual_seed(0)
    return VAE(
        prior or priors.StandardNormal(2),
        likelihoods.Bernoulli(networks.MLPDecoder(2, SHAPE, 1, hidden=(8,))),
        guides.MeanField(networks.MLPEncoder(SHAPE, hidden=(8,)), 2),
    )


def pictures(n=4):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(3)).round()


def test_measured_variances_are_the_closed_forms():
    torch.manual_seed(0)
    program = maximum_likelihood(torch.randn(200, 4, dtype=torch.float64) @ torch.randn(4, 4).double(), latent=2)
    program.posterior = mean_field_guide(program)
    x = program.simulate(5)
    forms = {"L^A": trace_elbo_variance, "L^B": mean_field_elbo_variance, "STL": path_variance}
    estimators = {"L^A": Trace_ELBO(), "L^B": TraceMeanField_ELBO(), "STL": StickingTheLanding()}
    result = compare(program.model, program.guide, x, draws=1500, estimators=estimators)
    for name, form in forms.items():
        exact = form(program, x)
        of_guide = sum(variance.sum().item() for key, variance in exact.items() if key.startswith("posterior."))
        of_model = sum(variance.sum().item() for key, variance in exact.items() if not key.startswith("posterior."))
        measured = result.estimators[name]
        assert measured.model.variance.value == pytest.approx(of_model, rel=0.05)
        assert measured.guide.variance.value == pytest.approx(of_guide, rel=0.05, abs=1e-20)
    assert not result.disagreements()


def test_statistics_are_those_of_the_stored_gradients_and_losses():
    program, x = oracle(offset=0.3)
    result = compare(program.model, program.guide, x, draws=60, seed=7, estimators={"L^A": Trace_ELBO()})
    recorded, losses = [], []

    class Recorder(Trace_ELBO):
        def differentiable_loss(self, *args):
            loss = super().differentiable_loss(*args)
            names = ["loc_weight", "loc_bias", "scale_tril"]
            leaves = [getattr(program.posterior, name) for name in names]
            recorded.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, leaves, retain_graph=True)]))
            losses.append(loss.item())
            return loss

    again = compare(program.model, program.guide, x, draws=60, seed=7, estimators={"L^A": Recorder()})
    g, bound = torch.stack(recorded[-60:]).numpy(), -np.array(losses[-60:]) / 6
    measured = result.estimators["L^A"]
    assert measured.guide == again.estimators["L^A"].guide
    sd = g.std(0, ddof=1)
    varying = sd > 0  # the upper triangle of scale_tril has no gradient
    assert measured.guide.varying == varying.sum() == 15
    assert measured.guide.variance.value == pytest.approx((sd**2).sum())
    assert measured.guide.snr.value == pytest.approx((abs(g.mean(0)) / np.where(varying, sd, 1)).sum() / 15)
    square = (g.mean(0) ** 2).sum() - (sd**2).sum() / 60
    assert measured.guide.norm_ratio.value == pytest.approx(math.sqrt(max(square, 0) / (sd**2).sum()))
    assert measured.bound.mean == pytest.approx(bound.mean())
    assert measured.bound.variance == pytest.approx(bound.var(ddof=1))
    assert measured.bound.standard_error == pytest.approx(bound.std(ddof=1) / math.sqrt(60))


def test_bound_lies_about_the_exact_one():
    program, x = oracle(offset=0.3)
    estimators = {"L^A": Trace_ELBO(), "score": ScoreFunction(2, "leave-one-out")}
    result = compare(program.model, program.guide, x, draws=400, estimators=estimators)
    for measured in result.estimators.values():
        exact = program.elbo(x).mean().item()
        assert abs(measured.bound.mean - exact) < 4 * measured.bound.standard_error
    assert result.images == 6


def test_pairs_that_should_agree_are_known_and_agree():
    program, x = oracle(offset=0.3)
    estimators = {
        "L^A": Trace_ELBO(),
        "Graph": TraceGraph_ELBO(),
        "score": ScoreFunction(4, "leave-one-out"),
        "L_4": ImportanceWeighted(4, M=2),
        "DReG": DoublyReparameterized(4),
        "Renyi": RenyiELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1),
        "wake-sleep": WakeSleep(),
    }
    result = compare(program.model, program.guide, x, draws=150, estimators=estimators)
    expected = {(pair.first, pair.second, pair.group) for pair in result.agreements if pair.expected}
    of_elbo, of_iw = ["L^A", "Graph", "score"], ["L_4", "DReG", "Renyi"]
    pairs = {(names[i], names[j]) for names in (of_elbo, of_iw) for i in range(3) for j in range(i + 1, 3)}
    wake = {(name, "wake-sleep", "model") for name in of_elbo}
    assert expected == {(*pair, group) for pair in pairs for group in ("guide", "model")} | wake
    assert not result.disagreements()
    told = {(pair.first, pair.second) for pair in result.agreements if pair.p_value < 1e-6}
    assert ("L^A", "L_4") in told  # another bound, another gradient


def test_a_biased_gradient_is_found_out():
    program, x = oracle(offset=0.5)

    class Biased(StickingTheLanding):
        def differentiable_loss(self, model, guide, *args):
            loss = super().differentiable_loss(model, guide, *args)
            return loss + 0.3 * program.posterior.loc_bias[1] - 0.3 * program.posterior.loc_bias[1].detach()

    estimators = {"right": StickingTheLanding(), "wrong": Biased()}
    result = compare(program.model, program.guide, x, estimators=estimators, agree=[("wrong", "right")])
    (found,) = result.disagreements()
    assert (found.first, found.second, found.group) == ("right", "wrong", "guide")
    assert found.parameter == "posterior.loc_bias[1]"
    assert "! right – wrong" in str(result)


def test_minibatch_noise_is_that_of_the_exact_gradient():
    program, _ = oracle(offset=0.5)
    batches = [(program.simulate(4),) for _ in range(12)]
    result = compare(program.model, program.guide, batches=batches, draws=60, estimators={"STL": StickingTheLanding()})
    exact = torch.stack(
        [
            torch.cat(
                [g.flatten() for g in torch.autograd.grad(program.elbo(x).sum(), [*program.posterior.parameters()])]
            )
            for (x,) in batches
        ]
    )
    assert result.estimators["STL"].guide.minibatch_variance == pytest.approx(exact.var(0).sum().item(), rel=0.05)
    bounds, measured = torch.stack([program.elbo(x).mean() for (x,) in batches]), result.estimators["STL"].bound
    noise = math.sqrt(4 * bounds.var().item() * measured.variance / 60 / 12)  # of the variance between batches
    assert abs(measured.minibatch_variance - bounds.var().item()) < 3 * noise
    assert abs(measured.mean - bounds.mean().item()) < 3 * measured.standard_error
    assert "between batches" in str(result)
    assert result.estimators["STL"].model.minibatch_variance > 0


def test_bayesian_logistic_regression_with_an_autoguide():
    torch.manual_seed(0)
    x = torch.randn(40, 3)
    y = (x @ torch.tensor([1.0, -2.0, 0.0]) > 0).float()

    def model(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=(x * w).sum(-1)), obs=y)

    guide = AutoNormal(model)
    guide(x, y)
    estimators = {"L^A": Trace_ELBO(), "STL": StickingTheLanding(), "score": ScoreFunction(8, "leave-one-out")}
    result = compare(model, guide, x, y, draws=400, estimators=estimators)
    assert result.images is None
    assert result.estimators["L^A"].model is None
    assert result.estimators["L^A"].guide.parameters == 6
    assert len(result.agreements) == 3
    assert not result.disagreements()
    assert result.estimators["score"].guide.variance.value > result.estimators["STL"].guide.variance.value
    with pytest.raises(ValueError, match="no closed form"):  # an autoguide samples what looks analytic
        compare(model, guide, x, y, estimators={"L^B": TraceMeanField_ELBO()})


def store_program():
    def model(x):
        weight = pyro.param("weight", torch.ones(3, 1))
        scale = pyro.param("scale", torch.tensor(0.7), constraint=dist.constraints.positive)
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight.T, scale).to_event(1), obs=x)

    def guide(x):
        weight = pyro.param("guide_weight", torch.zeros(1, 3))
        scale = pyro.param("guide_scale", torch.ones(1), constraint=dist.constraints.positive)
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(x @ weight.T, scale).to_event(1))

    return model, guide


def test_parameters_in_pyros_store():
    model, guide = store_program()
    estimators = {"L^A": Trace_ELBO(), "L^B": TraceMeanField_ELBO(), "Renyi": RenyiELBO(num_particles=2)}
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    result = compare(model, guide, x, draws=200, estimators=estimators)
    assert not pyro.get_param_store().keys()  # as it was
    model(x), guide(x)
    again = compare(model, guide, x, draws=200, estimators=estimators)
    assert again.agreements == result.agreements
    assert (result.estimators["L^A"].guide.parameters, result.estimators["L^A"].model.parameters) == (4, 4)
    assert not result.disagreements()


def test_a_two_layer_vae_written_by_hand():
    class TwoLayers(nn.Module):
        def __init__(self):
            super().__init__()
            self.decode, self.encode = nn.Linear(2, 6), nn.Linear(6, 4)
            self.upper, self.lower = nn.Linear(1, 4), nn.Linear(2, 2)

        def model(self, x):
            with pyro.plate("images", len(x)):
                top = pyro.sample("top", dist.Normal(torch.zeros(1), 1.0).to_event(1))
                loc, raw = self.upper(top).chunk(2, -1)
                z = pyro.sample("z", dist.Normal(loc, softplus(raw) + 0.1).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=self.decode(z)).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("images", len(x)):
                loc, raw = self.encode(x).chunk(2, -1)
                z = pyro.sample("z", dist.Normal(loc, softplus(raw) + 0.1).to_event(1))
                loc, raw = self.lower(z).chunk(2, -1)
                pyro.sample("top", dist.Normal(loc, softplus(raw) + 0.1).to_event(1))

    torch.manual_seed(0)
    program, x = TwoLayers(), torch.randint(2, (5, 6)).float()
    estimators = {
        "L^A": Trace_ELBO(),
        "STL": StickingTheLanding(),
        "score": ScoreFunction(8, "leave-one-out"),
        "L_5": ImportanceWeighted(5),
        "DReG": DoublyReparameterized(5),
    }
    result = compare(program.model, program.guide, x, draws=300, estimators=estimators)
    assert not result.disagreements()
    assert result.images == 5
    assert result.estimators["L_5"].bound.mean > result.estimators["L^A"].bound.mean
    assert result.estimators["STL"].guide.parameters == 28 + 6


def test_gradients_that_pyro_writes_into_modules_are_read_and_put_back():
    vae, x = small_vae(), pictures()
    parameter = vae.posterior.head.bias
    parameter.grad = torch.full_like(parameter, 5.0)
    x.requires_grad_()
    kept = parameter.grad
    estimators = {"Renyi": RenyiELBO(num_particles=3), "L_3": ImportanceWeighted(3)}
    result = compare(lambda x: vae.model(x.detach()), vae.guide, x, estimators=estimators)
    assert result.estimators["Renyi"].guide.variance.value > 0
    assert not result.disagreements()
    assert parameter.grad is kept
    assert torch.equal(kept, torch.full_like(parameter, 5.0))
    assert all(p.grad is None for p in vae.parameters() if p is not parameter)
    assert x.grad is None


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_left_as_it_was(fails):
    vae, x = small_vae(), pictures()
    vae.train()
    vae.posterior.network = nn.Sequential(vae.posterior.network, nn.BatchNorm1d(8))
    vae.likelihood.eval()
    state = {name: value.clone() for name, value in vae.state_dict().items()}
    modes = [module.training for module in vae.modules()]
    pyro.param("other", torch.ones(2))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    pyro.enable_validation(True)
    if fails:
        vae.likelihood.network.layers[0].weight.data[0, 0] = math.nan
        with pytest.raises(ValueError, match=r"L\^A, draw 1 of 5: Expected parameter logits"), torch.no_grad():
            compare(vae.model, vae.guide, x, draws=5, estimators={"L^A": Trace_ELBO()})
        vae.likelihood.network.layers[0].weight.data.copy_(state["likelihood.network.layers.0.weight"])
    else:
        with torch.no_grad():
            compare(vae.model, vae.guide, x, draws=5, estimators={"L^A": Trace_ELBO(), "Renyi": RenyiELBO()})
    assert all(torch.equal(value, state[name]) for name, value in vae.state_dict().items())
    assert [module.training for module in vae.modules()] == modes
    assert all(p.grad is None and p.requires_grad for p in vae.parameters())
    assert list(pyro.get_param_store().keys()) == ["other"]
    assert pyro.infer.util.is_validation_enabled()
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected


def test_results_depend_on_seed_and_name_only():
    program, x = oracle()
    alone = compare(program.model, program.guide, x, estimators={"L^A": Trace_ELBO()})
    torch.rand(10)
    among = compare(program.model, program.guide, x, estimators={"STL": StickingTheLanding(), "L^A": Trace_ELBO()})
    other = compare(program.model, program.guide, x, seed=1, estimators={"L^A": Trace_ELBO()})
    assert alone.estimators["L^A"].guide == among.estimators["L^A"].guide
    assert alone.estimators["L^A"].guide != other.estimators["L^A"].guide
    assert among.reference == "L^A"


def test_shared_parameters_count_as_the_guides():
    vae = small_vae()
    vae.prior = priors.Vamp(vae.posterior, torch.rand(3, *SHAPE))
    estimators = {"L^A": Trace_ELBO(), "STL": StickingTheLanding(), "DReG": DoublyReparameterized(1)}
    result = compare(vae.model, vae.guide, pictures(), draws=300, estimators=estimators)
    assert len(result.shared) == len(list(vae.posterior.parameters()))
    assert "shared by model and guide" in str(result)
    assert not result.disagreements()


def test_sites_that_the_elbo_enumerates():
    @config_enumerate
    def model(x):
        logits = pyro.param("logits", torch.zeros(2))
        with pyro.plate("images", len(x)):
            k = pyro.sample("k", dist.Categorical(logits=logits))
            pyro.sample("x", dist.Normal(k.float(), 1.0), obs=x)

    def guide(x):
        pass

    estimators = {"enumerated": TraceEnum_ELBO(max_plate_nesting=1)}
    result = compare(model, guide, torch.tensor([0.0, 1.0, 2.0]), draws=3, estimators=estimators)
    assert result.estimators["enumerated"].guide is None
    assert result.estimators["enumerated"].model.variance.value == 0.0


def test_table_fits_a_terminal_and_numbers_fit_json():
    program, x = oracle()
    estimators = {"an estimator of a very long name indeed": Trace_ELBO(), "wake-sleep": WakeSleep()}
    estimators |= {f"L_{k}": ImportanceWeighted(k) for k in range(1, 7)}
    result = compare(program.model, program.guide, batches=[(x,), (2 * x,)], draws=20, estimators=estimators)
    assert max(map(len, str(result).splitlines())) <= 110
    numbers = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert numbers["estimators"]["L_2"]["guide"]["variance"]["value"] == result.estimators["L_2"].guide.variance.value
    assert numbers["estimators"]["L_2"]["guide"]["cost"] == result.cost("L_2", "guide")
    assert result.cost(result.reference, "model") == 1.0


def test_figure_shows_every_estimator_at_its_variance():
    program, x = oracle(offset=0.3)
    estimators = {"L^A": Trace_ELBO()} | {f"K = {k}": ImportanceWeighted(k) for k in (1, 4)}
    result = compare(program.model, program.guide, x, draws=20, estimators=estimators)
    guide, model, ratio = result.figure().axes
    assert [label.get_text() for label in guide.get_yticklabels()] == list(estimators)
    for axes, group in (guide, "guide"), (model, "model"):
        (points, *_), expected = axes.containers[0], [getattr(e, group) for e in result.estimators.values()]
        np.testing.assert_allclose(points.get_xdata(), [statistics.variance.value for statistics in expected])
        np.testing.assert_allclose(points.get_ydata(), [0, 1, 2])
    (points, *_) = ratio.containers[0]
    np.testing.assert_allclose(points.get_xdata(), [1, 4])
    np.testing.assert_allclose(points.get_ydata(), [result.estimators[f"K = {k}"].guide.snr.value for k in (1, 4)])


def test_two_draws_make_numbers_and_a_figure_without_intervals():
    program, x = oracle(offset=0.3)
    result = compare(program.model, program.guide, x, draws=2, estimators={"L^A": Trace_ELBO()})
    variance = json.loads(json.dumps(result.to_dict(), allow_nan=False))["estimators"]["L^A"]["guide"]["variance"]
    assert variance["value"] > 0
    assert variance["low"] is variance["high"] is None
    assert len(result.figure().axes) == 2


def test_intervals_that_rest_on_few_draws_are_marked_in_the_table():
    program, x = oracle(offset=0.3)

    class Heavy(Trace_ELBO):
        def differentiable_loss(self, *args):
            push = program.bias[0] * torch.distributions.Cauchy(0.0, 1e4).sample()
            return super().differentiable_loss(*args) + push - push.detach()

    light = compare(program.model, program.guide, x, estimators={"heavy": Trace_ELBO()})
    heavy = compare(program.model, program.guide, x, estimators={"heavy": Heavy()})
    assert not light.estimators["heavy"].model.variance.doubtful
    assert "?" not in str(light)
    assert heavy.estimators["heavy"].model.variance.doubtful
    assert f"{heavy.estimators['heavy'].model.variance}" in str(heavy)
    assert "? a few draws make the width" in str(heavy)


@pytest.mark.parametrize("draws", [0, 1, -3, 2.5, True])
def test_draws_that_make_no_variance(draws):
    program, x = oracle()
    with pytest.raises(ValueError, match="draws: wanted a whole number of at least 2"):
        compare(program.model, program.guide, x, draws=draws, estimators={"L^A": Trace_ELBO()})


@pytest.mark.parametrize("seed", [True, 1.0, None, "1"])
def test_seeds_that_are_none(seed):
    program, x = oracle()
    with pytest.raises(ValueError, match="seed: wanted a whole number, got"):
        compare(program.model, program.guide, x, draws=2, seed=seed, estimators={"L^A": Trace_ELBO()})


def test_numbers_of_numpy_are_those_of_python():
    program, x = oracle()
    numbers = compare(program.model, program.guide, x, draws=5, seed=3, estimators={"L^A": Trace_ELBO()})
    given = {"draws": np.int64(5), "seed": np.int32(3)}
    same = compare(program.model, program.guide, x, **given, estimators={"L^A": Trace_ELBO()})
    assert same.estimators["L^A"].bound.mean == numbers.estimators["L^A"].bound.mean


@pytest.mark.parametrize("bad", [Trace_ELBO, "Trace_ELBO", lambda: None, None])
def test_what_is_no_elbo(bad):
    program, x = oracle()
    with pytest.raises(ValueError, match=r"estimators\['bad'\]: wanted a pyro.infer.ELBO"):
        compare(program.model, program.guide, x, estimators={"bad": bad})


@pytest.mark.parametrize("estimators", [{}, [Trace_ELBO()]])
def test_no_estimators_by_name(estimators):
    program, x = oracle()
    with pytest.raises(ValueError, match="wanted ELBOs by name"):
        compare(program.model, program.guide, x, estimators=estimators)


def test_names_that_are_not_there():
    program, x = oracle()
    with pytest.raises(ValueError, match="no names of estimators"):
        compare(program.model, program.guide, x, estimators={"L^A": Trace_ELBO()}, reference="L^B")
    with pytest.raises(ValueError, match="no names of estimators"):
        compare(program.model, program.guide, x, estimators={"L^A": Trace_ELBO()}, agree=[("L^A", "L^B")])


def test_a_program_without_trainable_parameters():
    program, x = oracle()
    program.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        compare(program.model, program.guide, x, estimators={"L^A": Trace_ELBO()})


def test_a_loss_that_is_nan():
    program, x = oracle()
    program.bias.data[0] = math.nan
    with pyro.validation_enabled(False), pytest.raises(ValueError, match=r"L\^A, draw 1 of 100: the loss is nan"):
        compare(program.model, program.guide, x, estimators={"L^A": Trace_ELBO()})


def test_a_gradient_that_is_not_finite():
    program, x = oracle()

    class Root(Trace_ELBO):
        calls = 0

        def differentiable_loss(self, *args):
            Root.calls += 1
            zero = 0 * program.bias.sum() if Root.calls == 24 else 1 + 0 * program.bias.sum()  # 21 for the time
            return super().differentiable_loss(*args) + zero.sqrt()

    with pytest.raises(ValueError, match="root, draw 3 of 100: a gradient is not finite"):
        compare(program.model, program.guide, x, estimators={"root": Root()})


def test_sites_that_differ():
    program, x = oracle()

    def guide(x):
        with pyro.plate("images", len(x)):
            pyro.sample("Z", program.posterior(x))

    with pytest.raises(ValueError, match=r"only in the guide: \['Z'\]"):
        compare(program.model, guide, x, estimators={"L^A": Trace_ELBO()})


def test_a_batch_of_size_zero():
    program, x = oracle()
    with pytest.raises(ValueError, match=r"shape \(0, 5\), wanted at least one image"):
        compare(program.model, program.guide, x[:0], estimators={"L^A": Trace_ELBO()})
    with pytest.raises(ValueError, match="batches: wanted at least one"):
        compare(program.model, program.guide, batches=[], estimators={"L^A": Trace_ELBO()})
    with pytest.raises(ValueError, match="batches of one size"):
        compare(program.model, program.guide, batches=[(x,), (x[:3],)], estimators={"L^A": Trace_ELBO()})
    with pytest.raises(ValueError, match="give either them or batches"):
        compare(program.model, program.guide, x, batches=[(x,)], estimators={"L^A": Trace_ELBO()})


def test_a_kl_that_pyro_would_sample():
    vae = small_vae(priors.Mixture(2, 3))
    with pytest.raises(ValueError, match="L\\^B: site 'z': no closed form"):
        compare(vae.model, vae.guide, pictures(), estimators={"L^A": Trace_ELBO(), "L^B": TraceMeanField_ELBO()})
