"""log p(x) of all test images of a trained model, from end to end."""

import json

import pytest
import torch

from experiments import all_images
from pyro_vae.evidence import LocalProposal, annealed_evidence, log_evidence
from pyro_vae.observation import fixed_x
from pyro_vae.runs import bounds, train


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pyro_vae.evidence.UntrustedEvidence")
def test_all_are_measured_some_are_annealed_and_the_same_command_goes_on(tmp_path):
    small = ["--dataset", "digits", "--net", "mlp", "--hidden", "16", "--epochs", "1", "--measure", "none", "--quiet"]
    assert train.main([*small, "--out", str(tmp_path / "run")]) == 0
    words = ["--run", str(tmp_path / "run"), "--out", str(tmp_path / "found.json"), "--images", "8", "--quiet"]
    few = ["--particles", "20", "--annealed", "3", "--temperatures", "5", "--chains", "2"]
    assert all_images.main([*words, *few]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    vae, rows, _ = bounds.load_run(tmp_path / "run", torch.device("cpu"))
    x = fixed_x(vae, rows[:8])
    local = log_evidence(vae, x, 20, proposal=LocalProposal(), progress=False)
    annealed = annealed_evidence(vae, x[:3], num_temperatures=5, chains=2, progress=False)
    assert found["local"]["log_px"] == pytest.approx(local.mean) and found["local"]["images"] == 8
    assert found["difference"]["mean"] == pytest.approx((local.log_px[:3] - annealed.log_px).mean().item())
    assert not found["resumed"] and found["local"]["processor_seconds"] > 0
    assert all_images.main([*words, *few]) == 0
    again = json.loads((tmp_path / "found.json").read_text())
    assert again["resumed"] and again["local"]["log_px"] == found["local"]["log_px"]
