"""Which epoch's parameters fit keeps: compared by what is trained, at the weights that it has."""

import math

import pyro
import pytest
import torch
from monte_carlo import assert_estimate_is
from programs import FEW, copy_of, quick, same, small_vae
from pyro.infer import RenyiELBO, ReweightedWakeSleep, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from pyro_vae import estimators, likelihoods
from pyro_vae.handlers import AnnealingWarning, KLWeight, KLWeighted, LinearWarmUp
from pyro_vae.random import seeded
from pyro_vae.training import History, TrainingWarning, fixed_x
from pyro_vae.training.history import ROW
from pyro_vae.training.selection import Objective, alike


def values(history, name="valid_objective"):
    return [row[name] for row in history.rows]


def last_state(vae):
    """A function from parameters to an optimiser, and the state after its last step."""
    state = {}

    def make(parameters):
        optimizer = torch.optim.Adam(parameters, lr=1e-2)
        optimizer.register_step_post_hook(lambda *_: state.update(copy_of(vae)))
        return optimizer

    return make, state


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [Trace_ELBO(), estimators.StickingTheLanding(), estimators.ImportanceWeighted(1)])
def test_with_one_draw_the_objective_is_the_bound_that_is_measured_anyway(estimator):
    history = quick(small_vae(), estimator=estimator, epochs=4)
    assert values(history) == values(history, "valid_bound")
    assert history.kept_epoch == history.best_epoch == 1 + max(range(4), key=values(history).__getitem__)
    assert history.reason == (
        "the best of epochs 1 to 4 on the validation images by the objective of "
        f"{type(estimator).__name__} with 1 particle"
    )


class Contrary(Trace_ELBO):
    """Trains the ELBO, and says that its loss is the contrary."""

    def loss(self, *args):
        return -super().loss(*args)


@pytest.mark.slow
def test_epochs_are_compared_by_the_very_estimator():
    vae = small_vae()
    history = quick(vae, estimator=Contrary(), epochs=4)
    assert history.kept_epoch == 1 and values(history, "valid_bound")[0] == min(values(history, "valid_bound"))
    one = small_vae()
    quick(one, epochs=1)
    assert same(vae, copy_of(one))


@pytest.mark.slow
def test_the_objective_of_an_importance_weighted_bound():
    vae = small_vae()
    history = quick(vae, estimator=estimators.ImportanceWeighted(20), epochs=3)
    x = fixed_x(vae, FEW.valid.images)
    with torch.no_grad():
        q = vae.posterior(x)
        z = q.sample((20, 60))
        log_w = vae.prior().log_prob(z) + vae.likelihood(z).log_prob(x) - q.log_prob(z)
        bounds = (log_w.logsumexp(0) - math.log(20)).mean(-1)
    kept, plain = (values(history, name)[history.kept_epoch - 1] for name in ("valid_objective", "valid_bound"))
    assert_estimate_is(kept, bounds.mean(), bounds.std(), sees=kept - plain)


def test_the_objective_with_the_kl_in_closed_form():
    vae = small_vae()
    vae.likelihood.network.layers[-2].weight.data.zero_()  # x does not depend on z, so that the bound has no noise
    x = fixed_x(vae, FEW.valid.images)
    objective = Objective(vae, TraceMeanField_ELBO(), (x,), (x[:20],), batch_size=30)
    with torch.no_grad():
        q = vae.posterior(x)
        kl = torch.distributions.kl_divergence(q, vae.prior().expand(q.batch_shape))
        bound = vae.likelihood(torch.zeros(len(x), 2)).log_prob(x) - kl
    weights = objective.weights()
    assert not objective.is_the_bound(weights)
    assert objective.value(math.nan, weights) == pytest.approx(bound.mean().item(), rel=1e-6)


class Annealed(nn.Module):
    """A KL weight held in a Python number, in training mode alone."""

    def __init__(self, beta=0.1):
        super().__init__()
        self.vae, self.beta, self.observe = small_vae(), beta, likelihoods.threshold

    def model(self, x):
        with pyro.plate("images", len(x)):
            with pyro.poutine.scale(scale=self.beta if self.training else 1.0):
                z = pyro.sample("z", self.vae.prior())
            pyro.sample("x", self.vae.likelihood(z), obs=x)

    def guide(self, x):
        with pyro.plate("images", len(x)), pyro.poutine.scale(scale=self.beta if self.training else 1.0):
            pyro.sample("z", self.vae.posterior(x))


