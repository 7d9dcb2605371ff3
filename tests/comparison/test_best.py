"""``best_estimator`` against rankings that are known in closed form, and its checks."""

import inspect
import io
import re
import sys
import typing

import pyro
import pyro.distributions as dist
import pytest
import torch
from comparing import oracle, pictures
from programs import small_vae
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from pyro_vae import best_estimator, priors
from pyro_vae.estimators import ScoreFunction, StickingTheLanding, StraightThrough
from pyro_vae.handlers import KLWeighted
from pyro_vae.linear_gaussian import mean_field_elbo_variance, path_variance, trace_elbo_variance

pytestmark = pytest.mark.slow

FORMS = {"L^A": trace_elbo_variance, "L^B": mean_field_elbo_variance, "STL": path_variance}
KINDS = {"L^A": Trace_ELBO(), "L^B": TraceMeanField_ELBO(), "STL": StickingTheLanding()}


def best(*program, estimators=KINDS, **options):
    return best_estimator(*program, estimators=estimators, progress=False, **options)


@pytest.mark.parametrize("costs", [(1.0, 1.0, 1.0), (1.0, 20.0, 2000.0)])
def test_the_ranking_is_that_of_the_closed_forms(costs):
    program, x = oracle()
    costs = dict(zip(KINDS, costs))
    exact = {
        name: costs[name] * sum(variance.sum().item() for variance in form(program, x).values())
        for name, form in FORMS.items()
    }
    found = best(program, x, costs=costs, seconds=None)
    assert found.best() == min(exact, key=exact.get)
    assert found.tied() == (min(exact, key=exact.get),) and not found.stopped
    for entry in found.entries:
        assert entry.score.low * 0.8 < exact[entry.name] < entry.score.high * 1.2
        assert entry.guide + entry.model == pytest.approx(entry.variance.value)


def test_more_particles_are_worth_what_they_cost():
    """K particles have 1 / K of the variance: at half of K times the cost the most are best, at twice the fewest."""
    program, x = oracle(offset=0.3)
    kinds = {f"K = {K}": StickingTheLanding(K) for K in (1, 16)}
    for power, order in ((0.5, ["K = 16", "K = 1"]), (2.0, ["K = 1", "K = 16"])):
        costs = {name: elbo.num_particles**power for name, elbo in kinds.items()}
        found = best(program, x, estimators=kinds, costs=costs, seconds=None)
        assert [entry.name for entry in found.entries] == order and found.tied() == (order[0],)


def test_the_same_seed_gives_the_same_bits_and_leaves_all_as_it_was():
    program, x = oracle()
    before, state = {name: value.clone() for name, value in program.state_dict().items()}, torch.get_rng_state()
    costs = dict.fromkeys(KINDS, 1.0)
    first, again, other = (best(program, x, costs=costs, seconds=None, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in program.state_dict().items())


def test_measured_variances_do_not_depend_on_the_clock():
    program, x = oracle()
    timed, given = best(program, x, seconds=1e-9), best(program, x, costs=dict.fromkeys(KINDS, 1.0), seconds=1e-9)
    assert {e.name: e.variance for e in timed.entries} == {e.name: e.variance for e in given.entries}
    assert timed.timed and all(entry.cost < 1 for entry in timed.entries)


def test_bounds_are_ranked_apart():
    torch.manual_seed(0)
    found = best_estimator(small_vae(), torch.rand(4, 1, 8, 8).round(), seconds=1e-9, draws=8, progress=False)
    assert found.targets == ("ELBO", "L_4", "L_16")
    for target in found.targets:
        assert [e.rank for e in found.entries if e.target == target] == [
            *range(1, 1 + sum(e.target == target for e in found.entries))
        ]
    assert all(entry.rank is not None for entry in found.entries)
    assert set(found.left_out) == {"DisARM, K = 4", "DisARM, K = 16", "straight-through", "ReinMax"}


def model(x):
    with pyro.plate("images", len(x)):
        z = pyro.sample("z", dist.Bernoulli(logits=pyro.param("prior", torch.zeros(3))).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)


def guide(x):
    with pyro.plate("images", len(x)):
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("guide", torch.zeros(3)).expand(len(x), 3)).to_event(1))


