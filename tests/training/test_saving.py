"""Which saved state may be resumed, and what is said of it."""

import copy
from dataclasses import replace

import pytest
import torch
from programs import FEW, Breaks, quick, small_vae
from small_trainings import stopped, train
from torch import nn

from pyro_vae import VAE, fit, guides, networks, priors
from pyro_vae.estimators import Antithetic, ImportanceWeighted, RenyiBound, ScoreFunction, StickingTheLanding
from pyro_vae.files import CheckpointError
from pyro_vae.likelihoods import Normal
from pyro_vae.training import TrainingWarning, warm_cosine
from pyro_vae.training.checkpoint import ESTIMATOR_SETTINGS, Checkpoints, decode, encode
from pyro_vae.training.saving import OPTIMIZER_FLAGS, OPTIMIZER_SETTINGS, STRUCTURE

pytestmark = pytest.mark.slow


def test_other_settings_are_refused_by_name(tmp_path, usual_interrupt):
    stopped(small_vae(), tmp_path, 4)
    program = Breaks(small_vae(), lambda count, x: x)
    with pytest.raises(ValueError, match=r"lr is 0\.01 there and 0\.02 here, seed is 0 there and 1 here"):
        train(program, tmp_path, resume=True, lr=0.02, seed=1)
    with pytest.raises(ValueError, match=r"program is .* tensors"):
        train(Breaks(small_vae(latent=3), lambda count, x: x), tmp_path, resume=True)
    other = copy.copy(FEW)
    object.__setattr__(other, "train", FEW.train[torch.arange(200).flip(0)])
    with pytest.raises(ValueError, match="images is '200 images, checksum"):
        fit(
            program,
            other,
            epochs=5,
            batch_size=45,
            lr=1e-2,
            schedule=warm_cosine,
            progress=False,
            checkpoints=Checkpoints(tmp_path, resume=True),
        )


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        (RenyiBound(0.9, 2), RenyiBound(0.1, 2), r"'alpha=0\.9' there and 'alpha=0\.1' here"),
        (ImportanceWeighted(2, M=1), ImportanceWeighted(1, M=2), "'K=2, M=1' there and 'K=1, M=2' here"),
        (ScoreFunction(2), ScoreFunction(2, "leave-one-out"), "'baseline=None' there"),
        (Antithetic(StickingTheLanding(2)), Antithetic(ScoreFunction(2)), r"'estimator=StickingTheLanding\(\)' there"),
    ],
)
def test_another_bound_of_one_class_is_refused(tmp_path, before, now, words):
    quick(small_vae(), estimator=before, epochs=1, checkpoints=Checkpoints(tmp_path))
    with pytest.raises(ValueError, match=f"settings of the estimator is {words}"):
        quick(small_vae(), estimator=now, checkpoints=Checkpoints(tmp_path, resume=True))


def test_a_checkpoint_that_does_not_name_the_estimators_settings_is_resumed(tmp_path):
    quick(small_vae(), estimator=RenyiBound(0.9, 2), epochs=1, checkpoints=Checkpoints(tmp_path))
    path = tmp_path / "checkpoint.pt"
    content = decode(path.read_bytes(), "")
    del content["settings"][ESTIMATOR_SETTINGS]
    path.write_bytes(encode(content))
    history = quick(small_vae(), estimator=RenyiBound(0.9, 2), checkpoints=Checkpoints(tmp_path, resume=True))
    assert len(history.rows) == 2


def test_other_validation_rows_and_another_step_of_an_own_optimiser_are_refused(tmp_path):
    """Epochs would be compared by two sets of rows; the step would be that of the checkpoint, whatever was given."""

    def trained(data=FEW, lr=0.01, **options):
        settings = {"batch_size": 50, "progress": False, "checkpoints": Checkpoints(tmp_path, **options)}
        return fit(small_vae(), data, epochs=2, optimizer=lambda own: torch.optim.Adam(own, lr=lr), **settings)

    trained()
    other = replace(FEW, valid=FEW.valid[::-1])
    with pytest.raises(ValueError, match=r"images of validation is '\d+ images, checksum \d+' there and"):
        trained(other, resume=True)
    with pytest.raises(ValueError, match=r"settings of the optimiser is 'lr=0\.01, .* there and 'lr=0\.1, "):
        trained(lr=0.1, resume=True)
    path = tmp_path / "checkpoint.pt"
    content = decode(path.read_bytes(), "")
    for name in ("images of validation", "labels of validation", OPTIMIZER_SETTINGS):  # which older checkpoints lack
        del content["settings"][name]
    path.write_bytes(encode(content))
    assert len(trained(other, resume=True).rows) == 2