class ByKLWeight(Annealed):
    """The same by the handler."""

    def model(self, x):
        return KLWeight(self.beta)(self.vae.model)(x) if self.training else self.vae.model(x)

    def guide(self, x):
        return KLWeight(self.beta)(self.vae.guide)(x) if self.training else self.vae.guide(x)


class ByKLWeighted(KLWeighted):
    """The same by the program, whose weight is set from outside."""

    def __init__(self, beta=0.1):
        super().__init__(Annealed().vae, beta)
        self.program.observe = likelihoods.threshold
        del self.beta
        self.register_buffer("weight", torch.tensor(beta), persistent=False)

    beta = property(lambda self: self.weight, lambda self, beta: self.weight.fill_(beta))


def raised(program, schedule):
    """An optimiser whose hook sets the weight."""

    def make(parameters):
        optimizer, steps = torch.optim.Adam(parameters, lr=1e-2), []
        program.beta = schedule(0)

        def after(*_):
            steps.append(1)
            program.beta = schedule(len(steps))

        optimizer.register_step_post_hook(after)
        return optimizer

    return make


# Two steps an epoch. The weight stands still from the third epoch on.
def growing(step):
    return (0.1, 0.1, 0.5, 0.5, 4.0)[min(step, 4)]


@pytest.mark.slow
@pytest.mark.parametrize("program", [Annealed, ByKLWeight, ByKLWeighted])
def test_no_epoch_with_a_smaller_kl_weight_comes_back(program):
    program = program()
    history = quick(program, epochs=6, batch_size=100, optimizer=raised(program, growing))
    weights = [0.5, 4.0, 4.0, 4.0, 4.0, 4.0]
    # All validation images are one batch, so that the draws are those of the bound.
    expected = [-(row["valid_distortion"] + beta * row["valid_rate"]) for row, beta in zip(history.rows, weights)]
    assert values(history) == pytest.approx(expected, rel=1e-5)
    assert history.comparable_from == 2
    assert history.kept_epoch == 2 + max(range(5), key=expected[1:].__getitem__)
    assert "of epochs 2 to 6" in history.reason and "changed in epoch 2" in history.reason


def test_a_better_epoch_at_other_weights_is_not_the_best():
    rows = [{"epoch": epoch, "valid_objective": value} for epoch, value in enumerate((-1.0, -7.0, -5.0, -6.0), start=1)]
    assert [History(rows, comparable_from=first).kept_epoch for first in (1, 2, 4)] == [1, 3, 4]


@pytest.mark.slow
def test_an_annealed_weight_is_compared_once_it_stands_still():
    weighted = KLWeighted(small_vae())

    def optimizer(parameters):
        return weighted.anneal(torch.optim.Adam(parameters, lr=1e-2), LinearWarmUp(steps=8, end=4.0))

    history = quick(weighted, epochs=4, optimizer=optimizer)
    assert history.comparable_from == 2 and history.kept_epoch in (2, 3, 4)
    row = history.rows[-1]
    assert row["valid_objective"] == pytest.approx(-(row["valid_distortion"] + 4 * row["valid_rate"]), abs=1.0)


@pytest.mark.slow
def test_a_weight_of_one_needs_no_measurement_of_its_own():
    weighted = KLWeighted(small_vae())

    def optimizer(parameters):
        return weighted.anneal(torch.optim.Adam(parameters, lr=1e-2), LinearWarmUp(steps=6))

    history = quick(weighted, epochs=4, optimizer=optimizer)
    assert history.comparable_from == 2
    assert values(history)[1:] == values(history, "valid_bound")[1:]
    assert values(history)[0] != values(history, "valid_bound")[0]


