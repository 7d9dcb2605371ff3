"""The comparison of estimators on programs of every kind, and its settings."""

import math
import random
import zlib

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from comparing import compare, oracle, pictures
from enumerated_programs import LABELS, MixtureOfFactors, OfTheModel, X
from monte_carlo import assert_estimate_is
from programs import SHAPE, small_vae
from pyro.infer import RenyiELBO, ReweightedWakeSleep, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.nn.functional import softplus

from pyro_vae import priors
from pyro_vae.comparison import compare_estimators
from pyro_vae.comparison.compare import arguments_of
from pyro_vae.data import Split
from pyro_vae.estimators import (
    DoublyReparameterized,
    ImportanceWeighted,
    ScoreFunction,
    StickingTheLanding,
)


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_left_as_it_was(fails):
    vae, x = small_vae(), pictures()
    vae.train()
    vae.posterior.network = nn.Sequential(vae.posterior.network, nn.BatchNorm1d(16))
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


@pytest.mark.slow
def test_results_depend_on_seed_and_name_only():
    program, x = oracle()
    alone = compare(program.model, program.guide, x, estimators={"L^A": Trace_ELBO()})
    torch.rand(10)
    among = compare(program.model, program.guide, x, estimators={"STL": StickingTheLanding(), "L^A": Trace_ELBO()})
    other = compare(program.model, program.guide, x, seed=1, estimators={"L^A": Trace_ELBO()})
    assert alone.estimators["L^A"].guide == among.estimators["L^A"].guide
    assert alone.estimators["L^A"].guide != other.estimators["L^A"].guide
    assert among.reference == "L^A"


@pytest.mark.slow
def test_shared_parameters_count_as_the_guides():
    vae = small_vae()
    vae.prior = priors.Vamp(vae.posterior, torch.rand(3, *SHAPE))
    estimators = {"L^A": Trace_ELBO(), "STL": StickingTheLanding(), "DReG": DoublyReparameterized(1)}
    result = compare(vae.model, vae.guide, pictures(), draws=300, estimators=estimators)
    assert len(result.shared) == len(list(vae.posterior.parameters()))
    assert "shared by model and guide" in str(result)
    assert not result.disagreements()


@pytest.mark.slow
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


@pytest.mark.slow
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
    vae = small_vae(prior=lambda latent: priors.Mixture(latent, 3))
    with pytest.raises(ValueError, match="L\\^B: site 'z': no closed form"):
        compare(vae.model, vae.guide, pictures(), estimators={"L^A": Trace_ELBO(), "L^B": TraceMeanField_ELBO()})


@pytest.mark.slow
def test_a_program_is_compared_as_its_model_and_guide_are():
    program, x = oracle(offset=0.3)
    of_program = compare(program, x, estimators={"L^A": Trace_ELBO()}, draws=5)
    of_functions = compare(program.model, program.guide, x, estimators={"L^A": Trace_ELBO()}, draws=5)
    assert of_program.estimators["L^A"].guide == of_functions.estimators["L^A"].guide
    by_batch = compare(program, batches=[x], estimators={"L^A": Trace_ELBO()}, draws=5)
    assert by_batch.estimators["L^A"].bound == of_program.estimators["L^A"].bound


@pytest.mark.parametrize("masked", [False, True])
def test_a_split_gives_the_arguments_that_the_program_makes_of_it(masked):
    program, split = nn.Module(), Split(torch.arange(4, dtype=torch.uint8).view(2, 1, 1, 2))
    program.observe = lambda pixels: (pixels / 255, pixels > 0) if masked else pixels / 255
    made = arguments_of(program, split, (1, 2))
    assert len(made) == (4 if masked else 3) and made[0] is program and made[-1] == (1, 2)
    assert torch.equal(made[1], split.images / 255)


def images_of(model, *args):
    """The number of images that a comparison says, of a model and a guide of its latent sites."""
    guide = pyro.poutine.block(model, hide=["x"])
    return compare(model, guide, *args, draws=2, estimators={"L^A": Trace_ELBO()}).images


def test_the_number_of_images_is_the_size_of_the_plate_over_rows():
    """Of two plates that hold all sites that of as many as the arguments have rows; of one its size."""
    loc = torch.zeros((), requires_grad=True)

    def model(x, weights=1.0):
        with pyro.plate("rows", 4, dim=-1), pyro.plate("groups", 3, dim=-2), pyro.poutine.scale(scale=weights):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(3, 4))

    def alone(x):
        with pyro.plate("rows", 4):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(4))

    assert [images_of(model, torch.zeros(rows)) for rows in (4, 3, 7)] == [4, 3, None]
    assert images_of(alone, torch.zeros(7)) == 4
    assert images_of(model, torch.zeros(4), torch.tensor([1.0, 2.0, 1.0, 1.0])) is None


def scaled(of_all, of_z=1.0, pixels=3, rows=None):
    """Model and guide of 4 rows, or 4 of more, of 3 pixels, or of 1 of these; a weight of all sites, and one of z."""
    loc, plate = torch.zeros((), requires_grad=True), {"size": rows or 4, "subsample_size": 4, "dim": -2}

    def model(x):
        with pyro.plate("rows", **plate), pyro.poutine.scale(scale=of_all):
            with pyro.poutine.scale(scale=of_z):
                z = pyro.sample("z", dist.Normal(loc, 1.0))
            with pyro.plate("pixels", 3, subsample_size=pixels, dim=-1) as drawn:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, drawn])

    def guide(x):
        with pyro.plate("rows", **plate), pyro.poutine.scale(scale=of_all * of_z):
            pyro.sample("z", dist.Normal(loc, 1.0))

    return model, guide


