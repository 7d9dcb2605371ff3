"""Compiled steps: the eager ones, or an error that says why not."""

import copy

import pyro
import pytest
import torch
from engine_trainings import BATCHES, Branching, Training, adam, assert_same_training, normalised
from programs import DIGITS, needs_compiler, refused_by_2_11, small_vae
from pyro.infer import Trace_ELBO

from pyro_vae import VAE, guides, handlers, likelihoods, networks, priors
from pyro_vae.compiling import missing_compiler
from pyro_vae.estimators import DoublyReparameterized, GeneralizedDReG, RenyiBound
from pyro_vae.training.engines import CompiledEngine, EagerEngine, EngineWarning

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_validation")]


@pytest.fixture(scope="module")
def trained():
    """A compiled training with a schedule, clipping and smaller last batches."""
    if missing := missing_compiler():
        pytest.skip(missing)
    with pyro.validation_enabled(False):
        return Training(CompiledEngine, clip=60.0)


def test_compiled_is_eager(trained):
    reference = Training(EagerEngine, clip=60.0)
    assert_same_training(trained, reference)
    assert (trained.losses - Training(EagerEngine).losses).abs().max() > 1  # the clipping is felt
    assert trained.step.graph is not None and trained.step.name == "compiled"


def test_another_engine_goes_on_from_the_state_of_the_compiled_one(trained):
    results = []
    for kind in EagerEngine, CompiledEngine:
        program = small_vae()
        program.load_state_dict(trained.program.state_dict())
        optimizer = adam(list(program.parameters()))
        optimizer.load_state_dict(copy.deepcopy(trained.optimizer.state_dict()))
        step = kind(program, Trace_ELBO(), optimizer, **({"rows": len(BATCHES[0])} if kind is CompiledEngine else {}))
        torch.manual_seed(2)
        step(BATCHES[0])
        assert kind is EagerEngine or step.graph is not None  # compiled from its first step on
        results.append(torch.cat([p.detach().flatten() for p in program.parameters()]))
        assert {state["step"].item() for state in optimizer.state.values()} == {len(BATCHES) + 1}
    torch.testing.assert_close(*results)


@needs_compiler
@refused_by_2_11
def test_compiled_convolutions_of_lowered_precision_have_the_eager_gradients():
    def training(kind):
        torch.manual_seed(0)
        decoder = networks.ConvDecoder(2, DIGITS.shape, maps=1, channels=(16, 8))
        encoder = networks.ConvEncoder(DIGITS.shape, channels=(8, 16))
        program = VAE(priors.StandardNormal(2), likelihoods.Bernoulli(decoder), guides.MeanField(encoder, 2))
        with networks.lowered_precision(program, torch.bfloat16):
            return Training(kind, program, batches=BATCHES[:3])

    eager, fast = training(EagerEngine), training(CompiledEngine)
    assert fast.step.name == "compiled"
    for one, other in zip(eager.optimizer.state.values(), fast.optimizer.state.values()):
        assert (one["exp_avg"] - other["exp_avg"]).norm() < 0.05 * one["exp_avg"].norm()


@needs_compiler
@pytest.mark.usefixtures("quick_compiler")
def test_a_schedule_that_moves_the_betas_of_adam_is_followed():
    def one_cycle(optimizer, steps):
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=steps)

    losses = [Training(kind, batches=BATCHES * 2, schedule=one_cycle).losses for kind in (EagerEngine, CompiledEngine)]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=0.0)


@needs_compiler
def test_a_resumed_compiled_training_goes_on_to_the_same_bits():
    whole = Training(CompiledEngine, batches=BATCHES[:2], schedule=None, clip=60.0)
    resumed = Training(EagerEngine, batches=BATCHES[:1], schedule=None)
    resumed.program.load_state_dict(whole.program.state_dict())
    resumed.optimizer.load_state_dict(copy.deepcopy(whole.optimizer.state_dict()))
    resumed.step = CompiledEngine(
        resumed.program, Trace_ELBO(), resumed.optimizer, clip=60.0, rows=len(BATCHES[0]), strict=True
    )
    for training in whole, resumed:
        torch.manual_seed(3)
        training.losses = torch.stack([training.step(batch) for batch in BATCHES[2:5]])
    assert torch.equal(whole.losses, resumed.losses)
    for one, other in zip(whole.program.parameters(), resumed.program.parameters()):
        assert torch.equal(one, other)


def test_compiled_leaves_out_a_step_that_is_not_finite(trained):
    weight = trained.program.likelihood.network.layers[0].weight
    kept = weight.detach().clone()
    before = copy.deepcopy((trained.program.state_dict(), trained.optimizer.state_dict()["state"]))
    with torch.no_grad():
        weight[0, 0] = torch.nan
    assert not trained.step(BATCHES[0]).isfinite()
    with torch.no_grad():
        weight.copy_(kept)
    for name, value in trained.program.state_dict().items():
        assert torch.equal(value, before[0][name])
    for number, state in trained.optimizer.state_dict()["state"].items():
        assert all(torch.equal(state[key], before[1][number][key]) for key in state)