@pytest.mark.slow
@pytest.mark.parametrize("program", [Annealed, ByKLWeight, ByKLWeighted])
def test_a_weight_that_never_stands_still_keeps_the_last_epoch_and_is_said(program):
    program = program()
    make = raised(program, lambda step: (step + 1) / 10)

    def watched(parameters):
        optimizer = make(parameters)
        optimizer.register_step_post_hook(lambda *_: state.update(copy_of(program)))
        return optimizer

    state = {}
    with pytest.warns(TrainingWarning, match="the weights of the sites, such as a KL weight, still changed in the"):
        history = quick(program, epochs=4, optimizer=watched)
    assert history.kept_epoch == history.comparable_from == 4 and same(program, state)
    assert history.reason.startswith("the last epoch: the weights of the sites, such as a KL weight, changed in it")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "end"),
    [
        (LinearWarmUp(1000), "1"),
        (LinearWarmUp(9, end=4.0), "4"),
        (lambda step: 1 - math.exp(-step / 100), "1"),
        (lambda step: 1 / (1 + math.exp(-(step - 50) / 5)) if step < 1000 else 1.0, "1"),
    ],
)
def test_a_warm_up_longer_than_the_training_is_said_before_it(schedule, end):
    weighted = KLWeighted(small_vae())
    before = copy_of(weighted)

    def optimizer(parameters):
        return weighted.anneal(torch.optim.Adam(parameters, lr=1e-2), schedule)

    message = rf"beta: its schedule goes on to {end}, and is at \S+ after the 4 steps of this training; train for more"
    with pytest.warns(AnnealingWarning, match=message):
        quick(weighted, epochs=1, optimizer=optimizer)
    assert not same(weighted, before)


@pytest.mark.slow
def test_the_cure_of_a_warm_up_that_is_too_long():
    weighted = KLWeighted(small_vae())

    def optimizer(parameters):
        return weighted.anneal(torch.optim.Adam(parameters, lr=1e-2), LinearWarmUp(steps=2))

    quick(weighted, epochs=1, optimizer=optimizer)  # warnings are errors
    assert weighted.beta == 1


@pytest.mark.parametrize(
    "schedule",
    [
        LinearWarmUp(4),
        lambda step: 0.3,
        lambda step: min(1.0, step % 4 / 2),
        [0.0, 0.1, 0.2, 0.5, 1.0].__getitem__,
        lambda step: 1 - math.exp(-2.0 * step),
        lambda step: torch.tensor(0.5),
    ],
)
def test_schedules_that_come_to_their_end_are_not_spoken_of(schedule):
    optimizer = KLWeighted(small_vae()).anneal(torch.optim.Adam(small_vae().parameters()), schedule)
    KLWeighted.check_annealing(optimizer, steps=4)


def test_a_schedule_that_becomes_negative_is_refused_before_anything_is_trained():
    weighted = KLWeighted(small_vae())
    before = copy_of(weighted)

    def optimizer(parameters):
        return weighted.anneal(torch.optim.Adam(parameters), lambda step: 1 - step / 6)

    with pytest.raises(ValueError, match="beta: got -"):
        quick(weighted, optimizer=optimizer)
    assert same(weighted, before)
    annealed = optimizer(list(weighted.parameters()))
    with pytest.raises(ValueError, match="this optimiser anneals a KL weight already"):
        weighted.anneal(annealed, LinearWarmUp(4))


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [(pyro.optim.Adam({"lr": 1e-3}), LinearWarmUp(4)), (torch.optim.Adam, LinearWarmUp(4)), (None, 0.5)],
)
def test_what_cannot_be_annealed(optimizer, schedule):
    weighted = KLWeighted(small_vae())
    optimizer = optimizer or torch.optim.Adam(weighted.parameters())
    with pytest.raises(ValueError, match="anneal: wanted a torch optimiser and a function of the step, got"):
        weighted.anneal(optimizer, schedule)
    for steps in (0, -1, math.nan, math.inf, "1000"):
        with pytest.raises(ValueError, match=r"steps: got .*, wanted a positive number"):
            LinearWarmUp(steps)


@pytest.mark.slow
def test_the_last_epoch_is_kept_where_that_is_wanted():
    def ruin(optimizer, steps):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step < steps / 2 else 300.0)

    vae = small_vae()
    make, state = last_state(vae)
    history = quick(vae, epochs=6, optimizer=make, schedule=ruin, keep="last")
    assert history.kept_epoch == 6 > history.best_epoch and same(vae, state)
    assert history.reason == 'the last epoch, as keep="last" asks'


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator", [estimators.WakeSleep(), ReweightedWakeSleep(2, vectorize_particles=True, max_plate_nesting=1)]
)
def test_estimators_that_train_no_bound_are_judged_by_the_bound(estimator):
    history = quick(small_vae(), estimator=estimator, epochs=3)
    assert values(history) == values(history, "valid_bound")
    assert history.reason.endswith(f"by the bound with one particle, as {type(estimator).__name__} trains no bound")