@pytest.mark.parametrize(
    ("program", "images", "is_bound"),
    [
        (scaled(1.0), 4, True),
        (scaled(1.0, rows=40), 40, True),
        (scaled(1.0, pixels=1), 4, True),
        (scaled(1.0, rows=40, pixels=1), 40, True),
        (scaled(2.0), 8, True),  # as full size / size does, given by hand
        (scaled(0.5, rows=40), 20, True),
        (scaled(2.0, 0.5), 4, False),
        (scaled(1.0, torch.tensor(0.5)), 4, False),
    ],
)
def test_the_loss_is_divided_by_the_rows_and_is_no_bound_where_sites_have_weights(program, images, is_bound):
    """Plates that subsample pixels change neither; weights of some sites do not count as rows, those of all do."""
    x = torch.arange(12.0).reshape(4, 3)
    result = compare(*program, x, draws=8, estimators={"L^A": Trace_ELBO()})
    entry = result.estimators["L^A"]
    assert (result.images, entry.is_bound, entry.estimates) == (images, is_bound, "ELBO" if is_bound else None)
    assert bool(result.no_bound) != is_bound and ("sites have weights" in str(result)) != is_bound
    assert entry.bound.mean == pytest.approx(mean_loss(result.seed, program, x) / -images, rel=1e-5)


def mean_loss(seed, program, x):
    """The mean of as many losses by Pyro's own estimator, at the random numbers of the comparison."""
    pyro.set_rng_seed((seed + zlib.crc32(b"L^A")) % 2**32)
    return sum(Trace_ELBO().loss(*program, x) for _ in range(8)) / 8


def test_what_is_no_program():
    program, x = oracle()
    with pytest.raises(ValueError, match="program: wanted a program with model and guide"):
        compare(program.model, x, estimators={"L^A": Trace_ELBO()})
    with pytest.raises(ValueError, match="guide: wanted a function, got None; write compare_estimators"):
        compare(program.model, None, x, estimators={"L^A": Trace_ELBO()})


@pytest.mark.slow
def test_no_bar_where_there_is_no_terminal(capsys):
    program, x = oracle()
    compare_estimators(program, x, estimators={"L^A": Trace_ELBO()}, draws=3)
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_an_estimator_without_a_description_is_expected_to_agree_with_none():
    program, x = oracle(offset=0.3)

    class Mine(StickingTheLanding):
        pass

    class Described(StickingTheLanding):
        description = StickingTheLanding.description

    estimators = {"right": StickingTheLanding(), "mine": Mine(), "described": Described()}
    result = compare(program, x, estimators=estimators)
    expected = {(pair.first, pair.second) for pair in result.agreements if pair.expected}
    assert expected == {("right", "described")}
    assert (result.estimators["mine"].estimates, result.estimators["described"].estimates) == (None, "ELBO")
    assert "no gradient is known to agree with that of mine:\n" in str(result)
    asked = compare(program, x, estimators=estimators, agree=[("right", "mine")])
    assert "no gradient is known" not in str(asked)


@pytest.mark.slow
def test_estimators_of_no_bound_are_marked():
    program, x = oracle(offset=0.3)
    estimators = {"RWS": ReweightedWakeSleep(2, vectorize_particles=True, max_plate_nesting=1), "L^A": Trace_ELBO()}
    result = compare(program, x, estimators=estimators, draws=5)
    assert not result.estimators["RWS"].is_bound and result.estimators["L^A"].is_bound
    assert "* minus the loss of an estimator that has no bound" in str(result)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_a_sum_over_classes_beside_estimators_that_draw_them():
    program = MixtureOfFactors(off=0.3)
    estimators = {
        "sum": TraceEnum_ELBO(max_plate_nesting=1),
        "draw": Trace_ELBO(),
        "score": ScoreFunction(8, "leave-one-out"),
    }
    compared = compare_estimators(program, X, LABELS, estimators=estimators, draws=200, progress=False)
    assert compared.images == 4 and not compared.disagreements()
    bounds = [statistics.bound for statistics in compared.estimators.values()]
    for bound in bounds[1:]:
        error = math.hypot(bound.standard_error, bounds[0].standard_error)
        assert_estimate_is(bound.mean, bounds[0].mean, error, sees=0.5, draws=200)
    assert bounds[1].variance > 1.5 * bounds[0].variance
    variances = [statistics.guide.variance.value for statistics in compared.estimators.values()]
    assert variances[0] < variances[1] / 2


@pytest.mark.slow
def test_a_site_of_the_model_alone_needs_estimators_that_sum_it_out():
    x = torch.linspace(-2, 3, 5).double()
    sums = {"sum": TraceEnum_ELBO(max_plate_nesting=1)}
    ours = compare_estimators(OfTheModel(), x, estimators=sums, draws=200, progress=False).estimators["sum"].bound
    mixture = compare_estimators(OfTheModel(True), x, estimators={"L^A": Trace_ELBO()}, draws=200, progress=False)
    expected = mixture.estimators["L^A"].bound
    error = math.hypot(ours.standard_error, expected.standard_error)
    assert_estimate_is(ours.mean, expected.mean, error, sees=0.5, draws=200)
    with pytest.raises(ValueError, match="evaluate, log_evidence and Pyro's TraceEnum_ELBO sum them out"):
        compare_estimators(OfTheModel(), x, estimators={**sums, "L^A": Trace_ELBO()}, draws=2, progress=False)