def test_other_flags_of_an_own_optimiser_are_refused(tmp_path):
    """The flags would be those of the checkpoint, whatever was given."""

    def trained(epochs=2, resume=True, **flags):
        def sgd(own):
            return torch.optim.SGD([{"params": own[:1]}, {"params": own[1:], **flags}], lr=1e-5, momentum=0.9)

        checkpoints = Checkpoints(tmp_path, resume=resume)
        return quick(small_vae(), optimizer=sgd, epochs=epochs, checkpoints=checkpoints)

    trained(epochs=1, resume=False)
    with pytest.raises(ValueError, match="flags of the optimiser is 'none' there and 'none; nesterov, maximize' here"):
        trained(nesterov=True, maximize=True)
    path = tmp_path / "checkpoint.pt"
    content = decode(path.read_bytes(), "")
    del content["settings"][OPTIMIZER_FLAGS]  # which older checkpoints lack
    path.write_bytes(encode(content))
    assert len(trained().rows) == 2


def test_a_program_of_other_parts_or_numbers_is_refused(tmp_path):
    """Its tensors have the same names and shapes; its epochs would be compared with those of the other one."""

    def trained(activation=nn.ReLU, floor=-6.0, resume=True, epochs=2):
        network = nn.Sequential(nn.Linear(2, 128), activation(), nn.Unflatten(-1, (2, 8, 8)))
        encoder = networks.MLPEncoder(FEW.shape, hidden=(8,))
        vae = VAE(priors.StandardNormal(2), Normal(network, min_log_scale=floor), guides.MeanField(encoder, 2))
        return quick(vae, epochs=epochs, checkpoints=Checkpoints(tmp_path, resume=resume))

    trained(resume=False, epochs=1)
    with pytest.raises(ValueError, match=r"another program .*network.1: class is .*ReLU in one and .*Tanh in"):
        trained(nn.Tanh)
    with pytest.raises(ValueError, match=r"its likelihood: min_log_scale is -6.0 in one and -1.0 in the other"):
        trained(floor=-1.0)
    path = tmp_path / "checkpoint.pt"
    content = decode(path.read_bytes(), "")
    del content["settings"][STRUCTURE]  # which older checkpoints lack
    path.write_bytes(encode(content))
    assert len(trained(floor=-1.0).rows) == 2


def test_other_versions_or_threads_are_said(tmp_path, usual_interrupt, monkeypatch):
    stopped(small_vae(), tmp_path, 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1000)
    with pytest.warns(TrainingWarning, match=r"is resumed under .*'threads': 1000.*: the same bits are not promised"):
        train(Breaks(small_vae(), lambda count, x: x), tmp_path, resume=True)


def test_a_whole_checkpoint_of_strange_content_is_an_error(tmp_path, usual_interrupt):
    stopped(small_vae(), tmp_path, 4)
    path = tmp_path / "checkpoint.pt"
    content = decode(path.read_bytes(), "")
    strange = {
        "taken": "x",
        "order": 3,
        "seconds": None,
        "program": {},
        "optimizer": {"state": 1},
        "random": None,
        "history": {"a": 1},
    }
    others = [("taken", 6), ("order", None), ("order", torch.zeros(200, dtype=torch.int64))]
    for name, value in [*strange.items(), *others]:
        path.write_bytes(encode({**content, name: value}))
        with pytest.raises(CheckpointError, match="the checkpoint does not fit this run"):
            train(Breaks(small_vae(), lambda count, x: x), tmp_path, resume=True)


def test_a_run_of_fewer_epochs_than_are_behind_it_is_refused(tmp_path, usual_interrupt):
    stopped(small_vae(), tmp_path, 14)  # within the third epoch
    resumed = Breaks(small_vae(), lambda count, x: x)
    before = copy.deepcopy(resumed.state_dict())
    with pytest.raises(ValueError, match=r"epochs: wanted at least .* got 2, which are 10 steps, and it is at step 13"):
        train(resumed, tmp_path, resume=True, epochs=2)
    assert all(torch.equal(value, before[name]) for name, value in resumed.state_dict().items())
    with pytest.warns(TrainingWarning, match="new number of epochs"):
        assert len(train(resumed, tmp_path, resume=True, epochs=3).rows) == 3


def test_settings_that_cannot_be_saved_are_refused_before_anything_is_trained(tmp_path):
    program = Breaks(small_vae(), lambda count, x: x)
    with pytest.raises(CheckpointError, match="only tensors, numbers, strings"):
        fit(program, FEW, batch_size=45, progress=False, checkpoints=Checkpoints(tmp_path, settings={"out": tmp_path}))
    assert program.count == 1
