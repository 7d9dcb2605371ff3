"""Measurements by a number of draws that stop and go on, with the same bits."""

import pytest
import torch
from evidence_programs import EAGER, images, rough, truth
from tqdm import tqdm

from pyro_vae.evidence import EvidenceInterrupted, LocalProposal, importance, log_evidence
from pyro_vae.evidence.batches import BatchedMeasurement
from pyro_vae.files import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore::pyro_vae.evidence.UntrustedEvidence")
OPTIONS = {"batch_size": 5, "progress": False, **EAGER}


@pytest.mark.parametrize("proposal", [None, LocalProposal(rounds=2, draws=4)])
def test_a_stopped_measurement_goes_on_with_the_same_bits(tmp_path, monkeypatch, proposal):
    program, path, measured = rough(), tmp_path / "evidence.pt", BatchedMeasurement._measured
    x, batches = images(program, 23), []

    def stopped(self, batch, bar):
        batches.append(len(self.done))
        if len(batches) == 4:
            raise KeyboardInterrupt
        return measured(self, batch, bar)

    whole = log_evidence(program, x, 60, proposal=proposal, **OPTIONS)
    assert ((whole.log_px - truth(program, x)).abs() < 6 * whole.standard_error).all()
    monkeypatch.setattr(BatchedMeasurement, "_measured", stopped)
    with pytest.raises(EvidenceInterrupted, match="after 15 of 23 images; the same call continues from") as caught:
        log_evidence(program, x, 60, proposal=proposal, checkpoint=path, **OPTIONS)
    assert [*caught.value.images] == list(range(15))
    assert torch.equal(caught.value.evidence.log_px, whole.log_px[:15])
    resumed = log_evidence(program, x, 60, proposal=proposal, checkpoint=str(path), **OPTIONS)
    assert batches == [0, 1, 2, 3, 3, 4]
    for name in ("log_px", "standard_error", "ess", "pareto_k"):
        assert torch.equal(getattr(resumed, name), getattr(whole, name))
    again = log_evidence(program, x, 60, proposal=proposal, checkpoint=path, **OPTIONS)
    assert torch.equal(again.log_px, whole.log_px) and len(batches) == 6  # nothing is left to do


def test_a_file_of_another_measurement_is_refused(tmp_path):
    program, path = rough(), tmp_path / "evidence.pt"
    x = images(program, 4)
    log_evidence(program, x, 20, checkpoint=path, **OPTIONS)
    calls = [
        lambda: log_evidence(program, x + 1, 20, checkpoint=path, **OPTIONS),
        lambda: log_evidence(program, x, 21, checkpoint=path, **OPTIONS),
        lambda: log_evidence(program, x, 20, checkpoint=path, seed=1, **OPTIONS),
        lambda: log_evidence(program, x, 20, checkpoint=path, proposal=LocalProposal(), **OPTIONS),
        lambda: log_evidence(program, x, 20, checkpoint=path, **OPTIONS | {"batch_size": 3}),
        lambda: log_evidence(rough(narrower=0.8), x, 20, checkpoint=path, **OPTIONS),
        lambda: log_evidence(program, x, target=0.1, checkpoint=path, **EAGER, progress=False),
    ]
    for call in calls:
        with pytest.raises(CheckpointError, match="of another measurement"):
            call()
    with pytest.raises(ValueError, match="checkpoint: wanted a seed"):
        log_evidence(program, x, 20, checkpoint=path, seed=None, **OPTIONS)


def test_the_bar_shows_the_mean_so_far(monkeypatch, capsys):
    monkeypatch.setattr("pyro_vae.evidence.batches.progress_bar", lambda total, unit, progress: tqdm(total=total))
    program = rough()
    evidence = log_evidence(program, images(program, 23), 20, **OPTIONS)
    assert f"{evidence.mean:.2f} nats" in capsys.readouterr().err


def test_batches_draw_independently():
    program = rough()
    x = images(program, 1).repeat(10, 1)
    assert len(log_evidence(program, x, 20, **OPTIONS | {"batch_size": 1}).log_px.unique()) == 10


def test_stopped_before_the_first_batch(monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(importance.ImportanceSampler, "__call__", stopped)
    program = rough()
    with pytest.raises(EvidenceInterrupted, match="after 0 of 3 images; give checkpoint=") as caught:
        log_evidence(program, images(program, 3), 20, **OPTIONS)
    assert caught.value.evidence is None
