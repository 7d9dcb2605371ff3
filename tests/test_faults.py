"""The short version of tests/faults/harness.py: killed runs, full disks, damaged files."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HARNESS = ROOT / "tests/faults/harness.py"


def test_killed_runs_full_disks_and_damaged_files():
    words = [sys.executable, HARNESS, "--kills", "3", "--files", "140", "--seed", "1", "--no-pictures"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 killed runs ended with the same bits" in done.stdout
    assert "140 damaged files" in done.stdout and "0 failures\neverything held" in done.stdout
