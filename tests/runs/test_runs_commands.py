"""How a command starts and ends."""

import argparse
import shlex
import signal
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest
import torch

from pyro_vae.runs import commands, exit_status, reason
from pyro_vae.runs.commands import attempted, launched, terminable


def test_how_a_command_ends(capsys):
    def parse():
        return argparse.Namespace(out="figures/a")

    def fails(error):
        def work(args):
            raise error

        return work

    assert exit_status(parse, lambda args: None, "") == 0 and exit_status(parse, lambda args: 3, "") == 3
    assert exit_status(parse, fails(FloatingPointError("a\n  b")), "") == 1
    assert exit_status(parse, fails(subprocess.CalledProcessError(2, "git")), "") == 1
    assert exit_status(parse, fails(KeyboardInterrupt()), "the runs are in {out}") == 130
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "error: a b" and said[2] == "interrupted: the runs are in figures/a"
    with pytest.raises(KeyError):
        exit_status(parse, fails(KeyError("a fault of ours")), "")


def test_reasons_are_short_and_never_empty():
    assert reason(ZeroDivisionError()) == "ZeroDivisionError" and len(reason(ValueError("ab " * 9999))) < 1010
    assert reason(ValueError("got tensor([1, 2])")) == "got tensor([1, 2])" and reason(ValueError("a\n b")) == "a b"
    page = reason(ValueError(f"x: got {torch.zeros(100, 100)}"))
    assert page.startswith("x: got tensor([[0., 0., 0.") and page.endswith(" …") and len(page) < 80


@pytest.mark.slow
@pytest.mark.parametrize(
    ("main", "local", "expected"),
    [
        (None, None, "PYTHON experiments/run.py"),
        ("experiments.run", None, "PYTHON -m experiments.run"),
        (None, "2", "torchrun --nproc-per-node=2 experiments/run.py"),
        ("experiments.run", "2", "torchrun --nproc-per-node=2 -m experiments.run"),
    ],
)
def test_the_command_that_goes_on_has_the_form_of_the_first(monkeypatch, main, local, expected):
    spec = main and spec_from_loader(main, None)
    module = module_from_spec(spec) if spec else type(sys)("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    monkeypatch.setattr(sys, "argv", ["experiments/run.py"])
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    assert shlex.join(launched()) == expected.replace("PYTHON", Path(sys.executable).name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("main", "script", "local", "expected"),
    [
        (None, "pyro-vae", None, "pyro-vae train"),
        (None, "elsewhere/pyro-vae", None, "elsewhere/pyro-vae train"),
        ("pyro_vae.__main__", "pyro_vae/__main__.py", None, "PYTHON -m pyro_vae train"),
        ("pyro_vae.__main__", "pyro_vae/__main__.py", "2", "torchrun --nproc-per-node=2 -m pyro_vae train"),
        (None, "pyro-vae", "2", "torchrun --nproc-per-node=2 --no-python pyro-vae train"),
        (None, "notebook.py", None, "pyro-vae train"),
        ("pytest", "pytest.py", None, "pyro-vae train"),
    ],
)
def test_a_command_of_pyro_vae_goes_on_by_the_words_that_the_user_typed(monkeypatch, main, script, local, expected):
    spec = main and spec_from_loader(main, None)
    monkeypatch.setitem(sys.modules, "__main__", module_from_spec(spec) if spec else type(sys)("__main__"))
    monkeypatch.setattr(commands.shutil, "which", lambda name: "/bin/pyro-vae")
    monkeypatch.setattr(sys, "argv", ["/bin/pyro-vae" if script == "pyro-vae" else script])
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    assert shlex.join(launched("train")) == expected.replace("PYTHON", Path(sys.executable).name)


def test_what_fails_is_noted_and_the_rest_is_done():
    left_out = {}
    works = {"a": lambda: 1, "b": lambda: 1 / 0, "c": lambda: 3}
    assert attempted(works, left_out) == {"a": 1, "c": 3} and left_out == {"b": "division by zero"}


def test_sigterm_is_ctrl_c_within_terminable_and_not_after(usual_interrupt):
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt), terminable():
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # which is ignored again
    finally:
        signal.signal(signal.SIGTERM, before)
