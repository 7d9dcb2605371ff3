"""The short version of tests/faults/harness.py: killed runs, full disks, damaged files."""

import os
from pathlib import Path

import pytest
from forked import Forked, file_of

ROOT = Path(__file__).parents[1]
HARNESS = ROOT / "tests/faults/harness.py"


@pytest.mark.slow
def test_killed_runs_full_disks_and_damaged_files(tmp_path):
    words = ["--kills", "3", "--files", "140", "--seed", "1", "--no-pictures"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = Forked(file_of(HARNESS), tmp_path, environment, words).wait(300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 killed runs ended with the same bits" in done.stdout
    assert "140 damaged files" in done.stdout and "0 failures\neverything held" in done.stdout
