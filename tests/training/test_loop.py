"""fit and evaluate: what they improve, keep, restore and refuse."""

import copy
import signal

import pyro
import pyro.distributions as dist
import pytest
import torch
from enumerated_programs import LABELS, MixtureOfFactors, OfTheModel, X
from programs import DIGITS, FEW, Breaks, quick, small_vae
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from small_trainings import rows
from torch import nn

from pyro_vae import evaluate, fit, likelihoods, networks
from pyro_vae.data import Data, Split
from pyro_vae.training import check_program, fixed_x


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [Trace_ELBO(), TraceMeanField_ELBO(), Trace_ELBO(3, vectorize_particles=True)])
def test_every_bound_improves_on_training_and_validation_images(estimator):
    vae = small_vae()
    rows = quick(vae, estimator=estimator, epochs=5).rows
    for split in ("train", "valid"):
        assert rows[-1][f"{split}_bound"] > rows[0][f"{split}_bound"] + 1
        for row in rows:
            assert row[f"{split}_bound"] == pytest.approx(-row[f"{split}_rate"] - row[f"{split}_distortion"])


@pytest.mark.slow
def test_same_seed_same_result_and_the_callers_random_numbers_go_on():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first, second, other = (small_vae() for _ in range(3))
    torch.manual_seed(3)
    histories = [quick(first), quick(second)]
    assert torch.equal(torch.rand(2), expected)
    quick(other, seed=1)
    assert rows(histories[0]) == rows(histories[1])
    for a, b, c in zip(first.parameters(), second.parameters(), other.parameters()):
        assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.slow
def test_the_parameters_best_on_the_validation_images_are_kept():
    vae = small_vae()

    def ruin(optimizer, steps):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step < steps / 2 else 300.0)

    history = quick(vae, epochs=6, schedule=ruin)  # the last epochs are not the best
    bounds = [row["valid_bound"] for row in history.rows]
    assert history.best_epoch == 1 + bounds.index(max(bounds)) < 6
    kept = evaluate(vae, fixed_x(vae, FEW.valid.images)).bound.mean().item()
    assert kept == pytest.approx(max(bounds), abs=1e-9)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_validation_setting_is_left_alone(enabled):
    with pyro.validation_enabled(enabled):
        quick(small_vae(), epochs=1)
        assert pyro.infer.util.is_validation_enabled() == enabled
        assert torch.distributions.Distribution._validate_args == enabled


def test_the_first_batch_is_validated_even_where_validation_is_off():
    vae = small_vae()
    vae.likelihood.observe = lambda pixels, generator=None: pixels / 255
    with pyro.validation_enabled(False), pytest.raises(ValueError, match="outside the support of Bernoulli"):
        quick(vae)


def test_modes_are_restored():
    vae = small_vae()
    vae.posterior.eval()
    quick(vae, epochs=1)
    assert vae.training and not vae.posterior.training and not vae.posterior.head.training


def test_ctrl_c_ends_after_a_whole_step(usual_interrupt):
    def interrupt(count, x):
        if count == 4:
            signal.raise_signal(signal.SIGINT)
        return x

    program, steps = Breaks(small_vae(), interrupt), []

    class Counted(torch.optim.SGD):
        def step(self, *args, **kwargs):
            steps.append(1)
            return super().step(*args, **kwargs)

    assert quick(program, optimizer=lambda parameters: Counted(parameters, lr=1e-4)).interrupted
    assert len(steps) == 3  # the first batch checks the program, the fourth is the third step's, which is finished
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
@pytest.mark.parametrize(("at", "like_epochs"), [(8, 1), (13, 2)])
def test_ctrl_c_keeps_the_best_parameters_so_far(at, like_epochs):
    def interrupt(count, x):
        if count == at:
            raise KeyboardInterrupt
        return x

    good, program = small_vae(), Breaks(small_vae(), interrupt)
    quick(good, epochs=like_epochs)
    history = quick(program, epochs=4)
    assert history.interrupted and len(history.rows) == like_epochs
    for mine, theirs in zip(program.vae.parameters(), good.parameters()):
        assert torch.equal(mine, theirs)


def test_ctrl_c_before_the_first_epoch_ends_keeps_the_steps_taken():
    def interrupt(count, x):
        if count == 4:
            raise KeyboardInterrupt
        return x

    program, start = Breaks(small_vae(), interrupt), small_vae().state_dict()
    history = quick(program)
    assert history.interrupted and not history.rows and history.best_epoch is None
    assert not any(torch.equal(value, start[name]) for name, value in program.vae.named_parameters())


