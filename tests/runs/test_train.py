"""The command line of the main job: its exit status, its words, and how it is stopped."""

import io
import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from small_runs import SMALL, command

from experiments import run
from pyro_vae.runs import job
from pyro_vae.runs.options import home_path
from pyro_vae.saved import load_vae

SCRIPT = Path(run.__file__)


def test_an_unknown_likelihood(capsys):
    with pytest.raises(SystemExit, match="2"):
        run.main(["--lik", "poisson"])
    assert "argument --lik: wanted one of bernoulli, " in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_saves_what_was_trained(tmp_path):
    words = ["--dataset", "digits", "--net", "mlp", "--epochs", "100000", "--engine", "eager"]
    words += ["--out", str(tmp_path / "out")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A process started in the background ignores Ctrl-C, and would hand that on.
    usual = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    with subprocess.Popen([sys.executable, SCRIPT, *words], **pipes, **usual) as process:
        try:
            for line in process.stdout:  # without a terminal, a line an epoch
                if "epoch 3" in line:
                    break
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 130 and "interrupted: what was trained so far is saved in" in out
    again = shlex.join(["python", str(SCRIPT), *words, "--resume"])
    assert out.rstrip().endswith(f"go on with: {again}".replace("python", Path(sys.executable).name, 1))
    assert (tmp_path / "out/checkpoint.pt").is_file()
    assert json.loads((tmp_path / "out/metrics.json").read_text())["interrupted"] is True
    assert load_file(tmp_path / "out/model.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_the_home_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert run.main(["--dataset", "digits", *SMALL, "--epochs", "1", "--evidence", "0", "--out=~/results"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
    assert home_path("~") == tmp_path and home_path("a/~") == Path("a/~")
    with pytest.raises(SystemExit, match="2"):
        run.main(["--out", "~nobody-of-that-name/results"])
    assert re.search("argument --out: ~nobody-of-that-name/results: .*; write ", capsys.readouterr().err)
    assert load_vae("~/results").prior().event_shape == (2,)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_that_lacks_characters(tmp_path, monkeypatch, encoding):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    assert command(tmp_path, "--lik", "normal", "--evidence", "30", "--latent", "8") == 0
    with pytest.raises(SystemExit, match="0"):
        run.main(["--help"])
    sys.stdout.flush()
    printed = raw.getvalue().decode(encoding)
    assert ("k-hat > 0.7" in printed) and ("+-" if encoding == "ascii" else "±") in printed


def test_an_error_is_one_line(tmp_path, capsys, monkeypatch):
    def fails(*args, **kwargs):
        raise ValueError("found invalid values:\ntensor([[[nan, nan],\n" + "         [nan, nan]]])\n" * 1000)

    monkeypatch.setattr(job, "train_by", fails)
    assert command(tmp_path) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: found invalid values: tensor([[[nan, nan], [nan") and said.count("\n") == 1
    assert len(said) < 120
