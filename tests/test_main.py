"""``python -m pyro_vae`` is the console command."""

import subprocess
import sys

import pytest

from pyro_vae import cli


@pytest.mark.slow
def test_the_package_runs_as_the_command():
    done = subprocess.run([sys.executable, "-m", "pyro_vae", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout == f"{cli.page()}\n"
    failed = subprocess.run([sys.executable, "-m", "pyro_vae", "tarin"], capture_output=True, text=True)
    assert failed.returncode == 2 and "did you mean train?" in failed.stderr
