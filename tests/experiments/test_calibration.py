"""Calibration of the evidence: its programs against importance sampling, and the command from end to end."""

import json

import pytest
import torch
from monte_carlo import assert_evidence_is

from experiments import calibration
from pyro_vae.evidence import LocalProposal, log_evidence


@pytest.mark.parametrize("program", ["linear, guide 0.9 as wide", "logistic"])
def test_the_known_values_are_those_of_the_program(program):
    make, narrower = calibration.PROGRAMS[program]
    torch.manual_seed(0)
    known = make(narrower, 20)
    options = {"proposal": LocalProposal(), **calibration.SETTING}
    evidence = log_evidence(known.model, known.guide, known.args, 4000, **options)
    assert_evidence_is(evidence, known.log_px, sees=0.5)
    assert evidence.standard_error.max() < 0.05


@pytest.mark.slow
def test_from_end_to_end(tmp_path, capsys):
    out = tmp_path / "out" / "calibration.json"
    words = ["--seeds", "0", "1", "--images", "30", "--programs", "logistic", "--methods", "importance", "annealed"]
    assert calibration.main([*words, "--out", str(out)]) == 0
    importance, annealed = json.loads(out.read_text())["rows"]
    assert annealed["trusted"] == 0 and annealed["of_trusted"] is None and 0.7 < annealed["of_all"]["holds"] <= 1
    assert importance["of_all"]["sd"] == pytest.approx(1, abs=0.4)
    assert "trusted   0.0%" in capsys.readouterr().out
    assert calibration.main(["--images", "0", "--out", str(out)]) == 1