@needs_compiler
@refused_by_2_11
@pytest.mark.usefixtures("quick_compiler")
def test_hooks_and_annealing_work_under_a_compiled_gradient():
    def anneal(program):
        return lambda parameters: program.anneal(adam(parameters), handlers.LinearWarmUp(steps=40))

    trainings = []
    for kind in CompiledEngine, EagerEngine:
        program = handlers.KLWeighted(small_vae())
        trainings.append(Training(kind, program, anneal(program), BATCHES[:20], schedule=None))
        assert program.beta == 0.5
    assert_same_training(*trainings)
    assert trainings[0].step.graph is not None


def test_control_flow_that_depends_on_data_is_an_error_that_names_the_line():
    with pytest.raises(ValueError, match=r"engine_trainings.py, line \d+: `if x.mean\(\) > 0.3:`.*engine=.eager"):
        Training(CompiledEngine, Branching(), batches=BATCHES[:2])


@needs_compiler
@pytest.mark.usefixtures("quick_compiler")
def test_compiled_batch_norm_keeps_the_eager_statistics():
    trainings = [Training(kind, normalised()) for kind in (CompiledEngine, EagerEngine)]
    assert_same_training(*trainings)
    assert trainings[0].step.name == "compiled"
    for one, other in zip(*(training.program.buffers() for training in trainings)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_what_torch_cannot_compile_is_an_error_that_names_the_way_out_and_leaves_no_trace(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("g++ ran out of memory")

    monkeypatch.setattr("pyro_vae.training.gradients.compiled_graph", broken)
    with pytest.raises(ValueError, match=r"cannot compile this step \(g\+\+ ran out of memory\).*engine=.eager"):
        Training(CompiledEngine, normalised(), batches=BATCHES[:2])
    with pytest.warns(EngineWarning, match=r"training eagerly: g\+\+ ran out of memory"):
        fallen = Training(CompiledEngine, normalised(), batches=BATCHES[:3], strict=False)
    assert torch.equal(fallen.losses, Training(EagerEngine, normalised(), batches=BATCHES[:3]).losses)
    assert fallen.program.posterior.network.layers[-1].num_batches_tracked == 3


def test_auto_says_why_it_trains_eagerly_and_does():
    with pytest.warns(EngineWarning, match="training eagerly: .*if x.mean"):
        training = Training(CompiledEngine, Branching(), batches=BATCHES[:4], strict=False)
    assert training.step.name == "eager"
    torch.testing.assert_close(training.losses, Training(EagerEngine, Branching(), batches=BATCHES[:4]).losses)


@needs_compiler
@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.filterwarnings("ignore:Encountered NaN:UserWarning")
def test_a_first_step_that_is_left_out_leaves_the_optimiser_without_a_state():
    program = small_vae()
    with torch.no_grad():
        program.posterior.head.bias.fill_(torch.nan)
    step = CompiledEngine(program, Trace_ELBO(), adam(list(program.parameters())))
    assert not step(BATCHES[0]).isfinite() and not step(BATCHES[1]).isfinite()
    with torch.no_grad():
        program.posterior.head.bias.zero_()
    assert all(step(batch).isfinite() for batch in BATCHES[:3])


@needs_compiler
@pytest.mark.usefixtures("quick_compiler")
def test_an_optimiser_without_a_state_is_compiled_too():
    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=1e-3)

    training = Training(CompiledEngine, optimizer=sgd, batches=BATCHES[:4], schedule=None)
    assert training.step.graph is not None
    eager = Training(EagerEngine, optimizer=sgd, batches=BATCHES[:4], schedule=None)
    torch.testing.assert_close(training.losses, eager.losses, rtol=1e-5, atol=0.0)


@needs_compiler
@pytest.mark.usefixtures("quick_compiler")
def test_compiled_parts_of_a_batch_are_eager():
    trainings = [Training(kind, batches=BATCHES[:4], accumulate=3, clip=60.0) for kind in (CompiledEngine, EagerEngine)]
    torch.testing.assert_close(trainings[0].losses, trainings[1].losses, rtol=1e-5, atol=0.0)
    assert trainings[0].step.graph is not None
    for one, other in zip(*(training.program.parameters() for training in trainings)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@needs_compiler
@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize("elbo", [DoublyReparameterized(3), RenyiBound(0.5, 2), GeneralizedDReG(2)], ids=type)
def test_an_estimator_that_takes_derivatives_itself_trains_compiled_as_it_does_eagerly(elbo):
    trainings = [Training(kind, batches=BATCHES[:4], elbo=elbo) for kind in (CompiledEngine, EagerEngine)]
    assert trainings[0].step.name == "compiled" and trainings[0].step.graph is not None
    torch.testing.assert_close(trainings[0].losses, trainings[1].losses, rtol=1e-5, atol=0.0)
    for one, other in zip(*(training.program.parameters() for training in trainings)):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    trainings[0].step.end_epoch()
    assert not trainings[0].step.doubted