class TwoLayers(nn.Module):
    """Another structure: x <- z1 <- z2, written by hand."""

    def __init__(self):
        super().__init__()
        self.up = nn.ModuleList([networks.MLPEncoder(DIGITS.shape, (8,)), nn.Linear(8, 4), nn.Linear(2, 4)])
        decoder = networks.MLPDecoder(2, DIGITS.shape, 1, (8,))
        self.down = nn.ModuleList([nn.Linear(2, 4), likelihoods.Bernoulli(decoder)])
        self.observe = self.down[1].observe

    def model(self, x):
        with pyro.plate("images", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(2), 1).to_event(1))
            loc, log_scale = self.down[0](z2).chunk(2, -1)
            z1 = pyro.sample("z1", dist.Normal(loc, log_scale.exp()).to_event(1))
            pyro.sample("x", self.down[1](z1), obs=x)

    def guide(self, x):
        with pyro.plate("images", len(x)):
            loc, log_scale = self.up[1](self.up[0](x)).chunk(2, -1)
            z1 = pyro.sample("z1", dist.Normal(loc, log_scale.exp()).to_event(1))
            loc, log_scale = self.up[2](z1).chunk(2, -1)
            pyro.sample("z2", dist.Normal(loc, log_scale.exp()).to_event(1))


@pytest.mark.slow
def test_a_program_of_another_structure_is_trained_and_evaluated_unchanged():
    torch.manual_seed(0)
    program = TwoLayers()
    rows = quick(program, epochs=5).rows
    assert rows[-1]["valid_bound"] > rows[0]["valid_bound"] + 1


def test_site_names_that_differ_are_an_error():
    program = TwoLayers()
    program.guide = small_vae().guide
    with pytest.raises(ValueError, match=r"only in the model: \['z1', 'z2'\], only in the guide: \['z'\]"):
        check_program(program, fixed_x(program, FEW.test.images))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs: wanted a whole number of at least 1, got 0"),
        ({"batch_size": 201}, r"batch_size: wanted 1 to 200 \(the training images\), got 201"),
        ({"batch_size": 0}, "batch_size"),
        ({"lr": -1e-3}, "lr: wanted a positive number, got -0.001"),
        ({"lr": float("nan")}, "lr"),
        ({"estimator": "trace"}, r"estimator: wanted a pyro\.infer\.ELBO"),
        ({"estimator": RenyiELBO(num_particles=2), "engine": "eager"}, 'RenyiELBO .* only engine="svi" trains by it'),
    ],
)
def test_bad_settings_are_refused_before_anything_is_trained(settings, message):
    vae = small_vae()
    before = copy.deepcopy(vae.state_dict())
    with pytest.raises(ValueError, match=message):
        quick(vae, **settings)
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


def test_programs_without_parameters_or_methods_are_refused():
    with pytest.raises(ValueError, match="no trainable parameter"):
        quick(small_vae().requires_grad_(False))
    with pytest.raises(ValueError, match=r"wanted an nn\.Module with model, guide and observe, got Linear"):
        quick(nn.Linear(2, 2))


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", [MixtureOfFactors, OfTheModel])
def test_sums_over_enumerated_sites_train(kind):
    program, rows = kind(), Split(table=X.repeat(25, 1), labels=LABELS.repeat(25))
    data, elbo = Data("rows", rows, rows[:8], rows[:8]), TraceEnum_ELBO(max_plate_nesting=1)
    history = fit(program, data, elbo, epochs=5, batch_size=20, lr=0.05, engine="eager", progress=False).rows
    assert history[-1]["train_bound"] > history[0]["train_bound"]
    assert history[-1]["valid_objective"] == history[-1]["valid_bound"]
    if kind is OfTheModel:
        with pytest.raises(ValueError, match="TraceEnum_ELBO sum them out: take these"):
            fit(program, data, Trace_ELBO(), epochs=1, batch_size=20, progress=False)


def test_a_point_of_q_is_no_fault_of_an_enumerated_program():
    program = MixtureOfFactors()
    program.log_joint = lambda x: torch.tensor([0.0, -torch.inf, 0.0]).double().expand(len(x), 3)
    check_program(program, (X, LABELS), TraceEnum_ELBO(max_plate_nesting=1))


@pytest.mark.slow
def test_by_default_a_step_takes_all_training_images_if_they_are_few():
    """The same bits as with that batch size given."""
    given, default = small_vae(), small_vae()
    quick(given, batch_size=len(FEW.train))
    fit(default, FEW, epochs=2, lr=1e-2, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(given.parameters(), default.parameters()))
