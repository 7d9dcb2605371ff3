"""Steps in a CUDA graph: those of the eager engine, on a CPU by plain calls."""

import copy

import pytest
import torch
from engine_trainings import BATCHES, Training, assert_same_training
from programs import DIGITS, needs_compiler, small_vae

from pyro_vae.compiling.captured import NotCaptured
from pyro_vae.training.engines import SEVERAL, CapturedEngine, CompiledEngine, EagerEngine, EngineWarning

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_validation")]


@pytest.mark.parametrize("clip", [None, 60.0])
def test_captured_is_eager(clip):
    captured, eager = (Training(kind, clip=clip) for kind in (CapturedEngine, EagerEngine))
    assert captured.step.name == "captured" and captured.step.replays.captured
    assert_same_training(captured, eager)


def test_captured_is_eager_in_float64_to_its_rounding():
    captured, eager = (
        Training(kind, small_vae().double(), batches=BATCHES[:20]) for kind in (CapturedEngine, EagerEngine)
    )
    torch.testing.assert_close(captured.losses, eager.losses, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(captured.program.state_dict(), eager.program.state_dict(), rtol=1e-12, atol=1e-15)
    rows, index = DIGITS.train.images[:200], torch.arange(10 * 50).view(SEVERAL, 50) % 200
    assert captured.step.several([rows], index) is None  # their learning rates would be rounded to float32


def test_captured_follows_other_optimisers_and_states():
    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=1e-4, momentum=0.9)

    trainings = [Training(kind, optimizer=sgd) for kind in (CapturedEngine, EagerEngine)]
    torch.testing.assert_close(trainings[0].losses, trainings[1].losses, rtol=1e-5, atol=0.0)
    trainings = [Training(kind, batches=BATCHES[:5]) for kind in (CapturedEngine, EagerEngine)]
    for training in trainings:
        training.optimizer.load_state_dict(copy.deepcopy(training.optimizer.state_dict()))  # in other memory
        training.optimizer.param_groups[0]["betas"] = 0.5, 0.9
        torch.manual_seed(2)
        training.losses = torch.stack([training.step(batch) for batch in BATCHES[:10]])
    assert_same_training(*trainings)


def test_several_captured_steps_are_those_taken_one_by_one():
    rows, index = DIGITS.train.images[:200], torch.stack([torch.randperm(200)[:50] for _ in range(SEVERAL)])
    several, single = (Training(CapturedEngine, batches=BATCHES[:3]) for _ in range(2))
    assert several.step.several([rows], index[:, :20]) is None and several.step.several([rows], index[1:]) is None
    for training in several, single:
        torch.manual_seed(2)
        if training is several:
            training.losses = training.step.several([rows], index)
        else:
            training.losses = torch.stack([training.step(rows[batch]) for batch in index])
        torch.rand(3)
    assert_same_training(several, single)
    assert several.optimizer.param_groups[0]["lr"] == single.optimizer.param_groups[0]["lr"]


def test_steps_whose_momentum_is_scheduled_are_not_taken_several_at_once():
    def one_cycle(optimizer, steps):
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=steps)

    trainings = [Training(kind, schedule=one_cycle) for kind in (CapturedEngine, EagerEngine)]
    torch.testing.assert_close(trainings[0].losses, trainings[1].losses, rtol=1e-4, atol=0.0)
    index = torch.arange(500).view(10, 50) % 220
    assert trainings[0].step.several([DIGITS.train.images[:220]], index) is None


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [CapturedEngine, pytest.param(CompiledEngine, marks=needs_compiler)])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_on_a_gpu_are_the_eager_ones(kind, accumulate):
    batches = [batch.cuda() for batch in BATCHES]
    trainings = [Training(k, small_vae().cuda(), batches=batches, accumulate=accumulate) for k in (kind, EagerEngine)]
    assert trainings[0].step.name == kind.name and trainings[0].step.replays.captured.popitem()[1][1].graph is not None
    assert_same_training(*trainings)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [CapturedEngine, pytest.param(CompiledEngine, marks=needs_compiler)])
def test_two_replays_of_a_cuda_graph_draw_other_numbers(kind):
    def still(parameters):
        return torch.optim.Adam(parameters, lr=0.0, fused=True)

    losses = Training(kind, small_vae().cuda(), still, [BATCHES[0].cuda()] * 10, schedule=None).losses
    assert len(set(losses.tolist())) == len(losses)


def test_steps_that_cannot_be_captured_are_eager(monkeypatch):
    def fails(function, args, changed):
        raise NotCaptured("no memory")

    monkeypatch.setattr("pyro_vae.training.graphed.Captured", fails)
    with pytest.warns(EngineWarning, match="eagerly: no memory"):
        captured = Training(CapturedEngine)
    assert captured.step.name == "eager"
    assert_same_training(captured, Training(EagerEngine))