@pytest.mark.slow
def test_the_objective_of_an_estimator_without_a_differentiable_loss():
    estimator = RenyiELBO(alpha=0.5, num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    history = quick(small_vae(), estimator=estimator, epochs=3)
    assert values(history) != values(history, "valid_bound")
    assert values(history)[2] > values(history)[0]
    assert history.reason.endswith("by the objective of RenyiELBO with 3 particles")


@pytest.mark.slow
def test_what_is_measured_for_the_choice_leaves_the_training_as_it_is():
    kept, last = small_vae(), small_vae()
    first = quick(kept, estimator=estimators.ImportanceWeighted(4), epochs=3)
    second = quick(last, estimator=ImportanceWeightedWithoutValue(4), epochs=3)
    assert values(first, "valid_bound") == values(second, "valid_bound")


class ImportanceWeightedWithoutValue(estimators.ImportanceWeighted):
    """The same, but judged by the bound, so that nothing else is measured."""

    is_bound = False


def test_weights_that_are_alike():
    assert alike({"model z": [0.0], "model x": [1.0, 2.0]}, {"model x": [1.0, 2.001], "model z": [0.0]})
    assert not alike({"model z": [0.0]}, {"model z": [1e-9]})
    assert not alike({"model z": [1.0]}, {"model z": [1.0, 1.0]})
    assert not alike({"model z": [1.0]}, {}) and not alike({}, {"model z": [1.0]})


def test_no_epoch():
    history = History()
    assert history.best_epoch is history.kept_epoch is None and History(keep="last").kept_epoch is None
    assert history.reason == "no epoch has ended: the parameters are those of the last step"
    assert ROW[-1] == "valid_objective"


def test_weights_are_noted_without_a_trace_and_as_training_has_them():
    program = Annealed(beta=0.25)
    program.vae.posterior.network.layers.append(nn.BatchNorm1d(16))
    before, state = copy_of(program), torch.get_rng_state()
    x = fixed_x(program, FEW.valid.images)
    objective = Objective(program, Trace_ELBO(), (x,), (x[:20],), batch_size=50)
    assert objective.weights() == {"guide z": [0.25], "model z": [0.25], "model x": [1.0]}
    assert objective.weights(training=False) == {"guide z": [1.0], "model z": [1.0], "model x": [1.0]}
    assert same(program, before) and torch.equal(state, torch.get_rng_state()) and program.training


class Given(Annealed):
    """The weights of z in training and in evaluation, numbers or one an image."""

    def __init__(self, training, evaluation):
        super().__init__()
        self.of = {True: training, False: evaluation}

    beta = property(lambda self: self.of[self.training], lambda self, beta: None)

    def model(self, x):
        with pyro.plate("images", len(x)):
            with pyro.poutine.scale(scale=self.beta):
                z = pyro.sample("z", self.vae.prior())
            pyro.sample("x", self.vae.likelihood(z), obs=x)

    def guide(self, x):
        with pyro.plate("images", len(x)), pyro.poutine.scale(scale=self.beta):
            pyro.sample("z", self.vae.posterior(x))


@pytest.mark.parametrize(
    ("training", "evaluation"),
    [(torch.linspace(0.2, 1, 20), torch.ones(20)), (0.5, torch.tensor(0.0)), (0.5, 0.25), (3.0, 1.0)],
)
def test_a_weight_is_that_of_training_unless_it_is_one_an_image_or_zero(no_validation, training, evaluation):
    program, expected = Given(training, evaluation), Given(training, evaluation)
    x = fixed_x(program, FEW.valid.images[:20])
    objective = Objective(program, Trace_ELBO(), (x,), (x,), batch_size=20)
    found = objective.loss((x,), objective.weights())
    if isinstance(training, float) and evaluation:
        expected.of[False] = training
    with seeded(0), torch.no_grad():
        expected.eval()
        assert found == pytest.approx(Trace_ELBO().loss(expected.model, expected.guide, x), rel=1e-5)


class AsDescribed(estimators.StickingTheLanding):
    """The same loss, which is said."""

    description = estimators.StickingTheLanding.description


class Undescribed(estimators.StickingTheLanding):
    """The same loss, which nobody knows."""


@pytest.mark.parametrize(("estimator", "plain"), [(AsDescribed(), True), (Undescribed(), False)])
def test_the_bound_is_not_measured_again_where_the_estimator_says_that_it_is_its_objective(estimator, plain):
    vae = small_vae()
    x = fixed_x(vae, FEW.valid.images)
    objective = Objective(vae, estimator, (x,), (x[:20],), batch_size=50)
    assert objective.is_the_bound(objective.weights()) == plain