def test_a_program_of_discrete_latents_is_ranked_by_those_that_take_it():
    found = best_estimator(model, guide, torch.tensor([1.0, 2.0]), seconds=1e-9, draws=8, progress=False)
    taken = {entry.name for entry in found.entries}
    assert {"L^A", "DisARM, K = 4", "score function, K = 16", "OVIS, K = 4"} <= taken
    assert {"STL, K = 1", "DReG, K = 4"} <= set(found.left_out)
    assert found.left_out["STL, K = 1"].startswith("site 'z' of the guide is not reparameterised")
    assert found.best() not in ("L^A", "L^B")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"draws": 4}, "draws: wanted a whole number of at least 8"),
        ({"seconds": 0}, "seconds: wanted a positive number, got 0"),
        ({"costs": {"L^A": 1.0}}, "costs: wanted one of each estimator, got none of ['L^B', 'STL']"),
        ({"costs": {"L^A": -1.0}}, "costs['L^A']: wanted a positive number"),
        ({"estimators": {}}, "estimators: wanted ELBOs by name"),
        ({"estimators": {"path": Trace_ELBO}}, "write Trace_ELBO()"),
    ],
)
def test_refused_before_any_draw(options, message):
    program, x = oracle()
    with pytest.raises(ValueError, match=re.escape(message)):
        best(program, x, **options)


def test_given_estimators_that_refuse_the_program_raise_and_a_program_that_none_takes():
    with pytest.raises(ValueError, match=r"^STL, draw 1 of"):
        best(model, guide, torch.ones(2), estimators={"STL": StickingTheLanding()})
    with pytest.raises(ValueError, match="guide: wanted a function"):
        best(model, None)


def test_a_kl_without_a_closed_form_leaves_out_a_candidate_and_refuses_what_is_given(monkeypatch):
    program, x = small_vae(prior=lambda latent: priors.Mixture(latent, 3)), pictures()
    monkeypatch.setattr("pyro_vae.comparison.best.candidates", lambda: KINDS)
    found = best(program, x, estimators=None, seconds=1e-9, draws=8)
    assert {entry.name for entry in found.entries} == {"L^A", "STL"}
    assert list(found.left_out) == ["L^B"] and found.left_out["L^B"].startswith("site 'z': no closed form")
    with pytest.raises(ValueError, match=r"^L\^B: site 'z': no closed form"):
        best(program, x, estimators=KINDS, seconds=1e-9, draws=8)


@pytest.mark.parametrize("options", [{}, {"progress": False}])
def test_a_bar_is_shown_on_a_terminal_if_it_is_wanted(monkeypatch, options):
    program, x = oracle()
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    best_estimator(program, x, estimators=KINDS, costs=dict.fromkeys(KINDS, 1.0), seconds=1e-9, draws=8, **options)
    assert "round 1, 3 estimators" in terminal.getvalue() if not options else terminal.getvalue() == ""


@pytest.mark.skipif(sys.version_info < (3, 11), reason="overloads are known from Python 3.11 on")
def test_type_checkers_see_the_defaults_that_there_are():
    seen = [inspect.signature(each).parameters for each in typing.get_overloads(best_estimator)]
    there = inspect.signature(best_estimator).parameters
    options = {name: each.default for name, each in there.items() if each.kind is each.KEYWORD_ONLY}
    assert len(seen) == 2 and len(options) == 8
    assert all({name: each[name].default for name in options} == options for each in seen)


def test_a_biased_estimator_alone_has_no_rank():
    found = best(model, guide, torch.ones(2), estimators={"biased": StraightThrough(), "score": ScoreFunction(2)},
                 draws=8, seconds=1e-9)  # fmt: skip
    assert [(entry.name, entry.rank) for entry in found.entries] == [("score", 1), ("biased", None)]


def test_costs_are_looked_at_before_the_program_runs():
    runs = []

    def counted(x):
        runs.append(x)
        return guide(x)

    with pytest.raises(ValueError, match="costs: wanted one of each estimator"):
        best(model, counted, torch.ones(2), estimators={"score": ScoreFunction(2)}, costs={})
    assert not runs


def test_a_kl_weight_leaves_no_bound():
    program, x = oracle()
    weighted = KLWeighted(program, beta=0.5)
    of_training, of_evaluation = (best(weighted.train(training), x, costs=dict.fromkeys(KINDS, 1.0), seconds=1e-9,
                                       draws=8) for training in (True, False))  # fmt: skip
    assert "sites have weights" in of_training.no_bound and not of_evaluation.no_bound


def test_what_a_ranking_says_of_itself():
    program, x = oracle()
    given, measured = (best(program, x, costs=costs, seconds=1e-9, draws=8, seed=5)
                       for costs in (dict.fromkeys(KINDS, 1.0), None))  # fmt: skip
    assert not given.timed and measured.timed and given.seed == 5 and given.images == len(x)
    with pytest.raises(ValueError, match="draws: wanted a whole number of at least 8, got 7"):
        best(program, x, draws=7)
